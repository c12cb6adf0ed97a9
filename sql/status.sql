--
-- mq_status: the state of messages, by their ids. What a background worker runs is in t/099_waits.
--
-- Workers stay out.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION mq;
CREATE FUNCTION id(n int) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$ SELECT format('00000000-0000-4000-8000-%s', lpad(n::text, 12, '0'))::uuid $$;
CREATE FUNCTION ids(VARIADIC n int[]) RETURNS uuid[] LANGUAGE sql IMMUTABLE AS $$ SELECT array_agg(id(i) ORDER BY o) FROM unnest(n) WITH ORDINALITY AS u (i, o) $$;
-- The rows in their order; due_at as what it is against now.
CREATE FUNCTION status(VARIADIC n int[])
  RETURNS TABLE (n int, state text, attempt int, attempts_left int, due text, progress real, note text, result jsonb, error text) LANGUAGE sql AS $$
  SELECT right(s.id::text, 6)::int, s.state, s.attempt, s.attempts_left,
         CASE WHEN s.due_at = 'infinity' THEN 'infinity' WHEN s.due_at > clock_timestamp() + interval '30 minutes' THEN 'in an hour'
              WHEN s.due_at > clock_timestamp() THEN 'soon' WHEN s.due_at IS NOT NULL THEN 'now' END,
         s.progress, s.note, s.result, s.error
    FROM mq_status(ids(VARIADIC n)) AS s $$;

-- Its columns. NULL is refused, an empty array is not; a message that is nowhere is unknown.
SELECT proargnames[2:], proallargtypes[2:]::regtype[] FROM pg_proc WHERE proname = 'mq_status';
SELECT * FROM mq_status(NULL);
SELECT * FROM mq_status(ARRAY[id(1), NULL]);
SELECT * FROM mq_status('{}');
SELECT * FROM status(1);

-- A row for each id that is given, in that order.
SELECT mq_send('c', id => id(1)) = id(1) AND mq_send('c', id => id(2), delay => '1 hour', retries => 3) = id(2) AS sent;
SELECT * FROM status(2, 9, 1, 2);
-- Also in a transaction that reads only, with what it has sent itself.
BEGIN; SELECT mq_send('c', id => id(3)) = id(3) AS sent; SET TRANSACTION READ ONLY; SELECT * FROM status(3); ROLLBACK;
SELECT * FROM status(3);
SELECT mq_clear_all();

-- What it does not hand over: it waits for others, is two-phase, behind the head of its channel, or no handler takes its name.
CREATE FUNCTION take(m mq_message) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF m.payload_json ? 'fail' THEN RAISE 'no: %', m.payload_json ->> 'fail' USING ERRCODE = 'QQ001', DETAIL = 'a detail', HINT = 'a hint'; END IF;
  IF m.payload_json ? 'snooze' THEN PERFORM mq_snooze('1 hour'); END IF;
  IF m.payload_json ? 'discard' THEN PERFORM mq_discard('not wanted'); END IF;
  RETURN jsonb_build_object('was', m.payload_json, 'attempt', m.attempt);
END $$;
SELECT mq_register_handler('c', 'take(mq_message)', message_name => 'taken');
SELECT mq_send('c', '1', 'taken', id => id(1), delay => '1 hour') = id(1) AND mq_send('c', '2', 'taken', id => id(2), after => ids(1)) = id(2)
   AND mq_send('c', '3', 'taken', id => id(3), after => ids(1), delay => '1 hour') = id(3)
   AND mq_send('c', '4', 'taken', id => id(4), commit_interval => '1 hour') = id(4) AND mq_send('c', '5', 'other', id => id(5)) = id(5)
   AND mq_send('steps', '6', id => id(6), ordered => true) = id(6) AND mq_send('steps', '7', id => id(7), ordered => true) = id(7) AS sent;
SELECT * FROM status(1, 2, 3, 4, 5, 6, 7);
CALL mq_run();
SELECT * FROM status(5);
SELECT mq_commit(ids(4)) = ids(4) AS committed;
SELECT * FROM status(4);
CALL mq_run();
SELECT * FROM status(4);
SELECT mq_clear_all();

-- Done, where it is kept; then its result is there. Where it is not kept it is unknown.
SELECT mq_send('c', '"kept"', 'taken', id => id(1), keep => '1 hour') = id(1) AND mq_send('c', '"gone"', 'taken', id => id(2)) = id(2) AS sent;
SELECT mq_send('c', jsonb_build_object('long', repeat('x', 100000)), 'taken', id => id(3), keep => '1 hour') = id(3) AS sent;
CALL mq_run();
SELECT * FROM status(1, 2);
SELECT state, result = (SELECT d.result FROM mq_done d WHERE d.id = s.id) AS same, length(result::text) > 100000 AS long FROM mq_status(ids(3)) AS s;
DELETE FROM mq_done;
SELECT * FROM status(1);

-- Retrying, then ready, with the error of the last attempt; then dead.
SELECT mq_send('c', '{"fail": "it"}', 'taken', id => id(1), retries => 1, retry_backoff => '1 hour') = id(1) AS sent;
CALL mq_run();
SELECT * FROM status(1);
UPDATE mq_msgs SET attempt_at = now() - interval '1 ms';
SELECT * FROM status(1);
CALL mq_run();
SELECT * FROM status(1);
-- Redriven: as new.
SELECT mq_redrive(ids(1), retries => 0) AS redriven;
SELECT * FROM status(1);
CALL mq_run();
SELECT * FROM status(1);
-- Handled after its death: done.
UPDATE mq_dead SET payload_json = '"good"', keep = '1 hour';
SELECT mq_redrive(ids(1)) AS redriven;
CALL mq_run();
SELECT * FROM status(1);
-- Kept, then sent once more under its id, and dead: dead.
SELECT mq_send('c', '{"fail": "again"}', 'taken', id => id(1), retries => 0) = id(1) AS sent;
SELECT state FROM status(1);
CALL mq_run();
SELECT * FROM status(1);
-- And kept again, while the dead letter is still there: what came last counts.
SELECT mq_send('c', '"later"', 'taken', id => id(1), keep => '1 hour') = id(1) AS sent;
CALL mq_run();
SELECT * FROM status(1);
DELETE FROM mq_done; DELETE FROM mq_dead; DELETE FROM mq_failures;

-- Snoozed, discarded, expired, dead by a prerequisite, cancelled.
SELECT mq_send('c', '{"snooze": 1}', 'taken', id => id(1)) = id(1) AND mq_send('c', '{"discard": 1}', 'taken', id => id(2)) = id(2)
   AND mq_send('c', '3', 'taken', id => id(3), expires => '0.000001 s') = id(3) AND mq_send('c', '4', 'taken', id => id(4), after => ids(2)) = id(4)
   AND mq_send('c', '5', 'taken', id => id(5), delay => '1 hour') = id(5) AND mq_send('c', '6', 'taken', id => id(6), delay => '1 hour') = id(6) AS sent;
CALL mq_run();
SELECT count(*) FROM mq_cancel(ids(5), 'no longer wanted');
SELECT mq_delete(ids(6));
SELECT n, state, attempt, attempts_left, due, error FROM status(1, 2, 3, 4, 5, 6);
-- Redriven it is what it was.
SELECT mq_redrive(ids(5)) AS redriven;
SELECT * FROM status(5);
SELECT mq_clear_all();
DELETE FROM mq_dead;

-- A dead message that blocks its ordered channel.
SELECT mq_register_handler('block', 'take(mq_message)', on_dead => 'block');
SELECT mq_send('block', '{"fail": "block"}', id => id(1), ordered => true, retries => 0) = id(1) AND mq_send('block', '2', id => id(2), ordered => true) = id(2) AS sent;
CALL mq_run();
SELECT * FROM status(1, 2);
SELECT mq_clear_all();
DELETE FROM mq_dead;

-- Leased to a consumer outside: running. After the lease it waits for its next attempt, or is due.
SELECT mq_send('out', '1', id => id(1), retries => 2) = id(1) AND mq_send('out', '2', id => id(2), retries => 2, retry_backoff => '1 hour') = id(2) AS sent;
SELECT lease AS token FROM mq_receive('{out}') \gset
SELECT id = id(2) AS polled FROM mq_poll('{out}');
SELECT * FROM status(1, 2);
SELECT count(*) FROM mq_nack(ids(1), :token, 'not now', retry_in => '1 hour');
UPDATE mq_msgs SET attempt_at = now() - interval '1 ms' WHERE id = id(2);
SELECT * FROM status(1, 2);
SELECT mq_clear_all();
DELETE FROM mq_failures;

-- In a handler: its own message is running, with what it has said of its progress.
CREATE TABLE seen (mode text, state text, attempt int, attempts_left int, due_at timestamptz, progress real, note text);
CREATE FUNCTION look(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM mq_progress(0.25, 'a quarter');
  INSERT INTO seen SELECT m.channel_name, s.state, s.attempt, s.attempts_left, s.due_at, s.progress, s.note FROM mq_status(ARRAY[m.id]) AS s;
END $$;
SELECT mq_register_handler('transactional', 'look(mq_message)'), mq_register_handler('leased', 'look(mq_message)', mode => 'leased');
SELECT mq_send('transactional', retries => 4) IS NOT NULL AND mq_send('leased', retries => 4) IS NOT NULL AS sent;
CALL mq_run();
SELECT * FROM seen ORDER BY mode;
-- A message of the same batch that has not had its turn is ready or running, never gone.
TRUNCATE seen;
CREATE FUNCTION look_at_mate(m mq_message) RETURNS void LANGUAGE sql AS $$
  INSERT INTO seen (mode, state) SELECT right(m.id::text, 6), s.state FROM mq_status(ids(1, 2)) AS s WHERE s.id <> m.id $$;
SELECT mq_register_handler('mates', 'look_at_mate(mq_message)', keep => '1 hour');
SELECT mq_send('mates', id => id(1)) = id(1) AND mq_send('mates', id => id(2)) = id(2) AS sent;
CALL mq_run();
SELECT mode, state IN ('ready', 'running') AS pending FROM seen ORDER BY mode;
SELECT state FROM status(1, 2);

-- In a REPEATABLE READ transaction it tells what is so now.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM seen;
SELECT state FROM status(1);
COMMIT;

-- Many at once, by the index.
SELECT count(*) FROM mq_send_many('many', array_fill('1'::jsonb, ARRAY[2000]));
ANALYZE;
SELECT state, count(*) FROM mq_status((SELECT array_agg(id) FROM mq_msgs WHERE channel_name = 'many')) GROUP BY state;
SELECT mq_clear_all();

-- Rights: produce and admin. It needs none on the tables.
CREATE ROLE regress_mq_status_asks; CREATE ROLE regress_mq_status_not;
SELECT mq_grant('regress_mq_status_asks', 'produce'), mq_grant('regress_mq_status_not', 'consume'), mq_grant('regress_mq_status_not', 'monitor'), mq_grant('regress_mq_status_not', 'develop');
SET ROLE regress_mq_status_asks;
SELECT state FROM mq_status(ids(1));
SELECT count(*) FROM mq_done;
SET ROLE regress_mq_status_not;
SELECT state FROM mq_status(ids(1));
RESET ROLE;
SELECT mq_grant('regress_mq_status_not', 'admin');
SET ROLE regress_mq_status_not;
SELECT state FROM mq_status(ids(1));
RESET ROLE;

-- search_path, and tables of other people's with mq's names, are no matter.
CREATE TEMP TABLE mq_msgs (id uuid, attempt_at timestamptz); CREATE TEMP TABLE mq_done (id uuid, result jsonb);
SET search_path = pg_temp, pg_catalog;
SELECT s.state FROM public.mq_status('{00000000-0000-4000-8000-000000000001}') AS s;
RESET search_path;

DROP TABLE pg_temp.mq_msgs, pg_temp.mq_done;
DROP OWNED BY regress_mq_status_asks, regress_mq_status_not;
DROP ROLE regress_mq_status_asks, regress_mq_status_not;
DROP EXTENSION mq CASCADE;
DROP TABLE seen;
DROP FUNCTION status(int[]), ids(int[]), id(int);
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
