# The consumers in examples/ do what they say: each message takes effect once, failures are told of and tried again, a wait
# is woken, SIGTERM lets the message in hand be finished, and a restart of the server is survived.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $examples = "$FindBin::RealBin/../../examples";
sub works { return IPC::Run::run([ @_ ], '>', \my $out, '2>', \my $err) }
my %consumers;
for my $python ('/usr/bin/python3', 'python3') {
	next if $consumers{python} || !eval { works($python, '-c', 'import psycopg') };
	$consumers{python} = [ $python, "$examples/consumer.py" ];
}
$consumers{node} = [ 'node', "$examples/consumer.js" ] if eval { works('node', '-e', q{require('pg')}) };
$consumers{shell} = [ 'bash', "$examples/consumer.sh" ];

my $node = mq_node('examples');
my $db = 'postgres';
$node->safe_psql($db, q{CREATE EXTENSION mq; CREATE TABLE thumbnails (image int PRIMARY KEY, made_by text NOT NULL)});
my $sleeps = q{SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND wait_event_type = 'Extension' AND backend_type = 'client backend'};

sub start {
	my ($name, $log) = @_;
	local $ENV{PGHOST} = $node->host;
	local $ENV{PGPORT} = $node->port;
	local $ENV{PGDATABASE} = $db;
	return IPC::Run::start($consumers{$name}, '<', '/dev/null', '>', $log, '2>&1');
}

for my $name ('python', 'node', 'shell') {
  SKIP: {
		skip { python => 'python3-psycopg is not installed', node => 'Node or its package pg is not installed' }->{$name}, 1 if !$consumers{$name};
		$node->safe_psql($db, 'TRUNCATE thumbnails; DELETE FROM mq_failures; SELECT mq_clear_all()');
		my $log = '';
		my $consumer = start($name, \$log);
		within(60, $node, $db, $sleeps, 1, "$name: the consumer waits") or diag($log);
		$node->safe_psql($db, q{INSERT INTO thumbnails VALUES (5, 'nobody'); SELECT mq_send('thumbnails', jsonb_build_object('image', n), retry_backoff => '100 ms') FROM generate_series(1, 10) n});
		within(60, $node, $db, "SELECT count(*) FROM thumbnails WHERE made_by = '$name'", 9, "$name: what can be done is done") or diag($log);
		within(60, $node, $db, 'SELECT count(*) > 0 FROM mq_failures', 't', "$name: the failure is recorded") or diag($log);
		$node->safe_psql($db, 'DELETE FROM thumbnails WHERE image = 5');
		within(60, $node, $db, "SELECT count(*) FROM thumbnails WHERE made_by = '$name'", 10, "$name: and is made good by a retry") or diag($log);
		holds($node, $db, 'SELECT count(*) FROM mq_msgs', 0, "$name: nothing is left");

		$node->restart;
		within(60, $node, $db, $sleeps, 1, "$name: the consumer waits again after a restart of the server") or diag($log);

		# The message in hand: it waits for a lock that this session has.
		my $holder = $node->background_psql($db);
		$holder->query_safe(q{BEGIN; LOCK TABLE thumbnails IN SHARE MODE});
		$node->safe_psql($db, q{SELECT mq_send('thumbnails', '{"image": 11}')});
		within(60, $node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'}, 1, "$name: the consumer is at work") or diag($log);
		kill 'TERM', $consumer->{KIDS}[0]{PID};
		usleep(200_000);
		ok($consumer->pumpable, "$name: SIGTERM does not end the work");
		$holder->query_safe('COMMIT');
		$holder->quit;
		my $end = time + 60;
		while ($consumer->pumpable && time < $end) { $consumer->pump_nb; usleep(50_000) }
		ok(!$consumer->pumpable, "$name: the consumer has ended") or $consumer->signal('KILL');
		eval { $consumer->finish };
		is(($consumer->results)[0], 0, "$name: as it should") or diag($log);
		holds($node, $db, q{SELECT made_by FROM thumbnails WHERE image = 11}, $name, "$name: the message in hand is done");
		holds($node, $db, 'SELECT count(*) FROM mq_msgs', 0, "$name: and acknowledged");
	}
}

$node->stop;
done_testing();
