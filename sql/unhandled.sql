--
-- Message names that no handler of their channel takes: such a message waits, uncharged and in nobody's way, until one
-- is registered that does.
--
-- Workers stay out.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;
CREATE TABLE handled (n serial, name text, what int);
CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE sql AS $$ INSERT INTO handled (name, what) VALUES (m.name, m.payload_json::int) $$;
CREATE FUNCTION handle_all(m mq_message[]) RETURNS void LANGUAGE sql
  AS $$ INSERT INTO handled (name, what) SELECT x.name, x.payload_json::int FROM unnest(m) AS x $$;
-- What was handled since the last look, in order.
CREATE FUNCTION pg_temp.handled() RETURNS text LANGUAGE sql AS $$
  WITH gone AS (DELETE FROM handled RETURNING *) SELECT string_agg(concat_ws(' ', name, what), ', ' ORDER BY n) FROM gone
$$;
CREATE VIEW waiting AS
  SELECT channel_name, name, attempt_at = 'infinity' AS aside, attempts, attempt FROM mq_msgs JOIN mq_payloads USING (id) ORDER BY seq;

-- It waits though its last attempt would be the first; it is handled in its turn when its handler is there.
SELECT mq_register_handler('c', 'handle(mq_message)', 'known');
SELECT mq_send('c', '1', 'new', retries => 0) IS NOT NULL AND mq_send('c', '2', 'known') IS NOT NULL
   AND mq_send('c', '3', 'new', delay => '1 hour') IS NOT NULL AND mq_send('c', '4', 'other') IS NOT NULL AS sent;
CALL mq_run();
CALL mq_run();
SELECT pg_temp.handled();
SELECT * FROM waiting;
SELECT (SELECT count(*) FROM mq_failures) AS failures, (SELECT count(*) FROM mq_dead) AS dead;
SELECT channel_name, ready, scheduled, running, failed, oldest_ready FROM mq_stats;
SELECT ok, detail FROM mq_health() WHERE "check" = 'message names handled';
SELECT count(id) AS polled, bool_and(wait_time IS NULL OR wait_time < '2 hours') AS waits FROM mq_poll('{c}');
SELECT mq_register_handler('c', 'handle(mq_message)', 'new');
CALL mq_run();
SELECT pg_temp.handled();
SELECT * FROM waiting;
-- One for every name takes the rest. Unregistering puts nothing away.
SELECT mq_register_handler('c', 'handle(mq_message)');
SELECT mq_unregister_handler('c', 'new');
UPDATE mq_msgs SET attempt_at = now() WHERE attempt_at < 'infinity';
CALL mq_run();
SELECT pg_temp.handled();
-- Where the last handler is unregistered the channel is as one that never had any: consumers outside may poll it.
SELECT mq_unregister_handler('c'), mq_send('c', '5', 'new') IS NOT NULL AS sent;
CALL mq_run();
SELECT mq_unregister_handler('c', 'known');
CALL mq_run();
SELECT name, payload_json FROM mq_poll('{c}');
SELECT mq_clear_all();

-- Ordered: the channel waits behind it, others do not. In leased channels and for batch handlers as well.
SELECT mq_register_handler('o', 'handle(mq_message)', 'known');
SELECT mq_register_handler('l', 'handle(mq_message)', 'known', mode => 'leased');
SELECT mq_register_handler('b', 'handle_all(mq_message[])', 'known');
SELECT count(mq_send(c, to_jsonb(n), CASE n WHEN 3 THEN 'new' ELSE 'known' END, args, ordered => true))
  FROM unnest('{o,l,b}'::text[]) AS c, unnest('{x,y}'::text[]) AS args, generate_series(1, 4) AS n WHERE args = 'x' OR n <> 3;
CALL mq_run();
SELECT channel_name, ready, scheduled FROM mq_stats WHERE channel_name IN ('o', 'l', 'b') ORDER BY 1;
SELECT channel_name, channel_args, payload_json, attempt_at = 'infinity' AS aside FROM mq_msgs JOIN mq_payloads USING (id) ORDER BY seq;
TRUNCATE handled;
-- What stands before it is removed meanwhile; what stands behind it waits on.
SELECT mq_send('o', '5', 'known', 'x', ordered => true) IS NOT NULL AS sent;
CALL mq_run();
SELECT mq_register_handler('o', 'handle(mq_message)'), mq_register_handler('l', 'handle(mq_message)', 'new', mode => 'leased'),
       mq_register_handler('b', 'handle(mq_message)', 'new');
CALL mq_run('{o}');
SELECT pg_temp.handled();
CALL mq_run('{l}');
SELECT pg_temp.handled();
CALL mq_run('{b}');
SELECT pg_temp.handled();
SELECT count(*) FROM mq_msgs;

-- The rest of what can become of a message: it is deleted, cleared, known by its dedup_key, found dead at its expiry.
SELECT mq_register_handler('c', 'handle(mq_message)', 'known');
SELECT mq_send('c', '1', 'new', dedup_key => 'k', id => '00000000-0000-0000-0000-000000000001'),
       mq_send('c', '2', 'new', expires => '1 hour', id => '00000000-0000-0000-0000-000000000002'),
       mq_send('c', '3', 'new', dedup_key => 'l', expires => '1 hour', id => '00000000-0000-0000-0000-000000000003');
CALL mq_run();
SELECT mq_send('c', '1', 'known', dedup_key => 'k');
SELECT mq_keep_alive('{00000000-0000-0000-0000-000000000001}', '1 hour');
SELECT mq_checkpoint('00000000-0000-0000-0000-000000000001', '1 hour', '10', NULL, 1);
SELECT payload_json, attempt_at = 'infinity' AS aside, attempts FROM mq_msgs JOIN mq_payloads USING (id) ORDER BY seq;
UPDATE mq_msgs SET expires_at = now() WHERE expires_at IS NOT NULL;
-- The sender of the key finds it dead, the sweep the other one.
SELECT mq_send('c', '4', 'known', dedup_key => 'l') <> '00000000-0000-0000-0000-000000000003' AS sent_anew;
SELECT payload_json, reason FROM mq_dead ORDER BY 1;
CALL mq_run();
SELECT payload_json, reason FROM mq_dead ORDER BY 1;
SELECT pg_temp.handled();
-- A dead one that is sent again waits again.
SELECT mq_redrive();
CALL mq_run();
SELECT * FROM waiting;
SELECT mq_delete('{00000000-0000-0000-0000-000000000001}');
SELECT mq_clear('{c}');
SELECT count(*) FROM mq_msgs;

-- What is rolled back has not been put aside; in a transaction block nothing else is different.
SELECT mq_send('c', '1', 'new') IS NOT NULL AS sent;
BEGIN;
CALL mq_run();
SELECT * FROM waiting;
ROLLBACK;
SELECT * FROM waiting;
BEGIN;
CALL mq_run();
SELECT mq_register_handler('c', 'handle(mq_message)', 'new');
CALL mq_run();
COMMIT;
SELECT pg_temp.handled();
SELECT mq_unregister_handler('c', 'new');

-- Claims do not read them: of 10,000 that wait the next claims see nothing, and neither do repeated looks for handlers.
SELECT count(*) FROM mq_send_many('c', array_fill('1'::jsonb, ARRAY[10000]), name => 'new');
CALL mq_run();
SELECT count(*) FROM mq_msgs WHERE attempt_at = 'infinity';
SELECT pg_stat_force_next_flush();
SELECT idx_tup_read AS before FROM pg_stat_user_indexes WHERE indexrelname = 'mq_msgs_due' \gset
DO $$
DECLARE
  handled bigint := 0;
BEGIN
  FOR i IN 1 .. 20 LOOP
    PERFORM mq_send('c', to_jsonb(i), 'known');
    CALL mq_run(handled => handled);
  END LOOP;
END $$;
SELECT pg_stat_force_next_flush();
SELECT idx_tup_read - :before < 20 * 2000 AS few FROM pg_stat_user_indexes WHERE indexrelname = 'mq_msgs_due';
-- All are found at last, however many wait for others.
SELECT count(*) FROM mq_send_many('c', '{1,2}', name => 'newer');
CALL mq_run();
SELECT mq_register_handler('c', 'handle(mq_message)', 'newer');
TRUNCATE handled;
CALL mq_run();
SELECT pg_temp.handled();
SELECT mq_register_handler('c', 'handle(mq_message)');
CALL mq_run();
SELECT count(*) FROM mq_msgs;

DROP EXTENSION mq CASCADE;
DROP TABLE handled;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
