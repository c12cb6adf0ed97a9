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
  'A row for each worker. state is waiting (for work), active (between messages) or handling; since says from when on, channel_name and message_id what it handles, handled how many messages since it started.';

CREATE FUNCTION mq_service_state(OUT preloaded boolean, OUT launcher boolean, OUT served boolean, OUT out_of_slots boolean)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_service_state';
COMMENT ON FUNCTION mq_service_state() IS 'What the launcher says of itself and this database; for mq_health().';

CREATE VIEW mq_horizon AS
  SELECT h.kind, h.name, h.pid, h.xmin, age(h.xmin) AS xids, h.since, clock_timestamp() - h.since AS held_for, h.detail
    FROM (SELECT 'session' AS kind, usename::text AS name, pid, backend_xmin AS xmin, xact_start AS since, left(query, 200) AS detail
            FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()
          UNION ALL
          SELECT 'replication slot', slot_name::text, active_pid,
                 CASE WHEN age(xmin) >= COALESCE(age(catalog_xmin), 0) THEN xmin ELSE COALESCE(catalog_xmin, xmin) END,
                 NULL, slot_type
            FROM pg_replication_slots WHERE xmin IS NOT NULL OR catalog_xmin IS NOT NULL
          UNION ALL
          SELECT 'prepared transaction', gid, NULL, transaction, prepared, 'owner ' || owner::text
            FROM pg_prepared_xacts
          UNION ALL
          SELECT 'standby', application_name, pid, backend_xmin, backend_start, client_addr::text
            FROM pg_stat_replication WHERE backend_xmin IS NOT NULL) AS h
   ORDER BY age(h.xmin) DESC;
COMMENT ON VIEW mq_horizon IS
  'What holds back the oldest snapshot, oldest first: rows that were deleted since cannot be vacuumed, and every claim reads past them. xids counts the transactions since.';

CREATE FUNCTION mq_health() RETURNS TABLE ("check" text, ok boolean, detail text)
  LANGUAGE sql VOLATILE SECURITY DEFINER
  BEGIN ATOMIC
    WITH s AS (SELECT * FROM mq_service_state()),
         waiting AS (SELECT DISTINCT m.channel_name FROM mq_msgs m WHERE m.attempt_at <= now() - interval '1 second' LIMIT 1000)
    SELECT 'library preloaded', s.preloaded,
           CASE WHEN NOT s.preloaded THEN 'shared_preload_libraries does not name mq: no workers; CALL mq_run() does their work' END
      FROM s
    UNION ALL
    SELECT 'launcher runs', s.launcher,
           CASE WHEN NOT s.preloaded THEN 'library not preloaded' WHEN NOT s.launcher THEN 'no launcher: see the server''s log' END
      FROM s
    UNION ALL
    SELECT 'database served', s.served OR NOT s.preloaded,
           CASE WHEN s.preloaded AND NOT s.served THEN 'mq.databases = ' || current_setting('mq.databases') END
      FROM s
    UNION ALL
    SELECT 'worker slots', NOT s.out_of_slots AND current_setting('mq.max_workers') <> '0',
           CASE WHEN s.out_of_slots THEN 'max_worker_processes = ' || current_setting('max_worker_processes') || ' are in use'
                WHEN current_setting('mq.max_workers') = '0' THEN 'mq.max_workers = 0' END
      FROM s
    UNION ALL
    SELECT 'handlers registered', EXISTS (SELECT FROM mq_handlers), NULL
    UNION ALL
    SELECT 'channels handled', pg_catalog.count(w.channel_name) = 0,
           'due messages, but no handler, in: ' || string_agg(w.channel_name, ', ')
      FROM waiting w WHERE NOT EXISTS (SELECT FROM mq_handlers h WHERE h.channel_name = w.channel_name)
    UNION ALL
    SELECT 'channels not paused', pg_catalog.count(p.channel_name) = 0, 'paused: ' || string_agg(p.channel_name, ', ') FROM mq_paused p
    UNION ALL
    SELECT 'handlers'' functions', pg_catalog.count(h.handler) = 0, 'gone: ' || string_agg(h.channel_name || ' ' || h.handler, ', ')
      FROM mq_handlers h WHERE to_regprocedure(h.handler) IS NULL
    UNION ALL
    SELECT 'handlers may be called', pg_catalog.count(h.handler) = 0,
           'by the role that they run as, and their owners are members of it; not: ' || string_agg(h.channel_name || ' ' || h.handler, ', ')
      FROM mq_handlers h JOIN pg_roles r ON r.rolname = h.run_as JOIN pg_proc p ON p.oid = to_regprocedure(h.handler)
     WHERE NOT (has_function_privilege(r.oid, p.oid, 'EXECUTE') AND has_schema_privilege(r.oid, p.pronamespace, 'USAGE')
                AND (p.prosecdef OR pg_has_role(p.proowner, r.oid, 'MEMBER')))
    UNION ALL
    SELECT 'handlers'' roles', pg_catalog.count(h.run_as) = 0, 'gone: ' || string_agg(h.channel_name || ' runs as ' || h.run_as, ', ')
      FROM mq_handlers h WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = h.run_as)
    UNION ALL
    SELECT 'channels not blocked', pg_catalog.count(m.id) = 0, 'blocked by a dead message: ' || string_agg(DISTINCT m.channel_name, ', ')
      FROM mq_msgs m WHERE m.attempts <= 0 AND m.attempt_at IS NULL
    UNION ALL
    SELECT 'horizon', pg_catalog.count(*) = 0, 'held for more than 10 minutes: ' || string_agg(h.kind || ' ' || h.name, ', ')
      FROM mq_horizon h WHERE h.held_for > interval '10 minutes' OR h.kind <> 'session' AND h.xids > 1000000;
  END;
COMMENT ON FUNCTION mq_health() IS 'Why messages are not moving: a row for each thing that can be in the way, ok or not, with what it is.';
