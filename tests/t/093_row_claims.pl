# Workers handle plain messages without having locked their rows. What other sessions do to such a message meanwhile comes out
# as with a row lock: mq's own functions wait, and no effect is lost or doubled. A statement of a user's own that changes, locks or
# removes the row goes first: the batch rolls back, and is handled again with what is left of it.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('claims', 'mq.max_workers' => 2, 'mq.poll_interval' => '200ms');
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }

# A handler stops at a gate that the test holds shut. A call that is rolled back leaves no effect; it is counted all the same.
sql(q{
	CREATE EXTENSION mq;
	CREATE TABLE effects (n int, attempt int);
	CREATE TABLE refers (message uuid REFERENCES mq_msgs);
	CREATE SEQUENCE calls;
	CREATE FUNCTION take(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM nextval('calls');
	  INSERT INTO effects VALUES ((m.payload_json ->> 'n')::int, m.attempt);
	  IF m.payload_json ? 'gate' THEN PERFORM pg_advisory_xact_lock_shared(1); END IF;
	  IF m.payload_json ->> 'then' = 'snooze' AND (SELECT count(*) FROM mq_msgs WHERE id = m.id AND attempts > 0) = 1 THEN
	    PERFORM mq_snooze('1 hour');
	  END IF;
	  IF m.payload_json ->> 'then' = 'lock' THEN PERFORM FROM mq_msgs WHERE id = m.id FOR UPDATE; END IF;
	  IF m.payload_json ->> 'then' = 'discard' THEN PERFORM mq_discard('not wanted'); END IF;
	  IF m.payload_json ->> 'then' = 'fail' THEN RAISE 'no'; END IF;
	END $$;
	SELECT mq_register_handler('c', 'take(mq_message)', max_backoff => '1 ms')});

my $gate = $node->background_psql($db, on_error_die => 1);
sub shut { $gate->query_safe('SELECT pg_advisory_lock(1)') }
sub opened { $gate->query_safe('SELECT pg_advisory_unlock(1)') }
sub id_of { return sprintf '00000000-0000-4000-8000-%012d', shift }

# A worker that has lost a row locks those that it claims for a minute, so each case begins with new workers.
sub new_workers {
	local $Test::Builder::Level = $Test::Builder::Level + 2;
	my $workers = sql("SELECT COALESCE(string_agg(pid::text, ','), '') FROM ($MqTest::WORKERS OFFSET 0) w WHERE pg_terminate_backend(pid)");
	within(20, $node, $db, "SELECT count(*) FROM pg_stat_activity WHERE pid IN ($workers)", 0, 'the workers have ended') if $workers ne '';
	sql('TRUNCATE effects');
}
# Three messages that are sent together; the first of them stops at the gate.
my $n = 0;
sub three_at_the_gate {
	my ($options) = @_;
	new_workers();
	shut();
	my @numbers = ($n + 1 .. $n + 3);
	$n += 3;
	sql(join ';', 'BEGIN', (map {
		my $payload = $_ == $numbers[0] ? qq{{"n": $_, "gate": 1$options}} : qq{{"n": $_}};
		qq{SELECT mq_send('c', '$payload', retries => 1, retry_backoff => '1 ms', id => '} . id_of($_) . q{')}
	} @numbers), 'COMMIT');
	my ($there) = value_within(20, $node, $db, q{SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND objid = 1 AND NOT granted}, 't');
	ok($there, 'a handler is at the gate');
	return @numbers;
}
# Effects of the numbers, each with how often it took place.
sub effects {
	return q{SELECT COALESCE(string_agg(format('%s:%s', e.n, e.times), ' ' ORDER BY e.n), '') FROM (SELECT n, count(*) AS times FROM effects GROUP BY n) e};
}
sub once { return join ' ', map { "$_:1" } @_ }
my $none_left = q{SELECT count(*) FROM mq_msgs};

# Not locked: otherwise this tests nothing.
my @sent = three_at_the_gate('');
is(sql(qq{SELECT count(*) FROM (SELECT FROM mq_msgs WHERE id = '${\ id_of($sent[0])}' FOR UPDATE SKIP LOCKED) m}), 1, 'the row of a message that is being handled is not locked');
holds($node, $db, qq{BEGIN; SELECT count(id) FROM mq_poll('{c}', 10) WHERE id = '${\ id_of($sent[0])}'; ROLLBACK}, 0, 'mq_poll passes over messages that are being handled');
holds($node, $db, q{SELECT running > 0 FROM mq_stats WHERE channel_name = 'c'}, 't', 'mq_stats counts them as running');
opened();
within(20, $node, $db, effects(), once(@sent), 'each is handled once');
within(20, $node, $db, $none_left, 0, 'and gone');

# mq's own functions wait, and find what the worker has left.
for (
	[ 'mq_delete', sub { qq{SELECT mq_delete('{$_[0]}')} } ],
	[ 'mq_clear', sub { q{SELECT mq_clear('{c}')} } ],
	[ 'mq_clear_all', sub { 'SELECT mq_clear_all()' } ],
	[ 'mq_keep_alive', sub { qq{SELECT mq_keep_alive('{$_[0]}', '1 hour')} } ],
	[ 'mq_checkpoint', sub { qq{SELECT mq_checkpoint('$_[0]', '1 hour', '{"n": 0}', NULL, 3)} } ]) {
	my ($name, $call) = @$_;
	@sent = three_at_the_gate('');
	my $session = $node->background_psql($db, on_error_die => 1);
	$session->query_until(qr/called/, "SET application_name = 'waits';\n\\echo called\n" . $call->(id_of($sent[0])) . ";\n");
	within(20, $node, $db, q{SELECT wait_event FROM pg_stat_activity WHERE application_name = 'waits' AND wait_event_type = 'Lock'}, 'virtualxid', "$name waits for the worker");
	opened();
	$session->query_safe('SELECT 1');
	$session->quit;
	within(20, $node, $db, effects(), $name =~ /clear/ ? qr/\b$sent[0]:1\b/ : once(@sent), "$name: what was being handled is handled once");
	within(20, $node, $db, $none_left, 0, "$name: and gone");
}
# They wait for nothing else: not for a worker that handles other channels.
@sent = three_at_the_gate('');
sql(q{SET statement_timeout = '20 s'; SELECT mq_clear('{another}')});
pass('mq_clear waits for no other channel');
opened();
within(20, $node, $db, effects(), once(@sent), 'and what was being handled is handled');
# The wait ends as other waits for locks do.
@sent = three_at_the_gate('');
my ($rc, undef, $err) = $node->psql($db, qq{SET lock_timeout = '50 ms'; SELECT mq_delete('{${\ id_of($sent[0])}}')});
like($err, qr/canceling statement due to lock timeout/, 'lock_timeout ends the wait of mq_delete');
opened();
within(20, $node, $db, effects(), once(@sent), 'and the message is handled');

# A handler may lock its own message, of which mq_checkpoint is one case: nothing is handled again for that.
@sent = three_at_the_gate(', "then": "lock"');
opened();
within(20, $node, $db, $none_left, 0, 'a handler that locks its own message: all are handled');
holds($node, $db, effects(), once(@sent), '... once');
# They share a batch when their calls are known to be quick. A call that a busy machine stops is made again, so there are several
# tries.
new_workers();
for my $try (1 .. 5) {
	sql(q{SELECT count(*) FROM mq_send_many('c', array_fill('{"n": 0}'::jsonb, ARRAY[100]))});
	value_within(20, $node, $db, $none_left, 0);
	@sent = ($n + 1 .. $n + 10);
	$n += 10;
	sql(join ';', q{BEGIN; TRUNCATE effects; SELECT setval('calls', 1, false)},
		(map { qq{SELECT mq_send('c', '{"n": $_, "then": "lock"}', id => '} . id_of($_) . q{')} } @sent), 'COMMIT');
	within(20, $node, $db, $none_left, 0, 'handlers that lock their own messages, in a batch');
	last if sql('SELECT last_value FROM calls') eq '10';
}
holds($node, $db, effects(), once(@sent), '... have handled them once');
holds($node, $db, q{SELECT last_value, is_called FROM calls}, '10|t', '... by a call for each, and none was rolled back');

# A user's own statements go first.
for (
	[ 'DELETE', q{DELETE FROM mq_msgs WHERE id = '%s'}, 'gone' ],
	[ 'DELETE of the payload', q{DELETE FROM mq_payloads WHERE id = '%s'}, 'gone' ],
	[ 'UPDATE', q{UPDATE mq_msgs SET retry_backoff = '2 ms' WHERE id = '%s'}, 'there' ],
	[ 'UPDATE of the payload', q{UPDATE mq_payloads SET payload_json = '{"n": 0}' WHERE id = '%s'}, 'changed' ],
	[ 'UPDATE that puts it off', q{UPDATE mq_msgs SET attempt_at = now() + interval '1 hour' WHERE id = '%s'}, 'later' ],
	[ 'UPDATE of its id', q{UPDATE mq_msgs SET id = gen_random_uuid() WHERE id = '%s'}, 'there' ]) {
	my ($what, $statement, $becomes) = @$_;
	for my $then ('', ', "then": "fail"', ', "then": "snooze"', ', "then": "discard"') {
		@sent = three_at_the_gate($then);
		sql(sprintf $statement, id_of($sent[0]));
		opened();
		my $label = "$what, handler returns" . ($then =~ /: "(\w+)/ ? " ($1)" : '');
		my ($first, @others) = @sent;
		within(20, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE attempt_at < now() + interval '1 minute'}, 0, "$label: the others are handled");
		my $effect = $becomes eq 'there' && $then !~ /fail/ ? "$first:1 " : $becomes eq 'changed' ? '0:1 ' : '';
		holds($node, $db, effects(), $effect . once(@others), "$label: each effect once, and none of a message that is not there");
		my $left = $becomes eq 'later' || ($becomes eq 'there' && $then =~ /snooze/) ? 1 : 0;
		holds($node, $db, $none_left, $left, "$label: what is left");
		holds($node, $db, q{SELECT string_agg(format('%s %s', reason, attempts_made), ' ') FROM mq_dead}, $becomes eq 'there' && $then =~ /fail|discard/ ? ($then =~ /fail/ ? 'exhausted 2' : 'discarded 1') : '', "$label: dead");
		sql('SELECT mq_clear_all(); TRUNCATE mq_dead, mq_failures');
	}
}

# Locks that stay for a while, of each strength: the others are handled meanwhile, the message afterwards.
for my $lock ('UPDATE', 'NO KEY UPDATE', 'SHARE', 'KEY SHARE') {
	@sent = three_at_the_gate('');
	my $holder = $node->background_psql($db, on_error_die => 1);
	$holder->query_safe('BEGIN');
	$holder->query_safe(sprintf q{SELECT FROM mq_msgs WHERE id = '%s' FOR %s}, id_of($sent[0]), $lock);
	opened();
	within(20, $node, $db, effects(), once(@sent[1, 2]), "FOR $lock: the others are handled");
	holds($node, $db, $none_left, 1, "FOR $lock: the message waits");
	$holder->query_safe('COMMIT');
	$holder->quit;
	within(20, $node, $db, effects(), once(@sent), "FOR $lock: and is handled once");
	within(20, $node, $db, $none_left, 0, "FOR $lock: all are gone");
}
# So does a removal that is rolled back.
@sent = three_at_the_gate('');
my $holder = $node->background_psql($db, on_error_die => 1);
$holder->query_safe('BEGIN');
$holder->query_safe(qq{DELETE FROM mq_msgs WHERE id = '${\ id_of($sent[0])}'});
opened();
within(20, $node, $db, effects(), once(@sent[1, 2]), 'a DELETE that is open: the others are handled');
$holder->query_safe('ROLLBACK');
$holder->quit;
within(20, $node, $db, effects(), once(@sent), 'rolled back: the message is handled once');
# And a foreign key.
@sent = three_at_the_gate('');
$holder = $node->background_psql($db, on_error_die => 1);
$holder->query_safe('BEGIN');
$holder->query_safe(qq{INSERT INTO refers VALUES ('${\ id_of($sent[0])}')});
opened();
within(20, $node, $db, effects(), once(@sent[1, 2]), 'a foreign key refers to it: the others are handled');
$holder->query_safe('ROLLBACK');
$holder->quit;
within(20, $node, $db, effects(), once(@sent), 'and the message once, when it does no more');

# Two workers and a consumer share one channel. Nothing is handled twice, and nothing is left over.
sql(q{
	TRUNCATE effects;
	SELECT count(*) FROM mq_send_many('c', array(SELECT jsonb_build_object('n', n) FROM generate_series(1, 20000) n))});
my $polled = 0;
for (1 .. 50) {
	$polled += sql(q{
		WITH p AS MATERIALIZED (SELECT id, payload_json FROM mq_poll('{c}', 20) WHERE id IS NOT NULL),
		     i AS (INSERT INTO effects SELECT (payload_json::jsonb ->> 'n')::int, 0 FROM p)
		SELECT count(*) FROM p, LATERAL mq_delete(ARRAY[p.id])});
}
note("$polled messages were polled");
within(60, $node, $db, $none_left, 0, 'all are gone');
holds($node, $db, 'SELECT count(*), count(DISTINCT n), min(n), max(n) FROM effects', '20000|20000|1|20000', 'workers and a consumer beside each other: each once');
holds($node, $db, q{SELECT count(*) FROM mq_failures}, 0, 'and no attempt failed');

$gate->quit;
log_is_clean($node, qr/rows of messages that were to be removed|canceling statement due to lock timeout/);
$node->stop;
done_testing();
