-- mq_health(): why messages are not moving.

CREATE FUNCTION mq_health_of_server() RETURNS TABLE ("check" text, ok boolean, detail text)
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    WITH s AS (SELECT * FROM mq_service()),
         -- Read and planned once.
         activity AS MATERIALIZED (
           SELECT a.pid, a.datname, a.application_name, a.state, a.backend_type, a.wait_event, a.xact_start FROM pg_stat_activity a)
    SELECT 'server mode', s.mode = 'primary',
           CASE s.mode WHEN 'standby' THEN 'standby: messages are handled where they are sent; here nothing is until this server is promoted'
                       WHEN 'single-user' THEN 'single-user mode: no workers; CALL mq_run() does their work' END
      FROM s
    UNION ALL
    SELECT 'library preloaded', s.preloaded,
           CASE WHEN NOT s.preloaded THEN 'shared_preload_libraries does not name mq: no workers; CALL mq_run() does their work' END
      FROM s
    UNION ALL
    SELECT 'settings in force', pg_catalog.count(p.name) = 0, 'wait for a restart: ' || string_agg(p.name, ', ' ORDER BY p.name)
      FROM pg_settings p WHERE p.pending_restart AND p.name IN ('shared_preload_libraries', 'max_worker_processes', 'mq.max_databases')
    UNION ALL
    SELECT 'launcher runs', s.launcher OR s.mode <> 'primary',
           CASE WHEN NOT s.preloaded THEN 'library not preloaded'
                WHEN NOT s.launcher AND s.mode = 'primary' THEN 'it comes back after a second; if not, max_worker_processes = ' ||
                                         current_setting('max_worker_processes') || ' may be in use: see the server''s log' END
      FROM s
    UNION ALL
    SELECT 'database served', s.served OR NOT s.launcher,
           CASE WHEN s.launcher AND NOT s.served THEN COALESCE(
             (SELECT min(o.detail) FROM mq_obstacles() AS o WHERE o."check" = 'database served'),
             'the launcher has not looked at it yet: it does every ten seconds') END
      FROM s
    UNION ALL
    SELECT 'workers allowed', current_setting('mq.max_workers') <> '0',
           CASE WHEN current_setting('mq.max_workers') = '0' THEN 'mq.max_workers = 0' END
    UNION ALL
    SELECT c.name, pg_catalog.count(o.detail) = 0, mq_some(pg_catalog.array_agg(o.detail ORDER BY o.detail) FILTER (WHERE o.detail IS NOT NULL))
      FROM (VALUES ('worker slots'), ('workers start')) AS c (name) LEFT JOIN mq_obstacles() AS o ON o."check" = c.name
     GROUP BY c.name
    UNION ALL
    SELECT 'workers succeed', pg_catalog.count(k.part) = 0,
           mq_some(pg_catalog.array_agg(
             pg_catalog.format('%s %s since %s (%s times, the last with SQLSTATE %s: %s)',
                               CASE WHEN k.part = 'launcher' THEN 'the launcher'
                                    WHEN k.part = 'process' THEN 'each worker as ' || COALESCE((SELECT r.rolname::text FROM pg_roles r WHERE r.oid = k.role), 'the bootstrap superuser')
                                    ELSE pg_catalog.format('worker %s as %s', k.pid, COALESCE((SELECT r.rolname::text FROM pg_roles r WHERE r.oid = k.role), 'the bootstrap superuser')) END,
                               CASE k.part WHEN 'batches' THEN 'cannot handle messages'
                                           WHEN 'leased calls' THEN 'cannot look after leased handlers'
                                           WHEN 'sweep' THEN 'cannot look for what has expired, has been kept for long enough or wants to be put right'
                                           WHEN 'charges' THEN 'cannot charge messages whose calls ended their process'
                                           WHEN 'schedules' THEN 'cannot send what schedules ask for'
                                           WHEN 'process' THEN 'ends with an error, and another is started,'
                                           ELSE 'cannot start workers' END,
                               date_trunc('second', k.since), k.times, k.sqlstate, left(k.error, 400))
             ORDER BY k.since)) ||
           '; messages wait, no attempt is charged, and it is tried again every few seconds; mend what the error names: a trigger, rule, constraint or publication on mq''s tables, a right that was taken away, a setting, memory or disk space'
      FROM mq_failing_workers() AS k
    UNION ALL
    SELECT 'commits not waiting', pg_catalog.count(c.pid) = 0,
           pg_catalog.format('commits wait for a synchronous standby (synchronous_standby_names = %s): start it, or change the setting; of ', current_setting('synchronous_standby_names')) ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('process %s%s', c.pid, ' (' || c.backend_type || ')') ORDER BY c.backend_type = 'client backend', c.pid))
      FROM mq_waiting_commits() AS c WHERE EXISTS (SELECT FROM activity a WHERE a.wait_event = 'SyncRep')
    UNION ALL
    -- Who listens cannot be told from outside; who stays in a transaction holds the queue back if it does.
    SELECT 'NOTIFY queue', u.used <= 0.5::float8,
           CASE WHEN u.used > 0.5::float8 THEN
             pg_catalog.format('the server''s queue of notifications is %s %% full, since a session that listens stays in a transaction: ', (u.used * 100::float8)::integer) ||
             COALESCE((SELECT 'the oldest is of ' || mq_process(a.pid, a.application_name, a.state, a.backend_type) || ' in database ' || a.datname::text || mq_since(a.xact_start)
                         FROM activity a
                        WHERE a.backend_type = 'client backend' AND a.xact_start IS NOT NULL AND a.pid <> pg_backend_pid()
                        ORDER BY a.xact_start LIMIT 1) || '; end it', 'end that one') ||
             '; with mq.notify = auto nothing is added beyond 90 %, and consumers that listen find messages when they poll' END
      FROM (SELECT pg_catalog.pg_notification_queue_usage() AS used) AS u
     -- A standby has none.
     WHERE NOT pg_is_in_recovery()
    UNION ALL
    SELECT 'NOTIFY queue', true, NULL WHERE pg_is_in_recovery();
  END;
COMMENT ON FUNCTION mq_health_of_server() IS 'For mq_health(): its rows that read no table of mq.';

-- Of the advisory locks those of sends to ordered channels, and to channels with max_pending, see bgworker/pg/locks.hpp. Who has sent may also wait
-- for another transaction's rows elsewhere.
CREATE FUNCTION mq_lock_waits(OUT sends boolean, OUT who text, OUT since timestamptz) RETURNS SETOF record
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    WITH l AS MATERIALIZED (SELECT * FROM pg_locks),
         mine AS (SELECT d.objid AS oid, c.relname, c.relkind FROM pg_extension e
                    JOIN pg_depend d ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass::oid AND d.deptype = 'e'
                     AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass::oid AND d.refobjid = e.oid
                    JOIN pg_class c ON c.oid = d.objid
                   WHERE e.extname = 'mq')
    SELECT true, pg_catalog.format('process %s%s for %s, which %s', w.pid, mq_since(w.waitstart), CASE WHEN w.n <= 10 THEN mq_blockers(w.pid) END, w.what), w.waitstart
      FROM (SELECT a.pid, a.waitstart, row_number() OVER (ORDER BY a.waitstart) AS n,
                   CASE a.locktype WHEN 'advisory' THEN CASE WHEN a.objsubid IN (28025, 28026) THEN 'sends to the same channel with max_pending'
                                                             ELSE 'has appended to the same ordered channel' END
                                   WHEN 'relation' THEN 'has locked ' || (SELECT r.relname::text FROM pg_class r WHERE r.oid = a.relation)
                                   WHEN 'object' THEN 'has locked the extension'
                                   ELSE 'has sent with the same dedup_key, or holds rows that are wanted' END AS what
              FROM l a
             WHERE NOT a.granted AND a.waitstart < clock_timestamp() - interval '3 seconds'
               AND CASE a.locktype
                   WHEN 'advisory' THEN a.objsubid IN (28017, 28021, 28025, 28026)
                   WHEN 'relation' THEN a.mode IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')
                                        AND EXISTS (SELECT FROM mine LEFT JOIN pg_index i ON i.indrelid = mine.oid WHERE a.relation IN (mine.oid, i.indexrelid))
                   WHEN 'object' THEN a.classid = 'pg_catalog.pg_extension'::pg_catalog.regclass::oid AND a.objid = (SELECT e.oid FROM pg_extension e WHERE e.extname = 'mq')
                   WHEN 'transactionid' THEN EXISTS (SELECT FROM l h JOIN mine ON mine.oid = h.relation AND mine.relname = 'mq_msgs'
                                                      WHERE h.pid = a.pid AND h.granted AND h.locktype = 'relation' AND h.mode = 'RowExclusiveLock')
                   ELSE false END
               AND (a.locktype = 'transactionid' OR a.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
               AND NOT EXISTS (SELECT FROM mq_worker_slots() AS x WHERE x.pid = a.pid)
               AND NOT EXISTS (SELECT FROM mq_leased_calls() AS x WHERE x.pid = a.pid)) AS w
    UNION ALL
    SELECT false,
           pg_catalog.format('process %s, %s, for %s on %s, behind %s', w.pid,
             CASE WHEN c.handles THEN 'in its handler' ELSE 'which looks after the queue' END, w.mode,
             COALESCE(pg_catalog.quote_ident((SELECT r.relname FROM pg_catalog.pg_class r WHERE r.oid = w.relation)),
                      CASE WHEN w.locktype = 'object' AND w.database IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
                           THEN pg_catalog.pg_describe_object(w.classid, w.objid, w.objsubid) END,
                      w.locktype),
             mq_blockers(w.pid)),
           w.waitstart
      FROM (SELECT s.pid, s.state = 'handling' AS handles FROM mq_worker_slots() AS s WHERE s.database = current_database()
            UNION ALL SELECT k.pid, true FROM mq_leased_calls() AS k
            UNION ALL SELECT a.pid, false FROM pg_catalog.pg_stat_activity a WHERE a.backend_type = 'mq launcher') AS c
      JOIN l w ON w.pid = c.pid
     WHERE NOT w.granted AND w.waitstart < clock_timestamp() - interval '1 second';
  END;
COMMENT ON FUNCTION mq_lock_waits() IS 'Who waits for a lock that keeps messages from moving, sessions that send or those of mq, on what and behind whom, in words; for mq_health().';

CREATE FUNCTION mq_health_rows() RETURNS TABLE ("check" text, ok boolean, detail text)
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    WITH RECURSIVE
         -- Read and planned once, as are the calls.
         activity AS MATERIALIZED (
           SELECT a.pid, a.application_name, a.state, a.backend_type, a.wait_event, a.xact_start FROM pg_stat_activity a),
         calls AS MATERIALIZED (SELECT c.channel_name, c.pid, c.since FROM mq_running_calls() AS c),
         -- A look at the locks costs less than to plan mq_lock_waits().
         waits AS MATERIALIZED (
           SELECT w.sends, w.who, w.since FROM mq_lock_waits() AS w
            WHERE EXISTS (SELECT FROM pg_locks l WHERE NOT l.granted AND l.waitstart < clock_timestamp() - interval '1 second')),
         -- Handlers with the roles that they mean, as bgworker/queue/enabled.hpp tells.
         handler AS (
           SELECT h.channel_name, h.handler, h.mode, m.id IS NOT NULL AS is_here, h.run_as_oid IS DISTINCT FROM 0::pg_catalog.oid AS may_come,
                  r.oid AS role, COALESCE(r.rolname::text, h.run_as) AS run_as, r.rolcanlogin
             FROM mq_handlers h
             LEFT JOIN mq_enabled m ON m.id = h.enabled_id
             LEFT JOIN pg_roles r ON CASE WHEN m.id IS NOT NULL THEN r.oid = h.run_as_oid
                                          ELSE r.rolname = h.run_as AND h.run_as_oid IS DISTINCT FROM 0::pg_catalog.oid END),
         -- Channel names with messages to handle, by a skip scan.
         n (name) AS (
           SELECT (SELECT m.channel_name FROM mq_heads m
                    ORDER BY m.channel_name LIMIT 1)
           UNION ALL
           SELECT (SELECT m.channel_name FROM mq_heads m WHERE m.channel_name > n.name
                    ORDER BY m.channel_name LIMIT 1)
             FROM n WHERE n.name IS NOT NULL),
         -- Consumers outside the server may take their time.
         unhandled AS (
           SELECT n.name FROM n
            WHERE NOT EXISTS (SELECT FROM mq_handlers h WHERE h.channel_name = n.name)
              AND (SELECT m.attempt_at FROM mq_heads m WHERE m.channel_name = n.name
                    ORDER BY m.attempt_at LIMIT 1) <= now() - CASE WHEN mq_has_consumers() THEN interval '1 minute' ELSE interval '1 second' END),
         -- Messages that failed and wait for their retry, of the first that wait of each channel; mq_failures need not know of them.
         waiting AS (
           SELECT a.* FROM n
            CROSS JOIN LATERAL (
                   SELECT m.id, m.channel_name, m.channel_args, m.channel_key, m.seq, m.attempt, m.attempt_at, m.after_message_id, m.lease, m.commit_interval FROM mq_heads m
                    WHERE m.channel_name = n.name AND m.attempt_at > now() AND m.attempt_at < 'infinity'
                    ORDER BY m.attempt_at, m.seq LIMIT 200) AS a
            LIMIT 5000),
         failed AS (SELECT w.* FROM waiting w WHERE w.attempt > 0 AND w.lease IS NULL),
         failing AS (
           SELECT g.channel_name, g.messages, g.attempts, v.sqlstate
             FROM (SELECT f.channel_name, pg_catalog.count(*) AS messages, max(f.attempt) AS attempts, (pg_catalog.array_agg(f.id ORDER BY f.attempt DESC))[1] AS id
                     FROM failed f GROUP BY f.channel_name HAVING max(f.attempt) >= 3) AS g
             LEFT JOIN LATERAL (SELECT x.sqlstate FROM mq_failures x WHERE x.message_id = g.id ORDER BY x.failure_no + 0 DESC LIMIT 1) AS v ON true),
         -- Heads that others wait behind.
         retried AS (
           SELECT f.id AS message_id, f.channel_name, f.channel_args, f.attempt_at FROM failed f
            WHERE f.after_message_id = '00000000-0000-0000-0000-000000000000' AND f.attempt_at > now() + interval '5 seconds'
              AND EXISTS (SELECT FROM mq_msgs m WHERE m.channel_key = f.channel_key AND m.seq > f.seq AND m.after_message_id IS NOT NULL
                             AND m.channel_name = f.channel_name AND m.channel_args = f.channel_args)),
         -- Calls that go on though their time limit, and what they are given after it, is over.
         limits AS (
           SELECT h.channel_name, max(l.timeout + LEAST(GREATEST(l.timeout, interval '1 second'), interval '30 seconds')) AS most
             FROM mq_handlers h
            CROSS JOIN LATERAL (SELECT COALESCE(h.timeout, current_setting('mq.handler_timeout')::interval)) AS l (timeout)
            GROUP BY h.channel_name HAVING min(l.timeout) > interval '0'),
         overrunning AS (
           SELECT c.channel_name, c.pid, c.since
             FROM calls c
             JOIN limits l ON l.channel_name = c.channel_name
            WHERE c.since + l.most + interval '2 seconds' < clock_timestamp()),
         -- Messages whose consumers outside the server are gone: their leases ran out, and nobody has taken them since. Of the
         -- first of each channel.
         forsaken AS (
           SELECT n.name, pg_catalog.count(*) AS messages, min(a.attempt_at) AS since
             FROM n
            CROSS JOIN LATERAL (
                   SELECT m.attempt_at FROM mq_msgs m
                    WHERE m.channel_name = n.name AND m.lease IS NOT NULL AND m.lease <= 0 AND m.attempt_at < now() - interval '1 minute'
                    ORDER BY m.attempt_at LIMIT 1000) AS a
            WHERE NOT EXISTS (SELECT FROM mq_handlers h WHERE h.channel_name = n.name) AND NOT EXISTS (SELECT FROM mq_paused p WHERE p.channel_name = n.name)
            GROUP BY n.name),
         -- Workers that have been in one call for long, or with what follows it.
         sitting AS (
           SELECT w.channel_name, w.since FROM mq_worker_slots() AS w
            WHERE w.database = current_database() AND w.state IN ('handling', 'settling', 'committing') AND w.since < clock_timestamp() - interval '1 second'),
         -- Roles whose leased handlers have a call in each session that their workers may open.
         leased_full AS (
           SELECT c.role, pg_catalog.count(*) AS calls, min(c.since) AS since FROM mq_leased_calls() AS c
            GROUP BY c.role
           HAVING pg_catalog.count(*) >= current_setting('mq.leased_sessions')::bigint *
                  (SELECT pg_catalog.count(*) FROM mq_worker_slots() AS w WHERE w.database = current_database() AND w.role = c.role)
              AND (SELECT pg_catalog.count(*) FROM mq_worker_slots() AS w WHERE w.database = current_database() AND w.state <> 'leaving') >= current_setting('mq.max_workers')::bigint),
         -- Channels whose calls are as many as max_workers of their handlers allows, or max_running of mq_limit.
         full_channels AS (
           SELECT h.channel_name, h.most, r.since, h.limited
             FROM (SELECT l.channel_name, LEAST(min(l.max_workers), max(c.max_running)) AS most,
                          COALESCE(max(c.max_running) < min(l.max_workers), min(l.max_workers) IS NULL) AS limited
                     FROM mq_handlers l LEFT JOIN mq_channel_limits c ON c.channel_name = l.channel_name GROUP BY l.channel_name) AS h
             JOIN (SELECT x.channel_name, pg_catalog.count(*) AS calls, min(x.since) AS since
                     FROM (SELECT c.channel_name, c.since FROM calls c
                           UNION ALL
                           SELECT o.channel_name, NULL
                             FROM (SELECT DISTINCT m.channel_name, m.lease FROM mq_msgs m WHERE m.lease IS NOT NULL AND m.lease < 0 AND m.attempt_at > now()) AS o) AS x
                    GROUP BY x.channel_name) AS r ON r.channel_name = h.channel_name
            WHERE r.calls >= h.most AND COALESCE(r.since < clock_timestamp() - interval '1 second', true)),
         -- Message names that no handler of their channel takes, though it has some; of the first that wait of each channel.
         unnamed AS (
           SELECT DISTINCT n.name AS channel_name, a.message_name AS name
             FROM n
            CROSS JOIN LATERAL (
                    SELECT m.message_name FROM mq_heads m
                     WHERE m.channel_name = n.name AND m.attempt_at = 'infinity' AND m.due_at IS NULL
                     ORDER BY m.attempt_at, m.seq LIMIT 1000) AS a
            WHERE EXISTS (SELECT FROM mq_handlers h WHERE h.channel_name = n.name)
              AND NOT EXISTS (SELECT FROM mq_handlers h WHERE h.channel_name = n.name AND (h.message_name IS NULL OR h.message_name = a.message_name))),
         -- Messages that wait for others which are not pending, or for none; of the first rows.
         waits_for_none AS (
           SELECT w.channel_name, pg_catalog.count(DISTINCT w.id) AS messages
             FROM (SELECT m.channel_name, m.id
                     FROM (SELECT r.dependent, r.prerequisite FROM mq_prerequisites r LIMIT 50000) AS q
                     JOIN mq_msgs m ON m.id = q.dependent AND m.due_at IS NOT NULL
                    WHERE NOT EXISTS (SELECT FROM mq_msgs o WHERE o.id = q.prerequisite AND o.attempt_at IS NOT NULL)
                   UNION ALL
                   SELECT n.name, a.id
                     FROM n
                    CROSS JOIN LATERAL (
                            SELECT m.id, m.due_at FROM mq_heads m
                             WHERE m.channel_name = n.name AND m.attempt_at = 'infinity'
                             ORDER BY m.attempt_at, m.seq LIMIT 1000) AS a
                    WHERE a.due_at IS NOT NULL AND NOT EXISTS (SELECT FROM mq_prerequisites q WHERE q.dependent = a.id)) AS w
            GROUP BY w.channel_name),
         -- Channels whose messages have been due for a while, if not all have one priority.
         late AS (
           SELECT n.name, o.attempt_at
             FROM n CROSS JOIN LATERAL (
                    SELECT m.attempt_at FROM mq_heads m
                     WHERE m.channel_name = n.name
                     ORDER BY m.attempt_at LIMIT 1) AS o
            WHERE o.attempt_at < now() - interval '2 seconds' AND (SELECT min(h.priority) < max(h.priority) FROM mq_handlers h)
              AND NOT EXISTS (SELECT FROM mq_paused p WHERE p.channel_name = n.name)),
         uncommitted AS (
           SELECT pg_catalog.count(*) AS messages, min(u.attempt_at) AS until
             FROM (SELECT m.attempt_at FROM mq_msgs m WHERE m.commit_interval IS NOT NULL AND m.attempt_at > now()
                    ORDER BY m.attempt_at LIMIT 10000) AS u),
         -- Neither leased nor two-phase; of the first 200 of each channel.
         later AS (
           SELECT g.name, g.attempt_at
             FROM (SELECT w.channel_name AS name, min(w.attempt_at) AS attempt_at FROM waiting w
                    WHERE w.lease IS NULL AND w.commit_interval IS NULL GROUP BY w.channel_name) AS g
            WHERE NOT EXISTS (SELECT FROM mq_heads m WHERE m.channel_name = g.name AND m.attempt_at <= now()))
    SELECT 'database enabled', e.enabled, e.reason FROM mq_enabled_state() e
    UNION ALL
    SELECT 'handlers enabled', pg_catalog.count(h.handler) = 0,
           'registered in another database, so not called here: ' ||
           mq_some(pg_catalog.array_agg(h.channel_name || ' ' || h.handler ORDER BY h.channel_name)) ||
           '; SELECT mq_enable() takes them over'
      FROM handler h WHERE NOT h.is_here AND h.role IS NOT NULL AND EXISTS (SELECT FROM mq_enabled)
    UNION ALL
    SELECT 'workers free', NOT b.none,
           CASE WHEN b.none THEN
             pg_catalog.format('messages are due, and each of the mq.max_workers = %s workers sits in a call: %s; raise mq.max_workers, register long handlers with mode => ''leased'', or give them a smaller max_workers',
                               current_setting('mq.max_workers'),
                               mq_some(pg_catalog.array_agg(pg_catalog.format('%s since %s', y.channel_name, date_trunc('second', y.since)) ORDER BY y.since))) END
      FROM (SELECT CASE WHEN pg_catalog.count(*) >= current_setting('mq.max_workers')::int AND pg_catalog.count(*) > 0
                        THEN EXISTS (SELECT FROM mq_channel_stats() AS c
                                      WHERE c.ready > 0 AND NOT c.paused AND EXISTS (SELECT FROM mq_handlers h WHERE h.channel_name = c.channel_name))
                        ELSE false END AS none
              FROM sitting) b
      LEFT JOIN sitting y ON b.none
     GROUP BY b.none
    UNION ALL
    SELECT 'batches end', pg_catalog.count(w.pid) = 0,
           'workers take long with what follows the calls of handlers: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format(
             CASE w.state WHEN 'committing' THEN 'worker %s commits since %s%s' ELSE 'worker %s settles since %s%s' END,
             w.pid, date_trunc('second', w.since), COALESCE(' what handlers of ' || w.channel_name || ' did', '')) ORDER BY w.pid)) ||
           '; time limits do not hold for that: a deferred trigger or constraint of a table that handlers write, a trigger on a table of mq, or a slow disk; pg_cancel_backend ends it, and it is tried again, so mend the trigger first'
      FROM mq_worker_slots() AS w
     WHERE w.database = current_database() AND w.state IN ('settling', 'committing') AND w.since < clock_timestamp() - interval '1 second'
       AND NOT EXISTS (SELECT FROM activity a WHERE a.pid = w.pid AND a.wait_event = 'SyncRep')
    UNION ALL
    SELECT 'leased sessions free', pg_catalog.count(f.role) = 0,
           'messages are due, and each session that workers may open for leased handlers sits in a call: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('as %s %s calls, the longest since %s', f.role::pg_catalog.regrole, f.calls, date_trunc('second', f.since)) ORDER BY f.since)) ||
           pg_catalog.format('; raise mq.leased_sessions = %s or mq.max_workers = %s, or have the handlers take less time', current_setting('mq.leased_sessions'), current_setting('mq.max_workers'))
      FROM leased_full f
     WHERE EXISTS (SELECT FROM mq_handlers h JOIN mq_channel_stats() AS c ON c.channel_name = h.channel_name
                    WHERE h.mode = 'leased' AND h.run_as_oid = f.role AND c.ready > 0 AND NOT c.paused
                      AND NOT EXISTS (SELECT FROM full_channels u WHERE u.channel_name = h.channel_name))
    UNION ALL
    SELECT 'messages settled', pg_catalog.count(u.message_id) = 0,
           'these are handled, but the result cannot be written, so they are put off and tried again: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s of %s: %s', u.message_id, u.channel_name, u.error) ORDER BY u.until)) ||
           '; mend what the error names, or mq_delete them'
      FROM mq_unsettled() AS u
     WHERE u.until > clock_timestamp() - interval '1 minute' AND EXISTS (SELECT FROM mq_msgs m WHERE m.id = u.message_id)
    UNION ALL
    SELECT 'handlers registered', EXISTS (SELECT FROM mq_handlers),
           CASE WHEN NOT EXISTS (SELECT FROM mq_handlers) THEN 'none: mq_register_handler one; until then messages are only for consumers outside the server' END
    UNION ALL
    SELECT 'channels handled', pg_catalog.count(u.name) = 0, 'due messages, but no handler, in: ' || mq_some(pg_catalog.array_agg(u.name ORDER BY u.name)) || '; mq_register_handler, or a consumer outside the server, takes them'
      FROM unhandled u
    UNION ALL
    SELECT 'subscriptions handled', pg_catalog.count(u.channel_name) = 0,
           'channels have subscribed to topics, but nobody takes their messages: ' ||
           mq_some(pg_catalog.array_agg(u.channel_name ORDER BY u.channel_name)) ||
           '; mq_register_handler, a consumer outside the server, or mq_unsubscribe'
      FROM (SELECT DISTINCT s.channel_name FROM mq_subscribers s
             WHERE NOT EXISTS (SELECT FROM mq_handlers h WHERE h.channel_name = s.channel_name) AND NOT mq_has_consumers()) u
    UNION ALL
    SELECT 'message names handled', pg_catalog.count(u.name) = 0,
           'messages wait since no handler of their channel takes their name: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s "%s"', u.channel_name, u.name) ORDER BY u.channel_name, u.name)) ||
           '; mq_register_handler one for the name, or for all names'
      FROM unnamed u
    UNION ALL
    SELECT 'prerequisites', pg_catalog.count(w.channel_name) = 0,
           'messages wait for others that are not pending any more, since somebody has removed those by hand: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s of %s', w.messages, w.channel_name) ORDER BY w.channel_name)) ||
           '; an idle worker or CALL mq_run() finds them, 500 at a time'
      FROM waits_for_none w
    UNION ALL
    SELECT 'channels not paused', pg_catalog.count(p.channel_name) = 0, 'paused: ' || mq_some(pg_catalog.array_agg(p.channel_name ORDER BY p.channel_name)) || '; mq_resume lets a channel go on'
      FROM mq_paused p
    UNION ALL
    SELECT 'limits reached', pg_catalog.count(u.channel_name) = 0,
           'sends fail with 53400, since these channels have as many messages as max_pending allows: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s (max_pending %s)', u.channel_name, c.max_pending) ORDER BY u.channel_name)) ||
           '; have them handled faster, or raise max_pending with mq_limit'
      FROM mq_limit_use() AS u JOIN mq_channel_limits c ON c.channel_name = u.channel_name
     WHERE u.pending + COALESCE(u.sending, 0::bigint) >= c.max_pending
    UNION ALL
    SELECT 'limits kept', x.problem IS NULL, x.problem
      FROM (SELECT CASE WHEN NOT s.preloaded AND pg_catalog.count(c.channel_name) > 0
                        THEN 'messages are left alone, since rate and max_running_per_args of mq_limit cannot be kept without shared memory, in: ' ||
                             mq_some(pg_catalog.array_agg(c.channel_name ORDER BY c.channel_name)) || '; add mq to shared_preload_libraries and restart the server'
                        WHEN t.at IS NOT NULL
                        THEN pg_catalog.format('some messages have waited for longer than rate and max_running_per_args ask for, the last time at %s, since shared memory has no room for more channels whose limits are in use', date_trunc('second', t.at)) END AS problem
              FROM mq_service_state() AS s CROSS JOIN mq_limits_without_room() AS t (at)
              LEFT JOIN mq_channel_limits c ON c.rate IS NOT NULL OR c.max_running_per_args IS NOT NULL
             GROUP BY s.preloaded, t.at) AS x
    UNION ALL
    SELECT 'handlers'' functions', pg_catalog.count(h.handler) = 0,
           'gone: ' || mq_some(pg_catalog.array_agg(h.channel_name || ' ' || h.handler ORDER BY h.channel_name)) || '; create the function, or mq_register_handler another, or the same again if it or its schema was renamed'
      FROM mq_handlers h WHERE mq_handler_function(h.handler) IS NULL
    UNION ALL
    SELECT 'handlers agree', pg_catalog.count(c.channel_name) = 0,
           'different mode or run_as for one channel, which is left alone: ' || mq_some(pg_catalog.array_agg(c.channel_name ORDER BY c.channel_name)) ||
           '; mq_unregister_handler those that are wrong'
      FROM (SELECT h.channel_name FROM handler h GROUP BY h.channel_name
             HAVING min(h.mode) <> max(h.mode) OR min(COALESCE(h.role, 0::pg_catalog.oid)) <> max(COALESCE(h.role, 0::pg_catalog.oid))) c
    UNION ALL
    SELECT 'handlers may be called', pg_catalog.count(h.handler) = 0,
           'by the role that they run as, and their owners are members of it; not: ' ||
           mq_some(pg_catalog.array_agg(h.channel_name || ' ' || h.handler ORDER BY h.channel_name))
      FROM handler h WHERE mq_handler_trouble(h.handler, h.role::pg_catalog.regrole, h.mode) IS NOT NULL
    UNION ALL
    -- A worker is connected as the role; only newer servers let it without LOGIN.
    SELECT 'handlers'' roles', pg_catalog.count(h.run_as) = 0,
           'gone, or without LOGIN: ' ||
           mq_some(pg_catalog.array_agg(h.channel_name || ' runs as ' || h.run_as ||
                                        CASE WHEN h.role IS NULL AND NOT h.is_here AND h.may_come THEN ' (comes from another database: CREATE ROLE, then SELECT mq_enable())' ELSE '' END
                                        ORDER BY h.channel_name)) ||
           '; mq_register_handler with another run_as, or ALTER ROLE ... LOGIN'
      FROM handler h
     WHERE h.role IS NULL OR NOT (h.rolcanlogin OR current_setting('server_version_num')::int >= 170000)
    UNION ALL
    SELECT 'leased connections', pg_catalog.count(r.error) = 0, mq_some(pg_catalog.array_agg(pg_catalog.format('as %s: %s', r.role::pg_catalog.regrole, r.error))) ||
           '; nothing is charged meanwhile: raise max_connections or lower mq.leased_sessions where there is no room, and see Troubleshooting in the README for pg_hba.conf and mq.leased_conninfo'
      FROM mq_connection_refusals() r
    UNION ALL
    SELECT 'channels not blocked', pg_catalog.count(m.id) = 0, 'blocked by a dead message: ' || mq_some(pg_catalog.array_agg(DISTINCT m.channel_name)) || '; mq_redrive sends it again, mq_delete goes on without it'
      FROM mq_msgs m WHERE m.attempts <= 0 AND m.attempt_at IS NULL
    UNION ALL
    SELECT 'senders not waiting', pg_catalog.count(w.who) = 0,
           'sessions that send wait for others: ' || mq_some(pg_catalog.array_agg(w.who ORDER BY w.since)) || '; end that transaction'
      FROM waits w WHERE w.sends
    UNION ALL
    SELECT 'clock', pg_catalog.count(f.name) = 0,
           'set back since messages were sent, in: ' || mq_some(pg_catalog.array_agg(f.name || ' (at ' || date_trunc('second', f.created_at)::text || ')' ORDER BY f.name)) ||
           '; what was due then is made due within mq.poll_interval, what was scheduled waits for its time'
      FROM (SELECT n.name, max(o.created_at) AS created_at
              FROM n CROSS JOIN LATERAL (
                     SELECT m.created_at FROM mq_heads m
                      WHERE m.channel_name = n.name AND m.attempt_at > now()
                      ORDER BY m.attempt_at LIMIT 100) AS o
             WHERE o.created_at > clock_timestamp() + interval '1 second'
             GROUP BY n.name) AS f
    UNION ALL
    SELECT 'horizon', pg_catalog.count(h.kind) = 0,
           'held for 10 minutes, or for a million transactions, by: ' || mq_some(pg_catalog.array_agg(h.kind || ' ' || h.name ORDER BY h.xids DESC)) || '; see mq_horizon: end it, or claims and VACUUM slow down'
      FROM (SELECT o.kind, o.name, age(o.xmin) AS xids, clock_timestamp() - o.since AS held_for FROM mq_horizon_holders() AS o) AS h WHERE h.held_for > interval '10 minutes' OR h.xids > 1000000
    UNION ALL
    SELECT 'handlers succeed', pg_catalog.count(f.channel_name) = 0,
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s (%s messages wait for their retry, one after %s failures%s)', f.channel_name, f.messages, f.attempts,
                                                          ', the last with SQLSTATE ' || f.sqlstate)
                             ORDER BY f.channel_name)) ||
           ': see mq_failures; mend the handler, and mq_pause the channel if its messages should not use up their attempts meanwhile'
      FROM failing f
    UNION ALL
    SELECT 'ordered channels move', pg_catalog.count(r.message_id) = 0,
           'messages wait behind one that failed and waits for its retry: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s%s until %s', r.channel_name, ' ' || nullif(r.channel_args, ''), date_trunc('second', r.attempt_at))
                             ORDER BY r.channel_name, r.channel_args)) ||
           '; see mq_failures; mq_delete the message to go on without it'
      FROM retried r
    UNION ALL
    SELECT 'time limits', pg_catalog.count(o.pid) = 0,
           'a handler ignores that its time is over: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s in process %s since %s', o.channel_name, o.pid, date_trunc('second', o.since)) ORDER BY o.since)) ||
           '; it loops or waits without a look at interrupts; only the end of that process ends it, and kill -9 restarts the server'
      FROM overrunning o
    UNION ALL
    SELECT 'cancels heeded', pg_catalog.count(x.pid) = 0,
           'a handler goes on though its message is cancelled: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s in process %s since %s', x.channel_name, x.pid, date_trunc('second', x.since)) ORDER BY x.since)) ||
           '; what it writes is rolled back when it ends; it catches the cancel, or loops or waits without a look at interrupts: its time limit ends it, or else only the end of that process, and kill -9 restarts the server'
      FROM (SELECT c.pid, c.since, COALESCE(c.channel_name, s.channel_name) AS channel_name
              FROM mq_cancelled_calls() AS c LEFT JOIN mq_worker_slots() AS s ON s.pid = c.pid
             WHERE c.since < clock_timestamp() - interval '2 seconds') AS x
    UNION ALL
    SELECT 'leases of consumers', pg_catalog.count(f.name) = 0,
           'leases of consumers outside the server ran out, and nobody has taken the messages since, in: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s (%s%s)', f.name, CASE WHEN f.messages = 1000 THEN 'more than 999' ELSE f.messages::text END, mq_since(f.since)) ORDER BY f.since)) ||
           '; the consumer has ended, or takes longer than its lease: start one, and have it call mq_extend'
      FROM forsaken f
    UNION ALL
    SELECT 'schedules sent', pg_catalog.count(t.name) = 0,
           'their time has come, and nothing is sent: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s (since %s%s)', t.name, date_trunc('second', t.next_at),
                                                          CASE WHEN m.id IS NULL THEN '; made in another database, so left alone here: CREATE ROLE ' || pg_catalog.quote_ident(t.run_as) || ', then SELECT mq_enable()'
                                                               WHEN t.failures > 0 THEN pg_catalog.format('; failed %s times, the last with SQLSTATE %s', t.failures, t.sqlstate) END)
                             ORDER BY t.next_at, t.name)) ||
           '; of those that failed mq_timetable.error says why, and they are tried again within 5 minutes; the others wait for a worker or for CALL mq_run()'
      FROM mq_timetable t LEFT JOIN mq_enabled m ON m.id = t.enabled_id WHERE t.next_at < now() - interval '5 seconds'
    UNION ALL
    SELECT 'schedules handled', pg_catalog.count(t.name) = 0,
           'schedules send to a channel where no handler takes the message: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s to %s', t.name, t.channel_name) ORDER BY t.name)) ||
           '; mq_register_handler, or a consumer outside the server, takes them'
      FROM mq_timetable t
     WHERE NOT EXISTS (SELECT FROM mq_handlers h WHERE h.channel_name = t.channel_name AND COALESCE(h.message_name, t.message_name, t.channel_name) = COALESCE(t.message_name, t.channel_name))
       AND NOT mq_has_consumers()
    UNION ALL
    SELECT 'messages not locked', pg_catalog.count(h.who) = 0,
           'due messages wait for the end of a transaction that has locked their rows: ' || mq_some(pg_catalog.array_agg(h.who ORDER BY h.who)) ||
           '; the others are handled meanwhile; end that transaction, that of a process for instance with pg_terminate_backend'
      FROM (SELECT pg_catalog.format('%s of %s by %s', h.messages, h.channel_name,
                     CASE WHEN h.pid = 0 THEN mq_prepared(h.prepared)
                          ELSE mq_process(h.pid, a.application_name, a.state, a.backend_type) || mq_since(a.xact_start) END) AS who
              FROM mq_row_holders() AS h LEFT JOIN activity a ON a.pid = h.pid
             -- Either may have ended meanwhile. Those who handle messages have them locked, too. pg_stat_activity tells nothing
             -- of sessions with track_activities = off, and of others' only a superuser and pg_read_all_stats.
             WHERE CASE WHEN h.pid = 0 THEN EXISTS (SELECT FROM pg_prepared_xacts x WHERE x.transaction = h.prepared)
                        ELSE a.pid IS NOT NULL AND COALESCE(a.xact_start < clock_timestamp() - interval '2 seconds', true)
                             AND NOT EXISTS (SELECT FROM mq_worker_slots() AS x WHERE x.pid = h.pid) END) AS h
    UNION ALL
    SELECT 'workers do not wait for locks', pg_catalog.count(w.who) = 0,
           'a worker, or a session of a leased handler, waits for a lock: ' || mq_some(pg_catalog.array_agg(w.who ORDER BY w.who)) ||
           '; it goes on when the transaction of the other ends'
      FROM waits w WHERE NOT w.sends
    UNION ALL
    -- So it is meant to be, but for a minute.
    SELECT 'priorities', pg_catalog.count(d.name) FILTER (WHERE d.attempt_at < now() - interval '1 minute') = 0,
           'messages wait since channels with a greater priority have due ones: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s (priority %s%s) behind %s (priority %s)', d.name, g.own_priority, mq_since(d.attempt_at), g.preferred, g.priority) ORDER BY d.attempt_at, d.name)) ||
           '; mq_register_handler sets the priority of a channel'
      FROM late d JOIN mq_preferred((SELECT pg_catalog.array_agg(l.name) FROM late l)) AS g ON g.channel_name = d.name
    UNION ALL
    -- These are as they should be, and say why nothing is handled all the same.
    SELECT 'calls limited', true,
           'messages wait since as many calls run as max_workers of their handlers, or max_running of mq_limit, allows, in: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s (%s %s%s)', f.channel_name, CASE WHEN f.limited THEN 'max_running' ELSE 'max_workers' END,
                                                          f.most, COALESCE(', the longest since ' || date_trunc('second', f.since)::text, ', of consumers outside the server')) ORDER BY f.channel_name))
      FROM full_channels f
     WHERE EXISTS (SELECT FROM mq_channel_stats() AS c WHERE c.channel_name = f.channel_name AND c.ready > 0)
    UNION ALL
    SELECT 'calls throttled', true,
           'messages wait since rate or max_running_per_args of mq_limit lets no more calls begin, in: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s (%s of them)', t.channel_name, t.throttled) ORDER BY t.channel_name))
      FROM (-- As mq_stats has it, of which no lock must stop this.
            SELECT c.channel_name, (SELECT pg_catalog.count(*) FROM mq_msgs m WHERE m.channel_name = c.channel_name AND m.throttled_at IS NOT NULL)
                                     + CASE WHEN r.channel_name IS NOT NULL AND COALESCE(r.ready, 0) = 0
                                            THEN (SELECT s.ready FROM mq_channel_stats() AS s WHERE s.channel_name = c.channel_name) ELSE 0 END AS throttled
              FROM mq_channel_limits c LEFT JOIN mq_rate_state() AS r ON r.channel_name = c.channel_name
             WHERE c.rate IS NOT NULL OR c.max_running_per_args IS NOT NULL) AS t
     WHERE t.throttled > 0
    UNION ALL
    SELECT 'uncommitted messages', true,
           CASE WHEN u.messages > 0 THEN
             pg_catalog.format('%s two-phase messages wait for mq_commit; without that the first is removed at %s', u.messages, date_trunc('second', u.until)) END
      FROM uncommitted u
    UNION ALL
    SELECT 'scheduled messages', true,
           'nothing is due yet in: ' || mq_some(pg_catalog.array_agg(pg_catalog.format('%s (next at %s)', l.name, date_trunc('second', l.attempt_at)) ORDER BY l.name))
      FROM later l;
  END;
COMMENT ON FUNCTION mq_health_rows() IS 'For mq_health(): its rows while all tables can be read.';

-- mq_health_rows() is planned only when it is called: it would wait for locked tables. Many small parts look costly
-- together, but compiling them takes longer than all else.
CREATE FUNCTION mq_health() RETURNS TABLE ("check" text, ok boolean, detail text)
  LANGUAGE sql VOLATILE SECURITY DEFINER SET jit = off
  BEGIN ATOMIC
    -- A look at the locks costs less than to plan mq_locked_tables().
    WITH l AS MATERIALIZED (
           SELECT pg_catalog.array_agg(t) AS tables FROM mq_locked_tables() AS t
            WHERE EXISTS (SELECT FROM pg_locks k WHERE k.mode = 'AccessExclusiveLock' AND k.pid IS DISTINCT FROM pg_backend_pid()))
    SELECT 'tables readable', l.tables IS NULL,
           mq_some(l.tables) || '; messages wait for that, and no more can be told of them meanwhile: end that transaction'
      FROM l
    UNION ALL
    SELECT r."check", r.ok, r.detail FROM mq_health_of_server() AS r
    UNION ALL
    SELECT r."check", r.ok, r.detail FROM mq_health_rows() AS r WHERE EXISTS (SELECT FROM l WHERE l.tables IS NULL);
  END;
COMMENT ON FUNCTION mq_health() IS 'Why messages are not moving: a row for each thing that can be in the way, ok or not, with what it is.';
