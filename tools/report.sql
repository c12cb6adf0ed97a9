-- A report on a live queue, as one HTML page that needs nothing else.
--
--   psql -X -q -d DATABASE -f tools/report.sql > report.html
--   psql -X -q -d DATABASE -v seconds=60 -v top=40 -f tools/report.sql > report.html
--
-- seconds: over how long the rates are measured, by default 5. top: how many channel names the plots have, by default 20.
-- A role with the right `monitor` sees all but dead letters and failures, for which it needs `admin`. Nothing is written,
-- so it runs on a standby as well.
\set ON_ERROR_STOP on
\if :{?seconds} \else \set seconds 5 \endif
\if :{?top} \else \set top 20 \endif
\set QUIET on
\timing off
\pset pager off
\pset footer off
\pset title
\pset null '–'
\pset border 0
\pset tuples_only on
\pset format unaligned
\encoding UTF8
SELECT max(quote_ident(n.nspname)) AS schema, max(x.extversion) AS version
  FROM pg_catalog.pg_extension x JOIN pg_catalog.pg_namespace n ON n.oid = x.extnamespace WHERE x.extname = 'mq' \gset
\if :{?version} \else
  \warn 'the database has no extension mq'
  \quit
\endif
SELECT set_config('search_path', :'schema' || ', pg_catalog', false) AS path \gset
SET max_parallel_workers_per_gather = 0;  -- the parts of a plot come in their order
SELECT has_table_privilege('mq_dead', 'SELECT') AS reads_dead, has_table_privilege('mq_failures', 'SELECT') AS reads_failures \gset
-- The rates are what came between two looks.
SELECT coalesce(json_agg(json_build_array(m.channel_name, m.handled_total, m.failed_total, m.died_total)), '[]') AS before,
  clock_timestamp() AS before_at FROM mq_metrics m \gset
SELECT pg_sleep(:'seconds'::double precision) AS slept \gset
-- The channel name of m as the plots show it: not longer than there is room for, and no markup.
\set label 'replace(replace(replace(left(coalesce(m.channel_name, \'(others)\'), CASE WHEN octet_length(m.channel_name) > 1.5 * length(m.channel_name) THEN 16 ELSE 32 END), \'&\', \'&amp;\'), \'<\', \'&lt;\'), \'"\', \'&quot;\')'
\set look 'd AS MATERIALIZED (SELECT m.channel_name AS name, :label AS label, m.ready, m.running, greatest(m.scheduled - m.throttled, 0) AS scheduled, m.throttled, m.dead, m.paused, m.oldest_ready_seconds, greatest(m.handled_total - coalesce((b.a ->> 1)::bigint, 0), 0) / s.took AS handled, greatest(m.failed_total - coalesce((b.a ->> 2)::bigint, 0), 0) / s.took AS failed, greatest(m.died_total - coalesce((b.a ->> 3)::bigint, 0), 0) / s.took AS died FROM mq_metrics m LEFT JOIN json_array_elements(:\'before\') AS b (a) ON b.a ->> 0 IS NOT DISTINCT FROM m.channel_name CROSS JOIN (SELECT greatest(extract(epoch FROM clock_timestamp() - :\'before_at\'), 0.001)::double precision AS took) s)'
\qecho '<!DOCTYPE html>'
\qecho '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>mq report</title><style>'
\qecho ':root{color-scheme:light dark;--back:#fff;--text:#1d2329;--faint:#5d6873;--line:#d7dde3;--bad:#b3261e;--good:#1b7a3d;--a:#2563c9;--b:#0c8a7d;--c:#a9b4bf;--d:#b26b00;--e:#b3261e}'
\qecho '@media(prefers-color-scheme:dark){:root{--back:#14181c;--text:#e4e8ec;--faint:#98a3ad;--line:#323a42;--bad:#ff8a80;--good:#6fd08c;--a:#74a8ff;--b:#4fd1c1;--c:#5a6570;--d:#f0b35a;--e:#ff8a80}}'
\qecho 'body{background:var(--back);color:var(--text);font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em}h1{font-size:1.5em}h2{font-size:1.15em;margin:2em 0 .5em}p{margin:.3em 0}.faint{color:var(--faint)}.bad{color:var(--bad)}.good{color:var(--good)}'
\qecho 'div.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9em}th,td{border-bottom:1px solid var(--line);padding:.25em .8em .25em 0;text-align:left;vertical-align:top;overflow-wrap:anywhere;max-width:36em}td[align=right],th.r{text-align:right;font-variant-numeric:tabular-nums}'
\qecho 'svg{display:block;width:100%;max-width:64em;height:auto}svg text{fill:var(--text);font:12px system-ui,sans-serif}svg .faint{fill:var(--faint)}svg line{stroke:var(--line)}.a{fill:var(--a)}.b{fill:var(--b)}.c{fill:var(--c)}.d{fill:var(--d)}.e{fill:var(--e)}b.a,b.b,b.c,b.d,b.e{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 1em}b.a{background:var(--a)}b.b{background:var(--b)}b.c{background:var(--c)}b.d{background:var(--d)}b.e{background:var(--e)}</style></head><body>'
SELECT format('<h1>mq in database %s</h1><p class="faint">%s · mq %s · PostgreSQL %s%s · rates over %s s</p>',
  replace(replace(current_database(), '&', '&amp;'), '<', '&lt;'), to_char(clock_timestamp(), 'YYYY-MM-DD HH24:MI:SS TZ'),
  :'version', split_part(current_setting('server_version'), ' ', 1), CASE WHEN pg_is_in_recovery() THEN ' (standby)' END, :'seconds');

\qecho '<h2>Health</h2>'
SELECT CASE WHEN count(*) FILTER (WHERE NOT ok) = 0 THEN format('<p class="good">All %s checks of mq_health() are ok.</p>', count(*))
  ELSE format('<p class="bad">Checks of mq_health() that are not ok: %s of %s.</p>', count(*) FILTER (WHERE NOT ok), count(*)) END FROM mq_health();
\pset format html
\pset tuples_only off
\qecho '<div class="wide">'
SELECT h."check", CASE WHEN h.ok THEN 'ok' ELSE 'not ok' END AS "is", h.detail FROM mq_health() h WHERE NOT h.ok OR h.detail IS NOT NULL ORDER BY h.ok;
\qecho '</div><h2>Depth</h2><p class="faint"><b class="a"></b>ready<b class="b"></b>running<b class="c"></b>scheduled<b class="d"></b>throttled<b class="e"></b>dead</p>'
\pset format unaligned
\pset tuples_only on
WITH :look, t AS (SELECT d.*, row_number() OVER (ORDER BY d.ready + d.running + d.scheduled + d.throttled + d.dead DESC, d.label) AS n,
  greatest(max(d.ready + d.running + d.scheduled + d.throttled + d.dead) OVER (), 1) AS most FROM d), p AS (SELECT * FROM t WHERE n <= :top),
  bars AS (SELECT p.n, p.label, v.class, v.what, v.count, 260 + 560.0 * sum(v.count) OVER (PARTITION BY p.n ORDER BY v.at) / p.most - 560.0 * v.count / p.most AS x,
    560.0 * v.count / p.most AS width FROM p CROSS JOIN LATERAL (VALUES (1, 'a', 'ready', p.ready), (2, 'b', 'running', p.running),
    (3, 'c', 'scheduled', p.scheduled), (4, 'd', 'throttled', p.throttled), (5, 'e', 'dead', p.dead)) AS v (at, class, what, count))
SELECT format('<svg viewBox="0 0 980 %s" role="img" aria-label="Messages of each channel name">', (SELECT greatest(count(*), 1) FROM p) * 22 + 4)
UNION ALL (SELECT format('<text x="250" y="%s" text-anchor="end">%s</text><text x="%s" y="%s" class="faint">%s%s</text>', n * 22 - 6, label,
  round(266 + 560.0 * (ready + running + scheduled + throttled + dead) / most), n * 22 - 6, ready + running + scheduled + throttled + dead,
  CASE WHEN paused > 0 THEN ', paused' ELSE '' END || CASE WHEN oldest_ready_seconds >= 1 THEN format(', oldest %s s', round(oldest_ready_seconds)) ELSE '' END) FROM p ORDER BY n)
UNION ALL (SELECT format('<rect class="%s" x="%s" y="%s" width="%s" height="14"><title>%s: %s %s</title></rect>', class, round(x, 1), n * 22 - 17, round(greatest(width, 1), 1), label, count, what)
  FROM bars WHERE count > 0 ORDER BY n)
UNION ALL SELECT '</svg>';
SELECT format('<p class="faint">%s channel names, of which those with the most messages are shown.</p>', count(*)) FROM mq_metrics HAVING count(*) > :top;

\qecho '<h2>Messages a second</h2><p class="faint"><b class="a"></b>handled<b class="d"></b>failed attempts<b class="e"></b>died</p>'
WITH :look, t AS (SELECT d.*, row_number() OVER (ORDER BY d.handled DESC, d.failed DESC, d.label) AS n,
  greatest(max(greatest(d.handled, d.failed, d.died)) OVER (), 0.001) AS most FROM d WHERE d.handled + d.failed + d.died > 0), p AS (SELECT * FROM t WHERE n <= :top)
SELECT CASE WHEN NOT EXISTS (SELECT FROM p) THEN '<p>Nothing was handled meanwhile.</p>'
  ELSE format('<svg viewBox="0 0 980 %s" role="img" aria-label="Messages a second of each channel name">', (SELECT count(*) FROM p) * 30 + 4) END
UNION ALL (SELECT format('<text x="250" y="%s" text-anchor="end">%s</text><rect class="a" x="260" y="%s" width="%s" height="8"/><rect class="d" x="260" y="%s" width="%s" height="5"/><rect class="e" x="260" y="%s" width="%s" height="5"/><text x="%s" y="%s" class="faint">%s%s%s</text>',
  n * 30 - 10, label, n * 30 - 24, round((480 * handled / most)::numeric, 1), n * 30 - 15, round((480 * failed / most)::numeric, 1),
  n * 30 - 9, round((480 * died / most)::numeric, 1), round(268 + 480 * greatest(handled, failed, died) / most), n * 30 - 10, round(handled::numeric, 1),
  CASE WHEN failed > 0 THEN format(', %s failed', round(failed::numeric, 1)) END, CASE WHEN died > 0 THEN format(', %s died', round(died::numeric, 1)) END) FROM p ORDER BY n)
UNION ALL SELECT '</svg>' WHERE EXISTS (SELECT FROM p);

\qecho '<h2>How long messages wait, and how long they are handled</h2><p class="faint">From the 50th to the 99th percentile, with the 95th marked, since mq_reset_stats(); each vertical line is ten times the one before.</p><p class="faint"><b class="b"></b>wait<b class="a"></b>handlers</p>'
WITH s AS MATERIALIZED (SELECT :label AS label, m.handled,
  m.wait_p50, m.wait_p95, m.wait_p99, m.handle_p50, m.handle_p95, m.handle_p99 FROM mq_stats m WHERE m.handled > 0 ORDER BY m.handled DESC, m.channel_name LIMIT :top),
  t AS (SELECT s.*, row_number() OVER (ORDER BY s.handled DESC, s.label) AS n FROM s),
  v AS (SELECT t.n, t.label, k.class, k.what, k.at, k.p50, k.p95, k.p99 FROM t CROSS JOIN LATERAL (VALUES ('b', 'wait', 0, t.wait_p50, t.wait_p95, t.wait_p99),
    ('a', 'handlers', 12, t.handle_p50, t.handle_p95, t.handle_p99)) AS k (class, what, at, p50, p95, p99) WHERE k.p50 IS NOT NULL),
  -- From 10 microseconds to 100,000 seconds: ten decades.
  x AS (SELECT v.*, 260 + 66 * least(greatest(log(greatest(extract(epoch FROM v.p50), 1e-9)) + 5, 0), 10) AS x50,
    260 + 66 * least(greatest(log(greatest(extract(epoch FROM v.p95), 1e-9)) + 5, 0), 10) AS x95,
    260 + 66 * least(greatest(log(greatest(extract(epoch FROM v.p99), 1e-9)) + 5, 0), 10) AS x99 FROM v),
  h AS (SELECT coalesce(max(n), 0) * 32 AS height FROM t)
SELECT CASE WHEN height = 0 THEN '<p>Nothing has been handled yet.</p>'
  ELSE format('<svg viewBox="0 0 980 %s" role="img" aria-label="Percentiles of each channel name">', height + 24) END FROM h
UNION ALL (SELECT format('<line x1="%s" x2="%s" y1="0" y2="%s"/><text class="faint" text-anchor="middle" x="%s" y="%s">%s</text>', 260 + 66 * g, 260 + 66 * g, height + 4, 260 + 66 * g, height + 20,
  (ARRAY['10 µs', '100 µs', '1 ms', '10 ms', '100 ms', '1 s', '10 s', '100 s', '17 min', '2.8 h', '28 h'])[g + 1]) FROM h, generate_series(0, 10) g WHERE height > 0 ORDER BY g)
UNION ALL (SELECT format('<text x="250" y="%s" text-anchor="end">%s</text>', n * 32 - 10, label) FROM t ORDER BY n)
UNION ALL (SELECT format('<rect class="%s" x="%s" y="%s" width="%s" height="6"><title>%s, %s: %s, %s, %s s</title></rect><circle class="%s" cx="%s" cy="%s" r="5"/>', class, round(x50), n * 32 - 24 + at,
  round(greatest(x99 - x50, 2)), label, what, extract(epoch FROM p50), extract(epoch FROM p95), extract(epoch FROM p99), class, round(x95), n * 32 - 21 + at) FROM x ORDER BY n, at)
UNION ALL SELECT '</svg>' FROM h WHERE height > 0;

\pset format html
\pset tuples_only off
\qecho '<h2>What fails most</h2><div class="wide">'
\if :reads_failures
SELECT f.channel_name AS channel, coalesce(f.sqlstate, '–') AS sqlstate, left(f.error, 200) AS error, count(*) AS attempts, count(DISTINCT f.message_id) AS messages, max(f.failed_at)::timestamptz(0) AS last
  FROM mq_failures f GROUP BY 1, 2, 3 ORDER BY count(*) DESC, max(f.failed_at) DESC LIMIT :top;
\else
\qecho '<p>This role may not read mq_failures (the right admin).</p>'
\endif
\qecho '</div><h2>Dead letters</h2><div class="wide">'
\if :reads_dead
SELECT d.channel_name AS channel, d.reason, coalesce(d.sqlstate, '–') AS sqlstate, left(d.error, 200) AS error, count(*) AS messages, min(d.died_at)::timestamptz(0) AS first, max(d.died_at)::timestamptz(0) AS last
  FROM mq_dead d GROUP BY 1, 2, 3, 4 ORDER BY count(*) DESC, max(d.died_at) DESC LIMIT :top;
\else
\qecho '<p>This role may not read mq_dead (the right admin).</p>'
\endif
\qecho '</div><h2>Workers</h2><div class="wide">'
SELECT w.pid, w.database, w.state, w.channel_name AS channel, w.message_id AS message, w.since::timestamptz(0) AS since, w.handled, w.progress, w.note FROM mq_workers w ORDER BY w.database, w.pid;
\qecho '</div><h2>Who holds the horizon</h2><p class="faint">Rows that are gone cannot be removed while somebody may still see them.</p><div class="wide">'
SELECT h.kind, h.name, h.pid, h.xids AS "transactions ago", h.since::timestamptz(0) AS since, h.detail FROM mq_horizon h ORDER BY h.xids DESC NULLS LAST LIMIT :top;
\qecho '</div><h2>Schedules</h2><div class="wide">'
SELECT s.name, s.schedule, s.time_zone AS "time zone", s.channel_name AS channel, s.next_at AS next, s.last_at AS last, s.last_state AS "state of the last" FROM mq_schedules s ORDER BY s.next_at LIMIT 200;
\qecho '</div><h2>Limits</h2><div class="wide">'
SELECT l.channel_name AS channel, l.pending, l.max_pending, l.running, l.max_running, l.max_running_per_args AS "running per args", CASE WHEN l.rate IS NOT NULL THEN format('%s in %s%s', l.rate, l.per, CASE WHEN l.rate_per_args THEN ' per args' END) END AS rate, l.put_off AS "put off" FROM mq_limits l ORDER BY l.channel_name LIMIT 200;
\qecho '</div></body></html>'
