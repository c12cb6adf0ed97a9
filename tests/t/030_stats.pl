# mq_stats and mq_workers with live workers: totals that are exact whatever ends a worker, the server or a transaction;
# counts of large channels that many sessions change at once.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = mq_node('stats', 'mq.poll_interval' => '1s', 'mq.max_workers' => 1, restart_after_crash => 'on');
my $db = 'postgres';
my $workers = "SELECT count(*) FROM ($MqTest::WORKERS) w";

sub totals { my ($channel) = @_; return "SELECT handled, failed, died FROM mq_stats WHERE channel_name = '$channel'" }
sub pending { my ($channel) = @_; return "SELECT ready, scheduled, running, dead FROM mq_stats WHERE channel_name = '$channel'" }

$node->safe_psql($db, 'CREATE EXTENSION mq');
$node->safe_psql($db, q{
	CREATE TABLE effects (channel text);
	CREATE FUNCTION handle(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  IF message.name = 'fail' THEN RAISE 'failed'; END IF;
	  INSERT INTO effects VALUES (message.channel_name);
	END $$;
	CREATE FUNCTION handle_slowly(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM pg_sleep(CASE message.attempt WHEN 1 THEN (message.payload_json ->> 'seconds')::float8 ELSE 0 END);
	  INSERT INTO effects VALUES (message.channel_name);
	END $$;
	SELECT mq_register_handler('c', 'handle(mq_message)');
	SELECT mq_register_handler('slow', 'handle_slowly(mq_message)')});

# --- what a worker holds is running ----------------------------------------------------------

my $id = $node->safe_psql($db, q{SELECT mq_send('slow', '{"seconds": 3600}', retry_backoff => '0.1 s')});
within(10, $node, $db, pending('slow'), '0|0|1|0', 'a message that a worker handles is running');
holds($node, $db, 'SELECT oldest_ready FROM mq_stats', "\n", 'and not ready');
holds($node, $db, qq{SELECT state, channel_name, message_id = '$id', since > now() - interval '1 minute', database FROM mq_workers},
	'handling|slow|t|t|postgres', 'mq_workers says which, and since when');
my ($worker) = pids($node, $db, $MqTest::WORKERS, 1);
holds($node, $db, 'SELECT pid FROM mq_workers', $worker, 'and who');
$node->safe_psql($db, q{SELECT mq_send('slow', '{"seconds": 0}')});
holds($node, $db, 'SELECT ready, running FROM mq_stats WHERE channel_name = \'slow\'', '1|1', 'another one is ready');
# The worker is killed, and with it the server's memory goes.
kill 'KILL', $worker;
within(30, $node, $db, totals('slow'), '2|1|0', 'after kill -9 of its worker it counts as failed once, and as handled');
holds($node, $db, 'SELECT count(*) FROM effects', 2, 'each had its effects once');
within(10, $node, $db, pending('slow'), '0|0|0|0', 'nothing is running');
within(10, $node, $db, "SELECT state, channel_name IS NULL, message_id IS NULL, pid <> $worker FROM mq_workers", 'waiting|t|t|t',
	'mq_workers has the new one, which waits');

set_and_reload($node, 'mq.max_workers' => 2);

# --- totals after every kind of end, under load ------------------------------------------------

$node->safe_psql($db, 'TRUNCATE effects, mq_failures; SELECT mq_reset_stats()');
my $script = $node->basedir . '/send.sql';
append_to_file($script, q{
SELECT mq_send('c', NULL, CASE WHEN random() < 0.1 THEN 'fail' END, retries => 1, retry_backoff => '10 ms', ordered => random() < 0.3);
});
my %faults = (
	'an immediate stop' => sub { $node->stop('immediate'); $node->start },
	'a fast restart' => sub { $node->restart },
	'kill -9 of a worker' => sub { my ($pid) = $node->safe_psql($db, $MqTest::WORKERS) =~ /^(\d+)/; kill 'KILL', $pid if $pid },
	'a terminated worker' => sub { $node->safe_psql($db, "SELECT pg_terminate_backend(pid) FROM ($MqTest::WORKERS) w") });
my $seed = $ENV{MQ_SEED} // int(rand(2**31));
note "MQ_SEED=$seed";
srand($seed);
for my $fault (sort keys %faults) {
	my ($out, $err) = ('', '');
	my $load = IPC::Run::start(
		[ 'pgbench', '--no-vacuum', '--client=4', '--time=3', '--rate=400', '--file', $script, $node->connstr($db) ],
		'>', \$out, '2>', \$err, IPC::Run::timeout(60));
	usleep(500_000 + rand(1_500_000));
	$faults{$fault}->();
	eval { $load->finish };
	within(60, $node, $db, q{SELECT ready, scheduled, running FROM mq_stats WHERE channel_name = 'c'}, '0|0|0', "all is handled after $fault");
	holds($node, $db, q{
		SELECT s.handled - (SELECT count(*) FROM effects), s.failed - (SELECT count(*) FROM mq_failures),
		       s.died - (SELECT count(*) FROM mq_dead), s.dead = s.died
		  FROM mq_stats s WHERE s.channel_name = 'c'}, '0|0|0|t', "and the totals are exact after $fault");
}
holds($node, $db, q{
	SELECT handled > 60, failed > 6, died > 2, handle_p50 > '0', handle_p50 <= handle_p99, wait_p50 > '0', wait_p50 <= wait_p99
	  FROM mq_stats WHERE channel_name = 'c'}, 't|t|t|t|t|t|t', 'it was a load worth the name, and its times are there');
$node->safe_psql($db, q{SELECT mq_send('c')});
within(10, $node, $db, 'SELECT count(*) FROM mq_stats_deltas', 0, 'what was appended is rolled up');
holds($node, $db, q{SELECT handled - (SELECT count(*) FROM effects) FROM mq_stats WHERE channel_name = 'c'}, 0, 'which changes nothing');
holds($node, $db, q{SELECT count(*) FROM mq_stats_totals GROUP BY channel_name HAVING count(*) > 3}, '', 'and leaves few rows a channel');

# --- folds and resets do not wait ------------------------------------------------------------------

my $holder = $node->background_psql($db);
$holder->query_safe('BEGIN; SELECT FROM mq_stats_totals FOR UPDATE; SELECT FROM mq_stats_deltas FOR UPDATE');
$node->safe_psql($db, q{SELECT mq_send('c')});
within(10, $node, $db, q{SELECT handled - (SELECT count(*) FROM effects) FROM mq_stats WHERE channel_name = 'c'}, 0,
	'somebody has locked the totals: what is handled is counted beside them');
$node->safe_psql($db, q{SET lock_timeout = '1 s'; SELECT mq_reset_stats()});
holds($node, $db, q{SELECT handled, failed, died, handle_p50, wait_p99 FROM mq_stats WHERE channel_name = 'c'}, '0|0|0||',
	'and a reset does not wait for him');
$holder->query_safe('COMMIT');
$holder->quit;
$node->safe_psql($db, q{TRUNCATE effects; SELECT mq_send('c'); SELECT mq_send('c')});
within(10, $node, $db, totals('c'), '2|0|0', 'totals begin anew');

# Two who reset at once.
my @both = map { $node->background_psql($db) } 1 .. 2;
$both[0]->query_safe('BEGIN; SELECT mq_reset_stats()');
$both[1]->query_until(qr/started/, "\\echo started\nBEGIN;\nSELECT mq_reset_stats();\nCOMMIT;\n");
within(10, $node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'}, 1, 'a second reset waits for the first');
$both[0]->query_safe('COMMIT');
$_->quit for @both;
holds($node, $db, totals('c'), '0|0|0', 'and finds nothing left to reset');

# --- large channels -----------------------------------------------------------------------------------

my $agree = q{
	SELECT bool_and(s.ready + s.running = (SELECT count(*) FROM mq_msgs m WHERE m.channel_name = s.channel_name AND m.attempt_at <= clock_timestamp())
	            AND s.scheduled = (SELECT count(*) FROM mq_msgs m WHERE m.channel_name = s.channel_name AND m.attempt_at > clock_timestamp())
	            AND s.dead = (SELECT count(*) FROM mq_dead d WHERE d.channel_name = s.channel_name))
	  FROM mq_stats s};
$node->safe_psql($db, 'VACUUM mq_msgs, mq_stats_deltas, mq_stats_totals');
$node->safe_psql($db, q{
	SELECT count(*) FROM mq_send_many('large', array_fill('1'::jsonb, ARRAY[30000]));
	SELECT count(*) FROM mq_send_many('large', array_fill('1'::jsonb, ARRAY[3000]), delay => '1 hour');
	SELECT count(*) FROM mq_send_many('later', array_fill('1'::jsonb, ARRAY[30000]), delay => '1 hour')});
# One session, whose caches are warm.
my $looker = $node->background_psql($db);
my $forget = 'DELETE FROM mq_msgs WHERE false';    # by hand, so what is known is forgotten
sub pages {
	my $plan = $looker->query_safe('EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, SUMMARY OFF) SELECT * FROM mq_stats');
	return $plan =~ /hit=(\d+)/ ? $1 : die $plan;
}
$looker->query_safe('SELECT count(*) FROM mq_stats');
$looker->query_safe($forget);
my $counting = pages();
my $looking = pages();
cmp_ok($looking * 5, '<', $counting, "the second look reads no more than a fifth ($looking of $counting pages)");
holds($node, $db, $agree, 't', 'and tells the same');

# Counted while others send and delete: with each count there is something in the middle of its commit.
my $change = $node->basedir . '/change.sql';
append_to_file($change, q{
\set n random(1, 20)
BEGIN;
SELECT count(*) FROM mq_send_many('large', array_fill('1'::jsonb, ARRAY[:n]));
SAVEPOINT s;
SELECT mq_delete(ARRAY(SELECT id FROM mq_msgs WHERE channel_name = 'large' ORDER BY random() LIMIT 5)) FROM (SELECT WHERE :n < 3) x;
ROLLBACK TO s;
SELECT mq_send('later', delay => '1 hour');
END;
});
my ($out, $err) = ('', '');
my $load = IPC::Run::start(
	[ 'pgbench', '--no-vacuum', '--client=6', '--time=5', '--file', $change, $node->connstr($db) ],
	'>', \$out, '2>', \$err, IPC::Run::timeout(120));
for my $round (1 .. 15) {
	$looker->query_safe("$forget; SELECT count(*) FROM mq_stats");
}
$load->finish;
is($err =~ s/^pgbench: (?!error)[^\n]*\n//gmr, '', 'nobody failed');
holds($node, $db, $agree, 't', 'counts that others sent and deleted under are exact');
cmp_ok(pages() * 5, '<', $counting, 'and they are counts from the middle of it');
$looker->quit;

# Handled by two workers at once.
set_and_reload($node, 'mq.max_workers' => 2);
$node->safe_psql($db, q{TRUNCATE effects; SELECT mq_register_handler('large', 'handle(mq_message)')});
within(60, $node, $db, q{SELECT ready + running FROM mq_stats WHERE channel_name = 'large'}, 0, 'workers handle a large channel');
holds($node, $db, $agree, 't', 'what is left is counted');
holds($node, $db, q{SELECT handled - (SELECT count(*) FROM effects) FROM mq_stats WHERE channel_name = 'large'}, 0, 'and what is done');
holds($node, $db, q{SELECT sum(handled) > 1000 FROM mq_workers}, 't', 'mq_workers tells how much each has handled');

# Prepared transactions.
$node->safe_psql($db, $agree);
$node->safe_psql($db, q{
	BEGIN; SELECT count(*) FROM mq_send_many('later', array_fill('1'::jsonb, ARRAY[1000]), delay => '1 hour'); PREPARE TRANSACTION 'p';
	BEGIN; SELECT mq_delete(ARRAY(SELECT id FROM mq_msgs WHERE channel_name = 'later' LIMIT 10)); PREPARE TRANSACTION 'q'});
holds($node, $db, $agree, 't', 'a prepared transaction counts for nothing');
$node->safe_psql($db, q{COMMIT PREPARED 'p'; ROLLBACK PREPARED 'q'});
holds($node, $db, $agree, 't', 'until it is committed, whoever does that');

# After a restart nothing is known, and after a crash.
for my $mode ('fast', 'immediate') {
	$node->stop($mode);
	$node->start;
	holds($node, $db, $agree, 't', "counts are right after a $mode stop");
	$node->safe_psql($db, q{SELECT mq_send('later', delay => '1 hour')});
	holds($node, $db, $agree, 't', 'and stay right');
}

# Another database has its own.
$node->safe_psql($db, 'CREATE DATABASE other');
$node->safe_psql('other', q{CREATE EXTENSION mq; SELECT count(*) FROM mq_send_many('later', array_fill('1'::jsonb, ARRAY[500]), delay => '1 hour')});
holds($node, 'other', 'SELECT channel_name, scheduled FROM mq_stats', 'later|500', 'another database counts its own');
holds($node, $db, $agree, 't', 'as this one does');
# Made again, the extension knows nothing of the one before.
$node->safe_psql('other', q{DROP EXTENSION mq; CREATE EXTENSION mq; SELECT count(*) FROM mq_send_many('later', array_fill('1'::jsonb, ARRAY[300]))});
holds($node, 'other', 'SELECT channel_name, ready, scheduled FROM mq_stats', 'later|300|0', 'a new extension begins with nothing');

# A dump takes the totals along.
my $dump = $node->basedir . '/dump.sql';
$node->command_ok([ 'pg_dump', '--file', $dump, '--dbname', $node->connstr($db) ], 'dumped');
$node->safe_psql($db, 'CREATE DATABASE restored');
$node->command_ok([ 'psql', '--quiet', '--no-psqlrc', '--file', $dump, '--dbname', $node->connstr('restored') ], 'restored');
is($node->safe_psql('restored', 'SELECT handled, failed, died, handle_p99, scheduled FROM mq_stats ORDER BY channel_name'),
	$node->safe_psql($db, 'SELECT handled, failed, died, handle_p99, scheduled FROM mq_stats ORDER BY channel_name'), 'with the same totals');

$node->stop;
log_is_clean($node,
	qr/terminated by signal 9/,
	qr/FATAL: .*(terminating|starting up|shutting down|in recovery|not yet accepting)/,
	qr/WARNING: .*terminating connection because of/,
	qr/exited with exit code 2/);
done_testing();
