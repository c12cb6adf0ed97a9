--
-- The original surface: names, types and statements that an unmodified client of the original
-- schema depends on.
--
-- Workers stay out of this database.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;
SET TimeZone = 'UTC';

-- The original functions: names, arguments with their defaults, results.
SELECT p.proname, pg_get_function_arguments(p.oid) AS arguments
  FROM pg_proc p
 WHERE p.proname IN ('mq_active_channels', 'mq_checkpoint', 'mq_clear', 'mq_clear_all', 'mq_commit', 'mq_delete',
                     'mq_insert', 'mq_keep_alive', 'mq_latest_message', 'mq_poll', 'mq_uuid_exists')
 ORDER BY p.proname COLLATE "C";
SELECT p.proname, pg_get_function_result(p.oid) AS result
  FROM pg_proc p
 WHERE p.proname IN ('mq_active_channels', 'mq_checkpoint', 'mq_clear', 'mq_clear_all', 'mq_commit', 'mq_delete',
                     'mq_insert', 'mq_keep_alive', 'mq_latest_message', 'mq_uuid_exists')
 ORDER BY p.proname COLLATE "C";

-- The columns of mq_poll.
CREATE TEMP VIEW polled AS SELECT * FROM mq_poll(NULL, 1);
SELECT attnum, attname, format_type(atttypid, atttypmod) FROM pg_attribute
 WHERE attrelid = 'polled'::regclass AND attnum > 0 ORDER BY attnum;
DROP VIEW polled;

-- mq_new_t has exactly the eleven attributes.
SELECT attnum, attname, format_type(atttypid, atttypmod) FROM pg_attribute
 WHERE attrelid = (SELECT typrelid FROM pg_type WHERE oid = 'mq_new_t'::regtype) AND attnum > 0 ORDER BY attnum;

-- The original columns of the tables come first; new ones come after them. mq_payloads is a view: that its id and name are
-- never NULL is said by mq_msgs.
SELECT attnum, attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute
 WHERE attrelid = 'mq_msgs'::regclass AND attnum BETWEEN 1 AND 9 ORDER BY attnum;
SELECT attnum, attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute
 WHERE attrelid = 'mq_payloads'::regclass AND attnum BETWEEN 1 AND 4 ORDER BY attnum;
SELECT attrelid::regclass, attname FROM pg_attribute
 WHERE (attrelid = 'mq_msgs'::regclass AND attnum > 9 OR attrelid = 'mq_payloads'::regclass AND attnum > 4)
   AND NOT attisdropped ORDER BY attrelid, attnum;

-- The statements of the client, with the types that it binds.
PREPARE send_message (uuid, interval, int4, interval, text, text, interval, bool, text, text, bytea) AS
  SELECT mq_insert(ARRAY[($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)::mq_new_t]);
PREPARE poll (text[], int4) AS SELECT * FROM mq_poll($1, $2);
PREPARE delete_message (uuid) AS SELECT mq_delete(ARRAY[$1]);
PREPARE delete_messages (uuid[]) AS SELECT mq_delete($1);
PREPARE keep_alive (uuid, interval) AS SELECT mq_keep_alive(ARRAY[$1], $2);
PREPARE checkpoint (uuid, interval, text, bytea, int4) AS SELECT mq_checkpoint($1, $2, $3, $4, $5);
PREPARE commit_messages (uuid[]) AS SELECT mq_commit($1);
PREPARE clear (text[]) AS SELECT mq_clear($1);
PREPARE clear_all AS SELECT mq_clear_all();
PREPARE is_pending (uuid) AS SELECT EXISTS (SELECT id FROM mq_msgs WHERE id = $1);

EXECUTE send_message('00000000-0000-0000-0000-0000000000a1', '0', 4, '00:01:00', 'mail', 'eu', NULL, false, 'welcome', '{"to": "a"}', '\x0102');
EXECUTE is_pending('00000000-0000-0000-0000-0000000000a1');
EXECUTE poll('{mail}', 10);
-- Leased: nobody gets it again until its backoff has passed, which wait_time tells.
SELECT id, is_committed, name, wait_time BETWEEN '55 s' AND '60 s' AS waits FROM mq_poll('{mail}', 10);
EXECUTE keep_alive('00000000-0000-0000-0000-0000000000a1', '02:00:00');
SELECT p.wait_time, m.attempt_at - now() BETWEEN '119 min' AND '120 min' AS waits FROM mq_poll('{mail}', 10) p, mq_msgs m;
EXECUTE checkpoint('00000000-0000-0000-0000-0000000000a1', '03:00:00', '{"step": 2}', '\x03', 2);
SELECT p.wait_time, m.attempt_at - now() BETWEEN '179 min' AND '180 min' AS waits FROM mq_poll('{mail}', 10) p, mq_msgs m;
SELECT attempts, name, payload_json, payload_bytes FROM mq_msgs JOIN mq_payloads USING (id);
-- What is NULL stays as it was.
EXECUTE checkpoint('00000000-0000-0000-0000-0000000000a1', '00:00:00', NULL, NULL, NULL);
SELECT attempts, name, payload_json, payload_bytes FROM mq_msgs JOIN mq_payloads USING (id);
SELECT p.wait_time, m.attempt_at - now() BETWEEN '179 min' AND '180 min' AS waits FROM mq_poll('{mail}', 10) p, mq_msgs m;
EXECUTE delete_message('00000000-0000-0000-0000-0000000000a1');
EXECUTE is_pending('00000000-0000-0000-0000-0000000000a1');
SELECT (SELECT count(*) FROM mq_msgs) AS messages, (SELECT count(*) FROM mq_payloads) AS payloads;

-- payload_json is text, in the form that jsonb gives it; without a payload it is NULL.
EXECUTE send_message('00000000-0000-0000-0000-0000000000a2', '0', 4, '00:01:00', 'mail', '', NULL, false, 'none', NULL, NULL);
EXECUTE send_message('00000000-0000-0000-0000-0000000000a3', '0', 4, '00:01:00', 'mail', '', NULL, false, 'json', '{"b":1,"a":[1,2],"b":2}', '');
SELECT id, name, payload_json, pg_typeof(payload_json), payload_bytes FROM mq_poll('{mail}', 10) ORDER BY id;
EXECUTE delete_messages('{00000000-0000-0000-0000-0000000000a2,00000000-0000-0000-0000-0000000000a3}');

-- mq_msgs and mq_payloads join without prefixes.
EXECUTE send_message('00000000-0000-0000-0000-0000000000a5', '0', 4, '00:01:00', 'mail', '', NULL, false, 'joined', '{"n": 1}', '\x05');
SELECT payload_json FROM mq_msgs JOIN mq_payloads USING (id);
SELECT name, payload_json, payload_bytes, channel_name, attempts FROM mq_payloads JOIN mq_msgs USING (id);
-- What is written into a payload is delivered. One without a message cannot be written.
UPDATE mq_payloads SET name = 'renamed', payload_json = '{"n": 2}', payload_bytes = NULL WHERE id = '00000000-0000-0000-0000-0000000000a5';
UPDATE mq_payloads SET payload_json = '{"n": 3}' WHERE name = 'joined';
SELECT name, payload_json, payload_bytes FROM mq_poll('{mail}', 10);
\set VERBOSITY terse
INSERT INTO mq_payloads (id, name, payload_json, payload_bytes) VALUES ('00000000-0000-0000-0000-0000000000a6', 'alone', '{}', NULL);
UPDATE mq_payloads SET name = NULL;
\set VERBOSITY default
EXECUTE delete_message('00000000-0000-0000-0000-0000000000a5');

-- Nothing there at all: one row of NULLs.
EXECUTE poll('{mail}', 1);
EXECUTE poll(NULL, 1);
EXECUTE poll('{}', 1);
SELECT count(*) FROM mq_poll('{mail}');

-- Two-phase.
EXECUTE send_message('00000000-0000-0000-0000-0000000000a4', '0', 4, '00:01:00', 'mail', '', '00:10:00', false, 'later', NULL, NULL);
SELECT id FROM mq_poll(NULL, 10);
EXECUTE commit_messages('{00000000-0000-0000-0000-0000000000a4}');
EXECUTE poll(NULL, 1);

-- Clearing: the channels that are named, and all.
EXECUTE send_message('00000000-0000-0000-0000-0000000000b1', '0', 4, '00:01:00', 'one', 'x', NULL, true, 'n', NULL, NULL);
EXECUTE send_message('00000000-0000-0000-0000-0000000000b2', '0', 4, '00:01:00', 'one', 'y', NULL, false, 'n', NULL, NULL);
EXECUTE send_message('00000000-0000-0000-0000-0000000000b3', '0', 4, '00:01:00', 'two', '', NULL, false, 'n', NULL, NULL);
EXECUTE send_message('00000000-0000-0000-0000-0000000000b4', '0', 4, '00:01:00', 'three', '', NULL, false, 'n', NULL, NULL);
EXECUTE clear('{one,two,nothing}');
SELECT channel_name FROM mq_msgs ORDER BY channel_name;
SELECT name FROM mq_payloads ORDER BY name;
EXECUTE clear_all;
SELECT (SELECT count(*) FROM mq_msgs) AS messages, (SELECT count(*) FROM mq_payloads) AS payloads;

-- after_message_id: NULL is not ordered, nil is the head of its channel, else the message before.
EXECUTE send_message('00000000-0000-0000-0000-0000000000c3', '0', 4, '00:01:00', 'steps', '', NULL, true, 'first', NULL, NULL);
EXECUTE send_message('00000000-0000-0000-0000-0000000000c1', '0', 4, '00:01:00', 'steps', '', NULL, true, 'second', NULL, NULL);
EXECUTE send_message('00000000-0000-0000-0000-0000000000c2', '0', 4, '00:01:00', 'steps', '', NULL, false, 'beside', NULL, NULL);
EXECUTE send_message('00000000-0000-0000-0000-0000000000c4', '0', 4, '00:01:00', 'steps', 'other', NULL, true, 'first', NULL, NULL);
SELECT name, channel_args, after_message_id FROM mq_msgs JOIN mq_payloads USING (id) ORDER BY name, channel_args;

-- The helpers.
SELECT mq_uuid_exists('00000000-0000-0000-0000-0000000000c3'),
       mq_uuid_exists('00000000-0000-0000-0000-000000000000') AS nil, mq_uuid_exists(NULL) AS "null";
SELECT mq_latest_message('steps', ''), mq_latest_message('steps', 'other'), mq_latest_message('steps', 'none') AS none;
SELECT * FROM mq_active_channels(NULL, 10) ORDER BY 1, 2;
SELECT * FROM mq_active_channels('{steps}', 10) ORDER BY 1, 2;
SELECT count(*) FROM mq_active_channels('{steps}', 1);
SELECT count(*) FROM mq_active_channels('{nothing}', 10);

-- The test suite of the client cleans up behind the functions' backs; there is no nil row to spare, and none is
-- missed.
TRUNCATE TABLE mq_payloads;
SELECT (SELECT count(*) FROM mq_msgs) AS messages, (SELECT count(*) FROM mq_payloads) AS payloads;
DELETE FROM mq_msgs WHERE id <> '00000000-0000-0000-0000-000000000000';
EXECUTE poll(NULL, 10);
EXECUTE send_message('00000000-0000-0000-0000-0000000000c3', '0', 4, '00:01:00', 'steps', '', NULL, true, 'again', NULL, NULL);
SELECT id, name FROM mq_poll(NULL, 10);
SELECT after_message_id FROM mq_msgs;

-- Deleting the nil uuid or clearing the nameless channel breaks nothing.
SELECT mq_delete(ARRAY['00000000-0000-0000-0000-000000000000'::uuid]);
SELECT mq_clear(ARRAY['']);
EXECUTE send_message('00000000-0000-0000-0000-0000000000c4', '0', 4, '00:01:00', 'steps', '', NULL, true, 'next', NULL, NULL);
SELECT name, after_message_id FROM mq_msgs JOIN mq_payloads USING (id) ORDER BY seq;

-- A message goes with its payload. Where the head of a channel went so, the next poll finds the one behind it.
EXECUTE send_message('00000000-0000-0000-0000-0000000000c2', '0', 4, '00:01:00', 'steps', '', NULL, true, 'last', NULL, NULL);
DELETE FROM mq_payloads WHERE name = 'again' RETURNING id, name;
SELECT id, name FROM mq_poll('{steps}', 10);
SELECT name, after_message_id FROM mq_msgs JOIN mq_payloads USING (id) ORDER BY seq;
DELETE FROM mq_payloads;
SELECT (SELECT count(*) FROM mq_msgs) AS messages, (SELECT count(*) FROM mq_payloads) AS payloads, (SELECT count(*) FROM mq_dead) AS dead;
EXECUTE poll(NULL, 10);
EXECUTE send_message('00000000-0000-0000-0000-0000000000c2', '0', 4, '00:01:00', 'steps', '', NULL, true, 'first of all', NULL, NULL);
SELECT name, after_message_id FROM mq_msgs JOIN mq_payloads USING (id);

-- TRUNCATE of mq_payloads empties mq_msgs, however it is named and whoever says it; others' tables of that name are theirs.
CREATE SCHEMA elsewhere;
CREATE TABLE elsewhere.mq_payloads (n int GENERATED ALWAYS AS IDENTITY, what text);
CREATE SCHEMA nowhere;
CREATE VIEW nowhere.mq_payloads AS SELECT * FROM mq_msgs;
CREATE FUNCTION pg_temp.try(statement text, path text DEFAULT 'public') RETURNS TABLE (outcome text, ours bigint, theirs bigint)
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM mq_clear_all(), mq_send('steps', ordered => true), mq_send('steps', ordered => true);
  DELETE FROM elsewhere.mq_payloads;
  INSERT INTO elsewhere.mq_payloads (what) VALUES ('theirs'), ('theirs'), ('theirs');
  PERFORM set_config('search_path', path, true);
  BEGIN
    EXECUTE statement;
  EXCEPTION WHEN OTHERS THEN
    outcome := SQLSTATE || ' ' || SQLERRM;
  END;
  PERFORM set_config('search_path', 'public', true);
  SELECT count(*) INTO ours FROM mq_msgs;
  SELECT count(*) INTO theirs FROM elsewhere.mq_payloads;
  RETURN NEXT;
END $$;
SELECT v.*, t.* FROM (VALUES
  ('TRUNCATE mq_payloads', 'public'), ('TRUNCATE TABLE ONLY mq_payloads', 'public'), ('TRUNCATE mq_payloads, mq_msgs', 'public'),
  ('TRUNCATE mq_payloads, public.mq_payloads RESTART IDENTITY CASCADE', 'public'), ('TRUNCATE mq_payloads', 'nothing, public, elsewhere'),
  ('TRUNCATE public.mq_payloads', ''), ('TRUNCATE public.mq_payloads', 'elsewhere, public'),
  ('TRUNCATE mq_payloads', 'elsewhere, public'), ('TRUNCATE elsewhere.mq_payloads', 'public'), ('TRUNCATE public.mq_payloads, mq_payloads', 'elsewhere'),
  ('TRUNCATE mq_payloads', ''), ('TRUNCATE mq_payloads', 'pg_catalog'), ('TRUNCATE nothing.mq_payloads', 'public'),
  ('TRUNCATE nowhere.mq_payloads', 'public'), ('TRUNCATE mq_payloads', 'nowhere, public'), ('TRUNCATE mq_stats', 'public')) AS v (statement, path),
  LATERAL pg_temp.try(v.statement, v.path) AS t;
CREATE TEMP TABLE mq_payloads (what text);
INSERT INTO mq_payloads VALUES ('temporary');
SELECT * FROM pg_temp.try('TRUNCATE mq_payloads');
SELECT count(*) FROM pg_temp.mq_payloads;
DROP TABLE pg_temp.mq_payloads;
DROP VIEW nowhere.mq_payloads;
DROP TABLE elsewhere.mq_payloads;
DROP SCHEMA elsewhere, nowhere;
-- Undone; and then done, after which the channel begins anew.
TRUNCATE mq_msgs;
EXECUTE send_message('00000000-0000-0000-0000-0000000000d1', '0', 4, '00:01:00', 'steps', '', NULL, true, 'first', NULL, NULL);
EXECUTE send_message('00000000-0000-0000-0000-0000000000d2', '0', 4, '00:01:00', 'steps', '', NULL, true, 'second', NULL, NULL);
BEGIN;
TRUNCATE mq_payloads;
EXECUTE poll('{steps}', 10);
ROLLBACK;
SELECT id, name FROM mq_poll('{steps}', 10);
TRUNCATE mq_payloads;
EXECUTE poll('{steps}', 10);
EXECUTE send_message('00000000-0000-0000-0000-0000000000d3', '0', 4, '00:01:00', 'steps', '', NULL, true, 'third', NULL, NULL);
SELECT id, name FROM mq_poll('{steps}', 10);
SELECT after_message_id FROM mq_msgs;
-- Whoever may truncate mq_payloads empties mq_msgs so, and gets no other right by it. To remove its rows is another right.
CREATE ROLE regress_mq_client;
GRANT SELECT ON mq_msgs, mq_payloads TO regress_mq_client;
GRANT DELETE ON mq_payloads TO regress_mq_client;
SET ROLE regress_mq_client;
TRUNCATE mq_payloads;
TRUNCATE public.mq_payloads;
SELECT name FROM mq_payloads;
RESET ROLE;
GRANT TRUNCATE ON mq_payloads TO regress_mq_client;
SET ROLE regress_mq_client;
TRUNCATE mq_msgs;
TRUNCATE mq_payloads, mq_msgs;
SELECT name FROM mq_payloads;
TRUNCATE mq_payloads;
SELECT count(*), current_user FROM mq_msgs;
TRUNCATE mq_msgs;
RESET ROLE;
-- The right to truncate mq_msgs is not one to truncate mq_payloads.
REVOKE TRUNCATE ON mq_payloads FROM regress_mq_client;
GRANT TRUNCATE ON mq_msgs TO regress_mq_client;
SET ROLE regress_mq_client;
TRUNCATE mq_payloads;
TRUNCATE mq_msgs;
RESET ROLE;
DROP OWNED BY regress_mq_client;
DROP ROLE regress_mq_client;

DEALLOCATE ALL;
DROP EXTENSION mq;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
