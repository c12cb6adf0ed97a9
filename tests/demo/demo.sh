#!/bin/bash
# demo.sh: what `make demo` runs.
#
# Installs what is missing, builds, starts a private server, and lets mq's background
# workers build a full-text index of the documents at hand; or, with APP=appview, runs the
# example of docs/recipes/appview.md (appview.sh). With KEEP set the server stays, for
# a look around, until stop.sh; otherwise nothing does.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
SOURCE=$HERE
cd /
umask 022
# shellcheck source-path=SCRIPTDIR/../run
. "$HERE/tests/run/workdir.sh"
. "$HERE/tests/run/deps.sh"
. "$HERE/tests/run/server.sh"
DEMO=$HERE/tests/demo
LIMIT=${MQ_DEMO_LIMIT:-120}
APP=${APP:-documents}
case $APP in
  documents) kinds=(build) ;;
  appview) kinds=(build appview) ;;
  *) die "No demonstration '$APP': APP=documents|appview" ;;
esac
. "$DEMO/$APP.sh"

# psql as the superuser of the private server; it reads the SQL from stdin.
sql() {
  as_user psql -X -q -v ON_ERROR_STOP=1 -h "$WORK/socket" -p "$PG_PORT" -U postgres -d demo "$@"
}

give_up() {
  echo "$1"
  echo "What mq says:"
  echo 'SELECT * FROM mq_health()' | sql 2>&1 || true
  echo "The end of the server's log:"
  tail -n 30 "$WORK/log/demo-server.log"
  exit 1
}

# watch STEP...: calls it twice a second, until it succeeds or time is up. It sets `line` to how far it is, which is shown.
watch() {
  local line='' shown='' over deadline=$((SECONDS + LIMIT))
  while :; do
    over=1
    "$@" || over=0
    if [ -t 1 ]; then
      printf '\r%s\033[K' "$line"
    elif [ "$line" != "$shown" ]; then
      echo "$line"
    fi
    shown=$line
    if [ "$over" -eq 1 ]; then break; fi
    if [ "$SECONDS" -ge "$deadline" ]; then
      give_up "
Not all was handled within $LIMIT seconds."
    fi
    sleep 0.5
  done
  if [ -t 1 ]; then echo; fi
}

deps_install "${kinds[@]}"
workdir_create demo

say "Building for $("$PG_CONFIG" --version)"
if [ ! -w "$HERE" ]; then
  SOURCE=$WORK/src
  mkdir "$SOURCE"
  tar -C "$HERE" --exclude=./.git --exclude=./build -cf - . | tar -C "$SOURCE" --no-same-owner -xf -
fi
build all
say 'Installing it into a private copy of the server'
server_tree tree
server_install

say "A private server, on a unix socket in $WORK/socket"
PG_LOCALE=C.UTF-8 server_start demo-server || exit 1
as_user createdb -h "$WORK/socket" -p "$PG_PORT" -U postgres demo
"demo_$APP"

if [ -n "${KEEP:-}" ]; then
  echo "$HERE" >"$WORK/kept"
  workdir_keep
  cat <<EOF

The server is still running. Connect to it with

  $PG_BIN/psql -h $WORK/socket -p $PG_PORT -U postgres demo

and try: SELECT * FROM mq_workers; SELECT * FROM mq_health(); SELECT mq_redrive();
Its log is $WORK/log/demo-server.log. Stop and remove it with: make demo-stop
EOF
else
  server_stop demo-server
  echo
  echo 'The server is stopped and removed. Keep one to look around with: make demo KEEP=1'
fi
