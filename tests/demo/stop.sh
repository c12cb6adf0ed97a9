#!/bin/bash
# stop.sh: what `make demo-stop` runs.
#
# Stops and removes the servers that `make demo KEEP=1` left running, those of this checkout
# and this user.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
cd /
# shellcheck source-path=SCRIPTDIR/../run
. "$HERE/tests/run/workdir.sh"

found=0
for kept in "${MQ_TMP:-/tmp}"/mq-demo.*/kept; do
  [ -O "$kept" ] && [ "$(cat "$kept")" = "$HERE" ] || continue
  found=1
  workdir_adopt "$(dirname "$kept")"
  workdir_sweep
  echo "Stopped and removed $WORK"
done
[ "$found" -eq 1 ] || echo 'No server of make demo KEEP=1 is running.'
