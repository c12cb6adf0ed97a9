-- What a client sends to mq_insert: the original's eleven attributes, in the original's order.
CREATE TYPE mq_new_t AS (
  id uuid,
  delay interval,
  retries integer,
  retry_backoff interval,
  channel_name text,
  channel_args text,
  commit_interval interval,
  ordered boolean,
  name text,
  payload_json text,
  payload_bytes bytea
);
COMMENT ON TYPE mq_new_t IS
  'A message to be sent by mq_insert. delay, retry_backoff and commit_interval must not be negative; retries counts the tries after the first; a non-NULL commit_interval hides the message until mq_commit.';

-- What a handler of the shapes f(mq_message) and f(mq_message[]) is given.
CREATE TYPE mq_message AS (
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
  priority integer
);
COMMENT ON TYPE mq_message IS
  'A message as its handler gets it. attempt is 1 on the first attempt; attempts_left counts those that remain after this one; headers and priority are as they were sent.';
