#!/bin/bash
# valgrind.sh: what `make valgrind` runs.
#
# Builds mq with debug information, and runs a server under valgrind's memcheck for as long as workers handle some hundred
# messages, and sessions send, receive, wait, publish, look and cancel: batches, failures, retries, dead letters, ordered
# channels, leased calls, results, schedules, limits, topics. What counts is an invalid access with mq on its stack, and a
# use of undefined memory in mq's own code; the server writes undefined padding to its files without harm.
#
# Where `make test-cassert` has left a server with assertions that one is taken, since it tells valgrind of its own
# allocations: with Debian's an access beyond the end of what palloc() gave is not seen.
# Ends with the line 'N passed, N failed'.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
cd /
umask 022
. "$HERE/tests/run/workdir.sh"
. "$HERE/tests/run/deps.sh"
. "$HERE/tests/run/server.sh"

kept=("${XDG_CACHE_HOME:-$HOME/.cache}"/mq-test/cassert-*/pgsql/bin/pg_config)
[ -n "${PG_CONFIG:-}" ] || [ ! -x "${kept[-1]}" ] || PG_CONFIG=${kept[-1]}
deps_install build valgrind
workdir_create valgrind
SOURCE=$WORK/src
mkdir "$SOURCE"
tar -C "$HERE" --exclude=./.git --exclude=./build --exclude='*.o' --exclude='*.d' --exclude='*.so' -cf - . |
  tar -C "$SOURCE" --no-same-owner -xf -
say "Building with debug information for $("$PG_CONFIG" --version)"
server_tree tree
job make -s -C "$SOURCE" -j"$(nproc)" DEBUG=1 WERROR= PG_CONFIG="$PG_CONFIG" DESTDIR="$PG_TREE" install >/dev/null

known=$PG_TREE$("$PG_CONFIG" --sharedir)/valgrind.supp
say "Workers under valgrind, $([ -e "$known" ] && echo 'on a server that tells it of its allocations' || echo "on the server as it is")"
user_dir "$WORK/found"
cat >"$WORK/postgres" <<END
#!/bin/sh
exec valgrind --quiet --trace-children=yes --leak-check=no --error-limit=no --num-callers=40 --fullpath-after="$SOURCE/" \\
  $([ ! -e "$known" ] || echo "--suppressions=$known") \\
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
  PERFORM mq_progress(0.5, 'half');
  IF (payload ->> 'n')::int % 10 = 0 THEN RAISE EXCEPTION 'told to fail'; END IF;
  RETURN payload;
END $$;
CREATE FUNCTION many(messages mq_message[]) RETURNS void LANGUAGE sql AS
  $$ INSERT INTO handled SELECT (m.payload_json ->> 'n')::int FROM unnest(messages) AS m $$;
CREATE FUNCTION slow(payload jsonb) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(600)';
SELECT mq_register_handler('one', 'one(jsonb)', keep => '1 day');
SELECT mq_register_handler('many', 'many(mq_message[])');
SELECT mq_register_handler('slow', 'slow(jsonb)', mode => 'leased');
SELECT mq_register_handler('leased', 'one(jsonb)', mode => 'leased');
SELECT mq_limit('many', max_running => 1, rate => 1000);
SELECT mq_schedule('each', '1 second', 'many', '{"n": 1}');
SELECT count(mq_send('one', jsonb_build_object('n', n), retries => 1, retry_backoff => '10 ms', priority => n % 3)) FROM generate_series(1, 100) AS n;
SELECT count(*) FROM mq_send_many('many', (SELECT array_agg(jsonb_build_object('n', n)) FROM generate_series(1, 100) AS n), ordered => true);
SELECT count(mq_send('leased', jsonb_build_object('n', n), retries => 0)) FROM generate_series(1, 10) AS n;
WITH first AS MATERIALIZED (SELECT mq_send('many', '{"n": 1}') AS id) SELECT mq_send('many', '{"n": 2}', after => ARRAY[id]) FROM first;
SELECT mq_subscribe('orders.#', 'many');
SELECT count(*) FROM generate_series(1, 3) AS n, mq_publish('orders.eu.new', jsonb_build_object('n', n));
SELECT count(*) FROM mq_cancel(ARRAY[mq_send('one', '{"n": 3}', delay => '1 hour')]);
CALL mq_call('one', '{"n": 1}', timeout => '5 minutes');
END
# What comes while the workers are at it: consumers outside, who wait and look, a call that is cancelled, a rollback.
cat >"$WORK/tmp/outside.sql" <<'END'
SELECT count(*) FROM mq_send_many('outside', ARRAY['1', '2', '3', '4']::jsonb[], retries => 0);
SELECT ids[1] AS one, ids[2] AS two, ids[3] AS three, lease FROM (SELECT array_agg(id ORDER BY id) AS ids, min(lease) AS lease
  FROM mq_receive(ARRAY['outside'], 3, wait => '10 seconds')) AS r \gset
SELECT count(*) FROM mq_extend(ARRAY[:'one', :'two', :'three']::uuid[], :lease, '1 minute');
SELECT count(*) FROM mq_ack(ARRAY[:'one']::uuid[], :lease, '[{"done": true}]');
SELECT count(*) FROM mq_nack(ARRAY[:'two']::uuid[], :lease, 'told to fail', '22023', dead => true);
SELECT count(*) FROM mq_nack(ARRAY[:'three']::uuid[], :lease, 'told to fail');
SELECT count(*) FROM (SELECT mq_delete(array_agg(id)) FROM mq_poll(ARRAY['outside'], 5)) AS polled;
BEGIN;
SAVEPOINT before;
SELECT mq_send('one', '{"n": 1}', dedup_key => 'once');
ROLLBACK TO before;
SELECT mq_send('none', '{"n": 1}', ordered => true, channel_args => 'x');
ROLLBACK;
\set ON_ERROR_STOP 0
SELECT mq_send(repeat('x', 3000));
SELECT mq_schedule('wrong', '61 * * * *', 'one');
\set ON_ERROR_STOP 1
SELECT mq_send('slow', '{"n": 1}') AS slow \gset
SELECT count(*) FROM mq_wait(ARRAY[:'slow']::uuid[], '20 seconds');
SELECT count(*) FROM mq_status(ARRAY[:'slow']::uuid[]);
SELECT count(mq_why(:'slow'));
SELECT count(*) FROM mq_cancel(ARRAY[:'slow']::uuid[]);
SELECT count(*) FROM mq_wait(ARRAY[:'slow']::uuid[], '2 minutes');
SELECT count(mq_send('one', '{"n": 1}', headers => '{"traceparent": "00-1"}')) FROM generate_series(1, 20);
CALL mq_run(ARRAY['one', 'many'], 20);
SELECT (SELECT count(*) FROM mq_stats), (SELECT count(*) FROM mq_health()), (SELECT count(*) FROM mq_workers), (SELECT count(*) FROM mq_limits),
  (SELECT count(*) FROM mq_schedules), (SELECT count(*) FROM mq_next_times('*/5 1 * * 1-5', 'Europe/Berlin'));
END
chmod 644 "$WORK/tmp/life.sql" "$WORK/tmp/outside.sql"
begun=$SECONDS
psql_do -f "$WORK/tmp/life.sql" >/dev/null
psql_do -f "$WORK/tmp/outside.sql" >/dev/null
left=
for ((tries = 0; tries < 300; tries++)); do
  left=$(psql_do -c "SELECT count(*) FROM mq_msgs WHERE channel_name IN ('one', 'leased', 'slow') OR after_message_id IS NOT NULL")
  [ "$left" != 0 ] || break
  sleep 1
done
dead=$(psql_do -c "SELECT string_agg(reason || ' ' || n, ', ' ORDER BY reason) FROM (SELECT reason, count(*) AS n FROM mq_dead GROUP BY reason) AS d")
# The last messages are redriven while the server stops.
psql_do -c "SELECT mq_redrive(channel_name => 'one', retries => 0)" -c "SELECT mq_unschedule('each')" >/dev/null
as_user pg_ctl -D "$WORK/valgrind-server" -w -t 300 -m fast stop >/dev/null
say "It has lived for $((SECONDS - begun)) s"

passed=0 failed=0
tell() { if [ "$1" -eq 0 ]; then passed=$((passed + 1)) && echo "ok - $2"; else failed=$((failed + 1)) && echo "not ok - $2"; fi; }
tell "$([ "$left" = 0 ] && [ "$dead" = "cancelled 2, discarded 1, exhausted 12" ]; echo $?)" "all was handled ($left left; $dead)"
tell "$(! grep -E 'was terminated by signal|TRAP:|PANIC:' "$WORK/log/valgrind-server.log" >&2; echo $?)" 'no process crashed'
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
