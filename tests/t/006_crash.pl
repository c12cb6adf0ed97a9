# Whatever is killed, and whenever: no message that was committed is lost, effects happen exactly once (or the
# message is a dead letter), ordered messages keep their order, and the queue drains by itself.
#
# Flaw 6 of the original: a message whose last attempt ran during a crash was lost.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = mq_node('crash', restart_after_crash => 'on', 'mq.max_workers' => 2);
my $db = 'postgres';

# Channels 0 to 4 are ordered, the others not. The senders' counts and the handlers' effects are rows that are
# committed with the message's coming and going.
$node->safe_psql($db, q{
	CREATE EXTENSION mq;
	CREATE TABLE counts (channel int PRIMARY KEY, n int NOT NULL);
	INSERT INTO counts SELECT c, 0 FROM generate_series(0, 9) c;
	CREATE TABLE sent (channel int, n int);
	CREATE TABLE effects (e bigserial, channel int, n int);
	CREATE FUNCTION take_effect(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO effects (channel, n) VALUES (message.channel_args::int, (message.payload_json ->> 'n')::int);
	  PERFORM pg_sleep((message.payload_json ->> 'seconds')::float8);
	END $$;
	CREATE PROCEDURE send(c int, seconds float8 DEFAULT 0.002, retries int DEFAULT 4) LANGUAGE plpgsql AS $$
	DECLARE
	  place int;
	BEGIN
	  UPDATE counts SET n = n + 1 WHERE channel = c RETURNING n INTO place;
	  INSERT INTO sent VALUES (c, place);
	  PERFORM mq_send('effects', jsonb_build_object('n', place, 'seconds', seconds), channel_args => c::text,
	                  ordered => c < 5, retries => retries, retry_backoff => '0.1 s');
	END $$;
	SELECT mq_register_handler('effects', 'take_effect(mq_message)')});

# Every message has had its effect once, or is a dead letter because it was its handler that ran when the server went
# down: on its last attempt, or the second time.
sub all_is_well {
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	within(60, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, "$what: the queue drains");
	holds($node, $db, q{
		WITH ended AS (SELECT channel, n FROM effects
		               UNION ALL SELECT channel_args::int, (payload_json ->> 'n')::int FROM mq_dead)
		SELECT (SELECT count(*) FROM (TABLE sent EXCEPT ALL TABLE ended) l), (SELECT count(*) FROM (TABLE ended EXCEPT ALL TABLE sent) m)},
		'0|0', 'nothing is lost, nothing happens twice');
	holds($node, $db, 'SELECT count(*) FROM (SELECT n - lag(n) OVER (PARTITION BY channel ORDER BY e) AS step FROM effects WHERE channel < 5) s WHERE step <= 0',
		0, 'in order');
	holds($node, $db, q{SELECT count(*) FROM mq_dead WHERE attempts_made < CASE payload_json ->> 'seconds' WHEN '5' THEN 1 ELSE 2 END}, 0,
		'nobody is charged for another');
	holds($node, $db, 'SELECT count(*) FROM mq_payloads', 0, 'no payload is left behind');
}

sub wait_for_server {
	my ($good) = value_within(30, $node, $db, 'SELECT 1', 1);
	die 'the server does not come back' unless $good;
}

sub at_work { return q{SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'mq worker' AND state = 'active'} }

my %faults = (
	'kill -9 of a worker' => sub {
		my ($pid) = split /\n/, $node->safe_psql($db, $MqTest::WORKERS);
		kill 'KILL', $pid if $pid;
		wait_for_server();
	},
	'kill -9 of a producer' => sub {
		my ($pid) = split /\n/, $node->safe_psql($db, q{SELECT pid FROM pg_stat_activity WHERE application_name = 'pgbench'});
		kill 'KILL', $pid if $pid;
		wait_for_server();
	},
	'kill -9 of the postmaster' => sub {
		$node->kill9;
		# Its children take a moment to notice.
		for (1 .. 100) {
			return if $node->start(fail_ok => 1);
			usleep(100_000);
			$node->stop('fast', fail_ok => 1);
		}
		die 'the server does not start';
	},
	'an immediate stop' => sub { $node->stop('immediate'); $node->start },
	'a fast stop' => sub { $node->stop('fast'); $node->start },
	'pg_terminate_backend of the workers' => sub {
		$node->safe_psql($db, q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'mq %'});
	});

# --- in the middle of a batch -------------------------------------------------------------------

within(5, $node, $db, "SELECT count(*) FROM ($MqTest::WORKERS) w", 1, 'a worker rests');
for my $fault ('kill -9 of a worker', 'an immediate stop', 'kill -9 of the postmaster') {
	# One batch of last attempts: the third message of the ordered channel sleeps, others have had their effects.
	$node->safe_psql($db, q{
		BEGIN;
		CALL send(0, 0, 0); CALL send(0, 0, 0); CALL send(0, 5, 0); CALL send(0, 0, 0);
		CALL send(7, 0, 0); CALL send(8, 0, 0);
		COMMIT});
	within(5, $node, $db, at_work(), 't', 'a batch is at work');
	$faults{$fault}->();
	all_is_well("$fault in the middle of a batch");
}

# --- at random moments, under load ----------------------------------------------------------------

my $script = $node->basedir . '/send.sql';
append_to_file($script, q{
\set c random(0, 9)
CALL send(:c);
});
my $seed = $ENV{MQ_SEED} // int(rand(2**31));
note "MQ_SEED=$seed";
srand($seed);
my @order = sort { rand() <=> 0.5 } sort keys %faults;
for my $fault (@order) {
	my ($out, $err) = ('', '');
	my $load = IPC::Run::start(
		[ 'pgbench', '--no-vacuum', '--client=4', '--time=3', '--rate=400', '--file', $script, $node->connstr($db) ],
		'>', \$out, '2>', \$err, IPC::Run::timeout(60));
	within(10, $node, $db, at_work(), 't', "load before $fault");
	usleep(rand(1_500_000));
	$faults{$fault}->();
	eval { $load->finish };
}
all_is_well('after ' . join(', ', @order));
holds($node, $db, 'SELECT count(*) > 100 FROM sent', 't', 'it was a load worth the name');
SKIP: {
	skip 'amcheck is not installed', 1 if $node->safe_psql($db, q{SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'}) eq '0';
	$node->safe_psql($db, 'CREATE EXTENSION amcheck');
	holds($node, $db, q{
		SELECT count(bt_index_check(i.indexrelid, true)) > 0 FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
		 WHERE c.relname LIKE 'mq\_%'}, 't', 'the indexes are sound');
}

$node->stop;
log_is_clean($node,
	qr/terminated by signal 9|terminated by signal 3/,
	qr/FATAL: .*(terminating|starting up|shutting down|in recovery|not yet accepting|pre-existing shared memory|lock file)/,
	qr/WARNING: .*terminating connection because of/,
	qr/exited with exit code 2/);
done_testing();
