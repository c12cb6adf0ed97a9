\echo Use "CREATE EXTENSION mq" to load this file. \quit

-- The parts in this folder make one script, in the order of their numbers. Every function says how it finds
-- its objects: a body of the form RETURN or BEGIN ATOMIC is resolved when it is created, and the functions
-- in C switch to a search_path of their own. So no function depends on its caller's search_path.
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
  ordered boolean
);
COMMENT ON TYPE mq_message IS
  'A message as its handler gets it. attempt is 1 on the first attempt; attempts_left counts those that remain after this one.';
-- The storage. docs/design.md says why it is as it is; in short: no triggers, no foreign keys, nothing unique
-- across channels but the id, and a channel_key (XXH3 of channel_name and channel_args, computed in C++) on
-- every table of messages in place of two texts.

CREATE SEQUENCE mq_place_seq AS bigint;
COMMENT ON SEQUENCE mq_place_seq IS 'Places of messages: within an ordered channel a later message has a greater place.';

CREATE TABLE mq_msgs (
  id uuid PRIMARY KEY,
  created_at timestamptz DEFAULT now(),
  attempt_at timestamptz DEFAULT now(),
  attempts integer NOT NULL DEFAULT 5,
  retry_backoff interval NOT NULL DEFAULT '1 second',
  channel_name text COLLATE "C" NOT NULL,
  channel_args text COLLATE "C" NOT NULL,
  commit_interval interval,
  after_message_id uuid DEFAULT '00000000-0000-0000-0000-000000000000',
  channel_key bigint NOT NULL,
  place bigint NOT NULL DEFAULT pg_catalog.nextval('mq_place_seq'::pg_catalog.regclass),
  attempt integer NOT NULL DEFAULT 0,
  lease bigint,
  dedup_key text COLLATE "C",
  expires_at timestamptz
);
-- Never out of line: they are read before there is a snapshot to fetch from a TOAST table with.
ALTER TABLE mq_msgs ALTER channel_name SET STORAGE MAIN, ALTER channel_args SET STORAGE MAIN, ALTER dedup_key SET STORAGE MAIN;
COMMENT ON TABLE mq_msgs IS 'Messages that are pending: small rows, often updated. The payloads are in mq_payloads.';
COMMENT ON COLUMN mq_msgs.attempt_at IS 'When the message is due next; while an outside consumer works on it, when its lease runs out. NULL: a dead message that blocks its ordered channel.';
COMMENT ON COLUMN mq_msgs.attempts IS 'Attempts left.';
COMMENT ON COLUMN mq_msgs.retry_backoff IS 'Wait before the next retry; doubled with each attempt, within bounds.';
COMMENT ON COLUMN mq_msgs.commit_interval IS 'Not NULL: a two-phase message that is hidden until mq_commit; it expires at attempt_at.';
COMMENT ON COLUMN mq_msgs.after_message_id IS 'NULL: not ordered. The nil uuid: head of its ordered channel. Else the message it was appended after.';
COMMENT ON COLUMN mq_msgs.channel_key IS 'XXH3 hash (64 bits) of channel_name and channel_args.';
COMMENT ON COLUMN mq_msgs.place IS 'Place in the order of the channel; from mq_place_seq.';
COMMENT ON COLUMN mq_msgs.attempt IS 'Attempts made.';
COMMENT ON COLUMN mq_msgs.lease IS 'Token of the lease until attempt_at, if there is one: no two leases of workers have the same; 0: of a consumer outside the server.';
COMMENT ON COLUMN mq_msgs.dedup_key IS 'Not NULL: no second message of the channel has this key while this one is pending.';
COMMENT ON COLUMN mq_msgs.expires_at IS 'Not NULL: dead by then if nobody has handled it. attempt_at is not beyond it, but for a lease and while commit_interval is not NULL.';

-- Due messages of a channel name, oldest first. Heads only: an unordered message, or the head of an ordered
-- channel.
CREATE INDEX mq_msgs_due ON mq_msgs (channel_name, attempt_at, place)
  WHERE after_message_id IS NULL OR after_message_id = '00000000-0000-0000-0000-000000000000';
-- The same by channel, so that part of a batch can be drawn fairly across the channels of one name.
CREATE INDEX mq_msgs_fair ON mq_msgs (channel_name, channel_key, attempt_at, place)
  WHERE after_message_id IS NULL OR after_message_id = '00000000-0000-0000-0000-000000000000';
-- Ordered channels: their tail, their first message, the run behind a head.
CREATE INDEX mq_msgs_chain ON mq_msgs (channel_key, place) WHERE after_message_id IS NOT NULL;
-- For the sweep: two-phase messages that expire, and last attempts whose lease runs out.
CREATE INDEX mq_msgs_spent ON mq_msgs (attempt_at) WHERE commit_interval IS NOT NULL OR attempts <= 0;
-- What leased handlers are called with; empty where there are none.
CREATE INDEX mq_msgs_lease ON mq_msgs (lease) WHERE lease > 0;
-- For mq_stats: what is leased.
CREATE INDEX mq_msgs_leased ON mq_msgs (channel_name, attempt_at) WHERE lease IS NOT NULL;
-- For the sweep, and the timers of workers: messages that expire.
CREATE INDEX mq_msgs_expiry ON mq_msgs (expires_at) WHERE expires_at IS NOT NULL AND commit_interval IS NULL;
-- One pending message for a dedup_key. With the names, since two channels may share a channel_key.
CREATE UNIQUE INDEX mq_msgs_dedup ON mq_msgs (channel_key, dedup_key, channel_name, channel_args)
  WHERE dedup_key IS NOT NULL;

CREATE TABLE mq_loose (
  channel_key bigint NOT NULL,
  channel_name text COLLATE "C" NOT NULL,
  channel_args text COLLATE "C" NOT NULL
);
COMMENT ON TABLE mq_loose IS 'Ordered channels whose first message may not be head yet, since somebody was removing the one before it when it was written. Every claim looks here first; as a rule it is empty.';

CREATE TABLE mq_payloads (
  id uuid PRIMARY KEY,
  name text COLLATE "C" NOT NULL,
  payload_json jsonb,
  payload_bytes bytea,
  channel_key bigint NOT NULL
);
ALTER TABLE mq_payloads ALTER name SET STORAGE MAIN;
COMMENT ON COLUMN mq_payloads.channel_key IS 'As in mq_msgs.';
COMMENT ON TABLE mq_payloads IS 'Names and payloads of pending messages. payload_json is jsonb: key order and duplicate keys are not kept, \u0000 is refused.';

CREATE TABLE mq_dead (
  dead_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  id uuid NOT NULL,
  created_at timestamptz,
  died_at timestamptz NOT NULL,
  channel_name text COLLATE "C" NOT NULL,
  channel_args text COLLATE "C" NOT NULL,
  name text COLLATE "C",
  payload_json jsonb,
  payload_bytes bytea,
  ordered boolean NOT NULL,
  attempts integer NOT NULL,
  reason text NOT NULL CHECK (reason IN ('exhausted', 'discarded', 'crashed', 'expired')),
  sqlstate text,
  error text,
  detail text,
  hint text,
  context text,
  retry_backoff interval NOT NULL,
  channel_key bigint NOT NULL,
  dedup_key text COLLATE "C"
);
COMMENT ON TABLE mq_dead IS 'Dead letters: messages that will not be tried again, with their payload and the last error. mq_redrive sends them again.';
COMMENT ON COLUMN mq_dead.attempts IS 'Attempts made.';
COMMENT ON COLUMN mq_dead.reason IS 'exhausted: no attempt left; discarded: by its handler, or its payload was missing; crashed: it brought the server down twice; expired: not handled in time.';
COMMENT ON COLUMN mq_dead.retry_backoff IS 'Wait that the next retry would have had; mq_redrive goes on with it.';
COMMENT ON COLUMN mq_dead.dedup_key IS 'As in mq_msgs; mq_redrive sends the message with it again.';
COMMENT ON SEQUENCE mq_dead_dead_no_seq IS 'Numbers of dead letters.';
CREATE INDEX mq_dead_id ON mq_dead (id);
CREATE INDEX mq_dead_channel ON mq_dead (channel_name, died_at);
CREATE INDEX mq_dead_died_at ON mq_dead (died_at);

CREATE TABLE mq_failures (
  failure_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  message_id uuid NOT NULL,
  attempt integer NOT NULL,
  failed_at timestamptz NOT NULL,
  channel_name text COLLATE "C" NOT NULL,
  channel_args text COLLATE "C" NOT NULL,
  name text COLLATE "C",
  duration interval,
  sqlstate text NOT NULL,
  error text NOT NULL,
  detail text,
  hint text,
  context text,
  channel_key bigint NOT NULL
);
COMMENT ON TABLE mq_failures IS 'Every failed attempt, with the error as the server reported it and how long the handler had run.';
COMMENT ON SEQUENCE mq_failures_failure_no_seq IS 'Numbers of failed attempts.';
CREATE INDEX mq_failures_message_id ON mq_failures (message_id);
CREATE INDEX mq_failures_failed_at ON mq_failures (failed_at);

-- Handlers by name and signature, never by oid: an oid would not survive pg_upgrade.
CREATE TABLE mq_handlers (
  channel_name text COLLATE "C" NOT NULL,
  message_name text COLLATE "C",
  handler text NOT NULL,
  mode text NOT NULL,
  batch_size integer,
  timeout interval,
  max_workers integer,
  run_as text NOT NULL,
  max_backoff interval NOT NULL,
  on_dead text NOT NULL,
  priority integer NOT NULL
);
COMMENT ON TABLE mq_handlers IS 'The registered handlers. Written by mq_register_handler and mq_unregister_handler.';
COMMENT ON COLUMN mq_handlers.message_name IS 'NULL: every name on the channel that has no handler of its own.';
COMMENT ON COLUMN mq_handlers.handler IS 'The function, schema-qualified, with its argument type.';
COMMENT ON COLUMN mq_handlers.run_as IS 'Name of the role that the worker is connected as.';
CREATE UNIQUE INDEX mq_handlers_name ON mq_handlers (channel_name, message_name) WHERE message_name IS NOT NULL;
CREATE UNIQUE INDEX mq_handlers_any ON mq_handlers (channel_name) WHERE message_name IS NULL;

CREATE TABLE mq_paused (
  channel_name text COLLATE "C" PRIMARY KEY,
  paused_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE mq_paused IS 'Channels that workers leave alone. Written by mq_pause and mq_resume.';

-- Totals: what each transaction adds is appended to mq_tally, so nobody waits for anybody; later those rows are folded
-- into mq_totals. mq_stats sums both. Histograms are arrays of step, count, step, count, ….
CREATE TABLE mq_totals (
  channel_name text COLLATE "C" NOT NULL,
  handled bigint NOT NULL,
  failed bigint NOT NULL,
  died bigint NOT NULL,
  handle_times bigint[] NOT NULL,
  wait_times bigint[] NOT NULL
);
CREATE INDEX mq_totals_channel_name ON mq_totals (channel_name);
COMMENT ON TABLE mq_totals IS 'What has been handled, has failed and died of each channel, and how long that took; without what mq_tally holds. For mq_stats.';
CREATE TABLE mq_tally (LIKE mq_totals);
COMMENT ON TABLE mq_tally IS 'What transactions have added to mq_totals, until it is folded into that.';

-- pg_dump takes the messages, the dead letters and the handlers along.
SELECT pg_catalog.pg_extension_config_dump('mq_place_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mq_msgs', '');
SELECT pg_catalog.pg_extension_config_dump('mq_loose', '');
SELECT pg_catalog.pg_extension_config_dump('mq_payloads', '');
SELECT pg_catalog.pg_extension_config_dump('mq_dead', '');
SELECT pg_catalog.pg_extension_config_dump('mq_dead_dead_no_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mq_failures', '');
SELECT pg_catalog.pg_extension_config_dump('mq_failures_failure_no_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mq_handlers', '');
SELECT pg_catalog.pg_extension_config_dump('mq_paused', '');
SELECT pg_catalog.pg_extension_config_dump('mq_totals', '');
SELECT pg_catalog.pg_extension_config_dump('mq_tally', '');
-- Sending. Every value is checked before anything is written; an error names the field, its value and the rule.

CREATE FUNCTION mq_insert(new_messages mq_new_t[]) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_insert';
COMMENT ON FUNCTION mq_insert(mq_new_t[]) IS
  'Sends messages when the transaction commits; ordered ones keep the order of the array. A bad value is refused with 22023 or 22004, bad JSON with 22P02, an id in use with 23505; an append to a channel that is newer than a REPEATABLE READ snapshot with 40001. Nothing of a refused call is kept.';

CREATE FUNCTION mq_send(
  channel_name text, payload_json jsonb DEFAULT NULL, name text DEFAULT NULL, channel_args text DEFAULT '',
  ordered boolean DEFAULT false, delay interval DEFAULT '0', retries integer DEFAULT 4,
  retry_backoff interval DEFAULT '1 second', commit_interval interval DEFAULT NULL,
  payload_bytes bytea DEFAULT NULL, id uuid DEFAULT NULL, dedup_key text DEFAULT NULL,
  expires interval DEFAULT NULL) RETURNS uuid
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_send';
COMMENT ON FUNCTION mq_send(text, jsonb, text, text, boolean, interval, integer, interval, interval, bytea, uuid, text, interval) IS
  'Sends one message when the transaction commits and returns its id (by default a new uuid of version 7). name defaults to the channel''s name. While a message with the same dedup_key is pending in the channel (scheduled, waiting for a retry or being handled too), sends nothing and returns that one''s id. A message that is not handled when expires has passed since it was sent is dead. Errors as in mq_insert, and 40001 where the message that is pending under the dedup_key is newer than a REPEATABLE READ snapshot.';

CREATE FUNCTION mq_send_many(
  channel_name text, payloads jsonb[], name text DEFAULT NULL, channel_args text DEFAULT '',
  ordered boolean DEFAULT false, delay interval DEFAULT '0', retries integer DEFAULT 4,
  retry_backoff interval DEFAULT '1 second', commit_interval interval DEFAULT NULL,
  payload_bytes bytea DEFAULT NULL, expires interval DEFAULT NULL) RETURNS SETOF uuid
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_send_many';
COMMENT ON FUNCTION mq_send_many(text, jsonb[], text, text, boolean, interval, integer, interval, interval, bytea, interval) IS
  'Sends a message for each payload, in array order (a NULL element is a message without JSON payload; payload_bytes goes to each), and returns their ids in that order. expires as in mq_send. Errors as in mq_insert.';

CREATE FUNCTION mq_commit(msg_ids uuid[]) RETURNS uuid[]
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_commit';
COMMENT ON FUNCTION mq_commit(uuid[]) IS
  'Makes two-phase messages deliverable and returns the ids that it committed, in the order given. An id that has expired, was committed before or does not exist is not among them.';

CREATE FUNCTION mq_channel_key(channel_name text, channel_args text) RETURNS bigint
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'mq_channel_key';
COMMENT ON FUNCTION mq_channel_key(text, text) IS 'The channel_key of a channel: XXH3 (64 bits) of its name''s length, its name and its arguments.';
-- Consuming from outside the server, as the original's clients do.

CREATE FUNCTION mq_poll(channel_names text[], batch_size integer DEFAULT 1)
  RETURNS TABLE (id uuid, is_committed boolean, name text, payload_json text, payload_bytes bytea,
                 retry_backoff interval, wait_time interval)
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_poll';
COMMENT ON FUNCTION mq_poll(text[], integer) IS
  'Leases up to batch_size (1 to 100000) due messages of the named channels (NULL: all), oldest first, each for its retry_backoff, and charges each an attempt. When nothing is ready: one row of NULLs whose wait_time says when the next message is due (NULL: there is none). Never waits for a lock. 22023 or 22004 for a bad batch_size.';

CREATE FUNCTION mq_delete(msg_ids uuid[]) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_delete';
COMMENT ON FUNCTION mq_delete(uuid[]) IS
  'Removes messages, because they are handled or no longer wanted; the next message of each ordered channel becomes its head. Ids that do not exist are passed over.';

CREATE FUNCTION mq_keep_alive(msg_ids uuid[], duration interval) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_keep_alive';
COMMENT ON FUNCTION mq_keep_alive(uuid[], interval) IS
  'Extends the lease of messages that are being handled, or the commit interval of two-phase ones, to duration from now; never shortens it. 22023 or 22004 for a bad duration.';

CREATE FUNCTION mq_checkpoint(msg_id uuid, duration interval, new_payload_json text, new_payload_bytes bytea, extra_retries integer)
  RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_checkpoint';
COMMENT ON FUNCTION mq_checkpoint(uuid, interval, text, bytea, integer) IS
  'As mq_keep_alive, and replaces what is not NULL of the payload and adds extra_retries (NULL: none). 22023 or 22004 for a bad value, 22P02 for bad JSON.';

CREATE FUNCTION mq_clear(channel_names text[]) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_clear';
COMMENT ON FUNCTION mq_clear(text[]) IS 'Deletes every pending message of the named channels. Dead letters stay.';

CREATE FUNCTION mq_clear_all() RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_clear_all';
COMMENT ON FUNCTION mq_clear_all() IS 'Deletes every pending message. Dead letters stay.';

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
        ORDER BY m.place DESC LIMIT 1),
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
-- Handlers: functions in this database that workers in the server call.

CREATE FUNCTION mq_register_handler(
  channel_name text, handler regprocedure, message_name text DEFAULT NULL, mode text DEFAULT 'transactional',
  batch_size integer DEFAULT NULL, timeout interval DEFAULT NULL, max_workers integer DEFAULT NULL,
  run_as regrole DEFAULT NULL, max_backoff interval DEFAULT '1 hour', on_dead text DEFAULT 'skip',
  priority integer DEFAULT 0) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_register_handler';
COMMENT ON FUNCTION mq_register_handler(text, regprocedure, text, text, integer, interval, integer, regrole, interval, text, integer) IS
  'Registers a function of the shape f(jsonb), f(mq_message) or f(mq_message[]) for a channel, or for one message name on it; replaces what was registered for them. Workers take channels with a greater priority (-1000 to 1000) first. In mode leased it runs in a session of its own and may be a procedure of the first two shapes. 22023 or 22004 for a bad value, 42883 for a function of another shape, 42501 without EXECUTE on the function for run_as (leased: and USAGE on its schema), or where the caller is not a member of run_as.';

CREATE FUNCTION mq_unregister_handler(channel_name text, message_name text DEFAULT NULL) RETURNS boolean
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_unregister_handler';
COMMENT ON FUNCTION mq_unregister_handler(text, text) IS 'Takes a registration away; false if there was none. The channel''s messages stay.';

CREATE FUNCTION mq_pause(channel_name text) RETURNS boolean
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_pause';
COMMENT ON FUNCTION mq_pause(text) IS 'Workers and mq_run leave the channel alone until mq_resume; what runs is finished. False if it was paused already.';

CREATE FUNCTION mq_resume(channel_name text) RETURNS boolean
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_resume';
COMMENT ON FUNCTION mq_resume(text) IS 'Undoes mq_pause. False if the channel was not paused.';

CREATE PROCEDURE mq_run(channel_names text[] DEFAULT NULL, max_messages bigint DEFAULT NULL, INOUT handled bigint DEFAULT 0)
  LANGUAGE c AS 'MODULE_PATHNAME', 'mq_run';
COMMENT ON PROCEDURE mq_run(text[], bigint, bigint) IS
  'Does in this session what the workers do, for handlers whose run_as is the current role, until nothing is ready or max_messages have been handled; handled counts them. Commits after each batch, unless called inside a transaction block.';

CREATE FUNCTION mq_redrive(
  ids uuid[] DEFAULT NULL, channel_name text DEFAULT NULL, retries integer DEFAULT 4,
  died_after timestamptz DEFAULT NULL, died_before timestamptz DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_redrive';
COMMENT ON FUNCTION mq_redrive(uuid[], text, integer, timestamptz, timestamptz) IS
  'Sends dead messages again with their own ids and dedup_keys: those that are among ids, of the channel, and died at died_after or later and before died_before, as far as each is given; with none given, all. Ordered ones join the tail of their channel; none expires again. One whose dedup_key a pending message has stays where it is. Returns how many were sent. 22023 or 22004 for bad retries.';

-- Called by a handler, about the message that it was called with.

CREATE FUNCTION mq_snooze(delay interval, message_id uuid DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_snooze';
COMMENT ON FUNCTION mq_snooze(interval, uuid) IS
  'From a handler: keeps what it wrote and gives it the message again after the delay; no attempt is charged. In a batch handler message_id says which message (NULL: all). 55000 outside of a handler, 22023 or 22004 for a bad value.';

CREATE FUNCTION mq_discard(reason text, message_id uuid DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_discard';
COMMENT ON FUNCTION mq_discard(text, uuid) IS
  'From a handler: keeps what it wrote and moves the message to the dead letters, with the reason as its error. In a batch handler message_id says which message (NULL: all). 55000 outside of a handler, 22023 or 22004 for a bad value.';

-- Tells the launcher, when this transaction commits, to look at this database.
CREATE FUNCTION mq_announce() RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_announce';
COMMENT ON FUNCTION mq_announce() IS 'Has the launcher look at this database when the transaction commits: CREATE EXTENSION calls it.';
-- Looking: what the queue does, and why messages are not moving.

CREATE FUNCTION mq_channel_stats(
  OUT channel_name text, OUT ready bigint, OUT scheduled bigint, OUT running bigint, OUT dead bigint, OUT paused boolean,
  OUT oldest_ready interval, OUT handled bigint, OUT failed bigint, OUT died bigint,
  OUT handle_p50 interval, OUT handle_p95 interval, OUT handle_p99 interval,
  OUT wait_p50 interval, OUT wait_p95 interval, OUT wait_p99 interval)
  RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_channel_stats';
COMMENT ON FUNCTION mq_channel_stats() IS 'Counts and totals by channel name; for mq_stats.';

CREATE VIEW mq_stats AS
  SELECT s.channel_name, s.ready, s.scheduled, s.running, s.dead, s.paused, s.oldest_ready, s.handled, s.failed, s.died,
         s.handle_p50, s.handle_p95, s.handle_p99, s.wait_p50, s.wait_p95, s.wait_p99
    FROM mq_channel_stats() AS s;
COMMENT ON VIEW mq_stats IS
  'A row for each channel name that has messages, dead letters, a handler, a pause or totals.';
COMMENT ON COLUMN mq_stats.ready IS 'Messages that could be handled now.';
COMMENT ON COLUMN mq_stats.scheduled IS 'Messages that could not: they are due later, wait for their retry or for mq_commit, or are behind such a one, or one that runs or blocks, in their ordered channel.';
COMMENT ON COLUMN mq_stats.running IS 'Messages that a worker holds in its batch, or that are leased to a consumer outside the server.';
COMMENT ON COLUMN mq_stats.dead IS 'Rows in mq_dead.';
COMMENT ON COLUMN mq_stats.oldest_ready IS 'For how long the oldest due message has been due; NULL: none is ready.';
COMMENT ON COLUMN mq_stats.handled IS 'Messages handled since mq_reset_stats(): by handlers, and by consumers outside that deleted what they had polled.';
COMMENT ON COLUMN mq_stats.failed IS 'Failed attempts since mq_reset_stats(). Deadlocks and serialization failures that were tried again at once are none.';
COMMENT ON COLUMN mq_stats.died IS 'Messages moved to mq_dead since mq_reset_stats().';
COMMENT ON COLUMN mq_stats.handle_p50 IS 'Half of the handled messages took their handlers at most so long. The time of a batch is divided evenly among its messages.';
COMMENT ON COLUMN mq_stats.wait_p50 IS 'Half of the handled messages waited at most so long from when they were due to when their handlers began.';

CREATE FUNCTION mq_reset_stats() RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_reset_stats';
COMMENT ON FUNCTION mq_reset_stats() IS 'Begins the totals of mq_stats anew, when the transaction commits.';

CREATE FUNCTION mq_worker_seats(OUT pid integer, OUT database text, OUT role oid, OUT state text,
                                OUT channel_name text, OUT message_id uuid, OUT since timestamptz, OUT handled bigint)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_worker_seats';
COMMENT ON FUNCTION mq_worker_seats() IS 'The workers of all databases, out of shared memory; for mq_workers.';

CREATE VIEW mq_workers AS
  SELECT w.pid, w.database, w.state, w.channel_name, w.message_id, w.since, w.handled
    FROM mq_worker_seats() AS w;
COMMENT ON VIEW mq_workers IS
  'A row for each worker. state is waiting (for work), active (between messages) or handling; then channel_name and message_id say what, the first message if it is a batch. since: when it began to wait, or its last handler began, or it started. handled: how many messages since it started.';

CREATE FUNCTION mq_service_state(OUT preloaded boolean, OUT launcher boolean, OUT served boolean, OUT out_of_slots boolean,
                                 OUT failing_role oid, OUT failed_starts integer)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_service_state';
COMMENT ON FUNCTION mq_service_state() IS 'What the launcher says of itself and this database; for mq_health().';

-- Who looks may not see what others run, so no query is shown.
CREATE FUNCTION mq_horizon_holders(OUT kind text, OUT name text, OUT pid integer, OUT xmin xid, OUT since timestamptz, OUT detail text)
  RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER
  BEGIN ATOMIC
    SELECT 'session', a.usename::text, a.pid,
           CASE WHEN a.backend_xmin IS NULL OR age(a.backend_xid) > age(a.backend_xmin) THEN a.backend_xid ELSE a.backend_xmin END,
           a.xact_start, pg_catalog.concat_ws(', ', a.backend_type, a.state, nullif(a.application_name, ''))
      FROM pg_stat_activity a
     WHERE (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL) AND a.pid <> pg_backend_pid()
       AND a.datname = current_database()
    UNION ALL
    SELECT 'replication slot', s.slot_name::text, s.active_pid,
           CASE WHEN s.xmin IS NOT NULL AND (s.catalog_xmin IS NULL OR age(s.xmin) >= age(s.catalog_xmin)) THEN s.xmin ELSE s.catalog_xmin END,
           NULL, pg_catalog.concat_ws(', ', s.slot_type, CASE WHEN NOT s.active THEN 'not active' END,
                           CASE WHEN s.xmin IS NULL THEN 'holds the system catalogs only' END)
      FROM pg_replication_slots s WHERE s.xmin IS NOT NULL OR s.catalog_xmin IS NOT NULL
    UNION ALL
    SELECT 'prepared transaction', p.gid, NULL, p.transaction, p.prepared, 'owner ' || p.owner::text
      FROM pg_prepared_xacts p WHERE p.database = current_database()
    UNION ALL
    SELECT 'standby', r.application_name, r.pid, r.backend_xmin, r.backend_start, r.client_addr::text
      FROM pg_stat_replication r WHERE r.backend_xmin IS NOT NULL;
  END;
COMMENT ON FUNCTION mq_horizon_holders() IS 'For mq_horizon.';

CREATE FUNCTION mq_connection_refusals(OUT role oid, OUT error text)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_connection_refusals';
COMMENT ON FUNCTION mq_connection_refusals() IS 'Why the last connection for leased handlers of a role was refused, where it was; for mq_health().';

CREATE VIEW mq_horizon AS
  SELECT h.kind, h.name, h.pid, h.xmin, age(h.xmin) AS xids, h.since, clock_timestamp() - h.since AS held_for, h.detail
    FROM mq_horizon_holders() AS h
   ORDER BY age(h.xmin) DESC, h.since;
COMMENT ON VIEW mq_horizon IS
  'What holds back the oldest snapshot of this database, oldest first: rows that were deleted since cannot be vacuumed, and claims read past them. kind is session, replication slot, prepared transaction or standby; xids counts the transactions since; of a slot nobody knows since when.';

CREATE FUNCTION mq_health() RETURNS TABLE ("check" text, ok boolean, detail text)
  LANGUAGE sql VOLATILE SECURITY DEFINER
  BEGIN ATOMIC
    WITH RECURSIVE s AS (SELECT * FROM mq_service_state()),
         -- Channel names with messages to handle, by a skip scan.
         n (name) AS (
           SELECT (SELECT m.channel_name FROM mq_msgs m
                    WHERE m.after_message_id IS NULL OR m.after_message_id = '00000000-0000-0000-0000-000000000000'
                    ORDER BY m.channel_name LIMIT 1)
           UNION ALL
           SELECT (SELECT m.channel_name FROM mq_msgs m WHERE m.channel_name > n.name
                      AND (m.after_message_id IS NULL OR m.after_message_id = '00000000-0000-0000-0000-000000000000')
                    ORDER BY m.channel_name LIMIT 1)
             FROM n WHERE n.name IS NOT NULL),
         unhandled AS (
           SELECT n.name FROM n
            WHERE NOT EXISTS (SELECT FROM mq_handlers h WHERE h.channel_name = n.name)
              AND (SELECT m.attempt_at FROM mq_msgs m WHERE m.channel_name = n.name
                      AND (m.after_message_id IS NULL OR m.after_message_id = '00000000-0000-0000-0000-000000000000')
                    ORDER BY m.attempt_at LIMIT 1) <= now() - interval '1 second')
    SELECT 'library preloaded', s.preloaded,
           CASE WHEN NOT s.preloaded THEN 'shared_preload_libraries does not name mq: no workers; CALL mq_run() does their work' END
      FROM s
    UNION ALL
    SELECT 'settings in force', pg_catalog.count(p.name) = 0, 'wait for a restart: ' || string_agg(p.name, ', ' ORDER BY p.name)
      FROM pg_settings p WHERE p.pending_restart AND p.name IN ('shared_preload_libraries', 'max_worker_processes')
    UNION ALL
    SELECT 'launcher runs', s.launcher,
           CASE WHEN NOT s.preloaded THEN 'library not preloaded'
                WHEN NOT s.launcher THEN 'it comes back after a second; if not, max_worker_processes = ' ||
                                         current_setting('max_worker_processes') || ' may be in use: see the server''s log' END
      FROM s
    UNION ALL
    SELECT 'database served', s.served OR NOT s.launcher,
           CASE WHEN s.launcher AND NOT s.served THEN 'mq.databases = ' || current_setting('mq.databases') END
      FROM s
    UNION ALL
    SELECT 'workers allowed', current_setting('mq.max_workers') <> '0',
           CASE WHEN current_setting('mq.max_workers') = '0' THEN 'mq.max_workers = 0' END
    UNION ALL
    SELECT 'worker slots', NOT s.out_of_slots,
           CASE WHEN s.out_of_slots THEN 'max_worker_processes = ' || current_setting('max_worker_processes') || ' are in use' END
      FROM s
    UNION ALL
    SELECT 'workers start', s.failed_starts = 0,
           CASE WHEN s.failed_starts > 0 THEN
             'as ' || COALESCE((SELECT r.rolname::text FROM pg_roles r WHERE r.oid = s.failing_role), 'the bootstrap superuser') ||
             ': ' || s.failed_starts::text || ' times in a row it ended before it could serve; see the server''s log' END
      FROM s
    UNION ALL
    SELECT 'handlers registered', EXISTS (SELECT FROM mq_handlers),
           CASE WHEN NOT EXISTS (SELECT FROM mq_handlers) THEN 'none' END
    UNION ALL
    SELECT 'channels handled', pg_catalog.count(u.name) = 0, 'due messages, but no handler, in: ' || string_agg(u.name, ', ' ORDER BY u.name)
      FROM unhandled u
    UNION ALL
    SELECT 'channels not paused', pg_catalog.count(p.channel_name) = 0, 'paused: ' || string_agg(p.channel_name, ', ' ORDER BY p.channel_name)
      FROM mq_paused p
    UNION ALL
    SELECT 'handlers'' functions', pg_catalog.count(h.handler) = 0,
           'gone: ' || string_agg(h.channel_name || ' ' || h.handler, ', ' ORDER BY h.channel_name)
      FROM mq_handlers h WHERE to_regprocedure(h.handler) IS NULL
    UNION ALL
    SELECT 'handlers may be called', pg_catalog.count(h.handler) = 0,
           'by the role that they run as, and their owners are members of it; not: ' ||
           string_agg(h.channel_name || ' ' || h.handler, ', ' ORDER BY h.channel_name)
      FROM mq_handlers h JOIN pg_roles r ON r.rolname = h.run_as JOIN pg_proc p ON p.oid = to_regprocedure(h.handler)
     WHERE NOT (has_function_privilege(r.oid, p.oid, 'EXECUTE') AND has_schema_privilege(r.oid, p.pronamespace, 'USAGE')
                AND (p.prosecdef OR pg_has_role(p.proowner, r.oid, 'MEMBER')))
    UNION ALL
    -- A worker is connected as the role; only newer servers let it without LOGIN.
    SELECT 'handlers'' roles', pg_catalog.count(h.run_as) = 0,
           'gone, or without LOGIN: ' || string_agg(h.channel_name || ' runs as ' || h.run_as, ', ' ORDER BY h.channel_name)
      FROM mq_handlers h
     WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = h.run_as
                          AND (r.rolcanlogin OR current_setting('server_version_num')::int >= 170000))
    UNION ALL
    SELECT 'leased connections', pg_catalog.count(r.error) = 0, string_agg(pg_catalog.format('as %s: %s', r.role::pg_catalog.regrole, r.error), '; ')
      FROM mq_connection_refusals() r
    UNION ALL
    SELECT 'channels not blocked', pg_catalog.count(m.id) = 0, 'blocked by a dead message: ' || string_agg(DISTINCT m.channel_name, ', ')
      FROM mq_msgs m WHERE m.attempts <= 0 AND m.attempt_at IS NULL
    UNION ALL
    SELECT 'horizon', pg_catalog.count(h.kind) = 0,
           'held for 10 minutes, or for a million transactions, by: ' || string_agg(h.kind || ' ' || h.name, ', ' ORDER BY h.xids DESC)
      FROM mq_horizon h WHERE h.held_for > interval '10 minutes' OR h.xids > 1000000;
  END;
COMMENT ON FUNCTION mq_health() IS 'Why messages are not moving: a row for each thing that can be in the way, ok or not, with what it is.';
CREATE FUNCTION mq_grant(role regrole, "right" text) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_grant';
COMMENT ON FUNCTION mq_grant(regrole, text) IS
  'Gives a role a whole set of rights: produce (send messages), consume (poll them, and call mq_snooze and its like from handlers) or admin (everything). 22023 or 22004 for another right.';

CREATE FUNCTION mq_revoke(role regrole, "right" text) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_revoke';
COMMENT ON FUNCTION mq_revoke(regrole, text) IS
  'Takes a whole set of rights from a role: produce, consume or admin. What two sets share goes with the first one taken.';

-- Nothing for PUBLIC.
REVOKE ALL ON FUNCTION
  mq_insert(mq_new_t[]),
  mq_send(text, jsonb, text, text, boolean, interval, integer, interval, interval, bytea, uuid, text, interval),
  mq_send_many(text, jsonb[], text, text, boolean, interval, integer, interval, interval, bytea, interval),
  mq_commit(uuid[]), mq_channel_key(text, text), mq_poll(text[], integer), mq_delete(uuid[]),
  mq_keep_alive(uuid[], interval), mq_checkpoint(uuid, interval, text, bytea, integer),
  mq_clear(text[]), mq_clear_all(), mq_uuid_exists(uuid), mq_latest_message(text, text),
  mq_active_channels(text[], integer),
  mq_register_handler(text, regprocedure, text, text, integer, interval, integer, regrole, interval, text, integer),
  mq_unregister_handler(text, text), mq_pause(text), mq_resume(text), mq_redrive(uuid[], text, integer, timestamptz, timestamptz),
  mq_snooze(interval, uuid), mq_discard(text, uuid), mq_announce(),
  mq_channel_stats(), mq_reset_stats(), mq_worker_seats(), mq_service_state(),
  mq_connection_refusals(), mq_horizon_holders(), mq_health(),
  mq_grant(regrole, text), mq_revoke(regrole, text) FROM PUBLIC;
REVOKE ALL ON PROCEDURE mq_run(text[], bigint, bigint) FROM PUBLIC;
REVOKE ALL ON TYPE mq_new_t, mq_message FROM PUBLIC;
SELECT mq_announce();
