# A session that waits in mq_wait or mq_call sleeps until its messages have ended, however they end, and no longer; no
# wake-up is lost; a commit wakes those that wait for its messages, and nobody else; whatever ends a statement ends the wait.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

# mq.poll_interval is an hour, and a wait looks by itself once a minute: who is not woken sleeps on. So a wait that ends within
# half a minute was woken.
my $node = mq_node('waits', max_connections => 1100, 'mq.max_workers' => 2, shared_buffers => '64MB');
my $db = 'postgres';
$node->safe_psql($db, q{
	CREATE EXTENSION mq;
	CREATE FUNCTION id(n int) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$ SELECT lpad(n::text, 32, '0')::uuid $$;
	CREATE FUNCTION echo(payload jsonb) RETURNS jsonb LANGUAGE sql RETURN payload;
	CREATE FUNCTION fail(payload jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RAISE 'no: %', payload USING ERRCODE = 'QQ001'; END $$;
	-- Waits while a session holds the lock.
	CREATE FUNCTION gated(m mq_message) RETURNS jsonb LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM mq_progress(0.5, 'at the gate');
	  PERFORM pg_advisory_xact_lock(1);
	  RETURN '"through"';
	END $$;
	SELECT mq_register_handler('echo', 'echo(jsonb)', keep => '1 hour'), mq_register_handler('leased', 'echo(jsonb)', mode => 'leased', keep => '1 hour'),
	       mq_register_handler('fail', 'fail(jsonb)'), mq_register_handler('gated', 'gated(mq_message)', keep => '1 hour'),
	       mq_register_handler('gated leased', 'gated(mq_message)', mode => 'leased', keep => '1 hour')});

my %sessions;
sub session { my ($name) = @_; return $sessions{$name} //= MqSession->new($node, $db) }
my $sleeping = q{state = 'active' AND wait_event_type = 'Extension'};
# The session runs the statement, and sleeps.
sub sleeps {
	my ($name, $statement) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $session = session($name);
	$session->begin($statement);
	within(30, $node, $db, "SELECT count(*) FROM pg_stat_activity WHERE pid = $session->{pid} AND $sleeping", 1, "$name waits");
}
sub waits {
	my ($name, @n) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sleeps($name, "SELECT string_agg(concat_ws(' ', state, result, error), ', ') FROM mq_wait(ARRAY[" . join(', ', map { "id($_)" } @n) . "], '250 s')");
}
# It is over within half a minute.
sub gets {
	my ($name, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $end = time + 30;
	usleep(2_000) until session($name)->is_over || time > $end;
	return fail("$what: $name is not woken") unless session($name)->is_over;
	my $got = session($name)->result;
	return ref $expected ? like($got, $expected, $what) : is($got, $expected, $what);
}
sub sleeps_on {
	my ($what, @names) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(join(' ', map { session($_)->is_over } @names), join(' ', map { 0 } @names), $what);
}

# --- how a message may end ------------------------------------------------------------------------

my $n = 0;
# Sends a message that is not due, and waits for it.
sub sent {
	my ($channel, $payload, $options) = @_;
	++$n;
	$node->safe_psql($db, "SELECT mq_send('$channel', '$payload', id => id($n), delay => '1 hour', retries => 0" . ($options // '') . ")");
	return $n;
}
my $now = q{UPDATE mq_msgs SET attempt_at = now() - interval '1 s' WHERE id = id(%d); SELECT mq_pause('nothing'); SELECT mq_resume('nothing')};
for my $case ([ 'echo', '"a"', 'done "a"' ], [ 'leased', '"b"', 'done "b"' ], [ 'fail', '"c"', 'dead no: "c"' ]) {
	my ($channel, $payload, $expected) = @$case;
	waits('a', sent($channel, $payload));
	$node->safe_psql($db, sprintf $now, $n);
	gets('a', $expected, "$channel: a worker has handled it");
}
waits('a', sent('out', '1', q{, keep => '1 hour'}));
$node->safe_psql($db, "UPDATE mq_msgs SET attempt_at = now() WHERE id = id($n)");
$node->safe_psql($db, q{SELECT mq_ack(ARRAY[id], lease, '[{"acked": 1}]') FROM mq_receive('{out}')});
gets('a', 'done {"acked": 1}', 'mq_ack');
waits('a', sent('out', '1'));
$node->safe_psql($db, "SELECT mq_delete(ARRAY[id($n)])");
gets('a', 'unknown', 'mq_delete');
waits('a', sent('out', '1'));
$node->safe_psql($db, 'SELECT mq_clear_all()');
gets('a', 'unknown', 'mq_clear_all');
waits('a', sent('out', '1'));
$node->safe_psql($db, "SELECT count(*) FROM mq_cancel(ARRAY[id($n)], 'not wanted')");
gets('a', 'cancelled not wanted', 'mq_cancel');
waits('a', sent('out', '1'));
$node->safe_psql($db, "BEGIN; SELECT mq_delete(ARRAY[id($n)]); PREPARE TRANSACTION 'x'");
sleeps_on('a prepared transaction wakes nobody', 'a');
$node->safe_psql($db, q{COMMIT PREPARED 'x'});
gets('a', 'unknown', 'COMMIT PREPARED');
waits('a', sent('out', '1'));
$node->safe_psql($db, "DELETE FROM mq_payloads WHERE id = id($n)");
gets('a', 'unknown', 'by hand');
# By time, which a worker looks after.
++$n;
$node->safe_psql($db, "SELECT mq_send('echo', '1', id => id($n), delay => '1 hour', expires => '2 s')");
waits('a', $n);
gets('a', 'dead dead, with the reason expired', 'it expires');
++$n;
$node->safe_psql($db, "SELECT mq_send('echo', '1', id => id($n), commit_interval => '2 s')");
waits('a', $n);
$node->safe_psql($db, "SELECT count(*) FROM mq_msgs WHERE id = id($n) AND pg_sleep(2.1) IS NOT NULL; SELECT count(*) FROM mq_poll('{echo}')");
gets('a', 'unknown', 'a two-phase message that nobody commits');
++$n;
$node->safe_psql($db, "SELECT mq_send('echo', '\"committed\"', id => id($n), commit_interval => '1 hour')");
waits('a', $n);
$node->safe_psql($db, "SELECT mq_commit(ARRAY[id($n)])");
gets('a', 'done "committed"', 'and one that is committed');
# In a chain: the last one is waited for, the first one dies.
my $first = sent('fail', '1');
++$n;
$node->safe_psql($db, "SELECT mq_send('echo', '2', id => id($n), after => ARRAY[id($first)])");
waits('a', $n);
$node->safe_psql($db, sprintf $now, $first);
gets('a', qr/^dead message .* is dead$/, 'dead since another is dead');
# A retry does not end the wait; the last attempt does.
++$n;
$node->safe_psql($db, "SELECT mq_send('fail', '7', id => id($n), retries => 1, retry_backoff => '1 s')");
session('a')->begin("SELECT state, attempt, error FROM mq_wait(ARRAY[id($n)], '250 s')");
gets('a', 'dead|2|no: 7', 'after a retry');
# Of several the last one.
my @several = map { sent('out', '1') } 1 .. 3;
waits('a', @several);
waits('b', reverse @several);
$node->safe_psql($db, "SELECT mq_delete(ARRAY[id($several[2])])");
sleeps_on('two are left', 'a', 'b');
$node->safe_psql($db, "SELECT mq_delete(ARRAY[id($several[0])])");
sleeps_on('one is left', 'a', 'b');
$node->safe_psql($db, "SELECT mq_delete(ARRAY[id($several[1])])");
gets($_, 'unknown, unknown, unknown', 'all have ended') for 'a', 'b';

# --- what runs --------------------------------------------------------------------------------------

my $gate = $node->background_psql($db);
for my $channel ('gated', 'gated leased') {
	$gate->query('SELECT pg_advisory_lock(1)');
	++$n;
	$node->safe_psql($db, "SELECT mq_send('$channel', '1', id => id($n), retries => 5)");
	within(60, $node, $db, "SELECT state, attempt, attempts_left, due_at, progress, note FROM mq_status(ARRAY[id($n)])", 'running|1|5||0.5|at the gate', "$channel: running, with its progress");
	waits('a', $n);
	$gate->query('SELECT pg_advisory_unlock(1)');
	gets('a', 'done "through"', "$channel: its end wakes");
	# It is cancelled while it runs.
	$gate->query('SELECT pg_advisory_lock(1)');
	++$n;
	$node->safe_psql($db, "SELECT mq_send('$channel', '1', id => id($n))");
	within(60, $node, $db, "SELECT state FROM mq_status(ARRAY[id($n)])", 'running', "$channel: running");
	waits('a', $n);
	$node->safe_psql($db, "SELECT count(*) FROM mq_cancel(ARRAY[id($n)], 'no more')");
	gets('a', 'cancelled no more', "$channel: a cancel of what runs wakes");
	$gate->query('SELECT pg_advisory_unlock(1)');
}

# --- mq_call ----------------------------------------------------------------------------------------

$gate->query('SELECT pg_advisory_lock(1)');
sleeps('a', "CALL mq_call('gated', '1', timeout => '250 s')");
holds($node, $db, "SELECT backend_xmin, backend_xid FROM pg_stat_activity WHERE pid = " . session('a')->{pid}, '|', 'mq_call holds no snapshot while it waits');
holds($node, $db, "SELECT count(*) FROM pg_locks WHERE locktype <> 'virtualxid' AND pid = " . session('a')->{pid}, 0, 'and no lock');
$gate->query('SELECT pg_advisory_unlock(1)');
gets('a', '"through"', 'mq_call returns the result');
# Its message ends otherwise.
for my $case ([ "SELECT mq_delete(array_agg(id)) FROM mq_msgs", '55000', 'is deleted' ], [ "SELECT count(*) FROM (SELECT mq_cancel(array_agg(id)) FROM mq_msgs) c", '57014', 'is cancelled' ],
	[ "SELECT count(*) FROM (SELECT mq_nack(ARRAY[id], lease, 'refused', 'QQ002', dead => true) FROM mq_receive('{out}')) n", 'QQ002', 'is refused' ]) {
	$node->safe_psql($db, 'SELECT mq_clear_all()');
	sleeps('a', "CALL mq_call('out', '1', timeout => '250 s')");
	$node->safe_psql($db, $case->[0]);
	gets('a', "error $case->[1]", "mq_call: its message $case->[2]");
}
# The time is up while a handler runs: it is interrupted and cancelled.
$gate->query('SELECT pg_advisory_lock(1)');
for my $channel ('gated', 'gated leased') {
	$node->safe_psql($db, 'TRUNCATE mq_dead');
	session('a')->begin("CALL mq_call('$channel', '1', timeout => '1 s')");
	gets('a', 'error 57014', "$channel: the time is up");
	within(60, $node, $db, 'SELECT reason, error FROM mq_dead', 'cancelled|mq_call has waited for as long as its timeout', "$channel: it is cancelled");
	within(60, $node, $db, "SELECT count(*) FROM mq_workers WHERE state = 'handling'", 0, "$channel: and runs no more");
}
$gate->query('SELECT pg_advisory_unlock(1)');
$gate->quit;
holds($node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'nothing is left');

# --- races ------------------------------------------------------------------------------------------

# A session in the background has a limit for its whole life; those that follow are new.
$_->quit for values %sessions;
%sessions = ();

# Runs scripts of pgbench at once: so many clients, so many transactions each.
sub storm {
	my ($what, @scripts) = @_;
	my @runs;
	for my $script (@scripts) {
		my ($clients, $count, $text) = @$script;
		my $file = $node->basedir . '/storm' . @runs . '.sql';
		unlink $file;
		append_to_file($file, $text);
		my ($out, $err) = ('', '');
		push @runs, [ IPC::Run::start([ 'pgbench', '--no-vacuum', "--client=$clients", "--transactions=$count", '--file', $file, $node->connstr($db) ],
			'>', \$out, '2>', \$err, IPC::Run::timeout(280)), \$err ];
	}
	for my $run (@runs) {
		$run->[0]->finish;
		my $err = ${$run->[1]};
		is(join("\n", $err =~ /.*(?:ERROR|FATAL|aborted).*/g), '', "$what: no session fails");
	}
}
# A lost wake-up takes a minute: longer than these wait.
$node->safe_psql($db, 'CREATE TABLE late (what text, state text)');
my $waits = q{
SELECT quote_literal(mq_send('%s', to_jsonb(:client_id), keep => '1 hour')) AS id \gset
INSERT INTO late SELECT '%s', state FROM mq_wait(ARRAY[:id]::uuid[], '40 s') WHERE state <> 'done';
};
storm('workers, and waits', [ 8, 150, sprintf $waits, 'echo', 'echo' ], [ 2, 60, sprintf $waits, 'leased', 'leased' ], [ 4, 100, "CALL mq_call('echo', '1', timeout => '40 s');\n" ]);
# Several messages of a transaction, which end in several; consumers outside.
my $three = q{
SELECT quote_literal(array_agg(id)::text) AS ids FROM mq_send_many('out', '{1, 2, 3}', keep => '1 hour') AS s (id) \gset
INSERT INTO late SELECT 'out', state FROM mq_wait(:ids::uuid[], '40 s') WHERE state <> 'done';
};
my $acks = q{SELECT count(*) FROM (SELECT mq_ack(ARRAY[id], lease) FROM mq_receive('{out}', 2, wait => '100 ms')) a;} . "\n";
storm('consumers, and waits', [ 8, 60, $three ], [ 4, 400, $acks ]);
# The timeout, and the end: either the result or 57014, and then it is cancelled.
$node->safe_psql($db, q{
	DELETE FROM mq_dead; DELETE FROM mq_done;
	CREATE TABLE outcomes (what text);
	CREATE PROCEDURE one_call(timeout interval) LANGUAGE plpgsql AS $$
	DECLARE r jsonb;
	BEGIN CALL mq_call('echo', '"race"', r, timeout => timeout); INSERT INTO outcomes VALUES (r #>> '{}'); END $$});
my $file = $node->basedir . '/timeouts.sql';
append_to_file($file, q{\set us random(0, 4000)
CALL one_call(make_interval(secs => :us / 1000000.0));
});
my ($out, $err) = ('', '');
# pgbench gives a client up after an error: many short runs.
for (1 .. 12) { IPC::Run::run([ 'pgbench', '--no-vacuum', '--client=6', '--transactions=20', '--file', $file, $node->connstr($db) ], '>', \$out, '2>>', \$err, IPC::Run::timeout(120)) }
my $timeouts = () = $err =~ /ERROR:  mq_call has timed out/g;
is(join("\n", grep { !/mq_call has timed out/ } $err =~ /.*ERROR.*/g), '', 'mq_call at its timeout raises nothing else');
holds($node, $db, q{SELECT (SELECT count(*) FROM mq_dead WHERE reason = 'cancelled'), (SELECT count(*) FROM mq_msgs)}, "$timeouts|0", 'each that has timed out is cancelled, and no other');
holds($node, $db, q{SELECT (SELECT count(*) FROM outcomes WHERE what = 'race') = (SELECT count(*) FROM mq_done)}, 't', 'each result that there is was returned');
cmp_ok($timeouts, '>', 0, 'some have timed out');
holds($node, $db, 'SELECT * FROM late', '', 'no wake-up was lost');

# --- a thousand that wait ------------------------------------------------------------------------

$node->safe_psql($db, q{SELECT mq_clear_all(); SELECT mq_send('crowd', id => id(10000 + n)) FROM generate_series(0, 999) n; SELECT mq_send('crowd', id => id(9999))});
my $script = $node->basedir . '/crowd.sql';
append_to_file($script, q{SELECT count(*) FROM mq_wait(ARRAY[id(10000 + :client_id)], '250 s');} . "\n");
my ($crowd_out, $crowd_err) = ('', '');
# What the looks of those that wait cost is told when they leave.
my $looks = q{SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'mq_msgs_pkey'};
my $crowd_began = time;
my $crowd = IPC::Run::start([ 'pgbench', '--no-vacuum', '--client=1000', '--transactions=1', '--file', $script, $node->connstr($db) . ' application_name=crowd' ],
	'>', \$crowd_out, '2>', \$crowd_err, IPC::Run::timeout(280));
my $waiting = qq{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crowd' AND $sleeping};
within(120, $node, $db, $waiting, 1000, 'a thousand sessions wait') or $crowd->pump_nb, diag($crowd_err);
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
# Each looks by itself once a minute, which on a slow machine comes before all of this is over.
sub few { return time - $crowd_began < 50 ? 30 : 1030 }
SKIP: {
	skip 'no /proc', 3 unless -e '/proc/self/status';
	my $before = switches();
	$node->safe_psql($db, q{DO $$ BEGIN FOR i IN 1 .. 50 LOOP PERFORM mq_send('echo', to_jsonb(i)); COMMIT; END LOOP; END $$});
	within(60, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'echo'}, 0, 'fifty other messages are sent and handled');
	$node->safe_psql($db, q{SELECT mq_delete(ARRAY[id(9999)])});
	cmp_ok(switches() - $before, '<', few(), 'and wake none of those that wait');
	$before = switches();
	sleep 3;
	cmp_ok(switches() - $before, '<', few(), 'nobody looks while nothing happens');
}
# Each is woken by its own message: by twenty, half of the rest in one transaction, the others by a worker.
$node->safe_psql($db, qq{SELECT mq_delete(ARRAY[id(10000 + $_)])}) for 0 .. 19;
within(60, $node, $db, $waiting, 980, 'twenty messages end one by one, and twenty sessions are woken');
$node->safe_psql($db, q{SELECT mq_delete(array_agg(id(10000 + n))) FROM generate_series(20, 499) n});
within(60, $node, $db, $waiting, 500, 'more in one transaction');
$node->safe_psql($db, q{SELECT mq_register_handler('crowd', 'echo(jsonb)')});
$crowd->finish;
unlike($crowd_err, qr/error|fatal/i, 'a worker handles the others: all are woken, and none has failed');

# All wait for one message.
$node->safe_psql($db, q{SELECT mq_send('one', id => id(8000))});
my $one = $node->basedir . '/one.sql';
append_to_file($one, q{SELECT count(*) FROM mq_wait(ARRAY[id(8000)], '250 s');} . "\n");
($crowd_out, $crowd_err) = ('', '');
$node->safe_psql($db, q{SELECT pg_stat_reset()});
my $begun = time;
$crowd = IPC::Run::start([ 'pgbench', '--no-vacuum', '--client=1000', '--transactions=1', '--file', $one, $node->connstr($db) . ' application_name=crowd' ],
	'>', \$crowd_out, '2>', \$crowd_err, IPC::Run::timeout(280));
within(120, $node, $db, $waiting, 1000, 'a thousand sessions wait for one message');
$node->safe_psql($db, q{SELECT mq_delete(ARRAY[id(8000)])});
$crowd->finish;
unlike($crowd_err, qr/error|fatal/i, 'its end wakes all');
# A look before the sleep, one when it is registered, one after it, and that of the result.
my $most = 4300 + 1000 * int((time - $begun) / 60);  # each looks once a minute besides
my ($counted, $scans) = value_within(60, $node, $db, "SELECT idx_scan >= 4000 FROM ($looks) a", 't');
$scans = $node->safe_psql($db, $looks);
ok($counted && $scans < $most, "each has looked four times ($scans looks of 1,000)");

# --- ends ---------------------------------------------------------------------------------------------

$node->safe_psql($db, 'SELECT mq_clear_all()');
my $pending = sent('out', '1');
waits('a', $pending);
$node->safe_psql($db, 'SELECT pg_cancel_backend(' . session('a')->{pid} . ')');
gets('a', 'error 57014', 'pg_cancel_backend ends the wait');
waits('a', $pending);
sleeps('b', "CALL mq_call('out', '2', timeout => '1 hour')");
is(session('c')->query('VACUUM FULL mq_msgs') // '', '', 'a statement that wants the table alone waits for nobody who waits');
sleeps_on('who waits does so still', 'a', 'b');
$node->safe_psql($db, q{SET lock_timeout = '60 s'; DROP EXTENSION mq CASCADE});
gets('a', 'error 3F000', 'DROP EXTENSION waits for nobody, and ends the wait');
gets('b', 'error 3F000', 'and that of mq_call');
$node->safe_psql($db, 'CREATE EXTENSION mq');
$pending = sent('out', '1');
# The client is gone.
waits('a', $pending);
my $gone = session('a');
kill 'KILL', $gone->{psql}{run}{KIDS}[0]{PID};
within(30, $node, $db, "SELECT count(*) FROM pg_stat_activity WHERE pid = $gone->{pid}", 0, 'the end of the client ends the wait');
delete $sessions{a};
# Terminated ones have left the table: messages end as before.
waits('a', $pending);
waits('b', $pending);
$node->safe_psql($db, 'SELECT pg_terminate_backend(' . session('b')->{pid} . ')');
within(30, $node, $db, 'SELECT count(*) FROM pg_stat_activity WHERE pid = ' . session('b')->{pid}, 0, 'one is terminated');
eval { session('b')->{psql}->quit };
delete $sessions{b};
$node->safe_psql($db, "SELECT mq_delete(ARRAY[id($pending)])");
gets('a', 'unknown', 'the other one is woken');
$pending = sent('out', '1');
waits('a', $pending);
sleeps('b', "CALL mq_call('out', '2', timeout => '1 hour')");
$node->stop('fast');
like(eval { session($_)->result } // "ended: $@", qr/error 57P01|ended|^$/, 'a fast shutdown ends the wait') for 'a', 'b';
%sessions = ();

# --- without the preloaded library ------------------------------------------------------------------

$node->append_conf('postgresql.conf', "shared_preload_libraries = ''\n");
$node->start;
waits('a', $pending);
sleeps_on('without the preloaded library it waits, too', 'a');
$node->safe_psql($db, "SELECT mq_delete(ARRAY[id($pending)])");
gets('a', 'unknown', 'and looks again and again');
sleeps('b', "CALL mq_call('out', '3', timeout => '200 s')");
$node->safe_psql($db, q{SELECT mq_ack(array_agg(id), max(lease), jsonb_agg(to_jsonb('acked'::text))) FROM mq_receive('{out}', 10)});
gets('b', '"acked"', 'so does mq_call');
is(session('a')->query("SELECT state FROM mq_wait(ARRAY[mq_send('out')], '0')"), 'error 55000', 'and refuses what would not end');
$_->quit for values %sessions;
log_is_clean($node, qr/canceling statement|terminating connection|could not receive data from client|connection to client lost|does not exist|is not installed|mq_call|not wanted|no: |refused|no more|was sent or changed/);

done_testing();
