#!/bin/bash
# fuzz.sh: what `make fuzz` runs.
#
# Installs what is missing, builds the fuzz targets (tests/fuzz) with clang and the sanitizers, and has libFuzzer look
# for inputs that break one: FUZZ_SECONDS for each, a minute by default, of those that TESTS names or of all. It
# begins with the inputs in tests/fuzz/corpus, and keeps new ones in build/fuzz/corpus. What breaks a target is left in
# build/fuzz/found. FUZZ_MERGE=1 adds to tests/fuzz/corpus those of the new inputs that reach further.
# Ends with the line 'N passed, N failed'.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
. "$HERE/tests/run/progress.sh"
. "$HERE/tests/run/deps.sh"
deps_install build fuzz

cd "$HERE"
say 'Building the fuzz targets'
make -s fuzz-build PG_CONFIG="$PG_CONFIG"
passed=0 failed=0
known=$(build/fuzz/mq_fuzz)
mkdir -p build/fuzz/found
for target in ${TESTS:-$known}; do
  say "$target"
  mkdir -p "build/fuzz/corpus/$target"
  if MQ_FUZZ_TARGET=$target build/fuzz/mq_fuzz -max_total_time="${FUZZ_SECONDS:-60}" -max_len=4096 -timeout=10 \
    -rss_limit_mb=1500 -print_final_stats=1 -artifact_prefix="build/fuzz/found/$target-" \
    "build/fuzz/corpus/$target" "tests/fuzz/corpus/$target" >build/fuzz/log 2>&1; then
    passed=$((passed + 1))
    grep -E 'number_of_executed_units|new_units_added' build/fuzz/log
    [ -z "${FUZZ_MERGE:-}" ] || MQ_FUZZ_TARGET=$target build/fuzz/mq_fuzz -merge=1 -max_len=400 \
      "tests/fuzz/corpus/$target" "build/fuzz/corpus/$target" 2>/dev/null
  else
    failed=$((failed + 1))
    tail -n 40 build/fuzz/log
  fi
done
printf '\n%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
