# mq_why(): one sentence says why a message is where it is. Each state is made, asked for and left again; beside it the
# rows of mq_health() for handlers that fail, channels that wait for a retry, calls beyond their limits, and standbys.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('why', 'mq.max_workers' => 1, 'mq.poll_interval' => '1s', wal_level => 'replica', max_wal_senders => 5, hot_standby => 'on');
my $db = 'postgres';
sub detail { my ($check) = @_; $check =~ s/'/''/g; return qq{SELECT ok, detail FROM mq_health() WHERE "check" = '$check'} }
sub why { my ($id) = @_; return qq{SELECT mq_why('$id')} }
sub send_message { my ($arguments) = @_; return $node->safe_psql($db, "SELECT mq_send($arguments)") }

$node->safe_psql($db, q{
	CREATE EXTENSION mq;
	CREATE TABLE gate (n int);
	CREATE FUNCTION work(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  IF m.name = 'wait' THEN PERFORM pg_advisory_xact_lock(1); END IF;
	  IF m.name = 'fail' THEN RAISE unique_violation; END IF;
	END $$});

# --- before there is a handler ---------------------------------------------------------------------

my $missing = '00000000-0000-0000-0000-00000000ffff';
holds($node, $db, why($missing), 'is neither pending nor dead: it was handled or deleted, was never sent, or its sender has not committed yet', 'an id that nobody knows');
holds($node, $db, 'SELECT mq_why(NULL) IS NULL', 't', 'NULL for NULL');
my $id = send_message(q{'c'});
holds($node, $db, why($id), 'is due, but channel "c" has no handler: mq_register_handler one, or a consumer outside the server takes it with mq_receive or mq_poll', 'a channel without a handler');
$node->safe_psql($db, q{SELECT mq_pause('c'); SELECT mq_register_handler('c', 'work(mq_message)', max_backoff => '1 hour')});
holds($node, $db, why($id), q{waits since its channel is paused: mq_resume('c') lets it go on}, 'a paused channel');
$node->safe_psql($db, q{SELECT mq_resume('c')});
within(10, $node, $db, why($id), qr/^is neither pending nor dead/, 'handled');

# --- states ----------------------------------------------------------------------------------------

$id = send_message(q{'c', delay => '1 hour'});
within(10, $node, $db, why($id), qr/^is scheduled for \d{4}-\S+ \S+$/, 'scheduled');
within(5, $node, $db, detail('scheduled messages'), qr/^t\|nothing is due yet in: c \(next at .*\)$/, 'mq_health() says that nothing is due yet, and that this is well');
$id = send_message(q{'c', commit_interval => '1 hour'});
within(5, $node, $db, why($id), qr/^is two-phase and not committed: mq_commit delivers it; without that it is removed at /, 'not committed');
within(5, $node, $db, detail('uncommitted messages'), qr/^t\|1 two-phase messages wait for mq_commit; without that the first is removed at /, 'which mq_health() mentions');
$id = send_message(q{'polled', retry_backoff => '1 hour'});
$node->safe_psql($db, q{SELECT FROM mq_poll('{polled}')});
within(5, $node, $db, why($id), qr/^is leased to a consumer outside the server until .*, attempt 1$/, 'leased to a consumer outside');

$id = send_message(q{'c', name => 'fail', retry_backoff => '1 hour'});
within(10, $node, $db, why($id), qr/^waits for its retry at .*: 1 attempts failed, the last with SQLSTATE 23505 \(see mq_failures\), \d+ are left$/, 'waiting for a retry');
$id = send_message(q{'c', name => 'fail', retries => 0});
within(10, $node, $db, why($id), qr/^is dead since .*, reason exhausted, SQLSTATE 23505: mq_redrive\(ARRAY\['$id'\]::uuid\[\]\) sends it again$/, 'dead');

my $head = send_message(q{'c', channel_args => 'o', name => 'fail', ordered => true, retry_backoff => '1 hour'});
my $behind = send_message(q{'c', channel_args => 'o', ordered => true});
within(10, $node, $db, why($behind), qr/^waits in its ordered channel behind $head, which waits for its retry at /, 'behind a head that waits for its retry');
within(10, $node, $db, detail('ordered channels move'), qr/^f\|messages wait behind one that failed and waits for its retry: c o until .*; see mq_failures; mq_delete the message to go on without it$/, 'mq_health() names the channel');
$node->safe_psql($db, qq{SELECT mq_delete('{$head}')});
within(10, $node, $db, detail('ordered channels move'), 't|', 'and no longer when it moves');

$node->safe_psql($db, q{SELECT mq_register_handler('b', 'work(mq_message)', on_dead => 'block')});
$head = send_message(q{'b', name => 'fail', ordered => true, retries => 0});
$behind = send_message(q{'b', ordered => true});
within(10, $node, $db, why($behind), qr/^waits in its ordered channel behind $head, which is dead, and its ordered channel waits for it: mq_redrive/, 'behind a dead message that blocks its channel');
$node->safe_psql($db, qq{SELECT mq_delete('{$head}')});

# --- again and again ---------------------------------------------------------------------------------

$id = send_message(q{'c', name => 'fail', retry_backoff => '10 ms'});
within(10, $node, $db, detail('handlers succeed'), qr/^f\|c \(\d+ messages wait for their retry, one after \d+ failures, the last with SQLSTATE 23505\): see mq_failures; mend the handler/, 'a handler fails again and again');
$node->safe_psql($db, q{SELECT mq_clear('{c}')});
holds($node, $db, detail('handlers succeed'), 't|', 'nothing waits for it any more');

# --- running, and no worker free ----------------------------------------------------------------------

my $gate = $node->background_psql($db);
$gate->query_safe('SELECT pg_advisory_lock(1)');
my $first = send_message(q{'c', name => 'wait'});
within(10, $node, $db, why($first), qr/^is being handled by worker \d+ since /, 'being handled');
my $second = send_message(q{'c', name => 'wait'});
within(10, $node, $db, why($second), qr/^is due, but all 1 workers sit in calls, the longest since .* for channel "c": raise mq\.max_workers, or register handlers that take long with mode => 'leased'$/, 'another waits for a worker, which it says');
$gate->query_safe('SELECT pg_advisory_unlock_all()');
within(10, $node, $db, why($second), qr/^is neither pending nor dead/, 'until one is free');

$node->safe_psql($db, q{SELECT mq_register_handler('l', 'work(mq_message)', mode => 'leased')});
$gate->query_safe('SELECT pg_advisory_lock(1)');
$id = send_message(q{'l', name => 'wait'});
within(20, $node, $db, why($id), qr/^is being handled in session \d+ since /, 'being handled in a session of its own');
$gate->query_safe('SELECT pg_advisory_unlock_all()');
$gate->quit;
within(10, $node, $db, why($id), qr/^is neither pending nor dead/, 'and handled');

# --- a handler that ignores that its time is over -----------------------------------------------------

my $go_on = $node->basedir . '/go_on';
my $source = $node->basedir . '/deaf.c';
append_to_file($source, qq{
#include "postgres.h"
#include <unistd.h>
#include "fmgr.h"
PG_MODULE_MAGIC;
PG_FUNCTION_INFO_V1(deaf);
Datum deaf(PG_FUNCTION_ARGS)
{
	while (access("$go_on", F_OK) != 0) usleep(10000);
	PG_RETURN_VOID();
}
});
my $module = $node->basedir . '/deaf.so';
system_or_bail('cc', '-shared', '-fPIC', '-w', '-I' . $node->config_data('--includedir-server'), '-o', $module, $source);
$node->safe_psql($db, qq{CREATE FUNCTION deaf(jsonb) RETURNS void LANGUAGE c AS '$module', 'deaf'});
for my $mode ('transactional', 'leased') {
	$node->safe_psql($db, qq{SELECT mq_register_handler('deaf_$mode', 'deaf(jsonb)', mode => '$mode', timeout => '100 ms'); SELECT mq_send('deaf_$mode', retries => 0)});
	within(30, $node, $db, detail('time limits'), qr/^f\|a handler ignores that its time is over: deaf_$mode in process \d+ since [^;]*; it loops or waits without a look at interrupts; only the end of that process/,
		"a $mode handler that ignores that its time is over is named");
	append_to_file($go_on, '');
	within(30, $node, $db, detail('time limits'), 't|', 'until it ends');
	within(30, $node, $db, qq{SELECT count(*) FROM mq_msgs WHERE channel_name = 'deaf_$mode'}, 0, '... and its message is dead');
	unlink $go_on;
}

# The same, cancelled.
for my $mode ('transactional', 'leased') {
	$node->safe_psql($db, qq{SELECT mq_register_handler('deaf_$mode', 'deaf(jsonb)', mode => '$mode', timeout => '1 hour')});
	$id = send_message(qq{'deaf_$mode', ordered => true});
	within(30, $node, $db, why($id), qr/^is being handled /, "a $mode handler that does not look at interrupts runs");
	holds($node, $db, detail('cancels heeded'), 't|', '... and nobody has cancelled it');
	is($node->safe_psql($db, qq{SELECT mq_cancel(ARRAY['$id']::uuid[])}), $id, '... its message is cancelled');
	within(10, $node, $db, why($id), $mode eq 'leased' ? qr/^is dead since .*, reason cancelled/ : qr/^is cancelled, and its handler, which began at .*, goes on in process \d+: it is dead when that ends$/, '... and mq_why() says so');
	within(30, $node, $db, detail('cancels heeded'), qr/^f\|a handler goes on though its message is cancelled: deaf_$mode in process \d+ since [^;]*; what it writes is rolled back when it ends;/, '... and it is named');
	append_to_file($go_on, '');
	within(30, $node, $db, detail('cancels heeded'), 't|', '... until it ends');
	within(30, $node, $db, why($id), qr/^is dead since .*, reason cancelled/, '... and is dead');
	unlink $go_on;
}
$node->safe_psql($db, q{SELECT mq_send('deaf_transactional', id => '00000000-0000-0000-0000-0000000000aa', delay => '1 hour');
	INSERT INTO mq_cancelled SELECT id, seq, 'noted' FROM mq_msgs WHERE id = '00000000-0000-0000-0000-0000000000aa'});
like($node->safe_psql($db, why('00000000-0000-0000-0000-0000000000aa')), qr/^is (?:cancelled: it will be moved to the dead letters$|dead since )/, 'a note that nobody has acted on yet');

# --- a consumer outside that is gone -------------------------------------------------------------------

$id = send_message(q{'forsaken'});
$node->safe_psql($db, q{SELECT FROM mq_receive('{forsaken}', lease => '1 hour')});
within(10, $node, $db, why($id), qr/^is leased to a consumer outside the server until /, 'leased to a consumer outside');
holds($node, $db, detail('leases of consumers'), 't|', '... who has time');
$node->safe_psql($db, qq{UPDATE mq_msgs SET attempt_at = now() - interval '2 minutes' WHERE id = '$id'});
within(10, $node, $db, why($id), qr/^is due again since .*, when the lease of a consumer outside the server ran out, attempt 1: a consumer takes it with mq_receive or mq_poll$/, 'its lease has run out');
within(10, $node, $db, detail('leases of consumers'), qr/^f\|leases of consumers outside the server ran out, and nobody has taken the messages since, in: forsaken \(1 since [^)]*\); the consumer has ended/, '... which mq_health() says');
$node->safe_psql($db, q{SELECT FROM mq_receive('{forsaken}', lease => '1 hour')});
holds($node, $db, detail('leases of consumers'), 't|', '... until another takes it');
$node->safe_psql($db, q{SELECT mq_clear('{forsaken}')});

# --- rights --------------------------------------------------------------------------------------------

$node->safe_psql($db, q{CREATE ROLE nobody LOGIN; CREATE ROLE producer LOGIN; SELECT mq_grant('producer', 'produce')});
my ($rc) = $node->psql($db, why($missing), connstr => $node->connstr($db) . ' user=nobody');
isnt($rc, 0, 'not for everybody');
is($node->safe_psql($db, why($missing), connstr => $node->connstr($db) . ' user=producer') =~ /^is neither/, 1, 'for those who may produce');

# --- a server that handles nothing -----------------------------------------------------------------------

my $id_there = send_message(q{'c', delay => '1 hour'});
$node->backup('copy');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'copy', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby, 'replay');
is($standby->safe_psql($db, detail('server mode')), 'f|standby: messages are handled where they are sent; here nothing is until this server is promoted', 'a standby says that it is one');
is($standby->safe_psql($db, q{SELECT string_agg("check", ', ') FROM mq_health() WHERE NOT ok}), 'server mode', 'and gives no other reason');
like($standby->safe_psql($db, why($id_there)), qr/^is scheduled for /, 'mq_why() answers there');
# No commit of its own wakes who waits there: it looks again and again.
my $waiting = MqSession->new($standby, $db);
$waiting->begin("SELECT state FROM mq_wait('{$id_there}', '100 s')");
within(30, $standby, $db, "SELECT count(*) FROM pg_stat_activity WHERE pid = $waiting->{pid} AND state = 'active' AND wait_event_type = 'Extension'", 1, 'mq_wait() waits there');
$node->safe_psql($db, "SELECT mq_delete('{$id_there}')");
is($waiting->result, 'unknown', '... until the message has ended where it was sent');
$waiting->quit;
for my $call (
	q{mq_send('c')}, q{mq_send_many('c', '{1}')}, q{mq_send_once('c', 'key')}, q{mq_insert(ARRAY[]::mq_new_t[])}, q{mq_commit(ARRAY[]::uuid[])},
	q{mq_poll('{c}')}, q{mq_delete(ARRAY[]::uuid[])}, q{mq_keep_alive(ARRAY[]::uuid[], '1 s')}, "mq_checkpoint('$missing', '1 s', NULL, NULL, NULL)", q{mq_clear('{c}')}, 'mq_clear_all()',
	q{mq_pause('c')}, q{mq_resume('c')}, q{mq_register_handler('x', 'work(mq_message)')}, q{mq_unregister_handler('c')}, q{mq_redrive('{}'::uuid[])},
	q{mq_receive('{c}')}, "mq_ack('{$missing}', 1)", "mq_nack('{$missing}', 1, 'e')", "mq_extend('{$missing}', 1, '1 s')", "mq_cancel('{$missing}')",
	q{mq_limit('c', 1)}, q{mq_unlimit('c')}, q{mq_schedule('s', '@daily', 'c')}, q{mq_unschedule('s')},
	q{mq_subscribe('t', 'c')}, q{mq_unsubscribe('t', 'c')}, q{mq_publish('t')}, q{CALL mq_call('c')},
	'mq_reset_stats()', 'mq_enable()', q{mq_grant('postgres', 'produce')}, q{mq_revoke('postgres', 'produce')}, 'CALL mq_run()'
) {
	my ($name) = $call =~ /(mq_\w+)/;
	my $statement = $call =~ /^CALL/ ? $call : "SELECT $call";
	my ($status, undef, $error) = $standby->psql($db, "\\set VERBOSITY verbose\n$statement");
	like($error, qr/^psql:<stdin>:\d+: ERROR:  25006: cannot execute $name\(\) in a read-only transaction$/m, "$name() says that it cannot write here");
}
$standby->promote;
within(20, $standby, $db, detail('server mode'), 't|', 'promoted, it is none');
within(20, $standby, $db, q{SELECT count(*) > 0 FROM mq_workers}, 't', 'and has workers');
$standby->stop;

$node->stop;
my ($out, $err) = ('', '');
my $command = q{SELECT detail FROM mq_health() WHERE "check" = 'server mode' AND NOT ok} . "\n";
IPC::Run::run([ $node->installed_command('postgres'), '--single', '-j', '-D', $node->data_dir, $db ], '<', \$command, '>', \$out, '2>', \$err);
like($out, qr/single-user mode: no workers; CALL mq_run\(\) does their work/, 'in single-user mode it says that');
log_is_clean($node, qr/permission denied/);
done_testing();
