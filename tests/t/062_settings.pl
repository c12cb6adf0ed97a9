# ALTER ROLE ... SET and ALTER DATABASE ... SET reach workers that are there already: what is sent afterwards is handled
# under the new settings. Leased calls that run are not cut short.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('settings', 'mq.max_workers' => 1, work_mem => '5MB');
my $db = 'app';
$node->safe_psql('postgres', 'CREATE DATABASE app; CREATE ROLE alice LOGIN SUPERUSER; CREATE ROLE bob LOGIN');
$node->safe_psql($db, q{
	CREATE EXTENSION mq;
	CREATE TABLE seen (n bigserial, name text, work_mem text, pid int DEFAULT pg_backend_pid());
	CREATE FUNCTION look(m mq_message) RETURNS void LANGUAGE sql AS $$
	  INSERT INTO seen (name, work_mem) VALUES (m.name, current_setting('work_mem')) $$;
	CREATE FUNCTION look_slowly(m mq_message) RETURNS void LANGUAGE sql AS $$
	  SELECT pg_sleep(6); INSERT INTO seen (name, work_mem) VALUES (m.name, current_setting('work_mem')) $$;
	CREATE FUNCTION sleep(m mq_message) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(30)';
	SELECT mq_register_handler('c', 'look(mq_message)', run_as => 'alice');
	SELECT mq_register_handler('leased', 'look(mq_message)', run_as => 'alice', mode => 'leased');
	SELECT mq_register_handler('slow', 'look_slowly(mq_message)', run_as => 'alice', mode => 'leased');
	SELECT mq_register_handler('sleep', 'sleep(mq_message)', run_as => 'alice')});
my $worker = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'mq worker' AND datname = 'app' AND usename = 'alice'};
pids($node, 'postgres', $worker, 1);

my $n = 0;
sub sees {
	my ($channel, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $name = 'message ' . ++$n;
	$node->safe_psql($db, "SELECT mq_send('$channel', name => '$name')");
	within(10, $node, $db, "SELECT work_mem FROM seen WHERE name = '$name'", $expected, $what);
}

sees('c', '5MB', 'before');
sees('leased', '5MB', 'in a leased session, too');
$node->safe_psql('postgres', q{ALTER ROLE alice SET work_mem = '7MB'});
sees('c', '7MB', 'ALTER ROLE ... SET');
sees('leased', '7MB', 'in a leased session, too');
$node->safe_psql('postgres', q{ALTER ROLE alice IN DATABASE app SET work_mem = '8MB'});
sees('c', '8MB', 'ALTER ROLE ... IN DATABASE ... SET');
$node->safe_psql('postgres', q{ALTER ROLE alice IN DATABASE app RESET work_mem; ALTER ROLE alice RESET ALL});
sees('c', '5MB', 'ALTER ROLE ... RESET');
$node->safe_psql('postgres', q{ALTER DATABASE app SET work_mem = '9MB'});
sees('c', '9MB', 'ALTER DATABASE ... SET');
sees('leased', '9MB', 'in a leased session, too');
$node->safe_psql('postgres', q{ALTER DATABASE app RESET work_mem});
sees('c', '5MB', 'ALTER DATABASE ... RESET');
$node->safe_psql('postgres', q{ALTER ROLE ALL SET work_mem = '10MB'});
sees('c', '10MB', 'ALTER ROLE ALL SET');
$node->safe_psql('postgres', q{ALTER ROLE ALL RESET ALL});
sees('c', '5MB', 'ALTER ROLE ALL RESET ALL');

# Under load: nothing that was sent afterwards is handled before the worker has gone.
for my $round (1 .. 8) {
	my $size = 10 + $round . 'MB';
	$node->safe_psql($db, qq{
		TRUNCATE seen;
		SELECT count(*) FROM mq_send_many('c', array_fill('{}'::jsonb, ARRAY[300]));
		ALTER ROLE alice SET work_mem = '$size'});
	$node->safe_psql($db, q{SELECT mq_send('c', name => 'last')});
	within(20, $node, $db, q{SELECT work_mem FROM seen WHERE name = 'last'}, $size, "with a backlog (round $round)");
	within(20, $node, $db, 'SELECT count(*) FROM seen', 301, "nothing is lost or done twice (round $round)");
}

# Our own settings.
$node->safe_psql('postgres', q{ALTER ROLE alice SET mq.handler_timeout = '1s'});
$node->safe_psql($db, q{SELECT mq_send('sleep', retries => 0)});
within(15, $node, $db, q{SELECT reason FROM mq_dead WHERE channel_name = 'sleep'}, 'exhausted', 'mq.handler_timeout of a role reaches the worker that rests');
$node->safe_psql('postgres', q{ALTER ROLE alice RESET mq.handler_timeout});

# Whom it does not concern, and what was rolled back.
my ($pid) = pids($node, 'postgres', $worker, 1);
$node->safe_psql('postgres', q{
	ALTER ROLE bob SET work_mem = '20MB'; ALTER DATABASE postgres SET work_mem = '20MB';
	BEGIN; ALTER ROLE alice SET work_mem = '21MB'; ROLLBACK});
sees('c', '18MB', 'settings of other roles and databases, or that are rolled back, change nothing');
is(join(' ', pids($node, 'postgres', $worker, 1)), $pid, 'the worker stays');

# A leased call that runs goes on to its end, and others are handled meanwhile, though mq.max_workers is 1.
$node->safe_psql($db, q{SELECT mq_send('slow', name => 'slow', retries => 0)});
within(10, $node, 'postgres', q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mq handler' AND state = 'active'}, 1, 'a leased call runs');
$node->safe_psql('postgres', q{ALTER ROLE alice SET work_mem = '30MB'});
sees('c', '30MB', 'a new worker handles what comes');
within(20, $node, $db, q{SELECT work_mem FROM seen WHERE name = 'slow'}, '18MB', 'the leased call ends normally');
holds($node, $db, q{SELECT count(*) FROM mq_failures WHERE channel_name = 'slow'}, 0, 'and is not charged');
within(10, $node, 'postgres', "SELECT count(*) FROM ($worker) w", 1, 'then the old worker leaves');

# However often that happens, leased calls that run do not have processes add up.
$node->safe_psql($db, q{
	CREATE FUNCTION hold(m mq_message) RETURNS void LANGUAGE sql AS 'SELECT pg_advisory_xact_lock(1)';
	SELECT mq_register_handler('hold', 'hold(mq_message)', run_as => 'alice', mode => 'leased')});
my $holder = $node->background_psql($db);
$holder->query_safe('SELECT pg_advisory_lock(1)');
for my $round (1 .. 5) {
	$node->safe_psql($db, q{SELECT mq_send('hold', retries => 0)});
	within(10, $node, 'postgres', q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mq handler' AND wait_event = 'advisory'}, $round, "leased call $round runs");
	$node->safe_psql('postgres', qq{ALTER ROLE alice SET work_mem = '4${round}MB'});
	sees('c', $round == 1 ? '41MB' : qr/^4\dMB$/, 'others are handled');
}
within(20, $node, 'postgres', "SELECT count(*) FROM ($worker) w", 2, 'by one worker, beside one that waits for its leased calls to end');
$holder->query_safe('SELECT pg_advisory_unlock_all()');
within(20, $node, 'postgres', "SELECT count(*) FROM ($worker) w", 1, 'which it leaves then');
sees('c', '45MB', 'and the last settings are in force');

# Nor do workers that sit in calls of their own: they keep their places until these are over.
set_and_reload($node, 'mq.max_workers' => 2);
$node->safe_psql($db, q{SELECT mq_register_handler('sit', 'hold(mq_message)', run_as => 'alice', timeout => '10 min')});
$holder->query_safe('SELECT pg_advisory_lock(1)');
$node->safe_psql($db, q{SELECT mq_send('hold', retries => 0)});
within(10, $node, 'postgres', q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mq handler' AND wait_event = 'advisory'}, 1, 'beside two workers, a leased call runs');
my $held = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND wait_event = 'advisory'};
for my $round (1 .. 4) {
	$node->safe_psql($db, q{SELECT mq_send('sit', retries => 0)});
	within(10, $node, 'postgres', $held, $round < 2 ? 1 : 2, "workers sit in calls (round $round)");
	$node->safe_psql('postgres', qq{ALTER ROLE alice SET work_mem = '5${round}MB'});
}
is((value_within(3, $node, 'postgres', $held, qr/^[3-9]/))[1], 2, 'no more workers than places sit in calls');
holds($node, 'postgres', "SELECT count(*) <= 3 FROM ($worker) w", 't', 'a role has one process more than places, at most');
holds($node, $db, q{SELECT count(*) <= 2 FROM mq_workers WHERE database = 'app' AND state <> 'leaving'}, 't', 'and no more workers than places');
$holder->query_safe('SELECT pg_advisory_unlock_all()');
within(30, $node, $db, q{SELECT count(*) FROM mq_msgs}, 0, 'all calls end');
within(20, $node, 'postgres', "SELECT count(*) FROM ($worker) w", 1, 'and with them those who waited');
sees('c', '54MB', 'the last settings are in force');

# Of several workers with leased calls one leaves at a time.
set_and_reload($node, 'mq.leased_sessions' => 1);
$holder->query_safe('SELECT pg_advisory_lock(1)');
my $leased = q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mq handler' AND wait_event = 'advisory'};
for my $round (1 .. 3) {
	$node->safe_psql($db, q{SELECT mq_send('hold', retries => 0), mq_send('hold', retries => 0)});
	within(20, $node, 'postgres', $leased, $round == 1 ? 2 : 3, "workers have a leased call each (round $round)");
	$node->safe_psql('postgres', qq{ALTER ROLE alice SET work_mem = '5${round}5kB'});
}
is((value_within(3, $node, 'postgres', "SELECT count(*) FROM ($worker) w", qr/^[4-9]/))[1], 3, 'one more than places');
sees('c', qr/^(54MB|5\d5kB)$/, 'others are handled');
$holder->query_safe('SELECT pg_advisory_unlock_all()');
within(30, $node, $db, q{SELECT count(*) FROM mq_msgs}, 0, 'all leased calls end');
sees('c', '535kB', 'the last settings are in force after those');

# Who has processes that others lack is named. Two for workers: the server has its launcher of logical replication, and ours.
$node->safe_psql($db, q{GRANT INSERT ON seen TO bob; GRANT USAGE ON SEQUENCE seen_n_seq TO bob; SELECT mq_register_handler('his', 'look(mq_message)', run_as => 'bob')});
$node->append_conf('postgresql.conf', 'max_worker_processes = 4');
$node->restart;
$holder = $node->background_psql($db);
$holder->query_safe('SELECT pg_advisory_lock(1)');
$node->safe_psql($db, q{SELECT mq_send('hold', retries => 0)});
within(30, $node, 'postgres', q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mq handler' AND wait_event = 'advisory'}, 1, 'where processes are short, a leased call runs');
$node->safe_psql('postgres', q{ALTER ROLE alice SET work_mem = '61MB'});
$node->safe_psql($db, q{SELECT mq_send('c'), mq_send('his')});
within(20, $node, $db, q{SELECT detail FROM mq_health() WHERE "check" = 'worker slots' AND NOT ok},
	qr/max_worker_processes = 4 .*, process [0-9]+ as alice in database app only waits for a leased call to end, since 2/, 'mq_health() names who waits for leased calls');
within(30, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE channel_name <> 'hold'}, 0, 'others take turns meanwhile');
$holder->query_safe('SELECT pg_advisory_unlock_all()');
$holder->quit;

$node->stop;
log_is_clean($node);
done_testing();
