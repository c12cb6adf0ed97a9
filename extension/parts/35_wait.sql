-- What has become of messages, and waiting for it. Who knows the id of a message may ask.

CREATE FUNCTION mq_status(ids uuid[])
  RETURNS TABLE (id uuid, state text, attempt integer, attempts_left integer, due_at timestamptz,
                 progress real, note text, result jsonb, error text)
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_status';
COMMENT ON FUNCTION mq_status(uuid[]) IS
  'The state of each message, in the order of the array: waiting (until others are handled), scheduled, ready, running, retrying, uncommitted, done, dead, cancelled, or unknown (it is kept nowhere). attempt: how many attempts were begun; attempts_left: how many are left after those; due_at: when it is due next, or was; progress and note: as its running handler says; result: of one that is done; error: of its death, or of its last failed attempt. 22004 for NULL, also in the array.';

CREATE FUNCTION mq_wait(ids uuid[], timeout interval DEFAULT '30 seconds')
  RETURNS TABLE (id uuid, state text, attempt integer, attempts_left integer, due_at timestamptz,
                 progress real, note text, result jsonb, error text)
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_wait';
COMMENT ON FUNCTION mq_wait(uuid[], interval) IS
  'As mq_status, once all messages are done, dead, cancelled or unknown, or when so long has passed. 22004 for NULL, also in the array, 22023 for a timeout out of range, 55000 for a message that this transaction has sent, and in a handler, 25001 for a timeout other than 0 in a REPEATABLE READ or SERIALIZABLE transaction.';

CREATE PROCEDURE mq_call(
  channel_name text, payload_json jsonb DEFAULT NULL, INOUT result jsonb DEFAULT NULL, name text DEFAULT NULL,
  channel_args text DEFAULT '', timeout interval DEFAULT '30 seconds', ordered boolean DEFAULT false, retries integer DEFAULT 0,
  retry_backoff interval DEFAULT '1 second', payload_bytes bytea DEFAULT NULL, priority integer DEFAULT 0,
  headers jsonb DEFAULT NULL, after uuid[] DEFAULT NULL, keep interval DEFAULT NULL)
  LANGUAGE c AS 'MODULE_PATHNAME', 'mq_call_and_wait';
COMMENT ON PROCEDURE mq_call(text, jsonb, jsonb, text, text, interval, boolean, integer, interval, bytea, integer, jsonb, uuid[], interval) IS
  'Sends a message, commits, waits until it has ended, and returns its result (the value given for result does not matter). If it dies, raises the error of its last attempt: SQLSTATE, message, detail and hint. After timeout cancels it, and raises 57014; if it was handled at that moment, returns its result. keep: at least the timeout and a minute where it is not given. 2D000 where COMMIT is not allowed, 55000 in a handler or if somebody has deleted the message; else errors as in mq_send.';
