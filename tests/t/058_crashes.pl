# Whose crash it was. Only a call whose own process ended itself is proven to have brought the server down: it is charged,
# and dead the second time, unless it has come to a checkpoint in between. A process that was killed makes its message a
# suspect, which dies when its retries are used up. What was told to go, by a stop or by somebody else's crash, is charged
# nothing, be it on its last attempt.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = mq_node('crashes', restart_after_crash => 'on', 'mq.max_workers' => 1);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
# What brings the server down, perhaps before its sender has heard that it is sent.
sub send_crash { try_psql($node, $db, shift); return }

# Functions that end their process.
my $source = $node->basedir . '/crash.c';
append_to_file($source, q{
#include "postgres.h"
#include <signal.h>
#include <unistd.h>
#include "fmgr.h"
#include "storage/ipc.h"
PG_MODULE_MAGIC;
PG_FUNCTION_INFO_V1(crash);
static void end_slowly(int code, Datum unused) { for (int i = 0; i < 50; i++) usleep(10000); }
static int deep(volatile int *p) { volatile int a[1000]; a[0] = *p + 1; return deep(a) + a[999]; }
Datum crash(PG_FUNCTION_ARGS)
{
	int how = PG_GETARG_INT32(0);
	int n = 0;
	if (how == 1) *(volatile int *) 8 = 1;
	if (how == 2) abort();
	if (how == 3) elog(PANIC, "the disk is full, say");
	if (how == 4) kill(getpid(), SIGTERM);
	if (how == 5) PG_RETURN_INT32(deep(&n));
	if (how == 6) { on_proc_exit(end_slowly, 0); ereport(FATAL, errmsg("the call ends its worker, says the test")); }
	PG_RETURN_VOID();
}
});
my $module = $node->basedir . '/crash.so';
system_or_bail('cc', '-shared', '-fPIC', '-w', '-O0', '-I' . $node->config_data('--includedir-server'), '-o', $module, $source);

sql(qq{
	CREATE EXTENSION mq;
	CREATE FUNCTION crash(int) RETURNS void LANGUAGE c STRICT AS '$module', 'crash';
	CREATE TABLE gate ();
	CREATE TABLE done (name text, attempt int, at timestamptz DEFAULT clock_timestamp());
	CREATE FUNCTION work(m mq_message) RETURNS void LANGUAGE plpgsql AS \$\$
	BEGIN
	  IF m.payload_json ? 'crash' THEN PERFORM crash((m.payload_json ->> 'crash')::int); END IF;
	  WHILE m.payload_json ? 'gate' AND NOT EXISTS (SELECT FROM gate) LOOP PERFORM pg_sleep(0.2); END LOOP;
	  INSERT INTO done VALUES (m.payload_json ->> 'name', m.attempt);
	END \$\$;
	CREATE FUNCTION work_batch(m mq_message[]) RETURNS void LANGUAGE plpgsql AS \$\$
	DECLARE one mq_message;
	BEGIN
	  FOREACH one IN ARRAY m LOOP PERFORM work(one); END LOOP;
	END \$\$;
	-- Gets one step further each time, and then brings the server down.
	CREATE PROCEDURE travel(m mq_message) LANGUAGE plpgsql AS \$\$
	DECLARE step int := (m.payload_json ->> 'step')::int;
	BEGIN
	  IF step < 4 THEN
	    PERFORM mq_checkpoint(m.id, '1 h', jsonb_build_object('step', step + 1)::text, NULL, 0);
	    COMMIT;
	    PERFORM crash(1);
	  END IF;
	  INSERT INTO done VALUES ('travel', m.attempt);
	END \$\$;
	SELECT mq_register_handler('single', 'work(mq_message)'),
	       mq_register_handler('batch', 'work_batch(mq_message[])'),
	       mq_register_handler('leased', 'work(mq_message)', mode => 'leased'),
	       mq_register_handler('leased batch', 'work_batch(mq_message[])', mode => 'leased', batch_size => 10),
	       mq_register_handler('travel', 'travel(mq_message)', mode => 'leased')});

sub empty { sql('TRUNCATE done, gate, mq_dead, mq_failures') }
my $dead = q{SELECT string_agg(concat_ws(' ', payload_json ->> 'name', reason, attempts_made, sqlstate), ', ' ORDER BY died_at) FROM mq_dead};
my $failures = q{SELECT string_agg(attempt || ' ' || sqlstate, ', ' ORDER BY failure_no) FROM mq_failures};
my $names = q{SELECT string_agg(name || ' ' || attempt, ', ' ORDER BY name) FROM done};
sub send_message {
	my ($channel, $payload, $options) = @_;
	return "SELECT mq_send('$channel', '$payload'" . ($options ? ", $options" : '') . ')';
}

# --- proven --------------------------------------------------------------------------------------

for my $channel ('single', 'batch', 'leased', 'leased batch') {
	send_crash('BEGIN;' . join(';', send_message($channel, '{"name": "a"}', 'retries => 0'),
		send_message($channel, '{"name": "b", "crash": 1}', q{retry_backoff => '0.1 s'}),
		send_message($channel, '{"name": "c"}', 'retries => 0')) . '; COMMIT');
	within(60, $node, $db, $dead, 'b crashed 2 57P02', "$channel: what crashes the server twice is dead");
	# Leased ones perhaps twice: once before the crash, without the worker having heard of it.
	within(30, $node, $db, q{SELECT string_agg(DISTINCT name || ' ' || attempt, ', ' ORDER BY name || ' ' || attempt) FROM done},
		'a 1, c 1', "$channel: the others are handled, on their only attempt");
	holds($node, $db, $failures, '1 57P02, 2 57P02', "$channel: both crashes are recorded, and no others");
	holds($node, $db, q{SELECT bool_and(crash) AND bool_and(detail LIKE '%signal 11%') FROM mq_failures}, 't', "$channel: by the signal");
	empty();
}
for my $how ([ 2, 'abort()', 6 ], [ 5, 'a stack that is too deep', 11 ]) {
	send_crash(send_message('leased', qq({"name": "b", "crash": $how->[0]}), q{retry_backoff => '0.1 s'}));
	within(60, $node, $db, $dead, 'b crashed 2 57P02', "$how->[1] is a crash as well");
	holds($node, $db, q{SELECT count(*) FROM mq_failures WHERE detail LIKE '%signal } . $how->[2] . q{.'}, 2, "$how->[1]: by its signal");
	empty();
}
send_crash(send_message('travel', '{"step": 1}', q{retry_backoff => '0.1 s'}));
within(90, $node, $db, $names, 'travel 4', 'a crash before the last checkpoint is forgiven: three crashes, and handled');
holds($node, $db, $failures, '1 57P02, 2 57P02, 3 57P02', 'though all are recorded');
empty();

# A PANIC may be the disk's: it is charged as any failure.
send_crash(send_message('single', '{"name": "b", "crash": 3}', q{retries => 2, retry_backoff => '0.1 s'}));
within(60, $node, $db, $dead, 'b exhausted 3 57P02', 'a PANIC is not proven to be the handler\'s, but no message crashes for ever');
empty();
for my $channel ('single', 'leased') {
	sql(send_message($channel, '{"name": "b", "crash": 4}', q{retries => 1, retry_backoff => '0.1 s'}));
	within(60, $node, $db, $dead, 'b exhausted 2 57P01', "$channel: a handler that ends its own process is charged");
	empty();
}

# --- somebody else's --------------------------------------------------------------------------------

my $in_flight = q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND state = 'active'};
sub wait_for_server {
	my ($good) = value_within(60, $node, $db, 'SELECT 1', 1);
	die 'the server does not come back' unless $good;
}
sub kill_process {
	my ($pid) = @_;
	kill 'KILL', $pid;
	value_within(60, $node, $db, "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid", 0);
}
my %others = (
	'an immediate stop' => sub { $node->stop('immediate'); $node->start },
	'a fast restart' => sub { $node->stop('fast'); $node->start },
	'kill -9 of the postmaster' => sub {
		$node->kill9;
		# Its children take a moment to notice.
		for (1 .. 200) {
			return if $node->start(fail_ok => 1);
			usleep(100_000);
			$node->stop('fast', fail_ok => 1);
		}
		die 'the server does not start';
	},
	'kill -9 of a producer' => sub {
		my $producer = $node->background_psql($db, on_error_stop => 0);
		my $pid = $producer->query('SELECT pg_backend_pid()');
		kill_process($pid);
		eval { $producer->quit };
	},
	'pg_terminate_backend of the worker' => sub {
		my ($pid) = split /\n/, sql($MqTest::WORKERS);
		sql("SELECT pg_terminate_backend($pid)");
		within(30, $node, $db, "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid", 0, 'the worker is gone');
	});

for my $channel ('single', 'leased') {
	my @messages = $channel eq 'single' ? ('a') : ('a', 'b');
	for my $other (sort keys %others) {
		sql(send_message($channel, qq({"name": "$_", "gate": 1}), 'retries => 0')) for @messages;
		for my $time ('once', 'twice') {
			within(60, $node, $db, $in_flight, scalar @messages, "$channel, $other, $time: calls are in flight");
			$others{$other}->();
			wait_for_server();
		}
		sql('INSERT INTO gate DEFAULT VALUES');
		within(60, $node, $db, $names, join(', ', map { "$_ 1" } @messages),
			"$channel, $other: charged to nobody: handled on the only attempt");
		holds($node, $db, 'SELECT (SELECT count(*) FROM mq_failures), (SELECT count(*) FROM mq_dead), (SELECT count(*) FROM mq_msgs)', '0|0|0',
			"$channel, $other: nothing is recorded");
		empty();
	}
}

# A smart restart waits for what runs.
sql(send_message('leased', '{"name": "a", "gate": 1}', 'retries => 0'));
within(60, $node, $db, $in_flight, 1, 'a leased call is in flight');
my $opener = $node->background_psql($db);
$opener->query_safe(q{SELECT 1});
my $stop = IPC::Run::start([ 'pg_ctl', 'stop', '-m', 'smart', '-D', $node->data_dir ], '>', \my $out, '2>', \my $err);
$opener->query_safe('INSERT INTO gate DEFAULT VALUES');
$opener->quit;
ok($stop->finish, 'a smart stop ends');
$node->_update_pid(0);
$node->start;
holds($node, $db, $names, 'a 1', 'and has let the leased call come to its end');
holds($node, $db, 'SELECT count(*) FROM mq_failures', 0, 'charging nobody');
empty();

# --- killed, by whomever ------------------------------------------------------------------------------

# The session of one of two leased calls: the other is not charged. Nor is what the worker ran when it is the worker.
for my $victim ([ 'session', q{SELECT a.pid FROM pg_stat_activity a JOIN mq_msgs m ON m.lease > 0 JOIN mq_payloads p USING (id)
		WHERE p.payload_json ->> 'name' = 'b' AND a.application_name = 'mq handler' AND a.state = 'active'
		ORDER BY a.query_start DESC LIMIT 1} ],
	[ 'worker', $MqTest::WORKERS ]) {
	my ($who, $query) = @$victim;
	sql(send_message('leased', '{"name": "a", "gate": 1}', 'retries => 0'));
	within(60, $node, $db, $in_flight, 1, "$who: a first call is in flight");
	sql(send_message('leased', '{"name": "b", "gate": 1}', 'retries => 1'));
	within(60, $node, $db, $in_flight, 2, "$who: and a second one");
	kill_process(sql($query));
	sql('INSERT INTO gate DEFAULT VALUES');
	within(60, $node, $db, $names, $who eq 'session' ? 'a 1, b 2' : 'a 1, b 1', "kill -9 of the $who: both are handled");
	holds($node, $db, "SELECT COALESCE(($failures), 'none')", $who eq 'session' ? '1 57P02' : 'none', "kill -9 of the $who: who is charged");
	holds($node, $db, 'SELECT count(*) FROM mq_failures WHERE crash', 0, "kill -9 of the $who proves no crash");
	empty();
}
sql(send_message('single', '{"name": "a", "gate": 1}', q{retries => 1, retry_backoff => '0.1 s'}));
for (1 .. 2) {
	within(60, $node, $db, $in_flight, 1, 'a transactional call is in flight');
	kill_process(sql($MqTest::WORKERS));
}
within(60, $node, $db, $dead, 'a exhausted 2 57P02', 'kill -9 of the worker under it: dead when its retries are used up');
empty();

# --- ended in the middle of a call ---------------------------------------------------------------------

# The timers of the call go off while its process ends, slowly: it has left shared memory by then.
# Calls of that channel are known to be quick, so several share a batch and its timer goes on.
sql(q{SELECT mq_register_handler('quick', 'work(mq_message)'); SELECT mq_send('quick', '{"name": "x"}') FROM generate_series(1, 100)});
within(60, $node, $db, q{SELECT count(*) FROM done}, 100, 'calls are quick');
sql('TRUNCATE done');
my $before = -s $node->logfile;
sql(q{SELECT count(*) FROM (VALUES ('{"name": "a", "crash": 6}'::jsonb), ('{"name": "b"}')) AS v (payload), mq_send('quick', payload, retries => 0)});
within(60, $node, $db, $dead, 'a exhausted 1 57P01', 'a call that ends its worker is charged');
within(60, $node, $db, $names, 'b 1', 'and the other one of its batch is handled');
unlike(slurp_file($node->logfile, $before), qr/terminated by signal|terminating any other active server processes/,
	'a worker that takes long to end takes nobody with it');
empty();

# --- what is left over --------------------------------------------------------------------------------

# A call of a role that is gone when the server comes back: nobody asks for it again and again.
sql(q{CREATE ROLE gone LOGIN SUPERUSER; SELECT mq_register_handler('of another', 'work(mq_message)', run_as => 'gone')});
sql(send_message('of another', '{"name": "a", "gate": 1}'));
within(60, $node, $db, $in_flight, 1, 'a call of another role is in flight');
my ($pid) = sql(q{SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND state = 'active'});
# It is gone before its worker can come back.
set_and_reload($node, 'mq.max_workers' => 0);
kill_process($pid);
sql(q{SELECT mq_unregister_handler('of another'), mq_clear('{"of another"}'); DROP ROLE gone});
set_and_reload($node, 'mq.max_workers' => 1);
sql(send_message('single', '{"name": "b"}'));
within(60, $node, $db, $names, 'b 1', 'the other role is served');
within(30, $node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND state = 'idle' AND now() - state_change > '1 s'}, 1,
	'and its worker rests');
sql('TRUNCATE done');

$node->stop;
log_is_clean($node,
	qr/was terminated by signal (9|11|6|3)/, qr/PANIC:  the disk is full, say/, qr/FATAL:  the call ends its worker, says the test/,
	qr/FATAL: .*(terminating|starting up|shutting down|in recovery|not yet accepting|pre-existing shared memory|lock file)/,
	qr/WARNING: .*terminating connection because of/, qr/connection to client lost/,
	qr/exited with exit code 2/);
done_testing();
