--
-- CALL mq_run: does what the workers do, here and now: within limits, in a transaction block and outside,
-- but leaves alone what is paused and what is not due.
--
-- Workers stay out.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;

CREATE TABLE handled (n serial, what int, xid xid8 DEFAULT pg_current_xact_id());
CREATE FUNCTION handle(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF payload = '"fail"' THEN RAISE EXCEPTION 'failed'; END IF;
  INSERT INTO handled (what) VALUES (payload::int);
END $$;
-- What was handled since the last look, in order.
CREATE FUNCTION pg_temp.handled() RETURNS int[] LANGUAGE sql AS $$
  WITH gone AS (DELETE FROM handled RETURNING *) SELECT array_agg(what ORDER BY n) FROM gone
$$;
SELECT mq_register_handler('one', 'handle(jsonb)');
SELECT mq_register_handler('two', 'handle(jsonb)');

-- Nothing to do.
CALL mq_run();
-- Everything, whatever handled was before.
SELECT count(*) FROM mq_send_many('one', '{1,2,3,4,5}');
CALL mq_run(handled => 40);
SELECT pg_temp.handled();

-- max_messages: no more than that many are handled.
SELECT count(*) FROM mq_send_many('one', '{1,2,3,4,5}', ordered => true);
CALL mq_run(max_messages => 0);
CALL mq_run(max_messages => 2);
SELECT pg_temp.handled();
CALL mq_run(NULL, 1, NULL);
CALL mq_run(NULL, 100);
SELECT pg_temp.handled();
CALL mq_run(max_messages => -1);
-- Failed ones do not count, and do not keep others from being handled.
SELECT count(*) FROM mq_send_many('one', '{"\"fail\"",1,"\"fail\"",2,3}', retry_backoff => '1 hour');
CALL mq_run(max_messages => 2);
SELECT cardinality(pg_temp.handled());
CALL mq_run();
SELECT cardinality(pg_temp.handled());
SELECT mq_clear_all();
TRUNCATE mq_failures;

-- channel_names: these channels only; names without handlers or messages do no harm.
SELECT mq_send('one', '1') IS NOT NULL AND mq_send('two', '2') IS NOT NULL AND mq_send('nobody', '3') IS NOT NULL AS sent;
CALL mq_run('{two,nobody,nothing}');
SELECT pg_temp.handled();
CALL mq_run('{}');
CALL mq_run('{one,one}');
SELECT pg_temp.handled();
CALL mq_run('{one,NULL}');
SELECT mq_clear_all();

-- What is not due waits.
SELECT mq_send('one', '1', delay => '1 hour') IS NOT NULL AS sent;
CALL mq_run();
UPDATE mq_msgs SET attempt_at = now();
CALL mq_run();
SELECT pg_temp.handled();

-- A message that a consumer outside has polled is the consumer's.
SELECT mq_send('one', '1', retry_backoff => '1 hour') IS NOT NULL AS sent;
SELECT count(*) FROM mq_poll('{one}') WHERE id IS NOT NULL;
CALL mq_run();
SELECT mq_clear_all();

-- Outside of a transaction block each batch is committed: what was handled stays handled.
SELECT mq_register_handler('one', 'handle(jsonb)', batch_size => 10);
SELECT count(*) FROM mq_send_many('one', array_fill('1'::jsonb, ARRAY[100]));
CALL mq_run();
SELECT count(*) AS handled, count(DISTINCT xid) BETWEEN 10 AND 100 AS in_batches FROM handled;
TRUNCATE handled;
-- From a procedure and from a DO block too, in between other commits.
CREATE PROCEDURE run_and_count(INOUT total bigint) LANGUAGE plpgsql AS $$
DECLARE
  handled bigint := 0;
BEGIN
  PERFORM mq_send_many('one', '{1,2,3}');
  COMMIT;
  CALL mq_run(handled => handled);
  total := handled;
  PERFORM mq_send_many('one', '{4,5}');
  CALL mq_run(handled => handled);
  ROLLBACK;
  total := total + handled;
END $$;
CALL run_and_count(0);
SELECT pg_temp.handled();
DROP PROCEDURE run_and_count(bigint);

-- Inside of one nothing is committed: a rollback brings the messages back, and takes the effects.
SELECT count(*) FROM mq_send_many('one', '{1,2,3}', ordered => true);
BEGIN;
CALL mq_run();
SELECT count(*) AS handled FROM handled;
SELECT count(*) AS messages FROM mq_msgs;
ROLLBACK;
SELECT count(*) AS handled FROM handled;
SELECT count(*) AS messages FROM mq_msgs;
-- What the transaction itself sent is handled as well. A failure is charged, and does not fail the transaction.
BEGIN;
SELECT mq_send('one', '4', ordered => true) IS NOT NULL AND mq_send('one', '"fail"', retry_backoff => '1 hour') IS NOT NULL AS sent;
SAVEPOINT s;
CALL mq_run();
ROLLBACK TO s;
CALL mq_run();
COMMIT;
SELECT pg_temp.handled();
SELECT attempts, (SELECT count(*) FROM mq_failures) AS failures FROM mq_msgs;
SELECT mq_clear_all();
TRUNCATE mq_failures;
-- So from a function, which is never outside of a transaction.
CREATE FUNCTION run() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  handled bigint := 0;
BEGIN
  CALL mq_run(handled => handled);
  RETURN handled;
END $$;
SELECT count(*) FROM mq_send_many('one', '{1,2}');
SELECT run();
SELECT pg_temp.handled();
DROP FUNCTION run();

-- Settings of the session: its isolation level and its read-only transactions.
SELECT count(*) FROM mq_send_many('one', '{1,2}', ordered => true);
SET default_transaction_isolation = 'repeatable read';
CALL mq_run();
SELECT pg_temp.handled();
RESET default_transaction_isolation;
SELECT mq_send('one', '3') IS NOT NULL AS sent;
BEGIN READ ONLY;
\set VERBOSITY sqlstate
CALL mq_run();
\set VERBOSITY default
ROLLBACK;
CALL mq_run();
SELECT pg_temp.handled();

-- Pause and resume. Pausing stops nothing but the handling: messages are sent, and polled, as before.
SELECT mq_pause('one'), mq_pause('one') AS again, mq_pause('not there yet') AS other;
SELECT mq_send('one', '1') IS NOT NULL AND mq_send('two', '2') IS NOT NULL AS sent;
CALL mq_run();
SELECT pg_temp.handled();
CALL mq_run('{one}');
SELECT payload_json FROM mq_poll('{one}');
SELECT mq_clear_all();
SELECT mq_send('one', '3') IS NOT NULL AS sent;
BEGIN;
SELECT mq_resume('one');
ROLLBACK;
CALL mq_run();
SELECT mq_resume('one'), mq_resume('one') AS again, mq_resume('not there yet') AS other, mq_resume('never there') AS none;
CALL mq_run();
SELECT pg_temp.handled();

-- What cancels the statement cancels the handler: that attempt is charged, and the run ends.
CREATE FUNCTION handle_slowly(payload jsonb) RETURNS void LANGUAGE sql AS $$ SELECT pg_sleep(60) $$;
SELECT mq_register_handler('slow', 'handle_slowly(jsonb)');
SELECT mq_send('slow', retry_backoff => '1 hour') IS NOT NULL AND mq_send('slow', retry_backoff => '1 hour') IS NOT NULL AS sent;
SET statement_timeout = '2 s';
\set VERBOSITY sqlstate
CALL mq_run();
\set VERBOSITY default
RESET statement_timeout;
SELECT attempts, attempt_at > now() AS waits FROM mq_msgs ORDER BY attempts;
SELECT attempt, sqlstate FROM mq_failures;
SELECT mq_clear_all();
SELECT mq_unregister_handler('slow');
DROP FUNCTION handle_slowly(jsonb);

-- A handler cannot call mq_run: that fails its attempt.
CREATE FUNCTION handle_nested(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  handled bigint := 0;
BEGIN
  CALL mq_run(handled => handled);
END $$;
SELECT mq_register_handler('nested', 'handle_nested(jsonb)');
SELECT mq_send('nested', retries => 0) IS NOT NULL AND mq_send('one', '1') IS NOT NULL AS sent;
CALL mq_run();
SELECT pg_temp.handled();
SELECT channel_name, reason, sqlstate FROM mq_dead;
SELECT mq_unregister_handler('nested');
DROP FUNCTION handle_nested(jsonb);

DROP FUNCTION handle(jsonb);
DROP TABLE handled;
DROP EXTENSION mq;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
