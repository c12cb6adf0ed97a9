--
-- Messages that are claimed in one batch: what the handler of one does to another is heeded before that one is handled.
-- The batch ends behind such a call, and what is left of it is claimed again; any other call ends no batch.
--
-- Workers stay out: mq_run claims here, all that is due together.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;

CREATE TABLE handled (n serial, what text, batch xid8 DEFAULT pg_current_xact_id());
CREATE FUNCTION act(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO handled (what) VALUES (message.payload_json ->> 'what');
  IF message.payload_json ? 'does' THEN EXECUTE message.payload_json ->> 'does' USING message.id; END IF;
END $$;
CREATE FUNCTION act_otherwise(message mq_message) RETURNS void LANGUAGE sql AS $$
  INSERT INTO handled (what) VALUES (message.payload_json ->> 'what' || ' (other handler)')
$$;
-- What was handled since the last look, in order; | stands between batches.
CREATE FUNCTION pg_temp.handled() RETURNS text LANGUAGE sql AS $$
  WITH gone AS (DELETE FROM handled RETURNING *),
       batches AS (SELECT min(n) AS n, string_agg(what, ', ' ORDER BY n) AS what FROM gone GROUP BY batch)
  SELECT string_agg(what, ' | ' ORDER BY n) FROM batches
$$;
CREATE FUNCTION mate() RETURNS uuid LANGUAGE sql IMMUTABLE AS $$ SELECT '00000000-0000-0000-0000-00000000000b'::uuid $$;
CREATE FUNCTION first() RETURNS uuid LANGUAGE sql IMMUTABLE AS $$ SELECT '00000000-0000-0000-0000-00000000000a'::uuid $$;
CREATE TABLE cancelled (message uuid);
CREATE FUNCTION cancel() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM mq_delete(ARRAY[NEW.message]); RETURN NULL; END $$;
CREATE TRIGGER cancels AFTER INSERT ON cancelled FOR EACH ROW EXECUTE FUNCTION cancel();

-- Four messages, of which the second does that. What is handled, and what is left.
CREATE TABLE tried (n serial, does text, ordered boolean, handled text, "left" text);
CREATE PROCEDURE try(does text, ordered boolean) LANGUAGE plpgsql AS $$
DECLARE
  n bigint;
BEGIN
  PERFORM mq_register_handler('mates', 'act(mq_message)');
  PERFORM mq_send('mates', '{"what": "first"}', ordered => ordered, id => first(), retries => 0),
          mq_send('mates', jsonb_build_object('what', 'acts', 'does', does), ordered => ordered, retries => 0),
          mq_send('mates', '{"what": "mate"}', ordered => ordered, id => mate(), retries => 0),
          mq_send('mates', '{"what": "last"}', ordered => ordered, retries => 0);
  COMMIT;
  CALL mq_run(handled => n);
  INSERT INTO tried (does, ordered, handled, "left")
    SELECT try.does, try.ordered, pg_temp.handled(),
           (SELECT string_agg(payload_json ->> 'what', ', ' ORDER BY seq) FROM mq_msgs JOIN mq_payloads USING (id)
             WHERE channel_name = 'mates');
  PERFORM mq_clear_all(), mq_resume('mates');
  DELETE FROM mq_dead;
  COMMIT;
END $$;
CREATE PROCEDURE try_all(statements text[]) LANGUAGE plpgsql AS $$
DECLARE
  statement text;
BEGIN
  FOREACH statement IN ARRAY statements LOOP
    CALL try(statement, false);
    CALL try(statement, true);
  END LOOP;
END $$;
CREATE FUNCTION pg_temp.tried() RETURNS TABLE (does text, handled text, "left" text, ordered_handled text, ordered_left text) LANGUAGE sql AS $$
  WITH gone AS (DELETE FROM tried RETURNING *)
  SELECT u.does, u.handled, u."left", o.handled, o."left" FROM gone u JOIN gone o ON o.n = u.n + 1 AND o.ordered ORDER BY u.n
$$;

-- What is done to no other message of the batch leaves that as it is.
CALL try_all(ARRAY[
  'SELECT 1',
  'SELECT mq_checkpoint($1, ''1 minute'', ''{"what": "acted"}'', NULL, 1), mq_keep_alive(ARRAY[$1], ''1 hour'')',
  'SELECT mq_delete(ARRAY[$1])',
  'SELECT mq_delete(ARRAY[first(), gen_random_uuid()])',
  'SELECT mq_clear(ARRAY[''elsewhere''])',
  'SELECT mq_pause(''elsewhere'')',
  'SELECT mq_send(''elsewhere'', dedup_key => ''key''), mq_send(''elsewhere'', dedup_key => ''key''), mq_send(''elsewhere'', ordered => true)',
  'INSERT INTO mq_msgs (id, channel_name, channel_args, channel_key, after_message_id, message_name) VALUES (gen_random_uuid(), ''elsewhere'', '''', mq_channel_key(''elsewhere'', ''''), NULL, ''by hand'') ON CONFLICT DO NOTHING']);
SELECT * FROM pg_temp.tried() \gx

-- A message that was removed, changed or put off before its call.
CALL try_all(ARRAY[
  'SELECT mq_delete(ARRAY[mate(), $1])',
  'SELECT mq_checkpoint(mate(), ''0'', ''{"what": "new"}'', NULL, 0)',
  'SELECT mq_keep_alive(ARRAY[mate()], ''1 hour'')',
  'SELECT mq_clear(ARRAY[''elsewhere'', ''mates''])',
  'SELECT mq_clear_all()',
  'INSERT INTO cancelled VALUES (mate())',
  'SELECT mq_delete(ARRAY[mate()]), mq_discard(''done'')',
  'SELECT mq_delete(ARRAY[mate()]), mq_send(''mates'', ''{"what": "anew"}'', id => mate())']);
SELECT * FROM pg_temp.tried() \gx

-- The same by hand.
CALL try_all(ARRAY[
  'DELETE FROM mq_msgs WHERE id = mate()',
  'WITH gone AS (DELETE FROM mq_msgs WHERE id = mate() RETURNING id) INSERT INTO cancelled SELECT id FROM gone',
  'UPDATE mq_msgs SET attempt_at = now() + ''1 hour'' WHERE id = mate()',
  'UPDATE mq_payloads SET payload_json = ''{"what": "new"}'' WHERE id = mate()',
  'UPDATE mq_msgs SET message_json = ''{"what": "new"}'' WHERE id = mate()',
  'INSERT INTO mq_msgs SELECT * FROM mq_msgs WHERE id = mate() ON CONFLICT (id) DO UPDATE SET message_json = ''{"what": "new"}''',
  'MERGE INTO mq_msgs m USING (SELECT mate() AS id) AS n ON n.id = m.id WHEN MATCHED THEN UPDATE SET message_json = ''{"what": "new"}''',
  'DELETE FROM mq_payloads WHERE id = mate()',
  'DO $do$ BEGIN DELETE FROM mq_payloads; DELETE FROM mq_msgs; END $do$',
  'TRUNCATE mq_msgs, mq_payloads',
  'TRUNCATE mq_payloads']);
SELECT * FROM pg_temp.tried() \gx

-- A channel that was paused, or got another handler.
CALL try_all(ARRAY[
  'SELECT mq_pause(''mates'')',
  'SELECT mq_unregister_handler(''mates'')',
  'SELECT mq_register_handler(''mates'', ''act_otherwise(mq_message)'')']);
SELECT * FROM pg_temp.tried() \gx

-- What is rolled back has not been: at most the batch ends for it.
CALL try_all(ARRAY[
  'DO $do$ BEGIN PERFORM mq_delete(ARRAY[mate()]); RAISE EXCEPTION ''no''; EXCEPTION WHEN raise_exception THEN NULL; END $do$',
  'DO $do$ BEGIN PERFORM mq_delete(ARRAY[mate()]); RAISE EXCEPTION ''no''; END $do$',
  'DO $do$ BEGIN DELETE FROM mq_msgs; RAISE EXCEPTION ''no''; END $do$']);
SELECT * FROM pg_temp.tried() \gx

-- Calls that failed before have been charged once, however often the batch is claimed again.
SELECT mq_register_handler('mates', 'act(mq_message)');
SELECT count(mq_send('mates', jsonb_build_object('what', what, 'does', does), id => id, retries => 0)) FROM (VALUES
  (first(), 'first', 'SELECT 1'), (gen_random_uuid(), 'fails', 'SELECT 1/0'), (gen_random_uuid(), 'second', 'SELECT 1'),
  (gen_random_uuid(), 'cancels', 'SELECT mq_delete(ARRAY[mate()])'), (gen_random_uuid(), 'fails too', 'SELECT 1/0'),
  (mate(), 'mate', 'SELECT 1'), (gen_random_uuid(), 'last', 'SELECT 1')) AS m (id, what, does);
CALL mq_run();
SELECT pg_temp.handled();
SELECT payload_json ->> 'what' AS dead, attempts_made FROM mq_dead ORDER BY dead_no;

-- In a transaction block nothing is committed in between, and it is the same.
SELECT count(mq_send('mates', jsonb_build_object('what', what, 'does', does), id => id)) FROM (VALUES
  (first(), 'first', 'SELECT mq_delete(ARRAY[mate()])'), (mate(), 'mate', 'SELECT 1'), (gen_random_uuid(), 'last', 'SELECT 1')) AS m (id, what, does);
BEGIN;
CALL mq_run();
COMMIT;
SELECT pg_temp.handled();

-- A batch handler is given its messages together: what it does to those is too late, what it does to others is not.
CREATE FUNCTION act_on_all(messages mq_message[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO handled (what) SELECT string_agg(m.payload_json ->> 'what', ' and ' ORDER BY ordinality) FROM unnest(messages) WITH ORDINALITY AS m;
  PERFORM mq_delete(ARRAY[messages[2].id, mate()]);
END $$;
SELECT mq_register_handler('mates', 'act_on_all(mq_message[])', 'together');
SELECT count(mq_send('mates', jsonb_build_object('what', what), name, id => id)) FROM (VALUES
  (first(), 'first', 'together'), (gen_random_uuid(), 'second', 'together'), (mate(), 'mate', 'alone'), (gen_random_uuid(), 'last', 'alone')) AS m (id, what, name);
CALL mq_run();
SELECT pg_temp.handled();
SELECT (SELECT count(*) FROM mq_msgs) AS messages, (SELECT count(*) FROM mq_failures WHERE sqlstate NOT IN ('P0001', '22012')) AS others_failed;

DROP TABLE handled, tried, cancelled;
DROP PROCEDURE try, try_all;
DROP FUNCTION cancel, mate, first;
SET client_min_messages = warning;
DROP EXTENSION mq CASCADE;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
