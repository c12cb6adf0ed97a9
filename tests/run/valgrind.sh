#!/bin/bash
# valgrind.sh: what `make valgrind` runs.
#
# Builds mq with debug information, and runs a server under valgrind's memcheck for as long as a worker
# handles some hundred messages: batches, failures, retries, dead letters, ordered channels, results, cancels. What counts
# is an invalid access with mq on its stack, and a use of undefined memory in mq's own code; the server writes undefined
# padding to its files without harm. Ends with the line 'N passed, N failed'.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
cd /
umask 022
. "$HERE/tests/run/workdir.sh"
. "$HERE/tests/run/deps.sh"
. "$HERE/tests/run/server.sh"

deps_install build valgrind
workdir_create valgrind
SOURCE=$WORK/src
mkdir "$SOURCE"
tar -C "$HERE" --exclude=./.git --exclude=./build --exclude='*.o' --exclude='*.d' --exclude='*.so' -cf - . |
  tar -C "$SOURCE" --no-same-owner -xf -
say "Building with debug information for $("$PG_CONFIG" --version)"
server_tree tree
job make -s -C "$SOURCE" -j"$(nproc)" DEBUG=1 WERROR= PG_CONFIG="$PG_CONFIG" DESTDIR="$PG_TREE" install >/dev/null

say 'A worker under valgrind'
user_dir "$WORK/found"
cat >"$WORK/postgres" <<END
#!/bin/sh
exec valgrind --quiet --trace-children=yes --leak-check=no --error-limit=no --num-callers=40 --fullpath-after="$SOURCE/" \\
  --log-file="$WORK/found/%p" "$PG_BIN/postgres" "\$@"
END
chmod 755 "$WORK/postgres"
psql_do() { as_user psql -X -q -At -h "$WORK/socket" -p "$PG_PORT" -U postgres -d postgres -v ON_ERROR_STOP=1 "$@"; }
server_start valgrind-server 'fsync = off' 'autovacuum = off' 'mq.max_workers = 2'
as_user pg_ctl -D "$WORK/valgrind-server" -w -m fast stop >/dev/null
as_user pg_ctl -D "$WORK/valgrind-server" -l "$WORK/log/valgrind-server.log" -p "$WORK/postgres" -w -t 300 start >/dev/null
cat >"$WORK/tmp/life.sql" <<'END'
CREATE EXTENSION mq;
CREATE TABLE handled (n int);
CREATE FUNCTION one(payload jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO handled VALUES ((payload ->> 'n')::int);
  IF (payload ->> 'n')::int % 10 = 0 THEN RAISE EXCEPTION 'told to fail'; END IF;
  RETURN payload;
END $$;
CREATE FUNCTION many(messages mq_message[]) RETURNS void LANGUAGE sql AS
  $$ INSERT INTO handled SELECT (m.payload_json ->> 'n')::int FROM unnest(messages) AS m $$;
SELECT mq_register_handler('one', 'one(jsonb)', keep => '1 day');
SELECT mq_register_handler('many', 'many(mq_message[])');
SELECT mq_register_handler('leased', 'one(jsonb)', mode => 'leased');
SELECT mq_limit('many', max_running => 1, rate => 1000);
SELECT mq_schedule('each', '1 second', 'many', '{"n": 1}');
SELECT count(mq_send('one', jsonb_build_object('n', n), retries => 1, retry_backoff => '10 ms', priority => n % 3)) FROM generate_series(1, 100) AS n;
SELECT count(*) FROM mq_send_many('many', (SELECT array_agg(jsonb_build_object('n', n)) FROM generate_series(1, 100) AS n), ordered => true);
SELECT count(mq_send('leased', jsonb_build_object('n', n), retries => 0)) FROM generate_series(1, 10) AS n;
WITH first AS MATERIALIZED (SELECT mq_send('many', '{"n": 1}') AS id) SELECT mq_send('many', '{"n": 2}', after => ARRAY[id]) FROM first;
SELECT count(*) FROM mq_cancel(ARRAY[mq_send('one', '{"n": 3}', delay => '1 hour')]);
END
chmod 644 "$WORK/tmp/life.sql"
psql_do -f "$WORK/tmp/life.sql" >/dev/null
left=
for ((tries = 0; tries < 300; tries++)); do
  left=$(psql_do -c "SELECT count(*) FROM mq_msgs WHERE channel_name IN ('one', 'leased') OR after_message_id IS NOT NULL")
  [ "$left" != 0 ] || break
  sleep 1
done
dead=$(psql_do -c "SELECT count(*) FROM mq_dead")
as_user pg_ctl -D "$WORK/valgrind-server" -w -t 300 -m fast stop >/dev/null

passed=0 failed=0
tell() { if [ "$1" -eq 0 ]; then passed=$((passed + 1)) && echo "ok - $2"; else failed=$((failed + 1)) && echo "not ok - $2"; fi; }
tell "$([ "$left" = 0 ] && [ "$dead" = 12 ]; echo $?)" "all was handled ($left left, $dead dead)"
# A report is a paragraph: its first line says what, those with 'at' and 'by' where.
cat "$WORK"/found/* 2>/dev/null | sed 's/^==[0-9]*== \{0,1\}//' | awk -v RS= '
  function in_mq(line) { return line ~ /bgworker\/|mq\.so/ }
  {
    n = split($0, lines, "\n"); own = ""; any = 0
    for (i = 2; i <= n; ++i) if (lines[i] ~ /^ +(at|by) 0x/) {
      if (in_mq(lines[i])) any = 1
      if (own == "" && lines[i] !~ /vgpreload|libc\.so|libc-|libstdc|\/usr\/include\/c\+\+/) own = in_mq(lines[i]) ? "mq" : "other"
    }
    if (lines[1] ~ /^(Invalid|Mismatched|Jump|Source and destination)/ ? any : own == "mq") print $0 "\n"
  }' >"$WORK/log/found"
tell "$([ ! -s "$WORK/log/found" ]; echo $?)" "valgrind finds nothing in $(find "$WORK/found" -type f | wc -l) processes"
head -n 100 "$WORK/log/found"
printf '\n%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
