#!/bin/bash
# test.sh: what `make test` runs.
#
# Installs what is missing, builds, and runs every suite (or those of ONLY) on private
# servers that are gone afterwards. Ends with the line 'N passed, N failed[, N skipped]' and with status 0
# only if all ran and none failed.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
SOURCE=$HERE
# The schema that mq replaces, if a copy is named or lies beside the checkout: the suite 'original' compares with it.
ORIGINAL=$(readlink -m "${MQ_ORIGINAL:-$HERE/../shared/reference/original-schema.txt}")
cd /
umask 022
. "$HERE/tests/run/workdir.sh"
. "$HERE/tests/run/deps.sh"
. "$HERE/tests/run/server.sh"
. "$HERE/tests/run/suites.sh"
. "$HERE/tests/run/distcheck.sh"
. "$HERE/tests/run/package.sh"
. "$HERE/tests/faults/start.sh"
. "$HERE/tests/crash/suite.sh"
. "$HERE/tests/failover/suite.sh"

suites=${ONLY:-unit layout spin model regress isolation tap original dist}
for suite in $suites; do
  declare -F "suite_$suite" >/dev/null || die "No suite '$suite': ONLY=unit|layout|spin|model|regress|isolation|tap|original|dist|faults|crash|failover|package"
done

broken() {
  printf '\n%s\n\n0 passed, 1 failed\n' "$1"
  exit 1
}

deps_install build test dist
workdir_create test

say "Building for $("$PG_CONFIG" --version)"
# The checkout may be unreadable to the unprivileged user: the tests run from a copy.
mkdir "$WORK/src"
tar -C "$HERE" --exclude=./.git --exclude=./build --exclude='*.o' --exclude='*.d' -cf - . |
  tar -C "$WORK/src" --no-same-owner -xf -
if [ ! -w "$HERE" ]; then SOURCE=$WORK/src; fi
user_dir "$WORK/src"
build all || broken 'The build failed.'
say 'Installing it into a private copy of the server'
server_tree tree
server_install || broken 'The installation failed.'
# The scripts of older versions, for the test that upgrades from them.
install -m 644 "$HERE"/tests/upgrade/mq--*.sql "$PG_TREE$(pg_dir sharedir)/extension/"
[ -z "${SANITIZE:-}" ] || sanitizer_reports
for suite in $suites; do
  say "$suite"
  BEGUN=$SECONDS
  "suite_$suite"
done
[ -z "${SANITIZE:-}" ] || suite_sanitizer

if [ "$FAILED" -gt 0 ]; then
  results_keep log runs regress isolation tap/tmp_check/log original/tmp_check/log
  printf '\nFailed:\n'
  failures || true
fi
[ ${#REASONS[@]} -eq 0 ] || printf '\n%s\n' "${REASONS[@]}"
printf '\n%d passed, %d failed%s\n' "$PASSED" "$FAILED" \
  "$([ "$SKIPPED" -eq 0 ] || echo ", $SKIPPED skipped")"
[ "$FAILED" -eq 0 ]
