# Databases and extensions come and go under the workers: none of it waits for a worker that rests, and each
# database is served from the commit that makes it one. What is dumped is restored, and handled there.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = mq_node('databases');
my $workers = "SELECT count(*) FROM ($MqTest::WORKERS) w";
sub workers_in { my ($db) = @_; return "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND datname = '$db'" }

# The statement, and that it took less than so many seconds.
sub quickly {
	my ($seconds, $db, $sql, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $start = time;
	my ($rc, $out, $err) = $node->psql($db, $sql);
	my $took = time - $start;
	ok($rc == 0 && $took < $seconds, $what) or diag("status $rc after $took s: $err");
}

sub served {
	my ($db, $what, $seconds) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->safe_psql($db, qq{TRUNCATE handled; SELECT mq_send('c', name => 'test')});
	within($seconds // 5, $node, $db, q{SELECT count(*) FROM handled WHERE name = 'test'}, 1, $what);
}

# --- DROP EXTENSION -------------------------------------------------------------------------

$node->safe_psql('postgres', 'CREATE EXTENSION mq');
handled_table($node, 'postgres');
$node->safe_psql('postgres', q{SELECT mq_register_handler('c', 'handle(mq_message)')});
served('postgres', 'the first database is served');
$node->safe_psql('postgres', q{DROP FUNCTION handle, handle_slowly});
quickly(30, 'postgres', 'DROP EXTENSION mq', 'DROP EXTENSION does not wait for a worker');
within(5, $node, 'postgres', $workers, 0, 'which is gone soon after');
$node->safe_psql('postgres', 'DROP TABLE handled');

my $again = q{
	CREATE EXTENSION mq;
	CREATE TABLE handled (name text);
	CREATE FUNCTION handle(mq_message) RETURNS void LANGUAGE sql AS 'INSERT INTO handled VALUES ($1.name)';
	SELECT mq_register_handler('c', 'handle(mq_message)');
	SELECT mq_send('c', name => 'again');};
my $session = $node->background_psql('postgres');
for my $round (1 .. 5) {
	$session->query_safe($again);
	within(5, $node, 'postgres', 'SELECT count(*) FROM handled', 1, "created again in the same session, it works (round $round)");
	$session->query_safe('DROP FUNCTION handle; DROP EXTENSION mq; DROP TABLE handled');
}
$session->quit;
$node->safe_psql('postgres', $again);
$node->safe_psql('postgres', q{BEGIN; DROP FUNCTION handle; DROP EXTENSION mq; ROLLBACK});
served('postgres', 'a DROP EXTENSION that was rolled back changes nothing');
$node->safe_psql('postgres', 'BEGIN;' . ($again =~ s/CREATE/DROP TABLE handled; DROP FUNCTION handle; DROP EXTENSION mq; CREATE/r) . 'COMMIT');
within(5, $node, 'postgres', 'SELECT count(*) FROM handled', 1, 'dropped and created in one transaction, it works');

$node->safe_psql('postgres', q{
	CREATE FUNCTION handle_for_long(mq_message) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(1)';
	SELECT mq_register_handler('long', 'handle_for_long(mq_message)');
	SELECT mq_send_many('long', array_fill('{}'::jsonb, ARRAY[200]))});
within(5, $node, 'postgres', q{SELECT count(*) >= 1 FROM pg_stat_activity WHERE backend_type = 'mq worker' AND state = 'active'}, 't', 'a worker is busy');
quickly(30, 'postgres', 'DROP FUNCTION handle, handle_for_long; DROP EXTENSION mq', 'DROP EXTENSION waits for one handler at most');
within(5, $node, 'postgres', $workers, 0, 'and the workers are gone');
$node->safe_psql('postgres', 'DROP TABLE handled');

# --- schemas ----------------------------------------------------------------------------------

$node->safe_psql('postgres', q{CREATE SCHEMA "the queue"; CREATE EXTENSION mq SCHEMA "the queue"});
$node->safe_psql('postgres', q{
	CREATE TABLE handled (name text);
	CREATE FUNCTION handle("the queue".mq_message) RETURNS void LANGUAGE sql AS 'INSERT INTO public.handled VALUES ($1.name)';
	SELECT "the queue".mq_register_handler('c', 'handle("the queue".mq_message)');
	SELECT "the queue".mq_send('c', name => 'elsewhere')});
within(5, $node, 'postgres', 'SELECT name FROM handled', 'elsewhere', 'it works in a schema that is on nobody\'s search_path');
$node->safe_psql('postgres', 'DROP SCHEMA "the queue" CASCADE; DROP TABLE handled');

# --- databases ----------------------------------------------------------------------------------

$node->safe_psql('postgres', 'CREATE DATABASE one');
$node->safe_psql('one', 'CREATE EXTENSION mq');
handled_table($node, 'one');
$node->safe_psql('one', q{SELECT mq_register_handler('c', 'handle(mq_message)')});
served('one', 'a new database is served from its CREATE EXTENSION on');
within(5, $node, 'postgres', workers_in('one'), 1, 'a worker rests in it');

$node->safe_psql('one', q{SELECT mq_send('c', name => 'copied', delay => '3 s')});
quickly(30, 'postgres', 'CREATE DATABASE two TEMPLATE one', 'CREATE DATABASE ... TEMPLATE does not wait for the worker');
within(15, $node, 'one', q{SELECT count(*) FROM handled WHERE name = 'copied'}, 1, 'messages that were copied are handled in the original');
holds($node, 'two', q{SELECT count(*) FROM handled WHERE name = 'copied'}, 0, 'and not in the copy');
$node->safe_psql('two', 'SELECT mq_enable()');
within(15, $node, 'two', q{SELECT count(*) FROM handled WHERE name = 'copied'}, 1, 'until it is enabled');
served('one', 'which is served as before');
served('two', 'and so is the copy');

quickly(30, 'postgres', 'ALTER DATABASE two RENAME TO three', 'ALTER DATABASE ... RENAME does not wait for the worker');
# The launcher learns of what is not announced to it when it looks around.
served('three', 'the renamed database is served', 20);
quickly(30, 'postgres', 'DROP DATABASE three', 'DROP DATABASE does not wait for the worker');
quickly(30, 'postgres', 'CREATE DATABASE three TEMPLATE one', 'a database of the same name comes again');
within(20, $node, 'three', $workers, 1, 'and its worker');
quickly(30, 'postgres', 'DROP DATABASE three WITH (FORCE)', 'DROP DATABASE ... FORCE');
served('one', 'the other is served all the while');

# Not the extension, but objects of its names.
$node->safe_psql('postgres', 'CREATE DATABASE alike');
$node->safe_psql('alike', q{CREATE TABLE mq_msgs (LIKE pg_class); CREATE TABLE mq_handlers (run_as text); INSERT INTO mq_handlers VALUES (current_user)});
within(10, $node, 'postgres', workers_in('alike'), 0, 'a database without the extension has no worker');

# --- dump and restore -----------------------------------------------------------------------------

$node->safe_psql('one', q{
	TRUNCATE handled;
	CREATE FUNCTION fail(mq_message) RETURNS void LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END';
	SELECT mq_register_handler('dying', 'fail(mq_message)', timeout => '7 s', max_workers => 3);
	SELECT mq_register_handler('blocked', 'fail(mq_message)', on_dead => 'block');
	SELECT mq_send('dying', '{"x": [1, null]}', name => 'dead', payload_bytes => '\x00ff', retries => 0);
	SELECT mq_pause('resting');
	SELECT mq_register_handler('resting', 'handle(mq_message)');
	SELECT mq_send_many('resting', ARRAY['1', '2', '3']::jsonb[], ordered => true);
	SELECT mq_send('unknown', '"no handler"', delay => '1 h', retries => 7);});
within(5, $node, 'one', 'SELECT count(*) FROM mq_dead', 1, 'a dead letter to be dumped');
my $dump = $node->basedir . '/one.sql';
$node->command_ok([ 'pg_dump', '--file', $dump, $node->connstr('one') ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $node->connstr('restored') ], 'is restored');
for my $table ('mq_msgs', 'mq_payloads', 'mq_dead', 'mq_failures', 'mq_handlers', 'mq_paused') {
	my $rows = "SELECT string_agg(t::text, E'\\n' ORDER BY t::text) FROM $table t";
	is($node->safe_psql('restored', $rows), $node->safe_psql('one', $rows), "$table arrives as it was");
}
# Rows that are copied into the tables wake nobody; mq_enable() does.
$node->safe_psql('restored', 'SELECT mq_enable()');
served('restored', 'the restored database is served');
$node->safe_psql('restored', q{
	TRUNCATE handled;
	SELECT mq_send('resting', '4', ordered => true);
	SELECT mq_resume('resting')});
within(5, $node, 'restored', q{SELECT string_agg(payload::text, ' ' ORDER BY n) FROM handled}, '1 2 3 4', 'in order, and what is sent later is behind');
$node->safe_psql('restored', q{SELECT mq_register_handler('dying', 'handle(mq_message)'); SELECT mq_redrive()});
within(5, $node, 'restored', q{SELECT payload FROM handled WHERE name = 'dead'}, '{"x": [1, null]}', 'the dead letter can be redriven');

$node->stop;
log_is_clean($node);
done_testing();
