--
-- Schedules: which times a text means, in which zone; what is refused; who may do what; what is sent, and what for times that
-- were missed. Workers, crashes and restores are in t/130_schedules; the 200 lines of another cron in the unit tests.
--
-- Workers stay out.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
SET client_min_messages = warning;
SET timezone = 'UTC';
SET datestyle = 'ISO';
CREATE EXTENSION mq;
CREATE FUNCTION pg_temp.times(schedule text, zone text, after timestamptz, n int DEFAULT 3) RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(to_char(t AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') || ' = ' || to_char(t AT TIME ZONE zone, 'DD HH24:MI'), ', ' ORDER BY t)
    FROM mq_next_times(schedule, zone, after, n) AS t $$;

-- --- times, by the server's own time zone data: each in UTC, and on the wall clock ------------------

SELECT pg_temp.times('0 9 * * *', 'UTC', '2027-02-27 12:00Z');
SELECT pg_temp.times('0 0 29 2 *', 'UTC', '2027-01-01 00:00Z');
-- To summer time and back: a daily time is once a day. Skipped: right after the gap. Twice: the first.
SELECT pg_temp.times('30 2 * * *', 'Europe/Berlin', '2027-03-26 12:00Z');
SELECT pg_temp.times('30 2 * * *', 'Europe/Berlin', '2027-10-29 12:00Z');
SELECT pg_temp.times('30 2 * * *', 'America/New_York', '2027-03-12 12:00Z');
SELECT pg_temp.times('30 1 * * *', 'America/New_York', '2027-11-05 12:00Z');
SELECT pg_temp.times('30 1 * * *', 'America/St_Johns', '2027-11-05 12:00Z');
SELECT pg_temp.times('30 2 * * *', 'America/St_Johns', '2027-03-12 12:00Z');
SELECT pg_temp.times('0 2 * * *', 'Australia/Lord_Howe', '2027-10-01 12:00Z');
-- Every hour: the time that passes.
SELECT pg_temp.times('30 * * * *', 'Europe/Berlin', '2027-03-28 00:00Z', 3);
SELECT pg_temp.times('30 * * * *', 'Europe/Berlin', '2027-10-31 00:00Z', 3);
SELECT pg_temp.times('0 * * * *', 'America/St_Johns', '2027-03-14 04:00Z', 3);
-- No summer time, and half an hour off.
SELECT pg_temp.times('0 9 * * mon-fri', 'Asia/Kolkata', '2027-03-26 12:00Z');
SELECT pg_temp.times('0,30 0 1 jan *', 'Asia/Kolkata', '2026-12-01 00:00Z');
-- Back for Ramadan, and forward after it.
SELECT pg_temp.times('30 2 * * *', 'Africa/Casablanca', '2025-02-21 12:00Z');
SELECT pg_temp.times('30 2 * * *', 'Africa/Casablanca', '2025-04-04 12:00Z');
-- Intervals: from a moment on; days and months by the clock.
SELECT pg_temp.times('30 seconds', 'UTC', '2027-01-01 00:00Z', 4);
SELECT pg_temp.times('1 month', 'UTC', '2027-01-31 09:00Z');
SELECT pg_temp.times('1 day', 'Europe/Berlin', '2027-03-27 01:30Z');
SELECT pg_temp.times('24 hours', 'Europe/Berlin', '2027-03-27 01:30Z');
SELECT pg_temp.times('PT36H', 'UTC', '2027-01-01 00:00Z');
-- Words.
SELECT w, pg_temp.times(w, 'UTC', '2027-01-31 23:59Z', 2) FROM unnest(ARRAY['@yearly', '@annually', '@monthly', '@weekly', '@daily', '@midnight', '@hourly']) AS w;
-- Every time zone that the server has: a daily time is every day, 23 to 25 hours after the last; one zone changes by two hours.
SELECT count(*) > 300 AS zones, min(days) AS days, string_agg(name, ' ') FILTER (WHERE longest > interval '25 hours' OR shortest < interval '23 hours') AS others
  FROM (SELECT z.name, count(DISTINCT (s.t AT TIME ZONE z.name)::date) AS days, max(s.t - s.before) AS longest, min(s.t - s.before) AS shortest
          FROM pg_timezone_names z
         CROSS JOIN LATERAL (SELECT t, lag(t) OVER (ORDER BY t) AS before FROM mq_next_times('15 2 * * *', z.name, '2026-12-31 12:00Z', 365) AS t) AS s
         WHERE z.name !~ '^(posix|right)' GROUP BY z.name) AS n;
-- By this session's zone, from now on.
SET timezone = 'Asia/Tokyo';
SELECT count(*), min(t) > now() AS later, bool_and(extract(hour FROM t) = 9) AS here FROM mq_next_times('0 9 * * *') AS t;
SET timezone = 'UTC';
SELECT count(*) FROM mq_next_times('* * * * *', times => 0);

-- --- what is refused --------------------------------------------------------------------------------

\set VERBOSITY default
SELECT mq_schedule('bad', '60 * * * *', 'c');
SELECT mq_schedule('bad', '0 24 * * *', 'c');
SELECT mq_schedule('bad', '0 0 0 * *', 'c');
SELECT mq_schedule('bad', '0 0 * foo *', 'c');
SELECT mq_schedule('bad', '0 0 * * 8', 'c');
SELECT mq_schedule('bad', '0 0 30 2 *', 'c');
SELECT mq_schedule('bad', '*/90 * * * *', 'c');
SELECT mq_schedule('bad', '0 17-5 * * *', 'c');
SELECT mq_schedule('bad', '* * * *', 'c');
SELECT mq_schedule('bad', '@reboot', 'c');
SELECT mq_schedule('bad', '@fortnightly', 'c');
SELECT mq_schedule('bad', 'now and then', 'c');
SELECT mq_schedule('bad', '0 seconds', 'c');
SELECT mq_schedule('bad', '-1 day', 'c');
SELECT mq_schedule('bad', '1.5 seconds', 'c');
SELECT mq_schedule('bad', '200 years', 'c');
SELECT mq_schedule('bad', '', 'c');
SELECT mq_schedule('bad', repeat('1,', 600) || '1 * * * *', 'c');
SELECT mq_schedule('bad', '@daily', 'c', time_zone => 'Mars/Olympus_Mons');
SELECT mq_schedule('bad', '@daily', 'c', time_zone => repeat('x', 300));
SELECT mq_schedule('bad', '@daily', 'c', catch_up => 'some');
SELECT mq_schedule('', '@daily', 'c');
SELECT mq_schedule(repeat('n', 1025), '@daily', 'c');
-- The options of the message, as mq_send has them.
SELECT mq_schedule('bad', '@daily', repeat('c', 1025));
SELECT mq_schedule('bad', '@daily', 'c', message_name => repeat('c', 1025));
SELECT mq_schedule('bad', '@daily', 'c', channel_args => repeat('c', 2049));
SELECT mq_schedule('bad', '@daily', 'c', retries => -1);
SELECT mq_schedule('bad', '@daily', 'c', retry_backoff => '-1 s');
SELECT mq_schedule('bad', '@daily', 'c', dedup_key => repeat('k', 1025));
SELECT mq_schedule('bad', '@daily', 'c', expires => '0');
SELECT mq_schedule('bad', '@daily', 'c', priority => 1001);
SELECT mq_schedule('bad', '@daily', 'c', priority => 1, ordered => true);
SELECT mq_schedule('bad', '@daily', 'c', headers => '[]');
SELECT mq_schedule('bad', '@daily', 'c', keep => '0');
\set VERBOSITY terse
-- What must not be NULL.
SELECT mq_schedule(NULL, '@daily', 'c');
SELECT mq_schedule('bad', NULL, 'c');
SELECT mq_schedule('bad', '@daily', NULL);
SELECT mq_schedule('bad', '@daily', 'c', channel_args => NULL);
SELECT mq_schedule('bad', '@daily', 'c', ordered => NULL);
SELECT mq_schedule('bad', '@daily', 'c', retries => NULL);
SELECT mq_schedule('bad', '@daily', 'c', retry_backoff => NULL);
SELECT mq_schedule('bad', '@daily', 'c', priority => NULL);
SELECT mq_schedule('bad', '@daily', 'c', time_zone => NULL);
SELECT mq_schedule('bad', '@daily', 'c', catch_up => NULL);
SELECT mq_schedule('bad', '@daily', 'c', overlap => NULL);
SELECT mq_unschedule(NULL);
SELECT mq_next_times(NULL);
SELECT mq_next_times('@daily', NULL);
SELECT mq_next_times('@daily', 'UTC', NULL);
SELECT mq_next_times('@daily', 'UTC', 'infinity');
SELECT mq_next_times('1 month', 'UTC', '40000-01-31 00:00Z');
SELECT mq_next_times('@daily', 'UTC', now(), NULL);
SELECT mq_next_times('@daily', 'UTC', now(), 10001);
SELECT mq_next_times('@never');
BEGIN READ ONLY;
SELECT mq_schedule('bad', '@daily', 'c');
ROLLBACK;
BEGIN READ ONLY;
SELECT mq_unschedule('bad');
ROLLBACK;
SELECT count(*) FROM mq_schedules;

-- --- made, replaced, removed ------------------------------------------------------------------------

CREATE VIEW pg_temp.schedules AS
  SELECT name, schedule, time_zone, channel_name, last_at, last_id IS NOT NULL AS sent, last_state, run_as = current_user AS mine FROM mq_schedules ORDER BY name;
SELECT mq_schedule('report', '0 9 * * mon-fri', 'reports', '{"which": "daily"}', time_zone => 'Europe/Berlin');
SELECT mq_schedule('tick', '30 seconds', 'ticks');
SELECT * FROM pg_temp.schedules;
SELECT next_at = (SELECT t FROM mq_next_times('0 9 * * mon-fri', 'Europe/Berlin', times => 1) AS t) AS right FROM mq_schedules WHERE name = 'report';
SELECT next_at - now() BETWEEN interval '20 seconds' AND interval '31 seconds' AS soon FROM mq_schedules WHERE name = 'tick';
-- Replaced. With the same times it keeps its next one; with others it does not.
UPDATE mq_timetable SET next_at = '2030-01-01 00:00Z', last_at = '2026-01-01 00:00Z';
SELECT mq_schedule('tick', '30 seconds', 'other ticks', '1');
SELECT channel_name, next_at, last_at FROM mq_schedules WHERE name = 'tick';
SELECT mq_schedule('tick', '40 seconds', 'other ticks', '1');
SELECT channel_name, schedule, next_at < now() + interval '1 minute' AS anew, last_at FROM mq_schedules WHERE name = 'tick';
SELECT mq_schedule('report', '0 9 * * mon-fri', 'reports', time_zone => 'UTC');
SELECT time_zone, next_at < now() + interval '4 days' AS anew FROM mq_schedules WHERE name = 'report';
SELECT mq_unschedule('report'), mq_unschedule('report'), mq_unschedule('tick');
SELECT count(*) FROM mq_schedules;
BEGIN;
SELECT mq_schedule('undone', '@daily', 'c');
ROLLBACK;
SELECT count(*) FROM mq_schedules;

-- --- what is sent -----------------------------------------------------------------------------------

-- Sends what is due, to channels without a handler.
CREATE FUNCTION pg_temp.missed(name text, since interval) RETURNS void LANGUAGE sql AS $$
  UPDATE mq_timetable t SET next_at = (SELECT min(m) FROM mq_next_times(t.schedule, t.time_zone, now() - since, 1) AS m) WHERE t.name = $1 $$;
SELECT mq_schedule('all options', '@yearly', 'c', '{"a": 1}', message_name => 'named', channel_args => 'x', retries => 3, retry_backoff => '7 s',
                   payload_bytes => '\x00ff', expires => '1 hour', priority => 5, headers => '{"tenant": "acme"}', keep => '2 hours');
SELECT mq_schedule('in order', '@yearly', 'c', '"ordered"', ordered => true);
CALL mq_run();
SELECT count(*) FROM mq_msgs;
SELECT pg_temp.missed('all options', '1 year'), pg_temp.missed('in order', '1 year');
CALL mq_run();
SELECT m.channel_name, channel_args, message_name, message_json, message_bytes, attempts, retry_backoff, expires_at - created_at AS expires, keep, priority, after_message_id IS NOT NULL AS ordered,
       headers - 'schedule' AS headers, headers #>> '{schedule,name}' AS schedule, (headers #>> '{schedule,at}')::timestamptz = s.last_at AS at, s.last_id = m.id AS last
  FROM mq_msgs m JOIN mq_schedules s ON s.name = m.headers #>> '{schedule,name}' ORDER BY s.name;
SELECT name, last_state, next_at > now() AS later, next_at > last_at AS moved FROM mq_schedules ORDER BY name;
-- Not again.
CALL mq_run();
SELECT count(*) FROM mq_msgs;
-- Headers of one's own are not overwritten.
SELECT mq_schedule('in order', '@yearly', 'c', headers => '{"schedule": "mine"}');
SELECT pg_temp.missed('in order', '1 year');
TRUNCATE mq_msgs;
CALL mq_run();
SELECT headers FROM mq_msgs;
-- Only for the channels that are asked for.
SELECT mq_schedule('elsewhere', '@yearly', 'elsewhere');
SELECT pg_temp.missed('in order', '1 year'), pg_temp.missed('elsewhere', '1 year');
TRUNCATE mq_msgs;
CALL mq_run('{elsewhere}');
SELECT channel_name FROM mq_msgs;
-- Nothing in a transaction block, which would hold the rows until it ends.
TRUNCATE mq_msgs;
BEGIN;
CALL mq_run();
COMMIT;
SELECT count(*) FROM mq_msgs;
CALL mq_run();
SELECT channel_name FROM mq_msgs;
-- To a handler, which is told what for.
CREATE TABLE handled (n int GENERATED ALWAYS AS IDENTITY, payload jsonb, schedule text);
CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.handled (payload, schedule) VALUES (m.payload_json, m.headers #>> '{schedule,name}') $$;
SELECT mq_register_handler('c', 'handle(mq_message)');
TRUNCATE mq_msgs;
SELECT mq_schedule('in order', '@yearly', 'c', '"handled"', keep => '1 hour');
SELECT pg_temp.missed('in order', '1 year');
CALL mq_run();
SELECT payload, schedule FROM handled;
SELECT last_state FROM mq_schedules WHERE name = 'in order';
SELECT mq_unschedule(name) FROM mq_schedules;
-- A dedup_key: while a message with it is pending, that one is the last.
SELECT mq_schedule('once', '@yearly', 'dedup', dedup_key => 'k');
SELECT pg_temp.missed('once', '1 year');
CALL mq_run();
SELECT pg_temp.missed('once', '1 year');
CALL mq_run();
SELECT count(*), bool_and(m.id = s.last_id) AS same FROM mq_msgs m, mq_schedules s;
SELECT mq_unschedule('once');
TRUNCATE mq_msgs;

-- As soon as possible, by hand: once, for the moment.
SELECT mq_schedule('soon ' || c, '@yearly', 'soon', catch_up => c) FROM unnest(ARRAY['none', 'one', 'all']) AS c;
UPDATE mq_timetable SET next_at = '-infinity';
CALL mq_run();
SELECT t.name, failures, next_at > now() AND next_at < now() + interval '1 year 1 day' AS later, last_at > now() - interval '1 minute' AS of_now, count(m.id)
  FROM mq_timetable t JOIN mq_msgs m ON m.headers #>> '{schedule,name}' = t.name GROUP BY t.name ORDER BY t.name;
SELECT mq_unschedule(name) FROM mq_schedules;
TRUNCATE mq_msgs;

-- --- times that were missed ---------------------------------------------------------------------------

-- Days of a zone in which it is not midnight now.
SELECT CASE WHEN extract(hour FROM now()) BETWEEN 2 AND 21 THEN 'UTC' ELSE 'Etc/GMT+6' END AS zone \gset
SELECT mq_schedule(c, '@daily', c, time_zone => :'zone', catch_up => c), mq_schedule(c || ' seconds', '1 second', c || ' seconds', catch_up => c)
  FROM unnest(ARRAY['none', 'one', 'all']) AS c;
UPDATE mq_timetable SET next_at = date_trunc('day', now() AT TIME ZONE :'zone') AT TIME ZONE :'zone' - interval '6 days' WHERE schedule = '@daily';
UPDATE mq_timetable SET next_at = date_trunc('second', now()) - interval '20 minutes', anchor = now() - interval '20 minutes' WHERE schedule = '1 second';
CALL mq_run();
SELECT channel_name, CASE WHEN channel_name LIKE '% seconds' THEN count(*) >= 1200 ELSE NULL END AS all_seconds, CASE WHEN channel_name NOT LIKE '% seconds' THEN count(*) END AS days
  FROM mq_msgs GROUP BY channel_name ORDER BY channel_name;
SELECT count(*) AS a_week, count(DISTINCT headers #>> '{schedule,at}') AS each_once,
       bool_and(extract(hour FROM (headers #>> '{schedule,at}')::timestamptz AT TIME ZONE :'zone') = 0) AS midnights
  FROM mq_msgs WHERE channel_name = 'all';
SELECT count(*) - count(DISTINCT headers #>> '{schedule,at}') AS doubled, max((headers #>> '{schedule,at}')::timestamptz) - min((headers #>> '{schedule,at}')::timestamptz) = (count(*) - 1) * interval '1 second' AS without_gaps
  FROM mq_msgs WHERE channel_name = 'all seconds';
SELECT name, next_at > now() - interval '10 seconds' AS goes_on, now() - last_at < interval '2 days' AS of_the_last FROM mq_schedules ORDER BY name;
SELECT mq_unschedule(name) FROM mq_schedules;
TRUNCATE mq_msgs;

-- Into a channel with room for three of the four: at each try as many as there is room for.
SELECT mq_limit('narrow', max_pending => 3);
SELECT mq_schedule('narrow', '@yearly', 'narrow', time_zone => 'UTC', catch_up => 'all');
UPDATE mq_timetable SET next_at = date_trunc('year', now()) - interval '3 years';
CALL mq_run();
SELECT failures, sqlstate, next_at = date_trunc('year', now()) AS the_last_waits, (SELECT count(*) FROM mq_msgs) AS messages FROM mq_timetable;
UPDATE mq_timetable SET retry_at = now();
CALL mq_run();
SELECT failures, sqlstate, next_at = date_trunc('year', now()) AS the_last_waits, (SELECT count(*) FROM mq_msgs) AS messages FROM mq_timetable;
SELECT mq_clear('{narrow}');
UPDATE mq_timetable SET retry_at = now();
CALL mq_run();
SELECT failures, next_at > now() AS later, (SELECT count(*) FROM mq_msgs) AS messages FROM mq_timetable;
-- After it was full, all that have room by then at once.
TRUNCATE mq_msgs;
SELECT mq_limit('narrow', max_pending => 0);
UPDATE mq_timetable SET next_at = date_trunc('year', now()) - interval '9 years';
CALL mq_run();
SELECT failures, sqlstate FROM mq_timetable;
SELECT mq_limit('narrow', max_pending => 7);
UPDATE mq_timetable SET retry_at = now();
CALL mq_run();
SELECT failures, sqlstate, (SELECT count(*) FROM mq_msgs) AS messages FROM mq_timetable;
SELECT mq_unschedule('narrow'), mq_unlimit('narrow');
TRUNCATE mq_msgs;

-- --- overlap ------------------------------------------------------------------------------------------

SELECT mq_schedule('alone', '@yearly', 'alone', overlap => false, catch_up => 'all');
SELECT pg_temp.missed('alone', '3 years');
CALL mq_run();
SELECT count(*) FROM mq_msgs;
SELECT pg_temp.missed('alone', '1 year');
CALL mq_run();
SELECT count(*) FROM mq_msgs;
SELECT last_state, next_at > now() AS later FROM mq_schedules;
-- The last one is handled, cancelled, dead: then the next is sent.
TRUNCATE mq_msgs;
SELECT pg_temp.missed('alone', '1 year');
CALL mq_run();
SELECT count(*) FROM mq_msgs;
SELECT count(*) FROM mq_cancel(ARRAY(SELECT id FROM mq_msgs));
SELECT pg_temp.missed('alone', '1 year');
CALL mq_run();
SELECT count(*) FROM mq_msgs;
SELECT mq_unschedule('alone');
TRUNCATE mq_msgs;

-- --- what fails does not stop others --------------------------------------------------------------------

SELECT count(mq_schedule('good ' || n, '@yearly', 'good')) FROM generate_series(1, 30) AS n;
SELECT count(mq_schedule('bad ' || n, '@yearly', 'bad')) FROM generate_series(1, 30) AS n;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no message for %', NEW.channel_name USING ERRCODE = 'QQ001'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON mq_msgs FOR EACH ROW WHEN (NEW.channel_name = 'bad') EXECUTE FUNCTION refuse();
SELECT count(pg_temp.missed(name, '1 year')) FROM mq_timetable;
CALL mq_run();
SELECT channel_name, count(*) FROM mq_msgs GROUP BY channel_name;
SELECT channel_name, count(*), min(failures) AS failures, bool_and(next_at <= now()) AS kept, bool_and(retry_at > now()) AS later, min(sqlstate) AS sqlstate, min(error) AS error
  FROM mq_timetable GROUP BY channel_name ORDER BY channel_name;
UPDATE mq_timetable SET next_at = next_at - interval '1 minute' WHERE failures > 0;
SELECT ok, regexp_replace(detail, 'since [0-9: +-]*(.{50}).*and 20 more', 'since then\1 ...', 'g') AS detail FROM mq_health() WHERE "check" = 'schedules sent';
-- It is tried again, with longer waits, and sends once it can.
UPDATE mq_timetable SET retry_at = now() WHERE failures > 0;
CALL mq_run();
SELECT failures, count(*), bool_and(retry_at > now() + interval '1 second') AS longer FROM mq_timetable WHERE failures > 0 GROUP BY failures;
DROP TRIGGER refuse ON mq_msgs;
UPDATE mq_timetable SET retry_at = now() WHERE failures > 0;
CALL mq_run();
SELECT channel_name, count(*) FROM mq_msgs GROUP BY channel_name ORDER BY channel_name;
SELECT count(*) FILTER (WHERE failures > 0 OR retry_at IS NOT NULL OR error IS NOT NULL) AS failing FROM mq_timetable;
SELECT ok, detail FROM mq_health() WHERE "check" = 'schedules sent';
-- A row that was changed by hand to nonsense.
UPDATE mq_timetable SET schedule = '99 * * * *', next_at = now() WHERE name = 'good 1';
CALL mq_run();
SELECT name, sqlstate, error FROM mq_timetable WHERE failures > 0;
SELECT mq_unschedule(name) FROM mq_schedules \g /dev/null
TRUNCATE mq_msgs;

-- --- the clock ------------------------------------------------------------------------------------------

-- It was two days ahead when the schedule was planned: it is planned anew, and nothing is sent for that.
SELECT mq_schedule('ahead', '@hourly', 'ahead'), mq_schedule('right', '@hourly', 'right');
UPDATE mq_timetable SET next_at = date_trunc('hour', now()) + interval '2 days', planned_at = now() + interval '2 days' WHERE name = 'ahead';
CALL mq_run();
SELECT count(*) FROM mq_msgs;
SELECT name, next_at <= now() + interval '1 hour' AS anew, planned_at <= now() + interval '1 minute' AS planned, retry_at FROM mq_timetable ORDER BY name;
-- An hour ahead: no time is sent twice.
UPDATE mq_timetable SET next_at = date_trunc('hour', now()) + interval '2 hours', planned_at = now() + interval '1 hour' WHERE name = 'ahead';
CALL mq_run();
SELECT next_at > now() + interval '1 hour' AS kept FROM mq_timetable WHERE name = 'ahead';
SELECT mq_unschedule('ahead'), mq_unschedule('right');

-- --- rights ---------------------------------------------------------------------------------------------

CREATE ROLE regress_mq_admin;
CREATE ROLE regress_mq_planner;
CREATE ROLE regress_mq_other;
CREATE ROLE regress_mq_monitor;
SELECT mq_grant('regress_mq_admin', 'admin'), mq_grant('regress_mq_planner', 'produce'), mq_grant('regress_mq_other', 'produce'), mq_grant('regress_mq_monitor', 'monitor');
SET ROLE regress_mq_planner;
SELECT mq_schedule('mine', '@yearly', 'c');
SELECT mq_unschedule('mine');
SELECT count(*) FROM mq_schedules;
SELECT mq_next_times('@daily');
RESET ROLE;
-- A role may be given the function alone.
GRANT EXECUTE ON FUNCTION mq_schedule, mq_unschedule TO regress_mq_planner, regress_mq_other, regress_mq_monitor;
SET ROLE regress_mq_planner;
SELECT mq_schedule('mine', '@yearly', 'c');
SET ROLE regress_mq_other;
SELECT mq_schedule('mine', '@yearly', 'stolen');
SELECT mq_unschedule('mine');
-- Who may not send may not have it sent.
SET ROLE regress_mq_monitor;
SELECT mq_schedule('sneaky', '@yearly', 'c');
SELECT name, schedule, channel_name, last_state, run_as FROM mq_schedules;
SELECT count(*) FROM mq_timetable;
SET ROLE regress_mq_admin;
SELECT count(*) FROM mq_next_times('@daily');
SELECT mq_schedule('mine', '@yearly', 'c', '"of admin"');
SELECT name, run_as FROM mq_schedules;
SET ROLE regress_mq_planner;
SELECT mq_unschedule('mine');
RESET ROLE;
SELECT mq_unschedule('mine');
-- A member of the role may.
SET ROLE regress_mq_planner;
SELECT mq_schedule('mine', '@yearly', 'c');
RESET ROLE;
GRANT regress_mq_planner TO regress_mq_other;
SET ROLE regress_mq_other;
SELECT mq_schedule('mine', '@yearly', 'c');
SELECT mq_unschedule('mine');
RESET ROLE;
REVOKE regress_mq_planner FROM regress_mq_other;
-- The right to send is asked for each time.
SET ROLE regress_mq_planner;
SELECT mq_schedule('mine', '@yearly', 'rights');
RESET ROLE;
SELECT mq_revoke('regress_mq_planner', 'produce');
SELECT pg_temp.missed('mine', '1 year');
CALL mq_run();
SELECT failures, sqlstate, error FROM mq_timetable;
SELECT mq_grant('regress_mq_planner', 'produce');
UPDATE mq_timetable SET retry_at = now();
CALL mq_run();
SELECT channel_name FROM mq_msgs;
-- Renamed, and dropped: its name is no other's.
ALTER ROLE regress_mq_planner RENAME TO regress_mq_renamed;
SELECT run_as FROM mq_schedules;
SELECT pg_temp.missed('mine', '1 year');
CALL mq_run();
SELECT run_as, failures FROM mq_timetable;
DROP OWNED BY regress_mq_renamed;
DROP ROLE regress_mq_renamed;
CREATE ROLE regress_mq_renamed;
SELECT mq_grant('regress_mq_renamed', 'produce');
SELECT pg_temp.missed('mine', '1 year');
CALL mq_run();
SELECT run_as, run_as_oid, sqlstate, error FROM mq_timetable;
SET ROLE regress_mq_renamed;
SELECT mq_unschedule('mine');
RESET ROLE;
SELECT mq_unschedule('mine');
DROP OWNED BY regress_mq_admin, regress_mq_other, regress_mq_monitor, regress_mq_renamed;
DROP ROLE regress_mq_admin, regress_mq_other, regress_mq_monitor, regress_mq_renamed;

-- --- functions of the same names that are not mq's ---------------------------------------------------------

CREATE ROLE regress_mq_nobody;
CREATE FUNCTION mq_send(n int) RETURNS int LANGUAGE sql AS 'SELECT n';
CREATE FUNCTION mq_grant(n int) RETURNS int LANGUAGE sql AS 'SELECT n';
GRANT EXECUTE ON FUNCTION mq_schedule, mq_unschedule TO regress_mq_nobody;
SELECT mq_schedule('mine', '@yearly', 'overload');
SELECT pg_temp.missed('mine', '1 year');
TRUNCATE mq_msgs;
CALL mq_run();
SELECT channel_name FROM mq_msgs;
SET ROLE regress_mq_nobody;
SELECT mq_schedule('not mine', '@yearly', 'c');
SELECT mq_unschedule('mine');
RESET ROLE;
SELECT mq_unschedule('mine');
TRUNCATE mq_msgs;
DROP FUNCTION mq_send(int), mq_grant(int);
DROP OWNED BY regress_mq_nobody;
DROP ROLE regress_mq_nobody;

-- --- beside others --------------------------------------------------------------------------------------

-- In a prepared transaction, and under REPEATABLE READ.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT mq_schedule('serial', '@daily', 'c');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT mq_unschedule('serial');
COMMIT;
-- A handler may make one, and remove it.
CREATE FUNCTION plan(payload jsonb) RETURNS void LANGUAGE sql AS $$ SELECT public.mq_schedule('of a handler', '@daily', 'c', payload) $$;
SELECT mq_register_handler('plan', 'plan(jsonb)');
SELECT mq_send('plan', '7') IS NOT NULL AS sent;
CALL mq_run();
SELECT name, channel_name FROM mq_schedules;
DROP EXTENSION mq CASCADE;
DROP TABLE handled;
DROP FUNCTION refuse;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
