# A session that waits in mq_receive sleeps until there is something for it, and no longer; a message wakes one of those
# that wait; no wake-up is lost; and whatever ends a statement ends the wait.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

# mq.poll_interval is an hour: who is not woken sleeps on.
my $node = mq_node('receive', max_connections => 150);
my $db = 'postgres';
$node->safe_psql($db, 'CREATE EXTENSION mq; CREATE FUNCTION nothing(jsonb) RETURNS void LANGUAGE sql RETURN NULL');

my %sessions;
sub session { my ($name) = @_; return $sessions{$name} //= MqSession->new($node, $db) }
sub asks {
	my ($name, $arguments) = @_;
	session($name)->begin("SELECT payload_json FROM mq_receive($arguments, wait => '250 s')");
}
# The session waits, and sleeps.
sub waits {
	my ($name, $arguments) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $session = session($name);
	asks($name, $arguments);
	within(30, $node, $db, "SELECT wait_event_type FROM pg_stat_activity WHERE pid = $session->{pid} AND state = 'active' AND wait_event_type = 'Extension'",
		'Extension', "$name waits");
}
# One of the sessions is over within so many seconds: returns which, and what it got.
sub one_over {
	my ($seconds, @names) = @_;
	my $end = time + $seconds;
	while (1) {
		for my $name (@names) { return ($name, session($name)->result) if session($name)->is_over }
		return ('nobody', '') if time > $end;
		usleep(2_000);
	}
}
sub gets {
	my ($names, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($name, $got) = one_over(60, @$names);
	is($got, $expected, "$what: $name gets it");
	return $name;
}
sub sleeps_on {
	my ($what, @names) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(join(' ', map { session($_)->is_over } @names), join(' ', map { 0 } @names), $what);
}
sub cancelled {
	my ($name) = @_;
	my $session = session($name);
	$node->safe_psql($db, "SELECT pg_cancel_backend($session->{pid})");
	return $session->result;
}

# --- a message wakes one ------------------------------------------------------------------------

waits($_, q('{c}')) for 'a', 'b', 'c';
waits('other', q('{elsewhere}'));
for my $n (1 .. 6) {
	$node->safe_psql($db, "SELECT mq_send('c', '$n')");
	my $name = gets([ 'a', 'b', 'c' ], $n, "message $n");
	sleeps_on('the others sleep on', grep { $_ ne $name } 'a', 'b', 'c', 'other');
	waits($name, q('{c}'));
}
$node->safe_psql($db, q{BEGIN; SELECT mq_send('c', '1'); SELECT mq_send('c', '2'); COMMIT});
my @two = map { (one_over(60, 'a', 'b', 'c'))[1] } 1, 2;
is(join(' ', sort @two), '1 2', 'two messages of one transaction wake two');
my ($left) = grep { !session($_)->is_over && $node->safe_psql($db, "SELECT state FROM pg_stat_activity WHERE pid = " . session($_)->{pid}) eq 'active' } 'a', 'b', 'c';
sleeps_on('the third sleeps on', $left, 'other');
# All channels.
waits('all', 'NULL');
$node->safe_psql($db, q{SELECT mq_send('somewhere', '7')});
gets([ 'all' ], 7, 'a channel that nobody names');
# Many names.
waits('many', q{(SELECT array_agg('n' || n) FROM generate_series(1, 100) n)});
$node->safe_psql($db, q{SELECT mq_send('n77', '8')});
gets([ 'many' ], 8, 'one of a hundred names');
$node->safe_psql($db, q{BEGIN; SELECT mq_send('c', '9'); ROLLBACK});
sleeps_on('a rollback wakes nobody', $left, 'other');

# --- time ---------------------------------------------------------------------------------------

$node->safe_psql($db, q{SELECT mq_send('c', '10', delay => '2 s')});
gets([ $left ], 10, 'a message that was sent with a delay');
waits('a', q('{c}'));
$node->safe_psql($db, q{SELECT mq_send('c', '11', delay => '1 hour'); SELECT mq_send('c', '12', delay => '2 s')});
gets([ 'a' ], 12, 'an earlier one of two');
waits('a', q('{c}'));
$node->safe_psql($db, q{UPDATE mq_msgs SET attempt = attempt; SELECT mq_nack(ARRAY[id], lease, 'no', retry_in => '2 s') FROM mq_msgs WHERE message_json = '12'});
gets([ 'a' ], 12, 'a retry');
waits('a', q('{c}', 1, '2 s'));
$node->safe_psql($db, q{SELECT mq_send('c', '13')});
gets([ 'a' ], 13, 'a message');
waits('a', q('{c}'));
gets([ 'a' ], 13, 'and again when its lease has run out');
waits('a', q('{c}', 1, '3 s'));
waits('b', q('{c}', 1, '3 s'));
waits('c', q('{c}', 1, '3 s'));
$node->safe_psql($db, q{SELECT mq_send('c', '14', delay => '3 s')});
# The one that keeps time goes: another keeps it.
like(cancelled('a'), qr/57014/, 'a cancel ends the wait');
like(cancelled('b'), qr/57014/, 'of another, too');
gets([ 'c' ], 14, 'the last one is in time');

# --- what others do -------------------------------------------------------------------------------

$node->safe_psql($db, q{SELECT mq_clear_all(); SELECT mq_pause('p'); SELECT mq_send('p', '20')});
waits('a', q('{p}'));
$node->safe_psql($db, q{SELECT mq_resume('p')});
gets([ 'a' ], 20, 'a pause has ended');
waits('a', q('{t}'));
$node->safe_psql($db, q{SELECT mq_send('t', '21', id => '00000000-0000-0000-0000-000000000021', commit_interval => '1 hour')});
sleeps_on('a two-phase message wakes nobody', 'a');
$node->safe_psql($db, q{SELECT mq_commit('{00000000-0000-0000-0000-000000000021}')});
gets([ 'a' ], 21, 'until mq_commit');
waits('a', q('{x}'));
$node->safe_psql($db, q{BEGIN; SELECT mq_send('x', '22'); PREPARE TRANSACTION 'x'});
sleeps_on('a prepared transaction wakes nobody', 'a');
$node->safe_psql($db, q{COMMIT PREPARED 'x'});
gets([ 'a' ], 22, 'until COMMIT PREPARED');
$node->safe_psql($db, q{SELECT count(*) FROM mq_send_many('o', '{23, 24}', ordered => true)});
asks('a', q('{o}'));
gets([ 'a' ], 23, 'the head');
waits('a', q('{o}'));
$node->safe_psql($db, q{SELECT mq_ack(ARRAY[id], lease) FROM mq_msgs WHERE message_json = '23'});
gets([ 'a' ], 24, 'the next one once the head is acknowledged');
waits('a', q('{o}'));
$node->safe_psql($db, q{SELECT mq_nack(ARRAY[id], lease, 'no', dead => true) FROM mq_msgs WHERE message_json = '24'; SELECT mq_redrive(channel_name => 'o')});
gets([ 'a' ], 24, 'a redriven one');
# No worker takes what is registered so: it is as another database has left it.
$node->safe_psql($db, q{
	INSERT INTO mq_handlers (channel_name, handler, mode, max_workers, run_as, max_backoff, on_dead, priority, enabled_id)
	  VALUES ('m', 'public.nothing(jsonb)', 'transactional', 1, 'nobody', '1 h', 'skip', 0, gen_random_uuid());
	SELECT count(*) FROM mq_send_many('m', '{25, 26}')});
asks('a', q('{m}'));
gets([ 'a' ], 25, 'with max_workers => 1 one');
waits('a', q('{m}'));
$node->safe_psql($db, q{SELECT mq_ack(ARRAY[id], lease) FROM mq_msgs WHERE message_json = '25'});
gets([ 'a' ], 26, 'and another when that is acknowledged');
$node->safe_psql($db, q{DELETE FROM mq_handlers; SELECT mq_clear_all()});

# --- no wake-up is lost ---------------------------------------------------------------------------

# The second of two is woken before the first, which keeps time. It ends before it can look.
waits('a', q('{c}'));
waits('b', q('{c}'));
my $b = session('b')->{pid};
kill 'STOP', $b;
$node->safe_psql($db, q{SELECT mq_send('c', '30')});
sleeps_on('a woken session that cannot run does nothing', 'a', 'b');
$node->safe_psql($db, "SELECT pg_terminate_backend($b)");
kill 'CONT', $b;
gets([ 'a' ], 30, 'where a woken session is terminated');
eval { session('b')->{psql}->quit };
delete $sessions{b};
# A session that leaves with less than there is wakes the next.
waits($_, q('{c}')) for 'a', 'b';
$node->safe_psql($db, q{INSERT INTO mq_msgs (id, channel_name, channel_args, channel_key, message_name, message_json, after_message_id)
	SELECT gen_random_uuid(), 'c', '', mq_channel_key('c', ''), 'by hand', to_jsonb(31), NULL});
$node->safe_psql($db, q{SELECT mq_send('c', '31')});
is(join(' ', map { (one_over(60, 'a', 'b'))[1] } 1, 2), '31 31', 'a message of which nobody was told, beside another');

# --- a hundred that wait --------------------------------------------------------------------------

$node->safe_psql($db, 'SELECT mq_clear_all()');
my $script = $node->basedir . '/receive.sql';
append_to_file($script, q{SELECT count(*) FROM mq_receive('{c}', wait => '250 s');} . "\n");
my ($out, $err) = ('', '');
my $crowd = IPC::Run::start([ 'pgbench', '--no-vacuum', '--client=100', '--transactions=1', '--file', $script, $node->connstr($db) . ' application_name=crowd' ],
	'>', \$out, '2>', \$err, IPC::Run::timeout(280));
my $waiting = q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crowd' AND wait_event_type = 'Extension'};
within(60, $node, $db, $waiting, 100, 'a hundred sessions wait') or $crowd->pump_nb, diag($err);
holds($node, $db, q{SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE a.application_name = 'crowd' AND l.locktype <> 'virtualxid'}, 0,
	'and hold no lock');
my @pids = split /\n/, $node->safe_psql($db, q{SELECT pid FROM pg_stat_activity WHERE application_name = 'crowd'});
sub switches {
	my $sum = 0;
	for my $pid (@pids) {
		my $status = eval { slurp_file("/proc/$pid/status") } // return undef;
		$sum += $1 if $status =~ /^voluntary_ctxt_switches:\s+(\d+)/m;
	}
	return $sum;
}
my $before = switches();
for my $n (1 .. 50) {
	$node->safe_psql($db, "SELECT mq_send('c', '$n', delay => '1 hour')");
}
my $after = switches();
SKIP: {
	skip 'no /proc', 1 if !defined $before || !defined $after;
	cmp_ok($after - $before, '<', 200, 'fifty messages that are due later wake one session');
}
$node->safe_psql($db, q{DO $$ BEGIN FOR n IN 1 .. 40 LOOP PERFORM mq_send('c', to_jsonb(n)); COMMIT; END LOOP; END $$});
within(60, $node, $db, $waiting, 60, 'forty messages wake forty');
$node->safe_psql($db, q{SELECT count(*) FROM mq_send_many('c', (SELECT array_agg(to_jsonb(n)) FROM generate_series(1, 20) n))});
within(60, $node, $db, $waiting, 40, 'a call that sends twenty wakes twenty');
holds($node, $db, q{SELECT count(*) FROM mq_msgs WHERE attempt = 1}, 60, 'each has one');
@pids = split /\n/, $node->safe_psql($db, q{SELECT pid FROM pg_stat_activity WHERE application_name = 'crowd' AND wait_event_type = 'Extension'});
$before = switches();
$node->safe_psql($db, q{SELECT mq_send('elsewhere', '1')}) for 1 .. 20;
$after = switches();
SKIP: {
	skip 'no /proc', 1 if !defined $before || !defined $after;
	cmp_ok($after - $before, '<', 10, 'messages of other channels wake none of them');
}
$node->safe_psql($db, q{SELECT count(*) FROM mq_send_many('c', (SELECT array_agg(to_jsonb(n)) FROM generate_series(1, 40) n))});
$crowd->finish;
unlike($err, qr/error|fatal/i, 'no session has failed');
holds($node, $db, q{SELECT count(*) FROM mq_msgs WHERE attempt = 1 AND channel_name = 'c'}, 100, 'a hundred sessions have had a hundred messages');

# --- ends -----------------------------------------------------------------------------------------

$node->safe_psql($db, 'SELECT mq_clear_all()');
like(session('a')->query(q{SET statement_timeout = '200 ms'; SELECT * FROM mq_receive('{c}', wait => '1 hour')}), qr/57014/, 'statement_timeout ends the wait');
session('a')->query('RESET statement_timeout');
waits('a', q('{c}'));
is(session('b')->query('VACUUM FULL mq_msgs') // '', '', 'a statement that wants the table alone waits for nobody who waits');
sleeps_on('who waits does so still', 'a');
$node->safe_psql($db, q{SELECT mq_send('c', '40')});
gets([ 'a' ], 40, 'and is woken');
waits('a', 'NULL');
$node->safe_psql($db, q{SET lock_timeout = '60 s'; DROP EXTENSION mq});
like(session('a')->result, qr/error 3F000/, 'DROP EXTENSION waits for nobody, and ends the wait');
$node->safe_psql($db, 'CREATE EXTENSION mq');
waits('a', q('{c}'));
# The client is gone.
my $gone = session('a');
my $client = $gone->{psql}{run}{KIDS}[0]{PID};
kill 'KILL', $client;
within(30, $node, $db, "SELECT count(*) FROM pg_stat_activity WHERE pid = $gone->{pid}", 0, 'the end of the client ends the wait');
delete $sessions{a};
$node->safe_psql($db, q{SELECT mq_send('c', '41')});
holds($node, $db, 'SELECT attempt FROM mq_msgs', 0, 'and nobody has the message');
$node->safe_psql($db, 'SELECT mq_clear_all()');
waits('a', q('{c}'));
$node->stop('fast');
like(eval { session('a')->result } // "ended: $@", qr/error 57P01|ended|^$/, 'a fast shutdown ends the wait');
%sessions = ();

# --- without the preloaded library ------------------------------------------------------------------

$node->append_conf('postgresql.conf', "shared_preload_libraries = ''\n");
$node->start;
waits('a', q('{c}'));
$node->safe_psql($db, q{SELECT mq_send('c', '50')});
gets([ 'a' ], 50, 'without the preloaded library a session that waits looks again and again');
is(session('a')->query(q{SELECT count(*) FROM mq_receive('{c}', wait => '300 ms')}), 0, 'until its time is over');
$_->quit for values %sessions;
log_is_clean($node, qr/canceling statement|terminating connection|due to statement timeout|could not receive data from client|connection to client lost|does not exist|is not installed/);

done_testing();
