--
-- Results and history: what is kept of a handled message, and for how long.
--
-- Workers stay out of this database.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;

CREATE FUNCTION twice(payload jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb(2 * payload::int) $$;
CREATE FUNCTION nothing(payload jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION text_result(payload jsonb) RETURNS text LANGUAGE sql AS $$ SELECT 'no jsonb' $$;
CREATE DOMAIN object AS jsonb CHECK (jsonb_typeof(VALUE) = 'object');
CREATE FUNCTION about(message mq_message) RETURNS object LANGUAGE sql AS $$
  SELECT jsonb_build_object('attempt', message.attempt, 'name', message.name) $$;
CREATE FUNCTION strict_one(payload jsonb) RETURNS jsonb STRICT LANGUAGE sql AS $$ SELECT payload $$;

-- Without keep nothing is written.
SELECT mq_register_handler('work', 'twice(jsonb)');
SELECT mq_send('work', '1') IS NOT NULL AS sent;
CALL mq_run();
SELECT count(*) FROM mq_done;

-- keep of the send: everything that the message had is there, in the transaction that handled it.
SELECT mq_send('work', '21', name => 'job', channel_args => 'a', id => '00000000-0000-0000-0000-000000000001', keep => '1 hour',
               priority => 5, headers => '{"h": 1}', payload_bytes => '\x00ff');
BEGIN;
CALL mq_run();
SELECT id, channel_name, channel_args, name, ordered, priority, headers, payload_json, payload_bytes, result, attempts FROM mq_done;
SELECT created_at <= due_at AS due_after_sent, due_at <= started_at AS started_after_due, started_at <= finished_at AS finished_after_start,
       keep_until = finished_at + interval '1 hour' AS kept, run_by = current_user AS run_by, channel_key = mq_channel_key('work', 'a') AS key FROM mq_done;
ROLLBACK;
SELECT count(*) AS done, (SELECT count(*) FROM mq_msgs) AS pending FROM mq_done;
CALL mq_run();
SELECT id, result FROM mq_done;
DELETE FROM mq_done;

-- keep of the registration, and the send's, which goes before it.
SELECT mq_register_handler('work', 'twice(jsonb)', keep => '1 day');
SELECT count(*) FROM mq_send_many('work', '{1, 2}', ordered => true);
SELECT mq_send('work', '3', keep => '1 minute') IS NOT NULL AS sent;
SELECT mq_send('work', '4', retries => 0) IS NOT NULL AS sent;
CALL mq_run();
SELECT payload_json, result, ordered, keep_until - finished_at AS keep FROM mq_done ORDER BY payload_json;
DELETE FROM mq_done;

-- What is returned where no jsonb is: nothing.
SELECT mq_register_handler('work', 'nothing(jsonb)', keep => '1 day'), mq_register_handler('work', 'text_result(jsonb)', 'text', keep => '1 day'),
       mq_register_handler('work', 'about(mq_message)', 'about', keep => '1 day'), mq_register_handler('work', 'strict_one(jsonb)', 'strict', keep => '1 day');
SELECT count(mq_send('work', payload, name)) FROM (VALUES ('1'::jsonb, NULL), ('1', 'text'), ('1', 'about'), ('1', 'strict'), (NULL, 'strict'), ('null', 'strict')) AS v (payload, name);
CALL mq_run();
SELECT name, payload_json, result FROM mq_done ORDER BY name, payload_json;
SELECT mq_unregister_handler('work', 'text'), mq_unregister_handler('work', 'about'), mq_unregister_handler('work', 'strict');
DELETE FROM mq_done;

-- Attempts that failed before: one row, of the one that succeeded. Dead messages are not in the history.
CREATE FUNCTION second_time(message mq_message) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF message.attempt < 2 OR message.payload_json = '"never"' THEN RAISE EXCEPTION 'not yet'; END IF;
  RETURN to_jsonb(message.attempt);
END $$;
SELECT mq_register_handler('work', 'second_time(mq_message)', keep => '1 day');
SELECT mq_send('work', '"later"', retry_backoff => '1 us', channel_args => 'x') IS NOT NULL, mq_send('work', '"never"', retries => 0) IS NOT NULL AS sent;
CALL mq_run();
DO $$
DECLARE
  handled bigint;
BEGIN
  FOR i IN 1 .. 1000 LOOP
    CALL mq_run(NULL, NULL, handled);
    EXIT WHEN EXISTS (SELECT FROM mq_done);
    PERFORM pg_sleep(0.01);
  END LOOP;
END $$;
SELECT payload_json, result, attempts FROM mq_done;
SELECT payload_json, reason FROM mq_dead;
DELETE FROM mq_done;
DELETE FROM mq_dead;

-- A batch handler returns an array with an element for each message, or NULL.
CREATE FUNCTION squares(messages mq_message[]) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  how text := (SELECT max(m.headers ->> 'how') FROM unnest(messages) AS m);
BEGIN
  RETURN CASE how
    WHEN 'NULL' THEN NULL
    WHEN 'short' THEN '[]'
    WHEN 'object' THEN '{"1": 1}'
    WHEN 'scalar' THEN '1'
    ELSE (SELECT jsonb_agg(CASE m.payload_json::int WHEN 3 THEN NULL ELSE m.payload_json::int ^ 2 END ORDER BY n) FROM unnest(messages) WITH ORDINALITY AS m (id, name, channel_name, channel_args, payload_json, payload_bytes, attempt, attempts_left, created_at, ordered, headers, priority, n))
  END;
END $$;
SELECT mq_register_handler('work', 'squares(mq_message[])', keep => '1 day');
SELECT count(*) FROM mq_send_many('work', (SELECT array_agg(to_jsonb(n)) FROM generate_series(1, 100) AS n), ordered => true);
CALL mq_run();
SELECT count(*), bool_and(result::int = payload_json::int ^ 2) FILTER (WHERE payload_json <> '3') AS right_ones, max(result::text) FILTER (WHERE payload_json = '3') AS none FROM mq_done;
DELETE FROM mq_done;
SELECT count(mq_send('work', '1', channel_args => how, headers => jsonb_build_object('how', how), retries => 0)) FROM unnest(ARRAY['NULL', 'short', 'object', 'scalar']) AS how;
SELECT mq_register_handler('work', 'squares(mq_message[])', batch_size => 1, keep => '1 day');
CALL mq_run();
SELECT headers, result FROM mq_done;
SELECT headers, sqlstate, error FROM mq_dead ORDER BY headers;
-- Where nothing is kept, what it returns is nobody's business.
SELECT mq_register_handler('work', 'squares(mq_message[])', batch_size => 1);
SELECT mq_redrive();
CALL mq_run();
SELECT count(*) FROM mq_dead;
DELETE FROM mq_done;

-- A batch of which one message fails: its mates' results are of the calls that counted.
CREATE FUNCTION counted(payload jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF payload = '7' THEN RAISE EXCEPTION 'seven'; END IF;
  RETURN jsonb_build_object('payload', payload);
END $$;
SELECT mq_register_handler('work', 'counted(jsonb)', keep => '1 day');
SELECT count(*) FROM mq_send_many('work', (SELECT array_agg(to_jsonb(n)) FROM generate_series(1, 20) AS n), retries => 0);
CALL mq_run();
SELECT count(*), bool_and(result = jsonb_build_object('payload', payload_json)) AS own_results, bool_or(payload_json = '7') AS seven FROM mq_done;
DELETE FROM mq_done;
DELETE FROM mq_dead;

-- Large results and payloads, one that is out of line in a table that changes afterwards.
CREATE TABLE store (content jsonb);
ALTER TABLE store ALTER content SET STORAGE EXTERNAL;
INSERT INTO store SELECT to_jsonb(string_agg(md5(n::text), '')) FROM generate_series(1, 4000) AS n;
CREATE FUNCTION take(payload jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  taken jsonb;
BEGIN
  SELECT content INTO taken FROM store;
  DELETE FROM store;
  RETURN taken;
END $$;
SELECT mq_register_handler('work', 'take(jsonb)', keep => '1 day');
SELECT mq_send('work', (SELECT content FROM store)) IS NOT NULL AS sent;
CALL mq_run();
SELECT length(result #>> '{}') AS result, payload_json = result AS as_sent FROM mq_done;
DELETE FROM mq_done;

-- Leased: functions, batches, procedures (which have no result).
SELECT mq_unregister_handler('work');
SELECT mq_register_handler('work', 'twice(jsonb)', mode => 'leased', keep => '1 day');
SELECT mq_send('work', '5') IS NOT NULL AS sent;
CALL mq_run();
SELECT payload_json, result, attempts, due_at <= started_at AND started_at <= finished_at AS in_order FROM mq_done;
DELETE FROM mq_done;
SELECT mq_register_handler('work', 'squares(mq_message[])', mode => 'leased', batch_size => 10, keep => '1 day');
SELECT count(*) FROM mq_send_many('work', '{5, 6, 3}');
SELECT mq_send('work', '1', channel_args => 'short', headers => '{"how": "short"}', retries => 0, delay => '1 us') IS NOT NULL AS sent;
CALL mq_run();
SELECT payload_json, result, attempts FROM mq_done ORDER BY payload_json;
CALL mq_run();
SELECT payload_json, result, attempts FROM mq_done ORDER BY payload_json;
SELECT payload_json, sqlstate, error FROM mq_dead;
DELETE FROM mq_done;
DELETE FROM mq_dead;
CREATE PROCEDURE proceed(payload jsonb) LANGUAGE plpgsql AS 'BEGIN COMMIT; END';
SELECT mq_register_handler('work', 'proceed(jsonb)', mode => 'leased', keep => '1 day');
SELECT mq_send('work', '8') IS NOT NULL AS sent;
CALL mq_run();
SELECT payload_json, result FROM mq_done;
DELETE FROM mq_done;
SELECT mq_unregister_handler('work');

-- Consumers outside the server: what they leased and deleted is kept, with its last payload; what was not leased is not.
SELECT mq_send('out', '1', id => '00000000-0000-0000-0000-000000000001', keep => '1 hour', payload_bytes => '\x01'),
       mq_send('out', '2', id => '00000000-0000-0000-0000-000000000002'),
       mq_send('out', '3', id => '00000000-0000-0000-0000-000000000003', keep => '1 hour', delay => '1 hour');
SELECT id FROM mq_poll('{out}', 10);
SELECT mq_checkpoint('00000000-0000-0000-0000-000000000001', '1 minute', '"changed"', NULL, NULL);
SELECT mq_delete('{00000000-0000-0000-0000-000000000001, 00000000-0000-0000-0000-000000000002, 00000000-0000-0000-0000-000000000003}');
SELECT id, payload_json, payload_bytes, result, attempts, due_at, started_at, run_by = current_user AS run_by, keep_until - finished_at AS keep FROM mq_done;
DELETE FROM mq_done;
SELECT mq_register_handler('out', 'twice(jsonb)', 'exact', keep => '1 day'), mq_register_handler('out', 'twice(jsonb)', keep => '2 days');
SELECT count(mq_send('out', '1', name)) FROM unnest(ARRAY['exact', 'other']) AS name;
SELECT mq_delete(array_agg(id)) FROM mq_poll('{out}', 10);
SELECT name, keep_until - finished_at AS keep FROM mq_done ORDER BY name;
SELECT mq_unregister_handler('out'), mq_unregister_handler('out', 'exact');
DELETE FROM mq_done;

-- Numbers that are behind their table (after a restore, say) are mended; a trigger that keeps rows out is an error.
SELECT mq_register_handler('work', 'twice(jsonb)', keep => '1 day');
SELECT mq_send('work', '1') IS NOT NULL AS sent;
CALL mq_run();
SELECT setval('mq_done_done_no_seq', (SELECT min(done_no) FROM mq_done), false) IS NOT NULL AS set;
SELECT mq_send('work', '2') IS NOT NULL AS sent;
CALL mq_run();
SELECT payload_json FROM mq_done ORDER BY done_no;
DELETE FROM mq_done;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER refuse BEFORE INSERT ON mq_done FOR EACH ROW EXECUTE FUNCTION refuse();
SELECT mq_send('work', '3') IS NOT NULL AS sent;
CALL mq_run();
SELECT count(*) AS pending FROM mq_msgs;
DROP TRIGGER refuse ON mq_done;
CALL mq_run();
SELECT payload_json, result FROM mq_done;

-- Handled messages are removed from mq_done when their time is over: by workers, see 097_history. An id that is sent again has a row each.
SELECT mq_send('work', '1', id => '00000000-0000-0000-0000-000000000001');
CALL mq_run();
SELECT mq_send('work', '2', id => '00000000-0000-0000-0000-000000000001');
CALL mq_run();
SELECT payload_json, result FROM mq_done WHERE id = '00000000-0000-0000-0000-000000000001' ORDER BY done_no;

DROP EXTENSION mq CASCADE;
DROP TABLE store;
DROP FUNCTION twice(jsonb), nothing(jsonb), text_result(jsonb), strict_one(jsonb), counted(jsonb), take(jsonb), refuse();
DROP PROCEDURE proceed(jsonb);
DROP DOMAIN object;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
