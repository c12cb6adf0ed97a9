# Sourced by run.sh. Burning down unordered messages over 10 channels with one worker and a PL/pgSQL handler over
# jsonb that does nothing; beside it the original schema, which a loop inside the database polls and deletes from
# (a commit a batch, of the size that suits it best).

BURN_MESSAGES=${MESSAGES:-$([ -n "${QUICK:-}" ] && echo 20000 || echo 200000)}
BURN_BATCH=${BURN_BATCH:-10000}

burn_mq() {
  local from
  sql mq -c "SELECT mq_unregister_handler('burn' || c) FROM generate_series(1, 10) c" \
    -c "SELECT count(*) FROM generate_series(1, 10) c, mq_send_many('burn' || c,
          ARRAY(SELECT jsonb_build_object('n', i) FROM generate_series(1, $BURN_MESSAGES / 10) i))" \
    -c 'VACUUM ANALYZE' -c CHECKPOINT >/dev/null
  from=$(now)
  sql mq -c "SELECT mq_register_handler('burn' || c, 'noop(jsonb)') FROM generate_series(1, 10) c" >/dev/null
  until [ "$(sql mq -c 'SELECT count(*) FROM (SELECT FROM mq_msgs LIMIT 1) m')" = 0 ]; do sleep 0.02; done
  per_second "$BURN_MESSAGES" "$from" "$(now)"
}

burn_original() {
  local from
  sql original -c "SELECT mq_insert(ARRAY(SELECT (uuid_generate_v4(), '0', 4, '1 hour', 'burn' || c, '', NULL, false,
          'burn', jsonb_build_object('n', i)::text, NULL)::mq_new_t FROM generate_series(1, $BURN_MESSAGES / 10) i))
          FROM generate_series(1, 10) c" -c 'VACUUM ANALYZE' -c CHECKPOINT >/dev/null
  from=$(now)
  sql original -c "CALL burn($BURN_BATCH)"
  per_second "$BURN_MESSAGES" "$from" "$(now)"
}

workload_burn() {
  local noop="CREATE FUNCTION noop(payload jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN END'"
  sql mq -c 'CREATE EXTENSION mq' -c "$noop"
  if [ ! -f "$ORIGINAL" ]; then
    echo "The original schema is not there ($ORIGINAL): nothing to compare with." >&2
    return
  fi
  sql original 2>/dev/null <"$ORIGINAL"
  sql original -c "$noop" -c "
    CREATE PROCEDURE burn(batch int) LANGUAGE plpgsql AS \$\$
    DECLARE message record; handled uuid[];
    BEGIN
      LOOP
        handled := ARRAY[]::uuid[];
        FOR message IN SELECT * FROM mq_poll(NULL, batch) LOOP
          EXIT WHEN message.id IS NULL;
          PERFORM noop(message.payload_json::jsonb);
          handled := handled || message.id;
        END LOOP;
        EXIT WHEN handled = ARRAY[]::uuid[];
        PERFORM mq_delete(handled);
        COMMIT;
      END LOOP;
    END \$\$"
  pair burn_mq burn_original
  row "burn down $BURN_MESSAGES unordered messages over 10 channels, one worker; beside it the original schema" \
    burn_mq burn_original
}
