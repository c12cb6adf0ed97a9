--
-- CALL mq_call: sends, commits, waits, and returns the result or raises the handler's error.
--
-- A worker handles the messages; no call of this test takes long, whatever goes wrong.
ALTER SYSTEM SET mq.max_workers = 1;
SELECT pg_reload_conf();
\c
\set SHOW_CONTEXT never
SET client_min_messages = warning;
SET statement_timeout = '60 s';
CREATE EXTENSION mq;
CREATE FUNCTION add(payload jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb((payload ->> 'a')::int + (payload ->> 'b')::int) $$;
CREATE FUNCTION fail(m mq_message) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN RAISE 'attempt % of %', m.attempt, m.payload_json USING ERRCODE = 'QQ001', DETAIL = 'a detail', HINT = 'a hint'; END $$;
CREATE FUNCTION tell(m mq_message) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object('name', m.name, 'args', m.channel_args, 'bytes', m.payload_bytes, 'ordered', m.ordered, 'headers', m.headers, 'priority', m.priority, 'attempts_left', m.attempts_left) $$;
CREATE FUNCTION nothing(payload jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION large(payload jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_agg(md5(n::text)) FROM generate_series(1, (payload ->> 'n')::int) AS n $$;
CREATE FUNCTION discards(payload jsonb) RETURNS void LANGUAGE sql AS $$ SELECT mq_discard('not ' || (payload ->> 'what')) $$;
SELECT mq_register_handler('add', 'add(jsonb)'), mq_register_handler('fail', 'fail(mq_message)'), mq_register_handler('tell', 'tell(mq_message)'), mq_register_handler('nothing', 'nothing(jsonb)'),
       mq_register_handler('large', 'large(jsonb)'), mq_register_handler('kept', 'add(jsonb)', keep => '10 days'), mq_register_handler('discards', 'discards(jsonb)'),
       mq_register_handler('leased', 'add(jsonb)', mode => 'leased');

-- The result, in either mode; NULL where there is none; a large one.
CALL mq_call('add', '{"a": 1, "b": 2}');
CALL mq_call('add', payload_json => '{"a": 3, "b": 4}', result => '"ignored"');
CALL mq_call('leased', '{"a": 5, "b": 6}');
CALL mq_call('nothing');
CALL mq_call('large', '{"n": 20000}') \gset
SELECT jsonb_array_length(:'result'::jsonb);
-- Likewise once the session knows all tables, so that no look reads the catalog.
CALL mq_call('large', '{"n": 20000}') \gset
SELECT jsonb_array_length(:'result'::jsonb);
CALL mq_call('large', '{"n": 20000}') \gset
SELECT jsonb_array_length(:'result'::jsonb);
-- A payload that is stored out of line.
DO $$
DECLARE r jsonb; p jsonb = jsonb_build_object('a', 1, 'b', 1, 'x', (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 20000) AS n));
BEGIN CALL mq_call('add', p, r); RAISE WARNING 'result %', r; END $$;
-- What is sent with it.
CALL mq_call('tell', NULL, NULL, 'greeting', 'x', ordered => true, retries => 3, payload_bytes => '\x01', headers => '{"tenant": 7}');
CALL mq_call('tell', priority => 5);
-- It is kept for the timeout and a minute, or for as long as it says or its handler's registration does, if that is longer.
SELECT channel_name, CASE WHEN keep_until - finished_at = '90 s' THEN 'timeout and a minute' ELSE (keep_until - finished_at)::text END AS keeps FROM mq_done WHERE channel_name = 'nothing';
DELETE FROM mq_done;
CALL mq_call('kept', '{"a": 1, "b": 2}');
CALL mq_call('kept', '{"a": 1, "b": 2}', keep => '1 hour');
CALL mq_call('add', '{"a": 1, "b": 2}', timeout => '50 s');
SELECT channel_name, extract(epoch FROM keep_until - finished_at)::int AS keeps FROM mq_done ORDER BY done_no;

-- The error of the handler: of its only attempt, or its last one.
\set VERBOSITY default
\set SHOW_CONTEXT never
CALL mq_call('fail', '1');
\echo :LAST_ERROR_SQLSTATE
CALL mq_call('fail', '2', retries => 2, retry_backoff => '1 ms');
CALL mq_call('add', '{"a": "x", "b": 2}');
\echo :LAST_ERROR_SQLSTATE
CALL mq_call('discards', '{"what": "wanted"}');
\echo :LAST_ERROR_SQLSTATE
SELECT reason, sqlstate, error, attempts_made FROM mq_dead ORDER BY dead_no;
DELETE FROM mq_dead;

-- The time is up: it is cancelled, and will not be handled.
\set VERBOSITY terse
CALL mq_call('nobody', '1', timeout => '10 ms');
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM mq_msgs;
SELECT channel_name, reason, sqlstate, error FROM mq_dead;
CALL mq_call('nobody', '1', timeout => '0');
\set VERBOSITY default
DELETE FROM mq_dead;
-- A payload that is stored out of line goes to the dead letters, also once the session knows all tables.
SELECT to_jsonb(string_agg(md5(n::text), '')) AS large FROM generate_series(1, 5000) AS n \gset
\set VERBOSITY sqlstate
CALL mq_call('nobody', :'large', timeout => '10 ms');
CALL mq_call('nobody', :'large', timeout => '0');
\set VERBOSITY default
SELECT reason, payload_json = :'large' AS whole FROM mq_dead;
DELETE FROM mq_dead;
-- statement_timeout ends the wait, not the message.
SET statement_timeout = '100 ms';
CALL mq_call('nobody', '1', timeout => '1 hour');
SET statement_timeout = '60 s';
SELECT count(*) FROM mq_msgs WHERE channel_name = 'nobody';
SELECT mq_clear('{nobody}');

-- Where it cannot commit nothing is sent.
BEGIN;
CALL mq_call('add', '{"a": 1, "b": 2}');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
DO $$ DECLARE r jsonb; BEGIN CALL mq_call('add', '{"a": 1, "b": 2}', r); EXCEPTION WHEN invalid_transaction_termination THEN RAISE WARNING 'not in a subtransaction: %', SQLERRM; END $$;
CREATE FUNCTION in_function() RETURNS void LANGUAGE plpgsql AS $$ DECLARE r jsonb; BEGIN CALL mq_call('add', '{"a": 1, "b": 2}', r); END $$;
SELECT in_function();
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM mq_msgs;
SELECT count(*) FROM mq_dead;
-- In a procedure or a DO block it can.
DO $$
DECLARE r jsonb;
BEGIN
  FOR i IN 1 .. 3 LOOP CALL mq_call('add', jsonb_build_object('a', i, 'b', i), r); RAISE WARNING 'result %', r; END LOOP;
END $$;
CREATE TABLE results (r jsonb);
CREATE PROCEDURE collect() LANGUAGE plpgsql AS $$
DECLARE r jsonb; p jsonb;
BEGIN
  FOR p IN SELECT jsonb_build_object('a', n, 'b', 1) FROM generate_series(1, 3) AS n LOOP
    CALL mq_call('add', p, r);
    INSERT INTO results VALUES (r);
  END LOOP;
END $$;
CALL collect();
SELECT * FROM results;

-- Bad values, and READ ONLY.
CALL mq_call(NULL, '1');
CALL mq_call('add', '1', timeout => NULL);
CALL mq_call('add', '1', timeout => '-1 s');
CALL mq_call('add', '1', retries => -1);
CALL mq_call('add', '1', priority => 2000);
CALL mq_call('add', '1', keep => '-1 s');
CALL mq_call('add', '1', headers => '1');
SET default_transaction_read_only = on;
CALL mq_call('add', '{"a": 1, "b": 2}');
RESET default_transaction_read_only;
SELECT count(*) FROM mq_msgs;
-- Other isolation levels make no difference: each look is a transaction.
SET default_transaction_isolation = 'repeatable read';
CALL mq_call('add', '{"a": 7, "b": 8}');
SET default_transaction_isolation = 'serializable';
CALL mq_call('add', '{"a": 7, "b": 9}');
RESET default_transaction_isolation;

-- After another message: if that dies, so does this one.
SELECT mq_send('fail', '1', id => '00000000-0000-4000-8000-000000000001', delay => '50 ms', retries => 0) IS NOT NULL AS sent;
CALL mq_call('add', '{"a": 1, "b": 2}', after => '{00000000-0000-4000-8000-000000000001}');
\echo :LAST_ERROR_SQLSTATE

-- Rights: produce, and none on the tables. It runs as its caller.
CREATE ROLE regress_mq_call_asks; CREATE ROLE regress_mq_call_not;
SELECT mq_grant('regress_mq_call_asks', 'produce'), mq_grant('regress_mq_call_not', 'consume'), mq_grant('regress_mq_call_not', 'monitor');
SELECT prosecdef FROM pg_proc WHERE proname = 'mq_call';
SET ROLE regress_mq_call_asks;
CALL mq_call('add', '{"a": 20, "b": 1}');
SELECT current_user;
CALL mq_call('fail', '3');
SET ROLE regress_mq_call_not;
CALL mq_call('add', '{"a": 1, "b": 2}');
RESET ROLE;

DROP OWNED BY regress_mq_call_asks, regress_mq_call_not;
DROP ROLE regress_mq_call_asks, regress_mq_call_not;
DROP EXTENSION mq CASCADE;
DROP PROCEDURE collect(); DROP FUNCTION in_function(), add(jsonb), nothing(jsonb), large(jsonb), discards(jsonb); DROP TABLE results;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
