--
-- mq_grant and mq_revoke give and take whole sets; a set holds what its purpose needs and nothing else, and no right on
-- a payload. mq_health() says why nothing moves.
--
-- Workers stay out.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
SET client_min_messages = warning;
CREATE SCHEMA queue;
CREATE EXTENSION mq SCHEMA queue;
CREATE ROLE regress_mq_producer;
CREATE ROLE "regress mq ""consumer""";
CREATE ROLE regress_mq_monitor;
CREATE ROLE regress_mq_admin;
CREATE ROLE regress_mq_developer LOGIN;
CREATE ROLE regress_mq_team LOGIN;
CREATE ROLE regress_mq_other LOGIN;
GRANT regress_mq_team TO regress_mq_developer;
GRANT USAGE ON SCHEMA queue TO regress_mq_producer, "regress mq ""consumer""", regress_mq_monitor, regress_mq_admin, regress_mq_developer, regress_mq_team, regress_mq_other;
SET search_path = queue;

SELECT mq_grant('regress_mq_producer', 'everything');
SELECT mq_grant(NULL, 'produce');
SELECT mq_grant('regress_mq_producer', NULL);

SELECT mq_grant('regress_mq_producer', 'produce');
SELECT mq_grant('"regress mq ""consumer"""', 'consume');
SELECT mq_grant('regress_mq_monitor', 'monitor');
SELECT mq_grant('regress_mq_admin', 'admin');
SELECT mq_grant('regress_mq_developer', 'develop');

-- A producer sends, and that is all.
SET ROLE regress_mq_producer;
SELECT mq_send('work', '{"secret": 1}') IS NOT NULL AS sent;
SELECT count(*) FROM mq_send_many('work', '{2}');
SELECT mq_insert(ARRAY[('00000000-0000-0000-0000-000000000001', '0', 4, '1 s', 'work', '', NULL, false, 'work', '3', NULL)::mq_new_t]);
SELECT * FROM mq_poll(NULL);
SELECT mq_delete(ARRAY['00000000-0000-0000-0000-000000000001']::uuid[]);
SELECT payload_json FROM mq_payloads;
SELECT id FROM mq_msgs;
SELECT error FROM mq_failures;
SELECT mq_clear_all();
SELECT mq_grant('regress_mq_producer', 'admin');
SELECT * FROM mq_stats;
SELECT * FROM mq_metrics;
SELECT * FROM mq_histogram;
SELECT * FROM mq_workers;
SELECT * FROM mq_horizon;
SELECT * FROM mq_health();
SELECT mq_reset_stats();

-- A consumer polls, and asks for its message as the original's clients do.
SET ROLE "regress mq ""consumer""";
SELECT count(*) FROM mq_poll(NULL, 10);
SELECT EXISTS (SELECT id FROM mq_msgs WHERE id = '00000000-0000-0000-0000-000000000001');
SELECT mq_delete(ARRAY['00000000-0000-0000-0000-000000000001']::uuid[]);
SELECT EXISTS (SELECT id FROM mq_msgs WHERE id = '00000000-0000-0000-0000-000000000001');
CALL mq_run();
SELECT mq_send('work');
SELECT channel_name FROM mq_msgs;
SELECT payload_json FROM mq_payloads;
DELETE FROM mq_msgs;
SELECT mq_register_handler('work', 'pg_catalog.jsonb_typeof(jsonb)');
SELECT * FROM mq_stats;
SELECT * FROM mq_metrics;
SELECT * FROM mq_histogram;
SELECT * FROM mq_workers;
SELECT * FROM mq_horizon;
SELECT * FROM mq_health();
SELECT mq_reset_stats();
SELECT mq_clear('{work}');
SELECT mq_clear_all();

-- A monitor sees what shows no payload and no error of a handler.
SET ROLE regress_mq_monitor;
SELECT count(*) > 10 AS looked FROM mq_health();
SELECT count(*) >= 0 AS looked FROM mq_stats;
SELECT count(*) >= 0 AS looked FROM mq_metrics;
SELECT count(*) >= 0 AS looked FROM mq_histogram;
SELECT count(*) >= 0 AS looked FROM mq_workers;
SELECT count(*) >= 0 AS looked FROM mq_horizon;
SELECT mq_why('00000000-0000-0000-0000-000000000001') IS NOT NULL AS told;
SELECT payload_json FROM mq_payloads;
SELECT id FROM mq_msgs;
SELECT error FROM mq_failures;
SELECT error FROM mq_dead;
SELECT handler FROM mq_handlers;
SELECT mq_send('work');
SELECT * FROM mq_poll(NULL);
CALL mq_run();
SELECT mq_reset_stats();
SELECT mq_enable();

-- An administrator does all of that, and looks.
SET ROLE regress_mq_admin;
SELECT mq_send('work') IS NOT NULL AS sent;
SELECT count(*) FROM mq_msgs;
SELECT mq_pause('work');
SELECT "check", ok, detail FROM mq_health() WHERE NOT ok AND "check" NOT IN ('channels handled', 'horizon') ORDER BY 1;
SELECT count(*) FROM mq_workers WHERE database = current_database();
SELECT count(*) >= 0 AS looked FROM mq_horizon;
SELECT channel_name, ready, running, paused, handled FROM mq_stats;
SELECT mq_reset_stats();
SELECT mq_clear(ARRAY['work']);
SELECT mq_enable();

-- A developer registers what runs as himself or as a role of his, and touches nothing of others.
SET ROLE regress_mq_developer;
SELECT mq_register_handler('mine', 'pg_catalog.jsonb_typeof(jsonb)');
SELECT mq_register_handler('team', 'pg_catalog.jsonb_typeof(jsonb)', run_as => 'regress_mq_team');
SELECT mq_register_handler('other', 'pg_catalog.jsonb_typeof(jsonb)', run_as => 'regress_mq_other');
SELECT channel_name, run_as FROM mq_handlers ORDER BY channel_name;
SELECT mq_pause('mine'), mq_pause('team'), mq_resume('team'), mq_pause('unhandled');
SELECT channel_name FROM mq_paused ORDER BY channel_name;
RESET ROLE;
SELECT mq_register_handler('other', 'pg_catalog.jsonb_typeof(jsonb)', run_as => 'regress_mq_other');
SELECT mq_register_handler('other', 'pg_catalog.jsonb_typeof(jsonb)', 'exact', run_as => 'regress_mq_other');
SET ROLE regress_mq_developer;
SELECT mq_register_handler('other', 'pg_catalog.jsonb_typeof(jsonb)');
SELECT mq_register_handler('other', 'pg_catalog.jsonb_typeof(jsonb)', 'exact');
SELECT mq_register_handler('other', 'pg_catalog.jsonb_typeof(jsonb)', 'new name');
SELECT mq_unregister_handler('other');
SELECT mq_unregister_handler('other', 'exact');
SELECT mq_pause('other');
SELECT mq_resume('other');
SELECT mq_send('mine');
SELECT id FROM mq_msgs;
SELECT payload_json FROM mq_payloads;
SELECT error FROM mq_dead;
SELECT result FROM mq_done;
SELECT * FROM mq_poll(NULL);
SELECT mq_clear_all();
SELECT mq_redrive();
SELECT mq_grant('regress_mq_developer', 'admin');
-- With admin one may, whoever it runs as.
SET ROLE regress_mq_admin;
SELECT mq_pause('other'), mq_resume('other'), mq_unregister_handler('other', 'exact');
-- A role that was dropped owns nothing more: only admin replaces its handlers.
RESET ROLE;
DROP OWNED BY regress_mq_other;
DROP ROLE regress_mq_other;
SET ROLE regress_mq_developer;
SELECT mq_unregister_handler('other');
SET ROLE regress_mq_admin;
SELECT mq_unregister_handler('other');
SET ROLE regress_mq_developer;
SELECT mq_resume('mine'), mq_unregister_handler('mine'), mq_unregister_handler('team');

-- Taken back.
RESET ROLE;
SELECT mq_revoke('regress_mq_developer', 'develop');
SELECT mq_revoke('regress_mq_producer', 'produce');
SELECT mq_revoke('"regress mq ""consumer"""', 'consume');
SELECT mq_revoke('regress_mq_monitor', 'monitor');
SELECT mq_revoke('regress_mq_admin', 'admin');
SET ROLE regress_mq_producer;
SELECT mq_send('work');
SET ROLE regress_mq_monitor;
SELECT * FROM mq_health();
SET ROLE regress_mq_admin;
SELECT * FROM mq_stats;
SELECT * FROM mq_health();
RESET ROLE;
SELECT r.rolname, p.proname FROM pg_roles r, pg_proc p
  WHERE r.rolname LIKE 'regress_mq%' AND p.pronamespace = 'queue'::regnamespace AND has_function_privilege(r.oid, p.oid, 'EXECUTE')
  ORDER BY 1, 2;
SELECT grantee, table_name FROM information_schema.table_privileges WHERE grantee LIKE 'regress%' AND table_schema = 'queue';

RESET search_path;
DROP EXTENSION mq;
DROP SCHEMA queue;
DROP ROLE regress_mq_producer, "regress mq ""consumer""", regress_mq_monitor, regress_mq_admin, regress_mq_developer, regress_mq_team;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
