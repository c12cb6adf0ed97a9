CREATE FUNCTION mq_grant(role regrole, "right" text) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_grant';
COMMENT ON FUNCTION mq_grant(regrole, text) IS
  'Gives a role a whole set of rights: produce (send and publish messages, ask what has become of those whose ids one knows, wait for them), consume (receive, poll, delete, cancel and clear them, and call mq_snooze and its like from handlers), monitor (mq_health, mq_why, mq_stats, mq_metrics, mq_histogram, mq_workers, mq_horizon, mq_limits, mq_subscriptions: no payloads, no errors of handlers), develop (register and unregister handlers that run as roles that it is a member of, pause, resume and limit their channels) or admin (everything). 22023 or 22004 for another right.';

CREATE FUNCTION mq_revoke(role regrole, "right" text) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_revoke';
COMMENT ON FUNCTION mq_revoke(regrole, text) IS
  'Takes a whole set of rights from a role: produce, consume, monitor, develop or admin. What two sets share goes with the first one taken.';

-- Nothing for PUBLIC.
REVOKE ALL ON FUNCTION
  mq_insert(mq_new_t[]),
  mq_send(text, jsonb, text, text, boolean, interval, integer, interval, interval, bytea, uuid, text, interval, integer, jsonb, uuid[], interval),
  mq_send_many(text, jsonb[], text, text, boolean, interval, integer, interval, interval, bytea, interval, integer, jsonb, uuid[], interval),
  mq_send_once(text, text, jsonb, text, text, boolean, interval, integer, interval, interval, bytea, interval, integer, jsonb, uuid[], interval),
  mq_publish(text, jsonb, text, text, boolean, interval, integer, interval, interval, bytea, text, interval, integer, jsonb, uuid[], interval),
  mq_subscribe(text, text, text, boolean), mq_unsubscribe(text, text, text),
  mq_commit(uuid[]), mq_status(uuid[]), mq_wait(uuid[], interval), mq_channel_key(text, text), mq_poll(text[], integer), mq_delete(uuid[]), mq_cancel(uuid[], text),
  mq_keep_alive(uuid[], interval), mq_checkpoint(uuid, interval, text, bytea, integer),
  mq_receive(text[], integer, interval, interval), mq_ack(uuid[], bigint, jsonb),
  mq_nack(uuid[], bigint, text, text, interval, boolean), mq_extend(uuid[], bigint, interval),
  mq_clear(text[]), mq_clear_all(), mq_uuid_exists(uuid), mq_latest_message(text, text),
  mq_active_channels(text[], integer),
  mq_register_handler(text, regprocedure, text, text, integer, interval, integer, regrole, interval, text, integer, interval),
  mq_handler_function(text), mq_handler_trouble(text, regrole, text),
  mq_unregister_handler(text, text), mq_pause(text), mq_resume(text),
  mq_limit(text, bigint, integer, integer, integer, interval, boolean), mq_unlimit(text), mq_limit_use(), mq_redrive(uuid[], text, integer, timestamptz, timestamptz),
  mq_snooze(interval, uuid), mq_discard(text, uuid), mq_progress(real, text), mq_telling_calls(), mq_announce(), mq_enable(), mq_enabled_state(), mq_enabled_stays(),
  mq_channel_stats(), mq_channel_histograms(), mq_rate_state(), mq_limits_without_room(), mq_reset_stats(), mq_worker_slots(), mq_service_state(),
  mq_connection_refusals(), mq_unsettled(), mq_horizon_holders(), mq_health(), mq_health_rows(), mq_health_of_server(), mq_lock_waits(),
  mq_process(integer, text, text, text), mq_since(timestamptz), mq_blockers(integer), mq_waiting_commits(), mq_preferred(text[]),
  mq_some(text[]), mq_failing_workers(), mq_prepared(xid), mq_has_consumers(), mq_leased_calls(), mq_cancelled_calls(), mq_locked_tables(), mq_obstacles(), mq_row_holders(), mq_running_calls(), mq_service(), mq_server_mode(), mq_reason(uuid), mq_whereabouts(uuid), mq_why(uuid),
  mq_schedule(text, text, text, jsonb, text, text, boolean, integer, interval, bytea, text, interval, integer, jsonb, interval, text, text, boolean),
  mq_unschedule(text), mq_next_times(text, text, timestamptz, integer), mq_last_state(uuid),
  mq_grant(regrole, text), mq_revoke(regrole, text) FROM PUBLIC;
REVOKE ALL ON PROCEDURE mq_run(text[], bigint, bigint),
  mq_call(text, jsonb, jsonb, text, text, interval, boolean, integer, interval, bytea, integer, jsonb, uuid[], interval) FROM PUBLIC;
REVOKE ALL ON TYPE mq_new_t, mq_message, mq_delivery FROM PUBLIC;
