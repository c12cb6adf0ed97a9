# Sourced by tests/run/test.sh: the suite `failover`, which `make test` alone leaves out (`make test-failover`).
#
# Debian's patroni and etcd, unpacked in the work directory, look after two servers (failover.py). FAILOVER_DOCUMENT names
# the document that keeps the table.

suite_failover() {
  local log=$WORK/log/failover.out rc=0 python missing='' tools=$WORK/patroni packages
  if ! python=$(deps_python psycopg); then
    missing='python3-psycopg is not installed'
  else
    deps_patroni "$tools"
    packages=$tools/usr/lib/python3/dist-packages
    local patroni=$tools/usr/bin/patroni patronictl=$tools/usr/bin/patronictl etcd=$tools/usr/bin/etcd
    if [ ! -x "$patroni" ]; then patroni=$(command -v patroni) patronictl=$(command -v patronictl) etcd=$(command -v etcd) packages='' || true; fi
    [ -n "$patroni" ] && [ -n "$patronictl" ] || missing='patroni is not installed'
    [ -n "$etcd" ] || missing='etcd is not installed'
  fi
  if [ -n "$missing" ]; then
    not_tested failover "$missing"
    return
  fi
  mkdir -p "$WORK/runs"
  logged "$log" with_servers env PATRONI="$patroni" PATRONICTL="$patronictl" ETCD="$etcd" PATRONI_PYTHONPATH="$packages" \
    "$python" "$HERE/tests/failover/failover.py" ${SEED:+--seed "$SEED"} ${FAILOVER_DOCUMENT:+--document "$FAILOVER_DOCUMENT"} || rc=$?
  tally failover "$rc" "$(count '^ok ' "$log")" "$(count '^not ok ' "$log")" 0
}
