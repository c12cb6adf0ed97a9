# Clients outside the server poll batches of ordered and unordered messages while workers in it serve other
# channels of the same tables: each message is had by one of them, once, in order, and nobody deadlocks.
#
# Flaws 1 and 3 of the original: 866 of 1,000 messages were delivered twice to 4 pollers, 8 pollers deadlocked 58
# times in 5,000 messages.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('clients', 'mq.max_workers' => 2);
my $db = 'postgres';
$node->safe_psql($db, 'CREATE EXTENSION mq');
handled_table($node, $db);
$node->safe_psql($db, q{
	CREATE TABLE got (g bigserial, channel text, n int, pid int DEFAULT pg_backend_pid());
	SELECT mq_register_handler('inside', 'handle(mq_message)')});

# 5,000 for the clients, in 20 ordered channels and in one that is not, and as many for the workers.
sub send_all {
	$node->safe_psql($db, q{
		TRUNCATE got, handled;
		SELECT mq_insert(array_agg((gen_random_uuid(), '0', 4, '1 h', 'outside', c, NULL, true, 'm', n::text, NULL)::mq_new_t ORDER BY n, c))
		  FROM generate_series(1, 125) n, generate_series(1, 20) c;
		SELECT mq_insert(array_agg((gen_random_uuid(), '0', 4, '1 h', 'loose', '', NULL, false, 'm', n::text, NULL)::mq_new_t ORDER BY n))
		  FROM generate_series(1, 2500) n});
}
my $inside = $node->basedir . '/inside.sql';
append_to_file($inside, q{
\set c random(1, 10)
SELECT mq_send('inside', '{}', channel_args => :c::text, ordered => :c > 5);
});
my %clients = (
	# A poll and a delete in transactions of their own, as a client sends them.
	'a transaction each' => q{
SELECT COALESCE(quote_literal(array_agg(id)::text), 'NULL') AS ids, count(id) AS n FROM mq_poll(ARRAY['outside', 'loose'], 40) \gset
\if :n > 0
BEGIN;
INSERT INTO got (channel, n) SELECT m.channel_name || m.channel_args, p.payload_json::int
  FROM mq_msgs m JOIN mq_payloads p USING (id) WHERE id = ANY (:ids::uuid[]);
SELECT mq_delete(:ids);
COMMIT;
\endif
},
	# Both in one transaction, which holds what it has polled; the channels named the other way round.
	'one transaction' => q{
BEGIN;
SELECT COALESCE(quote_literal(array_agg(id)::text), 'NULL') AS ids, count(id) AS n FROM mq_poll(ARRAY['loose', 'outside'], 40) \gset
\if :n > 0
INSERT INTO got (channel, n) SELECT m.channel_name || m.channel_args, p.payload_json::int
  FROM mq_msgs m JOIN mq_payloads p USING (id) WHERE id = ANY (:ids::uuid[]);
SELECT mq_delete(:ids);
\endif
COMMIT;
});

for my $how (sort keys %clients) {
	send_all();
	my $client = $node->basedir . '/' . ($how =~ tr/ /_/r) . '.sql';
	append_to_file($client, $clients{$how});
	my ($out, $err) = ('', '');
	my $load = IPC::Run::start([ 'pgbench', '--no-vacuum', '--client=2', '--time=60', '--rate=300', '--file', $inside, $node->connstr($db) ],
		'>', \$out, '2>', \$err, IPC::Run::timeout(90));
	my $errors = '';
	for (1 .. 40) {
		last if $errors ne '' || $node->safe_psql($db, q{SELECT count(*) FROM mq_msgs WHERE channel_name <> 'inside'}) eq '0';
		my ($report, $log);
		my $ok = IPC::Run::run([ 'pgbench', '--no-vacuum', '--client=8', '--transactions=20', '--file', $client, $node->connstr($db) ],
			'>', \$report, '2>', \$log, IPC::Run::timeout(60));
		$errors = $log if !$ok || $log =~ /error|abort/i;
	}
	is($errors, '', "$how: no client fails");
	$load->signal('TERM');
	eval { $load->finish };
	holds($node, $db, 'SELECT count(*), count(DISTINCT (channel, n)) FROM got', '5000|5000', "$how: 8 clients get each message once");
	holds($node, $db, 'SELECT count(DISTINCT pid) > 2 FROM got', 't', 'all of them');
	holds($node, $db, q{
		SELECT count(*) FROM (SELECT n, row_number() OVER (PARTITION BY channel ORDER BY g) AS nth FROM got WHERE channel <> 'loose') o WHERE n <> nth},
		0, 'ordered ones in their order');
	within(10, $node, $db, q{SELECT count(*) FROM mq_msgs}, 0, 'nothing is left');
	holds($node, $db, 'SELECT (SELECT count(*) FROM handled) > 0, (SELECT count(*) FROM mq_payloads), (SELECT count(*) FROM mq_failures)', 't|0|0',
		'and the workers have handled what was theirs');
}

$node->stop;
# The driver of the load was told to end.
log_is_clean($node, qr/FATAL: .*connection to client lost/);
done_testing();
