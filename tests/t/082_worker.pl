# What becomes of messages in the hands of a worker: conflicts, errors that come only at COMMIT, slow failures, messages that
# cannot be delivered. CALL mq_run() runs a worker's batches here, step by step; what needs a
# process of its own is at the end.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('worker', 'mq.max_workers' => 0);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }

# A payload says what its calls do: 'fails' has the SQLSTATE of each call in turn ('' for none), 'fails at commit' that of each
# commit; a text in place of the array is meant for all, or for all of the first 'attempts'. Sequences count calls and commits,
# whatever is rolled back.
sql(q{
	CREATE EXTENSION mq;
	CREATE SEQUENCE calls; CREATE SEQUENCE commits;
	CREATE TABLE done (n bigserial, what text, attempt int, batch xid8 DEFAULT pg_current_xact_id());
	CREATE FUNCTION say(what jsonb, which regclass) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
	  turn int := nextval(which) - 1;
	  state text := CASE jsonb_typeof(what) WHEN 'array' THEN what ->> turn ELSE what #>> '{}' END;
	BEGIN
	  IF state <> '' THEN RAISE EXCEPTION USING ERRCODE = state, MESSAGE = 'the test says so'; END IF;
	END $$;
	CREATE TABLE late (what jsonb);
	CREATE FUNCTION say_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM say(NEW.what, 'commits'); RETURN NULL; END $$;
	CREATE CONSTRAINT TRIGGER late AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION say_late();
	CREATE FUNCTION act(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO done (what, attempt) VALUES (m.name, m.attempt);
	  IF m.payload_json ? 'sleeps' THEN PERFORM pg_sleep((m.payload_json ->> 'sleeps')::float8); END IF;
	  IF m.payload_json ? 'fails' THEN PERFORM say(m.payload_json -> 'fails', 'calls'); END IF;
	  IF m.payload_json ? 'fails at commit' AND m.attempt <= COALESCE((m.payload_json ->> 'attempts')::int, m.attempt) THEN
	    INSERT INTO late VALUES (m.payload_json -> 'fails at commit');
	  END IF;
	END $$;
	CREATE FUNCTION act_on_all(m mq_message[]) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE one mq_message;
	BEGIN
	  FOREACH one IN ARRAY m LOOP PERFORM act(one); END LOOP;
	END $$});

# Each case has a channel of its own, so that none finds what another has made a worker remember.
my ($case, $channel) = (0);
sub register {
	my ($what, $handler, @more) = @_;
	$channel = 'case ' . ++$case;
	note "$channel: $what";
	sql(q{TRUNCATE done, late; DELETE FROM mq_failures; DELETE FROM mq_dead; SELECT mq_clear_all();
		ALTER SEQUENCE calls RESTART; ALTER SEQUENCE commits RESTART});
	sql("SELECT mq_register_handler(" . join(', ', "'$channel'", "'" . ($handler // 'act(mq_message)') . "'", @more) . ')');
}
# A statement that sends so many messages of that name.
sub send_some {
	my ($count, $name, $payload, @more) = @_;
	my $send = 'mq_send(' . join(', ', "'$channel'", "'" . ($payload // '{}') . "'", "'$name'", @more) . ')';
	return 'SELECT ' . join(', ', ($send) x $count) . ';';
}
# What is sent in one transaction.
sub together { sql(join '', 'BEGIN;', @_, 'COMMIT') }
# As many of the same as JSON.
sub states { my ($state, $count, @more) = @_; return '[' . join(', ', map { qq{"$_"} } ($state) x $count, @more) . ']' }
sub is_now {
	my ($query, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return holds($node, $db, $query, $expected, $what);
}
my $done = q{SELECT string_agg(what || ' ' || attempt, ', ' ORDER BY n) FROM done};
my $times = q{SELECT string_agg(what || ' ' || count, ', ' ORDER BY what) FROM (SELECT what, count(*) FROM done GROUP BY 1) AS c};
my $failures = 'SELECT count(*) FROM mq_failures';
my $dead = q{SELECT string_agg(concat_ws(' ', name, reason, attempts_made, sqlstate), ', ' ORDER BY dead_no) FROM mq_dead};
my $run = 'CALL mq_run()';

# --- conflicts -----------------------------------------------------------------------------------

register('ten conflicts in a row');
sql(send_some(1, 'conflicts', '{"fails": ' . states('40001', 10) . '}', q{retry_backoff => '1 h'})
	. send_some(10, 'other'));
is(sql($run), 11, 'what conflicts is tried again at once');
is_now($times, 'conflicts 1, other 10', 'until it is handled, as are the others');
is_now("SELECT last_value, ($failures) FROM calls", '11|0', 'ten conflicts in a row are not charged');

register('conflicts without end');
sql(send_some(1, 'conflicts', '{"fails": "40001"}', 'retries => 1', q{retry_backoff => '0'}));
sql($run);
is_now($dead, 'conflicts exhausted 2 40001', 'conflicts without end are charged');
is_now("SELECT last_value, ($failures) FROM calls", '22|2', 'each attempt after eleven calls');

register('conflicts, another error, and conflicts again');
sql(send_some(1, 'conflicts', '{"fails": ' . states('40001', 10, 'P0001', ('40001') x 10) . '}', q{retry_backoff => '0'}));
sql($run);
is_now($done, 'conflicts 2', 'conflicts are counted in a row');
is_now($failures, 1, 'and anew after another error');

register('a conflict in an ordered channel');
together(send_some(3, 'before', '{}', 'ordered => true'),
	send_some(1, 'conflicts', '{"fails": ' . states('40001', 5) . '}', 'ordered => true'),
	send_some(1, 'behind', '{}', 'ordered => true'));
sql($run);
is_now($done, 'before 1, before 1, before 1, conflicts 1, behind 1', 'an ordered channel keeps its order around a conflict');

# --- errors at COMMIT ------------------------------------------------------------------------------

for my $handler ('act(mq_message)', 'act_on_all(mq_message[])') {
	for my $state ('23503', '40001') {
		register("$handler fails at COMMIT with $state", $handler);
		sql(send_some(10, 'good')
			. send_some(1, 'bad', qq({"fails at commit": "$state"}), 'retries => 2', q{retry_backoff => '0'})
			. send_some(10, 'good'));
		sql($run);
		is_now($times, 'good 20', "$handler, $state at COMMIT: the others of its batch are handled once");
		is_now($dead, "bad exhausted 3 $state", '... and it dies of it');
		is_now($failures, 3, '... each attempt is charged once');
	}
}

register('an error at COMMIT in an ordered channel');
together(send_some(3, 'before', '{}', 'ordered => true'),
	send_some(1, 'bad', '{"fails at commit": "23503", "attempts": 2}', 'ordered => true', q{retry_backoff => '0'}),
	send_some(1, 'behind', '{}', 'ordered => true'));
sql($run);
is_now($done, 'before 1, before 1, before 1, bad 3, behind 1', 'an error at COMMIT holds its ordered channel back');
is_now($failures, 2, '... for two attempts');

register('what is recorded of an error at COMMIT');
sql(send_some(1, 'bad', '{"sleeps": 0.07, "fails at commit": "23503"}', q{channel_args => 'x'}, 'retries => 0'));
sql($run);
is_now(q{SELECT channel_name, channel_args, name, attempt, sqlstate, error, duration BETWEEN '70 ms' AND '30 s' FROM mq_failures},
	"$channel|x|bad|1|23503|the test says so|t", 'an error at COMMIT is recorded as any other, with the time of its call');

register('an error at COMMIT in a long queue');
sql(send_some(1, 'bad', '{"fails at commit": "23503", "attempts": 1}', q{retry_backoff => '1 h'}));
sql("SELECT count(*) FROM mq_send_many('$channel', array_fill('{}'::jsonb, ARRAY[600]), name => 'good')");
is(sql($run), 600, 'the others of a long queue are handled behind an error at COMMIT');
is_now(q{SELECT count(*), count(DISTINCT batch) BETWEEN 10 AND 150 FROM done}, '600|t',
	'... first one by one, then in batches again');

register('one conflict at COMMIT');
sql(send_some(1, 'conflicts', '{"fails at commit": ["40001"]}', q{retry_backoff => '1 h'}));
is(sql($run), 1, 'a message whose COMMIT conflicts is tried again at once');
is_now($failures, 0, '... and not charged');
register('one conflict at COMMIT of a batch');
sql(send_some(19, 'good', '{}', q{retry_backoff => '1 h'})
	. send_some(1, 'conflicts', '{"fails at commit": ["40P01"]}', q{retry_backoff => '1 h'}));
is(sql($run), 20, 'so is a batch');
is_now("SELECT ($failures), ($times)", '0|conflicts 1, good 19', '... of which nothing is charged, and each is handled once');

register('eleven conflicts at COMMIT');
sql(send_some(1, 'conflicts', '{"fails at commit": ' . states('40001', 11) . '}', q{retry_backoff => '0'}));
sql($run);
is_now("SELECT ($done), ($failures)", 'conflicts 2|1', 'conflicts at COMMIT are charged after ten of them');

# --- slow failures -----------------------------------------------------------------------------------

# Each lasts longer than the handlers of a batch may run together.
for my $handler ('act(mq_message)', 'act_on_all(mq_message[])') {
	register("$handler fails slowly", $handler);
	sql(send_some(5, 'good')
		. send_some(1, 'bad', '{"sleeps": 0.25, "fails": "P0001"}', 'retries => 2', q{retry_backoff => '0'})
		. send_some(5, 'good'));
	sql($run);
	is_now($times, 'good 10', "$handler fails slowly: the others are handled once");
	is_now("SELECT ($dead), ($failures)", 'bad exhausted 3 P0001|3', '... and the attempts are charged');
}
for my $handler ('act(mq_message)', 'act_on_all(mq_message[])') {
	register("a queue of slow failures, $handler", $handler);
	sql(send_some(5, 'bad', '{"sleeps": 0.06, "fails": "P0001"}', 'retries => 1', q{retry_backoff => '0'}));
	sql($run);
	is_now("SELECT count(*), min(attempts_made), max(attempts_made), ($failures) FROM mq_dead", '5|2|2|10',
		"a queue of slow failures comes to its end, $handler");
}

# --- what cannot be delivered ------------------------------------------------------------------------

register('an ordered channel with messages that cannot be delivered');
sql("SELECT mq_send('$channel', '{}', n::text, ordered => true, id => lpad(n::text, 32, '0')::uuid, commit_interval =>
	CASE n WHEN 4 THEN interval '1 h' END)
	FROM generate_series(1, 6) n");
sql(q{UPDATE mq_msgs SET expires_at = now() - interval '1 s' WHERE message_name = '2';
      UPDATE mq_msgs SET attempt_at = now() - interval '1 s' WHERE commit_interval IS NOT NULL;
      UPDATE mq_msgs m SET attempts = 0, attempt = 3 FROM mq_payloads p WHERE p.id = m.id AND p.name = '5'});
is(sql($run), 3, 'an ordered channel goes on behind messages that cannot be delivered');
is_now($done, '1 1, 3 1, 6 1', '... in its order, and without them');
is_now(q{SELECT count(DISTINCT batch) FROM done}, 3, '... each time in another batch');
is_now(q{SELECT string_agg(concat_ws(' ', right(id::text, 1), reason, attempts_made), ', ' ORDER BY dead_no) FROM mq_dead},
	'2 expired 0, 5 exhausted 3',
	'... one expires uncharged, one dies with the attempts it had, one that was not committed leaves no trace');
is_now("SELECT ($failures), (SELECT count(*) FROM mq_msgs), (SELECT count(*) FROM mq_payloads)", '0|0|0',
	'... and nothing is left or charged');

register('nothing is wanted');
sql(send_some(1, 'expired', '{}', q{expires => '1 ms'}, q{delay => '1 h'}));
sql(q{SELECT mq_send('nobody', expires => '1 ms'); SELECT pg_sleep(0.01)});
sql('CALL mq_run(max_messages => 0)');
is_now(q{SELECT count(*) FROM mq_dead}, 0, 'mq_run(max_messages => 0) does nothing at all');
sql($run);
is_now(q{SELECT count(*) FROM mq_dead}, 2, 'where mq_run() sweeps');

# --- workers -----------------------------------------------------------------------------------------

set_and_reload($node, 'mq.max_workers' => 1);
register('json and batch handlers, ordered and not', undef);
sql("SELECT mq_register_handler('$channel', 'act_on_all(mq_message[])', 'in batches')");
within(20, $node, $db, q{SELECT count(*) FROM mq_workers WHERE state = 'waiting'}, 1, 'a worker rests');
my $told = sql('SELECT handled FROM mq_workers');
sql("SELECT count(mq_send('$channel', '{}', name, ordered => name <> 'one'))
	FROM generate_series(1, 100), unnest('{one,in batches}'::text[]) AS name");
within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'a worker leaves nothing');
is_now($times, 'in batches 100, one 100', '... and has handled each once');
within(20, $node, $db, "SELECT handled - $told FROM mq_workers", 200, '... which mq_workers counts');

# Another session has the message between the error at COMMIT and its charge: it waits for the row; the worker waits then
# behind the third one, which waits for the table.
sql(q{CREATE OR REPLACE FUNCTION act(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM pg_advisory_xact_lock_shared(1);
	  INSERT INTO late VALUES ('"23503"');
	END $$});
for my $taking ('has locked', 'has charged') {
	register("a message whose COMMIT fails, and which somebody else $taking then");
	my ($locker, $taker, $gate) = map { MqSession->new($node, $db) } 1 .. 3;
	$locker->query('SELECT pg_advisory_lock(1)');
	sql(send_some(1, 'late', '{}', 'retries => 1'));
	within(20, $node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND wait_event = 'advisory'}, 1,
		"what somebody else $taking: a handler runs");
	sql("SELECT mq_pause('$channel')");
	$taker->query('BEGIN; LOCK TABLE mq_msgs IN ROW EXCLUSIVE MODE');
	$taker->start('SELECT id FROM mq_msgs FOR UPDATE');
	# Behind this wait the worker's next transaction has to wait.
	$gate->query('BEGIN');
	my $pid = $gate->query('SELECT pg_backend_pid()');
	$gate->start('LOCK TABLE mq_msgs IN EXCLUSIVE MODE');
	$locker->query('SELECT pg_advisory_unlock_all()');
	isnt($taker->result, '', '... somebody else has its message when it has failed at COMMIT');
	if ($taking eq 'has charged') {
		$taker->query('UPDATE mq_msgs SET attempt = attempt + 1; COMMIT');
		is($gate->result, '', '... and its worker cannot go on yet');
	} else {
		sql("SELECT pg_cancel_backend($pid)");
		is($gate->result, 'error 57014', '... and its worker could not go on yet');
	}
	$gate->query('ROLLBACK');
	within(20, $node, $db, q{SELECT state FROM mq_workers}, 'waiting', '... then it has gone on');
	is_now("SELECT ($failures), (SELECT count(*) FROM mq_dead)", '0|0',
		"an error at COMMIT is not charged to what somebody else $taking since");
	$taker->query('ROLLBACK') if $taking eq 'has locked';
	$_->quit for $locker, $taker, $gate;
}

# A handler that is registered, and a message that is sent, in one transaction: a worker that has looked for handlers before
# it claims the message looks again.
register('handlers that are registered all the time');
sql(q{DO $$
	BEGIN
	  FOR n IN 1 .. 400 LOOP
	    EXECUTE format('CREATE FUNCTION version_%s(m mq_message) RETURNS void LANGUAGE sql AS $f$
	      INSERT INTO done (what, attempt) VALUES (m.name, %s) $f$', n, n);
	  END LOOP;
	END $$});
sql(qq{DO \$\$
	BEGIN
	  FOR n IN 1 .. 400 LOOP
	    PERFORM mq_register_handler('$channel', format('version_%s(mq_message)', n)::regprocedure);
	    PERFORM mq_send('$channel', name => n::text);
	    COMMIT;
	  END LOOP;
	END \$\$});
within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'messages that are sent with their handlers are handled');
is_now(q{SELECT count(*), count(*) FILTER (WHERE attempt < what::int) FROM done}, '400|0',
	'by no handler that was registered before');

$node->stop;
log_is_clean($node);
done_testing();
