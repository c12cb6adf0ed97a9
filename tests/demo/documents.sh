# Sourced by demo.sh: the index of documents. It runs setup.sql, send.sql, progress.sql and report.sql.

# Shows how far the workers are until all is handled or dead, or time is up.
watch_progress() {
  local total=0 handled=0 dead=0 rate=0 deadline=$((SECONDS + LIMIT)) line='' shown
  while :; do
    read -r total handled dead rate < <(sql -At -F ' ' <"$DEMO/progress.sql")
    shown=$line
    line="$handled of $total handled, $dead dead, $rate per second"
    if [ -t 1 ]; then
      printf '\r%s\033[K' "$line"
    elif [ "$line" != "$shown" ]; then
      echo "$line"
    fi
    [ ! -e "$WORK/send.failed" ] || give_up 'Sending failed.'
    if [ $((handled + dead)) -ge "$total" ] && [ "$total" -gt 0 ]; then break; fi
    if [ "$SECONDS" -ge "$deadline" ]; then
      give_up "
Not all was handled within $LIMIT seconds."
    fi
    sleep 0.5
  done
  if [ -t 1 ]; then echo; fi
}

demo_documents() {
  local sender
  sql -o /dev/null <"$DEMO/setup.sql"

  say 'Splitting the licences and changelogs of this machine into paragraphs'
  "$DEMO/paragraphs.sh" >"$WORK/paragraphs"
  # psql takes what follows \copy from stdin as its data.
  { echo '\copy staging FROM STDIN'
    cat "$WORK/paragraphs"; } | sql
  echo "SELECT count(*) || ' paragraphs of ' || count(DISTINCT document) || ' documents' FROM staging" | sql -At

  say 'Sending them, and watching the background workers index them'
  { sql -o /dev/null <"$DEMO/send.sql" || touch "$WORK/send.failed"; } &
  sender=$!
  watch_progress
  wait "$sender"
  sql <"$DEMO/report.sql" || give_up 'The report failed.'
}
