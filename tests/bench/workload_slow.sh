# Sourced by run.sh. Head of line: how long single messages of a quick channel take from the start of their sending to
# their handler, 20 a second, each handled for a millisecond, while handlers of another channel of the same role sleep for
# 10 s, one fewer than there are workers; beside it without those (microseconds, 99th percentile of SLOW_MESSAGES).

SLOW_MESSAGES=${MESSAGES:-$([ -n "${QUICK:-}" ] && echo 60 || echo 160)}

slow_latency() {  # SLEEPERS
  local i
  sql slow -c 'TRUNCATE latencies' -c VACUUM -c "SELECT mq_send('slow') FROM generate_series(1, $1)" >/dev/null
  for ((i = 0; i < SLOW_MESSAGES; i++)); do
    echo "SELECT mq_send('quick', jsonb_build_object('at', clock_timestamp())) \\g /dev/null"
    echo '\! sleep 0.05'
  done | sql slow
  until [ "$(sql slow -c 'SELECT count(*) FROM latencies')" = "$SLOW_MESSAGES" ]; do sleep 0.1; done
  sql slow -c 'SELECT round(percentile_cont(0.99) WITHIN GROUP (ORDER BY us)) FROM latencies'
  until [ "$(sql slow -c 'SELECT count(*) FROM mq_msgs')" = 0 ]; do sleep 0.1; done
}

slow_beside() { slow_latency $((SLOW_WORKERS - 1)); }
slow_alone() { slow_latency 0; }

workload_slow() {
  sql postgres -c 'CREATE DATABASE slow'
  sql slow -c 'CREATE EXTENSION mq' -c 'CREATE TABLE latencies (us float8)' \
    -c "CREATE FUNCTION quick(payload jsonb) RETURNS void LANGUAGE sql AS \$\$
          INSERT INTO latencies SELECT extract(epoch FROM clock_timestamp() - (payload ->> 'at')::timestamptz) * 1e6;
          SELECT pg_sleep(0.001) \$\$" \
    -c "CREATE FUNCTION slow(payload jsonb) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(10)'" \
    -c "SELECT mq_register_handler('quick', 'quick(jsonb)'), mq_register_handler('slow', 'slow(jsonb)')" >/dev/null
  for SLOW_WORKERS in 2 4; do
    sql postgres -c "ALTER SYSTEM SET mq.max_workers = $SLOW_WORKERS" -c 'SELECT pg_reload_conf()' >/dev/null
    pair slow_beside slow_alone
    row "head of line: latency of a quick channel beside $((SLOW_WORKERS - 1)) of $SLOW_WORKERS workers in calls of 10 s, 99th percentile, µs; beside it alone (less is better)" \
      slow_beside slow_alone
  done
  sql postgres -c 'ALTER SYSTEM RESET mq.max_workers' -c 'SELECT pg_reload_conf()' >/dev/null
}
