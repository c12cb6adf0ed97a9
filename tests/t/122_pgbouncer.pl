# Senders and consumers work through PgBouncer in transaction mode, where each transaction may have another session of the
# server. Consumers: who waits is woken, tokens are good in any session, and each message has one owner. Senders: what is
# committed is handled once and in order, and what is rolled back, or whose client is gone, never was.
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
sub clients {
	my ($protocol, $transactions, $file, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($out, $err) = ('', '');
	my $ok = IPC::Run::run([ 'pgbench', '--no-vacuum', "--protocol=$protocol", '--client=20', "--transactions=$transactions", '--define=n=0',
		'--file', $file, '-h', $dir, '-p', $port, $db ], '>', \$out, '2>', \$err, IPC::Run::timeout(200));
	return ok($ok && $err !~ /error|abort/i, $what) || diag($err);
}
clients('simple', 40, $consumer, 'twenty clients share eight sessions');
holds($node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'nothing is left');
holds($node, $db, 'SELECT count(*), count(DISTINCT id) FROM acked', '600|600', 'each message is acknowledged once');
holds($node, $db, 'SELECT count(DISTINCT session) BETWEEN 2 AND 8 FROM acked', 't', 'by several sessions');

# The original's calls know a message by its id alone.
$node->safe_psql($db, q{
	CREATE TABLE polled (id uuid);
	SELECT count(*) FROM mq_send_many('p', (SELECT array_agg(to_jsonb(n)) FROM generate_series(1, 400) n), retry_backoff => '10 minutes')});
my $poller = "$dir/poller.sql";
append_to_file($poller, q{
SELECT COALESCE(quote_literal(array_agg(id)::text), '''{}''') AS ids FROM mq_poll('{p}', 3) WHERE id IS NOT NULL \gset
BEGIN;
INSERT INTO polled SELECT unnest(:ids::uuid[]);
SELECT mq_delete(:ids);
END;
});
clients('simple', 20, $poller, 'twenty clients poll');
holds($node, $db, q{SELECT count(*), count(DISTINCT id), (SELECT count(*) FROM mq_msgs) FROM polled}, '400|400|0', 'and each message is theirs once');

# --- senders --------------------------------------------------------------------------------------

# Each client sends to an ordered channel of its own and to one that all share, in the transaction that notes it; takes
# another transaction back; sends a two-phase message, and commits it in the next transaction.
$node->safe_psql($db, q{
	CREATE TABLE sent (client int, n int, session int DEFAULT pg_backend_pid());
	CREATE TABLE handled (no bigserial, channel text, client int, n int);
	CREATE FUNCTION handle(m mq_message) RETURNS jsonb LANGUAGE sql AS $$
	  INSERT INTO handled (channel, client, n) VALUES (m.channel_args, (m.payload_json ->> 'client')::int, (m.payload_json ->> 'n')::int);
	  SELECT m.payload_json
	$$;
	SELECT mq_register_handler('o', 'handle(mq_message)')});
my $sender = "$dir/sender.sql";
append_to_file($sender, q{
\set n :n + 1
BEGIN;
INSERT INTO sent (client, n) VALUES (:client_id, :n);
SELECT mq_send('o', jsonb_build_object('client', :client_id::int, 'n', :n::int), channel_args => (:client_id::int)::text, ordered => true);
SELECT mq_send('o', jsonb_build_object('client', :client_id::int, 'n', :n::int), channel_args => 'all', ordered => true);
END;
BEGIN;
SELECT mq_send('o', '{"client": -1}', channel_args => (:client_id::int)::text, ordered => true);
SELECT count(*) FROM mq_send_many('o', '{1, 2, 3}');
ROLLBACK;
SELECT mq_send('o', jsonb_build_object('client', :client_id::int, 'n', :n::int), channel_args => 'two-phase', commit_interval => '1 hour') AS id \gset
SELECT count(*) FROM mq_commit(ARRAY[:id::uuid]);
SELECT id FROM mq_send_once('once', 'the only one');
});
clients('extended', 15, $sender, 'twenty clients send, in eight sessions');
holds($node, $db, 'SELECT count(*), count(DISTINCT session) BETWEEN 2 AND 8 FROM sent', '300|t', 'several sessions sent');
within(120, $node, $db, q{SELECT count(*) FROM handled}, 900, 'what they sent is handled');
holds($node, $db, q{SELECT count(*), count(DISTINCT (channel, client, n)), min(client) FROM handled}, '900|900|0', 'once each, and nothing that they took back');
holds($node, $db, q{SELECT count(*) FROM (SELECT n <= lag(n) OVER (PARTITION BY channel, client ORDER BY no) AS early FROM handled WHERE channel <> 'two-phase') h WHERE early},
	0, 'in the order in which each client sent');
holds($node, $db, q{SELECT channel_name, count(*) FROM mq_msgs GROUP BY 1}, 'once|1', 'of one deduplication key, one message');

is(through(q{CALL mq_call('o', '{"client": 100, "n": 1}', timeout => '100 s')}), '{"n": 1, "client": 100}', 'mq_call sends, commits and waits');
my $id = through(q{SELECT mq_send('o', '{"client": 100, "n": 2}')});
is(through("SELECT state FROM mq_wait('{$id}', '100 s')"), 'unknown', 'mq_wait waits in another transaction');

# A client that is gone in the middle of its transaction.
my $half = qq{BEGIN;\nSELECT mq_send('o', '{"client": -1}', channel_args => 'all', ordered => true) IS NOT NULL;\n};
($out, $err) = ('', '');
my $leaver = IPC::Run::start([ 'psql', '-XAtq', '-h', $dir, '-p', $port, '-d', $db ], '<pipe', \*LEAVER, '>', \$out, '2>', \$err, IPC::Run::timeout(200));
syswrite LEAVER, $half;
my $open = q{SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND backend_type = 'client backend' AND query ~ 'mq_send'};
within(60, $node, $db, $open, 1, 'a client has sent, and not committed');
$leaver->signal('KILL');
eval { $leaver->finish };
within(60, $node, $db, $open, 0, 'its transaction ends with it');
is(through(q{SELECT mq_send('o', '{"client": 100, "n": 3}', channel_args => 'all', ordered => true) IS NOT NULL}), 't', 'others append to its channel');
within(60, $node, $db, q{SELECT count(*) FROM handled WHERE client = 100 AND n = 3}, 1, '... and are handled');
holds($node, $db, q{SELECT count(*) FROM handled WHERE client = -1}, 0, '... and its own message is not');

log_is_clean($node, qr/connection to client lost/);
$node->stop;
done_testing();
