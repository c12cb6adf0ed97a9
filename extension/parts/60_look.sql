-- Looking: what the queue does, and why messages are not moving.

CREATE FUNCTION mq_channel_stats(
  OUT channel_name text, OUT ready bigint, OUT scheduled bigint, OUT running bigint, OUT dead bigint, OUT paused boolean,
  OUT oldest_ready interval, OUT handled bigint, OUT failed bigint, OUT died bigint,
  OUT handle_p50 interval, OUT handle_p95 interval, OUT handle_p99 interval,
  OUT wait_p50 interval, OUT wait_p95 interval, OUT wait_p99 interval)
  RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_channel_stats';
COMMENT ON FUNCTION mq_channel_stats() IS 'Counts and totals by channel name; for mq_stats.';

CREATE VIEW mq_stats AS
  SELECT s.channel_name, s.ready, s.scheduled, s.running, s.dead, s.paused, s.oldest_ready, s.handled, s.failed, s.died,
         s.handle_p50, s.handle_p95, s.handle_p99, s.wait_p50, s.wait_p95, s.wait_p99
    FROM mq_channel_stats() AS s;
COMMENT ON VIEW mq_stats IS
  'A row for each channel name that has messages, dead letters, a handler, a pause or totals.';
COMMENT ON COLUMN mq_stats.ready IS 'Messages that could be handled now.';
COMMENT ON COLUMN mq_stats.scheduled IS 'Messages that could not: they are due later, wait for their retry or for mq_commit, or are behind such a one, or one that runs or blocks, in their ordered channel.';
COMMENT ON COLUMN mq_stats.running IS 'Messages that a worker holds in its batch, or that are leased to a consumer outside the server.';
COMMENT ON COLUMN mq_stats.dead IS 'Rows in mq_dead.';
COMMENT ON COLUMN mq_stats.oldest_ready IS 'For how long the oldest due message has been due; NULL: none is ready.';
COMMENT ON COLUMN mq_stats.handled IS 'Messages handled since mq_reset_stats(): by handlers, and by consumers outside that deleted what they had polled.';
COMMENT ON COLUMN mq_stats.failed IS 'Failed attempts since mq_reset_stats(). Deadlocks and serialization failures that were tried again at once are none.';
COMMENT ON COLUMN mq_stats.died IS 'Messages moved to mq_dead since mq_reset_stats().';
COMMENT ON COLUMN mq_stats.handle_p50 IS 'Half of the handled messages took their handlers at most so long. The time of a batch is divided evenly among its messages.';
COMMENT ON COLUMN mq_stats.wait_p50 IS 'Half of the handled messages waited at most so long from when they were due to when their handlers began.';

CREATE FUNCTION mq_reset_stats() RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_reset_stats';
COMMENT ON FUNCTION mq_reset_stats() IS 'Begins the totals of mq_stats anew, when the transaction commits.';

CREATE FUNCTION mq_worker_seats(OUT pid integer, OUT database text, OUT role oid, OUT state text,
                                OUT channel_name text, OUT message_id uuid, OUT since timestamptz, OUT handled bigint)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_worker_seats';
COMMENT ON FUNCTION mq_worker_seats() IS 'The workers of all databases, out of shared memory; for mq_workers.';

CREATE VIEW mq_workers AS
  SELECT w.pid, w.database, w.state, w.channel_name, w.message_id, w.since, w.handled
    FROM mq_worker_seats() AS w;
COMMENT ON VIEW mq_workers IS
  'A row for each worker. state is waiting (for work), active (between messages) or handling; then channel_name and message_id say what, the first message if it is a batch. since: when it began to wait, or its last handler began, or it started. handled: how many messages since it started.';

CREATE FUNCTION mq_service_state(OUT preloaded boolean, OUT launcher boolean, OUT served boolean, OUT out_of_slots boolean,
                                 OUT failing_role oid, OUT failed_starts integer)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_service_state';
COMMENT ON FUNCTION mq_service_state() IS 'What the launcher says of itself and this database; for mq_health().';

-- Who looks may not see what others run, so no query is shown.
CREATE FUNCTION mq_horizon_holders(OUT kind text, OUT name text, OUT pid integer, OUT xmin xid, OUT since timestamptz, OUT detail text)
  RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER
  BEGIN ATOMIC
    SELECT 'session', a.usename::text, a.pid,
           CASE WHEN a.backend_xmin IS NULL OR age(a.backend_xid) > age(a.backend_xmin) THEN a.backend_xid ELSE a.backend_xmin END,
           a.xact_start, pg_catalog.concat_ws(', ', a.backend_type, a.state, nullif(a.application_name, ''))
      FROM pg_stat_activity a
     WHERE (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL) AND a.pid <> pg_backend_pid()
       AND a.datname = current_database()
    UNION ALL
    SELECT 'replication slot', s.slot_name::text, s.active_pid,
           CASE WHEN s.xmin IS NOT NULL AND (s.catalog_xmin IS NULL OR age(s.xmin) >= age(s.catalog_xmin)) THEN s.xmin ELSE s.catalog_xmin END,
           NULL, pg_catalog.concat_ws(', ', s.slot_type, CASE WHEN NOT s.active THEN 'not active' END,
                           CASE WHEN s.xmin IS NULL THEN 'holds the system catalogs only' END)
      FROM pg_replication_slots s WHERE s.xmin IS NOT NULL OR s.catalog_xmin IS NOT NULL
    UNION ALL
    SELECT 'prepared transaction', p.gid, NULL, p.transaction, p.prepared, 'owner ' || p.owner::text
      FROM pg_prepared_xacts p WHERE p.database = current_database()
    UNION ALL
    SELECT 'standby', r.application_name, r.pid, r.backend_xmin, r.backend_start, r.client_addr::text
      FROM pg_stat_replication r WHERE r.backend_xmin IS NOT NULL;
  END;
COMMENT ON FUNCTION mq_horizon_holders() IS 'For mq_horizon.';

CREATE FUNCTION mq_connection_refusals(OUT role oid, OUT error text)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_connection_refusals';
COMMENT ON FUNCTION mq_connection_refusals() IS 'Why the last connection for leased handlers of a role was refused, where it was; for mq_health().';

CREATE VIEW mq_horizon AS
  SELECT h.kind, h.name, h.pid, h.xmin, age(h.xmin) AS xids, h.since, clock_timestamp() - h.since AS held_for, h.detail
    FROM mq_horizon_holders() AS h
   ORDER BY age(h.xmin) DESC, h.since;
COMMENT ON VIEW mq_horizon IS
  'What holds back the oldest snapshot of this database, oldest first: rows that were deleted since cannot be vacuumed, and claims read past them. kind is session, replication slot, prepared transaction or standby; xids counts the transactions since; of a slot nobody knows since when.';

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
