--
-- mq_metrics and mq_histogram: what mq_stats tells, as numbers for programs that collect them; their rows have a bound.
--
-- Workers stay out.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
-- No function of mq has run in this session, and perhaps the library is not loaded.
CREATE EXTENSION mq;
SELECT * FROM mq_metrics WHERE channel_name = 'nothing';
SELECT * FROM mq_metrics;
SELECT * FROM mq_histogram;

CREATE FUNCTION handle(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF message.name = 'fail' THEN RAISE EXCEPTION 'failed'; END IF;
END $$;
SELECT mq_register_handler('a', 'handle(mq_message)'), mq_register_handler('b', 'handle(mq_message)');
SELECT count(mq_send('a')), count(mq_send('b', NULL, 'fail', retries => 0)) FROM generate_series(1, 3);
SELECT mq_send('a', NULL, 'fail', retry_backoff => '1 hour') IS NOT NULL AS sent;
CALL mq_run();
SELECT count(mq_send('a')), count(mq_send('c', delay => '1 hour')) FROM generate_series(1, 2);
UPDATE mq_msgs SET attempt_at = now() - interval '3 hours' WHERE channel_name = 'a' AND attempt_at <= now();
SELECT mq_pause('b'), mq_limit('c', max_pending => 7);
SELECT channel_name, ready, scheduled, running, throttled, dead, paused, oldest_ready_seconds BETWEEN 10800 AND 14400 AS hours,
       handled_total, failed_total, died_total, max_pending FROM mq_metrics ORDER BY 1;
-- 0 and not NULL where nothing is ready: a series must not vanish.
SELECT channel_name, oldest_ready_seconds FROM mq_metrics WHERE channel_name > 'a' ORDER BY 1;
-- The same as mq_stats, and numbers alone.
SELECT count(*) AS differences FROM mq_metrics m FULL JOIN mq_stats s USING (channel_name)
 WHERE (m.ready, m.scheduled, m.running, m.throttled, m.dead, m.handled_total, m.failed_total, m.died_total, m.paused = 1)
    IS DISTINCT FROM (s.ready, s.scheduled, s.running, s.throttled, s.dead, s.handled, s.failed, s.died, s.paused);
SELECT attname, atttypid::regtype FROM pg_attribute WHERE attrelid = 'mq_metrics'::regclass AND attnum > 0 ORDER BY attnum;

-- Buckets: cumulative, of the same bounds for all, the last with everything.
CREATE VIEW flaws AS
  SELECT * FROM (SELECT h.*, lag(count) OVER w AS before, last_value(count) OVER (w ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS all_of_them,
                        lag(sum) OVER w AS sum_before FROM mq_histogram h WINDOW w AS (PARTITION BY channel_name, kind ORDER BY le)) AS b
   WHERE count < before OR count > all_of_them OR sum <> sum_before OR sum < 0;
SELECT channel_name, kind, count(*), min(le), max(le), max(count), count(DISTINCT sum) AS sums FROM mq_histogram GROUP BY 1, 2 ORDER BY 1, 2;
SELECT * FROM flaws;
-- A wait of three hours is 10800 s: it is in the bucket up to 17180 s, and not in the one before.
SELECT mq_reset_stats();
SELECT count(*) FROM mq_histogram;
CALL mq_run(ARRAY['a']);
SELECT le, count FROM mq_histogram WHERE channel_name = 'a' AND kind = 'wait' AND le BETWEEN 1000 AND 70000 ORDER BY le;
SELECT sum BETWEEN 2 * 10800 AND 2 * 10800 + 600 AS six_hours FROM mq_histogram WHERE channel_name = 'a' AND kind = 'wait' AND le = 'Infinity';
-- Every bound is a power of two, so that no message counts in a bucket that it does not belong to.
SELECT le FROM mq_histogram WHERE channel_name = 'a' AND kind = 'wait' ORDER BY le;
-- Totals of before 0.2.0 have no sum: it is estimated, to a sixteenth, and the new ones are added.
INSERT INTO mq_stats_totals SELECT 'old', 4, 0, 0, '{}', '{200,4}';
SELECT DISTINCT count, sum FROM mq_histogram WHERE channel_name = 'old' AND le = 'Infinity';
SELECT le, count FROM mq_histogram WHERE channel_name = 'old' AND count < 4 ORDER BY le DESC LIMIT 1;
SELECT mq_reset_stats();
CALL mq_run();
SELECT count(*) FROM mq_stats_totals WHERE channel_name = 'old';
SELECT * FROM flaws;

-- A bound for the names, in their order: the others share the row without a name, and nothing is lost.
SELECT mq_clear_all(), mq_resume('b'), mq_unlimit('c');
TRUNCATE mq_dead, mq_failures;
SELECT mq_reset_stats();
SELECT mq_register_handler('many ' || n, 'handle(mq_message)') FROM generate_series(1, 9) n;
SELECT count(mq_send('many ' || n)) FROM generate_series(1, 9) n, generate_series(1, n);
CALL mq_run();
SELECT count(mq_send('many ' || n)) FROM generate_series(1, 9) n, generate_series(1, 2);
SELECT mq_pause('many 8'), mq_pause('many 9'), mq_limit('many 1', max_pending => 9), mq_limit('many 8', max_pending => 9);
SET mq.metrics_channels = 5;
SELECT channel_name, ready, paused, handled_total, max_pending FROM mq_metrics ORDER BY 1 NULLS LAST;
SELECT channel_name, kind, count FROM mq_histogram WHERE le = 'Infinity' ORDER BY 1 NULLS LAST, 2;
SELECT * FROM flaws;
SET mq.metrics_channels = 11;
SELECT count(*), count(channel_name) FROM mq_metrics;
SET mq.metrics_channels = 1;
SELECT channel_name, handled_total FROM mq_metrics ORDER BY 1 NULLS LAST;
SET mq.metrics_channels = 0;
RESET mq.metrics_channels;

-- With the right to monitor; and without.
CREATE ROLE regress_mq_collector;
SET ROLE regress_mq_collector;
SELECT count(*) FROM mq_metrics;
SELECT count(*) FROM mq_histogram;
RESET ROLE;
SELECT mq_grant('regress_mq_collector', 'monitor');
SET ROLE regress_mq_collector;
SELECT count(*) FROM mq_metrics;
SELECT count(*) > 0 AS some FROM mq_histogram;
RESET ROLE;
SELECT mq_revoke('regress_mq_collector', 'monitor');
DROP ROLE regress_mq_collector;

DROP VIEW flaws;
DROP FUNCTION handle(mq_message);
DROP EXTENSION mq;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
