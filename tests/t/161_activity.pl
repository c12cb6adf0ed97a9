# pg_stat_activity says what workers do (channel and message) and what processes of mq wait for, from PostgreSQL 17 on by
# name.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'app';
my $node = mq_node('activity', 'mq.max_workers' => 1);
my $named = $node->safe_psql('postgres', q{SELECT current_setting('server_version_num')::int >= 170000}) eq 't';
$node->safe_psql('postgres', "CREATE DATABASE $db");
$node->safe_psql($db, q{
	CREATE EXTENSION mq;
	-- A handler waits for a lock of the test's.
	CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); END $$;
	CREATE FUNCTION handle_all(m mq_message[]) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); END $$;
	SELECT mq_register_handler('mail', 'handle(mq_message)'), mq_register_handler('bills', 'handle_all(mq_message[])'), mq_register_handler('long', 'handle(mq_message)', mode => 'leased')});

# A session waits, or does, as a row of pg_stat_activity says.
sub shows {
	my ($column, $who, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	within(30, $node, 'postgres', "SELECT $column FROM pg_stat_activity WHERE $who", $expected, $what);
}
sub waits {
	my ($who, $name, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	shows(q{wait_event_type || ' ' || wait_event}, $who, 'Extension ' . ($named ? $name : 'Extension'), $what);
}
my $worker = "backend_type = 'mq worker' AND datname = '$db'";

# --- what they wait for ---------------------------------------------------------------------------

waits("backend_type = 'mq launcher'", 'MqLauncher', 'the launcher waits for something to do');
waits($worker, 'MqIdle', 'a worker waits for a message');
holds($node, $db, q{SELECT state, query FROM pg_stat_activity WHERE } . $worker, 'idle|', 'it is idle and does nothing');
$node->safe_psql($db, q{SELECT mq_send('mail', delay => '1 hour', id => '00000000-0000-0000-0000-000000000001')});
waits($worker, 'MqWaitDue', 'it waits until a message is due');
$node->safe_psql($db, q{SELECT mq_delete('{00000000-0000-0000-0000-000000000001}'); SELECT mq_send('mail')});
waits($worker, 'MqIdle', 'or for one, again');

my $receiver = $node->background_psql($db);
my $pid = $receiver->query_safe('SELECT pg_backend_pid()');
$receiver->query_until(qr/waits/, "\\echo waits\nSELECT count(*) FROM mq_receive('{nothing}', wait => '250 s');\n");
waits("pid = $pid", 'MqReceive', 'a session waits in mq_receive');
my $waiter = $node->background_psql($db);
my $waiter_pid = $waiter->query_safe('SELECT pg_backend_pid()');
$node->safe_psql($db, q{SELECT mq_send('nobody', id => '00000000-0000-0000-0000-000000000002')});
$waiter->query_until(qr/waits/, "\\echo waits\nSELECT count(*) FROM mq_wait('{00000000-0000-0000-0000-000000000002}', '250 s');\n");
waits("pid = $waiter_pid", 'MqWait', 'a session waits in mq_wait');
$node->safe_psql($db, q{SELECT mq_send('nothing'); SELECT mq_delete('{00000000-0000-0000-0000-000000000002}')});
shows('count(*)', "pid IN ($pid, $waiter_pid) AND state = 'idle'", 2, 'both go on');
if ($named) {
	holds($node, 'postgres', q{SELECT string_agg(name, ' ' ORDER BY name) FROM pg_wait_events WHERE type = 'Extension' AND name LIKE 'Mq%'},
		'MqIdle MqLauncher MqReceive MqWait MqWaitDue', 'the server lists them');
}

# --- what they do ---------------------------------------------------------------------------------

my $lock = $node->background_psql($db);
$lock->query_safe('SELECT pg_advisory_lock(1)');
my $handles = $worker . q{ AND wait_event = 'advisory'};
$node->safe_psql($db, q{SELECT mq_send('mail', id => '00000000-0000-0000-0000-00000000000a')});
shows(q{state || ' ' || query}, $handles, 'active mail: message 00000000-0000-0000-0000-00000000000a', 'a worker shows the channel and the message');
$lock->query_safe('SELECT pg_advisory_unlock(1)');
shows('state', $worker, 'idle', 'it has handled it');
$lock->query_safe('SELECT pg_advisory_lock(1)');
my @sent = split /\n/, $node->safe_psql($db, q{SELECT mq_send_many('bills', array_fill('{}'::jsonb, ARRAY[12]))});
my $first = join '|', @sent;
shows(q{state || ' ' || query}, $handles, qr/^active bills: 12 messages, the first ($first)$/, 'or how many, and the first one');
holds($node, $db, q{SELECT count(*) FROM mq_workers w JOIN pg_stat_activity a USING (pid) WHERE w.state = 'handling' AND a.query = w.channel_name || ': 12 messages, the first ' || w.message_id},
	1, 'which is that of mq_workers');
$lock->query_safe('SELECT pg_advisory_unlock(1)');
shows('state', $worker, 'idle', 'they are handled');

# A leased call: its worker waits for the session.
$lock->query_safe('SELECT pg_advisory_lock(1)');
$node->safe_psql($db, q{SELECT mq_send('long')});
shows('count(*)', q{application_name = 'mq handler' AND wait_event = 'advisory'}, 1, 'a leased call runs');
waits($worker, 'MqLeasedCalls', 'a worker waits for its leased calls');
$lock->query_safe('SELECT pg_advisory_unlock(1)');
shows('count(*)', q{application_name = 'mq handler' AND wait_event = 'advisory'}, 0, 'it has ended');

$_->quit for $receiver, $waiter, $lock;
log_is_clean($node);
$node->stop;
done_testing();
