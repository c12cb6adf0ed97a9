CREATE FUNCTION mq_rate_state(OUT channel_name text, OUT ready integer, OUT next_at timestamptz)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_rate_state';
COMMENT ON FUNCTION mq_rate_state() IS 'For each channel with a rate that is not per channel_args: how many calls may begin now, and when the next may; NULL where the library is not preloaded, so that none may. For mq_stats, mq_limits, mq_health() and mq_why().';

CREATE FUNCTION mq_limits_without_room() RETURNS timestamptz
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_limits_without_room';
COMMENT ON FUNCTION mq_limits_without_room() IS 'When shared memory had no room last for another channel whose limits are in use; NULL: not in the last hour. For mq_health().';

