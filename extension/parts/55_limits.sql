-- Limits: how many messages a channel may have, and how many calls may run or begin.

CREATE FUNCTION mq_limit(
  channel_name text, max_pending bigint DEFAULT NULL, max_running integer DEFAULT NULL,
  max_running_per_args integer DEFAULT NULL, rate integer DEFAULT NULL, per interval DEFAULT NULL,
  rate_per_args boolean DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_limit';
COMMENT ON FUNCTION mq_limit(text, bigint, integer, integer, integer, interval, boolean) IS
  'Limits a channel, from the commit on; replaces all limits that it had. max_pending (0 or more): a send that would make more messages pending fails with 53400. max_running (1 to 1000): so many calls run at once, on workers, mq_run and consumers with mq_receive together. max_running_per_args (1 to 1000): so many unordered messages of one channel_args run at once. rate: so many calls begin in each per (NULL: 1 second), at most 1,000,000 a second; rate_per_args: of each channel_args on its own. NULL: no such limit. 22023 or 22004 for a bad value or if no limit is given, 42501 where a handler of the channel runs as a role that the caller, without the right admin, is no member of; 55000 before ALTER EXTENSION mq UPDATE.';

CREATE FUNCTION mq_unlimit(channel_name text) RETURNS boolean
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_unlimit';
COMMENT ON FUNCTION mq_unlimit(text) IS 'Takes the limits of a channel away; false if it had none. 22023 or 22004 for a bad name, 42501 as mq_limit.';

CREATE FUNCTION mq_limit_use(OUT channel_name text, OUT pending bigint, OUT sending bigint, OUT running integer)
  RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_limit_use';
COMMENT ON FUNCTION mq_limit_use() IS 'What is used of the limits of each channel that has some; for mq_limits.';

CREATE VIEW mq_limits AS
  SELECT l.channel_name, l.max_pending, u.pending, u.sending, l.max_running, u.running, l.max_running_per_args, l.rate, l.per, l.rate_per_args,
         r.ready, r.next_at,
         CASE WHEN l.rate_per_args OR l.max_running_per_args IS NOT NULL
              THEN (SELECT pg_catalog.count(*) FROM mq_msgs m WHERE m.channel_name = l.channel_name AND m.throttled_at IS NOT NULL) END AS put_off
    FROM mq_channel_limits l LEFT JOIN mq_limit_use() AS u ON u.channel_name = l.channel_name
         LEFT JOIN mq_rate_state() AS r ON r.channel_name = l.channel_name;
COMMENT ON VIEW mq_limits IS 'The limits of channels, and what is used of them: a row for each channel that mq_limit has limited. What has no limit is NULL.';
COMMENT ON COLUMN mq_limits.pending IS 'Messages that the channel has; NULL without max_pending.';
COMMENT ON COLUMN mq_limits.sending IS 'Messages that transactions in progress have sent; they count as well. NULL without max_pending, and where the library is not preloaded.';
COMMENT ON COLUMN mq_limits.running IS 'Calls that run; NULL without max_running.';
COMMENT ON COLUMN mq_limits.ready IS 'How many calls the rate lets begin now; NULL without a rate, with rate_per_args, and where the library is not preloaded.';
COMMENT ON COLUMN mq_limits.next_at IS 'When the next call may begin; NULL as ready.';
COMMENT ON COLUMN mq_limits.put_off IS 'Messages that rate_per_args or max_running_per_args has put off; NULL without either.';
