# What a handler does to messages that its worker has claimed with its own: workers heed it, on a channel whose messages
# share a batch. (CALL mq_run(): sql/batch_mates.)
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use Test::More;

my $node = mq_node('batch_mates', 'mq.max_workers' => 1);
my $db = 'postgres';
my $left = 'SELECT count(*) FROM mq_msgs';
$node->safe_psql($db, q{
	CREATE EXTENSION mq;
	CREATE TABLE seen (n serial, batch xid8 DEFAULT pg_current_xact_id(), what text);
	CREATE FUNCTION act(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
	  other uuid := (m.payload_json ->> 'other')::uuid;
	BEGIN
	  INSERT INTO seen (what) VALUES (m.payload_json ->> 'what');
	  CASE m.payload_json ->> 'what'
	    WHEN 'cancel' THEN PERFORM mq_delete(ARRAY[other]);
	    WHEN 'replace' THEN PERFORM mq_checkpoint(other, '0', '{"what": "new"}', NULL, 0);
	    WHEN 'by hand' THEN DELETE FROM mq_msgs WHERE id = other;
	    ELSE NULL;
	  END CASE;
	END $$;
	SELECT mq_register_handler('act', 'act(mq_message)')});

for my $ordered ('false', 'true') {
	# A channel whose calls are known to be quick is claimed from in batches.
	$node->safe_psql($db, q{SELECT count(*) FROM mq_send_many('act', array_fill('{"what": "warm"}'::jsonb, ARRAY[100]))});
	within(20, $node, $db, $left, 0, 'messages that do nothing to others');
	$node->safe_psql($db, 'TRUNCATE seen');
	$node->safe_psql($db, q{SELECT count(*) FROM mq_send_many('act', array_fill('{"what": "warm"}'::jsonb, ARRAY[100]))});
	within(20, $node, $db, $left, 0, 'and more of them');
	holds($node, $db, 'SELECT count(*), count(DISTINCT batch) <= 30 FROM seen', '100|t', 'share batches');
	$node->safe_psql($db, 'TRUNCATE seen');
	# Each is followed by the one that it acts on.
	$node->safe_psql($db, qq{
		SELECT count(mq_send('act', payload, id => id, ordered => $ordered))
		  FROM generate_series(1, 30) AS n,
		       LATERAL (VALUES (gen_random_uuid(), jsonb_build_object('what', (ARRAY['cancel', 'replace', 'by hand'])[n % 3 + 1], 'other', md5('$ordered' || n))),
		                       (md5('$ordered' || n)::uuid, '{"what": "old"}')) AS m (id, payload)});
	within(20, $node, $db, $left, 0, "ordered $ordered: all are gone");
	holds($node, $db, q{SELECT what, count(*) FROM seen GROUP BY 1 ORDER BY 1}, "by hand|10\ncancel|10\nnew|10\nreplace|10",
		"ordered $ordered: no message is handled that was removed, or as it was before it was changed");
	holds($node, $db, q{SELECT count(*) FROM mq_failures}, 0, "ordered $ordered: nothing is charged");
}
$node->stop;
log_is_clean($node);
done_testing();
