-- mq_why(): why one message is where it is; and what it shares with mq_health().

-- Strict: its callers have no texts as a rule, and it would be planned each time.
CREATE FUNCTION mq_some(texts text[]) RETURNS text
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
  RETURN (SELECT string_agg(left(t.text, 400), ', ' ORDER BY t.n) FILTER (WHERE t.n <= 10) ||
                 CASE WHEN pg_catalog.count(*) > 10 THEN ' and ' || (pg_catalog.count(*) - 10)::text || ' more' ELSE '' END
            FROM pg_catalog.unnest(texts) WITH ORDINALITY AS t (text, n));
COMMENT ON FUNCTION mq_some(text[]) IS 'The first ten of the texts, and how many more there are; for mq_health().';

CREATE FUNCTION mq_prepared(transaction xid) RETURNS text
  LANGUAGE sql STABLE
  RETURN COALESCE((SELECT pg_catalog.format('prepared transaction %L (COMMIT PREPARED %L or ROLLBACK PREPARED %L ends it)', x.gid, x.gid, x.gid)
                     FROM pg_prepared_xacts x WHERE x.transaction = mq_prepared.transaction),
                  'a prepared transaction');
COMMENT ON FUNCTION mq_prepared(xid) IS 'What to call a prepared transaction, and how to end it; for mq_health() and mq_why().';

-- What pg_stat_activity does not tell is left out.
CREATE FUNCTION mq_process(pid integer, application_name text, state text, backend_type text) RETURNS text
  LANGUAGE sql STABLE
  RETURN CASE WHEN backend_type = 'startup' THEN 'the replay of a transaction of the primary'
              ELSE pg_catalog.format('process %s', pid) ||
                   COALESCE(' (' || nullif(pg_catalog.concat_ws(', ', COALESCE(nullif(application_name, ''), nullif(backend_type, 'client backend')), state), '') || ')', '') END;
COMMENT ON FUNCTION mq_process(integer, text, text, text) IS 'What to call a process; for mq_health() and mq_why().';

CREATE FUNCTION mq_since(at timestamptz) RETURNS text
  LANGUAGE sql STABLE
  RETURN COALESCE(' since ' || date_trunc('second', at)::text, '');
COMMENT ON FUNCTION mq_since(timestamptz) IS 'Since when something is so, if that is known; for mq_health() and mq_why().';

CREATE FUNCTION mq_blockers(waiting integer) RETURNS text
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    WITH l AS MATERIALIZED (SELECT * FROM pg_locks),
         w AS (SELECT * FROM l WHERE l.pid = waiting AND NOT l.granted LIMIT 1),
         same AS (SELECT l.pid, l.granted, l.mode = w.mode AS alike, l.virtualtransaction
                    FROM w JOIN l ON (l.locktype, l.database, l.relation, l.page, l.tuple, l.transactionid, l.virtualxid, l.classid, l.objid, l.objsubid) IS NOT DISTINCT FROM
                                     (w.locktype, w.database, w.relation, w.page, w.tuple, w.transactionid, w.virtualxid, w.classid, w.objid, w.objsubid))
    SELECT COALESCE(string_agg(DISTINCT b.name, ' and '), 'one that has ended')
      FROM (SELECT mq_process(a.pid, a.application_name, a.state, a.backend_type) AS name
              FROM (SELECT DISTINCT u.pid FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids(waiting)) AS u (pid)) AS u
              JOIN pg_stat_activity a ON a.pid = u.pid
             -- Those who wait for the same before it are not in the way themselves.
             WHERE NOT EXISTS (SELECT FROM same o WHERE o.pid = u.pid AND NOT o.granted AND o.alike)
            UNION ALL
            SELECT mq_prepared(t.transactionid)
              FROM same g JOIN l t ON t.locktype = 'transactionid' AND t.pid IS NULL AND t.virtualtransaction = g.virtualtransaction
             WHERE g.granted AND g.pid IS NULL) AS b;
  END;
COMMENT ON FUNCTION mq_blockers(integer) IS 'Who holds the lock that a process waits for, in words; for mq_health().';

-- Reading a table locks its indexes, too. Not who vacuums: autovacuum locks a table for a moment to give back its end.
CREATE FUNCTION mq_locked_tables() RETURNS SETOF text
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    SELECT pg_catalog.format(CASE WHEN g.granted AND g.tables > 1 THEN '%s are locked by '
                                  WHEN g.granted THEN '%s is locked by '
                                  ELSE 'whoever would read %s waits behind the ALTER, VACUUM FULL, REINDEX or LOCK of ' END,
                             CASE WHEN g.tables > 1 THEN g.tables::text || ' tables of mq' ELSE COALESCE(g.of_table, g.of_index) END) ||
           CASE WHEN g.pid IS NULL
                THEN mq_prepared((SELECT t.transactionid FROM pg_locks t
                                   WHERE t.locktype = 'transactionid' AND t.pid IS NULL AND t.virtualtransaction = g.virtualtransaction LIMIT 1))
                -- On a standby nobody else can have such a lock.
                ELSE mq_process(g.pid, a.application_name, a.state, CASE WHEN pg_is_in_recovery() THEN 'startup' ELSE a.backend_type END) ||
                     mq_since(COALESCE(g.waitstart, a.xact_start)) END
      FROM (SELECT l.granted, l.pid, l.virtualtransaction, min(l.waitstart) AS waitstart, pg_catalog.count(DISTINCT c.oid) AS tables,
                   min(r.name) FILTER (WHERE r.oid = c.oid) AS of_table, min(r.name) FILTER (WHERE r.oid <> c.oid) AS of_index
              FROM pg_extension e
              JOIN pg_depend d ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass::oid AND d.deptype = 'e'
               AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass::oid AND d.refobjid = e.oid
              JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'r'
             CROSS JOIN LATERAL (
                     SELECT c.oid, c.relname::text
                      UNION ALL
                     SELECT i.indexrelid, pg_catalog.format('%s, an index of %s,', n.relname, c.relname)
                       FROM pg_index i JOIN pg_class n ON n.oid = i.indexrelid WHERE i.indrelid = c.oid) AS r (oid, name)
              JOIN pg_locks l ON l.relation = r.oid
             WHERE e.extname = 'mq' AND l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.pid IS DISTINCT FROM pg_backend_pid()
               AND l.database = (SELECT b.oid FROM pg_database b WHERE b.datname = current_database())
             GROUP BY l.granted, l.pid, l.virtualtransaction) AS g
      LEFT JOIN pg_stat_activity a ON a.pid = g.pid
     WHERE a.backend_type IS DISTINCT FROM 'autovacuum worker';
  END;
COMMENT ON FUNCTION mq_locked_tables() IS 'Which of mq''s tables and their indexes nobody can read now, and for whom; for mq_health() and mq_why(), which would wait for them.';

-- Since when is known of workers. Of others it is known since when their transactions are open, and while standbys enough are
-- connected a commit waits for each now and then.
CREATE FUNCTION mq_waiting_commits(OUT pid integer, OUT backend_type text)
  RETURNS SETOF record LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    SELECT a.pid, a.backend_type FROM pg_stat_activity a
      LEFT JOIN mq_worker_slots() AS w ON w.pid = a.pid AND w.state = 'committing'
     WHERE a.wait_event = 'SyncRep' AND a.datname = current_database()
       AND COALESCE(COALESCE(w.since, a.xact_start) < clock_timestamp() -
                    CASE WHEN w.since IS NOT NULL OR
                              (SELECT pg_catalog.count(*) FROM pg_stat_replication r WHERE r.sync_state IN ('sync', 'quorum'))
                              < COALESCE((pg_catalog.regexp_match(current_setting('synchronous_standby_names'), '^\s*(?:(?:first|any)\s+)?(\d+)\s*\(', 'i'))[1]::bigint, 1)
                         THEN interval '1 second' ELSE interval '10 seconds' END, true);
  END;
COMMENT ON FUNCTION mq_waiting_commits() IS 'The sessions of this database whose commits wait for a synchronous standby; for mq_health() and mq_why().';

CREATE FUNCTION mq_row_holders(OUT pid integer, OUT prepared xid, OUT channel_name text, OUT messages bigint)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_row_holders';
COMMENT ON FUNCTION mq_row_holders() IS 'Which transactions have locked messages that are due, by the process id, or (pid 0) the transaction id of a prepared transaction; of each channel the 100 oldest are looked at. For mq_health().';

CREATE FUNCTION mq_leased_calls(OUT pid integer, OUT role oid, OUT lease bigint, OUT since timestamptz)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_leased_calls';
COMMENT ON FUNCTION mq_leased_calls() IS 'The leased calls of this database that run, out of shared memory: the session, its role, the lease of its message; for mq_health() and mq_why().';

CREATE FUNCTION mq_cancelled_calls(OUT pid integer, OUT channel_name text, OUT since timestamptz)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_cancelled_calls';
COMMENT ON FUNCTION mq_cancelled_calls() IS 'The calls of this database that go on though mq_cancel has interrupted them, out of shared memory: the process, its channel (NULL: of a worker), when it was interrupted; for mq_health().';

CREATE FUNCTION mq_obstacles(OUT "check" text, OUT detail text)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_obstacles';
COMMENT ON FUNCTION mq_obstacles() IS 'What keeps workers from this database, as the launcher found it, in words; for mq_health().';

CREATE FUNCTION mq_failing_workers(OUT pid integer, OUT role oid, OUT part text, OUT since timestamptz, OUT last timestamptz,
                                   OUT times integer, OUT sqlstate text, OUT error text)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_failing_workers';
COMMENT ON FUNCTION mq_failing_workers() IS 'What fails for the workers of this database, or the launcher, and is no handler''s fault: part is batches, leased calls, sweep, charges, process (it ends and is started again) or launcher. Out of shared memory; for mq_health() and mq_why().';

CREATE FUNCTION mq_server_mode() RETURNS text
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_server_mode';
COMMENT ON FUNCTION mq_server_mode() IS 'primary, standby or single-user; for mq_health() and mq_why().';

CREATE FUNCTION mq_has_consumers() RETURNS boolean
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_has_consumers';
COMMENT ON FUNCTION mq_has_consumers() IS 'Whether a session of this database listens to a channel of mq''s or waits in mq_receive, or one has called mq_poll or mq_receive within the last minute; for mq_health().';

CREATE FUNCTION mq_service(OUT preloaded boolean, OUT launcher boolean, OUT served boolean, OUT out_of_slots boolean,
                           OUT failing_role oid, OUT failed_starts integer, OUT mode text)
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    SELECT s.preloaded, s.launcher, s.served, s.out_of_slots, s.failing_role, s.failed_starts,
           mq_server_mode()
      FROM mq_service_state() s;
  END;
COMMENT ON FUNCTION mq_service() IS 'mq_service_state(), and in which mode the server runs: primary, standby or single-user.';

CREATE FUNCTION mq_running_calls(OUT channel_name text, OUT pid integer, OUT since timestamptz) RETURNS SETOF record
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    SELECT w.channel_name, w.pid, w.since FROM mq_worker_slots() AS w WHERE w.database = current_database() AND w.state IN ('handling', 'settling', 'committing')
    UNION ALL
    SELECT (SELECT m.channel_name FROM mq_msgs m WHERE m.lease = l.lease AND m.lease > 0 LIMIT 1), l.pid, l.since FROM mq_leased_calls() AS l;
  END;
COMMENT ON FUNCTION mq_running_calls() IS 'The calls of handlers that run in this database, of either mode; for mq_health() and mq_why().';

-- As bgworker/worker/batch_claim.cpp does: what those with a greater priority leave of a batch is for the others.
CREATE FUNCTION mq_preferred(channel_names text[], OUT channel_name text, OUT own_priority integer, OUT preferred text, OUT priority integer)
  RETURNS SETOF record LANGUAGE sql VOLATILE STRICT
  BEGIN ATOMIC
    WITH c AS (SELECT h.channel_name, max(h.priority) AS priority, LEAST(min(h.max_workers), max(l.max_running)) AS most,
                      bool_or(h.mode = 'leased') AS leased, pg_catalog.array_agg(h.run_as_oid) AS roles
                 FROM mq_handlers h LEFT JOIN mq_channel_limits l ON l.channel_name = h.channel_name GROUP BY h.channel_name),
         m AS (SELECT c.channel_name, c.priority, c.leased, c.roles FROM c WHERE c.channel_name = ANY (channel_names)),
         calls AS (SELECT r.channel_name, pg_catalog.count(*) AS calls FROM mq_running_calls() AS r GROUP BY r.channel_name),
         -- One of those that are alike will do.
         o AS MATERIALIZED (
           SELECT DISTINCT ON (c.priority, c.leased, c.roles) c.channel_name, c.priority, c.leased, c.roles
             FROM c
            WHERE c.priority > (SELECT min(m.priority) FROM m)
              AND NOT EXISTS (SELECT FROM mq_paused p WHERE p.channel_name = c.channel_name)
              AND EXISTS (SELECT FROM mq_heads d WHERE d.channel_name = c.channel_name AND d.attempt_at <= clock_timestamp())
              AND NOT EXISTS (SELECT FROM calls r WHERE r.channel_name = c.channel_name AND r.calls >= c.most)
            ORDER BY c.priority, c.leased, c.roles, c.channel_name)
    SELECT m.channel_name, m.priority, g.channel_name, g.priority
      FROM m
     CROSS JOIN LATERAL (SELECT o.channel_name, o.priority FROM o
                          WHERE o.priority > m.priority AND o.leased = m.leased AND o.roles && m.roles
                          ORDER BY o.priority DESC, o.channel_name LIMIT 1) AS g;
  END;
COMMENT ON FUNCTION mq_preferred(text[]) IS 'For each of the channels that has one, another with a greater priority that has due messages, which are handled before its own; for mq_health() and mq_why().';

-- Of one pending message, without a look at those before it in its ordered channel.
CREATE FUNCTION mq_reason(message_id uuid) RETURNS text
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    SELECT CASE
      WHEN m.attempts <= 0 AND m.attempt_at IS NULL
        THEN pg_catalog.format('is dead, and its ordered channel waits for it: mq_redrive(ARRAY[''%s'']::uuid[]) sends it again, mq_delete takes it away', m.id)
      WHEN n.cancelled AND (w.pid IS NOT NULL OR l.pid IS NOT NULL)
        THEN pg_catalog.format('is cancelled, and its handler, which began at %s, goes on in process %s: it is dead when that ends', date_trunc('second', COALESCE(w.since, l.since)), COALESCE(w.pid, l.pid))
      WHEN n.cancelled THEN 'is cancelled: it will be moved to the dead letters'
      WHEN v.handler THEN pg_catalog.format('has been handled, but the commit waits for a synchronous standby (synchronous_standby_names = %s): start it, or change the setting', current_setting('synchronous_standby_names'))
      WHEN w.pid IS NOT NULL THEN pg_catalog.format('is being handled by worker %s since %s', w.pid, date_trunc('second', w.since))
      WHEN l.pid IS NOT NULL THEN pg_catalog.format('is being handled in session %s since %s', l.pid, date_trunc('second', l.since))
      WHEN m.lease > 0 AND m.attempt_at > t.now
        THEN pg_catalog.format('was being handled in a session that has ended: it is given back within a few seconds, at the latest at %s', date_trunc('second', m.attempt_at))
      WHEN m.lease <= 0 AND m.attempt_at > t.now
        THEN pg_catalog.format('is leased to a consumer outside the server until %s, attempt %s', date_trunc('second', m.attempt_at), m.attempt)
      WHEN m.commit_interval IS NOT NULL AND m.attempt_at > t.now
        THEN pg_catalog.format('is two-phase and not committed: mq_commit delivers it; without that it is removed at %s', date_trunc('second', m.attempt_at))
      WHEN m.commit_interval IS NOT NULL THEN 'is two-phase, and was not committed in time: it will be removed'
      WHEN m.expires_at <= t.now THEN 'has expired: it will be moved to the dead letters'
      WHEN m.due_at IS NOT NULL
        THEN (SELECT CASE WHEN pg_catalog.count(*) > 0
                          THEN pg_catalog.format('waits until %s been handled: %s', CASE WHEN pg_catalog.count(*) = 1 THEN 'a message has' ELSE pg_catalog.count(*)::text || ' messages have' END,
                                                 mq_some(pg_catalog.array_agg(q.prerequisite::text ORDER BY q.prerequisite)))
                          ELSE 'waits for messages of which mq_prerequisites says nothing: an idle worker or CALL mq_run() lets it go on' END
                FROM mq_prerequisites q WHERE q.dependent = m.id)
      WHEN p.channel_name IS NOT NULL
        THEN pg_catalog.format('waits since its channel is paused: mq_resume(%L) lets it go on', m.channel_name)
      WHEN h.handlers > 0 AND NOT h.takes
        THEN pg_catalog.format('waits since no handler of channel "%s" takes the name "%s": mq_register_handler one, or unregister the others and poll', m.channel_name, m.message_name)
      WHEN m.throttled_at IS NOT NULL AND m.attempt_at > t.now
        THEN pg_catalog.format('is due since %s, but %s of mq_limit lets no more of its channel_args be handled: it is put off until %s at the latest', date_trunc('second', m.throttled_at),
                    CASE WHEN u.rate_per_args THEN CASE WHEN u.max_running_per_args IS NULL THEN 'the rate' ELSE 'the rate or max_running_per_args' END ELSE 'max_running_per_args' END,
                    date_trunc('second', m.attempt_at))
      WHEN m.attempt_at > t.now AND m.attempt > 0
        THEN pg_catalog.format('waits for its retry at %s: %s attempts failed, the last with SQLSTATE %s (see mq_failures), %s are left',
                    date_trunc('second', m.attempt_at), m.attempt, COALESCE(f.sqlstate, 'unknown'), m.attempts)
      WHEN m.attempt_at > t.now AND EXISTS (SELECT FROM mq_unsettled() AS x WHERE x.message_id = m.id AND x.until > t.now)
        THEN pg_catalog.format('is put off until %s, since its result could not be written: SELECT * FROM mq_health() WHERE NOT ok says why', date_trunc('second', m.attempt_at))
      WHEN m.attempt_at > t.now THEN pg_catalog.format('is scheduled for %s', date_trunc('second', m.attempt_at))
      WHEN m.attempts <= 0 THEN 'has no attempt left: it will be moved to the dead letters'
      WHEN s.mode = 'standby' THEN 'is due, but this server is a standby: nothing is handled here until it is promoted'
      WHEN NOT e.enabled THEN 'is due, but is left alone: ' || e.reason
      WHEN h.handlers = 0 AND m.lease <= 0
        THEN pg_catalog.format('is due again since %s, when the lease of a consumer outside the server ran out, attempt %s: a consumer takes it with mq_receive or mq_poll', date_trunc('second', m.attempt_at), m.attempt)
      WHEN h.handlers = 0
        THEN pg_catalog.format('is due, but channel "%s" has no handler: mq_register_handler one, or a consumer outside the server takes it with mq_receive or mq_poll', m.channel_name)
      WHEN s.mode = 'single-user' THEN 'is due, but the server is in single-user mode, without workers: CALL mq_run() handles it'
      WHEN NOT s.preloaded THEN 'is due, but the library is not preloaded, so there are no workers: CALL mq_run() handles it'
      WHEN NOT s.launcher OR NOT s.served OR s.out_of_slots OR s.failed_starts > 0 OR current_setting('mq.max_workers') = '0'
        THEN 'is due, but no worker can take it: SELECT * FROM mq_health() WHERE NOT ok says why'
      WHEN v.waits
        THEN pg_catalog.format('is due, but commits wait for a synchronous standby (synchronous_standby_names = %s): start it, or change the setting', current_setting('synchronous_standby_names'))
      WHEN k.since IS NOT NULL
        THEN pg_catalog.format('is due, but what workers do for it fails since %s, the last time with SQLSTATE %s: SELECT * FROM mq_health() WHERE NOT ok says why', date_trunc('second', k.since), k.sqlstate)
      WHEN y.ready = 0
        THEN pg_catalog.format('is due, but the rate of channel "%s" (%s in %s, of mq_limit) lets the next call begin at %s', m.channel_name, u.rate, u.per, y.next_at)
      WHEN r.calls >= h.most
        THEN pg_catalog.format('is due, but as many calls for channel "%s" run as %s allows%s', m.channel_name,
                    CASE WHEN h.limited THEN pg_catalog.format('max_running => %s of mq_limit', h.most) ELSE pg_catalog.format('max_workers => %s of its handlers', h.most) END,
                    COALESCE(', the longest since ' || date_trunc('second', r.since)::text, ', of consumers outside the server'))
      WHEN h.leased AND q.calls >= q.sessions
        THEN pg_catalog.format('is due, but all %s sessions for leased handlers sit in calls, the longest since %s: raise mq.leased_sessions or mq.max_workers', q.calls, date_trunc('second', q.since))
      WHEN g.priority IS NOT NULL
        THEN pg_catalog.format('waits since channel "%s" with priority %s has due messages, and its own channel has priority %s: mq_register_handler sets the priority', g.preferred, g.priority, g.own_priority)
      WHEN z.priority IS NOT NULL
        THEN pg_catalog.format('waits since its channel has due messages of priority %s, and its own priority is %s', z.priority, m.priority)
      WHEN b.busy >= current_setting('mq.max_workers')::bigint
        THEN pg_catalog.format('is due, but all %s workers sit in calls, the longest since %s for channel "%s": raise mq.max_workers, or register handlers that take long with mode => ''leased''',
                    b.busy, date_trunc('second', b.since), b.channel_name)
      ELSE pg_catalog.format('is due since %s: a worker takes it unless another session holds its row locked, or its handler cannot be called (SELECT * FROM mq_health() WHERE NOT ok)',
                  date_trunc('second', m.attempt_at)) END
      FROM mq_msgs m
     CROSS JOIN pg_catalog.clock_timestamp() AS t (now)
     CROSS JOIN mq_service() AS s
     CROSS JOIN mq_enabled_state() AS e
      LEFT JOIN mq_paused p ON p.channel_name = m.channel_name
      LEFT JOIN mq_channel_limits u ON u.channel_name = m.channel_name
      LEFT JOIN mq_rate_state() AS y ON y.channel_name = m.channel_name
     CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM mq_cancelled c WHERE c.message_id = m.id AND c.seq = m.seq) AS cancelled) AS n
     CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS handlers, bool_or(r.mode = 'leased') AS leased, LEAST(min(r.max_workers), max(o.max_running)) AS most,
                                COALESCE(max(o.max_running) < min(r.max_workers), min(r.max_workers) IS NULL) AS limited, pg_catalog.array_agg(r.run_as_oid) AS roles,
                                COALESCE(bool_or(r.message_name IS NULL OR r.message_name = m.message_name), false) AS takes
                           FROM mq_handlers r LEFT JOIN mq_channel_limits o ON o.channel_name = r.channel_name WHERE r.channel_name = m.channel_name) AS h
      LEFT JOIN LATERAL (SELECT x.pid, x.since FROM mq_worker_slots() AS x
                          WHERE x.message_id = m.id AND x.database = current_database() LIMIT 1) AS w ON true
      LEFT JOIN LATERAL (SELECT c.pid, c.since FROM mq_leased_calls() AS c WHERE c.lease = m.lease LIMIT 1) AS l ON m.lease > 0
      LEFT JOIN LATERAL (SELECT v.sqlstate FROM mq_failures v WHERE v.message_id = m.id ORDER BY v.failure_no + 0 DESC LIMIT 1) AS f ON true
      LEFT JOIN LATERAL (SELECT x.since, x.sqlstate FROM mq_failing_workers() AS x
                          WHERE x.part = 'launcher'
                             OR (x.part IN ('process', CASE WHEN h.leased THEN 'leased calls' ELSE 'batches' END) AND x.role = ANY (h.roles))
                          ORDER BY x.since LIMIT 1) AS k ON true
     CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS calls, min(x.since) AS since
                           FROM (SELECT c.since FROM mq_running_calls() AS c WHERE h.most IS NOT NULL AND c.channel_name = m.channel_name
                                 UNION ALL
                                 SELECT NULL FROM (SELECT DISTINCT o.lease FROM mq_msgs o
                                                    WHERE h.most IS NOT NULL AND o.channel_name = m.channel_name AND o.lease IS NOT NULL AND o.lease < 0 AND o.attempt_at > t.now) AS c) AS x) AS r
     CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS calls, min(x.since) AS since,
                                current_setting('mq.leased_sessions')::bigint *
                                (SELECT pg_catalog.count(*) FROM mq_worker_slots() AS w WHERE w.database = current_database() AND w.role = ANY (h.roles)) AS sessions
                           FROM mq_leased_calls() AS x WHERE x.role = ANY (h.roles)) AS q
     CROSS JOIN LATERAL (SELECT pg_catalog.count(*) FILTER (WHERE x.state IN ('handling', 'settling', 'committing')) AS busy, min(x.since) FILTER (WHERE x.state IN ('handling', 'settling', 'committing')) AS since,
                                (pg_catalog.array_agg(x.channel_name ORDER BY x.since) FILTER (WHERE x.state IN ('handling', 'settling', 'committing')))[1] AS channel_name
                           FROM mq_worker_slots() AS x WHERE x.database = current_database()) AS b
      LEFT JOIN LATERAL mq_preferred(CASE WHEN h.handlers > 0 AND m.attempt_at <= t.now THEN ARRAY[m.channel_name] END) AS g ON true
      -- Due messages of its channel that come before it, but for those that are being handled.
      LEFT JOIN LATERAL (
             SELECT o.priority
               FROM ((SELECT p.priority, p.id FROM mq_msgs p
                       WHERE p.channel_name = m.channel_name AND p.priority <> 0 AND p.priority > m.priority AND p.attempt_at <= t.now
                         AND (p.after_message_id IS NULL OR p.after_message_id = '00000000-0000-0000-0000-000000000000')
                         AND NOT EXISTS (SELECT FROM mq_worker_slots() AS x WHERE x.message_id = p.id)
                       ORDER BY p.priority DESC, p.attempt_at LIMIT 1)
                     UNION ALL
                     (SELECT p.priority, p.id FROM mq_msgs p
                       WHERE p.channel_name = m.channel_name AND p.priority = 0 AND m.priority < 0 AND p.attempt_at <= t.now
                         AND (p.after_message_id IS NULL OR p.after_message_id = '00000000-0000-0000-0000-000000000000')
                         AND NOT EXISTS (SELECT FROM mq_worker_slots() AS x WHERE x.message_id = p.id)
                       ORDER BY p.attempt_at LIMIT 1)) AS o
              ORDER BY o.priority DESC LIMIT 1) AS z ON m.attempt_at <= t.now
     CROSS JOIN LATERAL (SELECT bool_or(x.pid = w.pid OR x.pid = l.pid) AS handler, pg_catalog.count(*) > 0 AS waits FROM mq_waiting_commits() AS x
                          WHERE x.backend_type IS DISTINCT FROM 'client backend' OR x.pid = l.pid) AS v
     WHERE m.id = message_id;
  END;
COMMENT ON FUNCTION mq_reason(uuid) IS 'For mq_why().';

CREATE FUNCTION mq_whereabouts(message_id uuid) RETURNS text
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    SELECT COALESCE(
      -- Behind the first message of its ordered channel.
      (SELECT pg_catalog.format('waits in its ordered channel behind %s, which ', h.id) || mq_reason(h.id)
         FROM mq_msgs m
        CROSS JOIN LATERAL (SELECT o.id FROM mq_msgs o
                             WHERE o.channel_key = m.channel_key AND o.after_message_id IS NOT NULL
                               AND o.channel_name = m.channel_name AND o.channel_args = m.channel_args
                             ORDER BY o.seq LIMIT 1) AS h
        WHERE m.id = message_id AND m.after_message_id <> '00000000-0000-0000-0000-000000000000' AND h.id <> m.id
          AND m.attempt_at IS NOT NULL  -- not dead itself
          AND NOT EXISTS (SELECT FROM mq_worker_slots() AS x WHERE x.message_id = m.id)),
      mq_reason(message_id),
      (SELECT pg_catalog.format('is dead since %s, reason %s%s: mq_redrive(ARRAY[''%s'']::uuid[]) sends it again',
                     date_trunc('second', d.died_at), d.reason, ', SQLSTATE ' || d.sqlstate, d.id)
         FROM mq_dead d WHERE d.id = message_id ORDER BY d.dead_no + 0 DESC LIMIT 1),
      CASE WHEN message_id IS NOT NULL
        THEN 'is neither pending nor dead: it was handled or deleted, was never sent, or its sender has not committed yet' END);
  END;
COMMENT ON FUNCTION mq_whereabouts(uuid) IS 'For mq_why().';

-- Many small parts look costly together, but compiling them takes half a second.
CREATE FUNCTION mq_why(message_id uuid) RETURNS text
  LANGUAGE sql VOLATILE SECURITY DEFINER SET jit = off
  BEGIN ATOMIC
    SELECT CASE WHEN l.tables IS NOT NULL AND message_id IS NOT NULL
                THEN 'is where nobody can see it, and waits if it is due: ' || l.tables || '; end that transaction'
                ELSE mq_whereabouts(message_id) END
      -- A look at the locks costs less than to plan mq_locked_tables().
      FROM (SELECT mq_some(pg_catalog.array_agg(t)) AS tables FROM mq_locked_tables() AS t
             WHERE EXISTS (SELECT FROM pg_locks k WHERE k.mode = 'AccessExclusiveLock' AND k.pid IS DISTINCT FROM pg_backend_pid())) AS l;
  END;
COMMENT ON FUNCTION mq_why(uuid) IS
  'Says in one sentence, whose subject is the message, where it is and what it waits for, and where somebody has to do something, what. Shows no payload and no error text. NULL for NULL.';
