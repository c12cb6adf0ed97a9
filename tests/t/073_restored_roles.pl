# Handlers in a dump: a role is found by its name where the dump is restored, never by an oid that somebody else has there.
# A handler whose role is missing is restored with the others, named, and called once its role is there and mq_enable()
# has taken it over; one whose role was dropped before the dump is nobody's.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $source = mq_node('source');
my $target = mq_node('target', 'mq.poll_interval' => '100ms', 'mq.max_workers' => 4);
my @channels = qw(own kept missing dropped);
my $all = join ',', @channels;

$source->safe_psql($db, 'CREATE EXTENSION mq');
handled_table($source, $db);
$source->safe_psql($db, q{
	CREATE ROLE before LOGIN;
	CREATE ROLE missing LOGIN;
	CREATE ROLE dropped LOGIN;
	SELECT mq_register_handler('own', 'handle(mq_message)'), mq_register_handler('kept', 'handle(mq_message)', run_as => 'before'),
	       mq_register_handler('missing', 'handle(mq_message)', run_as => 'missing'), mq_register_handler('dropped', 'handle(mq_message)', run_as => 'dropped')});
my %oid = map { $_ => $source->safe_psql($db, "SELECT '$_'::regrole::oid") } qw(missing dropped);
$source->safe_psql($db, 'ALTER ROLE before RENAME TO kept; CREATE ROLE before LOGIN');
within(20, $source, $db, q{SELECT run_as FROM mq_handlers WHERE channel_name = 'kept'}, 'kept', 'the name of a renamed role is there to be dumped');
$source->safe_psql($db, q{SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'dropped'; DROP ROLE dropped});
within(20, $source, $db, q{SELECT run_as, run_as_oid FROM mq_handlers WHERE channel_name = 'dropped'}, 'dropped|0', 'and that a role was dropped');
$source->safe_psql($db, "SELECT mq_pause(c), mq_send(c, to_jsonb(c)) FROM unnest('{$all}'::text[]) AS c");
my $dump = $source->basedir . '/dump.sql';
$source->command_ok([ 'pg_dump', '--no-acl', '--file', $dump, $source->connstr($db) ], 'pg_dump');

# Superusers who happen to have those oids, and roles with the names of the renamed and the dropped one.
$target->safe_psql($db, qq{
	SET allow_system_table_mods = on;
	INSERT INTO pg_authid (oid, rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls, rolconnlimit)
	  VALUES ($oid{missing}, 'boss_1', true, true, true, true, true, true, true, -1), ($oid{dropped}, 'boss_2', true, true, true, true, true, true, true, -1);
	CREATE ROLE kept LOGIN;
	CREATE ROLE before LOGIN;
	CREATE ROLE dropped LOGIN});
$target->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $target->connstr($db) ], 'it is restored where a role is missing');
holds($target, $db, q{SELECT string_agg(channel_name || ' ' || run_as, ', ' ORDER BY channel_name) FROM mq_handlers},
	'dropped dropped, kept kept, missing missing, own postgres', 'with all handlers');
my $roles = q{SELECT detail FROM mq_health() WHERE "check" = $$handlers' roles$$ AND NOT ok};
my $gone = q{gone, or without LOGIN: dropped runs as dropped, missing runs as missing (comes from another database: CREATE ROLE, then SELECT mq_enable()); mq_register_handler with another run_as, or ALTER ROLE ... LOGIN};
holds($target, $db, $roles, $gone, 'mq_health() names those whose role is missing before mq_enable()');
my $grants = join ';', map { "GRANT INSERT ON handled TO $_; GRANT USAGE ON handled_n_seq TO $_" } qw(kept before dropped);
$target->safe_psql($db, "$grants; SELECT mq_resume(c) FROM unnest('{$all}'::text[]) AS c");
my ($rc, $out, $err) = $target->psql($db, 'SELECT mq_enable()');
like($err, qr/^psql:\S+ WARNING:  handlers and schedules are left alone, since the roles that they run as do not exist: missing\nHINT:  Create the roles and call mq_enable\(\) again/m, 'mq_enable() names the missing role');
is($rc, 0, 'and enables the others');
my $handled = q{SELECT string_agg(payload #>> '{}' || ' as ' || role, ', ' ORDER BY payload::text) FROM handled};
within(20, $target, $db, $handled, 'kept as kept, own as postgres', 'whose roles are those of their names');
holds($target, $db, $roles, $gone, 'mq_health() names the rest');

$target->safe_psql($db, 'CREATE ROLE missing LOGIN; GRANT INSERT ON handled TO missing; GRANT USAGE ON handled_n_seq TO missing');
within(20, $target, $db, q{SELECT detail FROM mq_health() WHERE "check" = 'handlers enabled' AND NOT ok},
	'registered in another database, so not called here: missing public.handle(public.mq_message); SELECT mq_enable() takes them over', 'a role that is made later');
$target->safe_psql($db, 'SELECT mq_enable()');
within(20, $target, $db, $handled, 'kept as kept, missing as missing, own as postgres', 'is found by mq_enable()');
holds($target, $db, q{SELECT string_agg(channel_name, ' ') FROM mq_msgs}, 'dropped', 'what the dropped role handled is handled by nobody');
holds($target, $db, 'SELECT (SELECT count(*) FROM mq_failures) + (SELECT count(*) FROM mq_dead)', 0, 'and nothing has failed');
$target->safe_psql($db, q{SELECT mq_register_handler('dropped', 'handle(mq_message)', run_as => 'dropped')});
within(20, $target, $db, q{SELECT role FROM handled WHERE payload = '"dropped"'}, 'dropped', 'until it is registered again');
holds($target, $db, q{SELECT count(*) FROM mq_health() WHERE "check" ~ '^handlers' AND NOT ok}, 0, 'mq_health() is content');

# In a copy of the database the roles are those of the same server.
$target->safe_psql($db, 'CREATE DATABASE copy TEMPLATE postgres');
$target->safe_psql('copy', q{SELECT mq_enable(); TRUNCATE handled; SELECT mq_send('missing', '1')});
within(20, $target, 'copy', 'SELECT role FROM handled', 'missing', 'a copy knows the roles');

$source->stop;
$target->stop;
log_is_clean($source, qr/mq worker FATAL:  role with OID \d+ does not exist/);    # it was dropped while its worker started
log_is_clean($target, qr/WARNING:  handlers and schedules are left alone, since/);
done_testing();
