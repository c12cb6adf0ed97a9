# Whom a send wakes: workers, if a handler takes the channel; nobody, if none does. The poll interval is an hour, so what is
# handled was woken up for.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('woken', 'mq.max_workers' => 1);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
sql(q{
	CREATE EXTENSION mq;
	CREATE TABLE done (channel text, name text);
	CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.done VALUES (m.channel_name, m.name) $$;
	SELECT mq_register_handler('handled', 'handle(mq_message)'), mq_send('handled')});
my $left = 'SELECT count(*) FROM mq_msgs';
within(30, $node, $db, $left, 0, 'a worker handles a message');

# How often the worker has gone to sleep so far.
my ($worker) = pids($node, $db, $MqTest::WORKERS, 1);
sub sleeps { return slurp_file("/proc/$worker/status") =~ /^voluntary_ctxt_switches:\s*(\d+)/m ? $1 : die 'no count' }
my $sends = 300;
sub send_each { my ($channel) = @_; sql(join ';', ("SELECT mq_send('$channel')") x $sends) }
my $before = sleeps();
send_each('elsewhere');
cmp_ok(sleeps() - $before, '<', $sends / 10, 'messages that no handler takes wake no worker');
$before = sleeps();
send_each('handled');
within(30, $node, $db, "$left WHERE channel_name = 'handled'", 0, 'those that one takes are handled');
cmp_ok(sleeps() - $before, '>', 0, '... since the worker is woken');
is((pids($node, $db, $MqTest::WORKERS, 1))[0], $worker, 'it was one worker all the time');

# What else a worker is for.
sql(q{SELECT mq_send('elsewhere', name => 'short', expires => '1 ms')});
within(30, $node, $db, q{SELECT reason FROM mq_dead WHERE name = 'short'}, 'expired', 'a message without a handler expires');
sql(q{SELECT mq_register_handler('elsewhere', 'handle(mq_message)')});
within(30, $node, $db, $left, 0, 'once there is a handler, all that waited are handled');
sql(q{SELECT mq_send('elsewhere')});
within(30, $node, $db, $left, 0, '... and what is sent from then on');
sql(q{SELECT mq_unregister_handler('elsewhere'), mq_send('elsewhere')});
sql(q{BEGIN; SELECT mq_register_handler('elsewhere', 'handle(mq_message)'); PREPARE TRANSACTION 'registers'});
sql(q{SELECT mq_send('elsewhere')});
sql(q{COMMIT PREPARED 'registers'});
within(30, $node, $db, $left, 0, 'a handler that a prepared transaction registers');
sql(q{SELECT mq_send('elsewhere')});
within(30, $node, $db, $left, 0, '... is known from then on');

# A registration and a send that commit at the same time, in both orders of their statements.
my ($sender, $registrar) = map { MqSession->new($node, $db) } 1 .. 2;
for my $n (1 .. 100) {
	my @starts = (sub { $sender->start("SELECT mq_send('new $n')") },
		sub { $registrar->start("SELECT mq_register_handler('new $n', 'handle(mq_message)')") });
	$_->() for $n % 2 ? @starts : reverse @starts;
	$_->result for $sender, $registrar;
}
within(60, $node, $db, $left, 0, 'a send beside the registration of its handler is not overlooked');
# The send commits while the registration waits to commit, and the other way round.
for my $order ([ $sender, $registrar ], [ $registrar, $sender ]) {
	my ($channel) = sql('SELECT gen_random_uuid()');
	$sender->query("BEGIN; SELECT mq_send('$channel')");
	$registrar->query("BEGIN; SELECT mq_register_handler('$channel', 'handle(mq_message)')");
	$_->query('COMMIT') for @$order;
	within(30, $node, $db, $left, 0, 'nor one that commits before or after it');
}

# Several roles have handlers: a send wakes whoever takes it.
sql(q{CREATE ROLE other LOGIN; GRANT ALL ON done TO other; SELECT mq_grant('other', 'admin'); ALTER SYSTEM SET mq.max_workers = 3; SELECT pg_reload_conf()});
sql(q{SET ROLE other; SELECT mq_register_handler('of other', 'handle(mq_message)')});
for my $channel ('of other', 'handled', 'of other') {
	sql("SELECT mq_send('$channel')");
	within(30, $node, $db, $left, 0, "a message of '$channel' is handled");
}

$_->quit for $sender, $registrar;
$node->stop;
log_is_clean($node);
done_testing();
