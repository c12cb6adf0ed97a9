# Statements that want a database for themselves: workers make room for those that the server accepts, and are not
# disturbed by those that it refuses.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = mq_node('room', 'mq.databases' => 'prod, owned, free, probe, moved', max_prepared_transactions => 5);
my $space = $node->basedir . '/space';
mkdir $space;
$node->safe_psql('postgres', qq{
	CREATE ROLE nobody LOGIN;
	CREATE ROLE creator LOGIN CREATEDB;
	CREATE ROLE owner LOGIN;
	CREATE TABLESPACE space LOCATION '$space';
	CREATE DATABASE prod});

sub workers_in { my ($db) = @_; return "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND datname = '$db'" }
sub equip {
	my ($db) = @_;
	$node->safe_psql($db, q{CREATE EXTENSION mq});
	handled_table($node, $db);
	$node->safe_psql($db, q{
		SELECT mq_register_handler('c', 'handle(mq_message)');
		SELECT mq_register_handler('long', 'handle_slowly(mq_message)', mode => 'leased')});
	within(10, $node, 'postgres', workers_in($db), 1, "a worker rests in $db");
}
sub as_role { my ($role, $sql) = @_; my ($rc, $out, $err) = $node->psql('postgres', $sql, extra_params => [ '-U', $role ]); return $rc == 0 ? 'done' : $err }
sub present { return $node->safe_psql('postgres', q{
	SELECT string_agg(concat_ws(' ', pid, backend_type), ', ' ORDER BY pid) FROM pg_stat_activity
	 WHERE datname = 'prod' AND (backend_type = 'mq worker' OR application_name = 'mq handler')}) }

# --- refused ------------------------------------------------------------------------------------

equip('prod');
# It lasts until the gate is open, however long the statements take.
$node->safe_psql('prod', q{
	CREATE TABLE gate ();
	CREATE FUNCTION wait_for_gate(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  WHILE NOT EXISTS (SELECT FROM gate) LOOP PERFORM pg_sleep(0.1); END LOOP;
	  PERFORM handle(m);
	END $$;
	SELECT mq_register_handler('gated', 'wait_for_gate(mq_message)', mode => 'leased');
	SELECT mq_send('gated', '{}', name => 'long', retries => 0)});
within(10, $node, 'prod', q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mq handler' AND state = 'active'}, 1, 'a leased call runs');
my $before = present();
for my $round (1 .. 5) {
	like(as_role('nobody', $_), qr/ERROR: .*(must be owner|permission denied)/s, "refused ($round): $_")
	  for 'DROP DATABASE prod', 'DROP DATABASE prod WITH (FORCE)', 'ALTER DATABASE prod RENAME TO gone', 'CREATE DATABASE copy TEMPLATE prod', 'ALTER DATABASE prod SET TABLESPACE space';
	like(as_role('creator', $_), qr/ERROR: .*(must be owner|permission denied)/s, "refused though the role has CREATEDB ($round): $_")
	  for 'ALTER DATABASE prod RENAME TO gone', 'CREATE DATABASE copy TEMPLATE prod';
	like(as_role('postgres', "BEGIN; $_; COMMIT"), qr/cannot run inside a transaction block/, "refused in a transaction block ($round): $_")
	  for 'DROP DATABASE prod', 'CREATE DATABASE copy TEMPLATE prod', 'ALTER DATABASE prod SET TABLESPACE space';
	like(as_role('postgres', "SET default_transaction_read_only = on; $_"), qr/read-only transaction|cannot run inside/, "refused in a read-only transaction ($round): $_")
	  for 'DROP DATABASE prod', 'ALTER DATABASE prod RENAME TO gone';
	like(as_role('postgres', $_), qr/ERROR: .*exist/, "refused for a name ($round): $_")
	  for 'ALTER DATABASE prod RENAME TO postgres', 'ALTER DATABASE prod SET TABLESPACE nowhere', 'CREATE DATABASE postgres TEMPLATE prod';
	like(as_role('postgres', "CREATE DATABASE copy TEMPLATE prod $_"), qr/^(?!.*being accessed).*ERROR: /s, "refused for an option ($round): $_")
	  for q{LC_COLLATE 'C.UTF-8'}, q{LC_CTYPE 'C.UTF-8'}, q{LOCALE 'nowhere'}, q{ENCODING 'LATIN1'}, q{ENCODING 'nothing'}, 'CONNECTION LIMIT -5', q{STRATEGY 'none'},
	    q{LOCALE_PROVIDER 'nobody'}, 'OID 5', 'NOTHING 1', 'CONNECTION LIMIT 5 CONNECTION LIMIT 6', q{IS_TEMPLATE 'perhaps'}, q{ALLOW_CONNECTIONS 7};
	is(as_role('postgres', 'ALTER DATABASE prod SET TABLESPACE pg_default'), 'done', "to move a database to where it is disturbs nobody ($round)");
}
# An owner who may not create databases, or not in that tablespace.
$node->safe_psql('postgres', 'ALTER DATABASE prod OWNER TO owner');
like(as_role('owner', $_), qr/ERROR: .*permission denied/s, "the owner lacks a right: $_")
  for 'ALTER DATABASE prod RENAME TO gone', 'CREATE DATABASE copy TEMPLATE prod', 'ALTER DATABASE prod SET TABLESPACE space';
is(present(), $before, 'the worker and the leased session are the same');
$node->safe_psql('prod', 'INSERT INTO gate DEFAULT VALUES');
within(15, $node, 'prod', q{SELECT count(*) FROM handled WHERE name = 'long'}, 1, 'the leased call ends normally');
holds($node, 'prod', q{SELECT (SELECT count(*) FROM mq_failures), (SELECT count(*) FROM mq_dead)}, '0|0', 'and is not charged');

# --- accepted, but it fails ---------------------------------------------------------------------

$node->safe_psql('prod', q{TRUNCATE gate; SELECT mq_send('gated', '{}', name => 'longer', retries => 0)});
within(10, $node, 'prod', q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mq handler' AND state = 'active'}, 1, 'another leased call runs');
$before = present();
my $guest = $node->background_psql('prod');
my ($rc, $out, $err) = $node->psql('postgres', 'ALTER DATABASE prod RENAME TO gone');
like($err, qr/being accessed by other users/, 'a session of somebody else is in the database: the statement fails');
$guest->quit;
$node->safe_psql('prod', q{BEGIN; SELECT mq_send('c'); PREPARE TRANSACTION 'prepared'});
($rc, $out, $err) = $node->psql('postgres', 'DROP DATABASE prod WITH (FORCE)');
like($err, qr/prepared transaction/, 'or a prepared transaction');
is(present(), $before, 'nobody was sent away for it');
$node->safe_psql('prod', q{ROLLBACK PREPARED 'prepared'});

# --- cancelled while it waits -------------------------------------------------------------------

$guest = $node->background_psql('prod');
like(as_role('owner', q{SET statement_timeout = '1s'; DROP DATABASE prod}), qr/statement timeout/, 'waiting for others can be cancelled');
is(present(), $before, 'and leaves everybody where they were');
$guest->quit;
$node->safe_psql('prod', 'INSERT INTO gate DEFAULT VALUES');
within(30, $node, 'prod', q{SELECT count(*) FROM handled WHERE name = 'longer'}, 1, 'the leased call ends normally, again');
holds($node, 'prod', q{SELECT count(*) FROM mq_failures}, '0', 'and is not charged');
$node->safe_psql('prod', q{SELECT mq_unregister_handler('gated')});

# --- accepted -----------------------------------------------------------------------------------

for my $options (q{LOCALE 'C' ENCODING 'utf-8' CONNECTION LIMIT 5 STRATEGY 'FILE_COPY' LOCALE_PROVIDER 'libc'}, q{LC_COLLATE 'POSIX' LC_CTYPE 'C' IS_TEMPLATE false OWNER DEFAULT OID 54321}, 'TABLESPACE space') {
	is(as_role('postgres', "CREATE DATABASE copy TEMPLATE prod $options"), 'done', "CREATE DATABASE ... TEMPLATE waits for no worker: $options");
	is(as_role('postgres', 'DROP DATABASE copy'), 'done', 'nor does DROP DATABASE');
}
is(as_role('postgres', 'ALTER DATABASE prod SET TABLESPACE space'), 'done', 'ALTER DATABASE ... SET TABLESPACE waits for no worker');
$node->safe_psql('prod', q{SELECT mq_send('c', name => 'moved')});
within(15, $node, 'prod', q{SELECT count(*) FROM handled WHERE name = 'moved'}, 1, 'the database is served in its new place');
$node->safe_psql('postgres', 'GRANT CREATE ON TABLESPACE space TO owner; GRANT CREATE ON TABLESPACE pg_default TO owner');
is(as_role('owner', 'ALTER DATABASE prod SET TABLESPACE pg_default'), 'done', 'by its owner, who is no superuser, likewise');
within(15, $node, 'postgres', workers_in('prod'), 1, 'its worker is back');

# In a procedure that ends the transaction that its statement ran in, from a cached plan.
$node->safe_psql('postgres', q{
	CREATE PROCEDURE rename(name text, other text) LANGUAGE plpgsql AS $$
	BEGIN
	  FOR i IN 1 .. 20 LOOP
	    EXECUTE format('ALTER DATABASE %I RENAME TO %I', name, other);
	    ROLLBACK;
	    ALTER DATABASE prod RENAME TO moved;
	    ROLLBACK;
	    DISCARD PLANS;
	    ALTER DATABASE prod RENAME TO moved;
	    COMMIT;
	    ALTER DATABASE moved RENAME TO prod;
	    COMMIT;
	  END LOOP;
	END $$;
	CALL rename('prod', 'moved')});
pass('a procedure renames and rolls back');
$node->safe_psql('prod', q{SELECT mq_send('c', name => 'renamed')});
within(20, $node, 'prod', q{SELECT count(*) FROM handled WHERE name = 'renamed'}, 1, 'the database is served');

# DROP ... FORCE by an owner who is no superuser: neither the probe worker nor the others are his to terminate.
$node->safe_psql('postgres', 'CREATE DATABASE probe OWNER owner');
$node->safe_psql('probe', 'CREATE EXTENSION mq');
within(10, $node, 'postgres', workers_in('probe'), 1, 'a worker looks after a database without handlers');
is(as_role('owner', 'DROP DATABASE probe WITH (FORCE)'), 'done', 'DROP DATABASE ... FORCE by an owner who is no superuser');
$node->safe_psql('prod', q{SELECT mq_send('long', '{"seconds": 30}', name => 'dropped')});
within(10, $node, 'prod', q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mq handler' AND state = 'active'}, 1, 'a leased call runs as a superuser');
is(as_role('owner', 'DROP DATABASE prod WITH (FORCE)'), 'done', 'neither does it fail on that');

$node->stop;
log_is_clean($node, qr/FATAL: .*terminating connection due to administrator command/);
done_testing();
