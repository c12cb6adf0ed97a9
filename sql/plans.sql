--
-- Plans are kept for long, so what is planned while the queue is empty must do for a full one: rows are found by index,
-- each by itself.
--
-- Workers stay out of this database.
ALTER SYSTEM SET mq.max_workers = 0;
ALTER SYSTEM SET autovacuum = off;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;
CREATE FUNCTION handle(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN IF payload = '"fail"' THEN RAISE EXCEPTION 'as ever'; END IF; END $$;
SELECT mq_register_handler('work', 'handle(jsonb)'), mq_register_handler('failing', 'handle(jsonb)');

-- Every way of a message once, with a few. Then the tables are as empty as can be, and known to be.
CREATE PROCEDURE every_way(n int) LANGUAGE plpgsql AS $$
DECLARE
  handled bigint;
  ids uuid[];
BEGIN
  PERFORM mq_send_many('work', array_fill('1'::jsonb, ARRAY[n]));
  PERFORM mq_send_many('work', array_fill('1'::jsonb, ARRAY[n]), channel_args => 'o', ordered => true);
  PERFORM mq_send_many('failing', array_fill('"fail"'::jsonb, ARRAY[n]), retries => 1, retry_backoff => '0');
  PERFORM mq_send_many('unwatched', array_fill('1'::jsonb, ARRAY[n]), expires => '1 microsecond');
  PERFORM mq_send_many('outside', array_fill('1'::jsonb, ARRAY[n]), retry_backoff => '1 hour');
  SELECT array_agg(id) INTO ids FROM mq_poll('{outside}', n);
  PERFORM mq_keep_alive(ids, '2 hours');
  PERFORM mq_delete(ids);
  SELECT array_agg(id) INTO ids FROM mq_send_many('twice', array_fill('1'::jsonb, ARRAY[n]), commit_interval => '1 hour') AS s (id);
  PERFORM mq_commit(ids);
  PERFORM mq_clear('{twice}');
  CALL mq_run(handled => handled);
  PERFORM mq_redrive(channel_name => 'unwatched');
  PERFORM mq_clear_all();
END $$;
CALL every_way(3);
DELETE FROM mq_dead;
DELETE FROM mq_failures;
VACUUM mq_msgs, mq_dead, mq_failures;
SELECT relname, relpages, reltuples FROM pg_class WHERE relname IN ('mq_msgs', 'mq_dead', 'mq_failures') ORDER BY relname;

-- In a session that has planned nothing yet: once while they are empty, and once with many.
\c
CALL mq_run();
SELECT count(id) FROM mq_poll(NULL, 10);
CALL every_way(1);
BEGIN;
CALL every_way(300);
SELECT relname, n_live_rows_read < 60 * 300 AS few
  FROM (SELECT relname, seq_tup_read + COALESCE(idx_tup_fetch, 0) AS n_live_rows_read FROM pg_stat_xact_user_tables
         WHERE relname IN ('mq_msgs', 'mq_dead', 'mq_failures', 'mq_headless')) AS read
 ORDER BY relname;
ROLLBACK;

-- The generic plans are taken whatever the session wants for its own.
SET plan_cache_mode = force_custom_plan;
BEGIN;
CALL every_way(300);
SELECT relname, n_live_rows_read < 60 * 300 AS few
  FROM (SELECT relname, seq_tup_read + COALESCE(idx_tup_fetch, 0) AS n_live_rows_read FROM pg_stat_xact_user_tables
         WHERE relname IN ('mq_msgs', 'mq_dead', 'mq_failures', 'mq_headless')) AS read
 ORDER BY relname;
ROLLBACK;
RESET plan_cache_mode;

-- A trigger of the application is planned as its session wants it. What it sets ends with the call that fired it.
CREATE TABLE seen (at text, enable_seqscan text, enable_sort text, plan_cache_mode text);
CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.seen VALUES (TG_OP, current_setting('enable_seqscan'), current_setting('enable_sort'), current_setting('plan_cache_mode'));
  PERFORM set_config('enable_sort', 'off', false), set_config('plan_cache_mode', 'force_custom_plan', true);
  RETURN NULL;
END $$;
CREATE TRIGGER look AFTER INSERT OR UPDATE OR DELETE ON mq_msgs FOR EACH STATEMENT EXECUTE FUNCTION look();
BEGIN;
SELECT FROM mq_send('outside', id => '00000000-0000-4000-8000-000000000001');
SHOW enable_sort;
SHOW plan_cache_mode;
COMMIT;
SELECT FROM mq_delete('{00000000-0000-4000-8000-000000000001}');
SELECT * FROM seen;
SHOW enable_sort;
SHOW plan_cache_mode;
RESET enable_sort;
DROP TRIGGER look ON mq_msgs;
DROP FUNCTION look();
DROP TABLE seen;

DROP PROCEDURE every_way(int);
DROP FUNCTION handle(jsonb);
DROP EXTENSION mq;
ALTER SYSTEM RESET mq.max_workers;
ALTER SYSTEM RESET autovacuum;
SELECT pg_reload_conf();
