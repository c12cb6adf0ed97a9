--
-- Handlers: what can be registered and what is refused, which handler takes a message, what it is
-- given, as whom it runs, and what becomes of it when its function is replaced or dropped.
--
-- Workers stay out: mq_run does their work here, step by step.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;

-- The error of a statement: SQLSTATE, message, detail.
CREATE FUNCTION pg_temp.refusal(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  message text;
  detail text;
BEGIN
  EXECUTE statement;
  RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
  RETURN concat_ws(' | ', SQLSTATE, message, NULLIF(detail, ''));
END $$;

CREATE TABLE handled (n serial, what text);
CREATE FUNCTION handle(payload jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO handled (what) VALUES (payload #>> '{}') $$;
-- What was handled since the last look, in order.
CREATE FUNCTION pg_temp.handled() RETURNS text[] LANGUAGE sql AS $$
  WITH gone AS (DELETE FROM handled RETURNING *) SELECT array_agg(what ORDER BY n) FROM gone
$$;

-- What is refused.
CREATE FUNCTION two_arguments(jsonb, jsonb) RETURNS void LANGUAGE sql RETURN NULL;
CREATE FUNCTION other_type(text) RETURNS void LANGUAGE sql RETURN NULL;
CREATE FUNCTION no_arguments() RETURNS void LANGUAGE sql RETURN NULL;
CREATE FUNCTION a_set(jsonb) RETURNS SETOF int LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE a_procedure(jsonb) LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE a_batch_procedure(mq_message[]) LANGUAGE sql AS 'SELECT 1';
CREATE AGGREGATE an_aggregate(jsonb) (SFUNC = jsonb_concat, STYPE = jsonb);
CREATE FUNCTION a_default(jsonb, int DEFAULT 1) RETURNS void LANGUAGE sql RETURN NULL;
CREATE FUNCTION variadic_json(VARIADIC jsonb[]) RETURNS void LANGUAGE sql RETURN NULL;
CREATE FUNCTION variadic_messages(VARIADIC mq_message[]) RETURNS void LANGUAGE sql RETURN NULL;
CREATE FUNCTION some_columns(jsonb) RETURNS TABLE (a int) LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION anything(anyelement) RETURNS void LANGUAGE sql AS '';
CREATE PROCEDURE an_out_procedure(jsonb, OUT result int) LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE an_inout_procedure(INOUT message jsonb) LANGUAGE sql AS 'SELECT message';
CREATE PROCEDURE a_default_procedure(jsonb, int DEFAULT 1) LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE a_variadic_procedure(VARIADIC mq_message[]) LANGUAGE sql AS 'SELECT 1';
SELECT pg_temp.refusal(format('SELECT mq_register_handler(%s)', arguments)) AS outcome
  FROM unnest(ARRAY[$$NULL, 'handle(jsonb)'$$,
                    $$repeat('c', 1025), 'handle(jsonb)'$$,
                    $$'work', NULL$$,
                    $$'work', 'missing(jsonb)'$$,
                    $$'work', 0::regprocedure$$,
                    $$'work', 'two_arguments(jsonb, jsonb)'$$,
                    $$'work', 'other_type(text)'$$,
                    $$'work', 'no_arguments()'$$,
                    $$'work', 'a_set(jsonb)'$$,
                    $$'work', 'a_procedure(jsonb)'$$,
                    $$'work', 'an_aggregate(jsonb)'$$,
                    $$'work', 'an_aggregate(jsonb)', mode => 'leased'$$,
                    $$'work', 'pg_catalog.first_value(anyelement)'$$,
                    $$'work', 'a_set(jsonb)', mode => 'leased'$$,
                    $$'work', 'some_columns(jsonb)'$$,
                    $$'work', 'anything(anyelement)'$$,
                    $$'work', 'a_default(jsonb, int)'$$,
                    $$'work', 'a_default(jsonb, int)', mode => 'leased'$$,
                    $$'work', 'variadic_json(jsonb[])'$$,
                    $$'work', 'variadic_messages(mq_message[])'$$,
                    $$'work', 'variadic_messages(mq_message[])', mode => 'leased'$$,
                    $$'work', 'an_out_procedure(jsonb)', mode => 'leased'$$,
                    $$'work', 'an_inout_procedure(jsonb)', mode => 'leased'$$,
                    $$'work', 'a_default_procedure(jsonb, integer)', mode => 'leased'$$,
                    $$'work', 'a_variadic_procedure(mq_message[])', mode => 'leased'$$,
                    $$'work', 'handle(jsonb)', repeat('n', 1025)$$,
                    $$'work', 'handle(jsonb)', mode => NULL$$,
                    $$'work', 'handle(jsonb)', mode => 'eager'$$,
                    $$'work', 'a_batch_procedure(mq_message[])', mode => 'leased'$$,
                    $$'work', 'handle(jsonb)', mode => 'leased', batch_size => 2$$,
                    $$'work', 'handle(jsonb)', batch_size => 0$$,
                    $$'work', 'handle(jsonb)', batch_size => -1$$,
                    $$'work', 'handle(jsonb)', timeout => '0'$$,
                    $$'work', 'handle(jsonb)', timeout => '-1 s'$$,
                    $$'work', 'handle(jsonb)', max_workers => 0$$,
                    $$'work', 'handle(jsonb)', run_as => 'regress_mq_missing'$$,
                    $$'work', 'handle(jsonb)', max_backoff => NULL$$,
                    $$'work', 'handle(jsonb)', max_backoff => '-1 s'$$,
                    $$'work', 'handle(jsonb)', on_dead => NULL$$,
                    $$'work', 'handle(jsonb)', on_dead => 'explode'$$,
                    $$'work', 'handle(jsonb)', priority => NULL$$,
                    $$'work', 'handle(jsonb)', priority => 1001$$,
                    $$'work', 'handle(jsonb)', priority => -1001$$]) AS arguments;
SELECT count(*) AS registered FROM mq_handlers;
SELECT pg_temp.refusal($$SELECT mq_unregister_handler(NULL)$$);
DROP FUNCTION two_arguments(jsonb, jsonb), other_type(text), no_arguments(), a_set(jsonb), a_default, variadic_json, variadic_messages,
              some_columns, anything;
DROP PROCEDURE an_out_procedure, an_inout_procedure, a_default_procedure, a_variadic_procedure;
-- A procedure is one in leased mode, which all handlers of a channel share.
SELECT mq_register_handler('work', 'a_procedure(jsonb)', mode => 'leased', batch_size => 1, max_workers => 3);
SELECT handler, mode, batch_size, max_workers FROM mq_handlers;
SELECT pg_temp.refusal($$SELECT mq_register_handler('work', 'handle(jsonb)', 'job')$$);
SELECT mq_unregister_handler('work');
DROP PROCEDURE a_procedure(jsonb), a_batch_procedure(mq_message[]);
DROP AGGREGATE an_aggregate(jsonb);

-- What a function returns does not matter, and it may have OUT and INOUT arguments, and a default, in both modes.
CREATE FUNCTION an_out(payload jsonb, OUT a int, OUT b int) LANGUAGE sql AS $$ INSERT INTO handled (what) VALUES ('out ' || (payload #>> '{}')) RETURNING 1, 2 $$;
CREATE FUNCTION an_inout(INOUT payload jsonb) LANGUAGE sql AS $$ INSERT INTO handled (what) VALUES ('inout ' || (payload #>> '{}')) RETURNING payload $$;
CREATE FUNCTION a_default(payload jsonb DEFAULT '{}') RETURNS record LANGUAGE sql AS $$ INSERT INTO handled (what) VALUES ('default ' || (payload #>> '{}')) RETURNING 1, 2 $$;
SELECT count(mq_register_handler(mode, f::regprocedure, f, mode)), count(mq_send(mode, to_jsonb(mode), f))
  FROM unnest('{transactional,leased}'::text[]) AS mode, unnest('{an_out(jsonb),an_inout(jsonb),a_default(jsonb)}'::text[]) AS f;
CALL mq_run();
SELECT what FROM handled ORDER BY what COLLATE "C";
DELETE FROM handled;
SELECT count(*) FROM mq_failures;
SELECT count(mq_unregister_handler(channel_name, message_name)) FROM mq_handlers;
DROP FUNCTION an_out, an_inout, a_default;

-- A channel whose rows disagree, which only an UPDATE or a restore can bring about, is left alone.
SELECT mq_register_handler('torn', 'handle(jsonb)', 'x'), mq_register_handler('torn', 'handle(jsonb)', 'y');
SELECT mq_send('torn', '"torn"', 'x') IS NOT NULL AS sent;
UPDATE mq_handlers SET mode = 'leased' WHERE message_name = 'y';
CALL mq_run();
SELECT pg_temp.handled();
SELECT detail FROM mq_health() WHERE "check" = 'handlers agree' AND NOT ok;
SELECT mq_unregister_handler('torn', 'y');
CALL mq_run();
SELECT pg_temp.handled();
SELECT ok FROM mq_health() WHERE "check" = 'handlers agree';
SELECT mq_unregister_handler('torn', 'x');

-- The defaults, every option, and that registering again replaces.
SELECT mq_register_handler('work', 'handle(jsonb)');
SELECT mq_register_handler('work', 'handle(jsonb)', 'job');
SELECT message_name, handler, mode, batch_size, timeout, max_workers, run_as = current_user AS run_as_me, max_backoff, on_dead
  FROM mq_handlers WHERE channel_name = 'work' ORDER BY message_name NULLS FIRST;
SELECT mq_register_handler('work', 'handle(jsonb)', 'job', 'transactional', 10, '1 minute', 2, current_user::regrole, '5 minutes', 'block');
SELECT mq_register_handler('work', 'handle(jsonb)', batch_size => 7);
SELECT message_name, handler, mode, batch_size, timeout, max_workers, run_as = current_user AS run_as_me, max_backoff, on_dead
  FROM mq_handlers WHERE channel_name = 'work' ORDER BY message_name NULLS FIRST;
-- A registration is one of its transaction.
BEGIN;
SELECT mq_register_handler('other', 'handle(jsonb)');
ROLLBACK;
SELECT count(*) FROM mq_handlers WHERE channel_name = 'other';

-- Unregistering tells whether there was anything; messages stay.
SELECT mq_send('work', '"stays"', 'job') IS NOT NULL AS sent;
SELECT mq_unregister_handler('work', 'none'), mq_unregister_handler('none'), mq_unregister_handler('work', 'job'),
       mq_unregister_handler('work'), mq_unregister_handler('work') AS again;
CALL mq_run();
SELECT attempts FROM mq_msgs;
SELECT count(*) FROM mq_failures;

-- Handled as soon as there is a handler. What was handled is gone, payload and all.
SELECT mq_register_handler('work', 'handle(jsonb)');
CALL mq_run();
SELECT pg_temp.handled();
SELECT (SELECT count(*) FROM mq_msgs) AS messages, (SELECT count(*) FROM mq_payloads) AS payloads,
       (SELECT count(*) FROM mq_dead) AS dead, (SELECT count(*) FROM mq_failures) AS failures;
SELECT mq_unregister_handler('work');

-- A channel with a greater priority comes first.
SELECT mq_register_handler('later', 'handle(jsonb)', priority => -1), mq_register_handler('sooner', 'handle(jsonb)', priority => 1000);
SELECT count(mq_send(channel, to_jsonb(channel || i))) FROM unnest('{later,sooner}'::text[]) AS channel, generate_series(1, 3) AS i;
CALL mq_run(max_messages => 4);
SELECT pg_temp.handled();
CALL mq_run();
SELECT pg_temp.handled();
SELECT channel_name, priority FROM mq_handlers ORDER BY priority;
SELECT mq_unregister_handler('later'), mq_unregister_handler('sooner');

-- A row that is written by hand has the bounds of the arguments.
SELECT mq_register_handler('bounds', 'handle(jsonb)');
SELECT change, regexp_replace(pg_temp.refusal('UPDATE mq_handlers SET ' || change || $$ WHERE channel_name = 'bounds'$$), ' \| Failing row .*', '') AS outcome
  FROM unnest(ARRAY['batch_size = 0', 'batch_size = 100001', $$mode = 'other'$$, $$timeout = '0'$$, $$timeout = '-1 s'$$, $$timeout = '36501 days'$$, 'max_workers = 0', 'max_workers = 1001',
                    $$max_backoff = '0'$$, $$on_dead = 'wait'$$, 'priority = 1001', 'priority = -1001']) AS change;
UPDATE mq_handlers SET batch_size = 100000, timeout = '36500 days', max_workers = 1000, max_backoff = '36500 days', on_dead = 'block', priority = -1000 WHERE channel_name = 'bounds';
SELECT mq_unregister_handler('bounds');

-- The shapes. f(jsonb) gets the payload; one that is STRICT is not called without.
SELECT mq_register_handler('json', 'handle(jsonb)');
CREATE FUNCTION handle_strict(payload jsonb) RETURNS void STRICT LANGUAGE sql AS $$ INSERT INTO handled (what) VALUES ('strict ' || payload::text) $$;
SELECT mq_register_handler('json', 'handle_strict(jsonb)', 'strict');
SELECT mq_send('json', '"value"') IS NOT NULL AS sent;
SELECT mq_send('json', NULL) IS NOT NULL AS sent;
SELECT mq_send('json', 'null') IS NOT NULL AS sent;
SELECT mq_send('json', NULL, 'strict') IS NOT NULL AS sent;
SELECT mq_send('json', '1', 'strict') IS NOT NULL AS sent;
CALL mq_run();
SELECT pg_temp.handled();

-- f(mq_message) gets the whole message. attempt is 1 on the first.
CREATE TABLE seen AS SELECT (NULL::mq_message).* WITH NO DATA;
CREATE FUNCTION see(message mq_message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN INSERT INTO seen SELECT message.*; END $$;
SELECT mq_register_handler('whole', 'see(mq_message)');
SELECT mq_send('whole', '{"a": [1, 2]}', 'job', 'eu', true, retries => 2, payload_bytes => '\x00ff', id => '00000000-0000-0000-0000-000000000001');
SELECT mq_send('whole', NULL, id => '00000000-0000-0000-0000-000000000002');
CREATE TEMP TABLE sent AS SELECT id, created_at FROM mq_msgs;
CALL mq_run();
SELECT id, name, channel_name, channel_args, payload_json, payload_bytes, attempt, attempts_left, created_at = sent.created_at AS same_time, ordered
  FROM seen JOIN sent USING (id, created_at) ORDER BY id;
DROP TABLE sent;

-- f(mq_message[]) gets batches: all messages once, in order, and never more than batch_size.
CREATE TABLE batches (n serial, payloads int[]);
CREATE FUNCTION handle_batch(messages mq_message[]) RETURNS int LANGUAGE sql AS $$
  INSERT INTO batches (payloads) SELECT array_agg((m.payload_json)::int ORDER BY i) FROM unnest(messages) WITH ORDINALITY
    AS m (id, name, channel_name, channel_args, payload_json, payload_bytes, attempt, attempts_left, created_at, ordered, i)
  RETURNING n
$$;
SELECT mq_register_handler('batch', 'handle_batch(mq_message[])', batch_size => 10);
SELECT count(*) FROM mq_send_many('batch', (SELECT array_agg(to_jsonb(i)) FROM generate_series(1, 95) AS i));
CALL mq_run();
SELECT sum(cardinality(payloads)) AS messages, max(cardinality(payloads)) AS most,
       (SELECT count(DISTINCT p) FROM batches, unnest(payloads) AS p) AS different,
       (SELECT array_agg(p ORDER BY n, i) = array_agg(p ORDER BY p) FROM batches, unnest(payloads) WITH ORDINALITY AS u (p, i)) AS in_order
  FROM batches;
TRUNCATE batches;
-- Ordered ones keep their order in a batch.
SELECT mq_register_handler('batch', 'handle_batch(mq_message[])', batch_size => 4);
SELECT count(*) FROM mq_send_many('batch', (SELECT array_agg(to_jsonb(i)) FROM generate_series(1, 30) AS i), ordered => true);
CALL mq_run();
SELECT max(cardinality(payloads)) <= 4 AS bounded,
       (SELECT array_agg(p ORDER BY n, i) = array_agg(p ORDER BY p) FROM batches, unnest(payloads) WITH ORDINALITY AS u (p, i)) AS in_order
  FROM batches;
DROP FUNCTION handle_batch(mq_message[]);
DROP TABLE batches;
SELECT mq_unregister_handler('batch');

-- An exact name wins over the handler for every name; without that, a name that no handler takes waits (unhandled.sql).
CREATE FUNCTION handle_job(payload jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO handled (what) VALUES ('job ' || payload::text) $$;
SELECT mq_register_handler('names', 'handle_job(jsonb)', 'job');
SELECT mq_register_handler('names', 'handle(jsonb)');
SELECT mq_send('names', '1', 'job') IS NOT NULL AND mq_send('names', '2', 'task') IS NOT NULL
   AND mq_send('names', '3') IS NOT NULL AND mq_send('names', '4', 'Job') IS NOT NULL AS sent;
CALL mq_run();
SELECT array_agg(what ORDER BY what) FROM unnest(pg_temp.handled()) AS what;
SELECT mq_unregister_handler('names');
SELECT mq_send('names', '5', 'job') IS NOT NULL AND mq_send('names', '6', 'task', retries => 1, retry_backoff => '1 hour') IS NOT NULL AS sent;
CALL mq_run();
SELECT pg_temp.handled();
SELECT name, attempts, attempt_at > now() AS later FROM mq_msgs JOIN mq_payloads USING (id);
SELECT name, attempt, sqlstate, error FROM mq_failures;
SELECT mq_clear_all();
DELETE FROM mq_failures;
SELECT mq_unregister_handler('names', 'job');
DROP FUNCTION handle_job(jsonb);

-- Any language, any result (it is ignored), in any schema, with any name.
CREATE SCHEMA "Elsewhere";
CREATE FUNCTION "Elsewhere"."Handle It"(jsonb) RETURNS mq_message LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO handled (what) VALUES ('elsewhere');
  RETURN NULL;
END $$;
SELECT mq_register_handler('qualified', '"Elsewhere"."Handle It"(jsonb)');
SELECT mq_send('qualified') IS NOT NULL AS sent;
CALL mq_run();
SELECT pg_temp.handled();
SELECT mq_unregister_handler('qualified');
DROP FUNCTION "Elsewhere"."Handle It"(jsonb);
DROP SCHEMA "Elsewhere";

-- A handler may send, and what it sends is handled in the same run.
CREATE FUNCTION handle_chain(payload jsonb) RETURNS void LANGUAGE sql AS $$
  INSERT INTO handled (what) VALUES (payload::text);
  SELECT mq_send('relay', to_jsonb(payload::int - 1)) WHERE payload::int > 0
$$;
SELECT mq_register_handler('relay', 'handle_chain(jsonb)');
SELECT mq_send('relay', '3') IS NOT NULL AS sent;
CALL mq_run();
SELECT pg_temp.handled();
SELECT mq_unregister_handler('relay');
DROP FUNCTION handle_chain(jsonb);

-- A function that is replaced is used at once, also in the middle of a session that has called it.
SELECT mq_register_handler('work', 'handle(jsonb)');
SELECT mq_send('work', '"old"') IS NOT NULL AS sent;
CALL mq_run();
CREATE OR REPLACE FUNCTION handle(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN INSERT INTO handled (what) VALUES ('new ' || (payload #>> '{}')); END $$;
SELECT mq_send('work', '"new"') IS NOT NULL AS sent;
CALL mq_run();
SELECT pg_temp.handled();

-- A function that is dropped parks its channel: the messages stay, no attempt is charged. They are handled when it
-- is there again.
DROP FUNCTION handle(jsonb);
SELECT mq_send('work', '"waited"', id => '00000000-0000-0000-0000-000000000001');
CALL mq_run();
SELECT attempts, attempt_at <= now() AS due, (SELECT count(*) FROM mq_failures) AS failures FROM mq_msgs;
CREATE FUNCTION handle(payload jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO handled (what) VALUES (payload #>> '{}') $$;
CALL mq_run();
SELECT pg_temp.handled();
-- So does one that moved to another schema or name, as it is registered by name.
ALTER FUNCTION handle(jsonb) RENAME TO handle_renamed;
SELECT mq_send('work', '"waited again"') IS NOT NULL AS sent;
CALL mq_run();
ALTER FUNCTION handle_renamed(jsonb) RENAME TO handle;
CALL mq_run();
SELECT pg_temp.handled();

-- Settings that a handler changed are as before when the next handler runs, and after mq_run.
CREATE FUNCTION handle_settings(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO handled (what)
    VALUES (format('%s %s %s', current_setting('search_path'), current_setting('work_mem'), current_setting('my.setting', true)));
  SET search_path = pg_catalog;
  SET work_mem = '1MB';
  PERFORM set_config('my.setting', 'changed', false);
  IF payload IS NOT NULL THEN RAISE EXCEPTION 'failed'; END IF;
END $$;
SET work_mem = '5MB';
SET search_path = public;
SELECT mq_register_handler('settings', 'handle_settings(jsonb)');
SELECT mq_send('settings') IS NOT NULL AND mq_send('settings') IS NOT NULL
   AND mq_send('settings', '1', retries => 0) IS NOT NULL AND mq_send('settings') IS NOT NULL AS sent;
CALL mq_run();
SELECT DISTINCT what FROM unnest(pg_temp.handled()) AS what;
SELECT current_setting('search_path') AS search_path, current_setting('work_mem') AS work_mem, current_setting('my.setting', true) AS my_setting;
RESET work_mem;
RESET search_path;
DELETE FROM mq_dead;
DELETE FROM mq_failures;
SELECT mq_unregister_handler('settings');
DROP FUNCTION handle_settings(jsonb);

-- Roles. A handler runs as the role that registered it, or as one that this is a member of; the role needs
-- EXECUTE on it. mq_run leaves the handlers of other roles alone.
CREATE ROLE regress_mq_alice LOGIN;
CREATE ROLE regress_mq_bob LOGIN;
CREATE ROLE regress_mq_group LOGIN ROLE regress_mq_alice;
GRANT EXECUTE ON FUNCTION mq_register_handler TO regress_mq_alice, regress_mq_bob;
GRANT EXECUTE ON PROCEDURE mq_run TO regress_mq_alice, regress_mq_bob, regress_mq_group;
GRANT USAGE ON TYPE mq_message TO regress_mq_alice;
GRANT INSERT ON handled TO regress_mq_alice, regress_mq_bob, regress_mq_group;
GRANT USAGE ON SEQUENCE handled_n_seq TO regress_mq_alice, regress_mq_bob, regress_mq_group;
CREATE FUNCTION handle_role(jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO handled (what) VALUES (current_user || '/' || session_user) $$;
REVOKE EXECUTE ON FUNCTION handle_role(jsonb) FROM PUBLIC;
SET ROLE regress_mq_alice;
SELECT pg_temp.refusal(format('SELECT mq_register_handler(%s)', arguments)) AS outcome
  FROM unnest(ARRAY[$$'alice', 'handle_role(jsonb)'$$,
                    $$'alice', 'handle_role(jsonb)', run_as => 'regress_mq_bob'$$,
                    $$'alice', 'handle_role(jsonb)', run_as => 'regress_mq_group'$$]) AS arguments;
RESET ROLE;
GRANT EXECUTE ON FUNCTION handle_role(jsonb) TO regress_mq_alice, regress_mq_bob, regress_mq_group;
SET ROLE regress_mq_alice;
SELECT mq_register_handler('alice', 'handle_role(jsonb)');
SELECT mq_register_handler('group', 'handle_role(jsonb)', run_as => 'regress_mq_group');
RESET ROLE;
SELECT mq_register_handler('bob', 'handle_role(jsonb)', run_as => 'regress_mq_bob');
SELECT channel_name, run_as FROM mq_handlers WHERE run_as::text LIKE 'regress%' ORDER BY 1;
SELECT mq_send('alice') IS NOT NULL AND mq_send('group') IS NOT NULL AND mq_send('bob') IS NOT NULL AS sent;
CALL mq_run();
SET ROLE regress_mq_alice;
CALL mq_run();
SET ROLE regress_mq_bob;
CALL mq_run();
-- Nobody reads by it what he may not read.
SELECT count(*) FROM mq_msgs;
RESET ROLE;
SELECT array_agg(replace(what, session_user, 'me') ORDER BY what) AS handled FROM unnest(pg_temp.handled()) AS what;
SELECT channel_name, attempts FROM mq_msgs;
-- SECURITY DEFINER is what it is elsewhere.
CREATE FUNCTION handle_definer(payload jsonb) RETURNS text SECURITY DEFINER SET search_path = public LANGUAGE sql AS $$
  INSERT INTO handled (what) VALUES ('definer ' || current_user);
  SELECT 'ignored'::text
$$;
ALTER FUNCTION handle_definer(jsonb) OWNER TO regress_mq_bob;
SELECT mq_register_handler('alice', 'handle_definer(jsonb)', run_as => 'regress_mq_alice');
SELECT mq_send('alice') IS NOT NULL AS sent;
SET ROLE regress_mq_alice;
CALL mq_run();
RESET ROLE;
SELECT pg_temp.handled();
DROP FUNCTION handle_definer(jsonb);
-- The handlers of one channel run as one role.
SELECT mq_register_handler('bob', 'handle_role(jsonb)', 'job', run_as => 'regress_mq_alice');
-- A role that may no longer execute its handler parks the channel, and no message is harmed.
REVOKE EXECUTE ON FUNCTION handle_role(jsonb) FROM regress_mq_group;
SET ROLE regress_mq_group;
CALL mq_run();
RESET ROLE;
SELECT channel_name, attempts FROM mq_msgs;
GRANT EXECUTE ON FUNCTION handle_role(jsonb) TO regress_mq_group;
SET ROLE regress_mq_group;
CALL mq_run();
RESET ROLE;
SELECT replace(what, session_user, 'me') AS handled FROM unnest(pg_temp.handled()) AS what;
-- A role that cannot log in cannot be connected as.
ALTER ROLE regress_mq_bob NOLOGIN;
SELECT CASE WHEN current_setting('server_version_num')::int < 170000
            THEN pg_temp.refusal($$SELECT mq_register_handler('bob', 'handle_role(jsonb)', run_as => 'regress_mq_bob')$$)
            ELSE '22023 | invalid run_as: "regress_mq_bob" | run_as must be a role with LOGIN: workers connect as it.'
       END AS outcome;

SELECT mq_unregister_handler('alice'), mq_unregister_handler('bob'), mq_unregister_handler('group');
DROP FUNCTION handle_role(jsonb);
DROP FUNCTION handle(jsonb), handle_strict(jsonb), see(mq_message);
DROP TABLE handled, seen;
DROP EXTENSION mq;
DROP ROLE regress_mq_group, regress_mq_alice, regress_mq_bob;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
