# Sourced by demo.sh: the AppView of docs/recipes/appview.md. It plays a network of some hundred repositories, has them
# indexed, sends all of the stream a second time, and compares the index with a replay.

# play NAME PROGRAM [ARGUMENT...]: a program of the example, in its directory below $WORK; its pid goes to NAME.pid.
play() {
  local name=$1
  shift
  # shellcheck disable=SC2016 # for the shell that it calls
  as_user env -C "$WORK/appview" PGHOST="$WORK/socket" PGPORT="$PG_PORT" PGUSER=postgres PGDATABASE=demo PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 ${PROXY:+"http_proxy=$PROXY"} bash -c 'echo $$ >"$0.pid"; exec "$@"' "$name" "$PYTHON" "$@"
}

# appview_handled PID: how far it is; whether the feed with the pid has ended and nothing is pending.
appview_handled() {
  local synced=0 repos=0 events=0 pending=1 fed=0
  [ ! -e "$WORK/appview/failed" ] || give_up "A program has failed: $(cat "$WORK"/appview/*.out)"
  # Asked for before the others: what is sent afterwards is counted by the next call.
  kill -0 "$1" 2>/dev/null || fed=1
  read -r synced repos events pending < <(sql -At -F ' ' <"$DEMO/appview_progress.sql")
  line="$synced of $repos repositories synchronized, $events events handled, $pending messages pending"
  [ "$fed" -eq 1 ] && [ "$pending" -eq 0 ]
}

# feed [CURSOR]: sends the stream from there, and watches.
feed() {
  { play feed feed.py events.jsonl "$@" >>"$WORK/appview/feed.out" 2>&1 || touch "$WORK/appview/failed"; } &
  local feeding=$!
  watch appview_handled "$feeding"
  wait "$feeding"
  tail -n 1 "$WORK/appview/feed.out"
}

demo_appview() {
  local port='' n end
  PYTHON=$(deps_python psycopg) || die 'No Python has the module psycopg.'
  cp -R "$HERE/examples/appview" "$WORK/appview"
  user_dir "$WORK/appview"
  sql -o /dev/null <"$HERE/examples/appview/schema.sql"
  sql -o /dev/null <"$HERE/examples/appview/handlers.sql"

  say 'Making up a network: repositories, their hosts, and the stream of their events'
  play generate generate.py .
  play pds pds.py hosts.json fetched.jsonl >"$WORK/appview/pds.out" 2>&1 &
  end=$((SECONDS + 30))
  until port=$(sed -n 's/^port //p' "$WORK/appview/pds.out") && [ -n "$port" ]; do
    [ "$SECONDS" -lt "$end" ] || give_up "The hosts do not start: $(cat "$WORK/appview/pds.out")"
    sleep 0.1
  done
  { echo 'CREATE TEMP TABLE line (line jsonb);'
    echo '\copy line FROM STDIN'
    cat "$WORK/appview/repos.jsonl"
    echo '\.'
    cat "$HERE/examples/appview/begin.sql"; } | sql -o /dev/null

  say 'The backfill of each repository, at most 20 a second from each host, and the live stream beside it'
  for n in 1 2 3; do
    { PROXY=http://127.0.0.1:$port play "fetch$n" fetch.py >"$WORK/appview/fetch$n.out" 2>&1 || touch "$WORK/appview/failed"; } &
  done
  feed "$(cat "$WORK/appview/cursor")"
  sql <"$HERE/examples/appview/report.sql" || give_up 'The report failed.'
  say 'Is the index what a replay of all events in order gives?'
  play check check.py events.jsonl || give_up 'It is not.'

  say 'The whole stream once more, from its beginning: it must change nothing'
  feed 0
  play check check.py events.jsonl || give_up 'The index is not what it was.'
  echo 'The index equals a replay in order.'
  for n in 1 2 3; do kill -TERM "$(cat "$WORK/appview/fetch$n.pid")"; done
  kill -TERM "$(cat "$WORK/appview/pds.pid")"
  wait
}
