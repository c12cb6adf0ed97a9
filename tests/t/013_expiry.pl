# Messages that expire are dead on time, whatever they wait for, though the poll interval is an hour; what somebody
# handles at that moment is left to them.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use Test::More;

my $node = mq_node('expiry', 'mq.max_workers' => 3);
my $db = 'postgres';
my $dead = q{SELECT string_agg(name || ' ' || reason || ' ' || attempts_made, ', ' ORDER BY died_at, name) FROM mq_dead};

sub forget { $node->safe_psql($db, 'DELETE FROM handled; DELETE FROM mq_dead; DELETE FROM mq_failures') }

# Whatever died did so after its time, and without having been handled then.
sub nothing_died_early {
	my ($what, $seconds) = @_;
	holds($node, $db, qq{SELECT count(*) FROM mq_dead WHERE died_at < created_at + interval '$seconds s'}, 0, "$what: not before its time");
}

$node->safe_psql($db, 'CREATE EXTENSION mq');
handled_table($node, $db);

# --- where there is no handler at all ------------------------------------------------------------

$node->safe_psql($db, q{SELECT mq_send('c', name => 'unwatched', expires => '0.5 s')});
within(10, $node, $db, $dead, 'unwatched expired 0', 'a message that nobody handles is dead on time');
nothing_died_early('unwatched', 0.5);
forget();
$node->safe_psql($db, q{SELECT mq_send('c', name => 'late', expires => '1 h'); SELECT mq_send('c', name => 'early', expires => '0.5 s')});
within(10, $node, $db, $dead, 'early expired 0', 'so is one that is sent while a worker waits for a later one');
$node->safe_psql($db, 'SELECT mq_clear_all()');

# --- beside handlers ------------------------------------------------------------------------------

$node->safe_psql($db, q{
	CREATE FUNCTION fail(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM pg_sleep((message.payload_json ->> 'seconds')::float8);
	  RAISE 'as ever';
	END $$;
	SELECT mq_register_handler('c', 'handle(mq_message)'), mq_register_handler('slow', 'handle_slowly(mq_message)'),
	       mq_register_handler('failing', 'fail(mq_message)'), mq_register_handler('paused', 'handle(mq_message)'),
	       mq_pause('paused')});
forget();
$node->safe_psql($db, q{SELECT mq_send('nobody', name => 'no handler', expires => '0.5 s')});
within(10, $node, $db, $dead, 'no handler expired 0', 'a message of a channel without handler is dead on time');
forget();
$node->safe_psql($db, q{SELECT mq_send('paused', name => 'paused', expires => '0.5 s')});
within(10, $node, $db, $dead, 'paused expired 0', 'so is one of a paused channel');
forget();
$node->safe_psql($db, q{SELECT mq_send('c', name => 'scheduled', delay => '1 h', expires => '0.5 s')});
within(10, $node, $db, $dead, 'scheduled expired 0', 'so is one that is scheduled for later');
nothing_died_early('scheduled', 0.5);
forget();
$node->safe_psql($db, q{SELECT mq_send('failing', name => 'retried', retry_backoff => '1 h', expires => '3 s')});
within(10, $node, $db, $dead, 'retried expired 1', 'so is one that waits for its retry');
holds($node, $db, 'SELECT error FROM mq_dead', 'as ever', 'and the error of its attempt is kept');
nothing_died_early('retried', 3);
forget();
$node->safe_psql($db, q{
	SELECT mq_send('c', name => 'head', ordered => true, delay => '1 h', id => md5('head')::uuid);
	SELECT mq_send('c', name => 'in the middle', ordered => true, expires => '0.5 s');
	SELECT mq_send('c', name => 'last', ordered => true)});
within(10, $node, $db, $dead, 'in the middle expired 0', 'so is one in the middle of an ordered channel');
$node->safe_psql($db, q{SELECT mq_delete(ARRAY[md5('head')::uuid])});
within(10, $node, $db, q{SELECT string_agg(name, ' ') FROM handled}, 'last', 'the rest of its channel goes on');
forget();
$node->safe_psql($db, q{SELECT mq_send('nobody', name => 'two-phase', expires => '0.1 s', commit_interval => '1 h', id => md5('two')::uuid);
	SELECT pg_sleep(0.2)});
holds($node, $db, 'SELECT count(*) FROM mq_dead', 0, 'a two-phase message is not dead before it is committed');
$node->safe_psql($db, q{SELECT mq_commit(ARRAY[md5('two')::uuid])});
within(10, $node, $db, $dead, 'two-phase expired 0', 'but at once if that is too late');
forget();
$node->safe_psql($db, q{SELECT mq_send_many('nobody', array_fill('1'::jsonb, ARRAY[3000]), name => 'many', expires => '0.5 s')});
within(20, $node, $db, q{SELECT count(*) FROM mq_dead WHERE reason = 'expired'}, 3000, 'so are many');
holds($node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'and they are gone from the queue');

# --- in somebody's hands ---------------------------------------------------------------------------

forget();
$node->safe_psql($db, q{SELECT mq_send('slow', '{"seconds": 4}', name => 'slow', expires => '3 s')});
within(10, $node, $db, q{SELECT name FROM handled}, 'slow', 'a message that runs when it expires is handled');
$node->safe_psql($db, q{SELECT mq_send('failing', '{"seconds": 4}', name => 'fails late', expires => '3 s')});
within(10, $node, $db, $dead, 'fails late expired 1', 'if it fails it is dead');
forget();
$node->safe_psql($db, q{
	SELECT mq_send('outside', name => 'leased', retry_backoff => '3 s', expires => '1.5 s');
	SELECT mq_poll('{outside}');
	SELECT mq_send('nobody', name => 'beside', expires => '1.5 s')});
within(10, $node, $db, $dead, 'beside expired 0, leased expired 1', 'a message that a consumer has leased is left to it until the lease ends');
holds($node, $db, q{SELECT died_at >= created_at + interval '3 s' FROM mq_dead WHERE name = 'leased'}, 't', 'and not a moment earlier');

$node->stop;
log_is_clean($node);
done_testing();
