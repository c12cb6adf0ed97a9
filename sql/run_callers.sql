--
-- CALL mq_run and its caller: what ends the call and what only an attempt, which transactions it runs in, what it
-- leaves behind in the session.
--
-- Workers stay out.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;
CREATE TABLE handled (n serial, what int, isolation text DEFAULT current_setting('transaction_isolation'));
CREATE FUNCTION handle(payload jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO handled (what) VALUES (payload::int) $$;
SELECT mq_register_handler('one', 'handle(jsonb)');

-- A handler that raises query_canceled by itself has failed, and the call goes on.
CREATE FUNCTION cancel_itself(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'I give up' USING ERRCODE = 'query_canceled';
END $$;
SELECT mq_register_handler('canceled', 'cancel_itself(jsonb)');
SELECT mq_register_handler('leased', 'cancel_itself(jsonb)', mode => 'leased');
SELECT count(*) FROM (SELECT mq_send('canceled', retry_backoff => '1 hour') FROM generate_series(1, 2)) AS s;
SELECT count(*) FROM (SELECT mq_send('leased', retry_backoff => '1 hour') FROM generate_series(1, 2)) AS s;
SELECT count(*) FROM mq_send_many('one', '{1,2}', ordered => true);
CALL mq_run();
SELECT what FROM handled ORDER BY n;
SELECT channel_name, sqlstate, error, count(*) FROM mq_failures GROUP BY 1, 2, 3 ORDER BY 1;
-- So has one that is too slow.
SELECT mq_clear_all();
TRUNCATE mq_failures, handled;
CREATE FUNCTION sleep(payload jsonb) RETURNS void LANGUAGE sql AS $$ SELECT pg_sleep(60) $$;
SELECT mq_register_handler('canceled', 'sleep(jsonb)', timeout => '100 ms');
SELECT mq_register_handler('leased', 'sleep(jsonb)', mode => 'leased', timeout => '100 ms');
SELECT mq_send('canceled', retry_backoff => '1 hour') IS NOT NULL AND mq_send('leased', retry_backoff => '1 hour') IS NOT NULL AS sent;
CALL mq_run();
SELECT channel_name, sqlstate, error FROM mq_failures ORDER BY 1;
-- A cancel of the caller ends the call, in either mode; the attempt that it hit is charged.
SELECT mq_register_handler('canceled', 'sleep(jsonb)');
SELECT mq_register_handler('leased', 'sleep(jsonb)', mode => 'leased');
SELECT mq_clear_all();
TRUNCATE mq_failures;
SELECT mq_send('canceled', retry_backoff => '1 hour') IS NOT NULL AND mq_send('canceled', retry_backoff => '1 hour') IS NOT NULL AS sent;
SET statement_timeout = '2 s';
CALL mq_run('{canceled}');
RESET statement_timeout;
SELECT mq_send('leased', retry_backoff => '1 hour') IS NOT NULL AND mq_send('leased', retry_backoff => '1 hour') IS NOT NULL AS sent;
SET statement_timeout = '2 s';
CALL mq_run('{leased}');
RESET statement_timeout;
SELECT channel_name, sqlstate, error FROM mq_failures ORDER BY 1;
SELECT channel_name, attempts, attempt_at > now() AS waits FROM mq_msgs ORDER BY 1, 2;
-- Also where the handler catches it and raises it again.
CREATE FUNCTION catch(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_sleep(60);
EXCEPTION WHEN query_canceled THEN RAISE;
END $$;
SELECT mq_clear_all();
SELECT mq_register_handler('canceled', 'catch(jsonb)');
SELECT mq_send('canceled', retry_backoff => '1 hour') IS NOT NULL AS sent;
SET statement_timeout = '2 s';
\set VERBOSITY terse
CALL mq_run('{canceled}');
\set VERBOSITY default
RESET statement_timeout;

-- In a transaction block its snapshot has to be of the moment.
SELECT mq_clear_all();
SELECT mq_send('one', '3') IS NOT NULL AS sent;
BEGIN ISOLATION LEVEL REPEATABLE READ;
CALL mq_run();
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
CALL mq_run();
ROLLBACK;
SELECT what FROM handled;
-- Outside of one it is READ COMMITTED, as workers are, and leaves the session's default as it was.
SET default_transaction_isolation = 'serializable';
CALL mq_run();
SELECT mq_send('one', '4') IS NOT NULL AS sent;
CREATE PROCEDURE run_between() LANGUAGE plpgsql AS $$
DECLARE
  handled bigint := 0;
BEGIN
  INSERT INTO handled (what) VALUES (-1);
  CALL mq_run(handled => handled);
  INSERT INTO handled (what) VALUES (-2);
END $$;
CALL run_between();
SHOW transaction_isolation;
SELECT what, isolation FROM handled ORDER BY n;
RESET default_transaction_isolation;
DROP PROCEDURE run_between();

-- In a transaction block leased channels are left alone, and it says so if they have something to do.
SELECT mq_register_handler('leased', 'handle(jsonb)', mode => 'leased');
BEGIN;
CALL mq_run();
SELECT mq_send('leased', '5') IS NOT NULL AND mq_send('one', '6') IS NOT NULL AS sent;
CALL mq_run('{one}');
CALL mq_run();
COMMIT;
CALL mq_run();
SELECT what FROM handled ORDER BY n DESC LIMIT 2;

-- A call keeps none of the memory that it used, whether it ends well or not.
CREATE PROCEDURE fail(payload jsonb) LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'failed'; END $$;
SELECT mq_register_handler('fails', 'fail(jsonb)', mode => 'leased');
SELECT count(*) FROM mq_send_many('fails', '{1,2}', retry_backoff => '1 hour');
CALL mq_run('{fails}');
CALL mq_run('{fails}');
DO $$
DECLARE
  handled bigint := 0;
BEGIN
  FOR i IN 1 .. 100 LOOP
    PERFORM mq_send('one', to_jsonb(i));
    CALL mq_run('{one}', handled => handled);
  END LOOP;
END $$;
-- 'mq index predicates' is kept for the life of the session, and does not grow.
SELECT count(*) AS contexts FROM pg_backend_memory_contexts WHERE name LIKE 'mq %' AND name <> 'mq index predicates';

DROP EXTENSION mq;
DROP FUNCTION handle(jsonb), cancel_itself(jsonb), sleep(jsonb), catch(jsonb);
DROP PROCEDURE fail(jsonb);
DROP TABLE handled;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
