# The workers of a database: they come back when they are terminated, survive a cancelled handler, follow the
# settings, become more under backlog and fewer when idle, and serve each handler's role as that role.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('workers');
my $db = 'postgres';
my $workers = "SELECT count(*) FROM ($MqTest::WORKERS) w";

sub handled { my ($name) = @_; return "SELECT count(*) FROM handled WHERE name = '$name'" }

$node->safe_psql($db, 'CREATE EXTENSION mq');
handled_table($node, $db);
$node->safe_psql($db, q{
	SELECT mq_register_handler('c', 'handle(mq_message)');
	SELECT mq_register_handler('slow', 'handle_slowly(mq_message)')});
within(30, $node, $db, "$workers", 1, 'one worker rests');

# --- terminated and cancelled ---------------------------------------------------------------

my ($worker) = pids($node, $db, $MqTest::WORKERS, 1);
$node->safe_psql($db, "SELECT pg_terminate_backend($worker)");
within(30, $node, $db, "SELECT count(*) FROM ($MqTest::WORKERS) w WHERE pid <> $worker", 1, 'a terminated worker is replaced');
$node->safe_psql($db, q{SELECT mq_send('c', name => 'after worker')});
within(30, $node, $db, handled('after worker'), 1, 'and messages are handled');

my ($launcher) = pids($node, $db, $MqTest::LAUNCHER, 1);
$node->safe_psql($db, "SELECT pg_terminate_backend($launcher)");
within(30, $node, $db, "SELECT count(*) FROM ($MqTest::LAUNCHER) l WHERE pid <> $launcher", 1, 'a terminated launcher is replaced');
($worker) = pids($node, $db, $MqTest::WORKERS, 1);
$node->safe_psql($db, "SELECT pg_terminate_backend($worker); SELECT mq_send('c', name => 'after launcher')");
within(30, $node, $db, handled('after launcher'), 1, 'and starts workers as the one before');

# Both at once, and while a handler runs.
$node->safe_psql($db, q{SELECT mq_send('slow', '{"seconds": 0.5}', name => 'terminated', retry_backoff => '0.1 s')});
within(30, $node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND state = 'active'}, 1,
	'a worker at work is active');
$node->safe_psql($db, q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'mq %'});
within(10, $node, $db, handled('terminated'), 1, 'a message whose worker was terminated is handled by the next');
for my $round (1 .. 3) {
	($worker) = pids($node, $db, $MqTest::WORKERS, 1);
	$node->safe_psql($db, "SELECT pg_terminate_backend($worker)");
	within(30, $node, $db, "SELECT count(*) FROM ($MqTest::WORKERS) w WHERE pid <> $worker", 1, "back within five seconds (round $round)");
}

($worker) = pids($node, $db, $MqTest::WORKERS, 1);
$node->safe_psql($db, qq{SELECT mq_send('slow', '{"seconds": 3600}', name => 'cancelled', retries => 0, id => md5('cancelled')::uuid)});
within(30, $node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND state = 'active'}, 1, 'a handler runs');
$node->safe_psql($db, "SELECT pg_cancel_backend($worker)");
within(30, $node, $db, q{SELECT reason, attempts_made, sqlstate FROM mq_dead WHERE name = 'cancelled'}, 'exhausted|1|57014',
	'the attempt of a cancelled handler fails');
within(30, $node, $db, "SELECT state FROM mq_workers WHERE pid = $worker", 'waiting', 'its worker waits');
$node->safe_psql($db, qq{SELECT pg_cancel_backend($worker); SELECT mq_send('c', name => 'after cancel')});
within(30, $node, $db, "SELECT pid FROM handled WHERE name = 'after cancel'", $worker, 'and goes on, cancelled once more');

$node->safe_psql($db, q{
	SELECT mq_register_handler('limited', 'handle_slowly(mq_message)', timeout => '0.3 s');
	SELECT mq_send('limited', '{"seconds": 3600}', name => 'timed out', retries => 0);
	SELECT mq_send('limited', '{"seconds": 0}', name => 'in time')});
within(30, $node, $db, q{SELECT sqlstate, error ~ 'timed out' FROM mq_dead WHERE name = 'timed out'}, '57014|t', 'a handler that takes too long fails');
within(30, $node, $db, handled('in time'), 1, 'and the others of its batch are handled');

# --- settings -------------------------------------------------------------------------------

set_and_reload($node, 'mq.max_workers' => 0);
within(30, $node, $db, $workers, 0, 'mq.max_workers = 0: no worker is left');
$node->safe_psql($db, q{SELECT mq_send('c', name => 'no workers')});
set_and_reload($node, 'mq.max_workers' => 2);
within(30, $node, $db, handled('no workers'), 1, 'mq.max_workers = 2: they are back');

set_and_reload($node, 'mq.databases' => 'template2, other');
within(30, $node, $db, $workers, 0, 'mq.databases without the database: no worker is left');
$node->safe_psql($db, q{SELECT mq_send('c', name => 'not served')});
set_and_reload($node, 'mq.databases' => 'other, postgres');
within(30, $node, $db, handled('not served'), 1, 'mq.databases with the database: they are back');
set_and_reload($node, 'mq.databases' => '*');
$node->safe_psql($db, q{SELECT mq_send('c', name => 'all served')});
within(30, $node, $db, handled('all served'), 1, 'mq.databases = *');

set_and_reload($node, 'mq.poll_interval' => '200ms');
$node->safe_psql($db, q{
	SET mq.notify = off;
	INSERT INTO mq_msgs (id, channel_name, channel_args, after_message_id, channel_key, message_name)
	VALUES (md5('by hand')::uuid, 'c', '', NULL, mq_channel_key('c', ''), 'by hand')});
within(30, $node, $db, handled('by hand'), 1, 'mq.poll_interval is the net: a message that woke nobody is found');
set_and_reload($node, 'mq.poll_interval' => '1h');

# --- the pool -------------------------------------------------------------------------------

sub backlog {
	my ($count) = @_;
	$node->safe_psql($db, qq{
		TRUNCATE handled;
		SELECT mq_send_many('slow', array_agg('{"seconds": 0.1}'::jsonb), name => 'backlog') FROM generate_series(1, $count)});
}
# The most workers that are seen until all is handled.
sub most_workers {
	my ($count) = @_;
	my $most = 0;
	my $end = time + 120;
	while (time < $end) {
		my ($now, $left) = split /\|/, $node->safe_psql($db, "SELECT ($workers), $count - count(*) FROM handled");
		$most = $now if $now > $most;
		last if $left == 0;
	}
	return $most;
}
backlog(100);
is(most_workers(100), 2, 'under backlog there are as many workers as mq.max_workers allows');
holds($node, $db, 'SELECT count(DISTINCT pid) > 1, count(*) FROM handled', 't|100', 'and they share the work');
within(15, $node, $db, $workers, 1, 'one rests when there is nothing to do');
set_and_reload($node, 'mq.max_workers' => 4);
backlog(200);
is(most_workers(200), 4, 'more when it allows more');
set_and_reload($node, 'mq.max_workers' => 2);
backlog(10);
within(15, $node, $db, 'SELECT count(*) FROM handled', 10, 'fewer when it allows fewer');
within(15, $node, $db, $workers, 1, 'and one again rests');

# --- roles ----------------------------------------------------------------------------------

$node->safe_psql($db, q{
	CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN;
	CREATE TABLE identity (n bigserial, name text, pid int DEFAULT pg_backend_pid(), report text);
	GRANT ALL ON identity, identity_n_seq TO PUBLIC;
	CREATE FUNCTION who(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
	  report text := current_user || ' ' || session_user;
	BEGIN
	  EXECUTE 'RESET ROLE';
	  report := report || ', reset role: ' || current_user;
	  EXECUTE 'RESET SESSION AUTHORIZATION';
	  report := report || ', reset session authorization: ' || current_user || ' ' || session_user;
	  BEGIN
	    EXECUTE 'SET SESSION AUTHORIZATION ' || quote_ident((SELECT rolname FROM pg_roles WHERE oid = 10));
	    report := report || ', superuser: ' || current_user;
	  EXCEPTION WHEN insufficient_privilege THEN
	    report := report || ', superuser: refused';
	  END;
	  BEGIN
	    EXECUTE 'SET ROLE bob';
	    report := report || ', bob: ' || current_user;
	  EXCEPTION WHEN insufficient_privilege THEN
	    report := report || ', bob: refused';
	  END;
	  BEGIN
	    PERFORM FROM mq_msgs;
	    report := report || ', mq_msgs: read';
	  EXCEPTION WHEN insufficient_privilege THEN
	    report := report || ', mq_msgs: refused';
	  END;
	  INSERT INTO identity (name, report) VALUES (message.name, report);
	END $$;
	SELECT mq_register_handler('alice', 'who(mq_message)', run_as => 'alice');
	SELECT mq_register_handler('bob', 'who(mq_message)', run_as => 'bob');
	SELECT mq_send('alice', name => n::text), mq_send('bob', name => n::text) FROM generate_series(1, 3) n});
within(15, $node, $db, q{SELECT report, count(*) FROM identity GROUP BY 1 ORDER BY 1},
	"alice alice, reset role: alice, reset session authorization: alice alice, superuser: refused, bob: refused, mq_msgs: refused|3\n"
	. "bob bob, reset role: bob, reset session authorization: bob bob, superuser: refused, bob: bob, mq_msgs: refused|3",
	'each handler runs in a session of its role, and nothing that it resets or sets leads out of it');
holds($node, $db, 'SELECT count(*) FROM (SELECT pid FROM identity GROUP BY pid HAVING count(DISTINCT left(report, 3)) > 1) m', 0,
	'no worker served two roles');

# Five roles, two workers: they take turns.
$node->safe_psql($db, qq{
	CREATE ROLE r$_ LOGIN;
	SELECT mq_register_handler('r$_', 'who(mq_message)', run_as => 'r$_');
	SELECT mq_send('r$_', name => 'turn 1')}) for 1 .. 4;
within(30, $node, $db, q{SELECT count(*) FROM identity WHERE name = 'turn 1'}, 4, 'more roles than mq.max_workers are all served');
holds($node, $db, 'SELECT count(*) <= 2 FROM mq_workers', 't', 'by no more workers');
$node->safe_psql($db, qq{SELECT mq_send('r$_', name => 'turn 2')}) for 1 .. 4;
$node->safe_psql($db, q{SELECT mq_send('c', name => 'turn 2')});
within(30, $node, $db, q{SELECT count(*) FROM identity WHERE name = 'turn 2'}, 4, 'again when they get more');
within(30, $node, $db, handled('turn 2'), 1, 'and the first as well');

# A busy role does not shut out the others.
backlog(600);
$node->safe_psql($db, q{SELECT mq_send('alice', name => 'beside a backlog')});
within(15, $node, $db, q{SELECT count(*) FROM identity WHERE name = 'beside a backlog'}, 1, 'a role with little to do is served beside one with much');
$node->safe_psql($db, q{SELECT mq_clear_all()});

$node->stop;
log_is_clean($node);
done_testing();
