#!/bin/bash
# spin.sh MODELS TMP: called by the suite 'spin' of tests/run/test.sh.
#
# Checks each MODELS/*.pml with Spin: all interleavings hold. And each of its variants, which stand behind the word 'variants:'
# in it, has to fail: it is a defect that the model would find. Prints a line 'ok' or 'not ok' for each.
set -uo pipefail
models=$1 tmp=$2
failed=0

# holds MODEL [VARIANT]: whether all interleavings hold. 2: the model could not be checked.
holds() {
  local at=$tmp/$1${2:+-$2}
  mkdir -p "$at" && cd "$at" || return 2
  timeout 60 spin ${2:+"-D$2"} -a "$models/$1.pml" >log 2>&1 && gcc -O0 -w -DSAFETY -o pan pan.c >>log 2>&1 || return 2
  timeout 120 ./pan -m100000 >>log 2>&1
  ! grep -q 'max search depth too small' log || return 2
  ! grep -q 'errors: 0$' log || return 0
  grep -q 'errors: [1-9]' log || return 2
  return 1
}

tell() {
  if [ "$1" -eq "$2" ]; then
    echo "ok - $3"
  else
    echo "not ok - $3"
    tail -n 30 log
    failed=1
  fi
}

for file in "$models"/*.pml; do
  model=$(basename "$file" .pml)
  rc=0
  holds "$model" || rc=$?
  tell "$rc" 0 "$model: all interleavings hold ($(sed -n 's/^ *\([0-9]*\) states, stored.*/\1 states/p' log))"
  for variant in $(sed -n 's/^.*variants: *//p' "$file"); do
    rc=0
    holds "$model" "$variant" || rc=$?
    tell "$rc" 1 "$model: $variant is found"
  done
done
exit "$failed"
