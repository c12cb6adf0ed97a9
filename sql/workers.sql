--
-- Live workers: they come with the extension and go with it, handle a message as soon as it is committed or
-- due, and stand in nobody's way. Every wait is for something to happen, and has a limit.
--
\set database :DBNAME

-- The look that workers take now and then cannot help here: only a wake-up or a timer can.
ALTER SYSTEM SET mq.poll_interval = '1 h';
SELECT pg_reload_conf();
\c
-- Whether the condition has come true before the limit.
CREATE FUNCTION wait_until(condition text, most interval DEFAULT '60 s') RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  started timestamptz := clock_timestamp();
  come boolean;
BEGIN
  LOOP
    PERFORM pg_stat_clear_snapshot();
    EXECUTE 'SELECT ' || condition INTO come;
    IF come THEN RETURN true; END IF;
    IF clock_timestamp() - started > most THEN RETURN false; END IF;
    PERFORM pg_sleep(0.01);
  END LOOP;
END $$;
CREATE VIEW workers AS
  SELECT pid, usename, state, query FROM pg_stat_activity WHERE backend_type = 'mq worker' AND datname = current_database();

CREATE TABLE handled (n serial, what text, attempt int, pid int DEFAULT pg_backend_pid(), at timestamptz DEFAULT clock_timestamp());

-- CREATE EXTENSION starts a worker at its commit, without a restart.
SELECT wait_until('NOT EXISTS (SELECT FROM workers)');
BEGIN;
CREATE EXTENSION mq;
ROLLBACK;
CREATE EXTENSION mq;
SELECT wait_until('EXISTS (SELECT FROM workers)');

-- A message is handled soon after its commit, by a worker that is connected as the handler's role.
CREATE FUNCTION handle(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO handled (what, attempt) VALUES (message.name, message.attempt);
  IF message.attempt <= COALESCE((message.payload_json ->> 'fail')::int, 0) THEN RAISE EXCEPTION 'attempt % failed', message.attempt; END IF;
END $$;
SELECT mq_register_handler('work', 'handle(mq_message)');
SELECT mq_send('work', NULL, 'first') IS NOT NULL AS sent;
SELECT wait_until($$EXISTS (SELECT FROM handled WHERE what = 'first')$$);
SELECT wait_until('NOT EXISTS (SELECT FROM mq_msgs)');
SELECT h.pid <> pg_backend_pid() AS elsewhere, w.usename = current_user AS as_me FROM handled h JOIN workers w USING (pid);
-- Sent before there was a handler: handled when there is.
SELECT mq_send('later', NULL, 'waiting') IS NOT NULL AS sent;
SELECT mq_register_handler('later', 'handle(mq_message)');
SELECT wait_until($$EXISTS (SELECT FROM handled WHERE what = 'waiting')$$);

-- Nothing after a rollback: what was sent afterwards is handled, that is not.
BEGIN;
SELECT mq_send('work', NULL, 'rolled back') IS NOT NULL AS sent;
ROLLBACK;
BEGIN;
SELECT mq_send('work', NULL, 'kept') IS NOT NULL AS sent;
SAVEPOINT s;
SELECT mq_send('work', NULL, 'rolled back') IS NOT NULL AS sent;
ROLLBACK TO s;
SELECT count(*) FROM handled WHERE what = 'kept';
COMMIT;
SELECT wait_until($$EXISTS (SELECT FROM handled WHERE what = 'kept')$$);
SELECT count(*) FROM handled WHERE what = 'rolled back';

-- A delayed message is handled when it is due, and no earlier.
BEGIN;
SELECT now() + interval '300 ms' AS due \gset
SELECT mq_send('work', NULL, 'delayed', delay => '300 ms') IS NOT NULL AS sent;
COMMIT;
SELECT wait_until($$EXISTS (SELECT FROM handled WHERE what = 'delayed')$$);
SELECT at >= :'due' AS in_time FROM handled WHERE what = 'delayed';
-- So is an earlier one that is sent while a worker waits for a later one.
SELECT mq_send('work', NULL, 'late', delay => '1 hour', id => '00000000-0000-0000-0000-000000000001');
SELECT mq_send('work', NULL, 'early', delay => '100 ms') IS NOT NULL AS sent;
SELECT wait_until($$EXISTS (SELECT FROM handled WHERE what = 'early')$$);
SELECT mq_delete(ARRAY['00000000-0000-0000-0000-000000000001'::uuid]);

-- mq_commit wakes a worker.
SELECT mq_send('work', NULL, 'two-phase', commit_interval => '1 hour', id => '00000000-0000-0000-0000-000000000001');
SELECT mq_commit(ARRAY['00000000-0000-0000-0000-000000000001'::uuid]);
SELECT wait_until($$EXISTS (SELECT FROM handled WHERE what = 'two-phase')$$);

-- Order, over many transactions, while workers are handling.
TRUNCATE handled;
DO $$
BEGIN
  FOR i IN 1..100 LOOP
    PERFORM mq_send('work', NULL, i::text, ordered => true);
    COMMIT;
    IF i % 20 = 0 THEN PERFORM pg_sleep(0.01); END IF;
  END LOOP;
END $$;
SELECT wait_until('(SELECT count(*) = 100 FROM handled)');
SELECT array_agg(what ORDER BY n) = array_agg(what ORDER BY what::int) AS in_order, count(DISTINCT what) FROM handled;

-- Fails twice, and works on the third attempt, each after its backoff.
TRUNCATE handled;
SELECT mq_send('work', '{"fail": 2}', 'third time', retry_backoff => '100 ms') IS NOT NULL AS sent;
SELECT wait_until('EXISTS (SELECT FROM handled)');
SELECT what, attempt FROM handled;
SELECT f.attempt, f.error, f.failed_at - lag(f.failed_at) OVER (ORDER BY f.attempt) > '90 ms' AS waited FROM mq_failures f ORDER BY f.attempt;
SELECT h.at - f.failed_at > '190 ms' AS waited FROM handled h, mq_failures f WHERE f.attempt = 2;
TRUNCATE mq_failures;

-- Dead, and redriven: that wakes a worker.
TRUNCATE handled;
SELECT mq_send('work', '{"fail": 1}', 'dead', retries => 0) IS NOT NULL AS sent;
SELECT wait_until('EXISTS (SELECT FROM mq_dead)');
UPDATE mq_dead SET payload_json = NULL;
SELECT mq_redrive();
SELECT wait_until($$EXISTS (SELECT FROM handled WHERE what = 'dead')$$);
TRUNCATE mq_failures;

-- Paused: left alone, while others are handled; resumed: handled.
SELECT mq_pause('work');
SELECT mq_send('work', NULL, 'paused') IS NOT NULL AND mq_send('later', NULL, 'beside') IS NOT NULL AS sent;
SELECT wait_until($$EXISTS (SELECT FROM handled WHERE what = 'beside')$$);
SELECT count(*) FROM handled WHERE what = 'paused';
SELECT mq_resume('work');
SELECT wait_until($$EXISTS (SELECT FROM handled WHERE what = 'paused')$$);

-- A function that is replaced is used at once; one that is dropped parks its channel until it is there again.
CREATE OR REPLACE FUNCTION handle(message mq_message) RETURNS void LANGUAGE sql AS $$
  INSERT INTO handled (what) VALUES ('new ' || message.name)
$$;
SELECT mq_send('work', NULL, 'function') IS NOT NULL AS sent;
SELECT wait_until($$EXISTS (SELECT FROM handled WHERE what LIKE '%function')$$);
SELECT what FROM handled WHERE what LIKE '%function';
CREATE FUNCTION handle_beside(jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO handled (what) VALUES ('still here') $$;
SELECT mq_register_handler('beside', 'handle_beside(jsonb)');
DROP FUNCTION handle(mq_message);
SELECT mq_send('work', NULL, 'later') IS NOT NULL AND mq_send('beside') IS NOT NULL AS sent;
SELECT wait_until($$EXISTS (SELECT FROM handled WHERE what = 'still here')$$);
SELECT attempts FROM mq_msgs;
CREATE FUNCTION handle(message mq_message) RETURNS void LANGUAGE sql AS $$
  INSERT INTO handled (what) VALUES (message.name)
$$;
SELECT mq_send('work', NULL, 'a wake-up') IS NOT NULL AS sent;
SELECT wait_until($$EXISTS (SELECT FROM handled WHERE what = 'later')$$);
SELECT wait_until($$EXISTS (SELECT FROM handled WHERE what = 'a wake-up')$$);

-- Another role's handler is called by a worker of that role.
CREATE ROLE regress_mq_alice LOGIN;
GRANT INSERT ON handled TO regress_mq_alice;
GRANT USAGE ON SEQUENCE handled_n_seq TO regress_mq_alice;
CREATE FUNCTION handle_role(jsonb) RETURNS void LANGUAGE sql AS $$
  INSERT INTO handled (what) VALUES (format('current_user %s, session_user %s', current_user, session_user))
$$;
SELECT mq_register_handler('role', 'handle_role(jsonb)', run_as => 'regress_mq_alice');
SELECT mq_send('role') IS NOT NULL AS sent;
SELECT wait_until($$EXISTS (SELECT FROM handled WHERE what LIKE 'current_user%')$$);
SELECT what FROM handled WHERE what LIKE 'current_user%';
-- The role's last handler goes, and so does its worker.
SELECT mq_unregister_handler('role');
SELECT wait_until($$NOT EXISTS (SELECT FROM workers WHERE usename = 'regress_mq_alice')$$);
DROP FUNCTION handle_role(jsonb);
DROP OWNED BY regress_mq_alice;
DROP ROLE regress_mq_alice;

-- Under backlog there are two workers. max_workers => 1 keeps a channel to one of them at a time.
CREATE TABLE spans (channel text, pid int, started timestamptz, ended timestamptz);
CREATE FUNCTION handle_span(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  started timestamptz := clock_timestamp();
BEGIN
  PERFORM pg_sleep(0.01);
  INSERT INTO spans VALUES (message.channel_name, pg_backend_pid(), started, clock_timestamp());
END $$;
SELECT mq_register_handler('free', 'handle_span(mq_message)');
SELECT mq_register_handler('alone', 'handle_span(mq_message)', max_workers => 1);
SELECT count(*) FROM mq_send_many('free', array_fill('1'::jsonb, ARRAY[400]));
SELECT count(*) FROM mq_send_many('alone', array_fill('1'::jsonb, ARRAY[100]));
SELECT wait_until('(SELECT count(*) = 500 FROM spans)');
SELECT count(DISTINCT pid) > 1 AS several FROM spans;
SELECT count(*) > 0 AS overlap FROM spans a JOIN spans b ON a.channel = 'free' AND b.channel = 'free' AND a.pid < b.pid
   AND (a.started, a.ended) OVERLAPS (b.started, b.ended);
SELECT count(*) AS overlaps FROM spans a JOIN spans b ON a.channel = 'alone' AND b.channel = 'alone' AND a.pid < b.pid
   AND (a.started, a.ended) OVERLAPS (b.started, b.ended);
SELECT mq_unregister_handler('free'), mq_unregister_handler('alone');
DROP FUNCTION handle_span(mq_message);
DROP TABLE spans;

-- Cancelling the worker's handler fails the attempt. Ending the worker ends nothing else: another comes.
CREATE FUNCTION handle_slowly(jsonb) RETURNS void LANGUAGE sql AS $$ SELECT pg_advisory_xact_lock(1, 2); SELECT pg_sleep(3600) $$;
CREATE VIEW asleep AS
  SELECT l.pid, w.state, w.query LIKE 'slow:%' AS shows_channel FROM pg_locks l JOIN workers w USING (pid)
   WHERE l.locktype = 'advisory' AND (l.classid, l.objid, l.objsubid) = (1, 2, 2);
SELECT mq_register_handler('slow', 'handle_slowly(jsonb)');
SELECT mq_send('slow', retries => 0) IS NOT NULL AS sent;
SELECT wait_until('EXISTS (SELECT FROM asleep)');
SELECT state, shows_channel, pg_cancel_backend(pid) AS cancelled FROM asleep;
SELECT wait_until('EXISTS (SELECT FROM mq_dead)');
SELECT reason, sqlstate, attempts_made FROM mq_dead;
TRUNCATE mq_dead;
-- A handler that catches every cancellation is ended by its timeout all the same, at the cost of its worker.
CREATE FUNCTION handle_stubbornly(jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  LOOP
    BEGIN
      PERFORM pg_sleep(3600);
    EXCEPTION WHEN query_canceled THEN NULL;
    END;
  END LOOP;
END $$;
SELECT mq_register_handler('slow', 'handle_stubbornly(jsonb)', timeout => '100 ms');
SELECT mq_send('slow', retries => 0) IS NOT NULL AS sent;
SELECT wait_until('EXISTS (SELECT FROM mq_dead)');
SELECT reason, sqlstate, attempts_made FROM mq_dead;
SELECT mq_unregister_handler('slow');
DROP FUNCTION handle_stubbornly(jsonb);
SELECT mq_send('work', NULL, 'unharmed') IS NOT NULL AS sent;
SELECT wait_until($$EXISTS (SELECT FROM handled WHERE what = 'unharmed')$$);
CREATE TEMP TABLE gone AS SELECT pid, pg_terminate_backend(pid) AS ended FROM workers;
SELECT wait_until('NOT EXISTS (SELECT FROM workers JOIN gone USING (pid))');
SELECT mq_send('work', NULL, 'after the end') IS NOT NULL AS sent;
SELECT wait_until($$EXISTS (SELECT FROM handled WHERE what = 'after the end')$$);
SELECT count(*) FROM handled h JOIN gone USING (pid) WHERE what = 'after the end';
DROP TABLE gone;
DROP VIEW asleep;
DROP FUNCTION handle_slowly(jsonb);
TRUNCATE mq_dead, mq_failures;

-- No worker where none is wanted: mq.max_workers, mq.databases. They come back with the setting.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
SELECT wait_until('NOT EXISTS (SELECT FROM workers)');
SELECT mq_send('work', NULL, 'no workers') IS NOT NULL AS sent;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
SELECT wait_until($$EXISTS (SELECT FROM handled WHERE what = 'no workers')$$);
ALTER SYSTEM SET mq.databases = 'template1, regress_mq_elsewhere';
SELECT pg_reload_conf();
SELECT wait_until('NOT EXISTS (SELECT FROM workers)');
SELECT count(*) FROM mq_poll('{nothing}');
SELECT mq_send('work', NULL, 'not served') IS NOT NULL AS sent;
SELECT count(*) FROM mq_poll('{nothing}');
SELECT mq_send('work', NULL, 'not served either') IS NOT NULL AS sent;
SELECT count(*) AS workers, (SELECT count(*) FROM handled WHERE what LIKE 'not served%') AS handled FROM workers;
ALTER SYSTEM RESET mq.databases;
SELECT pg_reload_conf();
SELECT wait_until($$(SELECT count(*) = 2 FROM handled WHERE what LIKE 'not served%')$$);

-- The sweep of an idle worker: what expired goes, what somebody broke by hand is mended, what is old is
-- forgotten. This is what the interval is for.
ALTER SYSTEM SET mq.poll_interval = '100 ms';
SELECT pg_reload_conf();
SELECT mq_unregister_handler('work'), mq_unregister_handler('later'), mq_unregister_handler('beside');
SELECT mq_send('unwatched', NULL, 'uncommitted', commit_interval => '50 ms') IS NOT NULL AS sent;
SELECT mq_send('unwatched', NULL, 'abandoned', retries => 0, retry_backoff => '50 ms') IS NOT NULL AS sent;
SELECT name FROM mq_poll('{unwatched}');
INSERT INTO mq_dead (id, died_at, channel_name, channel_args, ordered, attempts_made, reason, retry_backoff, channel_key)
  SELECT gen_random_uuid(), now() - age, 'work', '', false, 1, 'exhausted', '1 s', mq_channel_key('work', '')
    FROM unnest(ARRAY['31 days', '29 days']::interval[]) AS age;
INSERT INTO mq_failures (message_id, attempt, failed_at, channel_name, channel_args, sqlstate, error, channel_key)
  SELECT gen_random_uuid(), 1, now() - age, 'work', '', 'XX000', age::text, mq_channel_key('work', '')
    FROM unnest(ARRAY['8 days', '6 days']::interval[]) AS age;
SELECT wait_until('NOT EXISTS (SELECT FROM mq_msgs) AND NOT EXISTS (SELECT FROM mq_payloads)');
SELECT wait_until('(SELECT count(*) = 2 FROM mq_dead)');
SELECT wait_until('(SELECT count(*) = 1 FROM mq_failures)');
SELECT channel_name, name, reason FROM mq_dead ORDER BY channel_name;
SELECT error FROM mq_failures;
TRUNCATE mq_dead, mq_failures;
-- Heads that somebody deleted, one of them by its payload.
SELECT mq_pause('work');
SELECT mq_register_handler('work', 'handle(mq_message)');
SELECT mq_send('work', NULL, 'deleted', ordered => true, id => '00000000-0000-0000-0000-000000000001');
SELECT mq_send('work', NULL, 'next head', ordered => true) IS NOT NULL AS sent;
SELECT mq_send('work', NULL, 'deleted', ordered => true, channel_args => 'other', id => '00000000-0000-0000-0000-000000000002');
SELECT mq_send('work', NULL, 'other head', ordered => true, channel_args => 'other') IS NOT NULL AS sent;
DELETE FROM mq_msgs WHERE id = '00000000-0000-0000-0000-000000000001';
DELETE FROM mq_payloads WHERE id = '00000000-0000-0000-0000-000000000002';
SELECT mq_resume('work');
SELECT wait_until($$EXISTS (SELECT FROM handled WHERE what = 'next head')$$);
SELECT wait_until($$EXISTS (SELECT FROM handled WHERE what = 'other head')$$);
SELECT count(*) FROM handled WHERE what = 'deleted';
ALTER SYSTEM SET mq.poll_interval = '1 h';
SELECT pg_reload_conf();

-- DROP EXTENSION ends the workers, and does not wait for them; CREATE EXTENSION brings them again.
DROP FUNCTION handle(mq_message);
DROP EXTENSION mq;
SELECT wait_until('NOT EXISTS (SELECT FROM workers)');
CREATE EXTENSION mq;
SELECT wait_until('EXISTS (SELECT FROM workers)');
SELECT mq_register_handler('beside', 'handle_beside(jsonb)');
TRUNCATE handled;
SELECT mq_send('beside') IS NOT NULL AS sent;
SELECT wait_until('EXISTS (SELECT FROM handled)');
DROP EXTENSION mq;
SELECT wait_until('NOT EXISTS (SELECT FROM workers)');
-- Over and over, with a worker that is just coming or going.
DO $$
BEGIN
  FOR i IN 1..10 LOOP
    CREATE EXTENSION mq;
    COMMIT;
    PERFORM mq_register_handler('beside', 'handle_beside(jsonb)');
    PERFORM mq_send('beside');
    COMMIT;
    PERFORM pg_sleep(0.02 * (i % 4));
    DROP EXTENSION mq;
    COMMIT;
  END LOOP;
END $$;
SELECT wait_until('NOT EXISTS (SELECT FROM workers)');

-- A worker that rests in a database is in nobody's way who copies, renames or drops it.
CREATE DATABASE regress_mq_a TEMPLATE :"database";
\c regress_mq_a
CREATE EXTENSION mq;
SELECT mq_register_handler('beside', 'handle_beside(jsonb)');
TRUNCATE handled;
SELECT mq_send('beside') IS NOT NULL AS sent;
SELECT wait_until('EXISTS (SELECT FROM handled)');
\c :"database"
CREATE DATABASE regress_mq_b TEMPLATE regress_mq_a;
\c regress_mq_b
SELECT mq_enable();
SELECT mq_send('beside') IS NOT NULL AS sent;
SELECT wait_until('(SELECT count(*) = 2 FROM handled)');
\c :"database"
ALTER DATABASE regress_mq_b RENAME TO regress_mq_c;
\c regress_mq_c
SELECT mq_send('beside') IS NOT NULL AS sent;
SELECT wait_until('(SELECT count(*) = 3 FROM handled)');
-- The one that was copied goes on, too.
\c regress_mq_a
SELECT mq_send('beside') IS NOT NULL AS sent;
SELECT wait_until('(SELECT count(*) = 2 FROM handled)');
\c :"database"
DROP DATABASE regress_mq_a;
DROP DATABASE regress_mq_c;

DROP FUNCTION handle_beside(jsonb), wait_until(text, interval);
DROP TABLE handled;
DROP VIEW workers;
ALTER SYSTEM RESET mq.poll_interval;
SELECT pg_reload_conf();
