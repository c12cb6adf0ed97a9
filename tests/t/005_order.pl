# Ordered messages are handled in the order of their commits, each once, whoever sends and however many workers
# there are; a message that fails holds up its own channel alone.
#
# Flaws 11 to 13 of the original: appenders failed, and wedged their channel.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('order', 'mq.max_workers' => 2);
my $db = 'postgres';
$node->safe_psql($db, 'CREATE EXTENSION mq');
handled_table($node, $db);

# Each sender counts up, in the transaction that appends, what its channel has got so far: the row's lock is
# held to the commit, so the number is the place in the order of commits. Every third takes its lock first, the
# others append first.
$node->safe_psql($db, q{
	CREATE TABLE sent (channel int PRIMARY KEY, n int NOT NULL);
	INSERT INTO sent SELECT c, 0 FROM generate_series(0, 9) c;
	CREATE TABLE effects (e bigserial, channel int, n int, attempt int, pid int DEFAULT pg_backend_pid());
	CREATE FUNCTION take_effect(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO effects (channel, n, attempt)
	  VALUES (message.channel_args::int, (message.payload_json ->> 'n')::int, message.attempt);
	  IF message.attempt = 1 AND message.payload_json ->> 'n' = '50' THEN RAISE 'once'; END IF;
	END $$;
	SELECT mq_register_handler('ordered', 'take_effect(mq_message)')});
my $script = $node->basedir . '/send.sql';
append_to_file($script, q{
\set c random(0, 9)
BEGIN;
UPDATE sent SET n = n + 1 WHERE channel = :c RETURNING n \gset
SELECT mq_send('ordered', jsonb_build_object('n', :n), channel_args => :c::text, ordered => true, retry_backoff => '0.3 s') AS id \gset
COMMIT;
});
$node->command_ok([ 'pgbench', '--no-vacuum', '--client=8', '--transactions=125', '--file', $script, $node->connstr($db) ],
	'1,000 messages are sent by 8 clients');
within(30, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'all are handled');
holds($node, $db, 'SELECT count(*), count(DISTINCT (channel, n)) FROM effects', '1000|1000', 'each once');
holds($node, $db, q{
	SELECT count(*) FROM (SELECT n, row_number() OVER (PARTITION BY channel ORDER BY e) AS nth FROM effects) o WHERE n <> nth}, 0,
	'each channel in the order of its commits');
holds($node, $db, 'SELECT (SELECT count(*) FROM sent WHERE n >= 50) = (SELECT count(*) FROM effects WHERE n = 50 AND attempt = 2)', 't',
	'over messages that failed and were tried again');
holds($node, $db, 'SELECT count(*) FROM mq_payloads', 0, 'no payload is left behind');

# The same while messages are appended out of one transaction to several channels, in array order.
$node->safe_psql($db, 'TRUNCATE effects; UPDATE sent SET n = 0');
my $several = $node->basedir . '/several.sql';
append_to_file($several, q{
\set c random(0, 8)
BEGIN;
SELECT mq_insert(array_agg((gen_random_uuid(), '0', 4, '1 s', 'ordered', s.channel, NULL, true, 'm', jsonb_build_object('n', s.n + k), NULL)::mq_new_t ORDER BY k))
  FROM (SELECT channel, n FROM sent WHERE channel IN (:c, :c + 1) ORDER BY channel FOR UPDATE) s, generate_series(1, 3) k;
UPDATE sent SET n = n + 3 WHERE channel IN (:c, :c + 1);
COMMIT;
});
$node->command_ok([ 'pgbench', '--no-vacuum', '--client=8', '--transactions=25', '--file', $several, $node->connstr($db) ],
	'200 transactions append several messages each');
within(30, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'all are handled');
holds($node, $db, 'SELECT count(*), count(DISTINCT (channel, n)) FROM effects', '1200|1200', 'each once');
holds($node, $db, q{
	SELECT count(*) FROM (SELECT n, row_number() OVER (PARTITION BY channel ORDER BY e) AS nth FROM effects) o WHERE n <> nth}, 0,
	'in order');

# A message that fails: those behind it wait for its retries, another channel's do not.
$node->safe_psql($db, q{
	CREATE FUNCTION fail_twice(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  IF message.name = 'failing' AND message.attempt < 3 THEN RAISE 'not yet'; END IF;
	  PERFORM handle(message);
	END $$;
	SELECT mq_register_handler('c', 'fail_twice(mq_message)');
	BEGIN;
	SELECT mq_send('c', name => 'failing', channel_args => 'one', ordered => true, retry_backoff => '1 s');
	SELECT mq_send('c', name => 'behind', channel_args => 'one', ordered => true);
	SELECT mq_send('c', name => 'beside', channel_args => 'two', ordered => true);
	SELECT mq_send('c', name => 'unordered', channel_args => 'one');
	COMMIT;});
within(10, $node, $db, q{SELECT string_agg(name, ' ' ORDER BY name) FILTER (WHERE name IN ('beside', 'unordered')),
	string_agg(name || ' ' || attempt, ' ' ORDER BY n) FILTER (WHERE name IN ('failing', 'behind')) FROM handled},
	'beside unordered|failing 3 behind 1', 'a message that fails twice is handled on the third attempt, then the one behind it');
holds($node, $db, q{
	WITH attempts AS (SELECT attempt, failed_at AS at FROM mq_failures WHERE channel_name = 'c'
	                  UNION ALL SELECT attempt, at FROM handled WHERE name = 'failing'),
	     waits AS (SELECT attempt, at - lag(at) OVER (ORDER BY attempt) AS wait FROM attempts)
	SELECT attempt, wait >= '1 s'::interval * (attempt - 1) FROM waits WHERE attempt > 1 ORDER BY attempt}, "2|t\n3|t", 'each after its backoff');
holds($node, $db, q{SELECT count(*) FROM handled WHERE name IN ('beside', 'unordered')
	AND n > (SELECT n FROM handled WHERE name = 'failing')}, 0, 'the others did not wait');

# A dead head: its channel goes on, or waits for somebody's decision.
$node->safe_psql($db, q{
	TRUNCATE handled;
	CREATE FUNCTION fail(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  IF message.name = 'dying' THEN RAISE 'never'; END IF;
	  PERFORM handle(message);
	END $$;
	SELECT mq_register_handler('skipping', 'fail(mq_message)');
	SELECT mq_register_handler('blocking', 'fail(mq_message)', on_dead => 'block');
	SELECT mq_send('skipping', name => 'dying', ordered => true, retries => 0), mq_send('skipping', name => 'skipping', ordered => true),
	       mq_send('blocking', name => 'dying', ordered => true, retries => 0), mq_send('blocking', name => 'blocked', ordered => true)});
within(5, $node, $db, 'SELECT channel_name, count(*) FROM mq_dead GROUP BY 1 ORDER BY 1', "blocking|1\nskipping|1", 'both heads are dead');
within(5, $node, $db, q{SELECT string_agg(name, ' ') FROM handled}, 'skipping', 'on_dead = skip: the channel goes on');
holds($node, $db, q{SELECT mq_redrive(channel_name => 'blocking', retries => 0)}, 1, 'on_dead = block: the dead message can be redriven');
within(5, $node, $db, q{SELECT count(*) FROM mq_failures WHERE channel_name = 'blocking'}, 2, 'it is tried again');
within(5, $node, $db, q{SELECT count(*) FROM mq_dead WHERE channel_name = 'blocking'}, 1, 'and dies again');
holds($node, $db, q{SELECT string_agg(name, ' ') FROM handled}, 'skipping', 'where it stood: its channel still waits');
$node->safe_psql($db, q{SELECT mq_delete(array_agg(id)) FROM mq_dead WHERE channel_name = 'blocking'});
within(5, $node, $db, q{SELECT string_agg(name, ' ') FROM handled}, 'skipping blocked', 'and goes on once the message is deleted');

$node->stop;
log_is_clean($node);
done_testing();
