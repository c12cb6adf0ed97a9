--
-- priority of a message: of what is due in a channel the greatest comes first; all that looks for what is due sees
-- such messages as any other.
--
-- Workers stay out of this database.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
SET timezone = 'UTC';
CREATE EXTENSION mq;

CREATE TABLE handled (n serial, name text, attempt int);
CREATE FUNCTION handle(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO handled (name, attempt) VALUES (message.name, message.attempt);
  IF message.payload_json = '"snooze"' AND (SELECT count(*) FROM handled WHERE name = message.name) = 1 THEN
    PERFORM mq_snooze('1 hour');
  ELSIF message.payload_json = '"send"' THEN
    PERFORM mq_send('c', name => 'sent by ' || message.name, priority => 3);
  END IF;
END $$;
CREATE FUNCTION handle_all(messages mq_message[]) RETURNS void LANGUAGE sql AS $$
  INSERT INTO handled (name, attempt) SELECT m.name, m.attempt FROM unnest(messages) WITH ORDINALITY AS m (id, name, channel_name, channel_args, payload_json, payload_bytes, attempt, attempts_left, created_at, ordered, headers, priority, n) ORDER BY n $$;
CREATE FUNCTION fail(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF message.attempt = 1 THEN RAISE EXCEPTION 'failed'; END IF;
  INSERT INTO handled (name, attempt) VALUES (message.name, message.attempt);
END $$;
-- What was handled since the last look, in order.
CREATE FUNCTION pg_temp.handled() RETURNS text LANGUAGE sql AS $$
  WITH gone AS (DELETE FROM handled RETURNING *) SELECT string_agg(name, ' ' ORDER BY n) FROM gone
$$;
SELECT mq_register_handler('c', 'handle(mq_message)');

-- The greatest first; of one priority the oldest. Ordered messages have priority 0, and come with the others of that.
SELECT count(mq_send('c', name => name, priority => priority, ordered => ordered, channel_args => args))
  FROM (VALUES ('zero', 0, false, ''), ('low', -1, false, ''), ('ordered', 0, true, 'o'), ('lowest', -1000, false, 'x'), ('high', 1, false, ''),
               ('highest', 1000, false, 'y'), ('high', 1, false, 'x'), ('follows', 0, true, 'o'), ('late', 0, false, '')) AS m (name, priority, ordered, args);
CALL mq_run();
SELECT pg_temp.handled();

-- In batches of any size, in leased calls, and to a batch handler.
CREATE FUNCTION pg_temp.six() RETURNS bigint LANGUAGE sql AS $$
  SELECT count(mq_send('c', name => name, priority => priority))
    FROM (VALUES ('3', 0), ('5', -7), ('1', 900), ('4', 0), ('2', 5), ('6', -8)) AS m (name, priority)
$$;
SET mq.batch_size = 1;
SELECT pg_temp.six();
CALL mq_run();
SELECT pg_temp.handled();
SET mq.batch_size = 2;
SELECT pg_temp.six();
CALL mq_run();
SELECT pg_temp.handled();
RESET mq.batch_size;
SELECT mq_register_handler('c', 'handle_all(mq_message[])');
SELECT pg_temp.six();
CALL mq_run();
SELECT pg_temp.handled();
SELECT mq_register_handler('c', 'handle(mq_message)', mode => 'leased');
SELECT pg_temp.six();
CALL mq_run();
SELECT pg_temp.handled();
SELECT mq_register_handler('c', 'handle(mq_message)');

-- mq_run takes no more than it is told, and takes what is sent meanwhile first.
SELECT pg_temp.six();
CALL mq_run(max_messages => 3);
SELECT pg_temp.handled();
CALL mq_run();
SELECT pg_temp.handled();
SET mq.batch_size = 1;
SELECT mq_send('c', '"send"', 'a') IS NOT NULL AND mq_send('c', name => 'b') IS NOT NULL AS sent;
CALL mq_run();
SELECT pg_temp.handled();
RESET mq.batch_size;

-- A poll of any size.
SELECT mq_unregister_handler('c');
SELECT pg_temp.six();
SELECT name FROM mq_poll(NULL, 2);
SELECT name FROM mq_poll(ARRAY['c'], 3);
SELECT name FROM mq_poll(NULL, 3);
SELECT name, next_attempt_at <= interval '1 minute' AS soon FROM (SELECT name, wait_time FROM mq_poll(NULL, 3)) AS p (name, next_attempt_at);
SELECT mq_clear_all();

-- mq_receive: other channels have their share.
SELECT pg_temp.six();
SELECT name, priority FROM mq_receive(batch_size => 1);
SELECT name, priority FROM mq_receive(ARRAY['c'], 2);
SELECT name, priority FROM mq_receive(batch_size => 10);
SELECT count(*) FROM mq_receive(batch_size => 10);
SELECT mq_clear_all();
SELECT mq_register_handler('c', 'handle(mq_message)');

-- One that is due later hides nothing, and comes first when it is due.
SELECT count(mq_send('c', name => 'later', priority => 1000, delay => '1 hour', id => md5('later')::uuid)), count(mq_send('c', name => 'now', priority => -5)),
       count(mq_send('c', name => 'zero'));
CALL mq_run();
SELECT pg_temp.handled();
SELECT channel_name, ready, scheduled FROM mq_stats;
SELECT mq_send('c', name => 'zero') IS NOT NULL AS sent;
UPDATE mq_msgs SET attempt_at = now() WHERE message_name = 'later';
CALL mq_run();
SELECT pg_temp.handled();

-- Of many priorities with messages for later those are found that have something due, and the first that will have.
SELECT mq_unregister_handler('c');
SELECT count(mq_send('c', name => 'later', priority => p, delay => '1 hour')) FROM generate_series(-1000, 1000, 20) AS p;
SELECT count(mq_send('c', name => name, priority => priority, retry_backoff => '1 hour'))
  FROM (VALUES ('3', 0), ('5', -941), ('1', 1000), ('4', -940), ('2', 20), ('6', -1000)) AS m (name, priority);
UPDATE mq_msgs SET attempt_at = now() + interval '50 seconds' WHERE priority = -60;
DELETE FROM mq_msgs WHERE priority = 60;
SELECT name FROM mq_poll('{c}', 4);
SELECT name FROM mq_poll('{c}', 1);
SELECT name FROM mq_poll('{c}', 9);
SELECT mq_delete(array_agg(id)) FROM mq_msgs WHERE message_name <> 'later';
SELECT name, wait_time < interval '1 minute' AS of_the_first FROM mq_poll('{c}', 9);
SELECT mq_clear_all();
SELECT mq_register_handler('c', 'handle(mq_message)');

-- What is tried again, or snoozed, has its priority then.
SELECT mq_register_handler('c', 'fail(mq_message)', 'fails');
SELECT mq_send('c', name => 'fails', priority => 2, retry_backoff => '1 hour') IS NOT NULL AND mq_send('c', name => 'zero') IS NOT NULL AS sent;
CALL mq_run();
SELECT pg_temp.handled();
SELECT message_name, priority, attempt, attempt_at > now() AS later FROM mq_msgs;
UPDATE mq_msgs SET attempt_at = now();
SELECT mq_send('c', name => 'one', priority => 1) IS NOT NULL AND mq_send('c', name => 'three', priority => 3) IS NOT NULL AS sent;
CALL mq_run();
SELECT pg_temp.handled();
SELECT mq_unregister_handler('c', 'fails');
SELECT mq_send('c', '"snooze"', 'snoozed', priority => -2) IS NOT NULL AS sent;
CALL mq_run();
UPDATE mq_msgs SET attempt_at = now();
SELECT mq_send('c', name => 'lower', priority => -3) IS NOT NULL AND mq_send('c', name => 'zero') IS NOT NULL AS sent;
CALL mq_run();
SELECT pg_temp.handled();

-- What waits for others, two-phase messages, and what expires.
SELECT count(mq_send('c', name => name, priority => priority, id => md5(name)::uuid, after => after))
  FROM (VALUES ('first', -1, NULL), ('waits', 1000, ARRAY[md5('first')::uuid]), ('second', -2, NULL), ('third', 0, NULL)) AS m (name, priority, after);
SET mq.batch_size = 1;
CALL mq_run();
RESET mq.batch_size;
SELECT pg_temp.handled();
SELECT mq_send('c', name => 'two-phase', priority => 1, id => md5('two-phase')::uuid, commit_interval => '1 hour') IS NOT NULL
   AND mq_send('c', name => 'gone', priority => 2, expires => '1 ms') IS NOT NULL AND mq_send('c', name => 'zero') IS NOT NULL AS sent;
SELECT pg_sleep(0.002);
CALL mq_run();
SELECT pg_temp.handled();
SELECT name, priority, reason FROM mq_dead;
SELECT mq_send('c', name => 'zero') IS NOT NULL AS sent;
SELECT count(*) FROM mq_commit(ARRAY[md5('two-phase')::uuid]);
CALL mq_run();
SELECT pg_temp.handled();
DELETE FROM mq_dead;

-- A name that no handler takes is put aside, and comes back with its priority.
SELECT mq_unregister_handler('c'), mq_register_handler('c', 'handle(mq_message)', 'known');
SELECT mq_send('c', name => 'unknown', priority => 9) IS NOT NULL AND mq_send('c', name => 'known', priority => -9) IS NOT NULL AS sent;
CALL mq_run();
SELECT pg_temp.handled();
SELECT message_name, attempt_at FROM mq_msgs;
SELECT ok, detail FROM mq_health() WHERE detail LIKE '%unknown%';
SELECT mq_register_handler('c', 'handle(mq_message)');
SELECT mq_send('c', name => 'known', priority => 5) IS NOT NULL AS sent;
CALL mq_run();
SELECT pg_temp.handled();
SELECT mq_unregister_handler('c', 'known');

-- The others look at them, too: mq_stats, mq_health, mq_why, mq_delete, mq_clear.
SELECT mq_unregister_handler('c');
SELECT mq_send('c', name => 'due', priority => -9, id => md5('due')::uuid) IS NOT NULL AND mq_send('d', name => 'later', priority => 9, delay => '1 hour') IS NOT NULL AS sent;
UPDATE mq_msgs SET attempt_at = attempt_at - interval '1 hour' WHERE message_name = 'due';
SELECT channel_name, ready, scheduled, oldest_ready > '1 minute' AS old FROM mq_stats ORDER BY 1;
SELECT "check", ok, regexp_replace(detail, '\(next at .*\)', '(next at ...)') AS detail FROM mq_health() WHERE "check" IN ('channels handled', 'scheduled messages') ORDER BY 1;
SELECT mq_why(md5('due')::uuid);
SELECT mq_delete(ARRAY[md5('due')::uuid]);
SELECT mq_clear('{d}');
SELECT count(*) FROM mq_msgs;

-- Ten thousand of any priority, in the order of a sort.
SELECT setseed(0.5);
CREATE TABLE expected AS SELECT n, (random() * 30 - 15)::int AS priority FROM generate_series(1, 10000) AS n;
UPDATE expected SET priority = 0 WHERE n % 3 = 0;
UPDATE expected SET priority = (random() * 2000 - 1000)::int WHERE n % 50 = 1;
SELECT mq_register_handler('c', 'handle(mq_message)');
SELECT count(mq_send('c', name => n::text, priority => priority)) FROM (SELECT * FROM expected ORDER BY n) AS e;
CALL mq_run();
SELECT count(*), count(*) FILTER (WHERE h.name::int = e.n) AS in_place
  FROM (SELECT name, row_number() OVER (ORDER BY n) AS place FROM handled) AS h
  FULL JOIN (SELECT n, row_number() OVER (ORDER BY priority DESC, n) AS place FROM expected) AS e USING (place);
SELECT count(*) FROM mq_msgs;
TRUNCATE handled;

-- With policies of row-level security claims run a query.
ALTER TABLE mq_msgs ENABLE ROW LEVEL SECURITY;
SET mq.batch_size = 2;
SELECT pg_temp.six();
CALL mq_run();
SELECT pg_temp.handled();
RESET mq.batch_size;
ALTER TABLE mq_msgs DISABLE ROW LEVEL SECURITY;

-- A single send has room for all its locks on the fast path, which are 16 at most: the table, its indexes, the sequence.
SELECT count(*) + 2 <= 14 AS few FROM pg_index WHERE indrelid = 'mq_msgs'::regclass;
\c
BEGIN;
SELECT mq_send('c', name => 'a') IS NOT NULL AND mq_send('c', name => 'b', priority => 1) IS NOT NULL AS sent;
SELECT count(*) FILTER (WHERE NOT fastpath) AS slow FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation';
ROLLBACK;

DROP EXTENSION mq CASCADE;
DROP TABLE handled, expected;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
