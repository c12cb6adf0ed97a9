#!/bin/bash
# run.sh: what `make test-memory` runs: memory, open files and locks of mq's processes over much work.
#
#   make test-memory                      all of it, about half an hour; the table and the plots in docs/reliability.md
#   make test-memory SCALE=0.1            a tenth of it; the document stays as it is
#   make test-memory PHASES="runs"        messages, runs, registrations, channels, databases, leak; so, too
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
python=$(deps_python psycopg) || die 'python3-psycopg is not installed.'
workdir_create memory
say "Building for $("$PG_CONFIG" --version)"
build all
server_tree tree
server_install
options=(${SCALE:+--scale "$SCALE"} ${PHASES:+--phases "${PHASES// /,}"})
if [ ${#options[@]} -eq 0 ]; then options=(--document "$HERE/docs/reliability.md"); fi
say 'Memory'
with_servers "$python" "$HERE/tests/memory/memory.py" "${options[@]}"
