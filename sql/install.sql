--
-- Installing: what the extension is made of, that nothing of it is open to PUBLIC, that it
-- works from any schema and under any search_path, and that it can be dropped and made again.
--
CREATE EXTENSION mq;

-- Everything that is a member of the extension. A change of the surface shows here. (The types that the server makes
-- itself, of arrays and of the rows of tables, are members too from 17 on.)
CREATE TEMP VIEW members AS
  SELECT d.classid, d.objid, pg_describe_object(d.classid, d.objid, 0) AS object
    FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
   WHERE e.extname = 'mq' AND d.deptype = 'e'
     AND NOT EXISTS (SELECT FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
                      WHERE d.classid = 'pg_type'::regclass AND t.oid = d.objid AND (t.typcategory = 'A' OR c.relkind <> 'c'));
SELECT object FROM members ORDER BY object COLLATE "C";

-- Not relocatable, and needs no other extension.
SELECT extrelocatable, extnamespace::regnamespace FROM pg_extension WHERE extname = 'mq';
SELECT requires FROM pg_available_extension_versions WHERE name = 'mq' AND installed;
ALTER EXTENSION mq SET SCHEMA pg_temp;

-- Each of its objects says what it is, and so does each column that the original did not have.
SELECT object FROM members
 WHERE obj_description(objid, classid::regclass::name) IS NULL
 ORDER BY object COLLATE "C";
SELECT attrelid::regclass, attname FROM pg_attribute
 WHERE (attrelid = 'mq_msgs'::regclass AND attnum > 9 OR attrelid = 'mq_payloads'::regclass AND attnum > 4)
   AND NOT attisdropped AND col_description(attrelid, attnum) IS NULL
 ORDER BY attrelid, attnum;

-- Nothing for PUBLIC.
SELECT m.object, a.privilege_type
  FROM members m
  LEFT JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
  LEFT JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
  LEFT JOIN pg_type t ON m.classid = 'pg_type'::regclass AND t.oid = m.objid
 CROSS JOIN LATERAL aclexplode(COALESCE(
         p.proacl, c.relacl, t.typacl,
         acldefault(CASE WHEN p.oid IS NOT NULL THEN 'f' WHEN c.relkind = 'S' THEN 's'
                         WHEN c.oid IS NOT NULL THEN 'r' ELSE 'T' END::"char",
                    COALESCE(p.proowner, c.relowner, t.typowner)))) a
 WHERE a.grantee = 0
 ORDER BY m.object COLLATE "C";

CREATE ROLE regress_mq_nobody;
SET ROLE regress_mq_nobody;
SELECT mq_send('work');
SELECT mq_poll(NULL);
SELECT count(*) FROM mq_msgs;
SELECT count(*) FROM mq_dead;
CALL mq_run();
SELECT mq_pause('work');
RESET ROLE;
DROP ROLE regress_mq_nobody;

-- No second overload of an original function: its clients' untyped calls must not become ambiguous.
SELECT n.name, count(p.oid)
  FROM unnest(ARRAY['mq_active_channels', 'mq_checkpoint', 'mq_clear', 'mq_clear_all', 'mq_commit', 'mq_delete',
                    'mq_insert', 'mq_keep_alive', 'mq_latest_message', 'mq_poll', 'mq_uuid_exists']) AS n (name)
  LEFT JOIN pg_proc p ON p.proname = n.name
 GROUP BY n.name HAVING count(p.oid) <> 1;

-- Nothing that would cost the hot path: no triggers (mq_enabled is none of its tables), no foreign keys, no functions in index predicates.
SELECT (SELECT count(*) FROM pg_trigger WHERE tgrelid IN (SELECT objid FROM members) AND tgrelid <> 'mq_enabled'::regclass) AS triggers,
       (SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND (conrelid IN (SELECT objid FROM members)
                                                     OR confrelid IN (SELECT objid FROM members))) AS foreign_keys,
       (SELECT count(*) FROM pg_index WHERE indrelid IN (SELECT objid FROM members)
           AND (indexprs IS NOT NULL OR pg_get_expr(indpred, indrelid) LIKE '%mq\_%(%')) AS index_functions;

-- With a publication for all tables each row that is updated or deleted needs a replica identity.
SELECT c.relname FROM pg_class c JOIN members m ON m.objid = c.oid
 WHERE c.relkind IN ('r', 'p') AND c.relreplident <> 'f'
   AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND (i.indisprimary AND c.relreplident = 'd' OR i.indisreplident));

-- The settings.
SELECT name, setting, unit, context, min_val, max_val, enumvals, short_desc <> '' AS described
  FROM pg_settings WHERE name LIKE 'mq.%' ORDER BY name COLLATE "C";
SET mq.notify = 'sometimes';

-- An empty search_path.
SET search_path = '';
SELECT public.mq_send('work', '{"n": 1}') IS NOT NULL AS sent;
SELECT public.mq_insert(ARRAY[('00000000-0000-0000-0000-000000000002', '0', 1, '1 s', 'work', '', NULL, true, 'a', NULL, NULL)::public.mq_new_t]);
SELECT public.mq_latest_message('work', '');
SELECT * FROM public.mq_active_channels(NULL, 10);
SELECT count(*) AS polled FROM public.mq_poll(NULL, 10) WHERE id IS NOT NULL;
SELECT public.mq_keep_alive(ARRAY['00000000-0000-0000-0000-000000000002'::uuid], '1 minute');
SELECT public.mq_checkpoint('00000000-0000-0000-0000-000000000002', '2 minutes', '{}', NULL, 1);
SELECT public.mq_commit(ARRAY['00000000-0000-0000-0000-000000000002'::uuid]);
SELECT public.mq_delete(ARRAY['00000000-0000-0000-0000-000000000002'::uuid]);
SELECT public.mq_clear(ARRAY['work']);
CREATE FUNCTION public.take(jsonb) RETURNS void LANGUAGE sql RETURN NULL;
SELECT public.mq_register_handler('other', 'public.take(jsonb)');
CALL public.mq_run();
SELECT public.mq_unregister_handler('other');
SELECT public.mq_redrive();
SELECT public.mq_clear_all();
DROP FUNCTION public.take(jsonb);

-- A hostile search_path: tables, functions and operators that are found first, and must not be used.
CREATE SCHEMA hostile;
CREATE FUNCTION hostile.trap(uuid, uuid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE OPERATOR hostile.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = hostile.trap);
CREATE OPERATOR hostile.<> (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = hostile.trap);
CREATE FUNCTION hostile.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE FUNCTION hostile.mq_channel_key(text, text) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE TEMP TABLE mq_msgs (LIKE public.mq_msgs INCLUDING ALL);
CREATE TEMP TABLE mq_payloads (LIKE public.mq_payloads INCLUDING ALL);
CREATE TEMP TABLE mq_dead (LIKE public.mq_dead);
SET search_path = pg_temp, hostile, pg_catalog, public;
SELECT mq_send('work', ordered => true, id => '00000000-0000-0000-0000-000000000003');
SELECT mq_send('work', ordered => true, id => '00000000-0000-0000-0000-000000000004');
SELECT mq_latest_message('work', '');
SELECT id, name FROM mq_poll(ARRAY['work'], 10);
SELECT mq_delete(ARRAY['00000000-0000-0000-0000-000000000003'::uuid]);
SELECT id, name FROM mq_poll(ARRAY['work'], 10);
SELECT (SELECT count(*) FROM pg_temp.mq_msgs) AS in_the_trap, (SELECT count(*) FROM public.mq_msgs) AS in_the_queue;
SELECT mq_clear_all();
RESET search_path;
DROP TABLE pg_temp.mq_msgs, pg_temp.mq_payloads, pg_temp.mq_dead;
SET client_min_messages = warning;
DROP SCHEMA hostile CASCADE;
RESET client_min_messages;

-- Dropped: nothing is left. A drop that is rolled back leaves everything as it was.
SELECT mq_send('work', '"kept"') IS NOT NULL AS sent;
BEGIN;
DROP EXTENSION mq;
ROLLBACK;
SELECT name, payload_json FROM mq_poll(NULL, 10);
DROP EXTENSION mq;
SELECT count(*) AS left_behind FROM pg_class WHERE relname LIKE 'mq\_%' AND relnamespace = 'public'::regnamespace;
SELECT mq_send('work');

-- Made again in the same session: in the transaction that makes it, and not when that is rolled back.
BEGIN;
CREATE EXTENSION mq;
SELECT mq_send('work', '"new"') IS NOT NULL AS sent;
SELECT name, payload_json FROM mq_poll(NULL, 10);
ROLLBACK;
SELECT mq_send('work');
CREATE EXTENSION mq;
SELECT name, payload_json FROM mq_poll(NULL, 10);
SELECT mq_send('work', '"newer"') IS NOT NULL AS sent;
SELECT name, payload_json FROM mq_poll(NULL, 10);
DROP EXTENSION mq;

-- In a schema that the session does not search, with a name that needs quotes.
CREATE SCHEMA "The Queue";
CREATE EXTENSION mq SCHEMA "The Queue";
SELECT "The Queue".mq_send('work', '"elsewhere"') IS NOT NULL AS sent;
SELECT name, payload_json FROM "The Queue".mq_poll(ARRAY['work'], 10);
SELECT (SELECT count(*) FROM pg_class WHERE relname LIKE 'mq\_%' AND relnamespace = 'public'::regnamespace) AS in_public;
DROP EXTENSION mq;

-- In the current schema, which is the first of the search_path.
SET search_path = "The Queue", public;
CREATE EXTENSION mq;
RESET search_path;
SELECT extnamespace::regnamespace FROM pg_extension WHERE extname = 'mq';
DROP EXTENSION mq;
DROP SCHEMA "The Queue";
