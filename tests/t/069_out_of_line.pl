# What a worker reads of its own tables may be out of line, in a TOAST table.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('out_of_line', 'mq.max_workers' => 1, 'mq.poll_interval' => '200ms', 'mq.dead_retention' => 0);
my $db = 'postgres';
my $out_of_line = q{SELECT pg_relation_size(reltoastrelid) > 0 FROM pg_class WHERE relname = };

$node->safe_psql($db, 'CREATE EXTENSION mq');
handled_table($node, $db);

# Totals of a channel whose calls took all kinds of times.
$node->safe_psql($db, q{
	SELECT mq_register_handler('wide', 'handle(mq_message)');
	INSERT INTO mq_stats_totals (channel_name, handled, failed, died, handle_times, wait_times)
	SELECT 'wide', 0, 0, 0, a.times, a.times
	  FROM (SELECT array_agg(CASE k WHEN 0 THEN n ELSE (random() * 1e15)::bigint END ORDER BY n, k) AS times
	          FROM generate_series(0, 300) AS n, generate_series(0, 1) AS k) AS a});
holds($node, $db, "$out_of_line 'mq_stats_totals'", 't', 'histograms are out of line');
for my $n (1 .. 3) {
	$node->safe_psql($db, "SELECT mq_send('wide', '$n')");
	within(10, $node, $db, q{SELECT max(handled), (SELECT count(*) FROM mq_stats_deltas) FROM mq_stats_totals WHERE channel_name = 'wide'}, "$n|0",
		"what is handled is added to them ($n)");
}

# Handlers and dead letters with long names.
$node->safe_psql($db, q{
	CREATE FUNCTION long(s int, bytes int) RETURNS text LANGUAGE sql RETURN
	  (SELECT left(string_agg(md5(concat(s, ' ', n)), ''), bytes) FROM generate_series(1, 32) AS n);
	CREATE FUNCTION fails(mq_message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
	SELECT mq_register_handler(long(1, 1024), 'fails(mq_message)', message_name => long(2, 1024))});
holds($node, $db, "$out_of_line 'mq_handlers'", 't', 'a handler with long names is out of line');
for my $n (1 .. 3) {
	$node->safe_psql($db, 'SELECT mq_send(long(1, 1024), name => long(2, 1024), channel_args => long(3, 1024), dedup_key => long(4, 300), retries => 0)');
	within(10, $node, $db, 'SELECT (SELECT count(*) FROM mq_msgs), (SELECT count(*) FROM mq_dead)', '0|0', "a dead letter goes when its time is over ($n)");
	holds($node, $db, "$out_of_line 'mq_dead'", 't', 'whose names are out of line');
}

# A large payload, with large headers: an update of the row leaves what is out of line where it is.
$node->safe_psql($db, q{
	CREATE FUNCTION noise(bytes int) RETURNS text LANGUAGE sql AS 'SELECT left(string_agg(md5(n::text), $$$$), bytes) FROM generate_series(1, bytes / 32 + 1) n';
	SELECT mq_register_handler('large', 'fails(mq_message)'), mq_pause('large');
	SELECT mq_send('large', to_jsonb(noise(20000)), payload_bytes => convert_to(noise(30000), 'UTF8'), retry_backoff => '1 day')});
my $toast = $node->safe_psql($db, q{SELECT reltoastrelid::regclass FROM pg_class WHERE oid = 'mq_msgs'::regclass});
my $chunks = "SELECT string_agg(concat_ws(' ', chunk_id, chunk_seq, xmin, xmax), ',' ORDER BY chunk_id, chunk_seq) FROM $toast";
my $before = $node->safe_psql($db, $chunks);
isnt($before, '', 'a large payload is out of line');
$node->safe_psql($db, q{UPDATE mq_msgs SET priority = 1, keep = '1 day', due_at = now() WHERE channel_name = 'large'});
holds($node, $db, $chunks, $before, 'another column is set: it stays where it is');
$node->safe_psql($db, q{UPDATE mq_msgs SET headers = to_jsonb(noise(10000)) WHERE channel_name = 'large'});
like($node->safe_psql($db, $chunks), qr/^\Q$before\E,./, 'large headers are set: it stays where it is');
$before = $node->safe_psql($db, $chunks);
$node->safe_psql($db, q{SELECT mq_resume('large')});
within(10, $node, $db, q{SELECT attempt, length(message_json ->> 0), length(message_bytes), length(headers ->> 0) FROM mq_msgs WHERE channel_name = 'large'}, '1|20000|30000|10000',
	'it fails');
holds($node, $db, $chunks, $before, 'a retry writes neither again');

$node->stop;
log_is_clean($node);
done_testing();
