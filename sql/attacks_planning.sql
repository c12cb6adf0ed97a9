--
-- Attacks by names: whatever stands in the name of a limited channel, of a schedule, in its channel, in a topic or a pattern is
-- data. It comes back as it was given, in rows, views, errors and health, or an error says why it cannot be a name. Attacks by
-- roles on every object are in attacks.sql, bad values of other arguments in limits.sql, schedules.sql and topics.sql.
--
-- Workers stay out.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
SET client_min_messages = warning;
SET timezone = 'UTC';
CREATE EXTENSION mq;
CREATE TABLE names (n int PRIMARY KEY, name text);
INSERT INTO names SELECT n, name FROM unnest(ARRAY[
  $$O'Brien"; DROP TABLE names; --$$, $$\'; SELECT 1; \x$$, '%s %I %1$s', '$1', '{a,b}', '(1,2)', 'NULL', ' ', E'a\nb\tc', E'\x01\x7f', 'pg_temp', 'mq_msgs', 'a.b.#', '*',
  'großes Ö 漢字 🚂', repeat('ä', 100), $$']}'::regclass$$, '$mq$ $_$', '/* */', U&'\202Eabc', 'c"c']) WITH ORDINALITY AS t (name, n);
CREATE TABLE seen (n bigint GENERATED ALWAYS AS IDENTITY, channel text, payload jsonb);
CREATE FUNCTION see(m mq_message) RETURNS void LANGUAGE sql AS $$ INSERT INTO seen (channel, payload) VALUES (m.channel_name, m.payload_json) $$;
-- What comes of a statement: SQLSTATE, message, detail and hint, or the first column of its first row.
CREATE FUNCTION pg_temp.try(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  result text;
  detail text;
BEGIN
  EXECUTE statement INTO result;
  RETURN result;
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
  RETURN concat_ws(' | ', SQLSTATE || ' ' || SQLERRM, nullif(detail, ''));
END $$;

-- --- limited channels -----------------------------------------------------------------------------

SELECT count(mq_limit(name, max_pending => 2, max_running => 1, max_running_per_args => 1, rate => 1000000, per => '1 second')) FROM names;
SELECT count(*) FROM names JOIN mq_limits ON channel_name = name AND max_pending = 2 AND pending = 0;
SELECT count(mq_register_handler(name, 'see(mq_message)')) FROM names;
SELECT count(mq_send(name, to_jsonb(n), channel_args => name)), count(mq_send(name, to_jsonb(n), ordered => true, channel_args => name)) FROM names;
SELECT n, pg_temp.try(format('SELECT mq_send(%L)', name)) FROM names ORDER BY n;
SELECT count(*) FROM names JOIN mq_limits ON channel_name = name AND pending = 2;
CALL mq_run();
SELECT count(*) FROM names n WHERE (SELECT array_agg(s.payload) FROM seen s WHERE s.channel = n.name) = ARRAY[to_jsonb(n.n), to_jsonb(n.n)];
SELECT count(*) FROM seen;
SELECT count(mq_unlimit(name)) FROM names;
SELECT count(*) FROM mq_limits;

-- --- schedules ------------------------------------------------------------------------------------

SELECT count(mq_schedule(name, '@hourly', name, to_jsonb(n), channel_args => name, message_name => name, dedup_key => name)) FROM names;
SELECT count(*) FROM names n JOIN mq_schedules s USING (name) WHERE s.channel_name = n.name;
TRUNCATE seen;
UPDATE mq_timetable SET next_at = date_trunc('hour', now()), planned_at = now() - interval '1 hour';
CALL mq_run();
SELECT count(*) FROM names n JOIN seen s ON s.channel = n.name AND s.payload = to_jsonb(n.n);
-- A line, a time zone: only what is one. (What begins with a word and a number is one, as for SET timezone.)
SELECT pg_temp.try(format('SELECT mq_schedule(%L, %L, %L)', 'x', name, 'c')) FROM names ORDER BY n;
SELECT pg_temp.try(format('SELECT mq_schedule(%L, %L, %L, time_zone => %L)', 'x', '@daily', 'c', name)) FROM names ORDER BY n;
-- Not of the files around it either.
SELECT pg_temp.try(format('SELECT mq_schedule(%L, %L, %L, time_zone => %L)', 'x', '@daily', 'c', name))
  FROM unnest(ARRAY['../../../../../../etc/passwd', '/etc/passwd', './UTC', 'posixrules/../UTC', 'UTC/']) AS name;
SELECT count(mq_unschedule(name)) FROM names;
SELECT count(*) FROM mq_timetable;

-- --- topics ---------------------------------------------------------------------------------------

SELECT n, pg_temp.try(format('SELECT mq_subscribe(%L, %L)', name, name)) FROM names ORDER BY n;
SELECT n, regexp_replace(pg_temp.try(format('SELECT mq_publish(%L, %L)', name, n)), '^[0-9a-f-]{36}$', 'published') AS try FROM names ORDER BY n;
-- What was taken as a pattern stands there as it was given, with its channel; what was refused does not.
SELECT count(*) FROM mq_subscribers;
SELECT count(*) FROM names n JOIN mq_subscribers s ON s.channel_name = n.name;

-- Nothing was dropped, made or changed beside that.
SELECT count(*) FROM names;
SELECT pg_temp.try('SELECT mq_status(NULL)') IS NOT NULL AS there;
DROP EXTENSION mq CASCADE;
DROP TABLE names, seen;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
