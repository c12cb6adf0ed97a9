# Turns: where more roles have work than there are places for workers, nobody's slow call stops the messages of others.
# No time is measured here; what is slow waits for a lock that the test holds.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('turns', 'mq.max_workers' => 1);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
sub handled { my ($name) = @_; return "SELECT count(*) FROM handled WHERE name = '$name'" }
sql('CREATE EXTENSION mq; CREATE ROLE r2 LOGIN; CREATE ROLE r3 LOGIN');
handled_table($node, $db);
sql(q{GRANT INSERT ON handled TO r2, r3; GRANT USAGE ON SEQUENCE handled_n_seq TO r2, r3;
      CREATE FUNCTION wait_for_lock(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM pg_advisory_xact_lock_shared((m.payload_json ->> 'lock')::int);
	  INSERT INTO handled (name, payload, attempt) VALUES (m.name, m.payload_json, m.attempt);
	END $$;
      SELECT mq_register_handler('c', 'handle(mq_message)'), mq_register_handler('l', 'handle(mq_message)', mode => 'leased'),
	mq_register_handler('long', 'wait_for_lock(mq_message)', mode => 'leased'),
	mq_register_handler('c2', 'handle(mq_message)', run_as => 'r2'),
	mq_register_handler('long2', 'wait_for_lock(mq_message)', mode => 'leased', run_as => 'r2')});
my $holder = $node->background_psql($db);
$holder->query_safe('SELECT pg_advisory_lock(1)');
my $calls = q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mq handler' AND wait_event = 'advisory'};
my $workers = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker'};

# Each role is served while `$waiting` leased calls wait, round by round.
sub all_are_served {
	my ($what, $waiting, @channels) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	for my $round (1 .. 3) {
		my $name = "$what, round $round";
		sql("SELECT mq_send('$_', '{}', '$name')") for @channels;
		within(30, $node, $db, handled($name), scalar @channels, "$name: messages of each role are handled");
		holds($node, $db, $calls, $waiting, '... while the leased calls run still');
	}
	holds($node, $db, "SELECT count(*) <= 3 FROM mq_workers", 't', "$what: a role's turn starts no other process beside the one that looks after its calls");
}

sql(q{SELECT mq_send('long', '{"lock": 1}', 'long')});
within(20, $node, $db, $calls, 1, 'a leased call runs');
all_are_served('one place, two roles, one call', 1, 'c', 'l', 'c2');
within(20, $node, $db, q{SELECT count(*) FROM mq_workers WHERE state = 'leaving'}, 1, 'mq_workers says who only looks after leased calls');
sql(q{SELECT mq_send('long2', '{"lock": 1}', 'long')});
within(20, $node, $db, $calls, 2, 'another role has one, too');
all_are_served('one place, two roles, two calls', 2, 'c', 'l', 'c2');

set_and_reload($node, 'mq.max_workers' => 2);
sql(q{SELECT mq_register_handler('c3', 'handle(mq_message)', run_as => 'r3')});
all_are_served('two places, three roles, two calls', 2, 'c', 'l', 'c2', 'c3');

$holder->query_safe('SELECT pg_advisory_unlock_all()');
within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'the leased calls end and are settled');
holds($node, $db, handled('long') . ' AND attempt = 1', 2, '... once, at their first attempts');
holds($node, $db, 'SELECT count(*) FROM mq_failures', 0, 'no failure is charged');
within(20, $node, $db, q{SELECT count(*) FROM mq_workers WHERE state = 'leaving'}, 0, 'nobody looks after calls any more');

# --- a role whose workers are all in long calls, beside one that is idle --------------------------

# Two places, two roles, each with a worker.
sql(q{SELECT mq_unregister_handler('c3'), mq_register_handler('slow', 'wait_for_lock(mq_message)')});
$holder->query_safe('SELECT pg_advisory_lock(1)');
within(20, $node, $db, q{SELECT count(DISTINCT role) FROM mq_worker_slots() WHERE state = 'waiting'}, 2, 'each of two roles has a worker');
sql(q{SELECT mq_send('slow', '{"lock": 1}', 'slow')});
my $waiting = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND wait_event = 'advisory'};
within(20, $node, $db, $waiting, 1, 'a handler of one takes long');
for my $round (1 .. 3) {
	for my $channel ('c', 'l', 'c2') {
		sql("SELECT mq_send('$channel', '{}', 'beside $channel $round')");
		within(30, $node, $db, handled("beside $channel $round"), 1, "the other's place is for whoever has something to do: $channel, round $round");
	}
}
sql(q{SELECT mq_send('c', '{}', 'later c', delay => '2 s'), mq_send('c2', '{}', 'later c2', delay => '3 s')});
within(30, $node, $db, handled("later $_"), 1, "what becomes due is handled, too: $_") for 'c', 'c2';
holds($node, $db, $waiting, 1, '... while the long call goes on');
holds($node, $db, q{SELECT count(*) <= 2 FROM mq_workers WHERE state <> 'leaving'}, 't', 'and no more workers than mq.max_workers');
# The message of the long call is due, and nobody else can have it. Who looks for it needs the other's place.
within(20, $node, $db, q{SELECT now() - attempt_at > '5 s' FROM mq_msgs WHERE channel_name = 'slow'}, 't', 'a message has been with its call for long');
set_and_reload($node, log_min_messages => 'debug1');
my $before = -s $node->logfile;
sql('SELECT pg_sleep(10)');
my $starts = () = slurp_file($node->logfile, $before) =~ /starting background worker process "mq worker"/g;
cmp_ok($starts, '<', 7, "which is not looked for again and again while nothing is sent: $starts");
set_and_reload($node, log_min_messages => 'warning');
$holder->query_safe('SELECT pg_advisory_unlock_all()');
within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'all are handled');
holds($node, $db, q{SELECT count(*) FROM handled WHERE attempt > 1}, 0, 'each at its first attempt');
sql(q{SELECT mq_unregister_handler('slow')});

# --- processes for one worker, two databases ----------------------------------------------------

# The server's launcher of logical replication, ours, and one.
$node->append_conf('postgresql.conf', 'max_worker_processes = 3');
$node->safe_psql('postgres', q{SELECT mq_unregister_handler(channel_name) FROM mq_handlers WHERE channel_name IN ('c2', 'long2', 'c3')});
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION mq');
handled_table($node, 'other');
$node->safe_psql('other', q{SELECT mq_register_handler('c', 'handle(mq_message)')});
$node->restart;
# More leased messages than the worker has sessions for: some are always due.
sql(q{SELECT mq_register_handler('l', 'handle_slowly(mq_message)', mode => 'leased');
      SELECT mq_send('l', '{"seconds": 1}', 'stream', retries => 0) FROM generate_series(1, 3000)});
within(20, $node, $db, q{SELECT count(*) > 0 FROM mq_leased_calls()}, 't', 'leased calls run, and others are due');
# Each time: who waits is asked for again and again while there is no process for it, which is no turn.
for my $round (1 .. 5) {
	$node->safe_psql('other', "SELECT mq_send('c', '{}', 'beside $round')");
	within(20, $node, 'other', handled("beside $round"), 1, "a stream of leased calls leaves another database its turn, round $round");
	within(20, $node, $db, q{SELECT count(*) > 0 FROM mq_leased_calls()}, 't', '... and goes on');
}
holds($node, $db, q{SELECT count(*) > 0 FROM mq_msgs WHERE channel_name = 'l'}, 't', '... before it is over');
sql('SELECT mq_clear_all()');

# --- what commits cost the launcher -------------------------------------------------------------

# Processes are short still, so each commit asks the launcher whether a worker should go to its database.
SKIP: {
	my ($launcher) = pids($node, $db, $MqTest::LAUNCHER, 1);
	my $switches = sub { return slurp_file("/proc/$launcher/status") =~ /^voluntary_ctxt_switches:\s+(\d+)/m ? $1 : undef };
	skip 'the system does not tell how often a process woke up', 1 unless -r "/proc/$launcher/status" && defined $switches->();
	$before = $switches->();
	$node->safe_psql('other', q{DO $$ BEGIN FOR i IN 1 .. 3000 LOOP PERFORM mq_send('nobody'); COMMIT; END LOOP; END $$});
	cmp_ok($switches->() - $before, '<', 1000, 'thousands of commits do not wake the launcher as often');
}

$node->stop;
log_is_clean($node);
done_testing();
