-- Consuming from outside the server, as the original's clients do.

CREATE FUNCTION mq_poll(channel_names text[], batch_size integer DEFAULT 1)
  RETURNS TABLE (id uuid, is_committed boolean, name text, payload_json text, payload_bytes bytea,
                 retry_backoff interval, wait_time interval)
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_poll';
COMMENT ON FUNCTION mq_poll(text[], integer) IS
  'Leases up to batch_size (1 to 100000) due messages of the named channels (NULL: all), oldest first, each for its retry_backoff, and charges each an attempt. When nothing is ready: one row of NULLs whose wait_time, at most a minute, says when the next message is due (NULL: there is none). Never waits for a lock. 22023 or 22004 for a bad batch_size, 22004 for a NULL among the names, 55000 in a handler.';

CREATE FUNCTION mq_delete(msg_ids uuid[]) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_delete';
COMMENT ON FUNCTION mq_delete(uuid[]) IS
  'Removes messages, because they are handled or no longer wanted; the next message of each ordered channel becomes its head. Of a message that died since its last lease ran out (SQLSTATE MQ001 in mq_dead) the dead letter goes. Other ids that do not exist are passed over. 22004 for NULL, also in the array.';

CREATE FUNCTION mq_keep_alive(msg_ids uuid[], duration interval) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_keep_alive';
COMMENT ON FUNCTION mq_keep_alive(uuid[], interval) IS
  'Extends the lease of messages that are being handled, or the commit interval of two-phase ones, to duration from now; never shortens it. 22023 or 22004 for a bad duration.';

CREATE FUNCTION mq_checkpoint(msg_id uuid, duration interval, new_payload_json text, new_payload_bytes bytea, extra_retries integer)
  RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_checkpoint';
COMMENT ON FUNCTION mq_checkpoint(uuid, interval, text, bytea, integer) IS
  'As mq_keep_alive, and replaces what is not NULL of the payload and adds extra_retries (NULL: none). 22023 or 22004 for a bad value, 22P02 for bad JSON.';

CREATE FUNCTION mq_cancel(ids uuid[], reason text DEFAULT NULL) RETURNS SETOF uuid
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_cancel';
COMMENT ON FUNCTION mq_cancel(uuid[], text) IS
  'Moves pending messages to mq_dead with reason cancelled, SQLSTATE 57014 and the reason given as the error. One that is being handled is interrupted when this transaction commits, its call is rolled back, and it is never tried again; the other messages of its batch are handled. Returns those that it has cancelled; not those that ended before. Waits for other transactions that have locked one of them, but for no call of a handler. 22004 for NULL, also in the array, 55000 from a handler about a message of its call, 53400 for more than 4096 running messages at once, 0A000 at PREPARE TRANSACTION where a message was running.';

CREATE FUNCTION mq_clear(channel_names text[]) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_clear';
COMMENT ON FUNCTION mq_clear(text[]) IS 'Deletes every pending message of the named channels. Dead letters stay. 22004 for NULL, also in the array.';

CREATE FUNCTION mq_clear_all() RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_clear_all';
COMMENT ON FUNCTION mq_clear_all() IS 'Deletes every pending message. Dead letters stay.';

-- The same for new programs.

CREATE TYPE mq_delivery AS (
  id uuid,
  name text,
  channel_name text,
  channel_args text,
  payload_json jsonb,
  payload_bytes bytea,
  attempt integer,
  attempts_left integer,
  created_at timestamptz,
  ordered boolean,
  headers jsonb,
  priority integer,
  lease bigint
);
COMMENT ON TYPE mq_delivery IS
  'A message as mq_receive returns it: as mq_message, and the token of its lease for mq_ack, mq_nack and mq_extend.';

CREATE FUNCTION mq_receive(channel_names text[] DEFAULT NULL, batch_size integer DEFAULT 1, lease interval DEFAULT '1 minute',
                           wait interval DEFAULT '0')
  RETURNS SETOF mq_delivery LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_receive';
COMMENT ON FUNCTION mq_receive(text[], integer, interval, interval) IS
  'Leases up to batch_size (1 to 100000) due messages of the named channels (NULL: all) for so long, and charges each an attempt. All messages of a call have one token. When nothing is due, waits until something is, at most for so long. Pauses, priorities and max_workers of handlers hold as for workers. 22023 or 22004 for a bad value, 25001 for a wait in a REPEATABLE READ or SERIALIZABLE transaction, 55000 in a handler.';

CREATE FUNCTION mq_ack(ids uuid[], lease bigint, results jsonb DEFAULT NULL) RETURNS SETOF uuid
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_ack';
COMMENT ON FUNCTION mq_ack(uuid[], bigint, jsonb) IS
  'Removes those of the messages that have this token and whose lease has not run out, since they are handled, and returns their ids in the order of the array. results: an array with an element for each id. 22004 for NULL, also in ids, 22023 for results that do not fit.';

CREATE FUNCTION mq_nack(ids uuid[], lease bigint, error text, sqlstate text DEFAULT NULL, retry_in interval DEFAULT NULL,
                        dead boolean DEFAULT false) RETURNS SETOF uuid
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_nack';
COMMENT ON FUNCTION mq_nack(uuid[], bigint, text, text, interval, boolean) IS
  'Fails the attempt of those of the messages that have this token and whose lease has not run out, and returns their ids: the error is in mq_failures, and the message is due again in retry_in, or after its backoff; without an attempt left, or with dead => true, it is dead. sqlstate: five digits or upper-case letters (NULL: P0001). 22023 or 22004 for a bad value.';

CREATE FUNCTION mq_extend(ids uuid[], lease bigint, by interval) RETURNS SETOF uuid
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_extend';
COMMENT ON FUNCTION mq_extend(uuid[], bigint, interval) IS
  'Has the lease of those of the messages that have this token, and whose lease has not run out, last until so long from now, and returns their ids; never shortens it. 22023 or 22004 for a bad value.';

-- The original's helpers, with their signatures and meanings.

CREATE FUNCTION mq_uuid_exists(id uuid) RETURNS boolean
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN id IS NOT NULL AND id <> '00000000-0000-0000-0000-000000000000'::uuid;
COMMENT ON FUNCTION mq_uuid_exists(uuid) IS 'Whether the id is neither NULL nor the nil uuid.';

CREATE FUNCTION mq_latest_message(from_channel_name text, from_channel_args text) RETURNS uuid
  LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER
  BEGIN ATOMIC
    SELECT COALESCE(
      (SELECT m.id FROM mq_msgs m
        WHERE m.channel_key = mq_channel_key(from_channel_name, from_channel_args)
          AND m.after_message_id IS NOT NULL
          AND m.channel_name = from_channel_name AND m.channel_args = from_channel_args
        ORDER BY m.seq DESC LIMIT 1),
      '00000000-0000-0000-0000-000000000000'::uuid);
  END;
COMMENT ON FUNCTION mq_latest_message(text, text) IS 'The tail of an ordered channel, or the nil uuid.';

CREATE FUNCTION mq_active_channels(channel_names text[], batch_size integer)
  RETURNS TABLE (name text, args text)
  LANGUAGE sql VOLATILE SECURITY DEFINER
  BEGIN ATOMIC
    SELECT m.channel_name, m.channel_args FROM mq_msgs m
     WHERE m.attempt_at <= now()
       AND (channel_names IS NULL OR m.channel_name = ANY (channel_names))
       AND NOT mq_uuid_exists(m.after_message_id)
     GROUP BY m.channel_name, m.channel_args
     ORDER BY random()
     LIMIT batch_size;
  END;
COMMENT ON FUNCTION mq_active_channels(text[], integer) IS 'Up to batch_size channels with due messages, in random order. mq_poll does not use it.';
