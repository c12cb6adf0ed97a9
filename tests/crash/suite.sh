# Sourced by tests/run/test.sh: the suite `crash`, which `make test` alone leaves out.
#
# Builds mq a second time with its crash points (bgworker/pg/crash_point.hpp), in build/crash of the checkout, and
# installs that into a copy of the server of its own. crash.py has a process end at each point; TESTS names some.

suite_crash() {
  local log=$WORK/log/crash.out rc=0 python release=$SOURCE/mq.so tree=$SOURCE/build/crash
  if ! python=$(deps_python psycopg); then
    REASONS+=('crash: skipped, since python3-psycopg is not installed')
    tally crash 0 0 0 1
    return
  fi
  # What an earlier build has compiled stays, but no source that is gone.
  mkdir -p "$tree"
  find "$tree" -type f \( -name '*.[ch]' -o -name '*.[ch]pp' -o -name '*.sql' -o -name mq.so \) -delete
  tar -C "$WORK/src" --exclude=./build --exclude=./mq.so --exclude='*.o' --exclude='*.d' -cf - . | tar -C "$tree" --no-same-owner -xf -
  chown -R --reference="$SOURCE" "$tree" 2>/dev/null || true
  local PG_TREE PG_BIN PGXS_SRC SOURCE=$tree MAKE_OPTIONS=(CRASH_POINTS=1 WERROR=-Werror)
  if ! build all; then
    tally crash 1 0 0 0
    return
  fi
  server_tree crash-tree
  server_install
  user_dir "$WORK/runs"
  # shellcheck disable=SC2086 # TESTS are words
  logged "$log" with_servers \
    "$python" "$HERE/tests/crash/crash.py" --release "$release" --armed "$tree/mq.so" ${TESTS:-} || rc=$?
  tally crash "$rc" "$(count '^ok ' "$log")" "$(count '^not ok ' "$log")" 0
}
