#!/bin/bash
# run.sh: what `make bench` runs.
#
#   make bench                     all workloads, five pairs of runs each; writes docs/benchmarks.md
#   make bench QUICK=1             one pair, fewer messages, writes nothing
#   make bench WORKLOAD=burn       one workload: burn, horizon, slow
#   make bench ORIGINAL=schema.txt the schema that mq replaces, to run beside it
#   make bench WORKLOAD=release BASE=commit
#                                  this checkout beside another commit
#
# Both sides run in the same private server, by turns; a figure is the median of the runs, with the lowest and
# the highest beside it. The machine should be idle otherwise. A workload is a file here that defines a function
# workload_NAME; it calls pair and report.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
SOURCE=$HERE
cd /
umask 022
. "$HERE/tests/run/workdir.sh"
. "$HERE/tests/run/deps.sh"
. "$HERE/tests/run/server.sh"
BENCH=$HERE/tests/bench
for file in "$BENCH"/workload_*.sh; do . "$file"; done

ORIGINAL=${ORIGINAL:-$HERE/../shared/reference/original-schema.txt}
ROUNDS=${ROUNDS:-$([ -n "${QUICK:-}" ] && echo 1 || echo 5)}

# sql DATABASE [PSQL OPTION...]: psql as the superuser of the private server.
sql() {
  local database=$1
  shift
  as_user psql -X -q -At -v ON_ERROR_STOP=1 -h "$WORK/socket" -p "$PG_PORT" -U postgres -d "$database" "$@"
}

now() { date +%s.%N; }
per_second() { awk -v n="$1" -v from="$2" -v to="$3" 'BEGIN { printf "%d\n", n / (to - from) }'; }

# pair OURS THEIRS: runs the two functions by turns, each of which prints a rate; keeps them in $WORK. Every other round
# begins with the other one, so that neither always comes after what its neighbour has left to the disk.
pair() {
  local round side sides
  : >"$WORK/$1.rates"
  : >"$WORK/$2.rates"
  for ((round = 1; round <= ROUNDS; round++)); do
    if ((round % 2)); then sides=("$1" "$2"); else sides=("$2" "$1"); fi
    for side in "${sides[@]}"; do
      "$side" >>"$WORK/$side.rates"
      printf '  round %d of %d: %s %s/s\n' "$round" "$ROUNDS" "$side" "$(tail -n 1 "$WORK/$side.rates")" >&2
    done
  done
}

# statistics FUNCTION: "median lowest highest" of its rates.
statistics() {
  sort -n "$WORK/$1.rates" | awk '{ r[NR] = $1 } END { print r[int((NR + 1) / 2)], r[1], r[NR] }'
}

# row NAME OURS THEIRS: a line of the table; the ratio is the median of the pairs' ratios.
row() {
  local ours theirs ratio
  read -ra ours <<<"$(statistics "$2")"
  read -ra theirs <<<"$(statistics "$3")"
  ratio=$(paste "$WORK/$2.rates" "$WORK/$3.rates" | awk '{ print $1 / $2 }' | sort -g |
    awk '{ r[NR] = $1 } END { printf "%.3g", (r[int((NR + 1) / 2)] + r[int(NR / 2) + 1]) / 2 }')
  printf '| %s | %s (%s to %s) | %s (%s to %s) | %s |\n' "$1" "${ours[@]}" "${theirs[@]}" "$ratio" >>"$WORK/table"
}

deps_install build
workdir_create bench
say "Building for $("$PG_CONFIG" --version)"
build all
server_tree tree
server_install
say 'A private server'
server_start bench-server 'synchronous_commit = on' 'shared_buffers = 1GB' 'max_wal_size = 8GB' \
  'checkpoint_timeout = 1h' 'mq.max_workers = 1' || exit 1
sql postgres -c 'CREATE DATABASE mq' -c 'CREATE DATABASE original'

: >"$WORK/table"
for workload in ${WORKLOAD:-burn horizon}; do
  say "$workload"
  "workload_$workload"
done
server_stop bench-server

cat - "$WORK/table" >"$WORK/benchmarks.md" <<END
# Benchmarks

Messages per second: the median of $ROUNDS runs, the lowest and the highest in brackets; both sides in one server, by
turns. The ratio is the median of the pairs' ratios. \`make bench\` makes this page.

$(. /etc/os-release && echo "$PRETTY_NAME"), $("$PG_CONFIG" --version), $(nproc) cores
($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)), $(date -u +%F). Settings: synchronous_commit on, fsync on,
shared_buffers 1 GB, max_wal_size 8 GB, mq.max_workers 1; all others as installed.

| workload | mq | beside it | ratio |
|---|---|---|---|
END
[ ! -f "$BENCH/notes.md" ] || cat "$BENCH/notes.md" >>"$WORK/benchmarks.md"
echo
cat "$WORK/table"
if [ -z "${QUICK:-}${WORKLOAD:-}" ]; then
  install -m 644 "$WORK/benchmarks.md" "$HERE/docs/benchmarks.md"
  echo "Written to docs/benchmarks.md"
fi
