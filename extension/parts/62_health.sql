-- mq_health(): why messages are not moving.

CREATE FUNCTION mq_health() RETURNS TABLE ("check" text, ok boolean, detail text)
  LANGUAGE sql VOLATILE SECURITY DEFINER
  BEGIN ATOMIC
    WITH RECURSIVE s AS (SELECT * FROM mq_service_state()),
         -- Channel names with messages to handle, by a skip scan.
         n (name) AS (
           SELECT (SELECT m.channel_name FROM mq_msgs m
                    WHERE m.after_message_id IS NULL OR m.after_message_id = '00000000-0000-0000-0000-000000000000'
                    ORDER BY m.channel_name LIMIT 1)
           UNION ALL
           SELECT (SELECT m.channel_name FROM mq_msgs m WHERE m.channel_name > n.name
                      AND (m.after_message_id IS NULL OR m.after_message_id = '00000000-0000-0000-0000-000000000000')
                    ORDER BY m.channel_name LIMIT 1)
             FROM n WHERE n.name IS NOT NULL),
         unhandled AS (
           SELECT n.name FROM n
            WHERE NOT EXISTS (SELECT FROM mq_handlers h WHERE h.channel_name = n.name)
              AND (SELECT m.attempt_at FROM mq_msgs m WHERE m.channel_name = n.name
                      AND (m.after_message_id IS NULL OR m.after_message_id = '00000000-0000-0000-0000-000000000000')
                    ORDER BY m.attempt_at LIMIT 1) <= now() - interval '1 second')
    SELECT 'library preloaded', s.preloaded,
           CASE WHEN NOT s.preloaded THEN 'shared_preload_libraries does not name mq: no workers; CALL mq_run() does their work' END
      FROM s
    UNION ALL
    SELECT 'settings in force', pg_catalog.count(p.name) = 0, 'wait for a restart: ' || string_agg(p.name, ', ' ORDER BY p.name)
      FROM pg_settings p WHERE p.pending_restart AND p.name IN ('shared_preload_libraries', 'max_worker_processes')
    UNION ALL
    SELECT 'launcher runs', s.launcher,
           CASE WHEN NOT s.preloaded THEN 'library not preloaded'
                WHEN NOT s.launcher THEN 'it comes back after a second; if not, max_worker_processes = ' ||
                                         current_setting('max_worker_processes') || ' may be in use: see the server''s log' END
      FROM s
    UNION ALL
    SELECT 'database served', s.served OR NOT s.launcher,
           CASE WHEN s.launcher AND NOT s.served THEN 'mq.databases = ' || current_setting('mq.databases') END
      FROM s
    UNION ALL
    SELECT 'workers allowed', current_setting('mq.max_workers') <> '0',
           CASE WHEN current_setting('mq.max_workers') = '0' THEN 'mq.max_workers = 0' END
    UNION ALL
    SELECT 'worker slots', NOT s.out_of_slots,
           CASE WHEN s.out_of_slots THEN 'max_worker_processes = ' || current_setting('max_worker_processes') || ' are in use' END
      FROM s
    UNION ALL
    SELECT 'workers start', s.failed_starts = 0,
           CASE WHEN s.failed_starts > 0 THEN
             'as ' || COALESCE((SELECT r.rolname::text FROM pg_roles r WHERE r.oid = s.failing_role), 'the bootstrap superuser') ||
             ': ' || s.failed_starts::text || ' times in a row it ended before it could serve; see the server''s log' END
      FROM s
    UNION ALL
    SELECT 'handlers registered', EXISTS (SELECT FROM mq_handlers),
           CASE WHEN NOT EXISTS (SELECT FROM mq_handlers) THEN 'none' END
    UNION ALL
    SELECT 'channels handled', pg_catalog.count(u.name) = 0, 'due messages, but no handler, in: ' || string_agg(u.name, ', ' ORDER BY u.name)
      FROM unhandled u
    UNION ALL
    SELECT 'channels not paused', pg_catalog.count(p.channel_name) = 0, 'paused: ' || string_agg(p.channel_name, ', ' ORDER BY p.channel_name)
      FROM mq_paused p
    UNION ALL
    SELECT 'handlers'' functions', pg_catalog.count(h.handler) = 0,
           'gone: ' || string_agg(h.channel_name || ' ' || h.handler, ', ' ORDER BY h.channel_name)
      FROM mq_handlers h WHERE to_regprocedure(h.handler) IS NULL
    UNION ALL
    SELECT 'handlers may be called', pg_catalog.count(h.handler) = 0,
           'by the role that they run as, and their owners are members of it; not: ' ||
           string_agg(h.channel_name || ' ' || h.handler, ', ' ORDER BY h.channel_name)
      FROM mq_handlers h JOIN pg_roles r ON r.rolname = h.run_as JOIN pg_proc p ON p.oid = to_regprocedure(h.handler)
     WHERE NOT (has_function_privilege(r.oid, p.oid, 'EXECUTE') AND has_schema_privilege(r.oid, p.pronamespace, 'USAGE')
                AND (p.prosecdef OR pg_has_role(p.proowner, r.oid, 'MEMBER')))
    UNION ALL
    -- A worker is connected as the role; only newer servers let it without LOGIN.
    SELECT 'handlers'' roles', pg_catalog.count(h.run_as) = 0,
           'gone, or without LOGIN: ' || string_agg(h.channel_name || ' runs as ' || h.run_as, ', ' ORDER BY h.channel_name)
      FROM mq_handlers h
     WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = h.run_as
                          AND (r.rolcanlogin OR current_setting('server_version_num')::int >= 170000))
    UNION ALL
    SELECT 'leased connections', pg_catalog.count(r.error) = 0, string_agg(pg_catalog.format('as %s: %s', r.role::pg_catalog.regrole, r.error), '; ')
      FROM mq_connection_refusals() r
    UNION ALL
    SELECT 'channels not blocked', pg_catalog.count(m.id) = 0, 'blocked by a dead message: ' || string_agg(DISTINCT m.channel_name, ', ')
      FROM mq_msgs m WHERE m.attempts <= 0 AND m.attempt_at IS NULL
    UNION ALL
    SELECT 'horizon', pg_catalog.count(h.kind) = 0,
           'held for 10 minutes, or for a million transactions, by: ' || string_agg(h.kind || ' ' || h.name, ', ' ORDER BY h.xids DESC)
      FROM mq_horizon h WHERE h.held_for > interval '10 minutes' OR h.xids > 1000000;
  END;
COMMENT ON FUNCTION mq_health() IS 'Why messages are not moving: a row for each thing that can be in the way, ok or not, with what it is.';
