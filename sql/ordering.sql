--
-- Order: ordered messages of a channel are delivered one after another, in the order in which they
-- were sent, whatever their ids, their transactions and the clock are, and whatever is deleted.
--
-- Workers stay out of this database.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;

-- Sends ordered messages of these names by one mq_insert.
CREATE FUNCTION pg_temp.append(names text[], channel text DEFAULT 'steps', args text DEFAULT '') RETURNS void
LANGUAGE sql AS $$
  SELECT mq_insert(array_agg((md5(channel || args || name)::uuid, '0', 4, '1 hour', channel, args, NULL, true, name, NULL, NULL)::mq_new_t
                             ORDER BY n))
    FROM unnest(names) WITH ORDINALITY AS u (name, n)
$$;
CREATE FUNCTION pg_temp.id(name text, channel text DEFAULT 'steps', args text DEFAULT '') RETURNS uuid
LANGUAGE sql AS $$ SELECT md5(channel || args || name)::uuid $$;

-- Polls and deletes until nothing is ready; the names in the order in which they came.
CREATE FUNCTION pg_temp.drain(channel text DEFAULT 'steps') RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
  names text[] := '{}';
  message record;
BEGIN
  LOOP
    SELECT * INTO message FROM mq_poll(ARRAY[channel], 1);
    IF message.id IS NULL THEN RETURN names; END IF;
    names := names || message.name;
    PERFORM mq_delete(ARRAY[message.id]);
  END LOOP;
END $$;

-- The chain: each message and the one it was appended after.
CREATE VIEW chain AS
  SELECT m.channel_name, m.channel_args, p.name,
         CASE WHEN m.after_message_id = '00000000-0000-0000-0000-000000000000' THEN 'head'
              ELSE (SELECT b.name FROM mq_payloads b WHERE b.id = m.after_message_id) END AS after
    FROM mq_msgs m JOIN mq_payloads p USING (id)
   ORDER BY m.channel_name, m.channel_args, m.seq;

-- The order of an array is the array's, not that of the ids.
SELECT mq_insert(ARRAY[
  ('00000000-0000-0000-0000-000000000003', '0', 4, '1 hour', 'steps', '', NULL, true, 'first', NULL, NULL)::mq_new_t,
  ('00000000-0000-0000-0000-000000000002', '0', 4, '1 hour', 'steps', '', NULL, true, 'second', NULL, NULL)::mq_new_t,
  ('00000000-0000-0000-0000-000000000004', '0', 4, '1 hour', 'steps', '', NULL, true, 'third', NULL, NULL)::mq_new_t,
  ('00000000-0000-0000-0000-000000000001', '0', 4, '1 hour', 'steps', '', NULL, true, 'fourth', NULL, NULL)::mq_new_t]);
SELECT * FROM chain;
SELECT pg_temp.drain();

-- A poll gets the head only, however many it asks for, and nothing else until that is deleted.
SELECT pg_temp.append('{one,two,three}');
SELECT name FROM mq_poll(NULL, 10);
SELECT name FROM mq_poll(NULL, 10);
SELECT mq_delete(ARRAY[pg_temp.id('one')]);
SELECT pg_temp.drain();

-- Across transactions.
SELECT pg_temp.append('{a,b}');
SELECT pg_temp.append('{c}');
SELECT pg_temp.append('{d,e}');
SELECT pg_temp.drain();

-- Many appends in one transaction.
BEGIN;
SELECT pg_temp.append('{1}');
SELECT pg_temp.append('{2,3}');
SELECT mq_send('steps', name => '4', ordered => true) IS NOT NULL AS sent;
SELECT pg_temp.append('{5}');
SELECT count(*) FROM mq_send_many('steps', '{1,2}', name => '6 and 7', ordered => true);
COMMIT;
SELECT pg_temp.drain();
DO $$
BEGIN
  FOR i IN 1..50 LOOP
    PERFORM pg_temp.append(ARRAY[i::text]);
  END LOOP;
END $$;
SELECT pg_temp.drain() = (SELECT array_agg(i::text ORDER BY i) FROM generate_series(1, 50) AS i) AS in_order;

-- A savepoint is rolled back in between: what was appended behind it joins what is left.
BEGIN;
SELECT pg_temp.append('{a}');
SAVEPOINT s;
SELECT pg_temp.append('{b,c}');
ROLLBACK TO s;
SELECT pg_temp.append('{d}');
SAVEPOINT t;
SELECT pg_temp.append('{e}');
ROLLBACK TO t;
SELECT pg_temp.append('{f}');
COMMIT;
SELECT * FROM chain;
SELECT pg_temp.drain();
-- The same with a tail that was there before.
SELECT pg_temp.append('{a}');
BEGIN;
SAVEPOINT s;
SELECT pg_temp.append('{b}');
ROLLBACK TO s;
SELECT pg_temp.append('{c}');
COMMIT;
SELECT * FROM chain;
SELECT pg_temp.drain();

-- Several channels in one call: each keeps its own order, and all heads are ready at once. Channels whose name
-- and arguments look alike together are different channels.
SELECT mq_insert(array_agg((gen_random_uuid(), '0', 4, '1 hour', channel, args, NULL, ordered, name, NULL, NULL)::mq_new_t ORDER BY n))
  FROM (VALUES (1, 'ab', 'c', true, 'ab/c 1'), (2, 'a', 'bc', true, 'a/bc 1'), (3, 'ab', 'c', true, 'ab/c 2'),
               (4, 'abc', '', true, 'abc/ 1'), (5, 'ab', 'c', false, 'ab/c beside'), (6, 'a', 'bc', true, 'a/bc 2'))
    AS v (n, channel, args, ordered, name);
SELECT * FROM chain WHERE after IS NOT NULL;
SELECT array_agg(name ORDER BY name) AS ready FROM mq_poll(NULL, 10);
SELECT mq_clear_all();

-- A delayed head holds up what is behind it, and nothing else.
SELECT mq_send('steps', name => 'delayed', ordered => true, delay => '1 hour') IS NOT NULL AS sent;
SELECT pg_temp.append('{behind}');
SELECT mq_send('steps', name => 'unordered', retry_backoff => '2 hours') IS NOT NULL AS sent;
SELECT pg_temp.append('{elsewhere}', args => 'x');
SELECT array_agg(name ORDER BY name) AS ready FROM mq_poll(NULL, 10);
SELECT wait_time BETWEEN '59 s' AND '60 s' AS waits FROM mq_poll(NULL, 10);
SELECT mq_clear_all();

-- Deleting in the middle, at the tail, at the head, several at once.
SELECT pg_temp.append('{a,b,c,d,e,f,g}');
SELECT mq_delete(ARRAY[pg_temp.id('c')]);
SELECT mq_delete(ARRAY[pg_temp.id('g')]);
SELECT mq_latest_message('steps', '') = pg_temp.id('f') AS tail_is_f;
SELECT pg_temp.append('{h}');
SELECT mq_delete(ARRAY[pg_temp.id('d'), pg_temp.id('a'), pg_temp.id('b')]);
SELECT name FROM chain;
SELECT after FROM chain LIMIT 1;
SELECT pg_temp.drain();
SELECT mq_latest_message('steps', '') AS tail;

-- The tail is deleted, and more is appended, in one transaction in either order.
SELECT pg_temp.append('{a}');
BEGIN;
SELECT mq_delete(ARRAY[pg_temp.id('a')]);
SELECT pg_temp.append('{b}');
COMMIT;
SELECT * FROM chain;
BEGIN;
SELECT pg_temp.append('{c,d}');
SELECT mq_delete(ARRAY[pg_temp.id('b')]);
SELECT mq_delete(ARRAY[pg_temp.id('d')]);
SELECT pg_temp.append('{e}');
COMMIT;
SELECT name FROM chain;
SELECT pg_temp.drain();
-- Deleting is undone by a rollback.
SELECT pg_temp.append('{a,b}');
BEGIN;
SELECT mq_delete(ARRAY[pg_temp.id('a')]);
ROLLBACK;
SELECT * FROM chain;
SELECT pg_temp.drain();

-- Clearing one channel leaves the order of the others.
SELECT pg_temp.append('{a,b}');
SELECT pg_temp.append('{x,y}', channel => 'other');
SELECT mq_clear('{steps}');
SELECT pg_temp.append('{c,d}');
SELECT * FROM chain;
SELECT mq_clear_all();

-- The clock has no say: it stood in the future when the tail was sent.
SELECT pg_temp.append('{a,b}');
UPDATE mq_msgs SET created_at = created_at + interval '1 day';
SELECT pg_temp.append('{c}');
UPDATE mq_msgs SET created_at = created_at - interval '3 days' WHERE id = pg_temp.id('c');
SELECT pg_temp.append('{d,e}');
SELECT pg_temp.drain();

-- A transaction may be set READ ONLY when it has sent.
SELECT pg_temp.append('{a}');
BEGIN;
SELECT pg_temp.append('{b}');
SET TRANSACTION READ ONLY;
COMMIT;
-- Or when it has polled and that took a part of the lease.
SELECT mq_send('lease', retry_backoff => '100 ms') IS NOT NULL AS sent;
BEGIN;
SELECT count(id) FROM mq_poll('{lease}');
SELECT pg_sleep(0.02);
SET TRANSACTION READ ONLY;
COMMIT;
SELECT mq_clear('{lease}');
SELECT pg_temp.drain();

-- A sequence that was set back does not put a message before older ones: neither before the tail, nor where the channel is
-- empty by now.
SELECT pg_temp.append('{a,b}');
SELECT setval('mq_msgs_seq', 1) IS NOT NULL AS set_back;
SELECT pg_temp.append('{c,d}');
SELECT pg_temp.drain();
SELECT setval('mq_msgs_seq', 1) IS NOT NULL AS set_back;
SELECT pg_temp.append('{a}');
SELECT pg_temp.append('{b}');
SELECT pg_temp.drain();

-- There is no nil row to be removed.
SELECT mq_delete(ARRAY['00000000-0000-0000-0000-000000000000'::uuid]);
SELECT mq_clear(ARRAY['']);
SELECT pg_temp.append('{a,b}');
SELECT pg_temp.append('{in,nameless}', channel => '');
SELECT * FROM chain;
SELECT pg_temp.drain(), pg_temp.drain('');

-- Five thousand channels in one call, and another five hundred one by one: their number is not that of the locks.
BEGIN;
SELECT mq_insert(array_agg((gen_random_uuid(), '0', 4, '1 hour', 'wide', (n % 5000)::text, NULL, true, n::text, NULL, NULL)::mq_new_t ORDER BY n))
  FROM generate_series(1, 10000) AS n;
SELECT count(*) <= 1024 AS few_locks FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory';
COMMIT;
SELECT mq_clear('{wide}');
BEGIN;
SELECT count(mq_send('narrow', channel_args => n::text, ordered => true)) FROM generate_series(1, 500) AS n;
SELECT count(*) FILTER (WHERE objsubid = 28021) AS channels, count(*) <= 256 + 500 AS few_locks FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory';
ROLLBACK;
BEGIN;
SELECT mq_insert(array_agg((gen_random_uuid(), '0', 4, '1 hour', 'wide', (n % 5000)::text, NULL, true, n::text, NULL, NULL)::mq_new_t ORDER BY n))
  FROM generate_series(1, 10000) AS n;
COMMIT;
SELECT count(*) AS messages, count(*) FILTER (WHERE after = 'head') AS heads FROM chain;
SELECT count(*) FROM mq_poll(NULL, 10000);

DROP VIEW chain;
DROP EXTENSION mq;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
