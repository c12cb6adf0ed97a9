--
-- Two-phase messages: hidden until mq_commit, removed when their commit interval has passed, and
-- due when they were meant to be whatever happens in between.
--
-- Workers stay out of this database.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;

CREATE FUNCTION pg_temp.id(n int) RETURNS uuid LANGUAGE sql AS $$ SELECT lpad(n::text, 32, '0')::uuid $$;
-- As if so much time had passed.
CREATE FUNCTION pg_temp.pass(passed interval) RETURNS void LANGUAGE sql AS $$
  UPDATE mq_msgs SET attempt_at = attempt_at - passed, created_at = created_at - passed
$$;

-- Hidden until it is committed; then it is due at once.
SELECT mq_send('work', '1', commit_interval => '10 minutes', id => pg_temp.id(1));
SELECT id, wait_time BETWEEN '59 s' AND '1 min' AS waits FROM mq_poll('{work}', 10);
SELECT mq_commit(ARRAY[pg_temp.id(1)]);
SELECT commit_interval, attempt_at <= now() AS due FROM mq_msgs;
SELECT id, is_committed FROM mq_poll('{work}', 10);
SELECT mq_clear_all();

-- mq_commit returns what it committed, in the order given and each once: not what it does not find, what was
-- committed before, or what is no two-phase message.
SELECT mq_send('work', commit_interval => '1 minute', id => pg_temp.id(n)) FROM generate_series(1, 3) AS n;
SELECT mq_send('work', id => pg_temp.id(4));
SELECT mq_commit(ARRAY[pg_temp.id(3), pg_temp.id(9), pg_temp.id(1), pg_temp.id(4), pg_temp.id(3)]);
SELECT mq_commit(ARRAY[pg_temp.id(3), pg_temp.id(2)]);
SELECT mq_commit(ARRAY[pg_temp.id(1), pg_temp.id(2), pg_temp.id(3)]);
SELECT mq_commit('{}');
SELECT id FROM mq_poll('{work}', 10) ORDER BY id;
SELECT mq_clear_all();

-- The delay is kept: it is counted from when the message was sent.
SELECT mq_send('work', commit_interval => '10 minutes', delay => '1 hour', id => pg_temp.id(1));
SELECT mq_commit(ARRAY[pg_temp.id(1)]);
SELECT attempt_at - created_at AS due_after FROM mq_msgs;
SELECT mq_clear_all();

-- What is committed with no retries has its one attempt.
SELECT mq_send('work', commit_interval => '10 minutes', retries => 0, id => pg_temp.id(1));
SELECT id FROM mq_poll('{work}', 10);
SELECT mq_commit(ARRAY[pg_temp.id(1)]);
SELECT id, is_committed FROM mq_poll('{work}', 10);
SELECT mq_clear_all();

-- Expired: removed by whoever polls first, payload and all; never delivered, never dead, and not to be
-- committed any more, before that or after.
SELECT mq_send('work', commit_interval => '10 minutes', id => pg_temp.id(1));
SELECT mq_send('work', '2', id => pg_temp.id(2), delay => '9 minutes');
SELECT pg_temp.pass('10 minutes');
SELECT mq_commit(ARRAY[pg_temp.id(1)]);
SELECT id FROM mq_poll('{work}', 1);
SELECT id FROM mq_poll('{work}', 10);
SELECT mq_commit(ARRAY[pg_temp.id(1)]);
SELECT (SELECT array_agg(id) FROM mq_msgs) AS messages, (SELECT array_agg(id) FROM mq_payloads) AS payloads,
       (SELECT count(*) FROM mq_dead) AS dead, (SELECT count(*) FROM mq_failures) AS failures;
SELECT mq_clear_all();
-- Nobody needs to poll that channel: mq_run removes it as well.
SELECT mq_send('unwatched', commit_interval => '10 minutes', id => pg_temp.id(1));
SELECT mq_send('unwatched', commit_interval => '30 minutes', id => pg_temp.id(2));
SELECT pg_temp.pass('10 minutes');
CALL mq_run();
SELECT (SELECT array_agg(id) FROM mq_msgs) AS messages, (SELECT array_agg(id) FROM mq_payloads) AS payloads;
SELECT mq_clear_all();

-- A commit that is rolled back is none.
SELECT mq_send('work', commit_interval => '10 minutes', id => pg_temp.id(1));
BEGIN;
SELECT mq_commit(ARRAY[pg_temp.id(1)]);
ROLLBACK;
SELECT id FROM mq_poll('{work}', 10);
SELECT mq_commit(ARRAY[pg_temp.id(1)]);
SELECT mq_clear_all();

-- mq_keep_alive and mq_checkpoint put the expiry off and leave alone when the message is due.
SELECT mq_send('work', '"old"', commit_interval => '1 minute', id => pg_temp.id(1));
SELECT mq_send('work', '"old"', commit_interval => '1 minute', id => pg_temp.id(2));
SELECT mq_send('work', commit_interval => '1 hour', id => pg_temp.id(3));
SELECT mq_keep_alive(ARRAY[pg_temp.id(1), pg_temp.id(3)], '5 minutes');
SELECT mq_checkpoint(pg_temp.id(2), '5 minutes', '"new"', '\x01', NULL);
SELECT pg_temp.pass('2 minutes');
SELECT id FROM mq_poll('{work}', 10);
SELECT mq_commit(ARRAY[pg_temp.id(1), pg_temp.id(2), pg_temp.id(3)]);
SELECT id, abs(extract(epoch FROM attempt_at - created_at)) < 0.001 AS due_when_sent FROM mq_msgs ORDER BY id;
SELECT id, payload_json, payload_bytes FROM mq_poll('{work}', 10) ORDER BY id;
SELECT mq_clear_all();
-- So does one whose delay is not over.
SELECT mq_send('work', commit_interval => '1 minute', delay => '1 hour', id => pg_temp.id(1));
SELECT mq_keep_alive(ARRAY[pg_temp.id(1)], '2 hours');
SELECT mq_commit(ARRAY[pg_temp.id(1)]);
SELECT abs(extract(epoch FROM attempt_at - created_at) - 3600) < 0.001 AS due_after_an_hour FROM mq_msgs;
SELECT mq_clear_all();

-- Months do not have the same length, nor days across a change of the clocks: what the commit interval adds it
-- takes away again. A negative one is refused.
SET TimeZone = 'Europe/Berlin';
SELECT count(*) AS sent
  FROM unnest(ARRAY['1 month', '1 month 30 days', '1 year 1 month -1 day', '13 months', '200 days']::interval[]) AS i
 CROSS JOIN unnest(ARRAY['0', '1 month', '100 days']::interval[]) AS delay,
       LATERAL mq_send('work', commit_interval => i, delay => delay, name => delay::text);
SELECT cardinality(mq_commit(array_agg(id))) AS committed FROM mq_msgs;
SELECT bool_and(attempt_at = created_at + name::interval) AS due_as_sent FROM mq_msgs JOIN mq_payloads USING (id);
RESET TimeZone;
SELECT mq_send('work', commit_interval => '-1 month');
SELECT mq_clear_all();

-- A two-phase message in an ordered channel holds its place, and holds up what is behind it until it is
-- committed or expires.
SELECT mq_send('steps', name => 'first', ordered => true, commit_interval => '10 minutes', id => pg_temp.id(1));
SELECT mq_send('steps', name => 'second', ordered => true, id => pg_temp.id(2));
SELECT mq_send('steps', name => 'third', ordered => true, commit_interval => '10 minutes', id => pg_temp.id(3));
SELECT mq_send('steps', name => 'fourth', ordered => true, id => pg_temp.id(4));
SELECT name FROM mq_poll('{steps}', 10);
SELECT mq_commit(ARRAY[pg_temp.id(1)]);
SELECT name FROM mq_poll('{steps}', 10);
SELECT mq_delete(ARRAY[pg_temp.id(1)]);
SELECT name FROM mq_poll('{steps}', 10);
SELECT mq_delete(ARRAY[pg_temp.id(2)]);
SELECT name FROM mq_poll('{steps}', 10);
SELECT pg_temp.pass('10 minutes');
SELECT name FROM mq_poll('{steps}', 10);
SELECT id FROM mq_msgs;
SELECT mq_clear_all();

-- Handlers get a two-phase message when it is committed, and not when it has expired.
CREATE TABLE handled (payload jsonb);
CREATE FUNCTION handle(payload jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO handled VALUES (payload) $$;
SELECT mq_register_handler('work', 'handle(jsonb)');
SELECT mq_send('work', '"committed"', commit_interval => '10 minutes', id => pg_temp.id(1));
SELECT mq_send('work', '"expired"', commit_interval => '5 minutes', id => pg_temp.id(2));
CALL mq_run();
SELECT mq_commit(ARRAY[pg_temp.id(1)]);
SELECT pg_temp.pass('5 minutes');
CALL mq_run();
SELECT payload FROM handled;
SELECT count(*) FROM mq_msgs;
SELECT mq_unregister_handler('work');
DROP FUNCTION handle(jsonb);
DROP TABLE handled;

DROP EXTENSION mq;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
