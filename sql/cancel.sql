--
-- mq_cancel: what is pending goes to the dead letters, in every state. What runs is in t/111_cancel, races are in
-- isolation/cancel*.
--
-- Workers stay out.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION mq;
CREATE FUNCTION pg_temp.id(n int) RETURNS uuid LANGUAGE sql AS $$ SELECT format('00000000-0000-4000-8000-%s', lpad(n::text, 12, '0'))::uuid $$;
CREATE FUNCTION pg_temp.n(id uuid) RETURNS int LANGUAGE sql AS $$ SELECT right(id::text, 6)::int $$;
CREATE VIEW pg_temp.dead AS SELECT pg_temp.n(id) AS n, channel_name, reason, sqlstate, error, detail, attempts_made, payload_json FROM mq_dead ORDER BY dead_no;

-- Bad values are refused, and nothing of that call is kept.
SELECT mq_send('c', '1', id => pg_temp.id(1)) IS NOT NULL AS sent;
SELECT mq_cancel(NULL);
SELECT mq_cancel(ARRAY[pg_temp.id(1), NULL]);
SELECT mq_cancel(ARRAY['x']::uuid[]);
BEGIN READ ONLY;
SELECT mq_cancel(ARRAY[pg_temp.id(1)]);
ROLLBACK;
SELECT mq_cancel('{}');
SELECT count(*) FROM mq_msgs;

-- What is not pending is not returned; the others come in the order of the array, each once.
SELECT mq_send('c', '2', id => pg_temp.id(2)) IS NOT NULL AS sent;
SELECT pg_temp.n(c) FROM mq_cancel(ARRAY[pg_temp.id(2), pg_temp.id(9), pg_temp.id(1), pg_temp.id(2)], 'not wanted') AS c;
SELECT * FROM pg_temp.dead;
SELECT pg_temp.n(c) FROM mq_cancel(ARRAY[pg_temp.id(2), pg_temp.id(1)]) AS c;
SELECT count(*) FROM mq_msgs;
SELECT count(*) FROM mq_failures;
SELECT channel_name, dead, handled, failed, died FROM mq_stats;
TRUNCATE mq_dead;

-- Without a reason, and with a long one.
SELECT mq_send('c', id => pg_temp.id(1)) IS NOT NULL AND mq_send('c', id => pg_temp.id(2)) IS NOT NULL AND mq_send('c', id => pg_temp.id(3)) IS NOT NULL AS sent;
SELECT pg_temp.n(c) FROM mq_cancel(ARRAY[pg_temp.id(1)]) AS c;
SELECT pg_temp.n(c) FROM mq_cancel(ARRAY[pg_temp.id(2)], '') AS c;
SELECT pg_temp.n(c) FROM mq_cancel(ARRAY[pg_temp.id(3)], repeat('x', 10000)) AS c;
SELECT n, sqlstate, left(error, 30) AS error, length(error) BETWEEN 8000 AND 8300 AS cut FROM pg_temp.dead;
TRUNCATE mq_dead;

-- Each state: scheduled, waiting for a handler, retrying, two-phase, with a dedup_key, expiring, leased outside, with everything
-- that it was sent with.
CREATE FUNCTION take(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF m.payload_json ? 'fail' THEN RAISE 'no'; END IF;
END $$;
SELECT mq_register_handler('c', 'take(mq_message)', message_name => 'taken');
SELECT mq_send('c', '"scheduled"', 'taken', delay => '1 hour', id => pg_temp.id(1)) IS NOT NULL AS sent;
SELECT mq_send('c', '"unhandled"', 'other', id => pg_temp.id(2)) IS NOT NULL AS sent;
SELECT mq_send('c', '{"fail": 1}', 'taken', retry_backoff => '1 hour', id => pg_temp.id(3)) IS NOT NULL AS sent;
CALL mq_run();
SELECT mq_send('c', '"two-phase"', 'taken', commit_interval => '1 hour', id => pg_temp.id(4)) IS NOT NULL AS sent;
SELECT mq_send('c', '"dedup"', 'taken', delay => '1 hour', dedup_key => 'k', id => pg_temp.id(5)) IS NOT NULL AS sent;
SELECT mq_send('c', '"expires"', 'taken', delay => '1 hour', expires => '2 hours', id => pg_temp.id(6)) IS NOT NULL AS sent;
SELECT mq_send('outside', '"leased"', id => pg_temp.id(7), retry_backoff => '1 hour') IS NOT NULL AS sent;
SELECT pg_temp.n(id) FROM mq_poll('{outside}');
SELECT mq_send('c', '"options"', 'taken', delay => '1 hour', headers => '{"h": 1}', priority => 7, keep => '1 day', id => pg_temp.id(8)) IS NOT NULL AS sent;
SELECT pg_temp.n(id) AS n, attempt_at = 'infinity' AS waits, attempt, lease FROM mq_msgs ORDER BY id;
SELECT pg_temp.n(c) FROM mq_cancel(ARRAY(SELECT pg_temp.id(n) FROM generate_series(1, 8) n), 'all') AS c;
SELECT n, channel_name, reason, sqlstate, error, attempts_made, payload_json FROM pg_temp.dead;
SELECT pg_temp.n(id) AS n, dedup_key, headers, priority, keep FROM mq_dead WHERE dedup_key IS NOT NULL OR headers IS NOT NULL;
SELECT count(*) FROM mq_msgs;
-- The consumer outside learns of it: its message is gone, and stays dead.
SELECT mq_delete(ARRAY[pg_temp.id(7)]);
SELECT mq_keep_alive(ARRAY[pg_temp.id(7)], '1 hour');
SELECT n FROM pg_temp.dead WHERE n = 7;
-- A two-phase message cannot be committed any more; a dedup_key is free.
SELECT mq_commit(ARRAY[pg_temp.id(4)]);
SELECT sent FROM mq_send_once('c', 'k', '1', 'taken', delay => '1 hour');
SELECT mq_clear_all();
-- Sent again, they are as new: no note of before hits them.
SELECT mq_redrive(ARRAY[pg_temp.id(1), pg_temp.id(8)]);
SELECT pg_temp.n(id) AS n, attempt, headers, priority, keep FROM mq_msgs ORDER BY id;
CALL mq_run();
SELECT count(*) FROM mq_msgs;
TRUNCATE mq_dead, mq_failures;

-- Two-phase and not committed in time: it is gone already.
SELECT mq_send('c', commit_interval => '1 microsecond', id => pg_temp.id(1)) IS NOT NULL AS sent;
SELECT count(*) FROM mq_cancel(ARRAY[pg_temp.id(1)]);
SELECT mq_clear_all();

-- Of an ordered channel: the head, the middle and the tail; the channel goes on, also where a dead message blocks it.
CREATE TABLE handled (n serial, what jsonb);
CREATE FUNCTION note(jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO handled (what) VALUES ($1) $$;
SELECT mq_register_handler('o', 'note(jsonb)', on_dead => 'block');
SELECT count(mq_send('o', to_jsonb(n), ordered => true, id => pg_temp.id(n))) FROM generate_series(1, 6) n;
SELECT pg_temp.n(c) FROM mq_cancel(ARRAY[pg_temp.id(1), pg_temp.id(3), pg_temp.id(6)]) AS c;
CALL mq_run();
SELECT what FROM handled ORDER BY n;
SELECT count(*) FROM mq_msgs;
SELECT n, reason FROM pg_temp.dead;
TRUNCATE handled, mq_dead;
-- All of it, and then another.
SELECT count(mq_send('o', to_jsonb(n), ordered => true, id => pg_temp.id(n))) FROM generate_series(1, 3) n;
SELECT count(*) FROM mq_cancel(ARRAY(SELECT pg_temp.id(n) FROM generate_series(1, 3) n));
SELECT count(mq_send('o', to_jsonb(n), ordered => true, id => pg_temp.id(n))) FROM generate_series(4, 5) n;
CALL mq_run();
SELECT what FROM handled ORDER BY n;
TRUNCATE handled, mq_dead;
-- A message that blocks its channel is dead: it is not cancelled, and what is behind it can be.
CREATE FUNCTION fail(jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
SELECT mq_register_handler('b', 'fail(jsonb)', on_dead => 'block');
SELECT count(mq_send('b', to_jsonb(n), ordered => true, retries => 0, id => pg_temp.id(n))) FROM generate_series(1, 2) n;
CALL mq_run();
SELECT pg_temp.n(c) FROM mq_cancel(ARRAY[pg_temp.id(1), pg_temp.id(2)]) AS c;
SELECT n, reason FROM pg_temp.dead;
SELECT mq_clear_all();
TRUNCATE mq_dead, mq_failures;

-- Transactions and savepoints: a cancel that is rolled back does nothing. A message of the same transaction goes, too.
SELECT mq_send('c', '1', 'taken', delay => '1 hour', id => pg_temp.id(1)) IS NOT NULL AS sent;
BEGIN;
SELECT count(*) FROM mq_cancel(ARRAY[pg_temp.id(1)]);
SELECT count(*) FROM mq_cancel(ARRAY[pg_temp.id(1)]);
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT count(*) FROM mq_cancel(ARRAY[pg_temp.id(1)]);
ROLLBACK TO s;
SELECT mq_send('c', '2', 'taken', id => pg_temp.id(2)) IS NOT NULL AS sent;
SELECT count(mq_send('o', to_jsonb(n), ordered => true, id => pg_temp.id(n))) FROM generate_series(3, 5) n;
SELECT pg_temp.n(c) FROM mq_cancel(ARRAY[pg_temp.id(2), pg_temp.id(4)], 'in the same transaction') AS c;
COMMIT;
SELECT n, reason, error FROM pg_temp.dead;
SELECT pg_temp.n(id) AS n FROM mq_msgs ORDER BY id;
CALL mq_run();
SELECT what FROM handled ORDER BY n;
SELECT mq_clear_all();
TRUNCATE handled, mq_dead;

-- In a handler: not its own message; another one of its batch, which is not handled then; and it fails with its effects.
CREATE FUNCTION cancel_one(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  got uuid[];
BEGIN
  INSERT INTO handled (what) VALUES (m.payload_json);
  IF m.payload_json ? 'cancels' THEN
    BEGIN
      got := ARRAY(SELECT mq_cancel(ARRAY[(m.payload_json ->> 'cancels')::uuid], 'by a handler'));
      INSERT INTO handled (what) VALUES (to_jsonb(got));
    EXCEPTION WHEN object_not_in_prerequisite_state THEN
      INSERT INTO handled (what) VALUES (to_jsonb(sqlerrm));
    END;
  END IF;
  IF m.payload_json ? 'fails' THEN RAISE 'no'; END IF;
END $$;
SELECT mq_clear_all();
SELECT mq_register_handler('h', 'cancel_one(mq_message)');
SELECT mq_send('h', jsonb_build_object('cancels', pg_temp.id(1)), id => pg_temp.id(1)) IS NOT NULL AS sent;
CALL mq_run();
SELECT what FROM handled ORDER BY n;
TRUNCATE handled;
BEGIN;
SELECT mq_send('h', jsonb_build_object('cancels', pg_temp.id(3)), id => pg_temp.id(1)) IS NOT NULL AS sent;
SELECT mq_send('h', '2', id => pg_temp.id(2)) IS NOT NULL AS sent;
SELECT mq_send('h', '3', id => pg_temp.id(3)) IS NOT NULL AS sent;
COMMIT;
CALL mq_run();
SELECT what FROM handled ORDER BY n;
SELECT n, reason, error FROM pg_temp.dead;
SELECT count(*) FROM mq_msgs;
TRUNCATE handled, mq_dead;
SELECT mq_send('c', '9', 'taken', delay => '1 hour', id => pg_temp.id(9)) IS NOT NULL AS sent;
SELECT mq_send('h', jsonb_build_object('cancels', pg_temp.id(9), 'fails', 1), retries => 0, id => pg_temp.id(1)) IS NOT NULL AS sent;
CALL mq_run();
SELECT n, reason FROM pg_temp.dead;
SELECT pg_temp.n(id) AS n FROM mq_msgs;
TRUNCATE handled, mq_dead;
SELECT mq_register_handler('l', 'cancel_one(mq_message)', mode => 'leased');
SELECT mq_send('l', jsonb_build_object('cancels', pg_temp.id(1)), id => pg_temp.id(1)) IS NOT NULL AS sent;
SELECT mq_send('l', jsonb_build_object('cancels', pg_temp.id(9)), id => pg_temp.id(2)) IS NOT NULL AS sent;
CALL mq_run();
SELECT what FROM handled ORDER BY n;
SELECT n, reason FROM pg_temp.dead;
SELECT count(*) FROM mq_msgs;
TRUNCATE handled, mq_dead, mq_failures;

-- A note of a message that is not there any more goes, and one of another message under the id hits nobody.
SELECT mq_send('o', '1', id => pg_temp.id(1)) IS NOT NULL AS sent;
INSERT INTO mq_cancelled VALUES (pg_temp.id(1), 1, 'stale'), (pg_temp.id(2), 1, 'stale');
SELECT mq_enable();  -- as after a restore: makes such notes known
CALL mq_run();
SELECT what FROM handled ORDER BY n;
SELECT count(*) FROM mq_cancelled;
TRUNCATE handled;
-- One that holds, as after a crash: whoever meets the message moves it, due or not.
SELECT mq_send('o', '1', id => pg_temp.id(1)) IS NOT NULL AS sent;
SELECT mq_send('o', '2', delay => '1 hour', id => pg_temp.id(2)) IS NOT NULL AS sent;
SELECT mq_send('outside', '3', id => pg_temp.id(3)) IS NOT NULL AS sent;
SELECT mq_send('outside', '4', id => pg_temp.id(4)) IS NOT NULL AS sent;
INSERT INTO mq_cancelled SELECT id, seq, 'noted' FROM mq_msgs WHERE id <> pg_temp.id(4);
SELECT mq_enable();
SELECT pg_temp.n(c) FROM mq_cancel(ARRAY[pg_temp.id(1), pg_temp.id(2), pg_temp.id(3)]) AS c;
SELECT pg_temp.n(id) FROM mq_poll('{outside}', 10) WHERE id IS NOT NULL;
SELECT n, reason, sqlstate, error, attempts_made FROM pg_temp.dead;
CALL mq_run();
SELECT what FROM handled ORDER BY n;
SELECT n, reason, sqlstate, error, attempts_made FROM pg_temp.dead ORDER BY n;
SELECT count(*) FROM mq_cancelled;
SELECT mq_clear_all();
TRUNCATE mq_dead;

-- A trigger that keeps the message is an error, and all stays.
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
SELECT mq_send('c', id => pg_temp.id(1)) IS NOT NULL AS sent;
CREATE TRIGGER keep BEFORE DELETE ON mq_msgs FOR EACH ROW EXECUTE FUNCTION keep();
SELECT mq_cancel(ARRAY[pg_temp.id(1)]);
DROP TRIGGER keep ON mq_msgs;
SELECT count(*) FROM mq_dead;
SELECT count(*) FROM mq_cancel(ARRAY[pg_temp.id(1)]);
TRUNCATE mq_dead;

-- Rights: consume and admin; who may only send cancels nothing.
CREATE ROLE regress_mq_cancel;
SELECT mq_send('c', id => pg_temp.id(1)) IS NOT NULL AS sent;
SELECT mq_grant('regress_mq_cancel', 'produce'), mq_grant('regress_mq_cancel', 'monitor');
SET ROLE regress_mq_cancel;
SELECT mq_cancel('{00000000-0000-4000-8000-000000000001}');
SELECT * FROM mq_cancelled;
RESET ROLE;
SELECT mq_grant('regress_mq_cancel', 'consume');
SET ROLE regress_mq_cancel;
SELECT mq_cancel('{00000000-0000-4000-8000-000000000001}');
SELECT * FROM mq_cancelled;
RESET ROLE;

DROP OWNED BY regress_mq_cancel;
DROP ROLE regress_mq_cancel;
DROP VIEW pg_temp.dead;
DROP TABLE handled;
DROP FUNCTION take(mq_message), note(jsonb), fail(jsonb), cancel_one(mq_message), keep();
DROP EXTENSION mq;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
