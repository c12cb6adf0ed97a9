--
-- Attacks by roles: one without rights, one that sends, one that consumes, one whose function somebody else runs. Each
-- must fail. What live workers can be made to do is in tests/t/012_attacks.pl.
--
-- Workers stay out.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
SET client_min_messages = warning;
CREATE EXTENSION mq;
CREATE ROLE regress_mq_mallory;
CREATE ROLE regress_mq_producer;
CREATE ROLE regress_mq_alice LOGIN;
CREATE ROLE regress_mq_bob LOGIN;
GRANT ALL ON SCHEMA public TO PUBLIC;
SELECT mq_grant('regress_mq_producer', 'produce'), mq_grant('regress_mq_alice', 'admin'), mq_grant('regress_mq_bob', 'admin');

-- What comes of a statement as another role: SQLSTATE and message, or the first column of its first row. It is undone.
CREATE FUNCTION pg_temp.try(role name, statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE result text;
BEGIN
  EXECUTE format('SET LOCAL ROLE %I', role);
  IF statement ~ '^(SELECT \S|TABLE)' THEN EXECUTE statement INTO result; ELSE EXECUTE statement; END IF;
  RAISE EXCEPTION USING ERRCODE = 'MQ000', MESSAGE = 'done: ' || COALESCE(result, '');
EXCEPTION
  WHEN SQLSTATE 'MQ000' THEN RETURN SQLERRM;
  WHEN OTHERS THEN RETURN SQLSTATE || ' ' || SQLERRM;
END $$;

-- A role without rights: each function, table, view, sequence and type of the extension, whatever there is.
CREATE TEMP TABLE members AS
  SELECT d.classid, d.objid, pg_describe_object(d.classid, d.objid, 0) AS object, c.relkind, p.prokind, t.typname
    FROM pg_depend d
    JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'mq'
    LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
    LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
    LEFT JOIN pg_type t ON d.classid = 'pg_type'::regclass AND t.oid = d.objid AND t.typtype = 'c' AND t.typrelid IN (SELECT oid FROM pg_class WHERE relkind = 'c')
   WHERE d.deptype = 'e';
CREATE TEMP TABLE attacks AS
  SELECT m.object, format('%s %s(%s)', CASE m.prokind WHEN 'p' THEN 'CALL' ELSE 'SELECT' END, m.objid::regproc,
                          (SELECT string_agg(format(CASE m.prokind WHEN 'p' THEN 'NULL::%s' ELSE '(SELECT NULL::%s)' END, type::regtype), ', ' ORDER BY n) FROM unnest(p.proargtypes) WITH ORDINALITY AS a (type, n))) AS statement
    FROM members m JOIN pg_proc p ON p.oid = m.objid WHERE m.prokind IS NOT NULL
  UNION ALL
  SELECT m.object, format(s.statement, m.objid::regclass)
    FROM members m, unnest(ARRAY['SELECT FROM %s', 'SELECT count(*) FROM %s', 'TABLE %s', 'INSERT INTO %s DEFAULT VALUES',
                                 'DELETE FROM %s', 'SELECT FROM %s FOR UPDATE', 'LOCK TABLE %s', 'TRUNCATE %s', 'DROP TABLE %s',
                                 'CREATE TRIGGER t BEFORE INSERT ON %s EXECUTE FUNCTION suppress_redundant_updates_trigger()',
                                 'CREATE INDEX ON %s ((1))', 'ALTER TABLE %s ADD mine text',
                                 'CREATE RULE r AS ON INSERT TO %s DO ALSO SELECT 1', 'CREATE POLICY p ON %s', 'GRANT SELECT ON %s TO PUBLIC']) AS s (statement)
   WHERE m.relkind = 'r'
  UNION ALL
  -- The view that rows can be changed and removed through.
  SELECT m.object, format(s.statement, m.objid::regclass)
    FROM members m, unnest(ARRAY['SELECT FROM %s', 'SELECT count(*) FROM %s', 'TABLE %s', 'INSERT INTO %s DEFAULT VALUES',
                                 'DELETE FROM %s', 'SELECT FROM %s FOR UPDATE', 'LOCK TABLE %s', 'TRUNCATE %s', 'TRUNCATE ONLY %s', 'DROP VIEW %s',
                                 'CREATE TRIGGER t INSTEAD OF INSERT ON %s FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()',
                                 'CREATE OR REPLACE VIEW %s AS SELECT 1', 'ALTER VIEW %s SET (security_invoker)',
                                 'CREATE RULE r AS ON INSERT TO %s DO ALSO SELECT 1', 'GRANT SELECT ON %s TO PUBLIC']) AS s (statement)
   WHERE m.object = 'view mq_payloads'
  UNION ALL
  SELECT m.object, format(s.statement, a.attname, m.objid::regclass)
    FROM members m JOIN pg_attribute a ON a.attrelid = m.objid,
         unnest(ARRAY['SELECT %I FROM %s LIMIT 1', 'UPDATE %2$s SET %1$I = NULL', 'SELECT %I FROM %s FOR KEY SHARE']) AS s (statement)
   WHERE (m.relkind = 'r' AND a.attidentity = '' OR m.object = 'view mq_payloads' OR m.relkind = 'v' AND s.statement LIKE 'SELECT%') AND a.attnum > 0
  UNION ALL
  SELECT m.object, format(s.statement, m.objid::regclass)
    FROM members m, unnest(ARRAY['SELECT * FROM %s', 'SELECT nextval(''%s'')', 'SELECT setval(''%s'', 1)', 'SELECT currval(''%s'')', 'ALTER SEQUENCE %s RESTART']) AS s (statement)
   WHERE m.relkind = 'S'
  UNION ALL
  SELECT m.object, format(s.statement, m.typname)
    FROM members m, unnest(ARRAY['CREATE TABLE mine (c %s)', 'CREATE FUNCTION mine(%s) RETURNS void LANGUAGE sql RETURN NULL', 'CREATE DOMAIN mine AS %s', 'ALTER TYPE %s ADD ATTRIBUTE mine text']) AS s (statement)
   WHERE m.typname IS NOT NULL
  UNION ALL
  SELECT 'extension mq', unnest(ARRAY['DROP EXTENSION mq', 'ALTER EXTENSION mq UPDATE', 'ALTER EXTENSION mq DROP TABLE mq_msgs', 'COMMENT ON EXTENSION mq IS NULL']);
SELECT count(DISTINCT a.object) = (SELECT count(*) FROM members m WHERE m.prokind IS NOT NULL OR m.relkind IN ('r', 'v', 'S') OR m.typname IS NOT NULL) + 1 AS all_of_them
  FROM attacks a;
SELECT a.statement, t.outcome FROM attacks a, pg_temp.try('regress_mq_mallory', a.statement) AS t (outcome) WHERE t.outcome !~ '^42501 ';
-- Nor does anything tell by pg_stats, and no other session's statement shows.
SELECT mq_send('secret', '{"secret": "s3cret"}', 'secret') IS NOT NULL AS sent;
ANALYZE mq_msgs;
SELECT pg_temp.try('regress_mq_mallory', $$SELECT count(*) FROM pg_stats WHERE tablename = 'mq_msgs'$$);
SELECT mq_clear_all();

-- A producer sends, and that is all: the same attacks as it, what it may do left out.
SELECT regexp_replace(a.statement, '\(.*', '') AS may, t.outcome FROM attacks a, pg_temp.try('regress_mq_producer', a.statement) AS t (outcome)
 WHERE t.outcome !~ '^42501 ' ORDER BY a.statement COLLATE "C";
-- So do the others what their right is for. (A GRANT that grants nothing is a warning.)
CREATE ROLE regress_mq_consumer;
CREATE ROLE regress_mq_monitor;
CREATE ROLE regress_mq_developer;
SELECT mq_grant('regress_mq_consumer', 'consume'), mq_grant('regress_mq_monitor', 'monitor'), mq_grant('regress_mq_developer', 'develop');
SELECT r.role, regexp_replace(a.statement, '\(.*', '') AS may, t.outcome
  FROM (VALUES ('regress_mq_consumer'), ('regress_mq_monitor'), ('regress_mq_developer')) AS r (role), attacks a, pg_temp.try(r.role, a.statement) AS t (outcome)
 WHERE t.outcome !~ '^42501 ' ORDER BY r.role, a.statement COLLATE "C";
DROP OWNED BY regress_mq_consumer, regress_mq_monitor, regress_mq_developer;
DROP ROLE regress_mq_consumer, regress_mq_monitor, regress_mq_developer;
SELECT mq_send('work', '{"secret": 1}', id => '00000000-0000-0000-0000-000000000001');
-- It learns of no message of another, not even by sending one of that id, and cannot make one its own.
SELECT pg_temp.try('regress_mq_producer', $$SELECT mq_send('work', '2', id => '00000000-0000-0000-0000-000000000001')$$);
SELECT pg_temp.try('regress_mq_producer', $$SELECT mq_commit('{00000000-0000-0000-0000-000000000001}')$$);
SELECT count(*), min(attempts) FROM mq_msgs;
-- Who sends, and knows the id, may ask what becomes of a message; the payload is not told. Others learn nothing, not even that
-- there is one. Nobody gets another to wait for long: the wait is the caller's own.
SELECT role, pg_temp.try(role, $$SELECT to_jsonb(s) - 'due_at' FROM mq_status('{00000000-0000-0000-0000-000000000001}') s$$)
  FROM unnest(ARRAY['regress_mq_producer', 'regress_mq_mallory']) AS role;
SELECT role, pg_temp.try(role, $$SELECT state FROM mq_wait('{00000000-0000-0000-0000-000000000001}', '1 ms')$$)
  FROM unnest(ARRAY['regress_mq_producer', 'regress_mq_mallory']) AS role;
SELECT role, pg_temp.try(role, $$CALL mq_call('work')$$) FROM unnest(ARRAY['regress_mq_producer', 'regress_mq_mallory']) AS role;
SELECT mq_clear_all();

-- Rights are given for each purpose, and what one may grant is not taken from what one has: only admin gives rights.
SELECT pg_temp.try('regress_mq_producer', $$SELECT mq_grant('regress_mq_mallory', 'produce')$$),
       has_function_privilege('regress_mq_producer', 'mq_insert(mq_new_t[])', 'EXECUTE WITH GRANT OPTION') AS may_grant,
       has_function_privilege('regress_mq_mallory', 'mq_insert(mq_new_t[])', 'EXECUTE');

-- Registering: a role that one is not a member of; a function that one may not execute, or whose owner could have it do
-- as that role what he likes.
CREATE TABLE seen (who text, what text, acts_as text DEFAULT current_user, session text DEFAULT session_user);
GRANT ALL ON seen TO PUBLIC;
SET ROLE regress_mq_bob;
CREATE FUNCTION bobs(jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO seen VALUES ('bobs', $1 #>> '{}') $$;
CREATE FUNCTION bobs_own(jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO seen VALUES ('bobs own', $1 #>> '{}') $$;
REVOKE ALL ON FUNCTION bobs_own FROM PUBLIC;
RESET ROLE;
SELECT pg_temp.try('regress_mq_alice', $$SELECT mq_register_handler('work', 'bobs(jsonb)', run_as => 'regress_mq_bob')$$);
SELECT pg_temp.try('regress_mq_alice', $$SELECT mq_register_handler('work', 'bobs_own(jsonb)')$$);
SELECT pg_temp.try('regress_mq_alice', $$SELECT mq_register_handler('work', 'bobs(jsonb)')$$);
SELECT pg_temp.try('postgres', $$SELECT mq_register_handler('work', 'bobs(jsonb)')$$);
SELECT pg_temp.try('regress_mq_producer', $$SELECT mq_register_handler('work', 'bobs(jsonb)')$$);
SELECT pg_temp.try('regress_mq_alice', $$INSERT INTO mq_handlers SELECT 'work', NULL, 'public.bobs(jsonb)', 'transactional', NULL, NULL, NULL, 'postgres', '1 h', 'skip'$$);
SELECT count(*) FROM mq_handlers;

-- Changed after it was registered: the channel is left alone, and mq_health() says why.
CREATE FUNCTION pg_temp.as_alice() RETURNS TABLE (pending bigint, who text, what text, why text) LANGUAGE plpgsql AS $$
BEGIN
  SELECT count(*) INTO pending FROM mq_msgs;
  DELETE FROM seen RETURNING seen.who, seen.what INTO who, what;
  SELECT detail INTO why FROM mq_health() WHERE "check" = 'handlers may be called' AND NOT ok;
  RETURN NEXT;
END $$;
CREATE FUNCTION alices(jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO seen VALUES ('alices', $1 #>> '{}') $$;
ALTER FUNCTION alices(jsonb) OWNER TO regress_mq_alice;
SELECT mq_register_handler('work', 'alices(jsonb)', run_as => 'regress_mq_alice');
SELECT mq_send('work', '1') IS NOT NULL AS sent;
SET ROLE regress_mq_alice; CALL mq_run(); RESET ROLE;
SELECT * FROM pg_temp.as_alice();
-- Given to bob, who puts something else into it.
ALTER FUNCTION alices(jsonb) OWNER TO regress_mq_bob;
SET ROLE regress_mq_bob;
CREATE OR REPLACE FUNCTION alices(jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO seen VALUES ('bob', $1 #>> '{}') $$;
RESET ROLE;
SELECT mq_send('work', '2') IS NOT NULL AS sent;
SET ROLE regress_mq_alice; CALL mq_run(); RESET ROLE;
SELECT * FROM pg_temp.as_alice();
-- Dropped, and bob makes one of that name.
ALTER FUNCTION alices(jsonb) OWNER TO regress_mq_alice;
DROP FUNCTION alices(jsonb);
SET ROLE regress_mq_bob;
CREATE FUNCTION alices(jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO seen VALUES ('bob', $1 #>> '{}') $$;
SET ROLE regress_mq_alice; CALL mq_run(); RESET ROLE;
SELECT * FROM pg_temp.as_alice();
-- EXECUTE revoked.
ALTER FUNCTION alices(jsonb) OWNER TO CURRENT_USER;
REVOKE ALL ON FUNCTION alices(jsonb) FROM PUBLIC;
SET ROLE regress_mq_alice; CALL mq_run(); RESET ROLE;
SELECT * FROM pg_temp.as_alice();
-- And USAGE on its schema.
CREATE SCHEMA elsewhere;
CREATE FUNCTION elsewhere.alices(jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO seen VALUES ('elsewhere', $1 #>> '{}') $$;
SELECT mq_register_handler('work', 'elsewhere.alices(jsonb)', run_as => 'regress_mq_alice');
SET ROLE regress_mq_alice; CALL mq_run(); RESET ROLE;
SELECT pending, who FROM pg_temp.as_alice();
DROP SCHEMA elsewhere CASCADE;
-- What its owner, a superuser, changes is fine; the messages go on.
GRANT EXECUTE ON FUNCTION alices(jsonb) TO regress_mq_alice;
SELECT mq_register_handler('work', 'alices(jsonb)', run_as => 'regress_mq_alice');
SET ROLE regress_mq_alice; CALL mq_run(); RESET ROLE;
SELECT * FROM pg_temp.as_alice();
-- A function whose owner is a member of the role may change as well; not any more when he is not.
GRANT regress_mq_alice TO regress_mq_bob;
ALTER FUNCTION alices(jsonb) OWNER TO regress_mq_bob;
SELECT mq_send('work', '3') IS NOT NULL AS sent;
SET ROLE regress_mq_alice; CALL mq_run(); RESET ROLE;
SELECT * FROM pg_temp.as_alice();
REVOKE regress_mq_alice FROM regress_mq_bob;
SELECT mq_send('work', '4') IS NOT NULL AS sent;
SET ROLE regress_mq_alice; CALL mq_run(); RESET ROLE;
SELECT * FROM pg_temp.as_alice();
SELECT mq_unregister_handler('work'), mq_clear_all();
DROP FUNCTION alices(jsonb);

-- mq_run by a session that is more than the role it runs as: whatever the handler tries, it does not get at the rest of
-- the session's rights, and leaves nothing behind that would run with them.
SET ROLE regress_mq_bob;
CREATE FUNCTION attack(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE message.payload_json ->> 'sql';
  INSERT INTO seen VALUES ('attack', message.payload_json ->> 'sql');
END $$;
CREATE FUNCTION peek() RETURNS integer LANGUAGE plpgsql AS $$ BEGIN INSERT INTO seen VALUES ('peek'); RESET ROLE; INSERT INTO seen VALUES ('peek'); RETURN 1; END $$;
CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM peek(); RETURN NULL; END $$;
CREATE TABLE bait (n int);
CREATE CONSTRAINT TRIGGER fire AFTER INSERT ON bait DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fire();
SELECT mq_register_handler('attack', 'attack(mq_message)');
SELECT count(*) FROM mq_send_many('attack', (SELECT array_agg(jsonb_build_object('sql', sql)) FROM unnest(ARRAY[
  'SELECT 1', 'RESET ROLE', 'SET ROLE NONE', 'SET LOCAL ROLE NONE', 'SET ROLE postgres', 'RESET SESSION AUTHORIZATION',
  'SET SESSION AUTHORIZATION DEFAULT', 'SELECT set_config(''role'', ''none'', true)', 'DISCARD ALL', 'RESET ALL',
  'SELECT public.peek()', 'INSERT INTO bait VALUES (1)', 'DECLARE c CURSOR WITH HOLD FOR SELECT public.peek()',
  'CREATE TEMP TABLE seen ()', 'CREATE TEMP VIEW seen AS SELECT 1', 'PREPARE p AS SELECT 1', 'LISTEN secret', 'COMMIT',
  'DO $d$ BEGIN RESET ROLE; EXCEPTION WHEN OTHERS THEN RESET SESSION AUTHORIZATION; END $d$',
  'ALTER ROLE regress_mq_bob SUPERUSER', 'CREATE FUNCTION pg_temp.seen() RETURNS int LANGUAGE sql RETURN 1']) AS sql), retries => 0);
CALL mq_run();
SELECT current_user;
RESET ROLE;
-- (The server's words about ALTER ROLE are others from 16 on.)
SELECT d.payload_json ->> 'sql' AS tried, d.sqlstate,
       CASE WHEN d.payload_json ->> 'sql' LIKE 'ALTER ROLE %' THEN 'refused' ELSE d.error END AS error
  FROM mq_dead d ORDER BY d.payload_json ->> 'sql' COLLATE "C";
SELECT who, what, acts_as FROM seen ORDER BY who COLLATE "C", what COLLATE "C";
SELECT count(*) FILTER (WHERE acts_as <> 'regress_mq_bob') AS escaped FROM seen;
SELECT name FROM pg_cursors WHERE is_holdable;
SELECT rolsuper FROM pg_roles WHERE rolname = 'regress_mq_bob';
TRUNCATE mq_dead, seen, bait;

-- The same in a SECURITY DEFINER function: a handler of its owner does not get at the rights of whoever calls it.
CREATE FUNCTION run_for_me() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$ DECLARE n bigint; BEGIN CALL mq_run(handled => n); END $$;
ALTER FUNCTION run_for_me() OWNER TO regress_mq_bob;
SELECT count(*) FROM mq_send_many('attack', '{"{\"sql\": \"RESET ROLE\"}", "{\"sql\": \"INSERT INTO bait VALUES (1)\"}", "{\"sql\": \"SELECT 1\"}"}', retries => 0);
SELECT run_for_me();
SELECT d.payload_json ->> 'sql' AS tried, d.sqlstate, d.error FROM mq_dead d ORDER BY d.payload_json ->> 'sql' COLLATE "C";
SELECT who, what, acts_as FROM seen;
TRUNCATE mq_dead, seen;
-- A handler that is SECURITY DEFINER runs with the rights of its owner, and gets no others: not by what it leaves for the
-- commit, not by ceasing to be SECURITY DEFINER.
ALTER FUNCTION attack(mq_message) SECURITY DEFINER;
SELECT mq_register_handler('definer', 'attack(mq_message)', run_as => 'regress_mq_alice');
SELECT count(*) FROM mq_send_many('definer', '{"{\"sql\": \"RESET ROLE\"}", "{\"sql\": \"INSERT INTO bait VALUES (1)\"}", "{\"sql\": \"SELECT 1\"}"}', retries => 0);
SET SESSION AUTHORIZATION regress_mq_alice;
CALL mq_run('{definer}');
RESET SESSION AUTHORIZATION;
SELECT d.payload_json ->> 'sql' AS tried, d.sqlstate, d.error FROM mq_dead d ORDER BY d.payload_json ->> 'sql' COLLATE "C";
SELECT who, what, acts_as FROM seen;
TRUNCATE mq_dead, seen;
SELECT mq_send('definer', '{"sql": "ALTER FUNCTION attack(mq_message) SECURITY INVOKER"}', channel_args => 'x', ordered => true) IS NOT NULL
   AND mq_send('definer', '{"sql": "SELECT 1"}', channel_args => 'x', ordered => true) IS NOT NULL AS sent;
SET SESSION AUTHORIZATION regress_mq_alice;
CALL mq_run('{definer}');
RESET SESSION AUTHORIZATION;
SELECT who, what, acts_as FROM seen;
SELECT mq_unregister_handler('definer'), mq_clear('{definer}');
TRUNCATE mq_dead, seen;
-- Where session and handler are one role there is nothing to escape to: everything is allowed.
SET SESSION AUTHORIZATION regress_mq_bob;
SELECT count(*) FROM mq_send_many('attack', '{"{\"sql\": \"RESET ROLE\"}", "{\"sql\": \"INSERT INTO bait VALUES (1)\"}", "{\"sql\": \"CREATE TEMP TABLE mine ()\"}"}', retries => 0);
CALL mq_run();
RESET SESSION AUTHORIZATION;
SELECT who, what, acts_as FROM seen ORDER BY who COLLATE "C", what COLLATE "C";
DROP TABLE mine;
DROP FUNCTION pg_temp.seen();
SELECT count(*) FROM mq_dead;
SELECT mq_unregister_handler('attack'), mq_clear_all();

-- Names with quotes, backslashes and control characters, at and beyond the length of an identifier, through every entry
-- point: they are data.
CREATE TABLE names (n serial, name text);
INSERT INTO names (name) VALUES (''), (''''), ('"'), ('\'), ('''; DROP TABLE names; --'), ('$$'), ('$S'), ('%s %n'), (E'\t\r\n\x01\x7f'), (repeat('ü', 31)),
  (repeat('n', 60)), (repeat('n', 61)), (repeat('n', 63)), (repeat('n', 64)), (repeat('ü', 512)), ('a, b'), ('{a,b}'), ('NULL'), (' ');
SET mq.notify = 'on';
CREATE FUNCTION note(message mq_message) RETURNS void LANGUAGE sql AS $$ INSERT INTO seen VALUES (message.channel_name, message.name) $$;
TRUNCATE seen;
SELECT count(mq_register_handler(name, 'note(mq_message)', name)) FROM names;
SELECT count(mq_pause(name)), count(mq_resume(name)) FROM names;
SELECT count(mq_send(name, name => name, channel_args => name, ordered => true)) FROM names;
SELECT count(*) FROM names WHERE mq_latest_message(name, name) <> '00000000-0000-0000-0000-000000000000';
SELECT mq_insert(array_agg((gen_random_uuid(), '0', 4, '1 s', name, name, NULL, true, name, NULL, NULL)::mq_new_t)) FROM names;
SELECT count(*) FROM mq_active_channels((SELECT array_agg(name) FROM names), 100);
CALL mq_run();
SELECT count(*) AS handled, count(*) FILTER (WHERE who = what AND who IN (SELECT name FROM names)) AS as_named FROM seen;
SELECT count(mq_send(name, name => name, channel_args => name)) FROM names;
SELECT count(*) FROM names, mq_poll(ARRAY[names.name], 10) AS p WHERE p.name = names.name;
SELECT mq_clear(array_agg(name)) FROM names;
SELECT count(*) FROM mq_msgs;
SELECT count(mq_unregister_handler(name, name)) FROM names;
SELECT mq_discard(name), mq_snooze('1 s') FROM names;
SET mq.notify = 'auto';
-- Invalid ones are refused before they come here.
SELECT mq_send(convert_from('\xff', 'UTF8'));
SELECT mq_send(E'\xc3');
SELECT mq_send(chr(0));
-- Names of roles.
CREATE ROLE "regress_mq ""'\ $$ ü; --" LOGIN;
CREATE ROLE "regress_mq_63_______________________________________________end" LOGIN;
CREATE ROLE "current_user";
SELECT r.rolname, s."right", mq_grant(r.oid, s."right") FROM pg_roles r, unnest('{produce, consume, admin}'::text[]) AS s ("right") WHERE r.rolname ~ '^regress_mq[ _]["6]|^current_user$' ORDER BY r.rolname COLLATE "C", 2;
SELECT r.rolname, count(*) > 15 AS granted FROM pg_roles r, members m
 WHERE r.rolname ~ '^regress_mq[ _]["6]|^current_user$' AND m.prokind IS NOT NULL AND has_function_privilege(r.oid, m.objid, 'EXECUTE') GROUP BY 1 ORDER BY r.rolname COLLATE "C";
SELECT mq_grant('public', 'produce');
SELECT mq_grant('-', 'produce');
SELECT mq_grant('none', 'produce');
CREATE FUNCTION note_role(jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO seen VALUES ('role', current_user) $$;
TRUNCATE seen;
SELECT count(mq_register_handler(rolname, 'note_role(jsonb)', run_as => oid)), count(mq_send(rolname)) FROM pg_roles WHERE rolname ~ '^regress_mq[ _]["6]';
SET ROLE "regress_mq ""'\ $$ ü; --"; CALL mq_run(); RESET ROLE;
SET ROLE "regress_mq_63_______________________________________________end"; CALL mq_run(); RESET ROLE;
SELECT what, acts_as FROM seen ORDER BY what COLLATE "C";
SELECT count(mq_revoke(r.oid, s."right")) FROM pg_roles r, unnest('{produce, consume, admin}'::text[]) AS s ("right") WHERE r.rolname ~ '^regress_mq[ _]["6]|^current_user$';
DROP ROLE "regress_mq ""'\ $$ ü; --", "regress_mq_63_______________________________________________end", "current_user";
-- Handlers of roles that are gone.
SELECT detail FROM mq_health() WHERE "check" = 'handlers'' roles' AND NOT ok;

DROP EXTENSION mq CASCADE;
DROP TABLE seen, names, bait CASCADE;
DROP FUNCTION note_role(jsonb), bobs(jsonb), bobs_own(jsonb), fire(), peek(), run_for_me();
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO PUBLIC;
DROP ROLE regress_mq_mallory, regress_mq_producer, regress_mq_alice, regress_mq_bob;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
