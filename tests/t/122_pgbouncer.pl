# mq_receive, mq_ack, mq_nack and mq_extend work through PgBouncer in transaction mode, where each transaction may have
# another session of the server: who waits is woken, tokens are good in any session, and each message has one owner.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my ($pgbouncer) = grep { -x } map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin', '/usr/local/sbin';
plan skip_all => 'pgbouncer is not installed' if !$pgbouncer;

my $node = mq_node('pgbouncer');
my $db = 'postgres';
$node->safe_psql($db, q{
	CREATE EXTENSION mq;
	CREATE TABLE acked (id uuid, session int DEFAULT pg_backend_pid());
	CREATE TABLE received (session int)});

my ($port, $dir) = (6432, PostgreSQL::Test::Utils::tempdir_short());
append_to_file("$dir/pgbouncer.ini", <<"INI");
[databases]
$db = host=@{[$node->host]} port=@{[$node->port]} dbname=$db user=$ENV{PGUSER} pool_size=8
[pgbouncer]
listen_port = $port
unix_socket_dir = $dir
auth_type = any
pool_mode = transaction
max_client_conn = 100
logfile = $dir/pgbouncer.log
pidfile = $dir/pgbouncer.pid
INI
my ($bouncer_out, $bouncer_err) = ('', '');
my $bouncer = IPC::Run::start([ $pgbouncer, '-q', "$dir/pgbouncer.ini" ], '>', \$bouncer_out, '2>', \$bouncer_err);
END { $bouncer->signal('INT') if $bouncer; eval { $bouncer->finish } if $bouncer }

sub through {
	my ($sql) = @_;
	my ($out, $err) = ('', '');
	my $ok = IPC::Run::run([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-h', $dir, '-p', $port, '-d', $db, '-c', $sql ], '>', \$out, '2>', \$err, IPC::Run::timeout(120));
	chomp $out;
	return $ok ? $out : "failed: $err";
}
my $end = time + 30;
usleep(100_000) while through('SELECT 1') ne '1' && time < $end;
is(through('SELECT 1'), 1, 'the pooler works') or diag($bouncer_err);

# --- waits ----------------------------------------------------------------------------------------

# Six wait: two sessions of the pool are left for others.
my $waiting = q{SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND wait_event_type = 'Extension' AND backend_type = 'client backend'};
my @waits;
for (1 .. 6) {
	my $wait = { out => '', err => '' };
	$wait->{run} = IPC::Run::start([ 'psql', '-XAtq', '-h', $dir, '-p', $port, '-d', $db, '-c', q{SELECT payload_json FROM mq_receive('{c}', wait => '250 s')} ],
		'>', \$wait->{out}, '2>', \$wait->{err}, IPC::Run::timeout(280));
	push @waits, $wait;
}
within(60, $node, $db, $waiting, 6, 'six sessions wait');
for my $n (1 .. 6) {
	is(through("SELECT mq_send('c', '$n') IS NOT NULL"), 't', "message $n is sent");
	within(60, $node, $db, $waiting, 6 - $n, 'one of those that wait gets it');
}
$_->{run}->finish for @waits;
is(join(' ', sort map { $_->{out} =~ s/\n//r } @waits), '1 2 3 4 5 6', 'each has one') or diag(map { $_->{err} } @waits);

# A client that is gone takes the session of the server along, and no message.
my ($out, $err) = ('', '');
my $gone = IPC::Run::start([ 'psql', '-XAtq', '-h', $dir, '-p', $port, '-d', $db, '-c', q{SELECT 1 FROM mq_receive('{c}', wait => '250 s')} ], '>', \$out, '2>', \$err);
within(60, $node, $db, $waiting, 1, 'a session waits');
$gone->signal('KILL');
eval { $gone->finish };
within(60, $node, $db, $waiting, 0, 'and does so no more when its client is gone');

# --- tokens ---------------------------------------------------------------------------------------

# More clients than sessions: each of the calls has any of them.
$node->safe_psql($db, q{SELECT mq_clear_all(); SELECT count(*) FROM mq_send_many('c', (SELECT array_agg(to_jsonb(n)) FROM generate_series(1, 600) n))});
my $consumer = "$dir/consumer.sql";
append_to_file($consumer, q{
SELECT COALESCE(quote_literal(array_agg(id)::text), '''{}''') AS ids, COALESCE(max(lease), 0) AS token FROM mq_receive('{c}', 3, wait => '1 s') \gset
\if :token <> 0
INSERT INTO received DEFAULT VALUES;
SELECT count(*) FROM mq_extend(:ids, :token, '2 minutes');
SELECT count(*) FROM mq_nack((:ids::uuid[])[3:3], :token, 'not yet', retry_in => '0');
INSERT INTO acked SELECT * FROM mq_ack(:ids, :token);
\endif
});
my $ok = IPC::Run::run([ 'pgbench', '--no-vacuum', '--protocol=simple', '--client=20', '--transactions=40', '--file', $consumer, '-h', $dir, '-p', $port, $db ],
	'>', \$out, '2>', \$err, IPC::Run::timeout(200));
ok($ok && $err !~ /error|abort/i, 'twenty clients share eight sessions') or diag($err);
holds($node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'nothing is left');
holds($node, $db, 'SELECT count(*), count(DISTINCT id) FROM acked', '600|600', 'each message is acknowledged once');
holds($node, $db, 'SELECT count(DISTINCT session) BETWEEN 2 AND 8 FROM acked', 't', 'by several sessions');

$node->stop;
done_testing();
