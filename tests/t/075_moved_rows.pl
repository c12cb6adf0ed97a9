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
	CREATE TABLE done (name text, batch xid8 DEFAULT pg_current_xact_id());
	CREATE FUNCTION wait_turn(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE turn int := CASE m.name WHEN 'first' THEN 1 ELSE 2 END;
	BEGIN
	  PERFORM pg_advisory_lock(turn);
	  PERFORM pg_advisory_unlock(turn);
	  INSERT INTO done VALUES (m.name);
	END $$;
	SELECT mq_register_handler('moved', 'wait_turn(mq_message)')});

# Session sees a worker wait for that turn within so many seconds.
sub waits_for {
	my ($session, $turn) = @_;
	for (my $end = time + 2; time < $end; usleep(2_000)) {
		return 1 if $session->query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = $turn AND NOT granted") eq '1';
	}
	return 0;
}

# Both messages have to be in one batch, which has the first's handler go on before its time is over.
my $mover = MqSession->new($node, $db);
my $keeper = MqSession->new($node, $db);
my ($together, $kept) = (0, 0);
for my $try (1 .. 30) {
	$mover->query(q{TRUNCATE done; SELECT mq_pause('moved'); SELECT mq_send('moved', '1', name => 'first'), mq_send('moved', '2', name => 'second')});
	$mover->query(q{BEGIN; CREATE TEMP TABLE taken ON COMMIT DROP AS SELECT * FROM mq_payloads WHERE name = 'second';
		DELETE FROM mq_payloads WHERE name = 'second'; INSERT INTO mq_payloads SELECT * FROM taken;
		SELECT pg_advisory_xact_lock(1)});
	$keeper->query(q{SELECT pg_advisory_lock(2); SELECT mq_resume('moved')});
	waits_for($keeper, 1);
	$mover->query('COMMIT');
	waits_for($keeper, 2);
	$mover->query('VACUUM (INDEX_CLEANUP ON) mq_payloads');
	$mover->query(q{SELECT mq_send('kept', '3') FROM generate_series(1, 8)});
	$keeper->query('SELECT pg_advisory_unlock(2)');
	$node->poll_query_until($db, q{SELECT NOT EXISTS (SELECT FROM mq_msgs WHERE channel_name = 'moved')}) or die 'not handled';
	$kept = $node->safe_psql($db, q{SELECT count(*) FROM mq_msgs m JOIN mq_payloads USING (id) WHERE m.channel_name = 'kept'});
	is($kept, $try * 8, 'every other message still has its payload') || last;
	$together = $node->safe_psql($db, 'SELECT count(DISTINCT batch) = 1 FROM done');
	last if $together eq 't' && $try > 3;
}
is($together, 't', 'both messages were handled in one transaction');
holds($node, $db, q{SELECT count(*) FROM mq_msgs m LEFT JOIN mq_payloads p USING (id) WHERE m.channel_name = 'kept' AND p.id IS NULL}, '0',
	'a payload that took the place of one that was moved is not removed with its message');
holds($node, $db, q{SELECT string_agg(name, ' ' ORDER BY name), (SELECT count(*) FROM mq_failures) FROM done}, 'first second|0',
	'messages whose payloads were moved are handled once');
$_->quit for $mover, $keeper;

# A handler that has a table written anew, in another order.
$node->safe_psql($db, q{
	CREATE FUNCTION rewrite(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  EXECUTE format('CREATE INDEX other_order ON %s (%s DESC)', m.name, 'id');
	  EXECUTE format('CLUSTER %s USING other_order', m.name);
	  DROP INDEX other_order;
	END $$;
	SELECT mq_register_handler('rewritten', 'rewrite(mq_message)')});
for my $table ('mq_payloads', 'mq_msgs') {
	$node->safe_psql($db, qq{
		SELECT mq_send('kept', '4');
		SELECT mq_send('rewritten', '5', name => '$table', retries => 0);
		SELECT mq_send('kept', '6')});
	within(10, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'rewritten'}, '0', "a handler may have $table written anew");
	holds($node, $db, q{SELECT count(*) FROM mq_dead}, '0', 'it is no failure');
	holds($node, $db, q{SELECT bool_and(p.id IS NOT NULL AND m.id IS NOT NULL) FROM mq_msgs m FULL JOIN mq_payloads p USING (id)}, 't',
		'and nothing but its message is removed');
}

$node->stop;
log_is_clean($node);
done_testing();
