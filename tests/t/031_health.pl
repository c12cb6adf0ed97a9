# mq_health() and mq_horizon: each thing that can be in the way is made, seen, and taken away again.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $db = 'postgres';
my $ill = q{SELECT string_agg("check", ', ' ORDER BY "check") FROM mq_health() WHERE NOT ok};
sub detail { my ($check) = @_; $check =~ s/'/''/g; return qq{SELECT detail FROM mq_health() WHERE "check" = '$check' AND NOT ok} }

# --- where no worker can be --------------------------------------------------------------------

my $node = mq_node('health', shared_preload_libraries => '', restart_after_crash => 'on', wal_level => 'logical');
my $handle = 'CREATE FUNCTION handle(message mq_message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
	IF message.name = \'fail\' THEN RAISE \'failed\'; END IF; END $$';
$node->safe_psql($db, "CREATE EXTENSION mq; $handle");
holds($node, $db, $ill, 'handlers registered, launcher runs, library preloaded', 'the library is not preloaded, and there is no handler');
$node->safe_psql($db, q{SELECT mq_register_handler('c', 'handle(mq_message)')});
holds($node, $db, $ill, 'launcher runs, library preloaded', 'a handler is registered');
holds($node, $db, detail('library preloaded'), 'shared_preload_libraries does not name mq: no workers; CALL mq_run() does their work', 'it says what to do');

sub restart_with { my (%settings) = @_; $node->append_conf('postgresql.conf', "$_ = '$settings{$_}'") for keys %settings; $node->restart }
restart_with(shared_preload_libraries => 'mq', max_worker_processes => 0);
holds($node, $db, $ill, 'launcher runs', 'no process for the launcher');
# The other one is the server's launcher of logical replication.
restart_with(max_worker_processes => 2);
within(10, $node, $db, $ill, 'worker slots', 'a process for the launcher, none for a worker');
holds($node, $db, detail('worker slots'), 'max_worker_processes = 2 are in use: databases and roles take turns, 1 have no worker now; raise it to at least 3 and restart the server', 'which is what it says');
set_and_reload($node, max_worker_processes => 16);
within(10, $node, $db, $ill, 'settings in force, worker slots', 'a setting waits for a restart');
holds($node, $db, detail('settings in force'), 'wait for a restart: max_worker_processes', 'it says which');
$node->restart;
within(10, $node, $db, $ill, '', 'all is well');
within(10, $node, $db, 'SELECT count(*) FROM mq_workers WHERE database = current_database()', 1, 'a worker has come');
holds($node, $db, q{SELECT count(*) > 10, bool_and(detail IS NULL) FROM mq_health()}, 't|t', 'what is well needs no detail');

# Without a launcher for the second until the postmaster starts another.
holds($node, $db, q{
	DO $$
	BEGIN
	  PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'mq launcher';
	  FOR i IN 1 .. 1000 LOOP
	    IF EXISTS (SELECT FROM mq_health() WHERE "check" = 'launcher runs' AND NOT ok) THEN RETURN; END IF;
	    PERFORM pg_sleep(0.005);
	  END LOOP;
	  RAISE 'not seen';
	END $$}, '', 'the launcher is gone');
within(10, $node, $db, $ill, '', 'and back');

# --- settings ------------------------------------------------------------------------------------

set_and_reload($node, 'mq.max_workers' => 0);
within(10, $node, $db, $ill, 'workers allowed', 'mq.max_workers = 0');
within(10, $node, $db, 'SELECT count(*) FROM mq_workers', 0, 'no worker is left');
set_and_reload($node, 'mq.max_workers' => 2);
within(10, $node, $db, $ill, '', 'they may come again');
set_and_reload($node, 'mq.databases' => 'other');
within(10, $node, $db, $ill, 'database served', 'the database is not served');
holds($node, $db, detail('database served'), 'mq.databases = other does not name it: add postgres', 'it says why');
set_and_reload($node, 'mq.databases' => 'postgres other');
within(10, $node, $db, detail('database served'), 'mq.databases = postgres other is no list of names with commas between, so no database is served', 'a list that is none');
set_and_reload($node, 'mq.databases' => '*');
within(10, $node, $db, $ill, '', 'and served again');

# Names as the server's own lists have them.
my $served = q{SELECT ok FROM mq_health() WHERE "check" = 'database served'};
$node->safe_psql($db, q{CREATE DATABASE "MyDb"});
$node->safe_psql('MyDb', q{CREATE EXTENSION mq});
within(30, $node, 'MyDb', $served, 't', 'a name with capital letters');
set_and_reload($node, 'mq.databases' => 'postgres, MyDb');
within(20, $node, 'MyDb', detail('database served'), 'mq.databases = postgres, MyDb does not name it: add "MyDb", with the double quotes: without them names are folded to lower case',
	'is folded to lower case');
set_and_reload($node, 'mq.databases' => 'postgres, "MyDb"');
within(20, $node, 'MyDb', $served, 't', 'unless it is in double quotes');
set_and_reload($node, 'mq.databases' => '*');
my $inside = $node->background_psql('MyDb');
$node->safe_psql($db, q{ALTER DATABASE "MyDb" IS_TEMPLATE true});
within(30, $node, 'MyDb', detail('database served'), 'it is a template: ALTER DATABASE "MyDb" IS_TEMPLATE false lets it be served', 'a template is not served, and it says so');
$node->safe_psql($db, q{ALTER DATABASE "MyDb" IS_TEMPLATE false});
within(30, $node, 'MyDb', $served, 't', 'served again');
$node->safe_psql($db, q{ALTER DATABASE "MyDb" ALLOW_CONNECTIONS false});
my $tries = 0;
until ($inside->query_safe(detail('database served')) ne '' || $tries++ > 300) { Time::HiRes::usleep(100_000) }
is($inside->query_safe(detail('database served')), 'it lets nobody connect: ALTER DATABASE "MyDb" ALLOW_CONNECTIONS true lets it be served', 'one that lets nobody connect says so to who is there');
$inside->quit;
$node->safe_psql($db, q{DROP DATABASE "MyDb"});

# --- channels and handlers ----------------------------------------------------------------------

$node->safe_psql($db, q{
	SELECT mq_pause('c'); SELECT mq_send('c');
	SELECT mq_send('nobody''s', name => n::text) FROM generate_series(1, 3) n;
	SELECT mq_send('later', delay => '1 h')});
within(10, $node, $db, $ill, 'channels handled, channels not paused', 'a channel is paused, another has no handler; what is due later needs none yet');
holds($node, $db, detail('channels handled'), q{due messages, but no handler, in: nobody's; mq_register_handler, or a consumer outside the server, takes them}, 'it says which has none');
holds($node, $db, detail('channels not paused'), 'paused: c; mq_resume lets a channel go on', 'and which is paused');
$node->safe_psql($db, q{SELECT mq_resume('c'), mq_clear('{nobody''s,later}')});
within(10, $node, $db, $ill, '', 'neither any more');

# Consumers outside the server may take their time, but not for ever.
my $due_since = "SELECT mq_send('read_outside'); UPDATE mq_msgs SET attempt_at = now() - interval";
$node->safe_psql($db, "$due_since '30 seconds'");
within(10, $node, $db, $ill, 'channels handled', 'a channel without a handler');
$node->safe_psql($db, q{SELECT FROM mq_poll('{another}', 1)});
within(10, $node, $db, $ill, '', 'which somebody may read who has polled a moment ago');
$node->safe_psql($db, "$due_since '2 minutes'");
within(10, $node, $db, $ill, 'channels handled', 'but for two minutes nobody has');
$node->safe_psql($db, q{SELECT mq_clear('{read_outside}')});
within(10, $node, $db, $ill, '', 'it is empty');

$node->safe_psql($db, q{
	SELECT mq_register_handler('block', 'handle(mq_message)', on_dead => 'block');
	SELECT mq_send('block', name => 'fail', retries => 0, ordered => true)});
within(10, $node, $db, $ill, 'channels not blocked', 'a dead message blocks its channel');
holds($node, $db, detail('channels not blocked'), 'blocked by a dead message: block; mq_redrive sends it again, mq_delete goes on without it', 'it says which');
$node->safe_psql($db, q{DELETE FROM mq_dead; SELECT mq_delete(array_agg(id)) FROM mq_msgs; SELECT mq_unregister_handler('block')});
within(10, $node, $db, $ill, '', 'removed, it blocks no more');

$node->safe_psql($db, q{
	CREATE ROLE alice LOGIN;
	CREATE FUNCTION hers(jsonb) RETURNS void LANGUAGE sql RETURN NULL;
	SELECT mq_register_handler('hers', 'hers(jsonb)', run_as => 'alice')});
within(10, $node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND usename = 'alice'}, 1, 'another role has a worker');
holds($node, $db, $ill, '', 'all is well');
$node->safe_psql($db, 'REVOKE EXECUTE ON FUNCTION hers(jsonb) FROM PUBLIC');
holds($node, $db, $ill, 'handlers may be called', 'it may not execute its function');
$node->safe_psql($db, 'GRANT EXECUTE ON FUNCTION hers(jsonb) TO alice');
holds($node, $db, $ill, '', 'it may again');
$node->safe_psql($db, 'DROP FUNCTION hers(jsonb)');
holds($node, $db, $ill, q{handlers' functions}, 'the function is gone');
holds($node, $db, detail(q{handlers' functions}), 'gone: hers public.hers(pg_catalog.jsonb); create the function, or mq_register_handler another, or the same again if it or its schema was renamed', 'it says which');
$node->safe_psql($db, q{CREATE FUNCTION hers(jsonb) RETURNS void LANGUAGE sql RETURN NULL});
holds($node, $db, $ill, '', 'and back');

SKIP: {
	skip 'newer servers let workers in without LOGIN', 4 if $node->safe_psql($db, 'SHOW server_version_num') >= 170000;
	$node->safe_psql($db, q{
		ALTER ROLE alice NOLOGIN;
		SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND usename = 'alice'});
	within(10, $node, $db, $ill, q{handlers' roles, workers start}, 'the role may not log in, so its workers do not start');
	within(10, $node, $db, q{SELECT detail ~ '^as alice: [0-9]+ times' FROM mq_health() WHERE "check" = 'workers start'}, 't', 'it says whose');
	holds($node, $db, detail(q{handlers' roles}), 'gone, or without LOGIN: hers runs as alice; mq_register_handler with another run_as, or ALTER ROLE ... LOGIN', 'and why');
	$node->safe_psql($db, 'ALTER ROLE alice LOGIN');
	within(15, $node, $db, $ill, '', 'it may log in: its worker comes back');
}
$node->safe_psql($db, 'DROP ROLE alice');
within(10, $node, $db, $ill, q{handlers' roles}, 'the role is gone');
$node->safe_psql($db, q{SELECT mq_unregister_handler('hers')});
within(15, $node, $db, $ill, '', 'and so is its handler');

# --- the horizon -----------------------------------------------------------------------------------

my $holders = q{SELECT kind, name FROM mq_horizon WHERE kind <> 'session' OR pid IN (SELECT pid FROM pg_stat_activity WHERE application_name = 'holder')};
holds($node, $db, $holders, '', 'nothing holds the horizon');
my $session = $node->background_psql($db);
my $pid = $session->query_safe('SELECT pg_backend_pid()');
$session->query_safe(q{SET application_name = 'holder'; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM mq_msgs});
holds($node, $db, qq{
	SELECT kind, pid = $pid, name = current_user, xids >= 0, held_for BETWEEN '0' AND '1 hour', detail FROM mq_horizon WHERE pid = $pid},
	'session|t|t|t|t|client backend, idle in transaction, holder', 'a session with a snapshot holds it');
# Without a snapshot too, as soon as it has written.
my $writer = $node->background_psql($db);
$writer->query_safe(q{CREATE TABLE t (); BEGIN; INSERT INTO t DEFAULT VALUES; SET application_name = 'writer'});
holds($node, $db, q{SELECT count(*) FROM mq_horizon WHERE detail LIKE '%writer'}, 1, 'so does one that has written');
$writer->query_safe('ROLLBACK');
holds($node, $db, q{SELECT count(*) FROM mq_horizon WHERE detail LIKE '%writer'}, 0, 'until it is over');
$writer->quit;
# Before the prepared transaction, for whose end it would wait. pgoutput comes with every server.
$node->safe_psql($db, q{SELECT pg_create_logical_replication_slot('lagging', 'pgoutput')});
holds($node, $db, q{SELECT kind, name, pid, xids >= 0, held_for FROM mq_horizon WHERE kind = 'replication slot'}, 'replication slot|lagging||t|', 'so does a replication slot');
$node->safe_psql($db, q{SELECT mq_send('c'); BEGIN; SELECT mq_send('later', delay => '1 h'); PREPARE TRANSACTION 'forgotten'});
holds($node, $db, q{SELECT kind, name, pid, xids > 0, held_for BETWEEN '0' AND '1 hour', detail = 'owner ' || current_user FROM mq_horizon WHERE kind = 'prepared transaction'},
	'prepared transaction|forgotten||t|t|t', 'so does a prepared transaction');
holds($node, $db, $ill, '', 'none of them for long');
# What is in another database holds nothing here.
$node->safe_psql($db, 'CREATE DATABASE other');
my $other = $node->background_psql('other');
$other->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
holds($node, $db, q{SELECT count(*) FROM mq_horizon WHERE kind = 'session'}, 1, 'a session in another database does not');
$other->quit;
# A million transactions later.
$node->safe_psql($db, q{
	DO $$
	BEGIN
	  FOR i IN 1 .. 1000100 LOOP
	    BEGIN
	      INSERT INTO t DEFAULT VALUES;
	    EXCEPTION WHEN division_by_zero THEN NULL;
	    END;
	  END LOOP;
	END $$}, timeout => 180);
holds($node, $db, $ill, 'horizon', 'a million transactions later it is held for too long');
holds($node, $db, q{SELECT string_agg(kind, ', ' ORDER BY kind) FROM mq_horizon WHERE xids > 1000000}, 'prepared transaction, replication slot, session', 'by each of the three');
holds($node, $db, q{
	SELECT detail ~ 'session ' AND detail ~ 'prepared transaction forgotten' AND detail ~ 'replication slot lagging' FROM mq_health()
	 WHERE "check" = 'horizon'}, 't', 'mq_health() names them');
holds($node, $db, q{SELECT bool_and(xids >= next) FROM (SELECT xids, lead(xids) OVER () AS next FROM mq_horizon) h}, 't', 'mq_horizon has the oldest first');
# One after the other goes.
$session->query_safe('COMMIT');
$session->quit;
holds($node, $db, $ill, 'horizon', 'the session is over');
$node->safe_psql($db, q{ROLLBACK PREPARED 'forgotten'});
holds($node, $db, $ill, 'horizon', 'the prepared transaction is');
$node->safe_psql($db, q{SELECT pg_drop_replication_slot('lagging')});
holds($node, $db, $ill, '', 'and the slot: all is well');
holds($node, $db, $holders, '', 'nothing holds the horizon any more');

$node->stop;
log_is_clean($node, qr/role "alice" is not permitted to log in/, qr/FATAL:  role with OID/);
done_testing();
