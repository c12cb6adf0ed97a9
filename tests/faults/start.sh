# Sourced by tests/run/test.sh, tests/faults/run.sh and tests/memory/run.sh: faults_run OPTION... runs faults.py with the
# server in $PG_TREE.

# with_servers COMMAND...: a program whose servers are those of tests/faults/server.py.
with_servers() {
  user_dir "$WORK/data" "$WORK/socket" "$WORK/log"
  job env PYTHONDONTWRITEBYTECODE=1 WORK="$WORK" AS_USER="${AS_USER[*]}" FAULTS_BIN="$PG_BIN" PG_CONFIG="$PG_CONFIG" "$@"
}

# As root, in a mount namespace of its own: what a fault mounts goes with the run, however that ends.
faults_run() {
  local python apart=()
  if ! python=$(deps_python psycopg); then
    echo 'ok - faults # SKIP python3-psycopg is not installed'
    return
  fi
  if [ "$EUID" -eq 0 ] && unshare --mount true 2>/dev/null; then apart=(unshare --mount --propagation private); fi
  user_dir "$WORK/runs"
  with_servers "${apart[@]}" "$python" "$HERE/tests/faults/faults.py" "$@"
}
