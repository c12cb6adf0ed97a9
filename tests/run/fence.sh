#!/bin/bash
# fence.sh SOURCE PG_CONFIG TMP: called by the suite 'fence' of tests/run/test.sh.
#
# Guards the border between the core (bgworker/) and the server (bgworker/server/): no file
# of the core includes a header of the server's, none could, and the built library
# shows the server nothing but C entry points and is small. Prints a line 'ok' or 'not ok' for each.
set -uo pipefail
source=$1 pg_config=$2 tmp=$3
failed=0

check() {
  local name=$1
  shift
  if "$@"; then echo "ok - $name"; else echo "not ok - $name"; failed=1; fi
}

core_is_clean() {
  local server file header found=0
  server=$("$pg_config" --includedir-server)
  for file in "$source"/bgworker/*.[ch]pp; do
    while read -r header; do
      case $header in
        server/* | */server/*) ;;
        *) [ -e "$server/$header" ] || continue ;;
      esac
      echo "${file#"$source/"} includes $header"
      found=1
    done < <(sed -n 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*[<"]\([^>"]*\)[>"].*/\1/p' "$file")
  done
  [ "$found" -eq 0 ]
}

probe() {
  printf '#include <%s>\nint mq_probe;\n' "$1" >"$tmp/probe.cpp"
  make -s -C "$source" --no-print-directory core-probe PROBE="$tmp/probe.cpp" PG_CONFIG="$pg_config" \
    >"$tmp/probe.out" 2>&1
}

core_cannot_include() { ! probe "$1" && grep -q 'No such file' "$tmp/probe.out"; }

exports_only_c() {
  local leaked
  leaked=$(nm -D --defined-only "$source/mq.so" | awk '$3 ~ /^_Z/ { print $3 }')
  [ -z "$leaked" ] || { echo "$leaked" | head -n 20; return 1; }
}

# It was 17 MB with debug information. The sanitizers' code is not for users.
library_is_small() { [ -n "${SANITIZE:-}" ] || [ "$(stat -c %s "$source/mq.so")" -lt 3000000 ]; }

check 'no file of the core includes a server header' core_is_clean
check 'the core can include what it may (libpq-fe.h)' probe libpq-fe.h
check 'the core cannot include postgres.h' core_cannot_include postgres.h
check 'the library exports no C++ symbol' exports_only_c
check 'the library is smaller than 3 MB' library_is_small
exit "$failed"
