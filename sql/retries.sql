--
-- Failure: what is recorded of a failed attempt, when the message is tried again, when it is dead, and
-- that a failing message takes nothing else along and leaves nothing behind.
--
-- Workers stay out: mq_run does their work here, step by step.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;

CREATE FUNCTION pg_temp.id(n int) RETURNS uuid LANGUAGE sql AS $$ SELECT lpad(n::text, 32, '0')::uuid $$;
-- As if so much time had passed.
CREATE FUNCTION pg_temp.pass(passed interval) RETURNS void LANGUAGE sql AS $$
  UPDATE mq_msgs SET attempt_at = attempt_at - passed
$$;

CREATE TABLE effects (n serial, what text, attempt int);
-- Writes, then fails as long as the payload says so: {"fail": the attempts that fail}.
CREATE FUNCTION handle(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO effects (what, attempt) VALUES (message.name, message.attempt);
  IF message.attempt <= COALESCE((message.payload_json ->> 'fail')::int, 0) THEN
    RAISE EXCEPTION 'attempt % of % failed', message.attempt, message.name
      USING ERRCODE = 'MQ001', DETAIL = 'the detail', HINT = 'the hint';
  END IF;
END $$;
SELECT mq_register_handler('work', 'handle(mq_message)');
SELECT mq_register_handler('steps', 'handle(mq_message)');

-- A failed attempt is recorded with all that the server reported, and leaves no effects. The message waits for
-- its backoff and up to a tenth more, which doubles.
SELECT mq_send('work', '{"fail": 2}', 'job', 'eu', retries => 3, retry_backoff => '100 s', id => pg_temp.id(1));
CALL mq_run();
SELECT message_id, attempt, failed_at <= clock_timestamp() AS failed, channel_name, channel_args, name,
       duration >= '0' AND duration < '10 s' AS lasted, sqlstate, error, detail, hint,
       context LIKE 'PL/pgSQL function %handle(mq_message) line % at RAISE' AS has_context FROM mq_failures;
SELECT attempts, retry_backoff, attempt_at - failed_at BETWEEN '99 s' AND '111 s' AS waits
  FROM mq_msgs m JOIN mq_failures f ON f.message_id = m.id;
SELECT count(*) AS effects FROM effects;
CALL mq_run();
SELECT pg_temp.pass('100 s');
SELECT pg_temp.pass('10 s');
CALL mq_run();
SELECT attempts, retry_backoff, attempt_at - failed_at BETWEEN '199 s' AND '221 s' AS waits
  FROM mq_msgs m JOIN mq_failures f ON f.message_id = m.id AND f.attempt = 2;
-- The third attempt works: its effects are there, once, and the message is gone.
SELECT pg_temp.pass('221 s');
CALL mq_run();
SELECT what, attempt FROM effects;
SELECT (SELECT count(*) FROM mq_msgs) AS messages, (SELECT count(*) FROM mq_payloads) AS payloads, (SELECT count(*) FROM mq_dead) AS dead;
SELECT attempt, error FROM mq_failures ORDER BY failure_no;
TRUNCATE effects, mq_failures;

-- Dead after retries + 1 attempts, with the last error.
SELECT mq_send('work', '{"fail": 99}', 'job', 'eu', retries => 2, retry_backoff => '0', payload_bytes => '\x01', id => pg_temp.id(1));
CALL mq_run();
SELECT attempt, error FROM mq_failures ORDER BY failure_no;
SELECT id, channel_name, channel_args, name, payload_json, payload_bytes, ordered, attempts_made, reason, sqlstate, error, detail, hint,
       context LIKE 'PL/pgSQL function %' AS has_context, died_at >= created_at AS died FROM mq_dead;
SELECT (SELECT count(*) FROM mq_msgs) AS messages, (SELECT count(*) FROM mq_payloads) AS payloads, (SELECT count(*) FROM effects) AS effects;
TRUNCATE mq_failures, mq_dead;

-- The backoff is doubled up to max_backoff. Jitter is at most a tenth, and not the same for all.
SELECT mq_register_handler('bounded', 'handle(mq_message)', max_backoff => '5 minutes');
SELECT count(*) FROM mq_send_many('bounded', array_fill('{"fail": 99}'::jsonb, ARRAY[50]), retries => 9, retry_backoff => '2 minutes');
DO $$
DECLARE
  handled bigint := 0;
BEGIN
  FOR attempt IN 1..4 LOOP
    CALL mq_run(handled => handled);
    UPDATE mq_msgs SET attempt_at = now();
  END LOOP;
  CALL mq_run(handled => handled);
END $$;
SELECT attempt, count(*) FROM mq_failures GROUP BY attempt ORDER BY attempt;
SELECT DISTINCT attempts, retry_backoff FROM mq_msgs;
SELECT bool_and(waits BETWEEN '299 s' AND '331 s') AS bounded, max(waits) - min(waits) > '3 s' AS spread
  FROM (SELECT attempt_at - failed_at AS waits FROM mq_msgs m JOIN mq_failures f ON f.message_id = m.id AND f.attempt = 5) AS w;
SELECT mq_clear_all();
TRUNCATE mq_failures;
-- Doubling goes 2, 4, 5 minutes.
SELECT mq_send('bounded', '{"fail": 99}', retry_backoff => '2 minutes') IS NOT NULL AS sent;
CALL mq_run();
SELECT retry_backoff FROM mq_msgs;
UPDATE mq_msgs SET attempt_at = now();
CALL mq_run();
SELECT retry_backoff FROM mq_msgs;
-- A backoff that was longer to begin with, or that somebody changed to nonsense, is bounded as well.
UPDATE mq_msgs SET attempt_at = now(), retry_backoff = '178000000 years';
CALL mq_run();
SELECT attempt_at - now() < '331 s' AS bounded, retry_backoff FROM mq_msgs;
SELECT mq_clear_all();
TRUNCATE mq_failures;

-- In an ordered channel nothing overtakes a message that waits for its retry. Other channels go on.
SELECT mq_send('steps', '{}', 'a', ordered => true) IS NOT NULL
   AND mq_send('steps', '{"fail": 1}', 'b', ordered => true, retry_backoff => '1 hour') IS NOT NULL
   AND mq_send('steps', '{}', 'c', ordered => true) IS NOT NULL
   AND mq_send('steps', '{}', 'other', 'x', ordered => true) IS NOT NULL
   AND mq_send('steps', '{}', 'unordered') IS NOT NULL AS sent;
CALL mq_run();
SELECT array_agg(what ORDER BY what) AS handled FROM effects;
SELECT mq_send('steps', '{}', 'd', ordered => true) IS NOT NULL AS sent;
CALL mq_run();
SELECT pg_temp.pass('2 hours');
CALL mq_run();
SELECT array_agg(what ORDER BY n) AS handled FROM effects WHERE what IN ('a', 'b', 'c', 'd');
TRUNCATE effects, mq_failures;

-- on_dead => 'skip': a dead message lets its ordered channel go on.
SELECT mq_send('steps', '{"fail": 99}', 'a', ordered => true, retries => 1, retry_backoff => '0', id => pg_temp.id(1));
SELECT mq_send('steps', '{}', 'b', ordered => true) IS NOT NULL AS sent;
CALL mq_run();
SELECT what FROM effects;
SELECT name, ordered, attempts_made, reason FROM mq_dead;
-- mq_redrive: it joins the tail, with its own id and new attempts.
SELECT mq_pause('steps');
SELECT mq_send('steps', '{}', 'c', ordered => true) IS NOT NULL AS sent;
SELECT mq_redrive(ARRAY[pg_temp.id(1)], retries => 0);
SELECT count(*) FROM mq_dead;
SELECT p.name, p.payload_json, m.attempts, m.id = pg_temp.id(1) AS its_id, m.after_message_id = lag(m.id) OVER (ORDER BY m.seq) AS linked
  FROM mq_msgs m JOIN mq_payloads p USING (id) ORDER BY m.seq;
SELECT mq_resume('steps');
CALL mq_run();
SELECT array_agg(what ORDER BY n) AS handled FROM effects;
SELECT name, attempts_made, reason FROM mq_dead;
TRUNCATE effects, mq_failures, mq_dead;

-- on_dead => 'block': nothing behind it is handled until it is redriven, to its place, or deleted.
SELECT mq_register_handler('blocking', 'handle(mq_message)', on_dead => 'block');
SELECT mq_send('blocking', '{"fail": 99}', 'a', ordered => true, retries => 0, id => pg_temp.id(1));
SELECT mq_send('blocking', '{}', 'b', ordered => true) IS NOT NULL AND mq_send('blocking', '{}', 'other', 'x', ordered => true) IS NOT NULL
   AND mq_send('blocking', '{}', 'unordered') IS NOT NULL AS sent;
CALL mq_run();
CALL mq_run();
SELECT array_agg(what ORDER BY what) AS handled FROM effects;
SELECT name, ordered, attempts_made, reason, error FROM mq_dead;
SELECT mq_send('blocking', '{}', 'c', ordered => true) IS NOT NULL AS sent;
SELECT name, wait_time FROM mq_poll('{blocking}');
TRUNCATE effects;
UPDATE mq_dead SET payload_json = '{}';
SELECT mq_redrive(channel_name => 'blocking', retries => 7);
SELECT attempts, attempt, count(*) FROM mq_msgs WHERE id = pg_temp.id(1) GROUP BY 1, 2;
CALL mq_run();
SELECT array_agg(what ORDER BY n) AS handled FROM effects;
TRUNCATE effects, mq_failures, mq_dead;
-- Several at once, one of them with a dedup_key and one that somebody deletes meanwhile, among letters that block nothing.
SELECT mq_send('blocking', '{"fail": 99}', 'a1', 'a', ordered => true, retries => 0, dedup_key => 'k') IS NOT NULL
   AND mq_send('blocking', '{}', 'a2', 'a', ordered => true) IS NOT NULL
   AND mq_send('blocking', '{"fail": 99}', 'b1', 'b', ordered => true, retries => 0) IS NOT NULL
   AND mq_send('blocking', '{}', 'b2', 'b', ordered => true) IS NOT NULL
   AND mq_send('blocking', '{"fail": 99}', 'u', retries => 0) IS NOT NULL
   AND mq_send('blocking', '{"fail": 99}', 'gone', 'c', ordered => true, retries => 0) IS NOT NULL AS sent;
CALL mq_run();
UPDATE mq_dead SET payload_json = '{}';
DELETE FROM mq_msgs m USING mq_dead d WHERE d.id = m.id AND d.name = 'gone';
SELECT mq_redrive(channel_name => 'blocking');
SELECT name, dedup_key FROM mq_msgs JOIN mq_payloads USING (id) WHERE dedup_key IS NOT NULL;
CALL mq_run();
SELECT array_agg(what ORDER BY what) AS handled FROM effects;
SELECT bool_and(n = o) AS in_order FROM (SELECT n, first_value(n) OVER w + row_number() OVER w - 1 AS o, what FROM effects WHERE what ~ '^a'
  WINDOW w AS (ORDER BY what)) AS e;
SELECT count(*) FROM mq_dead;
-- While another message has the key the dead one stays where it is, and blocks.
SELECT mq_send('blocking', '{"fail": 99}', 'a1', 'a', ordered => true, retries => 0, dedup_key => 'k') IS NOT NULL AS sent;
CALL mq_run();
SELECT mq_send('blocking', '{}', 'a2', 'a', ordered => true, dedup_key => 'k') IS NOT NULL AS sent;
SELECT mq_redrive(channel_name => 'blocking');
SELECT mq_clear('{blocking}');
TRUNCATE effects, mq_failures, mq_dead;

-- Numbers that were set back are moved on, and nobody fails because of that.
SELECT mq_send('steps', '{"fail": 99}', 'a', retries => 0) IS NOT NULL AND mq_send('steps', '{"fail": 99}', 'b', retries => 1, retry_backoff => '0') IS NOT NULL AS sent;
CALL mq_run();
SELECT setval('mq_dead_dead_no_seq', (SELECT min(dead_no) FROM mq_dead), false) IS NOT NULL
   AND setval('mq_failures_failure_no_seq', (SELECT min(failure_no) FROM mq_failures), false) IS NOT NULL AS set_back;
SELECT mq_send('steps', '{"fail": 99}', 'c', retries => 0) IS NOT NULL AS sent;
CALL mq_run();
SELECT name FROM mq_dead ORDER BY dead_no;
SELECT name, count(*) FROM mq_failures GROUP BY name ORDER BY min(failure_no);
TRUNCATE effects, mq_failures, mq_dead;
SELECT (SELECT count(*) FROM mq_msgs) AS messages, (SELECT count(*) FROM mq_payloads) AS payloads, (SELECT count(*) FROM mq_dead) AS dead;
TRUNCATE effects;
-- mq_delete of the message that blocks lets the channel go on; so does deleting its dead letter.
SELECT mq_send('blocking', '{"fail": 99}', 'a', channel, ordered => true, retries => 0, id => pg_temp.id(n)) IS NOT NULL
   AND mq_send('blocking', '{}', 'behind ' || channel, channel, ordered => true) IS NOT NULL AS sent
  FROM (VALUES (1, 'x'), (2, 'y'), (3, 'z')) AS v (n, channel);
CALL mq_run();
SELECT mq_delete(ARRAY[pg_temp.id(1)]);
CALL mq_run();
DELETE FROM mq_dead WHERE id = pg_temp.id(2);
CALL mq_run();
SELECT array_agg(what ORDER BY n) AS handled FROM effects;
-- What is not ordered blocks nothing.
SELECT mq_send('blocking', '{"fail": 99}', 'unordered', retries => 0) IS NOT NULL AND mq_send('blocking', '{}', 'beside') IS NOT NULL AS sent;
CALL mq_run();
SELECT array_agg(what ORDER BY n) AS handled FROM effects;
SELECT name, channel_args, reason FROM mq_dead ORDER BY channel_args;
SELECT mq_clear_all();
TRUNCATE effects, mq_failures, mq_dead;

-- mq_redrive by ids, by channel, by both, and of everything. Without a match it does nothing.
SELECT mq_send(channel, '{"fail": 99}', retries => 0, retry_backoff => '7 s', payload_bytes => '\xff', id => pg_temp.id(n)) IS NOT NULL AS sent
  FROM (VALUES (1, 'work'), (2, 'work'), (3, 'steps'), (4, 'steps'), (5, 'bounded')) AS v (n, channel);
CALL mq_run();
SELECT count(*) FROM mq_dead;
SELECT mq_redrive(ARRAY[pg_temp.id(3)], 'work') AS none, mq_redrive(channel_name => 'nothing') AS none, mq_redrive('{}') AS none;
SELECT mq_redrive(ARRAY[pg_temp.id(1), pg_temp.id(1), pg_temp.id(9)]) AS one;
SELECT mq_redrive(ARRAY[pg_temp.id(1), pg_temp.id(2), pg_temp.id(3)], 'steps', 7) AS one;
SELECT id, channel_name, attempts, retry_backoff, attempt_at <= now() AS due, payload_json, payload_bytes
  FROM mq_msgs JOIN mq_payloads USING (id) ORDER BY id;
SELECT mq_redrive(channel_name => 'work') AS one;
SELECT mq_redrive() AS two;
SELECT (SELECT count(*) FROM mq_msgs) AS messages, (SELECT count(*) FROM mq_dead) AS dead;
SELECT mq_clear_all();
TRUNCATE mq_failures;
-- Redriven ordered messages keep the order in which they died.
SELECT count(*) FROM mq_send_many('steps', array_fill('{"fail": 99}'::jsonb, ARRAY[20]), retries => 0, ordered => true);
CREATE TEMP TABLE sent AS SELECT id, row_number() OVER (ORDER BY seq) AS n FROM mq_msgs;
CALL mq_run();
SELECT mq_redrive();
SELECT count(*) AS messages, bool_and(sent.n = again.n) AS in_order
  FROM sent JOIN (SELECT id, row_number() OVER (ORDER BY seq) AS n FROM mq_msgs) AS again USING (id);
DROP TABLE sent;
SELECT mq_clear_all();
TRUNCATE mq_failures;

-- Timeouts: of the handler, or mq.handler_timeout. A handler that catches what cancels it is failed all the same, and
-- if it goes on it is stopped once more.
CREATE FUNCTION handle_slowly(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO effects (what) VALUES ('slow');
  PERFORM pg_sleep(60);
EXCEPTION WHEN query_canceled THEN
  IF payload IS NULL THEN RAISE; END IF;
  IF payload = '"again"' THEN PERFORM pg_sleep(60); END IF;
END $$;
SELECT mq_register_handler('slow', 'handle_slowly(jsonb)', timeout => '200 ms');
SELECT mq_register_handler('slow by setting', 'handle_slowly(jsonb)');
SET mq.handler_timeout = '900 ms';
SELECT mq_send('slow', retries => 0) IS NOT NULL AND mq_send('slow', '"catch"', retries => 0) IS NOT NULL
   AND mq_send('slow', '"again"', retries => 0) IS NOT NULL
   AND mq_send('slow by setting', retries => 0) IS NOT NULL AND mq_send('work', '{}', 'fast') IS NOT NULL AS sent;
CALL mq_run();
RESET mq.handler_timeout;
SELECT channel_name, payload_json, reason, sqlstate, error FROM mq_dead ORDER BY channel_name, payload_json NULLS FIRST;
SELECT bool_and(duration >= '100 ms' AND duration < '30 s') AS lasted FROM mq_failures;
SELECT what FROM effects;
-- It is of the handler alone: what comes after mq_run is not cancelled.
SELECT pg_sleep(0.3);
SELECT mq_unregister_handler('slow'), mq_unregister_handler('slow by setting');
DROP FUNCTION handle_slowly(jsonb);
TRUNCATE effects, mq_failures, mq_dead;

-- One failing message among five hundred takes nothing else along: all others are handled exactly once.
SELECT count(*)
  FROM mq_send_many('work', retry_backoff => '1 hour', payloads =>
    (SELECT array_agg(CASE WHEN i = 250 THEN '{"fail": 99}' ELSE '{}' END::jsonb) FROM generate_series(1, 500) AS i));
CALL mq_run();
SELECT count(*) AS effects FROM effects;
SELECT count(*) AS failures FROM mq_failures;
SELECT payload_json, attempts FROM mq_msgs JOIN mq_payloads USING (id);
SELECT mq_clear_all();
TRUNCATE effects, mq_failures;
-- Nor does every tenth, nor do all of them.
SELECT count(*)
  FROM mq_send_many('work', retry_backoff => '1 hour', payloads =>
    (SELECT array_agg(CASE WHEN i % 10 = 0 THEN '{"fail": 1}' ELSE '{}' END::jsonb) FROM generate_series(1, 500) AS i));
SELECT count(*) FROM mq_send_many('work', array_fill('{"fail": 1}'::jsonb, ARRAY[100]), 'failing', retry_backoff => '1 hour');
CALL mq_run();
SELECT count(*) AS effects FROM effects;
SELECT count(*) AS failures, count(DISTINCT message_id) AS messages, max(attempt) AS attempts FROM mq_failures;
SELECT pg_temp.pass('2 hours');
CALL mq_run();
SELECT count(*) AS effects FROM effects;
SELECT count(*) FROM mq_msgs;
TRUNCATE effects, mq_failures;

-- The failing message of a batch handler is found, and it alone is charged.
CREATE FUNCTION handle_batch(messages mq_message[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO effects (what) SELECT m.payload_json ->> 'n' FROM unnest(messages) AS m;
  IF EXISTS (SELECT FROM unnest(messages) AS m WHERE m.payload_json ? 'fail') THEN RAISE EXCEPTION 'one of % failed', cardinality(messages); END IF;
END $$;
SELECT mq_register_handler('batch', 'handle_batch(mq_message[])');
SELECT count(*)
  FROM mq_send_many('batch', retry_backoff => '1 hour', payloads =>
    (SELECT array_agg(CASE WHEN i IN (7, 77) THEN '{"fail": 1}' ELSE jsonb_build_object('n', i) END) FROM generate_series(1, 100) AS i));
CALL mq_run();
SELECT count(*) AS effects, count(DISTINCT what) AS different FROM effects;
SELECT count(*) AS failures, min(error) AS error FROM mq_failures;
SELECT payload_json, attempts FROM mq_msgs JOIN mq_payloads USING (id);
SELECT mq_clear_all();
SELECT mq_unregister_handler('batch');
DROP FUNCTION handle_batch(mq_message[]);
TRUNCATE effects, mq_failures;

-- A constraint that is checked when the transaction commits: the message that broke it is charged, and no other.
CREATE TABLE deferred (i int UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION handle_deferred(payload jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO deferred VALUES (payload::int) $$;
SELECT mq_register_handler('deferred', 'handle_deferred(jsonb)');
SELECT count(*) FROM mq_send_many('deferred', '{1,2,3,2,4,5}', retry_backoff => '1 hour');
CALL mq_run();
SELECT array_agg(i ORDER BY i) AS handled FROM deferred;
SELECT attempt, sqlstate, error FROM mq_failures;
SELECT payload_json, attempts FROM mq_msgs JOIN mq_payloads USING (id);
SELECT mq_clear_all();
SELECT mq_unregister_handler('deferred');
DROP FUNCTION handle_deferred(jsonb);
DROP TABLE deferred;
TRUNCATE mq_failures;

-- Errors of any kind fail the attempt, not the run.
CREATE FUNCTION handle_errors(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE payload #>> '{}';
END $$;
SELECT mq_register_handler('errors', 'handle_errors(jsonb)');
SELECT mq_send('errors', to_jsonb(statement), retries => 0) IS NOT NULL AS sent
  FROM unnest(ARRAY['SELECT 1/0', 'COMMIT', 'ROLLBACK', 'SELECT missing()', 'SET TRANSACTION ISOLATION LEVEL SERIALIZABLE',
                    'VACUUM', 'SELECT mq_poll(NULL, 10)', 'SELECT 1']) AS statement;
CALL mq_run();
SELECT payload_json, sqlstate, reason FROM mq_dead ORDER BY payload_json;
TRUNCATE mq_failures, mq_dead;

-- A handler that meddles with the queue, its own message included, is held to nothing worse than what it did.
SELECT mq_send('errors', to_jsonb(statement), 'meddler', retries => 0, id => pg_temp.id(n::int)) IS NOT NULL AS sent
  FROM unnest(ARRAY['SELECT mq_delete(ARRAY[''00000000-0000-0000-0000-000000000001''::uuid])',
                    'DELETE FROM mq_msgs WHERE id = ''00000000-0000-0000-0000-000000000002''',
                    'DELETE FROM mq_payloads WHERE id = ''00000000-0000-0000-0000-000000000003''',
                    'DO $d$ BEGIN PERFORM mq_delete(ARRAY[''00000000-0000-0000-0000-000000000004''::uuid]); RAISE EXCEPTION ''after all''; END $d$',
                    'SELECT mq_checkpoint(''00000000-0000-0000-0000-000000000005'', ''1 hour'', ''"changed"'', NULL, 5)',
                    'SELECT mq_pause(''errors''), mq_resume(''errors'')',
                    'SELECT mq_unregister_handler(''errors'')']) WITH ORDINALITY AS s (statement, n);
CALL mq_run();
SELECT id, payload_json, reason, error FROM mq_dead;
SELECT count(*) AS messages, (SELECT count(*) FROM mq_payloads) AS payloads FROM mq_msgs;
SELECT count(*) AS registered FROM mq_handlers WHERE channel_name = 'errors';
SELECT mq_register_handler('errors', 'handle_errors(jsonb)');
SELECT mq_send('errors', '"DROP FUNCTION handle_errors(jsonb)"', 'meddler') IS NOT NULL AS sent;
CALL mq_run();
-- All of it at once.
CREATE OR REPLACE FUNCTION handle_errors(payload jsonb) RETURNS void LANGUAGE sql AS $$ SELECT mq_clear_all() $$;
SELECT mq_register_handler('errors', 'handle_errors(jsonb)');
SELECT count(*) FROM mq_send_many('errors', array_fill('1'::jsonb, ARRAY[10]));
CALL mq_run();
SELECT (SELECT count(*) FROM mq_msgs) AS messages, (SELECT count(*) FROM mq_payloads) AS payloads, (SELECT count(*) FROM mq_dead) AS dead;
SELECT mq_unregister_handler('errors');
DROP FUNCTION handle_errors(jsonb);

-- The clock is set back by an hour: what was due when it was sent is due, in its order; what was scheduled, or waits for its
-- retry or for mq_commit, is not.
TRUNCATE effects, mq_failures, mq_dead, mq_msgs, mq_payloads;
SELECT mq_register_handler('work', 'handle(mq_message)'), mq_register_handler('steps', 'handle(mq_message)');
CREATE FUNCTION pg_temp.set_back() RETURNS void LANGUAGE sql AS $$
  UPDATE mq_msgs SET attempt_at = attempt_at + interval '1 hour', created_at = created_at + interval '1 hour' $$;
SELECT mq_send('work', '{}', 'a') IS NOT NULL AND mq_send('steps', '{}', 's1', ordered => true) IS NOT NULL
   AND mq_send('steps', '{}', 's2', ordered => true) IS NOT NULL AND mq_send('work', '{}', 'later', delay => '1 minute') IS NOT NULL
   AND mq_send('work', '{}', 'two-phase', commit_interval => '1 minute') IS NOT NULL
   AND mq_send('outside', '{}', 'polled') IS NOT NULL AS sent;
SELECT pg_temp.set_back();
SELECT detail ~ '^set back since messages were sent, in: outside .*, steps .*, work ' AS clock FROM mq_health() WHERE "check" = 'clock' AND NOT ok;
CALL mq_run();
SELECT array_agg(what ORDER BY what) AS handled FROM effects;
SELECT bool_and(a.n < b.n) AS in_order FROM effects a, effects b WHERE a.what = 's1' AND b.what = 's2';
SELECT name FROM mq_poll('{outside}');
SELECT name, attempt, lease FROM mq_msgs JOIN mq_payloads USING (id) ORDER BY seq;
SELECT mq_clear_all();
TRUNCATE effects, mq_failures;
SELECT mq_send('work', '{"fail": 1}', 'retried', retry_backoff => '10 minutes') IS NOT NULL AS sent;
CALL mq_run();
SELECT pg_temp.set_back();
CALL mq_run();
SELECT attempt FROM mq_msgs;
SELECT mq_clear_all();

DROP FUNCTION handle(mq_message);
DROP TABLE effects;
DROP EXTENSION mq;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
