# Whole lives of queues at random: messages that fail, conflict, take their time, are refused at COMMIT, snoozed, discarded, or
# cannot be delivered, ordered and not, for single and batch handlers, while workers are terminated, mq_run() takes part, and
# the server fails now and then. At the end each message has ended once, with as many attempts as it may have, in its order.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = mq_node('lives', 'mq.max_workers' => 0, 'mq.poll_interval' => '1s', 'mq.dead_retention' => '30 d');
my $db;
sub sql { return $node->safe_psql($db, shift) }
my $seed = $ENV{MQ_SEED} // int(rand(2**31));
note "MQ_SEED=$seed";
srand($seed);
sub below { return int(rand $_[0]) }

# Conflicts and errors at COMMIT undo whole batches, after which messages run one by one: with them, and without.
my $undone;
sub script {
	my @script = ('"cost": ' . ((0) x 9, 0.001, 0.005, 0.02)[ below(12) ]);
	my $kind = below(16);
	push @script, '"fails": 1000' if $kind == 0;
	push @script, '"fails": ' . (1 + below(5)) if $kind == 1;
	push @script, '"conflicts": 0.' . (5 + below(4)) if $kind == 2 && $undone;
	push @script, '"late": ' . (below(5) ? 1 + below(3) : 1000) if $kind == 3 && $undone;
	push @script, '"flaky": 0.3' if $kind == 4;
	push @script, '"shared": true' if $kind == 5;
	push @script, '"snoozes": ' . (1 + below(3)) if below(8) == 0;
	push @script, '"discards": true' if below(8) == 0;
	return '{' . join(', ', @script) . '}';
}
sub none {
	my ($condition, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return holds($node, $db, "SELECT to_jsonb(fates) FROM fates WHERE $condition LIMIT 3", '', $what);
}

for my $life ('batches that are undone', 'batches that are not') {
	$undone = $life eq 'batches that are undone';
	note $life;
	$db = $undone ? 'undone' : 'others';
	set_and_reload($node, 'mq.max_workers' => 0);
	$node->safe_psql('postgres', "CREATE DATABASE $db");

	# A script says what the calls of a message do: 'fails', 'late': so many attempts end in an error, or in one at COMMIT;
	# 'conflicts', 'flaky': a chance that a call does; 'snoozes': so often; 'discards'; 'shared': more than one in a call fail;
	# 'cost' in seconds.
	sql(q{
		CREATE EXTENSION mq;
		CREATE SEQUENCE refusals;
		CREATE TABLE effects (n bigserial, id uuid, what text);
		CREATE TABLE late ();
		CREATE FUNCTION fail_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE foreign_key_violation; END $$;
		CREATE CONSTRAINT TRIGGER late AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail_late();
		CREATE FUNCTION live(m mq_message, together int) RETURNS void LANGUAGE plpgsql AS $$
		DECLARE
		  s jsonb := m.payload_json;
		  snoozes boolean := (s ->> 'snoozes')::int > (SELECT count(*) FROM effects e WHERE e.id = m.id);
		BEGIN
		  PERFORM pg_sleep((s ->> 'cost')::float8);
		  INSERT INTO effects (id, what) VALUES (m.id, CASE WHEN snoozes THEN 'snoozed' WHEN s ? 'discards' THEN 'discarded'
			ELSE 'handled' END);
		  IF m.attempt <= (s ->> 'fails')::int OR (s ->> 'flaky')::float8 > random() OR (s ? 'shared' AND together > 1)
			THEN RAISE 'as ever'; END IF;
		  IF (s ->> 'conflicts')::float8 > random() THEN RAISE serialization_failure; END IF;
		  IF m.attempt <= (s ->> 'late')::int THEN INSERT INTO late DEFAULT VALUES; END IF;
		  IF snoozes THEN PERFORM mq_snooze('0.05 s', m.id); ELSIF s ? 'discards' THEN PERFORM mq_discard('no use', m.id); END IF;
		END $$;
		CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE sql AS 'SELECT live(m, 1)';
		CREATE FUNCTION handle_all(m mq_message[]) RETURNS void LANGUAGE sql
			AS 'SELECT live(one, cardinality(m)) FROM unnest(m) AS one'});
	my ($few, $some) = (2 + below(30), 1 + below(5));
	my $blocking = below(2) ? 'handle(mq_message)' : 'handle_all(mq_message[])';
	sql(qq{SELECT mq_register_handler('single', 'handle(mq_message)'), mq_register_handler('batch', 'handle_all(mq_message[])',
		batch_size => $few),
		mq_register_handler('blocking', '$blocking', on_dead => 'block'),
		mq_register_handler('mixed', 'handle_all(mq_message[])', 'x', batch_size => $some), mq_register_handler('mixed',
			'handle(mq_message)', 'y', batch_size => 20)});

	# --- what is sent ------------------------------------------------------------------------------------------

	my @sends;
	for my $n (1 .. 200) {
		my $args = below(6);
		my %more = (ordered => $args < 3 ? 'true' : 'false', retries => below(5), retry_backoff => q{'} . below(3) / 10 . q{ s'});
		$more{delay} = q{'} . below(20) / 10 . q{ s'} if below(5) == 0;
		$more{expires} = q{'} . (1 + below(20)) / 10 . q{ s'} if below(10) == 0;
		$more{commit_interval} = q{'0.5 s'} if below(50) == 0;
		push @sends, sprintf q{SELECT mq_send('%s', '%s', '%s', '%s', %s);}, (qw(single batch blocking mixed))[ below(4) ], script(),
			below(2) ? 'x' : below(10) ? 'y' : 'of nobody', $args, join(', ', map { "$_ => $more{$_}" } sort keys %more);
	}
	sql(join '', @sends);
	sql(qq{SELECT setseed(@{[$seed % 1000 / 1000]});
		UPDATE mq_msgs SET attempts = 0 WHERE random() < 0.02;
		CREATE TABLE sent AS SELECT m.id, channel_name, channel_args, name, seq, m.attempts AS allowed, after_message_id IS NOT NULL
			AS ordered,
		    commit_interval IS NOT NULL AS uncommitted, expires_at, payload_json AS script
		  FROM mq_msgs m JOIN mq_payloads p USING (id)});

	# --- how it goes -------------------------------------------------------------------------------------------

	# The server fails at some of the first removals.
	sql(q{CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
		  IF nextval('public.refusals') IN (3, 11, 30, 31) THEN RAISE EXCEPTION USING ERRCODE = '53100',
			MESSAGE = 'no space, says the test'; END IF;
		  RETURN NULL;
		END $$;
		CREATE TRIGGER refuse BEFORE DELETE ON mq_msgs FOR EACH STATEMENT EXECUTE FUNCTION refuse()});
	set_and_reload($node, 'mq.max_workers' => 2, 'mq.batch_size' => 1 + below(200));
	for my $round (1 .. 5) {
		usleep(rand 300_000);
		sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'mq worker'}) if below(2);
		$node->psql($db, 'CALL mq_run(max_messages => ' . (1 + below(20)) . ')', on_error_stop => 0);
	}
	# What no handler takes has waited for one.
	within(60, $node, $db, q{SELECT count(*) FROM mq_msgs m JOIN mq_payloads p USING (id)
		WHERE attempt_at < 'infinity' AND channel_name <> 'blocking'
		AND NOT EXISTS (SELECT FROM mq_msgs b WHERE b.attempt_at = 'infinity' AND m.after_message_id IS NOT NULL
			AND (b.channel_name, b.channel_args) = (m.channel_name, m.channel_args))}, 0, 'all that has a handler ends');
	sql(q{SELECT mq_register_handler('mixed', 'handle(mq_message)', 'of nobody')});
	# A dead message that blocks its channel stays, and what is behind it.
	my $waits = q{channel_name = 'blocking' AND after_message_id IS NOT NULL AND EXISTS (SELECT FROM mq_msgs b
		WHERE b.channel_name = 'blocking' AND b.channel_args = m.channel_args AND b.after_message_id IS NOT NULL
			AND b.attempt_at IS NULL)};
	within(60, $node, $db, "SELECT count(*) FROM mq_msgs m WHERE NOT ($waits)", 0, 'then the rest');

	# --- what became of it -------------------------------------------------------------------------------------

	sql(q{CREATE VIEW fates AS
		SELECT s.*, m.id IS NOT NULL AS there, m.id IS NOT NULL AND m.attempt_at IS NULL AS blocks, d.reason, d.attempts_made,
			d.died_at, f.failures, f.attempts,
		       (SELECT count(*) FROM effects e WHERE e.id = s.id AND what = 'handled') AS handled,
		       (SELECT count(*) FROM effects e WHERE e.id = s.id AND what = 'snoozed') AS snoozed
		  FROM sent s LEFT JOIN mq_msgs m USING (id) LEFT JOIN mq_dead d USING (id),
		       LATERAL (SELECT count(*) AS failures, COALESCE(string_agg(attempt::text, ' ' ORDER BY failure_no), '') AS attempts
			FROM mq_failures WHERE message_id = s.id) f});
	my $ends = '(handled + (reason IS NOT NULL)::int)';
	none("NOT there AND $ends <> CASE WHEN uncommitted THEN 0 ELSE 1 END",
		'each message has ended once; what was not committed leaves no trace');
	none("there AND $ends <> blocks::int", 'what is left is dead and blocks its channel, or waits behind that');
	holds($node, $db, 'SELECT count(*) FROM (SELECT id FROM mq_dead GROUP BY id HAVING count(*) > 1) AS d', 0, 'none is dead twice');
	none('failures + handled > allowed', 'none has more attempts than it may');
	none(q{attempts NOT IN ('', '1', '1 2', '1 2 3', '1 2 3 4', '1 2 3 4 5')}, 'each attempt is charged once, in turn');
	none(q{reason = 'exhausted' AND attempts_made <> CASE WHEN allowed = 0 THEN 0 ELSE allowed END},
		'what is exhausted had all of its attempts');
	none(q{reason = 'discarded' AND attempts_made <> failures + 1},
		'what is discarded had those that failed, and that one');
	none(q{reason = 'expired' AND (attempts_made <> failures OR died_at < expires_at)},
		'what has expired had those that failed, and died no earlier');
	none(q{handled = 1 AND snoozed <> COALESCE((script ->> 'snoozes')::int, 0)},
		'what is handled was snoozed as often as it wanted');
	none(q{NOT there AND expires_at IS NULL AND NOT uncommitted AND NOT script ?| '{conflicts,late,flaky,shared}'
		AND failures <> least(COALESCE((script ->> 'fails')::int, 0), allowed)}, 'as many attempts failed as had to');
	holds($node, $db, q{SELECT count(*) FROM (SELECT seq, lag(seq) OVER (PARTITION BY channel_name, channel_args ORDER BY n)
		AS before
		FROM effects JOIN sent USING (id) WHERE ordered AND what = 'handled') AS e WHERE seq < before}, 0,
			'ordered messages are handled in their order');
	holds($node, $db, 'SELECT count(*) > 100, (SELECT last_value FROM refusals) > 31 FROM fates WHERE handled = 1', 't|t',
		'it was a life worth the name');
}

$node->stop;
log_is_clean($node, qr/mq worker: .*no space, says the test/);
done_testing();
