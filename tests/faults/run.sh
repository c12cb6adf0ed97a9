#!/bin/bash
# run.sh: what `make test-faults` runs: every kind of fault, several times, and the table in docs/reliability.md.
#
#   make test-faults                       five times each, under a greater load, half an hour
#   make test-faults REPEAT=20 SEED=7      more often; with the seed that an earlier run printed
#   make test-faults KINDS="1,3"           some kinds; the document stays as it is
#
# `make test ONLY=faults` runs each kind once: a suite of tests/run/suites.sh.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
SOURCE=$HERE
cd /
umask 022
. "$HERE/tests/run/workdir.sh"
. "$HERE/tests/run/deps.sh"
. "$HERE/tests/run/server.sh"
. "$HERE/tests/faults/start.sh"

deps_install build test
workdir_create faults
say "Building for $("$PG_CONFIG" --version)"
build all
server_tree tree
server_install
say 'Faults'
options=(--repeat "${REPEAT:-5}" ${SEED:+--seed "$SEED"})
if [ -n "${KINDS:-}" ]; then
  options+=(--kinds "${KINDS// /,}")
else
  options+=(--document "$HERE/docs/reliability.md")
fi
faults_run "${options[@]}" || {
  results_keep log runs
  exit 1
}
