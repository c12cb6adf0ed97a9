# Sourced by demo.sh: the index of documents. It runs setup.sql, send.sql, progress.sql and report.sql.

# How far the workers are; whether all is handled or dead.
indexed() {
  local total=0 handled=0 dead=0 rate=0
  [ ! -e "$WORK/send.failed" ] || give_up 'Sending failed.'
  read -r total handled dead rate < <(sql -At -F ' ' <"$DEMO/progress.sql")
  line="$handled of $total handled, $dead dead, $rate per second"
  [ $((handled + dead)) -ge "$total" ] && [ "$total" -gt 0 ]
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
  watch indexed
  wait "$sender"
  sql <"$DEMO/report.sql" || give_up 'The report failed.'
}
