# What a worker does beside its batches: it looks for what has expired, and sweeps, however busy it is and no more often than it
# must. The poll interval is an hour where nothing else is said.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = mq_node('on_time', 'mq.max_workers' => 1, 'mq.dead_retention' => '30 d');
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }

sql(q{
	CREATE EXTENSION mq;
	CREATE SEQUENCE sweeps;
	CREATE TABLE refusals ();
	CREATE FUNCTION note_sweep() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM nextval('public.sweeps');
	  IF EXISTS (SELECT FROM public.refusals) THEN RAISE 'not now, says the test'; END IF;
	  RETURN NULL;
	END $$;
	CREATE TRIGGER sweep BEFORE DELETE ON mq_dead FOR EACH STATEMENT EXECUTE FUNCTION note_sweep();
	CREATE TABLE done (n bigserial, name text, at timestamptz DEFAULT clock_timestamp());
	CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  IF m.payload_json ? 'sleeps' THEN PERFORM pg_sleep((m.payload_json ->> 'sleeps')::float8); END IF;
	  INSERT INTO done (name) VALUES (m.name);
	END $$;
	-- So many dead letters that are to go.
	CREATE FUNCTION old_letters(count int) RETURNS void LANGUAGE sql AS $$
	  INSERT INTO mq_dead (id, died_at, channel_name, channel_args, ordered, attempts_made, reason, retry_backoff, channel_key)
	    SELECT gen_random_uuid(), now() - interval '40 d', 'old', '', false, 1, 'exhausted', '1 s', mq_channel_key('old', '')
		FROM generate_series(1, count) $$;
	SELECT mq_register_handler('c', 'handle(mq_message)')});
my $sweeps = 'SELECT last_value FROM sweeps';
my $left = 'SELECT count(*) FROM mq_msgs';
sub all_handled { local $Test::Builder::Level = $Test::Builder::Level + 1; return within(60, $node, $db, $left, 0, $_[0]) }
sub another_worker {
	my ($pid) = pids($node, $db, $MqTest::WORKERS, 1);
	sql("SELECT pg_terminate_backend($pid)");
	within(20, $node, $db, "SELECT count(*) FROM ($MqTest::WORKERS) w WHERE pid <> $pid", 1, 'another worker comes');
}

# --- what expires ----------------------------------------------------------------------------------------

sub scans { my ($count) = sql(q{SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'mq_msgs_expiry'}); return $count }
my $before = scans();
sql(q{TRUNCATE done; SELECT count(*) FROM mq_send_many('c', array_fill('{"sleeps": 0.05}'::jsonb, ARRAY[120]))});
sql(q{SELECT mq_send('nobody', expires => '1 s')});
within(20, $node, $db, 'SELECT reason FROM mq_dead', 'expired', 'what expires dies however busy its worker is');
all_handled('the others are handled');
holds($node, $db, q{SELECT died_at >= created_at + interval '1 s', died_at > (SELECT min(at) FROM done),
	died_at < (SELECT max(at) FROM done) FROM mq_dead}, 't|t|t', '... meanwhile');
another_worker();  # the one before has told what it has read
my ($known, $scans) = value_within(20, $node, $db, qq{SELECT idx_scan - $before FROM pg_stat_user_indexes
	WHERE indexrelname = 'mq_msgs_expiry'}, qr/^[1-9]/);
cmp_ok($scans, '<=', 60, "a busy worker does not look for it after each of 120 batches: $scans");

sql(q{DELETE FROM mq_dead; SELECT mq_pause('c'), mq_send('c', name => 'locked', expires => '3 s')});
my $locker = MqSession->new($node, $db);
$locker->query('BEGIN; SELECT FROM mq_msgs FOR UPDATE');
within(20, $node, $db, 'SELECT expires_at < now() FROM mq_msgs', 't', 'a message expires that another session has');
holds($node, $db, 'SELECT count(*) FROM mq_dead', 0, '... and does not die in its hands');
$locker->query('COMMIT');
within(20, $node, $db, 'SELECT reason FROM mq_dead', 'expired', '... but when it is let go');
sql(q{SELECT mq_resume('c')});
$locker->quit;

# --- the sweep ----------------------------------------------------------------------------------------------

sql('SELECT old_letters(3000)');
another_worker();
within(20, $node, $db, 'SELECT count(*) FROM mq_dead WHERE channel_name = $$old$$', 0,
	'a worker that begins sweeps till nothing is left to do');

sql('INSERT INTO refusals DEFAULT VALUES; SELECT old_letters(1)');
another_worker();
within(20, $node, $db, q{SELECT detail FROM mq_health() WHERE "check" = 'workers succeed' AND NOT ok},
	qr/not now, says the test/, 'a sweep that fails is told');
sql('DELETE FROM refusals');
within(20, $node, $db, 'SELECT count(*) FROM mq_dead WHERE channel_name = $$old$$', 0,
	'and done again soon, though the poll interval is an hour');

set_and_reload($node, 'mq.poll_interval' => '1s');
my $first = sql($sweeps);
within(20, $node, $db, "SELECT last_value - $first >= 2 FROM sweeps", 't', 'a worker that rests sweeps once in a poll interval');
my $since = time;
$first = sql($sweeps);
sql('SELECT pg_sleep(3)');
my $more = sql($sweeps) - $first;
cmp_ok($more, '<=', time - $since + 2, '... and no more often');
sql(q{TRUNCATE done; SELECT count(*) FROM mq_send_many('c', array_fill('{"sleeps": 0.1}'::jsonb, ARRAY[300]))});
within(20, $node, $db, 'SELECT count(*) > 0 FROM done', 't', 'a worker is busy');
$first = sql($sweeps);
within(20, $node, $db, "SELECT last_value - $first >= 2 FROM sweeps", 't', '... and sweeps all the same');
holds($node, $db, 'SELECT count(*) > 0 FROM mq_msgs', 't', '... meanwhile');
sql('SELECT mq_clear_all()');
set_and_reload($node, 'mq.poll_interval' => '1h');

$node->stop;
log_is_clean($node, qr/mq worker: .*not now, says the test/);
done_testing();
