--
-- Attacks on installing, and by whoever may create objects in the extension's schema or in front of it: CREATE EXTENSION
-- adopts nothing that was there before, and resolves every name and operator in its script to pg_catalog or to
-- its own. No function of ours finds an object of somebody else.
--
-- Workers stay out.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
SET client_min_messages = warning;
CREATE ROLE regress_mq_mallory;
CREATE SCHEMA queue AUTHORIZATION regress_mq_mallory;

-- Whether the extension can be installed, and what was left behind if not.
CREATE FUNCTION pg_temp.install() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  CREATE EXTENSION mq SCHEMA queue;
  RAISE EXCEPTION USING ERRCODE = 'MQ000';
EXCEPTION
  WHEN SQLSTATE 'MQ000' THEN RETURN 'installed';
  WHEN OTHERS THEN RETURN SQLSTATE || ' ' || SQLERRM;
END $$;
SELECT pg_temp.install();

-- An object of each kind and name that the extension makes was there before: refused, whatever its kind.
CREATE EXTENSION mq SCHEMA queue;
CREATE TEMP TABLE members AS
  SELECT d.classid, d.objid, c.relname, c.relkind, t.typname, p.proname, oidvectortypes(p.proargtypes) AS arguments, p.prokind
    FROM pg_depend d
    JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'mq'
    LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
    LEFT JOIN pg_type t ON d.classid = 'pg_type'::regclass AND t.oid = d.objid AND t.typtype = 'c' AND t.typrelid IN (SELECT oid FROM pg_class WHERE relkind = 'c')
    LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
   WHERE d.deptype = 'e';
CREATE TEMP TABLE indexes AS
  SELECT c.relname FROM pg_class c WHERE c.relkind = 'i' AND c.relnamespace = 'queue'::regnamespace AND NOT EXISTS
    (SELECT FROM pg_constraint k WHERE k.conindid = c.oid);
DROP EXTENSION mq;

CREATE TABLE prepared (n serial, object text, statement text);
INSERT INTO prepared (object, statement)
  SELECT 'type ' || relname, format('CREATE TYPE queue.%I AS ENUM ()', relname) FROM members WHERE relkind IN ('r', 'v')
  UNION ALL SELECT 'table ' || relname, format('CREATE TABLE queue.%I ()', relname) FROM members WHERE relkind IN ('r', 'v', 'S')
  UNION ALL SELECT 'view ' || relname, format('CREATE VIEW queue.%I AS SELECT 1', relname) FROM members WHERE relkind IN ('r', 'v', 'S')
  UNION ALL SELECT 'sequence ' || relname, format('CREATE SEQUENCE queue.%I', relname) FROM members WHERE relkind IN ('r', 'v', 'S')
  UNION ALL SELECT 'table ' || relname, format('CREATE TABLE queue.%I ()', relname) FROM indexes
  UNION ALL SELECT 'type ' || typname, format('CREATE TYPE queue.%I AS (trap integer)', typname) FROM members WHERE typname IS NOT NULL
  UNION ALL SELECT 'domain ' || typname, format('CREATE DOMAIN queue.%I AS text', typname) FROM members WHERE typname IS NOT NULL
  UNION ALL SELECT 'table ' || typname, format('CREATE TABLE queue.%I ()', typname) FROM members WHERE typname IS NOT NULL
  -- Types of ours in its arguments cannot be there before their types are.
  UNION ALL SELECT 'function ' || proname, format('CREATE FUNCTION queue.%I(%s) RETURNS text LANGUAGE sql AS $f$ SELECT ''trapped'' $f$', proname, arguments)
    FROM members WHERE proname IS NOT NULL AND prokind = 'f' AND arguments !~ 'mq_new_t|mq_message'
  UNION ALL SELECT 'procedure ' || proname, format('CREATE PROCEDURE queue.%I(%s) LANGUAGE sql AS $f$ SELECT 1 $f$', proname, arguments)
    FROM members WHERE prokind = 'p';
CREATE FUNCTION pg_temp.install_after(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE result text;
BEGIN
  SET LOCAL ROLE regress_mq_mallory;
  EXECUTE statement;
  RESET ROLE;
  result := pg_temp.install();
  RAISE EXCEPTION USING ERRCODE = 'MQ001', MESSAGE = result;
EXCEPTION WHEN SQLSTATE 'MQ001' THEN RETURN SQLERRM;
END $$;
SELECT count(*) > 30 AS many, count(*) FILTER (WHERE pg_temp.install_after(statement) !~ '^(42P07|42710|42723|42809|55000) ') AS adopted FROM prepared;
SELECT object, pg_temp.install_after(statement) AS outcome FROM prepared
 WHERE object IN ('table mq_msgs', 'view mq_msgs', 'table mq_msgs_due', 'type mq_new_t', 'function mq_send', 'sequence mq_msgs_seq',
                  'sequence mq_dead_dead_no_seq', 'table mq_payloads', 'view mq_payloads')
 ORDER BY object COLLATE "C";
DROP TABLE prepared;

-- Functions and operators in the extension's schema that fit the arguments in its script better than those of
-- pg_catalog do: for each function that the script names and each operator, with every combination of the types
-- that occur. What would be found first raises an error when it is called, and shows in pg_depend when it is not.
CREATE TEMP TABLE script AS
  SELECT pg_read_file(c.setting || '/extension/mq--' || e.default_version || '.sql') AS text
    FROM pg_config c, pg_available_extensions e WHERE c.name = 'SHAREDIR' AND e.name = 'mq';
DO $$
DECLARE
  types regtype[] := '{text, name, integer, bigint, uuid, timestamptz, interval, xid, regclass, oid, text[], boolean}';
  trap text := 'RETURNS boolean LANGUAGE plpgsql AS $f$ BEGIN RAISE EXCEPTION ''trapped''; END $f$';
  f record;
  a regtype;
  b regtype;
BEGIN
  FOR f IN SELECT DISTINCT p.proname FROM script, regexp_matches(script.text, '([a-z_0-9]+)\s*\(', 'g') AS m (words)
             JOIN pg_proc p ON p.proname = m.words[1] AND p.pronamespace = 'pg_catalog'::regnamespace LOOP
    FOREACH a IN ARRAY types LOOP
      CONTINUE WHEN to_regprocedure(format('pg_catalog.%I(%s)', f.proname, a)) IS NOT NULL;
      EXECUTE format('CREATE FUNCTION queue.%I(%s) %s', f.proname, a, trap);
    END LOOP;
    FOREACH a IN ARRAY types LOOP
      FOREACH b IN ARRAY types LOOP
        CONTINUE WHEN to_regprocedure(format('pg_catalog.%I(%s, %s)', f.proname, a, b)) IS NOT NULL;
        EXECUTE format('CREATE FUNCTION queue.%I(%s, %s) %s', f.proname, a, b, trap);
      END LOOP;
    END LOOP;
  END LOOP;
  FOREACH a IN ARRAY types LOOP
    FOREACH b IN ARRAY types LOOP
      EXECUTE format('CREATE FUNCTION queue.trap(%s, %s) %s', a, b, trap);
      FOR f IN SELECT unnest('{=, <>, <, <=, >, >=, ||, +, -, *, ~, ~~}'::text[]) AS oprname LOOP
        CONTINUE WHEN to_regoperator(format('pg_catalog.%s(%s, %s)', f.oprname, a, b)) IS NOT NULL;
        EXECUTE format('CREATE OPERATOR queue.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = queue.trap)', f.oprname, a, b);
      END LOOP;
    END LOOP;
  END LOOP;
  FOR f IN SELECT oid::regprocedure AS function FROM pg_proc WHERE pronamespace = 'queue'::regnamespace LOOP
    EXECUTE format('ALTER FUNCTION %s OWNER TO regress_mq_mallory', f.function);
  END LOOP;
END $$;
SELECT count(*) > 2000 AS many FROM pg_proc WHERE proowner = 'regress_mq_mallory'::regrole;
CREATE EXTENSION mq SCHEMA queue;
CREATE FUNCTION pg_temp.trapped() RETURNS TABLE (object text, uses text) LANGUAGE sql AS $$
  SELECT pg_describe_object(d.classid, d.objid, d.objsubid), pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid)
    FROM pg_depend d
    LEFT JOIN pg_proc p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
    LEFT JOIN pg_operator o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
   WHERE d.classid <> 'pg_operator'::regclass
     AND (p.proowner = 'regress_mq_mallory'::regrole OR o.oprnamespace = 'queue'::regnamespace)
   ORDER BY 1, 2
$$;
SELECT * FROM pg_temp.trapped();

-- At run time: the same in front of pg_catalog, with its very arguments, and temporary tables with the names of ours.
-- Each function is called.
CREATE SCHEMA hostile;
DO $$
DECLARE
  trap text := 'LANGUAGE plpgsql AS $f$ BEGIN RAISE EXCEPTION ''trapped''; END $f$';
  f record;
BEGIN
  FOR f IN SELECT DISTINCT p.proname, pg_get_function_identity_arguments(p.oid) AS arguments, format_type(p.prorettype, NULL) AS result
             FROM script, regexp_matches(script.text, '([a-z_0-9]+)\s*\(', 'g') AS m (words)
             JOIN pg_proc p ON p.proname = m.words[1] AND p.pronamespace = 'pg_catalog'::regnamespace
            WHERE p.prokind IN ('f', 'a') AND p.prorettype <> 'internal'::regtype
              AND NOT 'internal'::regtype = ANY (p.proargtypes) AND p.proargtypes::text !~ '\m(2276|2249|2275)\M' AND NOT p.proretset
              AND pg_get_function_identity_arguments(p.oid) !~ 'OUT|ORDER BY|VARIADIC' LOOP
    EXECUTE format('CREATE FUNCTION hostile.%I(%s) RETURNS %s %s', f.proname, f.arguments, f.result, trap);
  END LOOP;
  FOR f IN SELECT o.oprname, o.oprleft::regtype AS l, o.oprright::regtype AS r FROM pg_operator o
            WHERE o.oprname IN ('=', '<>', '<', '<=', '>', '>=', '||', '+', '-', '*') AND o.oprkind = 'b'
              AND o.oprnamespace = 'pg_catalog'::regnamespace LOOP
    EXECUTE format('CREATE OR REPLACE FUNCTION hostile.trap(%s, %s) RETURNS boolean %s', f.l, f.r, trap);
    EXECUTE format('CREATE OPERATOR hostile.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = hostile.trap)', f.oprname, f.l, f.r);
  END LOOP;
  -- No table can have the columns of mq_horizon.
  FOR f IN SELECT relname FROM members WHERE relkind IN ('r', 'v') AND relname <> 'mq_horizon' LOOP
    EXECUTE format('CREATE TEMP TABLE %I (LIKE queue.%1$I)', f.relname);
  END LOOP;
END $$;
CREATE FUNCTION public.handle(message queue.mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  CASE message.name
    WHEN 'snooze' THEN PERFORM queue.mq_snooze('1 hour');
    WHEN 'discard' THEN PERFORM queue.mq_discard('for a reason');
    ELSE RAISE EXCEPTION 'failed';
  END CASE;
END $$;
ALTER FUNCTION public.handle(queue.mq_message) SET search_path = pg_catalog;
SELECT oid FROM pg_extension WHERE extname = 'mq' \gset
SET track_functions = 'all';
SET search_path = pg_temp, hostile, queue, pg_catalog;
SELECT now();
SELECT 1 = 2;
BEGIN;
DO $$
DECLARE
  handled bigint;
BEGIN
  PERFORM mq_limit('sent', max_pending => 10), mq_limit('received', max_running => 2), mq_limit('handled', 10, 1);
  PERFORM mq_insert(ARRAY[('00000000-0000-0000-0000-000000000001', '0', 4, '1 s', 'inserted', '', '1 h', true, 'a', '1', NULL)::queue.mq_new_t]);
  PERFORM mq_commit('{00000000-0000-0000-0000-000000000001}');
  PERFORM mq_send('sent', ordered => true, id => '00000000-0000-0000-0000-000000000002');
  PERFORM mq_send('sent', ordered => true, id => '00000000-0000-0000-0000-000000000003');
  PERFORM mq_send_many('many', '{1, 2}');
  PERFORM sent FROM mq_send_once('sent', 'key');
  PERFORM mq_channel_key('sent', ''), mq_latest_message('sent', ''), mq_uuid_exists(NULL);
  PERFORM mq_active_channels(NULL, 10);
  PERFORM id FROM mq_poll(NULL, 10);
  PERFORM mq_keep_alive('{00000000-0000-0000-0000-000000000001}', '1 h');
  PERFORM mq_checkpoint('00000000-0000-0000-0000-000000000001', '1 h', '2', NULL, 1);
  PERFORM mq_delete('{00000000-0000-0000-0000-000000000002}');
  PERFORM mq_send_many('received', '{1, 2}');
  PERFORM FROM mq_receive('{received}', wait => '1 s') r, mq_extend(ARRAY[r.id], r.lease, '1 h') e, mq_ack(ARRAY[e], r.lease, '[1]') a;
  PERFORM FROM mq_receive('{received}') r, mq_nack(ARRAY[r.id], r.lease, 'no') n;
  PERFORM mq_register_handler('handled', 'public.handle(queue.mq_message)');
  PERFORM mq_pause('sent'), mq_resume('sent');
  PERFORM mq_send('handled', name => 'snooze'), mq_send('handled', name => 'discard'), mq_send('handled', name => 'fail', retries => 0);
  PERFORM mq_schedule('lines', '0 9 * * mon-fri', 'scheduled', headers => '{"a": 1}'), mq_schedule('intervals', '1 hour', 'scheduled', expires => '1 h', overlap => false), mq_next_times('1 day');
  UPDATE queue.mq_timetable SET next_at = '2020-01-01';
  CALL mq_run(handled => handled);
  PERFORM last_state FROM queue.mq_schedules;
  PERFORM mq_unschedule('lines');
  PERFORM mq_redrive();
  PERFORM mq_unregister_handler('handled');
  PERFORM mq_handler_function('public.handle(queue.mq_message)'), mq_handler_trouble('public.handle(queue.mq_message)', 'regress_mq_mallory', 'leased');
  PERFORM mq_status('{00000000-0000-0000-0000-000000000003}'), mq_wait('{00000000-0000-0000-0000-000000000099}', '0');
  PERFORM mq_subscribe('t.#', 'c'), mq_publish('t.a', '1', headers => '{"a": 1}', dedup_key => 'k', ordered => true), mq_publish('t'), mq_unsubscribe('t.#', 'c');
  PERFORM mq_health(), mq_why('00000000-0000-0000-0000-000000000003'), mq_last_state('00000000-0000-0000-0000-000000000003'), mq_prepared('3'),
    mq_process(1, 'a', 'b', 'c'), mq_since('2000-01-01'), mq_blockers(0), mq_preferred('{handled}'),
    mq_some('{a}'), mq_lock_waits(), mq_locked_tables(), mq_waiting_commits();
  PERFORM pid FROM queue.mq_workers;
  PERFORM channel_name FROM queue.mq_stats;
  PERFORM pending, running FROM queue.mq_limits;
  PERFORM mq_unlimit('sent');
  PERFORM mq_reset_stats();
  PERFORM pid FROM queue.mq_horizon;
  PERFORM mq_grant('regress_mq_mallory', 'consume'), mq_revoke('regress_mq_mallory', 'consume');
  PERFORM mq_clear('{sent}');
  PERFORM mq_clear_all();
  PERFORM mq_announce();
  PERFORM mq_enable();
  SET LOCAL session_replication_role = replica;
  DELETE FROM queue.mq_enabled;
END $$;
SET search_path = pg_catalog;
-- What was not called; these two the planner replaces by what they are made of.
SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
 WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = :oid AND pg_stat_get_xact_function_calls(p.oid) IS NULL;
COMMIT;
SELECT (SELECT count(*) FROM pg_temp.mq_msgs) + (SELECT count(*) FROM pg_temp.mq_payloads) + (SELECT count(*) FROM pg_temp.mq_dead) AS in_the_trap,
       (SELECT count(*) FROM queue.mq_failures) AS in_the_queue;
-- A client that is made to find another type of that name finds no function for it.
CREATE TYPE pg_temp.mq_new_t AS (id uuid, delay interval);
SET search_path = pg_temp, queue, pg_catalog;
SELECT mq_insert(ARRAY[(NULL, NULL)::mq_new_t]);
RESET search_path;
RESET track_functions;

DROP FUNCTION handle(queue.mq_message);
DROP EXTENSION mq;

-- A schema whose name has whatever a name can have.
CREATE SCHEMA "we""ird \ '$S' $$ %s ; -- ü";
CREATE EXTENSION mq SCHEMA "we""ird \ '$S' $$ %s ; -- ü";
SET search_path = "we""ird \ '$S' $$ %s ; -- ü";
CREATE FUNCTION handle(jsonb) RETURNS void LANGUAGE sql RETURN NULL;
SELECT mq_register_handler('c', 'handle(jsonb)');
SELECT mq_send('c', '1', ordered => true) IS NOT NULL AS sent;
SELECT mq_latest_message('c', '') <> '00000000-0000-0000-0000-000000000000' AS found;
CALL mq_run();
SELECT mq_grant('regress_mq_mallory', 'admin'), mq_revoke('regress_mq_mallory', 'admin');
SELECT count(*) FROM mq_health() WHERE "check" = 'handlers'' functions' AND ok;
RESET search_path;
DROP EXTENSION mq;
DROP SCHEMA "we""ird \ '$S' $$ %s ; -- ü" CASCADE;
DROP SCHEMA hostile, queue CASCADE;
DROP ROLE regress_mq_mallory;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
