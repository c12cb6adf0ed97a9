-- Schedules: messages that are sent at times.

CREATE FUNCTION mq_schedule(
  name text, schedule text, channel_name text, payload_json jsonb DEFAULT NULL, message_name text DEFAULT NULL,
  channel_args text DEFAULT '', ordered boolean DEFAULT false, retries integer DEFAULT 24,
  retry_backoff interval DEFAULT '1 second', payload_bytes bytea DEFAULT NULL, dedup_key text DEFAULT NULL,
  expires interval DEFAULT NULL, priority integer DEFAULT 0, headers jsonb DEFAULT NULL, keep interval DEFAULT NULL,
  time_zone text DEFAULT pg_catalog.current_setting('TimeZone'), catch_up text DEFAULT 'one', overlap boolean DEFAULT true) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_schedule';
COMMENT ON FUNCTION mq_schedule(text, text, text, jsonb, text, text, boolean, integer, interval, bytea, text, interval, integer, jsonb, interval, text, text, boolean) IS
  'Makes a schedule, or replaces the one of this name: at each of its times a message is sent, as by mq_send with these options, as the role that calls this. schedule is a cron line of five fields, one of @yearly, @monthly, @weekly, @daily and @hourly, or an interval of whole seconds. catch_up says what is sent for times that passed while nobody could send: none, one message, or all. overlap false: nothing is sent while the last message is pending. With the same schedule and time_zone as before it keeps its next time. 22004 or 22023 for a bad value, named with its field; 42501 if the role may not call mq_send, or is no member of the role whose schedule it replaces.';

CREATE FUNCTION mq_unschedule(name text) RETURNS boolean
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_unschedule';
COMMENT ON FUNCTION mq_unschedule(text) IS
  'Removes the schedule of this name; false: there is none. What it has sent stays. 22004 for NULL, 42501 for one of a role that the caller is no member of.';

CREATE FUNCTION mq_next_times(schedule text, time_zone text DEFAULT pg_catalog.current_setting('TimeZone'),
                              after timestamptz DEFAULT pg_catalog.now(), times integer DEFAULT 10) RETURNS SETOF timestamptz
  LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'mq_next_times';
COMMENT ON FUNCTION mq_next_times(text, text, timestamptz, integer) IS
  'The next times of a schedule after a moment, from which an interval counts, too. At most 10,000. 22004 or 22023 for a bad value, as in mq_schedule.';

CREATE FUNCTION mq_last_state(id uuid) RETURNS text
  LANGUAGE sql VOLATILE STRICT SECURITY DEFINER
  RETURN (SELECT s.state FROM mq_status(ARRAY[id]) AS s);
COMMENT ON FUNCTION mq_last_state(uuid) IS 'The state of the message, as mq_status has it; for mq_schedules.';

CREATE VIEW mq_schedules AS
  SELECT t.name, t.schedule, t.time_zone, t.channel_name, t.next_at, t.last_at, t.last_id, mq_last_state(t.last_id) AS last_state,
         COALESCE((SELECT r.rolname::text FROM pg_roles r JOIN mq_enabled m ON m.id = t.enabled_id WHERE r.oid = t.run_as_oid), t.run_as) AS run_as
    FROM mq_timetable t;
COMMENT ON VIEW mq_schedules IS
  'A row for each schedule. next_at: its next time; last_at: the last one for which a message was sent; last_id: that message; last_state: what has become of it, as mq_status tells; run_as: the role that made the schedule, and that sends.';
