-- What the example has done: how far the sync jobs are, whether the order was kept, what was refused.
\pset footer off
\pset border 1

\echo '== Sync jobs, with what they returned'
SELECT state, count(*) AS "jobs", sum((result ->> 'records')::int) AS "records" FROM mq_status(ARRAY(SELECT sync FROM repos)) GROUP BY state ORDER BY state DESC;
\echo '== The busiest repositories: what their hosts had, and what the stream told of them'
SELECT r.handle, d.result ->> 'records' AS "records of the host", e.indexed, e.seen AS "seen before"
FROM repos AS r JOIN mq_done AS d ON d.id = r.sync
  JOIN (SELECT channel_args AS did, count(*) FILTER (WHERE result = '"indexed"') AS indexed, count(*) FILTER (WHERE result = '"seen before"') AS seen
        FROM mq_done WHERE channel_name = 'appview' AND name <> 'sync' GROUP BY 1) AS e USING (did)
ORDER BY e.indexed DESC LIMIT 5;
\echo '== Was the order kept? For each repository, the order of handling against the order of the stream'
SELECT count(DISTINCT did) AS "repositories", count(*) AS "events", count(*) FILTER (WHERE time_us < before) AS "out of order"
FROM (SELECT channel_args AS did, (payload_json ->> 'time_us')::bigint AS time_us,
             lag((payload_json ->> 'time_us')::bigint, 1, 0::bigint) OVER (PARTITION BY channel_args ORDER BY done_no) AS before
      FROM mq_done WHERE channel_name = 'appview') AS events;
\echo '== Dead letters: malformed records, and repositories that their host does not have'
SELECT channel_name, name, reason, count(*), min(left(error, 60)) AS "such as" FROM mq_dead GROUP BY 1, 2, 3 ORDER BY 1, 2;
