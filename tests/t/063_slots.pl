# More databases than workers can be started for, more than there is room for, and roles that may not connect: what can be
# served is served, in turns where it must be, and what is not says so.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $databases = 8;
my $node = mq_node('slots', max_worker_processes => 5, 'mq.poll_interval' => '2s');
sub health { my ($check) = @_; return qq{SELECT detail FROM mq_health() WHERE "check" = '$check' AND NOT ok} }
sub log_lines { my ($what) = @_; return scalar grep { $_ =~ $what } split /\n/, slurp_file($node->logfile) }

# --- slots --------------------------------------------------------------------------------------

# 5: the server's launcher of logical replication, ours, and three workers.
my $equip = q{
	CREATE EXTENSION mq;
	CREATE TABLE handled (name text, pid int DEFAULT pg_backend_pid());
	CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE sql AS 'INSERT INTO handled VALUES (m.name)';
	CREATE FUNCTION slowly(m mq_message) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(0.3); INSERT INTO handled VALUES (m.name)';
	SELECT mq_register_handler('c', 'handle(mq_message)');
	SELECT mq_register_handler('slow', 'slowly(mq_message)')};
for my $i (1 .. $databases) {
	$node->safe_psql('postgres', "CREATE DATABASE db$i");
	$node->safe_psql("db$i", $equip);
}
for my $round (1 .. 2) {
	$node->safe_psql("db$_", "SELECT mq_send('c', name => 'round $round')") for 1 .. $databases;
	within(30, $node, "db$_", "SELECT count(*) FROM handled WHERE name = 'round $round'", 1, "db$_ is served (round $round)") for 1 .. $databases;
}
within(20, $node, "db$_", health('worker slots'), qr/^max_worker_processes = 5 are in use: .*take turns, 5 have no worker now; raise it to at least 10 and restart the server$/, "db$_ says what is missing") for 1, $databases;
cmp_ok(log_lines(qr/max_worker_processes = 5 leaves [0-9]+ databases or roles without a worker/), '<=', $databases, 'the log says so, not again and again');
cmp_ok(log_lines(qr/max_worker_processes = 5 leaves [0-9]+ databases or roles without a worker/), '>=', 1, 'at all');

# Scheduled messages are handled when they are due, though nobody rests there.
$node->safe_psql("db$_", q{SELECT mq_send('c', name => 'later', delay => '3 s')}) for 1 .. $databases;
within(30, $node, "db$_", q{SELECT count(*) FROM handled WHERE name = 'later'}, 1, "db$_: what was scheduled is handled") for 1 .. $databases;

# Where nothing is to do, processes do not come and go: one a second at most, to look, and not one for each database each
# mq.poll_interval. What is sent to a database without one is handled.
$node->safe_psql('postgres', "CREATE DATABASE db$_ TEMPLATE postgres"), $node->safe_psql("db$_", $equip) for $databases + 1 .. 2 * $databases;
within(30, $node, 'postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker'}, 3, 'all slots are taken');
my %seen;
for (my $end = time + 12; time < $end; usleep(100_000)) { $seen{$_}++ for split ' ', $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'mq worker'}) }
cmp_ok(scalar keys %seen, '<=', 3 + 16, 'in twelve idle seconds few workers come and go, of '.(2 * $databases).' databases');
$node->safe_psql("db$_", q{SELECT mq_send('c', name => 'quiet')}) for 1 .. 2 * $databases;
within(30, $node, "db$_", q{SELECT count(*) FROM handled WHERE name = 'quiet'}, 1, "db$_ is served") for 1 .. 2 * $databases;
$node->safe_psql('postgres', "DROP DATABASE db$_") for $databases + 1 .. 2 * $databases;

# Databases with a backlog have no right to keep what others need.
$node->safe_psql("db$_", q{SELECT count(*) FROM mq_send_many('slow', array_fill('{}'::jsonb, ARRAY[400]))}) for 1 .. 3;
for my $round (1 .. 3) {
	$node->safe_psql("db$databases", "SELECT mq_send('c', name => 'beside $round')");
	within(30, $node, "db$databases", "SELECT count(*) FROM handled WHERE name = 'beside $round'", 1, "a message of another database beside three backlogs (round $round)");
}
$node->safe_psql("db$_", q{SELECT mq_clear_all()}) for 1 .. 3;

# Enough slots: nobody gives up anything.
$node->append_conf('postgresql.conf', 'max_worker_processes = 24');
$node->restart;
within(30, $node, 'postgres', q{SELECT count(DISTINCT datname) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND datname LIKE 'db%'}, $databases, 'with enough slots a worker rests in each database');
my $pids = q{SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND datname LIKE 'db%'};
my @before = split ' ', $node->safe_psql('postgres', $pids);
$node->safe_psql("db$_", q{SELECT mq_send('c', name => 'enough')}) for 1 .. $databases;
within(10, $node, "db$_", q{SELECT count(*) FROM handled WHERE name = 'enough'}, 1, "db$_ is served") for 1 .. $databases;
my %now = map { $_ => 1 } split ' ', $node->safe_psql('postgres', $pids);
is_deeply([ grep { !$now{$_} } @before ], [], 'and its worker stays');
holds($node, 'db1', health('worker slots'), '', 'all is well');

# --- room for databases -------------------------------------------------------------------------

$node->append_conf('postgresql.conf', 'mq.max_databases = 3');
$node->restart;
my $beyond = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND datname LIKE 'db%'};
within(20, $node, 'postgres', $beyond, 3, 'three databases are served where mq.max_databases is 3');
my @out = grep { $node->safe_psql("db$_", health('database served')) ne '' } 1 .. $databases;
is(scalar @out, $databases - 3, 'the others say that they are not');
like($node->safe_psql("db$out[0]", health('database served')), qr/^mq.max_databases = 3 others are served: raise it and restart/, 'and what to do');
is(log_lines(qr/mq.max_databases = 3 leaves out [0-9]+ databases/), 1, 'the log says so once');
set_and_reload($node, 'mq.databases' => "db$out[0], db$out[1]");
for my $i (@out[0, 1]) {
	within(20, $node, "db$i", health('database served'), '', "db$i is named by mq.databases, and served");
	$node->safe_psql("db$i", q{SELECT mq_send('c', name => 'named')});
	within(10, $node, "db$i", q{SELECT count(*) FROM handled WHERE name = 'named'}, 1, "db$i: handled");
}
# Databases without the extension take no room.
set_and_reload($node, 'mq.databases' => '*');
$node->safe_psql('postgres', "DROP DATABASE db$_") for 3 .. $databases;
$node->safe_psql('postgres', "CREATE DATABASE plain$_") for 1 .. 6;
for my $i (1, 2) {
	within(30, $node, "db$i", health('database served'), '', "db$i is served beside databases without the extension");
}
$node->safe_psql('plain6', $equip);
$node->safe_psql('plain6', q{SELECT mq_send('c', name => 'late')});
within(15, $node, 'plain6', q{SELECT count(*) FROM handled WHERE name = 'late'}, 1, 'one that gets the extension later is served');
$node->safe_psql('postgres', "DROP DATABASE plain$_") for 1 .. 6;

# --- roles that may not connect -------------------------------------------------------------------

$node->append_conf('postgresql.conf', 'mq.max_databases = 100');
$node->restart;
$node->safe_psql('db1', q{
	REVOKE CONNECT ON DATABASE db1 FROM PUBLIC;
	CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE guests;
	GRANT INSERT ON handled TO alice, bob;
	GRANT CONNECT ON DATABASE db1 TO bob});
my ($rc, $out, $err) = $node->psql('db1', q{SELECT mq_register_handler('hers', 'handle(mq_message)', run_as => 'alice')});
like($err, qr/ERROR: +role "alice" may not connect to database "db1"/, 'a handler for a role that may not connect is refused');
$node->safe_psql('db1', q{
	GRANT CONNECT ON DATABASE db1 TO guests; GRANT guests TO alice;
	SELECT mq_register_handler('hers', 'handle(mq_message)', run_as => 'alice');
	SELECT mq_register_handler('his', 'handle(mq_message)', run_as => 'bob')});
my $hers = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND datname = 'db1' AND usename = 'alice'};
my $n = 0;
sub cut_off {
	my ($by, $mend, $detail, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	within(20, $node, 'postgres', $hers, 1, "alice has a worker ($what)");
	$node->safe_psql('postgres', $by);
	$node->safe_psql('db1', q{SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND usename = 'alice'});
	within(20, $node, 'db1', health('workers start'), $detail, "mq_health() says why ($what)");
	# It has failed several times, and waits for longer than the test does.
	within(60, $node, 'db1', health('workers start'), qr/^as alice: [4-9] times in a row/, "it is tried a few times ($what)");
	my $name = 'message ' . ++$n;
	$node->safe_psql('db1', "SELECT mq_send('his', name => 'his $name'), mq_send('hers', name => 'hers $name')");
	within(10, $node, 'db1', "SELECT count(*) FROM handled WHERE name = 'his $name'", 1, "another role is served ($what)");
	$node->safe_psql('postgres', $mend);
	within(8, $node, 'db1', "SELECT count(*) FROM handled WHERE name = 'hers $name'", 1, "mended, it is served within seconds ($what)");
	within(8, $node, 'db1', health('workers start'), '', "all is well ($what)");
}
cut_off('REVOKE CONNECT ON DATABASE db1 FROM guests', 'GRANT CONNECT ON DATABASE db1 TO guests', qr/role "alice" may not connect to database "db1": GRANT CONNECT/, 'REVOKE CONNECT');
cut_off('REVOKE guests FROM alice', 'GRANT guests TO alice', qr/role "alice" may not connect to database "db1": GRANT CONNECT/, 'REVOKE of a role that may');
SKIP: {
	skip 'newer servers let workers in without LOGIN', 7 if $node->safe_psql('postgres', 'SHOW server_version_num') >= 170000;
	cut_off('ALTER ROLE alice NOLOGIN', 'ALTER ROLE alice LOGIN', qr/role "alice" may not log in: ALTER ROLE ... LOGIN/, 'NOLOGIN');
}
# ALTER DATABASE ... ALLOW_CONNECTIONS: no worker is tried at all.
$node->safe_psql('postgres', 'ALTER DATABASE db1 ALLOW_CONNECTIONS false');
within(20, $node, 'postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND datname = 'db1'}, 0, 'ALLOW_CONNECTIONS false: its workers leave');
$node->safe_psql('postgres', 'ALTER DATABASE db1 ALLOW_CONNECTIONS true');
$node->safe_psql('db1', q{SELECT mq_send('hers', name => 'allowed')});
within(10, $node, 'db1', q{SELECT count(*) FROM handled WHERE name = 'allowed'}, 1, 'ALLOW_CONNECTIONS true: it is served');
# A database that a DROP left half done is invalid. Servers that cannot tell let nobody in all the same.
$node->safe_psql('postgres', q{UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'db2'; SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'db2' AND backend_type = 'mq worker'});
within(20, $node, 'postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND datname = 'db2'}, 0, 'an invalid database has no workers');
# What was about to start when the launcher found out may fail yet; later ones may not.
sub look_around {
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql($name, $equip);
	within(20, $node, 'postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND datname = '$name'", 1, "the launcher has looked around ($name)");
}
look_around('another');
my $failed = log_lines(qr/cannot connect to invalid database/);
look_around('one_more');
is(log_lines(qr/cannot connect to invalid database/), $failed, 'and none is tried');

$node->stop;
log_is_clean($node, qr/FATAL: .*(permission denied for database|not permitted to log in|invalid database)/);
done_testing();
