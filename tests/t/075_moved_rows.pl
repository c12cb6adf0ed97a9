# Rows of ours that are moved by hand, or by a handler, while handlers run: nobody else's row is taken for them.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use MqSession;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = mq_node('moved_rows', 'mq.max_workers' => 1, 'mq.poll_interval' => '200ms', 'autovacuum' => 'off');
my $db = 'postgres';

$node->safe_psql($db, 'CREATE EXTENSION mq');
$node->safe_psql($db, q{
	CREATE TABLE done (name text, payload jsonb);
	CREATE FUNCTION wait_turn(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE turn int := CASE m.name WHEN 'first' THEN 1 ELSE 2 END;
	BEGIN
	  PERFORM pg_advisory_lock(turn);
	  PERFORM pg_advisory_unlock(turn);
	  INSERT INTO done VALUES (m.name, m.payload_json);
	END $$;
	SELECT mq_register_handler('moved', 'wait_turn(mq_message)')});

# Session sees a worker wait for that turn.
sub waits_for {
	my ($session, $turn) = @_;
	for (my $end = time + 20; time < $end; usleep(2_000)) {
		return 1 if $session->query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = $turn AND NOT granted") eq '1';
	}
	return 0;
}

# While the worker is at the first message another session changes the payload of the second, which moves its row. It is
# removed where it was, and new messages take its place.
my $mover = MqSession->new($node, $db);
my $holder = MqSession->new($node, $db);
for my $try (1 .. 4) {
	$mover->query(q{TRUNCATE done; SELECT mq_pause('moved'); SELECT mq_send('moved', '1', name => 'first'), mq_send('moved', '2', name => 'second')});
	$mover->query(q{SELECT pg_advisory_lock(1); BEGIN; UPDATE mq_payloads SET payload_json = '"new"' WHERE name = 'second'});
	$holder->query(q{SELECT pg_advisory_lock(2); SELECT mq_resume('moved')});
	ok(waits_for($holder, 1), "round $try: the worker is at the first message");
	$mover->query('COMMIT');
	$mover->query('VACUUM (INDEX_CLEANUP ON) mq_msgs');
	$mover->query(q{SELECT mq_send('kept', '3') FROM generate_series(1, 8)});
	$mover->query('SELECT pg_advisory_unlock(1)');
	ok(waits_for($holder, 2), "round $try: then at the second");
	$mover->query(q{SELECT mq_send('kept', '3') FROM generate_series(1, 8)});
	$holder->query('SELECT pg_advisory_unlock(2)');
	$node->poll_query_until($db, q{SELECT NOT EXISTS (SELECT FROM mq_msgs WHERE channel_name = 'moved')}) or die 'not handled';
	holds($node, $db, q{SELECT count(*) FROM mq_msgs m JOIN mq_payloads USING (id) WHERE m.channel_name = 'kept'}, $try * 16,
		"round $try: every other message is still there");
	holds($node, $db, q{SELECT string_agg(concat_ws(' ', name, payload), ', ' ORDER BY name), (SELECT count(*) FROM mq_failures) FROM done}, 'first 1, second "new"|0',
		"round $try: both are handled once, the second with its new payload");
}
$_->quit for $mover, $holder;

# A handler moves the row of a message that is in its batch.
$node->safe_psql($db, q{
	ALTER TABLE done ADD batch xid8 DEFAULT pg_current_xact_id();
	CREATE FUNCTION move(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  IF m.name = 'mover' THEN EXECUTE m.payload_json #>> '{}'; END IF;
	  INSERT INTO done VALUES (m.name);
	END $$;
	SELECT mq_register_handler('batch', 'move(mq_message)')});
my $again = q{WITH gone AS (DELETE FROM mq_msgs WHERE message_name = 'other' RETURNING *) INSERT INTO mq_msgs SELECT * FROM gone};
for my $case ([ q{UPDATE mq_payloads SET payload_json = payload_json WHERE name = 'other'}, 'updated' ],
	[ q{UPDATE mq_msgs SET attempt_at = attempt_at - interval '1 s' WHERE message_name = 'other'}, 'updated, with its index entries' ],
	[ $again, 'removed and inserted again' ],
	[ "$again; $again", 'inserted again twice' ],
	[ qq{DO 'BEGIN $again; RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN END'} =~ s/'other'/''other''/r, 'inserted again, and that rolled back' ])
{
	my ($statement, $what) = @$case;
	$node->safe_psql($db, qq{
		TRUNCATE done;
		SELECT mq_pause('batch');
		SELECT mq_send('batch', to_jsonb(\$sql\$$statement\$sql\$::text), name => 'mover');
		SELECT mq_send('batch', name => 'other');
		SELECT mq_send('batch', name => 'another');
		SELECT mq_resume('batch')});
	within(10, $node, $db, q{SELECT string_agg(name, ' ' ORDER BY name) FROM done}, 'another mover other', "$what: each message of the batch is handled");
	within(10, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'batch'}, 0, "$what: and removed");
	holds($node, $db, q{SELECT (SELECT count(*) FROM done), (SELECT count(*) FROM mq_failures), (SELECT count(*) FROM mq_msgs WHERE channel_name = 'kept' AND message_json = '3')},
		'3|0|64', "$what: once, and nothing else is");
}

# Rows of leased messages are moved by whoever may lock the table.
$node->safe_psql($db, q{TRUNCATE done; SELECT mq_register_handler('leased', 'wait_turn(mq_message)', mode => 'leased')});
for my $statement ('VACUUM FULL mq_msgs', 'CLUSTER mq_msgs USING mq_msgs_pkey', q{UPDATE mq_payloads SET payload_json = '"new"' WHERE name = 'leased'}) {
	my $gate = MqSession->new($node, $db);
	$gate->query('SELECT pg_advisory_lock(2)');
	$node->safe_psql($db, q{TRUNCATE done; SELECT mq_send('leased', '"old"')});
	ok(waits_for($gate, 2), "$statement: a leased handler is at work");
	$node->safe_psql($db, "SET lock_timeout = '20 s'; $statement");
	$gate->query('SELECT pg_advisory_unlock(2)');
	within(10, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'leased'}, 0, "$statement: its message is removed");
	holds($node, $db, q{SELECT string_agg(concat_ws(' ', name, payload), ', '), (SELECT count(*) FROM mq_failures) FROM done}, 'leased "old"|0', "$statement: and was handled once");
	$gate->quit;
}

# A handler that has a table written anew, in another order.
$node->safe_psql($db, q{
	CREATE FUNCTION rewrite(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  EXECUTE format('CREATE INDEX other_order ON %s (%s DESC)', m.name, 'id');
	  EXECUTE format('CLUSTER %s USING other_order', m.name);
	  DROP INDEX other_order;
	END $$;
	SELECT mq_register_handler('rewritten', 'rewrite(mq_message)')});
for my $table ('mq_msgs', 'mq_dead') {
	$node->safe_psql($db, qq{
		SELECT mq_send('kept', '4');
		SELECT mq_send('rewritten', '5', name => '$table', retries => 0);
		SELECT mq_send('kept', '6')});
	within(10, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'rewritten'}, '0', "a handler may have $table written anew");
	holds($node, $db, q{SELECT count(*) FROM mq_dead}, '0', 'it is no failure');
	holds($node, $db, q{SELECT count(*) FROM mq_msgs m WHERE channel_name = 'kept' AND message_json = '4'}, $table eq 'mq_msgs' ? 1 : 2,
		'and nothing but its message is removed');
}

# The same without another order.
$node->safe_psql($db, q{
	CREATE FUNCTION relog(m mq_message) RETURNS void LANGUAGE sql AS 'ALTER TABLE mq_msgs SET UNLOGGED; ALTER TABLE mq_msgs SET LOGGED';
	SELECT mq_register_handler('relogged', 'relog(mq_message)')});
$node->safe_psql($db, q{SELECT mq_send('kept', '4'); SELECT mq_send('relogged', retries => 0); SELECT mq_send('kept', '6')});
within(10, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'relogged'}, 0, 'a handler may have mq_msgs written twice');
holds($node, $db, q{SELECT (SELECT count(*) FROM mq_dead), string_agg(n::text, ' ' ORDER BY n) FROM (SELECT count(*) AS n FROM mq_msgs WHERE channel_name = 'kept' GROUP BY message_json) k},
	'0|3 3 64', 'and nothing but its message is removed');

$node->stop;
log_is_clean($node);
done_testing();
