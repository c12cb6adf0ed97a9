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
         s.handle_p50, s.handle_p95, s.handle_p99, s.wait_p50, s.wait_p95, s.wait_p99,
         (SELECT pg_catalog.count(*) FROM mq_msgs m WHERE m.channel_name = s.channel_name AND m.throttled_at IS NOT NULL)
           + CASE WHEN r.channel_name IS NOT NULL AND COALESCE(r.ready, 0) = 0 THEN s.ready ELSE 0 END AS throttled
    FROM mq_channel_stats() AS s LEFT JOIN mq_rate_state() AS r ON r.channel_name = s.channel_name;
COMMENT ON VIEW mq_stats IS
  'A row for each channel name that has messages, dead letters, a handler, a pause or totals.';
COMMENT ON COLUMN mq_stats.ready IS 'Messages that could be handled now.';
COMMENT ON COLUMN mq_stats.scheduled IS 'Messages that could not: they are due later, wait for their retry, for mq_commit, for a handler of their name or for other messages, or are behind such a one, or one that runs or blocks, in their ordered channel.';
COMMENT ON COLUMN mq_stats.running IS 'Messages that a worker holds in its batch, or that are leased to a consumer outside the server.';
COMMENT ON COLUMN mq_stats.dead IS 'Rows in mq_dead.';
COMMENT ON COLUMN mq_stats.oldest_ready IS 'For how long the oldest due message has been due; NULL: none is ready.';
COMMENT ON COLUMN mq_stats.handled IS 'Messages handled since mq_reset_stats(): by handlers, and by consumers outside that deleted what they had polled.';
COMMENT ON COLUMN mq_stats.failed IS 'Failed attempts since mq_reset_stats(). Deadlocks and serialization failures that were tried again at once are none.';
COMMENT ON COLUMN mq_stats.died IS 'Messages moved to mq_dead since mq_reset_stats().';
COMMENT ON COLUMN mq_stats.handle_p50 IS 'Half of the handled messages took their handlers at most so long. The time of a batch is divided evenly among its messages.';
COMMENT ON COLUMN mq_stats.throttled IS 'Messages that are due but for a limit of their channel (mq_limit): those that it has put off, which count as scheduled; and all that are ready, while the rate lets no call begin.';
COMMENT ON COLUMN mq_stats.wait_p50 IS 'Half of the handled messages waited at most so long from when they were due to when their handlers began.';

-- Numbers only, for programs that collect them. Further names share one row, so that the number of rows has a bound.
CREATE VIEW mq_metrics AS
  SELECT s.channel_name,
         sum(s.ready)::bigint AS ready, sum(s.scheduled)::bigint AS scheduled, sum(s.running)::bigint AS running,
         sum(s.throttled)::bigint AS throttled, sum(s.dead)::bigint AS dead, sum(s.paused::integer)::bigint AS paused,
         COALESCE(max(EXTRACT(epoch FROM s.oldest_ready)), 0)::double precision AS oldest_ready_seconds,
         sum(s.handled)::bigint AS handled_total, sum(s.failed)::bigint AS failed_total, sum(s.died)::bigint AS died_total,
         CASE WHEN s.channel_name IS NOT NULL THEN max(s.max_pending) END AS max_pending
    FROM (SELECT CASE WHEN row_number() OVER (ORDER BY c.channel_name COLLATE "C")
                           -- No such setting is known before the library is loaded.
                           <= COALESCE(NULLIF(current_setting('mq.metrics_channels', true), '')::integer, 1000)
                      THEN c.channel_name END AS channel_name,
                 c.ready, c.scheduled, c.running, c.throttled, c.dead, c.paused, c.oldest_ready, c.handled, c.failed, c.died, l.max_pending
            FROM mq_stats c LEFT JOIN mq_channel_limits l ON l.channel_name = c.channel_name) AS s
   GROUP BY s.channel_name;
COMMENT ON VIEW mq_metrics IS
  'What mq_stats shows, as numbers for monitoring: a row for each channel name, of mq.metrics_channels names at most; the row without a name is the sum of the others. Columns that end in _total are counters since mq_reset_stats(), the others gauges.';
COMMENT ON COLUMN mq_metrics.paused IS '1: the channel is paused; 0: it is not. In the row without a name: how many are.';
COMMENT ON COLUMN mq_metrics.oldest_ready_seconds IS 'For how long the oldest due message has been due, in seconds; 0: none is ready.';
COMMENT ON COLUMN mq_metrics.max_pending IS 'max_pending of mq_limit. NULL: there is none, or the row is that without a name.';

CREATE FUNCTION mq_channel_histograms(
  OUT channel_name text, OUT kind text, OUT le double precision, OUT count bigint, OUT sum double precision)
  RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_channel_histograms';
COMMENT ON FUNCTION mq_channel_histograms() IS 'How long messages waited and were handled, by channel name; for mq_histogram.';

CREATE VIEW mq_histogram AS
  SELECT h.channel_name, h.kind, h.le, h.count, h.sum FROM mq_channel_histograms() AS h;
COMMENT ON VIEW mq_histogram IS
  'How long messages waited and were handled since mq_reset_stats(), in cumulative buckets: 23 rows for each kind of each channel name that has handled messages, of mq.metrics_channels names at most; the rows without a name are the sum of the others.';
COMMENT ON COLUMN mq_histogram.kind IS 'handle: how long handlers took; the time of a batch is divided evenly among its messages. wait: from when messages were due to when their handlers began.';
COMMENT ON COLUMN mq_histogram.le IS 'The bound of the bucket in seconds: a power of two in microseconds; the last is Infinity.';
COMMENT ON COLUMN mq_histogram.count IS 'How many messages took less time than that; in the last bucket all.';
COMMENT ON COLUMN mq_histogram.sum IS 'How long all messages of the channel name took together, in seconds; the same in each of its rows.';

CREATE FUNCTION mq_reset_stats() RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_reset_stats';
COMMENT ON FUNCTION mq_reset_stats() IS 'Begins the totals of mq_stats anew, when the transaction commits.';

CREATE FUNCTION mq_worker_slots(OUT pid integer, OUT database text, OUT role oid, OUT state text,
                                OUT channel_name text, OUT message_id uuid, OUT since timestamptz, OUT handled bigint)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_worker_slots';
COMMENT ON FUNCTION mq_worker_slots() IS 'The workers of all databases, out of shared memory; for mq_workers.';

CREATE FUNCTION mq_telling_calls(OUT pid integer, OUT kind text, OUT database text, OUT channel_name text, OUT message_id uuid,
                                 OUT since timestamptz, OUT progress real, OUT note text)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_telling_calls';
COMMENT ON FUNCTION mq_telling_calls() IS 'The calls of all databases whose handlers have called mq_progress: of a worker, leased, or of mq_run; for mq_workers. note is for those who may read mq_msgs of this database, and for members of the role that the handler runs as.';

CREATE VIEW mq_workers AS
  SELECT w.pid, w.database, w.state, w.channel_name, w.message_id, w.since, w.handled, t.progress, t.note
    FROM mq_worker_slots() AS w LEFT JOIN mq_telling_calls() AS t ON t.pid = w.pid AND t.kind = 'worker'
   UNION ALL
  SELECT t.pid, t.database, t.kind, t.channel_name, t.message_id, t.since, NULL, t.progress, t.note
    FROM mq_telling_calls() AS t WHERE t.kind <> 'worker';
COMMENT ON COLUMN mq_workers.progress IS 'What the handler that runs has said with mq_progress, from 0 to 1; NULL: nothing.';
COMMENT ON COLUMN mq_workers.note IS 'The same in words. Only for those who may read mq_msgs of this database, and for members of the role that the handler runs as.';
COMMENT ON VIEW mq_workers IS
  'A row for each worker. state is waiting (for work), active (between messages), handling, settling (writing what has become of them), committing (which runs deferred triggers), or leaving: it only looks after leased calls that it began, and does not count towards mq.max_workers. A call outside of a worker''s process whose handler has called mq_progress has a row as well: leased, with the process of its session, or mq_run, with that of its caller. channel_name and message_id say what a worker handles, the first message if it is a batch. since: when it began to wait, its last handler began, it began to settle, or it started. handled: how many messages since it started.';

CREATE FUNCTION mq_service_state(OUT preloaded boolean, OUT launcher boolean, OUT served boolean, OUT out_of_slots boolean,
                                 OUT failing_role oid, OUT failed_starts integer)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_service_state';
COMMENT ON FUNCTION mq_service_state() IS 'What the launcher says of itself and this database; for mq_health().';

CREATE FUNCTION mq_enabled_state(OUT enabled boolean, OUT reason text)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_enabled_state';
COMMENT ON FUNCTION mq_enabled_state() IS 'Whether messages are handled in this database, and if not, why; for mq_health().';

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

CREATE FUNCTION mq_unsettled(OUT message_id uuid, OUT channel_name text, OUT error text, OUT until timestamptz, OUT times integer)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_unsettled';
COMMENT ON FUNCTION mq_unsettled() IS 'The last messages that a worker could not settle (remove, put off or move to mq_dead), why, until when they are put off, and how often; for mq_health().';

CREATE VIEW mq_horizon AS
  SELECT h.kind, h.name, h.pid, h.xmin, age(h.xmin) AS xids, h.since, clock_timestamp() - h.since AS held_for, h.detail
    FROM mq_horizon_holders() AS h
   ORDER BY age(h.xmin) DESC, h.since;
COMMENT ON VIEW mq_horizon IS
  'What holds back the oldest snapshot of this database, oldest first: rows that were deleted since cannot be vacuumed, and claims read past them. kind is session, replication slot, prepared transaction or standby; xids counts the transactions since; of a slot nobody knows since when.';
