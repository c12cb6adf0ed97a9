# A client of the original schema, which knows its statements and nothing else (tests/client), lives its whole life
# on the extension: listening, polling, keeping alive, checkpoints, completion with its writes, two phases, clearing,
# many at once beside the workers; as its owner and with no rights but those of mq_grant; in another schema; without
# the preloaded library. ONLY=original runs the same program on the original.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqClient;
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my @crowds = ('one_runner', 'ten_thousand');

my $node = mq_node('client', max_connections => 150, wal_level => 'replica', max_wal_senders => 2, synchronous_commit => 'local');
$node->safe_psql('postgres', q{CREATE DATABASE extension; CREATE DATABASE queue; CREATE DATABASE fresh});

# --- the extension, with workers that serve a channel of their own --------------------------------

$node->safe_psql('extension', q{
	CREATE EXTENSION mq;
	CREATE TABLE inside (n bigserial, args text, number int, ordered bool);
	CREATE FUNCTION handle_inside(m mq_message) RETURNS void LANGUAGE sql AS $$
	  INSERT INTO inside (args, number, ordered) VALUES (m.channel_args, m.payload_json::int, m.ordered)
	$$;
	SELECT mq_register_handler('inside', 'handle_inside(mq_message)')});
lives('the extension', [ $node->connstr('extension') ], scenarios());
within(60, $node, 'extension', q{SELECT count(*), count(DISTINCT number) FROM inside}, '1000|1000',
	'meanwhile the workers have handled each of their messages once');
holds($node, 'extension', q{
	SELECT count(*) FILTER (WHERE ordered), count(*) FILTER (WHERE ordered AND sent <> handled)
	  FROM (SELECT ordered, row_number() OVER (PARTITION BY args ORDER BY number) AS sent,
	               row_number() OVER (PARTITION BY args ORDER BY n) AS handled FROM inside) o},
	'500|0', 'ordered ones in their order');
holds($node, 'extension', q{SELECT (SELECT count(*) FROM mq_msgs), (SELECT count(*) FROM mq_payloads), (SELECT count(*) FROM mq_failures WHERE sqlstate <> 'P0001')},
	'0|0|0', 'nothing is left');

# --- the first listener -----------------------------------------------------------------------------------

# Who sends before anybody listens notifies nobody. A poll in the middle of the sender's commit, which waits for a
# standby here, must not rest on being notified.
$node->safe_psql('fresh', 'CREATE EXTENSION mq');
set_and_reload($node, synchronous_standby_names => 'nobody');
my ($sender, $poller) = map { MqSession->new($node, 'fresh') } 1 .. 2;
$sender->{psql}{stdin} .= "SET synchronous_commit = on; SELECT mq_send('c', id => gen_random_uuid());\n\\echo query is over\n";
$sender->{psql}{run}->pump_nb;
within(10, $node, 'fresh', q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'}, 1, 'the commit of a sender hangs');
$poller->query('LISTEN mq_c');
my $poll = q{SELECT id IS NULL, wait_time <= '1 s' FROM mq_poll(ARRAY['c'], 1)};
is($poller->query($poll), 't|t', 'a poll finds nothing, and is told to look again soon');
set_and_reload($node, synchronous_standby_names => '');
unlike($sender->result, qr/error/, 'the commit ends');
is($poller->query(q{SELECT mq_delete(ARRAY[id]) FROM mq_poll(ARRAY['c'], 1)}), '', 'then the message is there');
is($poller->query($poll), 't|', 'and then there is nothing to look for');
$sender->query(q{SELECT mq_send('c')});
like($poller->query('SELECT 1'), qr/notification "mq_c"/, 'the next sender notifies');
$_->quit for $sender, $poller;

# --- rights ---------------------------------------------------------------------------------------

# To look at others' messages takes 'admin'.
my @of_admin = ('helpers');
$node->safe_psql('extension', q{
	CREATE ROLE app LOGIN;
	SELECT mq_grant('app', 'produce');
	SELECT mq_grant('app', 'consume')});
my @as_app = ('--owner', $node->connstr('extension'), $node->connstr('extension') . ' user=app');
lives('a role with produce and consume', \@as_app, without(@of_admin, @crowds));
my $refused = live(\@as_app, @of_admin);
for my $scenario (@of_admin) {
	my $last = $refused->{$scenario}{checks}[-1];
	like($last->{more}, qr/ 42501 permission denied for function mq_latest_message/, "a role with produce and consume: $scenario is refused");
}

# The owner of the original schema is a role that does everything, its test suite's clean-up by hand included. Here
# it is one with 'admin' and the rights that the clean-up takes; the extension is in a schema of its own.
$node->safe_psql('queue', q{
	CREATE ROLE suite LOGIN;
	CREATE SCHEMA queue;
	CREATE EXTENSION mq SCHEMA queue;
	SELECT queue.mq_grant('suite', 'admin');
	GRANT TRUNCATE ON queue.mq_payloads TO suite;
	GRANT DELETE ON queue.mq_msgs TO suite;
	GRANT USAGE ON SCHEMA queue TO suite;
	CREATE SCHEMA suite AUTHORIZATION suite;
	GRANT USAGE ON SCHEMA suite TO suite;
	ALTER ROLE suite SET search_path = suite, queue});
lives('a role with admin, another schema', [ $node->connstr('queue') . ' user=suite' ], without('ten_thousand'));

# --- the extension without its library preloaded ----------------------------------------------------

$node->append_conf('postgresql.conf', q{shared_preload_libraries = ''});
$node->restart;
# Without it nothing answers a TRUNCATE of the view.
my ($rc, $out, $err) = $node->psql('extension', 'TRUNCATE TABLE mq_payloads', extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($err, qr/42809: "mq_payloads" is not a table/, 'not preloaded: no TRUNCATE of mq_payloads');
lives('not preloaded', [ '--delete', $node->connstr('extension') ], without('ten_thousand'));

$node->stop;
# A session that listens may be closed while it is being notified.
log_is_clean($node, qr/FATAL: .*connection to client lost/);
done_testing();
