# Fifty consumers outside receive 10,000 messages, and acknowledge, fail and extend them, while consumers are killed,
# their sessions are terminated, and the server crashes: no message is lost, and none is acknowledged twice.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = mq_node('receivers', max_connections => 100, restart_after_crash => 'on', 'mq.poll_interval' => '2s');
my $db = 'postgres';
$node->safe_psql($db, q{
	CREATE EXTENSION mq;
	CREATE TABLE acked (a bigserial, id uuid, attempt int, channel text);
	CREATE TABLE sent (id uuid)});

# A consumer: it receives up to ten messages, fails one in ten, works a moment, extends its lease, and acknowledges the others
# together with its own writes.
my $consumer = $node->basedir . '/consumer.sql';
append_to_file($consumer, q{
\set fails random(0, 9)
\set batch random(1, 10)
SELECT COALESCE(quote_literal(array_agg(id)::text), '''{}''') AS ids, COALESCE(max(lease), 0) AS token, COALESCE(max(attempt), 0) AS attempt
  FROM mq_receive('{jobs,steps}', :batch, '3 s', '1 s') \gset
\if :token <> 0
SELECT count(*) FROM mq_nack((:ids::uuid[])[:fails:(:fails)], :token, 'not this time', retry_in => '10 ms');
\sleep 5 ms
SELECT count(*) FROM mq_extend(:ids, :token, '3 s');
WITH done AS (SELECT * FROM mq_ack(:ids, :token) AS d (id)) INSERT INTO acked (id, attempt) SELECT id, :attempt FROM done;
\endif
});

my (@consumers, %errors);
sub start_consumer {
	my ($at) = @_;
	my ($out, $err) = ('', '');
	my $run = IPC::Run::start([ 'pgbench', '--no-vacuum', '--client=1', '--time=600', '--file', $consumer, $node->connstr($db) . ' application_name=crowd' ],
		'>', \$out, '2>', \$err, IPC::Run::timeout(600));
	$consumers[$at] = { run => $run, err => \$err, pid => $run->{KIDS}[0]{PID} };
}
# Those that have ended are started again.
sub tend {
	for my $at (0 .. $#consumers) {
		my $consumer = $consumers[$at];
		next if kill(0, $consumer->{pid}) && $consumer->{run}->pumpable && waitpid($consumer->{pid}, 1) == 0;
		eval { $consumer->{run}->kill_kill };
		++$errors{$1} while ${$consumer->{err}} =~ /(?:ERROR|FATAL):\s+(.*)/g;
		start_consumer($at);
	}
}
start_consumer($_) for 0 .. 49;

my $sends = q{
	INSERT INTO sent SELECT mq_send_many('jobs', (SELECT array_agg(to_jsonb(n)) FROM generate_series(1, 400) n), retries => 1000);
	INSERT INTO sent SELECT id FROM generate_series(1, 10) c,
	  LATERAL mq_send_many('steps', (SELECT array_agg(to_jsonb(n)) FROM generate_series(1, 10) n), channel_args => c::text, ordered => true, retries => 1000) AS s (id)};
for my $round (1 .. 20) {
	my ($rc) = try_psql($node, $db, $sends);
	redo if $rc != 0;
	# A consumer is killed, a session is terminated.
	kill 'KILL', $consumers[rand @consumers]{pid};
	try_psql($node, $db, q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'crowd' ORDER BY random() LIMIT 1});
	if ($round == 10) {
		# The server crashes, and recovers.
		my ($good, $pid) = value_within_any($node, q{SELECT pid FROM pg_stat_activity WHERE application_name = 'crowd' ORDER BY random() LIMIT 1});
		kill 'KILL', $pid if $good;
		within(60, $node, $db, 'SELECT 1', 1, 'the server is up again');
	}
	tend();
	usleep(100_000);
}
sub value_within_any { my ($n, $query) = @_; my ($rc, $out) = try_psql($n, $db, $query); return ($rc == 0 && $out =~ /^\d+$/, $out) }

my $end = time + 240;
while (time < $end) {
	tend();
	my ($rc, $left) = try_psql($node, $db, 'SELECT count(*) FROM mq_msgs');
	last if $rc == 0 && $left eq '0';
	usleep(200_000);
}
holds($node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'all messages have been acknowledged');
for my $consumer (@consumers) { $consumer->{run}->signal('KILL'); eval { $consumer->{run}->finish } }
holds($node, $db, q{SELECT count(*), count(DISTINCT id) FROM acked}, $node->safe_psql($db, 'SELECT count(*), count(DISTINCT id) FROM sent'), 'each that was sent was acknowledged once');
holds($node, $db, q{SELECT count(*) FROM sent s WHERE NOT EXISTS (SELECT FROM acked a WHERE a.id = s.id)}, 0, 'none is lost');
holds($node, $db, q{SELECT count(*) >= 10000 FROM acked}, 't', 'there were 10,000');
holds($node, $db, q{SELECT count(*) FROM mq_dead}, 0, 'none is dead');
holds($node, $db, q{SELECT count(*) > 100 FROM mq_failures}, 't', 'some have failed meanwhile');
delete @errors{grep { /terminating connection|the database system|connection to server|server closed|crash of another|could not connect|not yet accepting|No such file|in recovery|starting up/ } keys %errors};
is(join("\n", sort keys %errors), '', 'no consumer has met another error');

done_testing();
