#!/bin/bash
# A consumer of mq in shell, with psql. See README.md.
set -uo pipefail

channel=${MQ_CHANNEL:-thumbnails}
lease='30 s' # it is renewed while the work goes on
stopping=
trap 'stopping=1' TERM INT # the message in hand is finished

# Runs the statements of its standard input; libpq's environment variables say where. Values are given
# as -v name=value, and quoted by psql where a statement has :'name'.
sql() { psql -XAtq -v ON_ERROR_STOP=1 -F $'\t' -v lease="$lease" -v channel="$channel" "$@"; }

# What is to be done; what it prints is the error, should it fail.
work() { # payload
  case $1 in
    *broken*) echo 'the image is broken'; return 1 ;;
  esac
}

renew() { # id token
  while sleep 15; do
    sql -v id="$1" -v token="$2" <<<"SELECT mq_extend(ARRAY[:'id'::uuid], :token, :'lease');"
  done
}

handle() { # id token payload
  local renewal error acked
  renew "$1" "$2" >/dev/null 2>&1 & renewal=$!
  if error=$(work "$3" 2>&1); then
    # What the consumer writes commits together with mq_ack.
    acked=$(sql -v id="$1" -v token="$2" -v payload="$3" <<'SQL'
WITH acked AS (SELECT FROM mq_ack(ARRAY[:'id'::uuid], :token))
INSERT INTO thumbnails (image, made_by) SELECT (:'payload'::jsonb ->> 'image')::int, 'shell' FROM acked RETURNING image;
SQL
    ) || error='could not be stored'
    [ -n "$acked$error" ] || echo "lease lost: $1" >&2 # somebody else has the message by now
  fi
  if [ -n "$error" ]; then
    sql -v id="$1" -v token="$2" -v error="$error" <<<"SELECT mq_nack(ARRAY[:'id'::uuid], :token, :'error');" >/dev/null
  fi
  kill "$renewal"
  wait "$renewal" 2>/dev/null
}

while [ -z "$stopping" ]; do
  row=$(sql <<<"SELECT id, lease, payload_json FROM mq_receive(ARRAY[:'channel'], 1, :'lease', '5 s');") || sleep 1
  IFS=$'\t' read -r id token payload <<<"$row"
  if [ -n "$id" ]; then handle "$id" "$token" "$payload"; fi
done
exit 0
