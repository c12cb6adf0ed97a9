# With mq.notify = auto who listens is notified, however long it has been idle and whether it has ever polled; where
# nobody listens nothing is sent.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('listeners', restart_after_crash => 'on');
my $db = 'postgres';
$node->safe_psql($db, 'CREATE EXTENSION mq');

my $listener;
sub listen_anew { $listener->quit if $listener; $listener = MqSession->new($node, $db); $listener->query($_) for @_ }
sub hears {
	my ($channel, $what, $send) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->safe_psql($db, $send // q{SELECT mq_send('c')});
	# The notification came before the sender's end was told; the session hears of it with its next statement.
	like($listener->query('SELECT 1'), qr/notification "\Q$channel\E"/, $what);
}

# What is in the queue of notifications stays while a session that listens is in a transaction. A thousand of them are
# several pages, which is what the server counts by.
my $sends = q{DO $$ BEGIN FOR i IN 1 .. 1000 LOOP PERFORM mq_send('c'); COMMIT; END LOOP; END $$};
sub notified {
	my ($settings) = @_;
	my $holder = $node->background_psql($db);
	$holder->query_safe('LISTEN elsewhere; BEGIN; SELECT 1');
	my $start = $node->safe_psql($db, 'SELECT pg_notification_queue_usage()');
	$node->safe_psql($db, "$settings$sends");
	my $usage = $node->safe_psql($db, "SELECT pg_notification_queue_usage() > $start");
	$holder->query_safe('COMMIT');
	$holder->quit;
	return $usage;
}

# --- nobody listens -------------------------------------------------------------------------------

is(notified('SET mq.notify = on; '), 't', 'with mq.notify = on everybody is told');
is(notified(''), 'f', 'with auto nobody is, where nobody listens');
$node->safe_psql($db, q{SELECT count(*) FROM mq_poll(NULL, 1)});
is(notified(''), 'f', 'though somebody has polled');

# --- who listens is notified ----------------------------------------------------------------------

listen_anew('LISTEN mq_c');
hears('mq_c', 'a listener that has never polled');
listen_anew('LISTEN mq');
hears('mq', 'a listener of all channels');
$node->safe_psql($db, 'SELECT mq_clear_all()');
listen_anew('LISTEN mq_c');
is($listener->query(q{SELECT id IS NULL, wait_time IS NULL FROM mq_poll('{c}')}), 't|t', 'a consumer is told that there is nothing');
hears('mq_c', 'and notified when there is');
$node->safe_psql($db, q{SELECT mq_clear_all(); SELECT mq_send('c', delay => '3 hours')});
$listener->query('SELECT 1');
like($listener->query(q{SELECT wait_time FROM mq_poll('{c}')}), qr/^00:01:00$/m, 'a consumer whose message is due later is told to look again after a minute');
hears('mq_c', 'and notified of what is due earlier');
$node->safe_psql($db, 'CREATE FUNCTION listen() RETURNS void LANGUAGE plpgsql AS $$ BEGIN LISTEN mq_c; END $$');
listen_anew('SELECT listen()');
hears('mq_c', 'LISTEN in a function counts');
listen_anew('BEGIN', 'LISTEN mq_c', 'SAVEPOINT s', 'UNLISTEN *', 'ROLLBACK TO s', 'COMMIT');
hears('mq_c', 'UNLISTEN that was rolled back does not');
listen_anew('LISTEN mq_c', 'BEGIN', 'UNLISTEN *', 'ROLLBACK');
hears('mq_c', 'nor in a transaction that was rolled back');
listen_anew('BEGIN', 'UNLISTEN *', 'LISTEN mq_c', 'COMMIT');
hears('mq_c', 'LISTEN after UNLISTEN counts');
listen_anew('LISTEN mq_c', 'LISTEN mq_d', 'UNLISTEN mq_d');
hears('mq_c', 'UNLISTEN of one channel leaves the others');

# --- who listens no more --------------------------------------------------------------------------

listen_anew('LISTEN mq_c', 'UNLISTEN *');
is(notified(''), 'f', 'UNLISTEN *: nobody listens');
$listener->query($_) for 'LISTEN mq_c', 'DISCARD ALL';
is(notified(''), 'f', 'DISCARD ALL: nobody listens');
$listener->query($_) for 'BEGIN', 'LISTEN mq_c', 'ROLLBACK';
is(notified(''), 'f', 'LISTEN that was rolled back: nobody listens');
$listener->query('LISTEN something');
is(notified(''), 'f', 'who listens to something else does not count');
listen_anew('LISTEN mq_c');
is(notified(''), 't', 'a listener');
$listener->quit;
is(notified(''), 'f', 'its session ends: nobody listens');
listen_anew('LISTEN mq_c');
$node->safe_psql($db, "SELECT pg_terminate_backend($listener->{pid}, 5000)");
eval { $listener->quit };
undef $listener;
is(notified(''), 'f', 'it is terminated: nobody listens');

# --- long names -----------------------------------------------------------------------------------

# LISTEN cuts an identifier to 63 bytes, at a character.
for my $name ('n' x 59, 'n' x 60, 'n' x 61, 'n' x 200, 'ü' x 60, 'n' . 'ü' x 60, '€' x 30, 'nn' . '€' x 30) {
	listen_anew(qq{LISTEN "mq_$name"});
	$node->safe_psql($db, qq{SELECT mq_send('$name')});
	like($listener->query('SELECT 1'), qr/notification "mq_/, 'a listener of a channel whose name is ' . length($name) . ' bytes long');
}

# --- restarts and crashes -------------------------------------------------------------------------

eval { $listener->quit };
undef $listener;
$node->restart;
listen_anew('LISTEN mq_c');
hears('mq_c', 'a listener that comes back after a restart and does not poll');
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION mq');
my $in_other = MqSession->new($node, 'other');
$in_other->query('LISTEN mq_c');
$node->safe_psql('other', q{SELECT mq_send('c')});
like($in_other->query('SELECT 1'), qr/notification "mq_c"/, 'a listener in a new database');
$in_other->quit;

my $victim = $node->background_psql($db);
my $pid = $victim->query_safe('SELECT pg_backend_pid()');
$victim->query_safe('LISTEN mq_c');
kill 'KILL', $pid;
eval { $victim->quit };
eval { $listener->quit };
undef $listener;
within(60, $node, $db, "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid", 0, 'the server is back after a crash');
is(notified(''), 'f', 'nobody listens');
listen_anew('LISTEN mq_c');
hears('mq_c', 'a listener that comes back after a crash');
eval { $listener->quit };
undef $listener;

$node->append_conf('postgresql.conf', q{shared_preload_libraries = ''});
$node->restart;
listen_anew('LISTEN mq_c');
hears('mq_c', 'where the library is not preloaded every listener is notified');
$listener->quit;
$node->stop;
done_testing();
