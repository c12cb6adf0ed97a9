# Sourced by run.sh, for `make bench WORKLOAD=release BASE=commit`. This checkout beside another commit of mq, each in a
# server of its own, by turns: burning down 200,000 unordered messages (messages per second, and the worker's CPU time
# for them in nanoseconds per message), and how long a single message takes from the start of its sending to its handler,
# 50 a second with an idle worker (microseconds, median and 99th percentile of 500).

BASE=${BASE:-}

release_server() {  # TREE PORT
  server_tree "$1"
  server_install
  PG_PORT=$2
  server_start "$1-server" 'synchronous_commit = on' 'shared_buffers = 1GB' 'max_wal_size = 8GB' \
    'checkpoint_timeout = 1h' 'mq.max_workers = 1' 'autovacuum = off'
  sql postgres -c 'CREATE DATABASE mq'
  sql mq -c 'CREATE EXTENSION mq' \
    -c "CREATE FUNCTION noop(payload jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN END'" \
    -c 'CREATE TABLE latencies (us float8)' \
    -c "CREATE FUNCTION arrive(payload jsonb) RETURNS void LANGUAGE sql AS \$\$
          INSERT INTO latencies SELECT extract(epoch FROM clock_timestamp() - (payload ->> 'at')::timestamptz) * 1e6 \$\$" \
    -c "SELECT mq_register_handler('latency', 'arrive(jsonb)')" >/dev/null
}

# on BASE|HERE COMMAND...: with the programs and the port of that server.
on() {
  local side=$1
  shift
  if [ "$side" = BASE ]; then PG_BIN=$RELEASE_BASE_BIN PG_PORT=5433 "$@"; else PG_BIN=$RELEASE_HERE_BIN PG_PORT=5434 "$@"; fi
}

release_latency() {
  sql mq -c 'TRUNCATE latencies' -c VACUUM >/dev/null
  for ((i = 0; i < 500; i++)); do
    echo "SELECT mq_send('latency', jsonb_build_object('at', clock_timestamp())) \\g /dev/null"
    echo '\! sleep 0.02'
  done | sql mq
  until [ "$(sql mq -c 'SELECT count(*) FROM latencies')" = 500 ]; do sleep 0.1; done
  sql mq -F ' ' -c "SELECT round(percentile_cont(0.5) WITHIN GROUP (ORDER BY us)), round(percentile_cont(0.99) WITHIN GROUP (ORDER BY us)) FROM latencies" \
    >"$WORK/latency"
  cut -d ' ' -f 1 "$WORK/latency"
  cut -d ' ' -f 2 "$WORK/latency" >>"$WORK/$1.rates"
}

# "pid ticks" of CPU of each worker.
release_cpu() {
  local pid
  for pid in $(sql mq -c "SELECT pid FROM pg_stat_activity WHERE backend_type = 'mq worker'"); do
    awk -v pid="$pid" '{ sub(/.*\) /, ""); print pid, $12 + $13 }' "/proc/$pid/stat"
  done
}

# release_burn FILE: burns down, and adds to FILE what that has cost.
release_burn() {
  release_cpu >"$WORK/cpu.before"
  burn_mq
  release_cpu >"$WORK/cpu.after"
  awk -v n="$BURN_MESSAGES" -v hz="$(getconf CLK_TCK)" 'NR == FNR { before[$1] = $2; next } { ticks += $2 - before[$1] }
    END { printf "%d\n", ticks / hz * 1e9 / n }' "$WORK/cpu.before" "$WORK/cpu.after" >>"$WORK/$1.rates"
}

burn_here() { on HERE release_burn cpu_here; }
burn_base() { on BASE release_burn cpu_base; }
latency_here() { on HERE release_latency latency99_here; }
latency_base() { on BASE release_latency latency99_base; }

workload_release() {
  if [ -z "$BASE" ]; then
    echo 'BASE names no commit to compare with.' >&2
    return
  fi
  local here=$SOURCE bin=$PG_BIN port=$PG_PORT
  mkdir "$WORK/base"
  git -C "$HERE" -c safe.directory="$HERE" archive "$BASE" | tar -C "$WORK/base" -xf -
  SOURCE=$WORK/base
  build all
  release_server base 5433
  RELEASE_BASE_BIN=$PG_BIN
  SOURCE=$here
  release_server here 5434
  RELEASE_HERE_BIN=$PG_BIN
  : >"$WORK/cpu_here.rates"
  : >"$WORK/cpu_base.rates"
  : >"$WORK/latency99_here.rates"
  : >"$WORK/latency99_base.rates"
  pair burn_here burn_base
  row "burn down $BURN_MESSAGES unordered messages, this checkout; beside it ${BASE:0:10}" burn_here burn_base
  row 'the same, CPU of the worker, ns per message (less is better)' cpu_here cpu_base
  pair latency_here latency_base
  row "latency of a single message, median, µs; beside it ${BASE:0:10} (less is better)" latency_here latency_base
  row "the same, 99th percentile, µs" latency99_here latency99_base
  on HERE server_stop here-server
  on BASE server_stop base-server
  PG_BIN=$bin PG_PORT=$port
}
