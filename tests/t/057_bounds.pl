# What failing handlers leave behind is bounded: how long the texts in mq_failures and mq_dead are, and how many failures
# a message has there that fails at once every time.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('bounds', 'mq.max_workers' => 1);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }

sql(q{
	CREATE EXTENSION mq;
	CREATE TABLE handled (n int);
	-- Quotes what it was sent; characters of two bytes, so that a cut at any byte shows.
	CREATE FUNCTION quote(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE text text := m.payload_json ->> 'text';
	BEGIN
	  IF m.payload_json ? 'n' THEN
	    INSERT INTO handled VALUES ((m.payload_json ->> 'n')::int);
	  ELSIF m.payload_json ? 'reason' THEN
	    PERFORM mq_discard(text);
	  ELSE
	    RAISE EXCEPTION '%', text USING DETAIL = 'x' || text, HINT = text, ERRCODE = 'P0099';
	  END IF;
	END $$;
	CREATE FUNCTION fail(jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
	-- Fails when it is committed.
	CREATE FUNCTION quote_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '%', repeat('é', NEW.n); END $$;
	CREATE TABLE late (n int);
	CREATE CONSTRAINT TRIGGER late AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION quote_late();
	CREATE FUNCTION fail_late(p jsonb) RETURNS void LANGUAGE sql AS 'INSERT INTO late VALUES ((p ->> ''size'')::int)';
	SELECT mq_register_handler('quote', 'quote(mq_message)'),
	       mq_register_handler('quote leased', 'quote(mq_message)', mode => 'leased'),
	       mq_register_handler('late', 'fail_late(jsonb)'),
	       mq_register_handler('fail', 'fail(jsonb)')});

my $large = q{jsonb_build_object('text', repeat('é', 10000000))};
my $whole = q{replace(TEXT, 'é', '') = ' ... (cut, 20000000 bytes)'};
for my $channel ('quote', 'quote leased') {
	sql(qq{SELECT mq_send('$channel', $large, retries => 0), mq_send('$channel', '{"n": 1}')});
	within(60, $node, $db, 'SELECT reason, sqlstate FROM mq_dead', 'exhausted|P0099', "$channel: an error that quotes 20 MB is recorded");
	within(30, $node, $db, 'SELECT count(*) FROM handled', 1, "$channel: the message behind it is handled");
	for my $table ('mq_failures', 'mq_dead') {
		holds($node, $db, qq{SELECT greatest(octet_length(error), octet_length(detail), octet_length(hint), octet_length(context)) BETWEEN 8000 AND 8192 FROM $table},
			't', "$channel: each text in $table has 8 kB at most");
		holds($node, $db, "SELECT @{[$whole =~ s/TEXT/error/r]}, @{[$whole =~ s/TEXT/hint/r]}, replace(detail, 'é', '') FROM $table",
			't|t|x ... (cut, 20000001 bytes)', "$channel: $table: cut between characters, with the length that it had");
	}
	sql('TRUNCATE handled, mq_dead, mq_failures');
	sql(qq{SELECT mq_send('$channel', $large || '{"reason": true}')});
	within(60, $node, $db, 'SELECT reason, octet_length(error) BETWEEN 8000 AND 8192 FROM mq_dead', 'discarded|t', "$channel: and a reason to discard");
	sql('TRUNCATE mq_dead');
}
sql(q{SELECT mq_send('late', '{"size": 100000}', retries => 0)});
within(60, $node, $db, q{SELECT replace(error, 'é', '') FROM mq_dead}, ' ... (cut, 200000 bytes)', 'an error that comes only at COMMIT is cut as well');
is(($node->psql($db, q{DO $$ BEGIN RAISE EXCEPTION '%', (SELECT length(error) FROM mq_dead); END $$}))[0], 3, 'the server is there');
sql('TRUNCATE mq_dead, mq_failures');

# Fifty messages without a backoff.
sql(q{SELECT mq_send_many('fail', array_fill('{}'::jsonb, '{50}'), retries => 100000, retry_backoff => '0')});
within(60, $node, $db, 'SELECT min(attempt) >= 11 FROM mq_msgs', 't', 'messages fail again and again');
sql(q{SELECT mq_pause('fail')});
within(30, $node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND state = 'active'}, 0, 'the worker is through');
holds($node, $db, q{
	SELECT count(*) FROM mq_msgs m WHERE ARRAY(SELECT f.attempt FROM mq_failures f WHERE f.message_id = m.id ORDER BY f.failure_no)
	  IS DISTINCT FROM ARRAY(SELECT n FROM unnest('{1,2,3,4,5,8,16,32,64}'::int[]) n WHERE n < m.attempt ORDER BY n) || m.attempt},
	0, 'of each the first failures are kept, those at powers of two, and the last one');
holds($node, $db, q{
	SELECT count(*) FROM mq_msgs m JOIN LATERAL (SELECT max(f.failed_at) AS at FROM mq_failures f WHERE f.message_id = m.id) f ON true
	 WHERE m.attempt_at < f.at + interval '0.9 s'}, 0, 'by then they are tried once a second');

log_is_clean($node);
$node->stop;
done_testing();
