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
-- The storage. docs/architecture.md says why it is as it is; in short: no triggers, no foreign keys, nothing unique
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
COMMENT ON COLUMN mq_msgs.attempt_at IS 'When the message is due next; while an outside consumer works on it, when its lease runs out. infinity: no handler of its channel takes its name, and it waits for one. NULL: a dead message that blocks its ordered channel.';
COMMENT ON COLUMN mq_msgs.attempts IS 'How many attempts are left, as in the original schema; attempt says how many were made, as attempts_made of mq_dead does.';
COMMENT ON COLUMN mq_msgs.retry_backoff IS 'Wait before the next retry; doubled with each attempt, within bounds.';
COMMENT ON COLUMN mq_msgs.commit_interval IS 'Not NULL: a two-phase message that is hidden until mq_commit; it expires at attempt_at.';
COMMENT ON COLUMN mq_msgs.after_message_id IS 'NULL: not ordered. The nil uuid: head of its ordered channel. Else the message it was appended after.';
COMMENT ON COLUMN mq_msgs.channel_key IS 'XXH3 hash (64 bits) of channel_name and channel_args.';
COMMENT ON COLUMN mq_msgs.place IS 'Place in the order of the channel; from mq_place_seq.';
COMMENT ON COLUMN mq_msgs.attempt IS 'How many attempts were made.';
COMMENT ON COLUMN mq_msgs.lease IS 'Token of the lease until attempt_at, if there is one: no two leases of workers have the same; 0: of a consumer outside the server.';
COMMENT ON COLUMN mq_msgs.dedup_key IS 'Not NULL: no second message of the channel has this key while this one is pending.';
COMMENT ON COLUMN mq_msgs.expires_at IS 'Not NULL: dead by then if nobody has handled it. attempt_at is not beyond it, but for a lease, while commit_interval is not NULL, and while it waits for a handler.';

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
  attempts_made integer NOT NULL,
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
COMMENT ON COLUMN mq_dead.attempts_made IS 'How many attempts were made; attempts of mq_msgs is how many are left.';
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
  channel_key bigint NOT NULL,
  crash boolean
);
COMMENT ON COLUMN mq_failures.crash IS 'True: the attempt is proven to have brought the server down; false: so it is, but mq_checkpoint has been called since.';
COMMENT ON TABLE mq_failures IS 'Failed attempts, with the error as the server reported it (each text cut to 8 kB) and how long the handler had run: of a message the first five, those at powers of two, and the last one.';
COMMENT ON SEQUENCE mq_failures_failure_no_seq IS 'Numbers of failed attempts.';
CREATE INDEX mq_failures_message_id ON mq_failures (message_id);
CREATE INDEX mq_failures_failed_at ON mq_failures (failed_at);

-- Functions by their signature, not by oid, which would not survive pg_upgrade. Roles by their oid in the database where
-- they were registered, and by their name in any other that the row is restored into; neither column is of a reg* type,
-- which fails to load where the role is missing.
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
  priority integer NOT NULL,
  enabled_id uuid,
  run_as_oid oid,
  -- As mq_register_handler has them.
  CONSTRAINT mq_handlers_mode CHECK (mode IN ('transactional', 'leased')),
  CONSTRAINT mq_handlers_batch_size CHECK (batch_size BETWEEN 1 AND 100000),
  CONSTRAINT mq_handlers_timeout CHECK (timeout > '0' AND timeout <= '36500 days'),
  CONSTRAINT mq_handlers_max_workers CHECK (max_workers BETWEEN 1 AND 1000),
  CONSTRAINT mq_handlers_max_backoff CHECK (max_backoff > '0' AND max_backoff <= '36500 days'),
  CONSTRAINT mq_handlers_on_dead CHECK (on_dead IN ('skip', 'block')),
  CONSTRAINT mq_handlers_priority CHECK (priority BETWEEN -1000 AND 1000)
);
COMMENT ON TABLE mq_handlers IS 'The registered handlers. Written by mq_register_handler and mq_unregister_handler.';
COMMENT ON COLUMN mq_handlers.message_name IS 'NULL: every name on the channel that has no handler of its own.';
COMMENT ON COLUMN mq_handlers.handler IS 'The function, schema-qualified, with its argument type.';
COMMENT ON COLUMN mq_handlers.run_as IS 'Name of the role that the worker is connected as. If it is renamed, so it is here by the next worker that looks; if it is dropped, the registration is left alone.';
COMMENT ON COLUMN mq_handlers.enabled_id IS 'Id of the row in mq_enabled under which it was registered. Of another one: it comes from another database, and is not called.';
COMMENT ON COLUMN mq_handlers.run_as_oid IS 'The role run_as, in the database that enabled_id tells; elsewhere mq_enable() looks for its name. 0: it was dropped.';
CREATE UNIQUE INDEX mq_handlers_name ON mq_handlers (channel_name, message_name) WHERE message_name IS NOT NULL;
CREATE UNIQUE INDEX mq_handlers_any ON mq_handlers (channel_name) WHERE message_name IS NULL;

CREATE TABLE mq_paused (
  channel_name text COLLATE "C" PRIMARY KEY,
  paused_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE mq_paused IS 'Channels that workers leave alone. Written by mq_pause and mq_resume.';

-- Totals: what each transaction adds is appended to mq_tally, so nobody waits for anybody; later those rows are folded
-- into mq_totals. mq_stats sums both. Histograms are arrays of step, count, step, count and so on.
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

-- Not in a dump: a database that is restored is not the one that it is a dump of.
CREATE TABLE mq_enabled (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
  database oid NOT NULL,
  system_identifier bigint NOT NULL,
  extension_xmin xid NOT NULL,
  subscribed boolean NOT NULL,
  enabled_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  enabled_by text NOT NULL
);
COMMENT ON TABLE mq_enabled IS 'The database in which messages are handled, if it is this one: at most one row. Written by CREATE EXTENSION, mq_register_handler and mq_enable; gone when a dump is restored.';
COMMENT ON COLUMN mq_enabled.id IS 'New whenever another database is meant; handlers that are registered under it have it in enabled_id.';
COMMENT ON COLUMN mq_enabled.extension_xmin IS 'xmin of the row in pg_extension: pg_upgrade writes that anew, and nothing else that changes the system identifier.';
COMMENT ON COLUMN mq_enabled.subscribed IS 'Messages are handled though a subscription writes into the tables.';
CREATE FUNCTION mq_enabled_stays() RETURNS trigger LANGUAGE c AS 'MODULE_PATHNAME', 'mq_enabled_stays';
COMMENT ON FUNCTION mq_enabled_stays() IS 'Keeps the row of a publisher out of mq_enabled.';
CREATE TRIGGER mq_enabled_stays BEFORE INSERT OR UPDATE OR DELETE ON mq_enabled FOR EACH ROW EXECUTE FUNCTION mq_enabled_stays();
ALTER TABLE mq_enabled ENABLE REPLICA TRIGGER mq_enabled_stays;

-- With a publication for all tables, rows without a replica identity can be neither updated nor deleted.
ALTER TABLE mq_loose REPLICA IDENTITY FULL;
ALTER TABLE mq_handlers REPLICA IDENTITY FULL;
ALTER TABLE mq_totals REPLICA IDENTITY FULL;
ALTER TABLE mq_tally REPLICA IDENTITY FULL;

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
  'Sends messages when the transaction commits; ordered ones keep the order of the array. A bad value is refused with 22023 or 22004, bad JSON with 22P02, an id in use with 23505; an append to a channel that is newer than a REPEATABLE READ snapshot with 40001, and one that comes in a call after others to more than 256 ordered channels, and would have to wait. Nothing of a refused call is kept.';

CREATE FUNCTION mq_send(
  channel_name text, payload_json jsonb DEFAULT NULL, name text DEFAULT NULL, channel_args text DEFAULT '',
  ordered boolean DEFAULT false, delay interval DEFAULT '0', retries integer DEFAULT 24,
  retry_backoff interval DEFAULT '1 second', commit_interval interval DEFAULT NULL,
  payload_bytes bytea DEFAULT NULL, id uuid DEFAULT NULL, dedup_key text DEFAULT NULL,
  expires interval DEFAULT NULL) RETURNS uuid
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_send';
COMMENT ON FUNCTION mq_send(text, jsonb, text, text, boolean, interval, integer, interval, interval, bytea, uuid, text, interval) IS
  'Sends one message when the transaction commits and returns its id (by default a new uuid of version 7). name defaults to the channel''s name. While a message with the same dedup_key is pending in the channel (scheduled, waiting for a retry or being handled too), sends nothing and returns that one''s id; but the message that the calling handler handles does not count: its key goes to what it sends, when it commits. A message that is not handled when expires has passed since it was sent is dead. Errors as in mq_insert, and 40001 where the message that is pending under the dedup_key is newer than a REPEATABLE READ snapshot.';

CREATE FUNCTION mq_send_once(
  channel_name text, dedup_key text, payload_json jsonb DEFAULT NULL, name text DEFAULT NULL, channel_args text DEFAULT '',
  ordered boolean DEFAULT false, delay interval DEFAULT '0', retries integer DEFAULT 24,
  retry_backoff interval DEFAULT '1 second', commit_interval interval DEFAULT NULL,
  payload_bytes bytea DEFAULT NULL, expires interval DEFAULT NULL, OUT id uuid, OUT sent boolean) RETURNS record
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_send_once';
COMMENT ON FUNCTION mq_send_once(text, text, jsonb, text, text, boolean, interval, integer, interval, interval, bytea, interval) IS
  'As mq_send with that dedup_key, and tells whether it sent: id and true, or the id of the message that is pending under the key, and false. Errors as in mq_send, and 22004 for a dedup_key that is NULL.';

CREATE FUNCTION mq_send_many(
  channel_name text, payloads jsonb[], name text DEFAULT NULL, channel_args text DEFAULT '',
  ordered boolean DEFAULT false, delay interval DEFAULT '0', retries integer DEFAULT 24,
  retry_backoff interval DEFAULT '1 second', commit_interval interval DEFAULT NULL,
  payload_bytes bytea DEFAULT NULL, expires interval DEFAULT NULL) RETURNS SETOF uuid
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_send_many';
COMMENT ON FUNCTION mq_send_many(text, jsonb[], text, text, boolean, interval, integer, interval, interval, bytea, interval) IS
  'Sends a message for each payload, in array order (a NULL element is a message without JSON payload; payload_bytes goes to each), and returns their ids in that order. expires as in mq_send. Errors as in mq_insert.';

CREATE FUNCTION mq_commit(msg_ids uuid[]) RETURNS uuid[]
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_commit';
COMMENT ON FUNCTION mq_commit(uuid[]) IS
  'Makes two-phase messages deliverable and returns the ids that it committed, in the order given. An id that has expired, was committed before or does not exist is not among them. 22004 for NULL, also in the array.';

CREATE FUNCTION mq_channel_key(channel_name text, channel_args text) RETURNS bigint
  LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'mq_channel_key';
COMMENT ON FUNCTION mq_channel_key(text, text) IS 'The channel_key of a channel: XXH3 (64 bits) of its name''s length, its name and its arguments.';
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

CREATE FUNCTION mq_clear(channel_names text[]) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_clear';
COMMENT ON FUNCTION mq_clear(text[]) IS 'Deletes every pending message of the named channels. Dead letters stay. 22004 for NULL, also in the array.';

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
  'Registers a function of the shape f(jsonb), f(mq_message) or f(mq_message[]) for a channel, or for one message name on it; replaces what was registered for them. Workers take channels with a greater priority (-1000 to 1000) first. In mode leased it runs in a session of its own and may be a procedure of the first two shapes. 22023 or 22004 for a bad value, 42883 for a function of another shape or kind, 42501 without EXECUTE on the function for run_as (leased: and USAGE on its schema), or where the caller is not a member of run_as, or the function''s owner no member of it; 55000 before ALTER EXTENSION mq UPDATE.';

CREATE FUNCTION mq_handler_function(handler text) RETURNS oid
  LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'mq_handler_function';
COMMENT ON FUNCTION mq_handler_function(text) IS 'The function that a row of mq_handlers names; NULL where there is none. For mq_health().';

CREATE FUNCTION mq_handler_trouble(handler text, run_as regrole, mode text) RETURNS text
  LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'mq_handler_trouble';
COMMENT ON FUNCTION mq_handler_trouble(text, regrole, text) IS 'Why the function that a row of mq_handlers names, if it is there, cannot be called by the role; NULL where it can. For mq_health().';

CREATE FUNCTION mq_unregister_handler(channel_name text, message_name text DEFAULT NULL) RETURNS boolean
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_unregister_handler';
COMMENT ON FUNCTION mq_unregister_handler(text, text) IS 'Takes a registration away; false if there was none. The channel''s messages stay. 22004 if channel_name is NULL.';

CREATE FUNCTION mq_pause(channel_name text) RETURNS boolean
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_pause';
COMMENT ON FUNCTION mq_pause(text) IS 'Workers and mq_run leave the channel alone until mq_resume; what runs is finished. False if it was paused already. 22023 or 22004 for a bad name.';

CREATE FUNCTION mq_resume(channel_name text) RETURNS boolean
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_resume';
COMMENT ON FUNCTION mq_resume(text) IS 'Undoes mq_pause. False if the channel was not paused. 22023 or 22004 for a bad name.';

CREATE PROCEDURE mq_run(channel_names text[] DEFAULT NULL, max_messages bigint DEFAULT NULL, INOUT handled bigint DEFAULT 0)
  LANGUAGE c AS 'MODULE_PATHNAME', 'mq_run';
COMMENT ON PROCEDURE mq_run(text[], bigint, bigint) IS
  'Does in this session what the workers do, for handlers whose run_as is the current role, until nothing is ready or max_messages have been handled; handled counts them. Commits after each batch, unless called inside a transaction block; such a block must be READ COMMITTED (25000 otherwise). 22023 or 22004 for a bad value, 55000 in a handler and where messages are not handled (see mq_enable).';

CREATE FUNCTION mq_redrive(
  ids uuid[] DEFAULT NULL, channel_name text DEFAULT NULL, retries integer DEFAULT 24,
  died_after timestamptz DEFAULT NULL, died_before timestamptz DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_redrive';
COMMENT ON FUNCTION mq_redrive(uuid[], text, integer, timestamptz, timestamptz) IS
  'Sends dead messages again with their own ids and dedup_keys: those that are among ids, of the channel, and died at died_after or later and before died_before, as far as each is given; with none given, all. Ordered ones join the tail of their channel, but one that its channel waits for (on_dead block) returns to its place; none expires again. One whose dedup_key a pending message has stays where it is. Returns how many were sent. 22023 or 22004 for bad retries.';

CREATE FUNCTION mq_enable() RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_enable';
COMMENT ON FUNCTION mq_enable() IS
  'Has the messages of this database handled, though it was restored from a dump, copied from another, or is written by a subscription; takes over the handlers that came with them. To be called once everything has been restored. 55000 before ALTER EXTENSION mq UPDATE.';

-- Called by a handler, about the message that it was called with.

CREATE FUNCTION mq_snooze(delay interval, message_id uuid DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_snooze';
COMMENT ON FUNCTION mq_snooze(interval, uuid) IS
  'From a handler: keeps what it wrote and gives it the message again after the delay; no attempt is charged. In a batch handler message_id says which message (NULL: all). 55000 outside of a handler, or when the message is settled or its lease lost, 22023 or 22004 for a bad value.';

CREATE FUNCTION mq_discard(reason text, message_id uuid DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_discard';
COMMENT ON FUNCTION mq_discard(text, uuid) IS
  'From a handler: keeps what it wrote and moves the message to the dead letters, with the reason as its error. In a batch handler message_id says which message (NULL: all). 55000 outside of a handler, or when the message is settled or its lease lost, 22023 or 22004 for a bad value.';

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
COMMENT ON COLUMN mq_stats.scheduled IS 'Messages that could not: they are due later, wait for their retry, for mq_commit or for a handler of their name, or are behind such a one, or one that runs or blocks, in their ordered channel.';
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
  'A row for each worker. state is waiting (for work), active (between messages), handling, settling (writing what has become of them), committing (which runs deferred triggers), or leaving: it only looks after leased calls that it began, and does not count towards mq.max_workers. channel_name and message_id say what a worker handles, the first message if it is a batch. since: when it began to wait, its last handler began, it began to settle, or it started. handled: how many messages since it started.';

CREATE FUNCTION mq_service_state(OUT preloaded boolean, OUT launcher boolean, OUT served boolean, OUT out_of_slots boolean,
                                 OUT failing_role oid, OUT failed_starts integer)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_service_state';
COMMENT ON FUNCTION mq_service_state() IS 'What the launcher says of itself and this database; for mq_health().';

CREATE FUNCTION mq_enabled_state(OUT enabled boolean, OUT reason text)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_enabled_state';
COMMENT ON FUNCTION mq_enabled_state() IS 'Whether messages are handled in this database, and if not, why; for mq_health().';

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

CREATE FUNCTION mq_unsettled(OUT message_id uuid, OUT channel_name text, OUT error text, OUT until timestamptz, OUT times integer)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_unsettled';
COMMENT ON FUNCTION mq_unsettled() IS 'The last messages that a worker could not settle (remove, put off or move to mq_dead), why, until when they are put off, and how often; for mq_health().';

CREATE VIEW mq_horizon AS
  SELECT h.kind, h.name, h.pid, h.xmin, age(h.xmin) AS xids, h.since, clock_timestamp() - h.since AS held_for, h.detail
    FROM mq_horizon_holders() AS h
   ORDER BY age(h.xmin) DESC, h.since;
COMMENT ON VIEW mq_horizon IS
  'What holds back the oldest snapshot of this database, oldest first: rows that were deleted since cannot be vacuumed, and claims read past them. kind is session, replication slot, prepared transaction or standby; xids counts the transactions since; of a slot nobody knows since when.';
-- mq_why(): why one message is where it is; and what it shares with mq_health().

-- Strict: its callers have no texts as a rule, and it would be planned each time.
CREATE FUNCTION mq_some(texts text[]) RETURNS text
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
  RETURN (SELECT string_agg(left(t.text, 400), ', ' ORDER BY t.n) FILTER (WHERE t.n <= 10) ||
                 CASE WHEN pg_catalog.count(*) > 10 THEN ' and ' || (pg_catalog.count(*) - 10)::text || ' more' ELSE '' END
            FROM pg_catalog.unnest(texts) WITH ORDINALITY AS t (text, n));
COMMENT ON FUNCTION mq_some(text[]) IS 'The first ten of the texts, and how many more there are; for mq_health().';

CREATE FUNCTION mq_prepared(transaction xid) RETURNS text
  LANGUAGE sql STABLE
  RETURN COALESCE((SELECT pg_catalog.format('prepared transaction %L (COMMIT PREPARED %L or ROLLBACK PREPARED %L ends it)', x.gid, x.gid, x.gid)
                     FROM pg_prepared_xacts x WHERE x.transaction = mq_prepared.transaction),
                  'a prepared transaction');
COMMENT ON FUNCTION mq_prepared(xid) IS 'What to call a prepared transaction, and how to end it; for mq_health() and mq_why().';

-- What pg_stat_activity does not tell is left out.
CREATE FUNCTION mq_process(pid integer, application_name text, state text, backend_type text) RETURNS text
  LANGUAGE sql STABLE
  RETURN CASE WHEN backend_type = 'startup' THEN 'the replay of a transaction of the primary'
              ELSE pg_catalog.format('process %s', pid) ||
                   COALESCE(' (' || nullif(pg_catalog.concat_ws(', ', COALESCE(nullif(application_name, ''), nullif(backend_type, 'client backend')), state), '') || ')', '') END;
COMMENT ON FUNCTION mq_process(integer, text, text, text) IS 'What to call a process; for mq_health() and mq_why().';

CREATE FUNCTION mq_since(at timestamptz) RETURNS text
  LANGUAGE sql STABLE
  RETURN COALESCE(' since ' || date_trunc('second', at)::text, '');
COMMENT ON FUNCTION mq_since(timestamptz) IS 'Since when something is so, if that is known; for mq_health() and mq_why().';

CREATE FUNCTION mq_blockers(waiting integer) RETURNS text
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    WITH l AS MATERIALIZED (SELECT * FROM pg_locks),
         w AS (SELECT * FROM l WHERE l.pid = waiting AND NOT l.granted LIMIT 1),
         same AS (SELECT l.pid, l.granted, l.mode = w.mode AS alike, l.virtualtransaction
                    FROM w JOIN l ON (l.locktype, l.database, l.relation, l.page, l.tuple, l.transactionid, l.virtualxid, l.classid, l.objid, l.objsubid) IS NOT DISTINCT FROM
                                     (w.locktype, w.database, w.relation, w.page, w.tuple, w.transactionid, w.virtualxid, w.classid, w.objid, w.objsubid))
    SELECT COALESCE(string_agg(DISTINCT b.name, ' and '), 'one that has ended')
      FROM (SELECT mq_process(a.pid, a.application_name, a.state, a.backend_type) AS name
              FROM (SELECT DISTINCT u.pid FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids(waiting)) AS u (pid)) AS u
              JOIN pg_stat_activity a ON a.pid = u.pid
             -- Those who wait for the same before it are not in the way themselves.
             WHERE NOT EXISTS (SELECT FROM same o WHERE o.pid = u.pid AND NOT o.granted AND o.alike)
            UNION ALL
            SELECT mq_prepared(t.transactionid)
              FROM same g JOIN l t ON t.locktype = 'transactionid' AND t.pid IS NULL AND t.virtualtransaction = g.virtualtransaction
             WHERE g.granted AND g.pid IS NULL) AS b;
  END;
COMMENT ON FUNCTION mq_blockers(integer) IS 'Who holds the lock that a process waits for, in words; for mq_health().';

-- Reading a table locks its indexes, too. Not who vacuums: autovacuum locks a table for a moment to give back its end.
CREATE FUNCTION mq_locked_tables() RETURNS SETOF text
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    SELECT pg_catalog.format(CASE WHEN g.granted AND g.tables > 1 THEN '%s are locked by '
                                  WHEN g.granted THEN '%s is locked by '
                                  ELSE 'whoever would read %s waits behind the ALTER, VACUUM FULL, REINDEX or LOCK of ' END,
                             CASE WHEN g.tables > 1 THEN g.tables::text || ' tables of mq' ELSE COALESCE(g.of_table, g.of_index) END) ||
           CASE WHEN g.pid IS NULL
                THEN mq_prepared((SELECT t.transactionid FROM pg_locks t
                                   WHERE t.locktype = 'transactionid' AND t.pid IS NULL AND t.virtualtransaction = g.virtualtransaction LIMIT 1))
                -- On a standby nobody else can have such a lock.
                ELSE mq_process(g.pid, a.application_name, a.state, CASE WHEN pg_is_in_recovery() THEN 'startup' ELSE a.backend_type END) ||
                     mq_since(COALESCE(g.waitstart, a.xact_start)) END
      FROM (SELECT l.granted, l.pid, l.virtualtransaction, min(l.waitstart) AS waitstart, pg_catalog.count(DISTINCT c.oid) AS tables,
                   min(r.name) FILTER (WHERE r.oid = c.oid) AS of_table, min(r.name) FILTER (WHERE r.oid <> c.oid) AS of_index
              FROM pg_extension e
              JOIN pg_depend d ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass::oid AND d.deptype = 'e'
               AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass::oid AND d.refobjid = e.oid
              JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'r'
             CROSS JOIN LATERAL (
                     SELECT c.oid, c.relname::text
                      UNION ALL
                     SELECT i.indexrelid, pg_catalog.format('%s, an index of %s,', n.relname, c.relname)
                       FROM pg_index i JOIN pg_class n ON n.oid = i.indexrelid WHERE i.indrelid = c.oid) AS r (oid, name)
              JOIN pg_locks l ON l.relation = r.oid
             WHERE e.extname = 'mq' AND l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.pid IS DISTINCT FROM pg_backend_pid()
               AND l.database = (SELECT b.oid FROM pg_database b WHERE b.datname = current_database())
             GROUP BY l.granted, l.pid, l.virtualtransaction) AS g
      LEFT JOIN pg_stat_activity a ON a.pid = g.pid
     WHERE a.backend_type IS DISTINCT FROM 'autovacuum worker';
  END;
COMMENT ON FUNCTION mq_locked_tables() IS 'Which of mq''s tables and their indexes nobody can read now, and for whom; for mq_health() and mq_why(), which would wait for them.';

-- Since when is known of workers. Of others it is known since when their transactions are open, and while standbys enough are
-- connected a commit waits for each now and then.
CREATE FUNCTION mq_waiting_commits(OUT pid integer, OUT backend_type text)
  RETURNS SETOF record LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    SELECT a.pid, a.backend_type FROM pg_stat_activity a
      LEFT JOIN mq_worker_seats() AS w ON w.pid = a.pid AND w.state = 'committing'
     WHERE a.wait_event = 'SyncRep' AND a.datname = current_database()
       AND COALESCE(COALESCE(w.since, a.xact_start) < clock_timestamp() -
                    CASE WHEN w.since IS NOT NULL OR
                              (SELECT pg_catalog.count(*) FROM pg_stat_replication r WHERE r.sync_state IN ('sync', 'quorum'))
                              < COALESCE((pg_catalog.regexp_match(current_setting('synchronous_standby_names'), '^\s*(?:(?:first|any)\s+)?(\d+)\s*\(', 'i'))[1]::bigint, 1)
                         THEN interval '1 second' ELSE interval '10 seconds' END, true);
  END;
COMMENT ON FUNCTION mq_waiting_commits() IS 'The sessions of this database whose commits wait for a synchronous standby; for mq_health() and mq_why().';

CREATE FUNCTION mq_row_holders(OUT pid integer, OUT prepared xid, OUT channel_name text, OUT messages bigint)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_row_holders';
COMMENT ON FUNCTION mq_row_holders() IS 'Which transactions have locked messages that are due, by the process id, or (pid 0) the transaction id of a prepared transaction; of each channel the 100 oldest are looked at. For mq_health().';

CREATE FUNCTION mq_leased_calls(OUT pid integer, OUT role oid, OUT lease bigint, OUT since timestamptz)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_leased_calls';
COMMENT ON FUNCTION mq_leased_calls() IS 'The leased calls of this database that run, out of shared memory: the session, its role, the lease of its message; for mq_health() and mq_why().';

CREATE FUNCTION mq_obstacles(OUT "check" text, OUT detail text)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_obstacles';
COMMENT ON FUNCTION mq_obstacles() IS 'What keeps workers from this database, as the launcher found it, in words; for mq_health().';

CREATE FUNCTION mq_failing_workers(OUT pid integer, OUT role oid, OUT part text, OUT since timestamptz, OUT last timestamptz,
                                   OUT times integer, OUT sqlstate text, OUT error text)
  RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_failing_workers';
COMMENT ON FUNCTION mq_failing_workers() IS 'What fails for the workers of this database, or the launcher, and is no handler''s fault: part is batches, leased calls, sweep, charges, process (it ends and is started again) or launcher. Out of shared memory; for mq_health() and mq_why().';

CREATE FUNCTION mq_server_mode() RETURNS text
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_server_mode';
COMMENT ON FUNCTION mq_server_mode() IS 'primary, standby or single-user; for mq_health() and mq_why().';

CREATE FUNCTION mq_has_consumers() RETURNS boolean
  LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'mq_has_consumers';
COMMENT ON FUNCTION mq_has_consumers() IS 'Whether a session of this database listens to a channel of mq''s, or one has called mq_poll within the last minute; for mq_health().';

CREATE FUNCTION mq_service(OUT preloaded boolean, OUT launcher boolean, OUT served boolean, OUT out_of_slots boolean,
                           OUT failing_role oid, OUT failed_starts integer, OUT mode text)
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    SELECT s.preloaded, s.launcher, s.served, s.out_of_slots, s.failing_role, s.failed_starts,
           mq_server_mode()
      FROM mq_service_state() s;
  END;
COMMENT ON FUNCTION mq_service() IS 'mq_service_state(), and in which mode the server runs: primary, standby or single-user.';

CREATE FUNCTION mq_running_calls(OUT channel_name text, OUT pid integer, OUT since timestamptz) RETURNS SETOF record
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    SELECT w.channel_name, w.pid, w.since FROM mq_worker_seats() AS w WHERE w.database = current_database() AND w.state IN ('handling', 'settling', 'committing')
    UNION ALL
    SELECT (SELECT m.channel_name FROM mq_msgs m WHERE m.lease = l.lease AND m.lease > 0 LIMIT 1), l.pid, l.since FROM mq_leased_calls() AS l;
  END;
COMMENT ON FUNCTION mq_running_calls() IS 'The calls of handlers that run in this database, of either mode; for mq_health() and mq_why().';

-- As bgworker/worker_claim.cpp does: what those with a greater priority leave of a batch is for the others.
CREATE FUNCTION mq_preferred(channel_names text[], OUT channel_name text, OUT own_priority integer, OUT preferred text, OUT priority integer)
  RETURNS SETOF record LANGUAGE sql VOLATILE STRICT
  BEGIN ATOMIC
    WITH c AS (SELECT h.channel_name, max(h.priority) AS priority, min(h.max_workers) AS most, bool_or(h.mode = 'leased') AS leased, pg_catalog.array_agg(h.run_as_oid) AS roles
                 FROM mq_handlers h GROUP BY h.channel_name),
         m AS (SELECT c.channel_name, c.priority, c.leased, c.roles FROM c WHERE c.channel_name = ANY (channel_names)),
         calls AS (SELECT r.channel_name, pg_catalog.count(*) AS calls FROM mq_running_calls() AS r GROUP BY r.channel_name),
         -- One of those that are alike will do.
         o AS MATERIALIZED (
           SELECT DISTINCT ON (c.priority, c.leased, c.roles) c.channel_name, c.priority, c.leased, c.roles
             FROM c
            WHERE c.priority > (SELECT min(m.priority) FROM m)
              AND NOT EXISTS (SELECT FROM mq_paused p WHERE p.channel_name = c.channel_name)
              AND EXISTS (SELECT FROM mq_msgs d WHERE d.channel_name = c.channel_name AND d.attempt_at <= clock_timestamp()
                             AND (d.after_message_id IS NULL OR d.after_message_id = '00000000-0000-0000-0000-000000000000'))
              AND NOT EXISTS (SELECT FROM calls r WHERE r.channel_name = c.channel_name AND r.calls >= c.most)
            ORDER BY c.priority, c.leased, c.roles, c.channel_name)
    SELECT m.channel_name, m.priority, g.channel_name, g.priority
      FROM m
     CROSS JOIN LATERAL (SELECT o.channel_name, o.priority FROM o
                          WHERE o.priority > m.priority AND o.leased = m.leased AND o.roles && m.roles
                          ORDER BY o.priority DESC, o.channel_name LIMIT 1) AS g;
  END;
COMMENT ON FUNCTION mq_preferred(text[]) IS 'For each of the channels that has one, another with a greater priority that has due messages, which are handled before its own; for mq_health() and mq_why().';

-- Of one pending message, without a look at those before it in its ordered channel.
CREATE FUNCTION mq_reason(message_id uuid) RETURNS text
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    SELECT CASE
      WHEN m.attempts <= 0 AND m.attempt_at IS NULL
        THEN pg_catalog.format('is dead, and its ordered channel waits for it: mq_redrive(ARRAY[''%s'']::uuid[]) sends it again, mq_delete takes it away', m.id)
      WHEN v.handler THEN pg_catalog.format('has been handled, but the commit waits for a synchronous standby (synchronous_standby_names = %s): start it, or change the setting', current_setting('synchronous_standby_names'))
      WHEN w.pid IS NOT NULL THEN pg_catalog.format('is being handled by worker %s since %s', w.pid, date_trunc('second', w.since))
      WHEN l.pid IS NOT NULL THEN pg_catalog.format('is being handled in session %s since %s', l.pid, date_trunc('second', l.since))
      WHEN m.lease > 0 AND m.attempt_at > t.now
        THEN pg_catalog.format('was being handled in a session that has ended: it is given back within a few seconds, at the latest at %s', date_trunc('second', m.attempt_at))
      WHEN m.lease = 0 AND m.attempt_at > t.now
        THEN pg_catalog.format('is leased to a consumer outside the server until %s, attempt %s', date_trunc('second', m.attempt_at), m.attempt)
      WHEN m.commit_interval IS NOT NULL AND m.attempt_at > t.now
        THEN pg_catalog.format('is two-phase and not committed: mq_commit delivers it; without that it is removed at %s', date_trunc('second', m.attempt_at))
      WHEN m.commit_interval IS NOT NULL THEN 'is two-phase, and was not committed in time: it will be removed'
      WHEN m.expires_at <= t.now THEN 'has expired: it will be moved to the dead letters'
      WHEN p.channel_name IS NOT NULL
        THEN pg_catalog.format('waits since its channel is paused: mq_resume(%L) lets it go on', m.channel_name)
      WHEN h.handlers > 0 AND NOT h.takes
        THEN pg_catalog.format('waits since no handler of channel "%s" takes the name "%s": mq_register_handler one, or unregister the others and poll', m.channel_name, y.name)
      WHEN m.attempt_at > t.now AND m.attempt > 0
        THEN pg_catalog.format('waits for its retry at %s: %s attempts failed, the last with SQLSTATE %s (see mq_failures), %s are left',
                    date_trunc('second', m.attempt_at), m.attempt, COALESCE(f.sqlstate, 'unknown'), m.attempts)
      WHEN m.attempt_at > t.now AND EXISTS (SELECT FROM mq_unsettled() AS x WHERE x.message_id = m.id AND x.until > t.now)
        THEN pg_catalog.format('is put off until %s, since its result could not be written: SELECT * FROM mq_health() WHERE NOT ok says why', date_trunc('second', m.attempt_at))
      WHEN m.attempt_at > t.now THEN pg_catalog.format('is scheduled for %s', date_trunc('second', m.attempt_at))
      WHEN m.attempts <= 0 THEN 'has no attempt left: it will be moved to the dead letters'
      WHEN s.mode = 'standby' THEN 'is due, but this server is a standby: nothing is handled here until it is promoted'
      WHEN NOT e.enabled THEN 'is due, but is left alone: ' || e.reason
      WHEN h.handlers = 0
        THEN pg_catalog.format('is due, but channel "%s" has no handler: mq_register_handler one, or a consumer outside the server takes it with mq_poll', m.channel_name)
      WHEN s.mode = 'single-user' THEN 'is due, but the server is in single-user mode, without workers: CALL mq_run() handles it'
      WHEN NOT s.preloaded THEN 'is due, but the library is not preloaded, so there are no workers: CALL mq_run() handles it'
      WHEN NOT s.launcher OR NOT s.served OR s.out_of_slots OR s.failed_starts > 0 OR current_setting('mq.max_workers') = '0'
        THEN 'is due, but no worker can take it: SELECT * FROM mq_health() WHERE NOT ok says why'
      WHEN v.waits
        THEN pg_catalog.format('is due, but commits wait for a synchronous standby (synchronous_standby_names = %s): start it, or change the setting', current_setting('synchronous_standby_names'))
      WHEN k.since IS NOT NULL
        THEN pg_catalog.format('is due, but what workers do for it fails since %s, the last time with SQLSTATE %s: SELECT * FROM mq_health() WHERE NOT ok says why', date_trunc('second', k.since), k.sqlstate)
      WHEN r.calls >= h.most
        THEN pg_catalog.format('is due, but as many calls for channel "%s" run as max_workers => %s of its handlers allows, the longest since %s', m.channel_name, h.most, date_trunc('second', r.since))
      WHEN h.leased AND q.calls >= q.sessions
        THEN pg_catalog.format('is due, but all %s sessions for leased handlers sit in calls, the longest since %s: raise mq.leased_sessions or mq.max_workers', q.calls, date_trunc('second', q.since))
      WHEN g.priority IS NOT NULL
        THEN pg_catalog.format('waits since channel "%s" with priority %s has due messages, and its own channel has priority %s: mq_register_handler sets the priority', g.preferred, g.priority, g.own_priority)
      WHEN b.busy >= current_setting('mq.max_workers')::bigint
        THEN pg_catalog.format('is due, but all %s workers sit in calls, the longest since %s for channel "%s": raise mq.max_workers, or register handlers that take long with mode => ''leased''',
                    b.busy, date_trunc('second', b.since), b.channel_name)
      ELSE pg_catalog.format('is due since %s: a worker takes it unless another session holds its row locked, or its handler cannot be called (SELECT * FROM mq_health() WHERE NOT ok)',
                  date_trunc('second', m.attempt_at)) END
      FROM mq_msgs m
     CROSS JOIN pg_catalog.clock_timestamp() AS t (now)
     CROSS JOIN mq_service() AS s
     CROSS JOIN mq_enabled_state() AS e
      LEFT JOIN mq_payloads y ON y.id = m.id
      LEFT JOIN mq_paused p ON p.channel_name = m.channel_name
     CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS handlers, bool_or(r.mode = 'leased') AS leased, min(r.max_workers) AS most, pg_catalog.array_agg(r.run_as_oid) AS roles,
                                COALESCE(bool_or(r.message_name IS NULL OR r.message_name = y.name), false) AS takes
                           FROM mq_handlers r WHERE r.channel_name = m.channel_name) AS h
      LEFT JOIN LATERAL (SELECT x.pid, x.since FROM mq_worker_seats() AS x
                          WHERE x.message_id = m.id AND x.database = current_database() LIMIT 1) AS w ON true
      LEFT JOIN LATERAL (SELECT c.pid, c.since FROM mq_leased_calls() AS c WHERE c.lease = m.lease LIMIT 1) AS l ON m.lease > 0
      LEFT JOIN LATERAL (SELECT v.sqlstate FROM mq_failures v WHERE v.message_id = m.id ORDER BY v.failure_no + 0 DESC LIMIT 1) AS f ON true
      LEFT JOIN LATERAL (SELECT x.since, x.sqlstate FROM mq_failing_workers() AS x
                          WHERE x.part = 'launcher'
                             OR (x.part IN ('process', CASE WHEN h.leased THEN 'leased calls' ELSE 'batches' END) AND x.role = ANY (h.roles))
                          ORDER BY x.since LIMIT 1) AS k ON true
     CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS calls, min(x.since) AS since FROM mq_running_calls() AS x
                          WHERE h.most IS NOT NULL AND x.channel_name = m.channel_name) AS r
     CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS calls, min(x.since) AS since,
                                current_setting('mq.leased_sessions')::bigint *
                                (SELECT pg_catalog.count(*) FROM mq_worker_seats() AS w WHERE w.database = current_database() AND w.role = ANY (h.roles)) AS sessions
                           FROM mq_leased_calls() AS x WHERE x.role = ANY (h.roles)) AS q
     CROSS JOIN LATERAL (SELECT pg_catalog.count(*) FILTER (WHERE x.state IN ('handling', 'settling', 'committing')) AS busy, min(x.since) FILTER (WHERE x.state IN ('handling', 'settling', 'committing')) AS since,
                                (pg_catalog.array_agg(x.channel_name ORDER BY x.since) FILTER (WHERE x.state IN ('handling', 'settling', 'committing')))[1] AS channel_name
                           FROM mq_worker_seats() AS x WHERE x.database = current_database()) AS b
      LEFT JOIN LATERAL mq_preferred(CASE WHEN h.handlers > 0 AND m.attempt_at <= t.now THEN ARRAY[m.channel_name] END) AS g ON true
     CROSS JOIN LATERAL (SELECT bool_or(x.pid = w.pid OR x.pid = l.pid) AS handler, pg_catalog.count(*) > 0 AS waits FROM mq_waiting_commits() AS x
                          WHERE x.backend_type IS DISTINCT FROM 'client backend' OR x.pid = l.pid) AS v
     WHERE m.id = message_id;
  END;
COMMENT ON FUNCTION mq_reason(uuid) IS 'For mq_why().';

CREATE FUNCTION mq_whereabouts(message_id uuid) RETURNS text
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    SELECT COALESCE(
      -- Behind the first message of its ordered channel.
      (SELECT pg_catalog.format('waits in its ordered channel behind %s, which ', h.id) || mq_reason(h.id)
         FROM mq_msgs m
        CROSS JOIN LATERAL (SELECT o.id FROM mq_msgs o
                             WHERE o.channel_key = m.channel_key AND o.after_message_id IS NOT NULL
                               AND o.channel_name = m.channel_name AND o.channel_args = m.channel_args
                             ORDER BY o.place LIMIT 1) AS h
        WHERE m.id = message_id AND m.after_message_id <> '00000000-0000-0000-0000-000000000000' AND h.id <> m.id
          AND NOT EXISTS (SELECT FROM mq_worker_seats() AS x WHERE x.message_id = m.id)),
      mq_reason(message_id),
      (SELECT pg_catalog.format('is dead since %s, reason %s%s: mq_redrive(ARRAY[''%s'']::uuid[]) sends it again',
                     date_trunc('second', d.died_at), d.reason, ', SQLSTATE ' || d.sqlstate, d.id)
         FROM mq_dead d WHERE d.id = message_id ORDER BY d.dead_no + 0 DESC LIMIT 1),
      CASE WHEN message_id IS NOT NULL
        THEN 'is neither pending nor dead: it was handled or deleted, was never sent, or its sender has not committed yet' END);
  END;
COMMENT ON FUNCTION mq_whereabouts(uuid) IS 'For mq_why().';

-- Many small parts look costly together, but compiling them takes half a second.
CREATE FUNCTION mq_why(message_id uuid) RETURNS text
  LANGUAGE sql VOLATILE SECURITY DEFINER SET jit = off
  BEGIN ATOMIC
    SELECT CASE WHEN l.tables IS NOT NULL AND message_id IS NOT NULL
                THEN 'is where nobody can see it, and waits if it is due: ' || l.tables || '; end that transaction'
                ELSE mq_whereabouts(message_id) END
      -- A look at the locks costs less than to plan mq_locked_tables().
      FROM (SELECT mq_some(pg_catalog.array_agg(t)) AS tables FROM mq_locked_tables() AS t
             WHERE EXISTS (SELECT FROM pg_locks k WHERE k.mode = 'AccessExclusiveLock' AND k.pid IS DISTINCT FROM pg_backend_pid())) AS l;
  END;
COMMENT ON FUNCTION mq_why(uuid) IS
  'Says in one sentence, whose subject is the message, where it is and what it waits for, and where somebody has to do something, what. Shows no payload and no error text. NULL for NULL.';
-- mq_health(): why messages are not moving.

CREATE FUNCTION mq_health_of_server() RETURNS TABLE ("check" text, ok boolean, detail text)
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    WITH s AS (SELECT * FROM mq_service()),
         -- Read and planned once.
         activity AS MATERIALIZED (
           SELECT a.pid, a.datname, a.application_name, a.state, a.backend_type, a.wait_event, a.xact_start FROM pg_stat_activity a)
    SELECT 'server mode', s.mode = 'primary',
           CASE s.mode WHEN 'standby' THEN 'standby: messages are handled where they are sent; here nothing is until this server is promoted'
                       WHEN 'single-user' THEN 'single-user mode: no workers; CALL mq_run() does their work' END
      FROM s
    UNION ALL
    SELECT 'library preloaded', s.preloaded,
           CASE WHEN NOT s.preloaded THEN 'shared_preload_libraries does not name mq: no workers; CALL mq_run() does their work' END
      FROM s
    UNION ALL
    SELECT 'settings in force', pg_catalog.count(p.name) = 0, 'wait for a restart: ' || string_agg(p.name, ', ' ORDER BY p.name)
      FROM pg_settings p WHERE p.pending_restart AND p.name IN ('shared_preload_libraries', 'max_worker_processes', 'mq.max_databases')
    UNION ALL
    SELECT 'launcher runs', s.launcher OR s.mode <> 'primary',
           CASE WHEN NOT s.preloaded THEN 'library not preloaded'
                WHEN NOT s.launcher AND s.mode = 'primary' THEN 'it comes back after a second; if not, max_worker_processes = ' ||
                                         current_setting('max_worker_processes') || ' may be in use: see the server''s log' END
      FROM s
    UNION ALL
    SELECT 'database served', s.served OR NOT s.launcher,
           CASE WHEN s.launcher AND NOT s.served THEN COALESCE(
             (SELECT min(o.detail) FROM mq_obstacles() AS o WHERE o."check" = 'database served'),
             'the launcher has not looked at it yet: it does every ten seconds') END
      FROM s
    UNION ALL
    SELECT 'workers allowed', current_setting('mq.max_workers') <> '0',
           CASE WHEN current_setting('mq.max_workers') = '0' THEN 'mq.max_workers = 0' END
    UNION ALL
    SELECT c.name, pg_catalog.count(o.detail) = 0, mq_some(pg_catalog.array_agg(o.detail ORDER BY o.detail) FILTER (WHERE o.detail IS NOT NULL))
      FROM (VALUES ('worker slots'), ('workers start')) AS c (name) LEFT JOIN mq_obstacles() AS o ON o."check" = c.name
     GROUP BY c.name
    UNION ALL
    SELECT 'workers succeed', pg_catalog.count(k.part) = 0,
           mq_some(pg_catalog.array_agg(
             pg_catalog.format('%s %s since %s (%s times, the last with SQLSTATE %s: %s)',
                               CASE WHEN k.part = 'launcher' THEN 'the launcher'
                                    WHEN k.part = 'process' THEN 'each worker as ' || COALESCE((SELECT r.rolname::text FROM pg_roles r WHERE r.oid = k.role), 'the bootstrap superuser')
                                    ELSE pg_catalog.format('worker %s as %s', k.pid, COALESCE((SELECT r.rolname::text FROM pg_roles r WHERE r.oid = k.role), 'the bootstrap superuser')) END,
                               CASE k.part WHEN 'batches' THEN 'cannot handle messages'
                                           WHEN 'leased calls' THEN 'cannot look after leased handlers'
                                           WHEN 'sweep' THEN 'cannot look for what has expired, has been kept for long enough or wants to be put right'
                                           WHEN 'charges' THEN 'cannot charge messages whose calls ended their process'
                                           WHEN 'process' THEN 'ends with an error, and another is started,'
                                           ELSE 'cannot start workers' END,
                               date_trunc('second', k.since), k.times, k.sqlstate, left(k.error, 400))
             ORDER BY k.since)) ||
           '; messages wait, no attempt is charged, and it is tried again every few seconds; mend what the error names: a trigger, rule, constraint or publication on mq''s tables, a right that was taken away, a setting, memory or disk space'
      FROM mq_failing_workers() AS k
    UNION ALL
    SELECT 'commits not waiting', pg_catalog.count(c.pid) = 0,
           pg_catalog.format('commits wait for a synchronous standby (synchronous_standby_names = %s): start it, or change the setting; of ', current_setting('synchronous_standby_names')) ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('process %s%s', c.pid, ' (' || c.backend_type || ')') ORDER BY c.backend_type = 'client backend', c.pid))
      FROM mq_waiting_commits() AS c WHERE EXISTS (SELECT FROM activity a WHERE a.wait_event = 'SyncRep')
    UNION ALL
    -- Who listens cannot be told from outside; who stays in a transaction holds the queue back if it does.
    SELECT 'NOTIFY queue', u.used <= 0.5::float8,
           CASE WHEN u.used > 0.5::float8 THEN
             pg_catalog.format('the server''s queue of notifications is %s %% full, since a session that listens stays in a transaction: ', (u.used * 100::float8)::integer) ||
             COALESCE((SELECT 'the oldest is of ' || mq_process(a.pid, a.application_name, a.state, a.backend_type) || ' in database ' || a.datname::text || mq_since(a.xact_start)
                         FROM activity a
                        WHERE a.backend_type = 'client backend' AND a.xact_start IS NOT NULL AND a.pid <> pg_backend_pid()
                        ORDER BY a.xact_start LIMIT 1) || '; end it', 'end that one') ||
             '; with mq.notify = auto nothing is added beyond 90 %, and consumers that listen find messages when they poll' END
      FROM (SELECT pg_catalog.pg_notification_queue_usage() AS used) AS u
     -- A standby has none.
     WHERE NOT pg_is_in_recovery()
    UNION ALL
    SELECT 'NOTIFY queue', true, NULL WHERE pg_is_in_recovery();
  END;
COMMENT ON FUNCTION mq_health_of_server() IS 'For mq_health(): its rows that read no table of mq.';

-- Of the advisory locks those of appends to ordered channels, see bgworker/server/locks.hpp. Who has sent may also wait
-- for another transaction's rows elsewhere.
CREATE FUNCTION mq_lock_waits(OUT sends boolean, OUT who text, OUT since timestamptz) RETURNS SETOF record
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    WITH l AS MATERIALIZED (SELECT * FROM pg_locks),
         mine AS (SELECT d.objid AS oid, c.relname, c.relkind FROM pg_extension e
                    JOIN pg_depend d ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass::oid AND d.deptype = 'e'
                     AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass::oid AND d.refobjid = e.oid
                    JOIN pg_class c ON c.oid = d.objid
                   WHERE e.extname = 'mq')
    SELECT true, pg_catalog.format('process %s%s for %s, which %s', w.pid, mq_since(w.waitstart), CASE WHEN w.n <= 10 THEN mq_blockers(w.pid) END, w.what), w.waitstart
      FROM (SELECT a.pid, a.waitstart, row_number() OVER (ORDER BY a.waitstart) AS n,
                   CASE a.locktype WHEN 'advisory' THEN 'has appended to the same ordered channel'
                                   WHEN 'relation' THEN 'has locked ' || (SELECT r.relname::text FROM pg_class r WHERE r.oid = a.relation)
                                   WHEN 'object' THEN 'has locked the extension'
                                   ELSE 'has sent with the same dedup_key, or holds rows that are wanted' END AS what
              FROM l a
             WHERE NOT a.granted AND a.waitstart < clock_timestamp() - interval '3 seconds'
               AND CASE a.locktype
                   WHEN 'advisory' THEN a.objsubid IN (28017, 28021)
                   WHEN 'relation' THEN a.mode IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')
                                        AND EXISTS (SELECT FROM mine LEFT JOIN pg_index i ON i.indrelid = mine.oid WHERE a.relation IN (mine.oid, i.indexrelid))
                   WHEN 'object' THEN a.classid = 'pg_catalog.pg_extension'::pg_catalog.regclass::oid AND a.objid = (SELECT e.oid FROM pg_extension e WHERE e.extname = 'mq')
                   WHEN 'transactionid' THEN EXISTS (SELECT FROM l h JOIN mine ON mine.oid = h.relation AND mine.relname = 'mq_msgs'
                                                      WHERE h.pid = a.pid AND h.granted AND h.locktype = 'relation' AND h.mode = 'RowExclusiveLock')
                   ELSE false END
               AND (a.locktype = 'transactionid' OR a.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
               AND NOT EXISTS (SELECT FROM mq_worker_seats() AS x WHERE x.pid = a.pid)
               AND NOT EXISTS (SELECT FROM mq_leased_calls() AS x WHERE x.pid = a.pid)) AS w
    UNION ALL
    SELECT false,
           pg_catalog.format('process %s, %s, for %s on %s, behind %s', w.pid,
             CASE WHEN c.handles THEN 'in its handler' ELSE 'which looks after the queue' END, w.mode,
             COALESCE(pg_catalog.quote_ident((SELECT r.relname FROM pg_catalog.pg_class r WHERE r.oid = w.relation)),
                      CASE WHEN w.locktype = 'object' AND w.database IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
                           THEN pg_catalog.pg_describe_object(w.classid, w.objid, w.objsubid) END,
                      w.locktype),
             mq_blockers(w.pid)),
           w.waitstart
      FROM (SELECT s.pid, s.state = 'handling' AS handles FROM mq_worker_seats() AS s WHERE s.database = current_database()
            UNION ALL SELECT k.pid, true FROM mq_leased_calls() AS k
            UNION ALL SELECT a.pid, false FROM pg_catalog.pg_stat_activity a WHERE a.backend_type = 'mq launcher') AS c
      JOIN l w ON w.pid = c.pid
     WHERE NOT w.granted AND w.waitstart < clock_timestamp() - interval '1 second';
  END;
COMMENT ON FUNCTION mq_lock_waits() IS 'Who waits for a lock that keeps messages from moving, sessions that send or those of mq, on what and behind whom, in words; for mq_health().';

CREATE FUNCTION mq_health_rows() RETURNS TABLE ("check" text, ok boolean, detail text)
  LANGUAGE sql VOLATILE
  BEGIN ATOMIC
    WITH RECURSIVE
         -- Read and planned once, as are the calls.
         activity AS MATERIALIZED (
           SELECT a.pid, a.application_name, a.state, a.backend_type, a.wait_event, a.xact_start FROM pg_stat_activity a),
         calls AS MATERIALIZED (SELECT c.channel_name, c.pid, c.since FROM mq_running_calls() AS c),
         -- A look at the locks costs less than to plan mq_lock_waits().
         waits AS MATERIALIZED (
           SELECT w.sends, w.who, w.since FROM mq_lock_waits() AS w
            WHERE EXISTS (SELECT FROM pg_locks l WHERE NOT l.granted AND l.waitstart < clock_timestamp() - interval '1 second')),
         -- Handlers with the roles that they mean, as bgworker/server/enabled.hpp tells.
         handler AS (
           SELECT h.channel_name, h.handler, h.mode, m.id IS NOT NULL AS is_here, h.run_as_oid IS DISTINCT FROM 0::pg_catalog.oid AS may_come,
                  r.oid AS role, COALESCE(r.rolname::text, h.run_as) AS run_as, r.rolcanlogin
             FROM mq_handlers h
             LEFT JOIN mq_enabled m ON m.id = h.enabled_id
             LEFT JOIN pg_roles r ON CASE WHEN m.id IS NOT NULL THEN r.oid = h.run_as_oid
                                          ELSE r.rolname = h.run_as AND h.run_as_oid IS DISTINCT FROM 0::pg_catalog.oid END),
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
         -- Consumers outside the server may take their time.
         unhandled AS (
           SELECT n.name FROM n
            WHERE NOT EXISTS (SELECT FROM mq_handlers h WHERE h.channel_name = n.name)
              AND (SELECT m.attempt_at FROM mq_msgs m WHERE m.channel_name = n.name
                      AND (m.after_message_id IS NULL OR m.after_message_id = '00000000-0000-0000-0000-000000000000')
                    ORDER BY m.attempt_at LIMIT 1) <= now() - CASE WHEN mq_has_consumers() THEN interval '1 minute' ELSE interval '1 second' END),
         -- Messages that failed and wait for their retry, of the first that wait of each channel; mq_failures need not know of them.
         waiting AS (
           SELECT a.* FROM n
            CROSS JOIN LATERAL (
                   SELECT m.id, m.channel_name, m.channel_args, m.channel_key, m.place, m.attempt, m.attempt_at, m.after_message_id, m.lease, m.commit_interval FROM mq_msgs m
                    WHERE m.channel_name = n.name AND m.attempt_at > now() AND m.attempt_at < 'infinity'
                      AND (m.after_message_id IS NULL OR m.after_message_id = '00000000-0000-0000-0000-000000000000')
                    ORDER BY m.attempt_at, m.place LIMIT 200) AS a
            LIMIT 5000),
         failed AS (SELECT w.* FROM waiting w WHERE w.attempt > 0 AND w.lease IS NULL),
         failing AS (
           SELECT g.channel_name, g.messages, g.attempts, v.sqlstate
             FROM (SELECT f.channel_name, pg_catalog.count(*) AS messages, max(f.attempt) AS attempts, (pg_catalog.array_agg(f.id ORDER BY f.attempt DESC))[1] AS id
                     FROM failed f GROUP BY f.channel_name HAVING max(f.attempt) >= 3) AS g
             LEFT JOIN LATERAL (SELECT x.sqlstate FROM mq_failures x WHERE x.message_id = g.id ORDER BY x.failure_no + 0 DESC LIMIT 1) AS v ON true),
         -- Heads that others wait behind.
         retried AS (
           SELECT f.id AS message_id, f.channel_name, f.channel_args, f.attempt_at FROM failed f
            WHERE f.after_message_id = '00000000-0000-0000-0000-000000000000' AND f.attempt_at > now() + interval '5 seconds'
              AND EXISTS (SELECT FROM mq_msgs m WHERE m.channel_key = f.channel_key AND m.place > f.place AND m.after_message_id IS NOT NULL
                             AND m.channel_name = f.channel_name AND m.channel_args = f.channel_args)),
         -- Calls that go on though their time limit, and what they are given after it, is over.
         limits AS (
           SELECT h.channel_name, max(l.timeout + LEAST(GREATEST(l.timeout, interval '1 second'), interval '30 seconds')) AS most
             FROM mq_handlers h
            CROSS JOIN LATERAL (SELECT COALESCE(h.timeout, current_setting('mq.handler_timeout')::interval)) AS l (timeout)
            GROUP BY h.channel_name HAVING min(l.timeout) > interval '0'),
         overrunning AS (
           SELECT c.channel_name, c.pid, c.since
             FROM calls c
             JOIN limits l ON l.channel_name = c.channel_name
            WHERE c.since + l.most + interval '2 seconds' < clock_timestamp()),
         -- Workers that have been in one call for long, or with what follows it.
         sitting AS (
           SELECT w.channel_name, w.since FROM mq_worker_seats() AS w
            WHERE w.database = current_database() AND w.state IN ('handling', 'settling', 'committing') AND w.since < clock_timestamp() - interval '1 second'),
         -- Roles whose leased handlers have a call in each session that their workers may open.
         leased_full AS (
           SELECT c.role, pg_catalog.count(*) AS calls, min(c.since) AS since FROM mq_leased_calls() AS c
            GROUP BY c.role
           HAVING pg_catalog.count(*) >= current_setting('mq.leased_sessions')::bigint *
                  (SELECT pg_catalog.count(*) FROM mq_worker_seats() AS w WHERE w.database = current_database() AND w.role = c.role)
              AND (SELECT pg_catalog.count(*) FROM mq_worker_seats() AS w WHERE w.database = current_database() AND w.state <> 'leaving') >= current_setting('mq.max_workers')::bigint),
         -- Channels whose calls are as many as max_workers of their handlers allows.
         full_channels AS (
           SELECT h.channel_name, h.most, r.since
             FROM (SELECT l.channel_name, min(l.max_workers) AS most FROM mq_handlers l GROUP BY l.channel_name) AS h
             JOIN (SELECT x.channel_name, pg_catalog.count(*) AS calls, min(x.since) AS since FROM calls x GROUP BY x.channel_name) AS r ON r.channel_name = h.channel_name
            WHERE r.calls >= h.most AND r.since < clock_timestamp() - interval '1 second'),
         -- Message names that no handler of their channel takes, though it has some; of the first that wait of each channel.
         unnamed AS (
           SELECT DISTINCT n.name AS channel_name, p.name
             FROM n
            CROSS JOIN LATERAL (
                    SELECT m.id FROM mq_msgs m
                     WHERE m.channel_name = n.name AND m.attempt_at = 'infinity'
                       AND (m.after_message_id IS NULL OR m.after_message_id = '00000000-0000-0000-0000-000000000000')
                     ORDER BY m.attempt_at, m.place LIMIT 1000) AS a
             JOIN mq_payloads p ON p.id = a.id
            WHERE EXISTS (SELECT FROM mq_handlers h WHERE h.channel_name = n.name)
              AND NOT EXISTS (SELECT FROM mq_handlers h WHERE h.channel_name = n.name AND (h.message_name IS NULL OR h.message_name = p.name))),
         -- Channels whose messages have been due for a while, if not all have one priority.
         late AS (
           SELECT n.name, o.attempt_at
             FROM n CROSS JOIN LATERAL (
                    SELECT m.attempt_at FROM mq_msgs m
                     WHERE m.channel_name = n.name AND (m.after_message_id IS NULL OR m.after_message_id = '00000000-0000-0000-0000-000000000000')
                     ORDER BY m.attempt_at LIMIT 1) AS o
            WHERE o.attempt_at < now() - interval '2 seconds' AND (SELECT min(h.priority) < max(h.priority) FROM mq_handlers h)
              AND NOT EXISTS (SELECT FROM mq_paused p WHERE p.channel_name = n.name)),
         uncommitted AS (
           SELECT pg_catalog.count(*) AS messages, min(u.attempt_at) AS until
             FROM (SELECT m.attempt_at FROM mq_msgs m WHERE m.commit_interval IS NOT NULL AND m.attempt_at > now()
                    ORDER BY m.attempt_at LIMIT 10000) AS u),
         -- Neither leased nor two-phase; of the first 200 of each channel.
         later AS (
           SELECT g.name, g.attempt_at
             FROM (SELECT w.channel_name AS name, min(w.attempt_at) AS attempt_at FROM waiting w
                    WHERE w.lease IS NULL AND w.commit_interval IS NULL GROUP BY w.channel_name) AS g
            WHERE NOT EXISTS (SELECT FROM mq_msgs m WHERE m.channel_name = g.name AND m.attempt_at <= now()
                                 AND (m.after_message_id IS NULL OR m.after_message_id = '00000000-0000-0000-0000-000000000000')))
    SELECT 'database enabled', e.enabled, e.reason FROM mq_enabled_state() e
    UNION ALL
    SELECT 'handlers enabled', pg_catalog.count(h.handler) = 0,
           'registered in another database, so not called here: ' ||
           mq_some(pg_catalog.array_agg(h.channel_name || ' ' || h.handler ORDER BY h.channel_name)) ||
           '; SELECT mq_enable() takes them over'
      FROM handler h WHERE NOT h.is_here AND h.role IS NOT NULL AND EXISTS (SELECT FROM mq_enabled)
    UNION ALL
    SELECT 'workers free', NOT b.none,
           CASE WHEN b.none THEN
             pg_catalog.format('messages are due, and each of the mq.max_workers = %s workers sits in a call: %s; raise mq.max_workers, register long handlers with mode => ''leased'', or give them a smaller max_workers',
                               current_setting('mq.max_workers'),
                               mq_some(pg_catalog.array_agg(pg_catalog.format('%s since %s', y.channel_name, date_trunc('second', y.since)) ORDER BY y.since))) END
      FROM (SELECT CASE WHEN pg_catalog.count(*) >= current_setting('mq.max_workers')::int AND pg_catalog.count(*) > 0
                        THEN EXISTS (SELECT FROM mq_channel_stats() AS c
                                      WHERE c.ready > 0 AND NOT c.paused AND EXISTS (SELECT FROM mq_handlers h WHERE h.channel_name = c.channel_name))
                        ELSE false END AS none
              FROM sitting) b
      LEFT JOIN sitting y ON b.none
     GROUP BY b.none
    UNION ALL
    SELECT 'batches end', pg_catalog.count(w.pid) = 0,
           'workers take long with what follows the calls of handlers: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format(
             CASE w.state WHEN 'committing' THEN 'worker %s commits since %s%s' ELSE 'worker %s settles since %s%s' END,
             w.pid, date_trunc('second', w.since), COALESCE(' what handlers of ' || w.channel_name || ' did', '')) ORDER BY w.pid)) ||
           '; time limits do not hold for that: a deferred trigger or constraint of a table that handlers write, a trigger on a table of mq, or a slow disk; pg_cancel_backend ends it, and it is tried again, so mend the trigger first'
      FROM mq_worker_seats() AS w
     WHERE w.database = current_database() AND w.state IN ('settling', 'committing') AND w.since < clock_timestamp() - interval '1 second'
       AND NOT EXISTS (SELECT FROM activity a WHERE a.pid = w.pid AND a.wait_event = 'SyncRep')
    UNION ALL
    SELECT 'leased sessions free', pg_catalog.count(f.role) = 0,
           'messages are due, and each session that workers may open for leased handlers sits in a call: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('as %s %s calls, the longest since %s', f.role::pg_catalog.regrole, f.calls, date_trunc('second', f.since)) ORDER BY f.since)) ||
           pg_catalog.format('; raise mq.leased_sessions = %s or mq.max_workers = %s, or have the handlers take less time', current_setting('mq.leased_sessions'), current_setting('mq.max_workers'))
      FROM leased_full f
     WHERE EXISTS (SELECT FROM mq_handlers h JOIN mq_channel_stats() AS c ON c.channel_name = h.channel_name
                    WHERE h.mode = 'leased' AND h.run_as_oid = f.role AND c.ready > 0 AND NOT c.paused
                      AND NOT EXISTS (SELECT FROM full_channels u WHERE u.channel_name = h.channel_name))
    UNION ALL
    SELECT 'messages settled', pg_catalog.count(u.message_id) = 0,
           'these are handled, but the result cannot be written, so they are put off and tried again: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s of %s: %s', u.message_id, u.channel_name, u.error) ORDER BY u.until)) ||
           '; mend what the error names, or mq_delete them'
      FROM mq_unsettled() AS u
     WHERE u.until > clock_timestamp() - interval '1 minute' AND EXISTS (SELECT FROM mq_msgs m WHERE m.id = u.message_id)
    UNION ALL
    SELECT 'handlers registered', EXISTS (SELECT FROM mq_handlers),
           CASE WHEN NOT EXISTS (SELECT FROM mq_handlers) THEN 'none: mq_register_handler one; until then messages are only for consumers outside the server' END
    UNION ALL
    SELECT 'channels handled', pg_catalog.count(u.name) = 0, 'due messages, but no handler, in: ' || mq_some(pg_catalog.array_agg(u.name ORDER BY u.name)) || '; mq_register_handler, or a consumer outside the server, takes them'
      FROM unhandled u
    UNION ALL
    SELECT 'message names handled', pg_catalog.count(u.name) = 0,
           'messages wait since no handler of their channel takes their name: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s "%s"', u.channel_name, u.name) ORDER BY u.channel_name, u.name)) ||
           '; mq_register_handler one for the name, or for all names'
      FROM unnamed u
    UNION ALL
    SELECT 'channels not paused', pg_catalog.count(p.channel_name) = 0, 'paused: ' || mq_some(pg_catalog.array_agg(p.channel_name ORDER BY p.channel_name)) || '; mq_resume lets a channel go on'
      FROM mq_paused p
    UNION ALL
    SELECT 'handlers'' functions', pg_catalog.count(h.handler) = 0,
           'gone: ' || mq_some(pg_catalog.array_agg(h.channel_name || ' ' || h.handler ORDER BY h.channel_name)) || '; create the function, or mq_register_handler another, or the same again if it or its schema was renamed'
      FROM mq_handlers h WHERE mq_handler_function(h.handler) IS NULL
    UNION ALL
    SELECT 'handlers agree', pg_catalog.count(c.channel_name) = 0,
           'different mode or run_as for one channel, which is left alone: ' || mq_some(pg_catalog.array_agg(c.channel_name ORDER BY c.channel_name)) ||
           '; mq_unregister_handler those that are wrong'
      FROM (SELECT h.channel_name FROM handler h GROUP BY h.channel_name
             HAVING min(h.mode) <> max(h.mode) OR min(COALESCE(h.role, 0::pg_catalog.oid)) <> max(COALESCE(h.role, 0::pg_catalog.oid))) c
    UNION ALL
    SELECT 'handlers may be called', pg_catalog.count(h.handler) = 0,
           'by the role that they run as, and their owners are members of it; not: ' ||
           mq_some(pg_catalog.array_agg(h.channel_name || ' ' || h.handler ORDER BY h.channel_name))
      FROM handler h WHERE mq_handler_trouble(h.handler, h.role::pg_catalog.regrole, h.mode) IS NOT NULL
    UNION ALL
    -- A worker is connected as the role; only newer servers let it without LOGIN.
    SELECT 'handlers'' roles', pg_catalog.count(h.run_as) = 0,
           'gone, or without LOGIN: ' ||
           mq_some(pg_catalog.array_agg(h.channel_name || ' runs as ' || h.run_as ||
                                        CASE WHEN h.role IS NULL AND NOT h.is_here AND h.may_come THEN ' (comes from another database: CREATE ROLE, then SELECT mq_enable())' ELSE '' END
                                        ORDER BY h.channel_name)) ||
           '; mq_register_handler with another run_as, or ALTER ROLE ... LOGIN'
      FROM handler h
     WHERE h.role IS NULL OR NOT (h.rolcanlogin OR current_setting('server_version_num')::int >= 170000)
    UNION ALL
    SELECT 'leased connections', pg_catalog.count(r.error) = 0, mq_some(pg_catalog.array_agg(pg_catalog.format('as %s: %s', r.role::pg_catalog.regrole, r.error))) ||
           '; nothing is charged meanwhile: raise max_connections or lower mq.leased_sessions where there is no room, and see Troubleshooting in the README for pg_hba.conf and mq.leased_conninfo'
      FROM mq_connection_refusals() r
    UNION ALL
    SELECT 'channels not blocked', pg_catalog.count(m.id) = 0, 'blocked by a dead message: ' || mq_some(pg_catalog.array_agg(DISTINCT m.channel_name)) || '; mq_redrive sends it again, mq_delete goes on without it'
      FROM mq_msgs m WHERE m.attempts <= 0 AND m.attempt_at IS NULL
    UNION ALL
    SELECT 'senders not waiting', pg_catalog.count(w.who) = 0,
           'sessions that send wait for others: ' || mq_some(pg_catalog.array_agg(w.who ORDER BY w.since)) || '; end that transaction'
      FROM waits w WHERE w.sends
    UNION ALL
    SELECT 'clock', pg_catalog.count(f.name) = 0,
           'set back since messages were sent, in: ' || mq_some(pg_catalog.array_agg(f.name || ' (at ' || date_trunc('second', f.created_at)::text || ')' ORDER BY f.name)) ||
           '; what was due then is made due within mq.poll_interval, what was scheduled waits for its time'
      FROM (SELECT n.name, max(o.created_at) AS created_at
              FROM n CROSS JOIN LATERAL (
                     SELECT m.created_at FROM mq_msgs m
                      WHERE m.channel_name = n.name AND m.attempt_at > now()
                        AND (m.after_message_id IS NULL OR m.after_message_id = '00000000-0000-0000-0000-000000000000')
                      ORDER BY m.attempt_at LIMIT 100) AS o
             WHERE o.created_at > clock_timestamp() + interval '1 second'
             GROUP BY n.name) AS f
    UNION ALL
    SELECT 'horizon', pg_catalog.count(h.kind) = 0,
           'held for 10 minutes, or for a million transactions, by: ' || mq_some(pg_catalog.array_agg(h.kind || ' ' || h.name ORDER BY h.xids DESC)) || '; see mq_horizon: end it, or claims and VACUUM slow down'
      FROM (SELECT o.kind, o.name, age(o.xmin) AS xids, clock_timestamp() - o.since AS held_for FROM mq_horizon_holders() AS o) AS h WHERE h.held_for > interval '10 minutes' OR h.xids > 1000000
    UNION ALL
    SELECT 'handlers succeed', pg_catalog.count(f.channel_name) = 0,
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s (%s messages wait for their retry, one after %s failures%s)', f.channel_name, f.messages, f.attempts,
                                                          ', the last with SQLSTATE ' || f.sqlstate)
                             ORDER BY f.channel_name)) ||
           ': see mq_failures; mend the handler, and mq_pause the channel if its messages should not use up their attempts meanwhile'
      FROM failing f
    UNION ALL
    SELECT 'ordered channels move', pg_catalog.count(r.message_id) = 0,
           'messages wait behind one that failed and waits for its retry: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s%s until %s', r.channel_name, ' ' || nullif(r.channel_args, ''), date_trunc('second', r.attempt_at))
                             ORDER BY r.channel_name, r.channel_args)) ||
           '; see mq_failures; mq_delete the message to go on without it'
      FROM retried r
    UNION ALL
    SELECT 'time limits', pg_catalog.count(o.pid) = 0,
           'a handler ignores that its time is over: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s in process %s since %s', o.channel_name, o.pid, date_trunc('second', o.since)) ORDER BY o.since)) ||
           '; it loops or waits without a look at interrupts; only the end of that process ends it, and kill -9 restarts the server'
      FROM overrunning o
    UNION ALL
    SELECT 'messages not locked', pg_catalog.count(h.who) = 0,
           'due messages wait for the end of a transaction that has locked their rows: ' || mq_some(pg_catalog.array_agg(h.who ORDER BY h.who)) ||
           '; the others are handled meanwhile; end that transaction, that of a process for instance with pg_terminate_backend'
      FROM (SELECT pg_catalog.format('%s of %s by %s', h.messages, h.channel_name,
                     CASE WHEN h.pid = 0 THEN mq_prepared(h.prepared)
                          ELSE mq_process(h.pid, a.application_name, a.state, a.backend_type) || mq_since(a.xact_start) END) AS who
              FROM mq_row_holders() AS h LEFT JOIN activity a ON a.pid = h.pid
             -- Either may have ended meanwhile. Those who handle messages have them locked, too. pg_stat_activity tells nothing
             -- of sessions with track_activities = off, and of others' only a superuser and pg_read_all_stats.
             WHERE CASE WHEN h.pid = 0 THEN EXISTS (SELECT FROM pg_prepared_xacts x WHERE x.transaction = h.prepared)
                        ELSE a.pid IS NOT NULL AND COALESCE(a.xact_start < clock_timestamp() - interval '2 seconds', true)
                             AND NOT EXISTS (SELECT FROM mq_worker_seats() AS x WHERE x.pid = h.pid) END) AS h
    UNION ALL
    SELECT 'workers do not wait for locks', pg_catalog.count(w.who) = 0,
           'a worker, or a session of a leased handler, waits for a lock: ' || mq_some(pg_catalog.array_agg(w.who ORDER BY w.who)) ||
           '; it goes on when the transaction of the other ends'
      FROM waits w WHERE NOT w.sends
    UNION ALL
    -- So it is meant to be, but for a minute.
    SELECT 'priorities', pg_catalog.count(d.name) FILTER (WHERE d.attempt_at < now() - interval '1 minute') = 0,
           'messages wait since channels with a greater priority have due ones: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s (priority %s%s) behind %s (priority %s)', d.name, g.own_priority, mq_since(d.attempt_at), g.preferred, g.priority) ORDER BY d.attempt_at, d.name)) ||
           '; mq_register_handler sets the priority of a channel'
      FROM late d JOIN mq_preferred((SELECT pg_catalog.array_agg(l.name) FROM late l)) AS g ON g.channel_name = d.name
    UNION ALL
    -- These are as they should be, and say why nothing is handled all the same.
    SELECT 'calls limited', true,
           'messages wait since as many calls run as max_workers of their handlers allows, in: ' ||
           mq_some(pg_catalog.array_agg(pg_catalog.format('%s (max_workers %s, the longest since %s)', f.channel_name, f.most, date_trunc('second', f.since)) ORDER BY f.channel_name))
      FROM full_channels f
     WHERE EXISTS (SELECT FROM mq_channel_stats() AS c WHERE c.channel_name = f.channel_name AND c.ready > 0)
    UNION ALL
    SELECT 'uncommitted messages', true,
           CASE WHEN u.messages > 0 THEN
             pg_catalog.format('%s two-phase messages wait for mq_commit; without that the first is removed at %s', u.messages, date_trunc('second', u.until)) END
      FROM uncommitted u
    UNION ALL
    SELECT 'scheduled messages', true,
           'nothing is due yet in: ' || mq_some(pg_catalog.array_agg(pg_catalog.format('%s (next at %s)', l.name, date_trunc('second', l.attempt_at)) ORDER BY l.name))
      FROM later l;
  END;
COMMENT ON FUNCTION mq_health_rows() IS 'For mq_health(): its rows while all tables can be read.';

-- mq_health_rows() is planned only when it is called: it would wait for locked tables. Many small parts look costly
-- together, but compiling them takes longer than all else.
CREATE FUNCTION mq_health() RETURNS TABLE ("check" text, ok boolean, detail text)
  LANGUAGE sql VOLATILE SECURITY DEFINER SET jit = off
  BEGIN ATOMIC
    -- A look at the locks costs less than to plan mq_locked_tables().
    WITH l AS MATERIALIZED (
           SELECT pg_catalog.array_agg(t) AS tables FROM mq_locked_tables() AS t
            WHERE EXISTS (SELECT FROM pg_locks k WHERE k.mode = 'AccessExclusiveLock' AND k.pid IS DISTINCT FROM pg_backend_pid()))
    SELECT 'tables readable', l.tables IS NULL,
           mq_some(l.tables) || '; messages wait for that, and no more can be told of them meanwhile: end that transaction'
      FROM l
    UNION ALL
    SELECT r."check", r.ok, r.detail FROM mq_health_of_server() AS r
    UNION ALL
    SELECT r."check", r.ok, r.detail FROM mq_health_rows() AS r WHERE EXISTS (SELECT FROM l WHERE l.tables IS NULL);
  END;
COMMENT ON FUNCTION mq_health() IS 'Why messages are not moving: a row for each thing that can be in the way, ok or not, with what it is.';
CREATE FUNCTION mq_grant(role regrole, "right" text) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_grant';
COMMENT ON FUNCTION mq_grant(regrole, text) IS
  'Gives a role a whole set of rights: produce (send messages), consume (poll, delete and clear them, and call mq_snooze and its like from handlers), monitor (mq_health, mq_why, mq_stats, mq_workers, mq_horizon: no payloads, no errors of handlers) or admin (everything). 22023 or 22004 for another right.';

CREATE FUNCTION mq_revoke(role regrole, "right" text) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_revoke';
COMMENT ON FUNCTION mq_revoke(regrole, text) IS
  'Takes a whole set of rights from a role: produce, consume, monitor or admin. What two sets share goes with the first one taken.';

-- Nothing for PUBLIC.
REVOKE ALL ON FUNCTION
  mq_insert(mq_new_t[]),
  mq_send(text, jsonb, text, text, boolean, interval, integer, interval, interval, bytea, uuid, text, interval),
  mq_send_many(text, jsonb[], text, text, boolean, interval, integer, interval, interval, bytea, interval),
  mq_send_once(text, text, jsonb, text, text, boolean, interval, integer, interval, interval, bytea, interval),
  mq_commit(uuid[]), mq_channel_key(text, text), mq_poll(text[], integer), mq_delete(uuid[]),
  mq_keep_alive(uuid[], interval), mq_checkpoint(uuid, interval, text, bytea, integer),
  mq_clear(text[]), mq_clear_all(), mq_uuid_exists(uuid), mq_latest_message(text, text),
  mq_active_channels(text[], integer),
  mq_register_handler(text, regprocedure, text, text, integer, interval, integer, regrole, interval, text, integer),
  mq_handler_function(text), mq_handler_trouble(text, regrole, text),
  mq_unregister_handler(text, text), mq_pause(text), mq_resume(text), mq_redrive(uuid[], text, integer, timestamptz, timestamptz),
  mq_snooze(interval, uuid), mq_discard(text, uuid), mq_announce(), mq_enable(), mq_enabled_state(), mq_enabled_stays(),
  mq_channel_stats(), mq_reset_stats(), mq_worker_seats(), mq_service_state(),
  mq_connection_refusals(), mq_unsettled(), mq_horizon_holders(), mq_health(), mq_health_rows(), mq_health_of_server(), mq_lock_waits(),
  mq_process(integer, text, text, text), mq_since(timestamptz), mq_blockers(integer), mq_waiting_commits(), mq_preferred(text[]),
  mq_some(text[]), mq_failing_workers(), mq_prepared(xid), mq_has_consumers(), mq_leased_calls(), mq_locked_tables(), mq_obstacles(), mq_row_holders(), mq_running_calls(), mq_service(), mq_server_mode(), mq_reason(uuid), mq_whereabouts(uuid), mq_why(uuid),
  mq_grant(regrole, text), mq_revoke(regrole, text) FROM PUBLIC;
REVOKE ALL ON PROCEDURE mq_run(text[], bigint, bigint) FROM PUBLIC;
REVOKE ALL ON TYPE mq_new_t, mq_message FROM PUBLIC;
-- Unless the session restores a dump.
SELECT mq_enable();
SELECT mq_announce();
