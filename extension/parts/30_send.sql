-- Sending. Every value is checked before anything is written; an error names the field, its value and the rule.

CREATE FUNCTION mq_insert(new_messages mq_new_t[]) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_insert';
COMMENT ON FUNCTION mq_insert(mq_new_t[]) IS
  'Sends messages when the transaction commits; ordered ones keep the order of the array. A bad value is refused with 22023 or 22004, bad JSON with 22P02, an id in use with 23505; an append to a channel that is newer than a REPEATABLE READ snapshot with 40001, and one that comes in a call after others to more than 256 ordered channels, and would have to wait. Nothing of a refused call is kept.';

CREATE FUNCTION mq_send(
  channel_name text, payload_json jsonb DEFAULT NULL, name text DEFAULT NULL, channel_args text DEFAULT '',
  ordered boolean DEFAULT false, delay interval DEFAULT '0', retries integer DEFAULT 24,
  retry_backoff interval DEFAULT '1 second', commit_interval interval DEFAULT NULL,
  payload_bytes bytea DEFAULT NULL, id uuid DEFAULT NULL, dedup_key text DEFAULT NULL,
  expires interval DEFAULT NULL,
  priority integer DEFAULT 0, headers jsonb DEFAULT NULL, after uuid[] DEFAULT NULL, keep interval DEFAULT NULL) RETURNS uuid
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_send';
COMMENT ON FUNCTION mq_send(text, jsonb, text, text, boolean, interval, integer, interval, interval, bytea, uuid, text, interval, integer, jsonb, uuid[], interval) IS
  'Sends one message when the transaction commits and returns its id (by default a new uuid of version 7). name defaults to the channel''s name. While a message with the same dedup_key is pending in the channel (scheduled, waiting for a retry or being handled too), sends nothing and returns that one''s id; but the message that the calling handler handles does not count: its key goes to what it sends, when it commits. A message that is not handled when expires has passed since it was sent is dead. One that is sent after others waits until they have been handled, and is dead if one of them is; ids that are neither pending nor dead count as handled. Errors as in mq_insert, and 40001 where the message that is pending under the dedup_key is newer than a REPEATABLE READ snapshot.';

CREATE FUNCTION mq_send_once(
  channel_name text, dedup_key text, payload_json jsonb DEFAULT NULL, name text DEFAULT NULL, channel_args text DEFAULT '',
  ordered boolean DEFAULT false, delay interval DEFAULT '0', retries integer DEFAULT 24,
  retry_backoff interval DEFAULT '1 second', commit_interval interval DEFAULT NULL,
  payload_bytes bytea DEFAULT NULL, expires interval DEFAULT NULL,
  priority integer DEFAULT 0, headers jsonb DEFAULT NULL, after uuid[] DEFAULT NULL, keep interval DEFAULT NULL, OUT id uuid, OUT sent boolean) RETURNS record
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_send_once';
COMMENT ON FUNCTION mq_send_once(text, text, jsonb, text, text, boolean, interval, integer, interval, interval, bytea, interval, integer, jsonb, uuid[], interval) IS
  'As mq_send with that dedup_key, and tells whether it sent: id and true, or the id of the message that is pending under the key, and false. Errors as in mq_send, and 22004 for a dedup_key that is NULL.';

CREATE FUNCTION mq_send_many(
  channel_name text, payloads jsonb[], name text DEFAULT NULL, channel_args text DEFAULT '',
  ordered boolean DEFAULT false, delay interval DEFAULT '0', retries integer DEFAULT 24,
  retry_backoff interval DEFAULT '1 second', commit_interval interval DEFAULT NULL,
  payload_bytes bytea DEFAULT NULL, expires interval DEFAULT NULL,
  priority integer DEFAULT 0, headers jsonb DEFAULT NULL, after uuid[] DEFAULT NULL, keep interval DEFAULT NULL) RETURNS SETOF uuid
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_send_many';
COMMENT ON FUNCTION mq_send_many(text, jsonb[], text, text, boolean, interval, integer, interval, interval, bytea, interval, integer, jsonb, uuid[], interval) IS
  'Sends a message for each payload, in array order (a NULL element is a message without JSON payload; payload_bytes goes to each), and returns their ids in that order. expires and after as in mq_send. Errors as in mq_insert, and 54000 for more than 10,000,000 messages that are waited for.';

CREATE FUNCTION mq_commit(msg_ids uuid[]) RETURNS uuid[]
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_commit';
COMMENT ON FUNCTION mq_commit(uuid[]) IS
  'Makes two-phase messages deliverable and returns the ids that it committed, in the order given. An id that has expired, was committed before or does not exist is not among them. 22004 for NULL, also in the array.';

CREATE FUNCTION mq_channel_key(channel_name text, channel_args text) RETURNS bigint
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'mq_channel_key';
COMMENT ON FUNCTION mq_channel_key(text, text) IS 'The channel_key of a channel: XXH3 (64 bits) of its name''s length, its name and its arguments.';
