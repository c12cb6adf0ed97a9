# Sourced by run.sh. Burning down unordered messages over 10 channels while a session holds a snapshot from before the
# start; beside it the same without. The workers say when they are done: who looked at the table would read all that
# is gone.

HORIZON_MESSAGES=${MESSAGES:-$([ -n "${QUICK:-}" ] && echo 100000 || echo 1000000)}

handled() { sql mq -c 'SELECT COALESCE(max(handled), 0) FROM mq_workers'; }

horizon_burn() {
  local from
  from=$(now)
  sql mq -c "SELECT mq_register_handler('burn' || c, 'noop(jsonb)') FROM generate_series(1, 10) c" >/dev/null
  until [ "$(handled)" -ge "$HORIZON_MESSAGES" ]; do sleep 0.02; done
  per_second "$HORIZON_MESSAGES" "$from" "$(now)"
}

horizon_send() {
  sql mq -c "SELECT mq_unregister_handler('burn' || c) FROM generate_series(1, 10) c" \
    -c "SELECT count(*) FROM generate_series(1, 10) c, mq_send_many('burn' || c,
          ARRAY(SELECT jsonb_build_object('n', i) FROM generate_series(1, $HORIZON_MESSAGES / 10) i))" \
    -c 'VACUUM ANALYZE' -c CHECKPOINT >/dev/null
  until [ "$(handled)" = 0 ]; do sleep 0.02; done
}

horizon_free() {
  horizon_send
  horizon_burn
}

horizon_held() {
  local holders="pg_stat_activity WHERE application_name = 'holder' AND backend_xmin IS NOT NULL"
  horizon_send
  sql mq -c "SET application_name = 'holder'" -c 'BEGIN ISOLATION LEVEL REPEATABLE READ' \
    -c 'SELECT count(*) FROM mq_handlers' -c 'SELECT pg_sleep(3600)' >/dev/null 2>&1 &
  until [ "$(sql mq -c "SELECT count(*) FROM $holders")" = 1 ]; do sleep 0.02; done
  horizon_burn
  sql mq -c "SELECT pg_terminate_backend(pid) FROM $holders" >/dev/null
  wait $! || true
}

workload_horizon() {
  sql mq -c 'CREATE EXTENSION IF NOT EXISTS mq' \
    -c "CREATE OR REPLACE FUNCTION noop(payload jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN END'" 2>/dev/null
  pair horizon_held horizon_free
  row "burn down $HORIZON_MESSAGES unordered messages over 10 channels while a snapshot is held; beside it without" \
    horizon_held horizon_free
}
