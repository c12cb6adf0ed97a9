# Each reason why nothing moves has a row in mq_health(), and mq_why() says the same of a message: errors of the workers' own
# statements, locked indexes, sessions of leased handlers that all sit in calls, databases that are not served, prepared
# transactions. Each is made so, seen, and taken away again.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('reasons', 'mq.max_workers' => 2, 'mq.leased_sessions' => 1, wal_level => 'logical', lock_timeout => 0);
my $db = 'postgres';
my $ill = q{SELECT string_agg("check", ', ' ORDER BY "check") FROM mq_health() WHERE NOT ok};
sub sql { return $node->safe_psql($db, shift) }
sub detail { my ($check) = @_; return qq{SELECT ok, detail FROM mq_health() WHERE "check" = '$check'} }
sub why { my ($id) = @_; return qq{SELECT mq_why('$id')} }

sql('CREATE EXTENSION mq');
handled_table($node, $db);
sql(q{SELECT mq_register_handler('c', 'handle(mq_message)'), mq_register_handler('l', 'handle(mq_message)', mode => 'leased')});
sql(q{SELECT mq_send(c, name => 'first') FROM unnest('{c,l}'::text[]) c});
within(30, $node, $db, q{SELECT count(*) FROM handled WHERE name = 'first'}, 2, 'messages are handled');
within(10, $node, $db, $ill, '', 'all is well');

# --- the workers' own statements fail --------------------------------------------------------------

my $tag = 0;
sub refused {
	my ($what, $make, $undo, $expected, $channel) = @_;
	$tag++;
	sql($make);
	my $id = sql("SELECT mq_send('$channel', name => 't$tag')");
	within(30, $node, $db, detail('workers succeed'), $expected, "$what: mq_health() says what fails, and where");
	within(30, $node, $db, why($id), qr/^(is due, but what workers do for it fails since .*, the last time with SQLSTATE \w{5}: SELECT \* FROM mq_health\(\)|is being handled in session|is put off until)/,
		"$what: mq_why() likewise");
	holds($node, $db, 'SELECT count(*) FROM mq_failures', 0, "$what: nothing is charged");
	sql($undo);
	within(60, $node, $db, "SELECT count(*) FROM handled WHERE name = 't$tag'", 1, "$what: handled when it is over");
	within(60, $node, $db, $ill, '', "$what: and mq_health() is content");
}
sql(q{CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING ERRCODE = '53100', MESSAGE = 'no space, says the test'; END $$});
my $mend = qr/; messages wait, no attempt is charged, and it is tried again every few seconds; mend what the error names: a trigger, /;
refused('a trigger that refuses', 'CREATE TRIGGER refuse BEFORE DELETE OR UPDATE ON mq_msgs FOR EACH STATEMENT EXECUTE FUNCTION refuse()', 'DROP TRIGGER refuse ON mq_msgs',
	qr/^f\|.*worker \d+ as postgres cannot handle messages since [^;]* \(\d+ times, the last with SQLSTATE 53100: no space, says the test\).*$mend/, 'c');
refused('a publication that needs other columns', q{CREATE PUBLICATION p FOR TABLE mq_msgs WHERE (channel_name = 'x')}, 'DROP PUBLICATION p',
	qr/^f\|.*worker \d+ as postgres cannot handle messages since .*SQLSTATE 42P10: cannot \w+ (from )?table "mq_msgs": Column used in the publication WHERE/, 'c');
refused('the same of leased handlers', q{CREATE PUBLICATION p FOR TABLE mq_msgs WHERE (channel_name = 'x')}, 'DROP PUBLICATION p',
	qr/^f\|.*worker \d+ as postgres cannot look after leased handlers since .*SQLSTATE 42P10/, 'l');
refused('removals of leased handlers fail', 'CREATE TRIGGER refuse BEFORE DELETE ON mq_msgs FOR EACH STATEMENT EXECUTE FUNCTION refuse()', 'DROP TRIGGER refuse ON mq_msgs',
	qr/^f\|.*worker \d+ as postgres cannot look after leased handlers since .*SQLSTATE 53100: no space, says the test/, 'l');
refused('a claim that fails', 'ALTER INDEX mq_msgs_due RENAME TO elsewhere', 'ALTER INDEX elsewhere RENAME TO mq_msgs_due',
	qr/^f\|.*worker \d+ as postgres cannot handle messages since .*SQLSTATE 42P01: relation ".*mq_msgs_due" does not exist/, 'c');

# What is done beside that.
sql(q{CREATE TRIGGER refuse BEFORE DELETE ON mq_dead FOR EACH STATEMENT EXECUTE FUNCTION refuse()});
set_and_reload($node, 'mq.poll_interval' => '200ms', 'mq.dead_retention' => 0);
within(30, $node, $db, detail('workers succeed'), qr/^f\|.*cannot look for what has expired, .*SQLSTATE 53100/, 'the sweep fails, and mq_health() says so');
sql('DROP TRIGGER refuse ON mq_dead');
within(60, $node, $db, $ill, '', 'until it works again');
set_and_reload($node, 'mq.poll_interval' => '1h', 'mq.dead_retention' => '1d');

# --- workers end with an error, or do not come ------------------------------------------------------

my $source = $node->basedir . '/fatal.c';
append_to_file($source, q{
#include "postgres.h"
#include "fmgr.h"
PG_MODULE_MAGIC;
PG_FUNCTION_INFO_V1(fatal);
Datum fatal(PG_FUNCTION_ARGS) { ereport(FATAL, (errcode(ERRCODE_DISK_FULL), errmsg("cannot go on, says the test"))); PG_RETURN_VOID(); }
});
my $module = $node->basedir . '/fatal.so';
system_or_bail('cc', '-shared', '-fPIC', '-w', '-I' . $node->config_data('--includedir-server'), '-o', $module, $source);
sql(qq{CREATE FUNCTION fatal(jsonb) RETURNS void LANGUAGE c AS '$module', 'fatal'; SELECT mq_register_handler('fatal', 'fatal(jsonb)')});
sql(q{SELECT mq_send('fatal', retries => 100, retry_backoff => '1 ms')});
within(30, $node, $db, detail('workers succeed'), qr/^f\|.*each worker as postgres ends with an error, and another is started, since [^;]* \(\d+ times, the last with SQLSTATE 53100: cannot go on, says the test\)/,
	'workers that end again and again are named, with what ends them');
sql(q{SELECT mq_clear('{fatal}'); SELECT mq_unregister_handler('fatal')});

# New sessions cannot come either, so one looks that is there already.
my $holder = $node->background_psql($db);  # each time another: its patience is that of the whole session
sub seen_by_holder {
	my ($query, $what) = @_;
	for (1 .. 300) {
		return pass($what) if $holder->query_safe($query) eq 't';
		$holder->query_safe('SELECT pg_sleep(0.1)');
	}
	fail($what);
	diag($holder->query_safe('SELECT "check", detail FROM mq_health() WHERE NOT ok'));
}
my $workers = q{SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity WHERE backend_type = 'mq worker'};
$holder->query_safe(q{UPDATE pg_database SET datctype = 'no_such' WHERE datname = current_database()});
$holder->query_safe($workers);
seen_by_holder(q{SELECT detail ~ '^as postgres: \d+ times in a row a worker ended before it could serve; database locale is incompatible with operating system; mend that$' FROM mq_health() WHERE "check" = 'workers start' AND NOT ok},
	'what ends a worker before it can serve is told');
$holder->query_safe(q{UPDATE pg_database SET datctype = 'C' WHERE datname = current_database()});
seen_by_holder(q{SELECT ok FROM mq_health() WHERE "check" = 'workers start'}, 'until it can');
$holder->quit;
within(90, $node, $db, $ill, '', 'all is well again');

# --- the launcher fails ----------------------------------------------------------------------------

set_and_reload($node, lock_timeout => '200ms');
$holder = $node->background_psql($db);
$holder->query_safe('SET lock_timeout = 0; BEGIN; LOCK pg_database IN ACCESS EXCLUSIVE MODE');
seen_by_holder(q{SELECT detail ~ 'the launcher cannot start workers since .*SQLSTATE 55P03: canceling statement due to lock timeout' FROM mq_health() WHERE "check" = 'workers succeed'}, 'a launcher that fails is named');
$holder->query_safe('ROLLBACK');
$holder->quit;
set_and_reload($node, lock_timeout => 0);
within(60, $node, $db, $ill, '', 'and works again');

# --- locked indexes and views ------------------------------------------------------------------------

my $scheduled = sql(q{SELECT mq_send('c', delay => '1 h')});
sub limited { return "SET statement_timeout = '5s'; " . shift }
for my $pair ([ 'REINDEX INDEX mq_msgs_due', 'mq_msgs_due, an index of mq_msgs,' ], [ 'REINDEX TABLE mq_handlers', 'mq_handlers_\w+, an index of mq_handlers,' ],
	[ 'DROP INDEX mq_msgs_exhausted', 'mq_msgs' ])
{
	my ($statement, $named) = @$pair;
	my $lock = $node->background_psql($db);
	$lock->query_safe("SET application_name = 'the holder'; BEGIN; $statement");
	within(10, $node, $db, limited($ill), 'tables readable', "$statement: mq_health() does not wait");
	within(10, $node, $db, limited(detail('tables readable')), qr/^f\|.*$named is locked by process \d+ \(the holder, idle in transaction\) since [^;]*; messages wait for that/, "$statement: it names what is locked");
	within(10, $node, $db, limited(why($scheduled)), qr/^is where nobody can see it, and waits if it is due: .*$named is locked/, "$statement: mq_why() does not wait either");
	$lock->query_safe('ROLLBACK');
	$lock->quit;
}
my $lock = $node->background_psql($db);
$lock->query_safe('BEGIN; ALTER VIEW mq_stats SET (security_barrier = true); ALTER VIEW mq_horizon SET (security_barrier = true); ALTER VIEW mq_workers SET (security_barrier = true); ALTER VIEW mq_limits SET (security_barrier = true); ALTER VIEW mq_schedules SET (security_barrier = true); ALTER VIEW mq_subscriptions SET (security_barrier = true)');
within(10, $node, $db, limited($ill), '', 'locked views hold up no message, and mq_health() does not read them');
$lock->query_safe('ROLLBACK');
$lock->quit;

# --- sessions of leased handlers ---------------------------------------------------------------------

my $gate = $node->background_psql($db);
$gate->query_safe('SELECT pg_advisory_lock(1)');
sql(q{CREATE FUNCTION pass(mq_message) RETURNS void LANGUAGE sql AS $$ SELECT pg_advisory_xact_lock(1) $$;
      SELECT mq_register_handler('gate', 'pass(mq_message)', mode => 'leased'), mq_register_handler('one', 'pass(mq_message)', mode => 'leased', max_workers => 1)});
sql(q{SELECT mq_send('one')});
within(30, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'one' AND lease > 0}, 1, 'a leased call runs');
my $limited = sql(q{SELECT mq_send('one')});
within(10, $node, $db, why($limited), qr/^is due, but as many calls for channel "one" run as max_workers => 1 of its handlers allows, the longest since \S+ \S+$/, 'mq_why() names the limit of a channel');
within(10, $node, $db, detail('calls limited'), qr/^t\|messages wait since as many calls run as max_workers of their handlers, or max_running of mq_limit, allows, in: one \(max_workers 1, the longest since /, 'and mq_health() mentions it');
sql(q{SELECT mq_send('gate') FROM generate_series(1, 10)});
within(30, $node, $db, detail('leased sessions free'), qr/^f\|messages are due, and each session that workers may open for leased handlers sits in a call: as postgres \d+ calls, the longest since [^;]*; raise mq\.leased_sessions = 1 or mq\.max_workers = 2, or /,
	'mq_health() says that all sessions sit in calls');
my $waits = sql(q{SELECT mq_send('gate')});
within(10, $node, $db, why($waits), qr/^is due, but all \d+ sessions for leased handlers sit in calls, the longest since \S+ \S+: raise mq\.leased_sessions or mq\.max_workers$/, 'and mq_why() of one that waits');
$gate->query_safe('SELECT pg_advisory_unlock_all()');
$gate->quit;
within(60, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE channel_name IN ('gate', 'one')}, 0, 'all are handled');
within(10, $node, $db, detail('leased sessions free'), 't|', 'mq_health() is content');
within(10, $node, $db, detail('calls limited'), 't|', 'with both');

# --- prepared transactions ---------------------------------------------------------------------------

my $ends = qr/prepared transaction 'it''s held' \(COMMIT PREPARED 'it''s held' or ROLLBACK PREPARED 'it''s held' ends it\)/;
sql(q{SELECT mq_pause('c')});
my $held = sql(q{SELECT mq_send('c', name => 'held')});
sql(q{BEGIN; SELECT FROM mq_msgs WHERE attempt_at <= now() FOR UPDATE; PREPARE TRANSACTION 'it''s held'; SELECT mq_resume('c')});
within(20, $node, $db, detail('messages not locked'), qr/^f\|due messages wait for the end of a transaction that has locked their rows: 1 of c by $ends; the others/, 'a prepared transaction that holds rows is named, and how to end it');
sql(q{ROLLBACK PREPARED 'it''s held'});
within(60, $node, $db, q{SELECT count(*) FROM handled WHERE name = 'held'}, 1, 'then they are handled');
sql(q{BEGIN; LOCK mq_dead IN ACCESS EXCLUSIVE MODE; PREPARE TRANSACTION 'it''s held'});
within(10, $node, $db, detail('tables readable'), qr/^f\|mq_dead is locked by $ends; messages wait for that/, 'so is one that holds a table');
within(10, $node, $db, why($scheduled), qr/^is where nobody can see it, .*mq_dead is locked by $ends/, 'by mq_why() as well');
sql(q{ROLLBACK PREPARED 'it''s held'});
sql(q{SELECT mq_pause('c'); SELECT mq_send('c', name => 'waits'); BEGIN; LOCK mq_payloads IN SHARE MODE; PREPARE TRANSACTION 'it''s held'; SELECT mq_resume('c')});
within(20, $node, $db, detail('workers do not wait for locks'), qr/^f\|.*for RowExclusiveLock on mq_msgs, behind $ends/, 'and one that a worker waits for');
sql(q{COMMIT PREPARED 'it''s held'});
within(20, $node, $db, q{SELECT count(*) FROM handled WHERE name = 'waits'}, 1, 'which then goes on');

# What one committed wakes the workers, whoever prepared it and whatever it did.
sub prepared { my ($statements) = @_; return sql("BEGIN; $statements; PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'") }
sql(q{SELECT mq_pause('c'); SELECT mq_send('c', name => 'resumed'), mq_send('new', name => 'registered')});
prepared(q{SELECT mq_resume('c')});
within(20, $node, $db, q{SELECT count(*) FROM handled WHERE name = 'resumed'}, 1, 'a channel resumed by a prepared transaction goes on when that is committed');
prepared(q{SELECT mq_register_handler('new', 'handle(mq_message)')});
within(20, $node, $db, q{SELECT count(*) FROM handled WHERE name = 'registered'}, 1, 'a handler registered by one gets what is there');
$node->safe_psql($db, 'CREATE DATABASE fresh');
$node->safe_psql('fresh', q{BEGIN; CREATE EXTENSION mq;
	CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE sql RETURN NULL;
	SELECT mq_register_handler('c', 'handle(mq_message)'); SELECT mq_send('c'); PREPARE TRANSACTION 'p'});
$node->safe_psql('fresh', q{COMMIT PREPARED 'p'});
within(30, $node, 'fresh', 'SELECT count(*) FROM mq_msgs', 0, 'an extension created by one is served');
within(20, $node, $db, $ill, '', 'all is well at the end');

$node->stop;
done_testing();
