\echo Use "ALTER EXTENSION mq UPDATE" to load this file. \quit

-- What 0.2.0 changes in the catalog; tests/t/050_upgrade.pl compares the result with a fresh installation.

-- --- names ---------------------------------------------------------------------------------------

ALTER SEQUENCE mq_place_seq RENAME TO mq_msgs_seq;
COMMENT ON SEQUENCE mq_msgs_seq IS 'Sequence numbers of messages: within an ordered channel a later message has a greater one.';
ALTER TABLE mq_msgs RENAME place TO seq;
COMMENT ON COLUMN mq_msgs.seq IS 'Sequence number: the order within the channel; from mq_msgs_seq.';
COMMENT ON COLUMN mq_msgs.lease IS 'Token of the lease until attempt_at, if there is one. Above 0: of a leased call; below 0: of mq_receive; no two have the same. 0: of mq_poll.';
ALTER TABLE mq_loose RENAME TO mq_headless;
ALTER TABLE mq_totals RENAME TO mq_stats_totals;
ALTER INDEX mq_totals_channel_name RENAME TO mq_stats_totals_channel_name;
COMMENT ON TABLE mq_stats_totals IS 'What has been handled, has failed and died of each channel, and how long that took; without what mq_stats_deltas holds. For mq_stats.';
ALTER TABLE mq_tally RENAME TO mq_stats_deltas;
COMMENT ON TABLE mq_stats_deltas IS 'What transactions have added to mq_stats_totals, until it is rolled up into that.';

-- --- one row a message ---------------------------------------------------------------------------

-- Messages without a payload, which 0.1 moved to the dead letters when it claimed them.
INSERT INTO mq_dead (id, created_at, died_at, channel_name, channel_args, ordered, attempts_made, reason, sqlstate, error, retry_backoff, channel_key)
  SELECT m.id, m.created_at, clock_timestamp(), m.channel_name, m.channel_args, m.after_message_id IS NOT NULL, m.attempt, 'discarded', '02000',
         'payload of message is missing', m.retry_backoff, m.channel_key
    FROM mq_msgs m WHERE m.attempt_at IS NOT NULL AND NOT EXISTS (SELECT FROM mq_payloads p WHERE p.id = m.id);
DELETE FROM mq_msgs m WHERE m.attempt_at IS NOT NULL AND NOT EXISTS (SELECT FROM mq_payloads p WHERE p.id = m.id);

-- Without the indexes the rows are written faster, and afterwards nothing of them is bloated.
DROP INDEX mq_msgs_due, mq_msgs_fair, mq_msgs_chain, mq_msgs_spent, mq_msgs_lease, mq_msgs_leased, mq_msgs_expiry, mq_msgs_dedup;
ALTER TABLE mq_msgs ADD due_at timestamptz, ADD throttled_at timestamptz, ADD keep interval, ADD priority smallint NOT NULL DEFAULT 0, ADD fair boolean NOT NULL DEFAULT true,
  ADD message_name text COLLATE "C", ADD headers jsonb, ADD message_json jsonb, ADD message_bytes bytea;
ALTER TABLE mq_msgs ALTER message_name SET STORAGE MAIN;
ALTER TABLE mq_msgs SET (autovacuum_vacuum_cost_delay = 0);
UPDATE mq_msgs m SET message_name = p.name, message_json = p.payload_json, message_bytes = p.payload_bytes FROM mq_payloads p WHERE p.id = m.id;
-- What is left blocks an ordered channel; its name is with its dead letter.
UPDATE mq_msgs m SET message_name = COALESCE((SELECT d.name FROM mq_dead d WHERE d.id = m.id ORDER BY d.dead_no DESC LIMIT 1), m.channel_name) WHERE m.message_name IS NULL;
ALTER TABLE mq_msgs ALTER message_name SET NOT NULL;
COMMENT ON TABLE mq_msgs IS 'Messages that are pending, with their payload. A large payload is out of line, and an update of the row does not write it again.';
COMMENT ON COLUMN mq_msgs.due_at IS 'Not NULL: it waits until other messages have been handled (mq_prerequisites), and is due at this time then. NULL: it waits for none.';
COMMENT ON COLUMN mq_msgs.attempt_at IS 'When the message is due next; while an outside consumer works on it, when its lease runs out. infinity: it waits for a handler of its name, or until other messages have been handled (due_at is not NULL then). NULL: a dead message that blocks its ordered channel.';
COMMENT ON COLUMN mq_msgs.expires_at IS 'Not NULL: dead by then if nobody has handled it. attempt_at is not beyond it, but for a lease, while commit_interval is not NULL, and while it waits for a handler or for other messages.';
COMMENT ON COLUMN mq_msgs.throttled_at IS 'Not NULL: a limit of its channel has put it off until attempt_at; it was due at this time. NULL: none has.';
COMMENT ON COLUMN mq_msgs.keep IS 'How long it is kept once it is handled; above 0, at most 36,500 days. NULL: as mq_handlers.keep says.';
COMMENT ON COLUMN mq_msgs.priority IS 'From -1000 to 1000: of the due messages of a channel name those with the greatest come first. 0 in an ordered message.';
COMMENT ON COLUMN mq_msgs.fair IS 'Has an entry in mq_msgs_fair, if its priority is 0. false: it has another priority; or it has no channel_args, was due at once, and no other channel of its name had messages when it was sent.';
COMMENT ON COLUMN mq_msgs.message_name IS 'The name. This and the payload have other names here than in mq_payloads, so that a join of the two needs no prefixes.';
COMMENT ON COLUMN mq_msgs.headers IS 'A JSON object that goes with the payload and is handed on as it is: trace context, tenant, content type. NULL: none.';
COMMENT ON COLUMN mq_msgs.message_json IS 'The payload as jsonb: key order and duplicate keys are not kept, \u0000 is refused. NULL in a dead message that blocks its ordered channel, as message_bytes is.';
COMMENT ON COLUMN mq_msgs.message_bytes IS 'The payload as bytea.';
CREATE INDEX mq_msgs_due ON mq_msgs (channel_name, attempt_at, seq)
  WHERE (after_message_id IS NULL OR after_message_id = '00000000-0000-0000-0000-000000000000') AND priority = 0;
CREATE INDEX mq_msgs_fair ON mq_msgs (channel_name, channel_key, attempt_at, seq)
  WHERE fair AND (after_message_id IS NULL OR after_message_id = '00000000-0000-0000-0000-000000000000') AND priority = 0;
CREATE INDEX mq_msgs_priority ON mq_msgs (channel_name, priority DESC, attempt_at, seq)
  WHERE priority <> 0 AND (after_message_id IS NULL OR after_message_id = '00000000-0000-0000-0000-000000000000');
CREATE INDEX mq_msgs_prioritized ON mq_msgs (channel_name, attempt_at, seq)
  WHERE priority <> 0 AND (after_message_id IS NULL OR after_message_id = '00000000-0000-0000-0000-000000000000');
CREATE INDEX mq_msgs_chain ON mq_msgs (channel_key, seq) WHERE after_message_id IS NOT NULL;
CREATE INDEX mq_msgs_exhausted ON mq_msgs (attempt_at) WHERE commit_interval IS NOT NULL OR attempts <= 0;
CREATE INDEX mq_msgs_lease ON mq_msgs (lease) WHERE lease > 0;
CREATE INDEX mq_msgs_leased ON mq_msgs (channel_name, attempt_at) WHERE lease IS NOT NULL;
CREATE INDEX mq_msgs_expiry ON mq_msgs (expires_at) WHERE expires_at IS NOT NULL AND commit_interval IS NULL;
CREATE INDEX mq_msgs_throttled ON mq_msgs (channel_name, channel_key, attempt_at) WHERE throttled_at IS NOT NULL;
CREATE UNIQUE INDEX mq_msgs_dedup ON mq_msgs (channel_key, dedup_key, channel_name, channel_args)
  WHERE dedup_key IS NOT NULL;
COMMENT ON COLUMN mq_dead.reason IS 'exhausted: no attempt left; discarded: by its handler; crashed: it brought the server down twice; expired: not handled in time; cancelled: by mq_cancel; prerequisite: one of those that it waited for is dead.';

ALTER TABLE mq_dead ADD keep interval, ADD priority smallint NOT NULL DEFAULT 0, ADD headers jsonb, ADD after uuid[];
ALTER TABLE mq_dead DROP CONSTRAINT mq_dead_reason_check,
  ADD CONSTRAINT mq_dead_reason_check CHECK (reason IN ('exhausted', 'discarded', 'crashed', 'expired', 'cancelled', 'prerequisite'));
COMMENT ON COLUMN mq_dead.keep IS 'As in mq_msgs; mq_redrive sends the message with it again.';
COMMENT ON COLUMN mq_dead.priority IS 'As in mq_msgs; mq_redrive sends the message with it again.';
COMMENT ON COLUMN mq_dead.headers IS 'As in mq_msgs; mq_redrive sends the message with them again.';
COMMENT ON COLUMN mq_dead.after IS 'What it still waited for when it died; mq_redrive sends the message after those again. NULL: nothing.';

-- --- history --------------------------------------------------------------------------------------

CREATE TABLE mq_done (
  id uuid NOT NULL,
  channel_name text COLLATE "C" NOT NULL,
  channel_args text COLLATE "C" NOT NULL,
  name text COLLATE "C" NOT NULL,
  ordered boolean NOT NULL,
  priority smallint NOT NULL,
  headers jsonb,
  payload_json jsonb,
  payload_bytes bytea,
  result jsonb,
  attempts integer NOT NULL,
  created_at timestamptz,
  due_at timestamptz,
  started_at timestamptz,
  finished_at timestamptz NOT NULL,
  run_by text NOT NULL,
  keep_until timestamptz NOT NULL,
  channel_key bigint NOT NULL,
  done_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY
);
COMMENT ON TABLE mq_done IS 'Handled messages that are kept (keep of the send or of the registration), with their results. They come in the transaction that handled them; the sweep removes them after keep_until.';
COMMENT ON COLUMN mq_done.result IS 'What its handler returned, if that is jsonb: of a batch handler the element for this message; or what mq_ack was given.';
COMMENT ON COLUMN mq_done.attempts IS 'How many attempts were made, with the one that succeeded.';
COMMENT ON COLUMN mq_done.due_at IS 'When it was due, before the attempt that succeeded. NULL: a consumer outside the server handled it.';
COMMENT ON COLUMN mq_done.started_at IS 'When the call that succeeded began. NULL: a consumer outside the server handled it.';
COMMENT ON COLUMN mq_done.finished_at IS 'When that call ended, or the consumer removed the message.';
COMMENT ON COLUMN mq_done.run_by IS 'The role that the handler ran as, or that removed the message.';
COMMENT ON COLUMN mq_done.done_no IS 'Its number; for the sweep.';
COMMENT ON SEQUENCE mq_done_done_no_seq IS 'Numbers of the rows of mq_done.';
CREATE INDEX mq_done_id ON mq_done (id);
CREATE INDEX mq_done_keep_until ON mq_done (keep_until);

SELECT pg_catalog.pg_extension_config_dump('mq_done', '');
SELECT pg_catalog.pg_extension_config_dump('mq_done_done_no_seq', '');

ALTER TABLE mq_handlers ADD keep interval,
  ADD CONSTRAINT mq_handlers_keep CHECK (keep > '0' AND keep <= '36500 days');
COMMENT ON COLUMN mq_handlers.keep IS 'How long a message is kept once it is handled, unless it says so itself. NULL: it is not kept.';
CREATE INDEX mq_handlers_channel ON mq_handlers (channel_name);

-- Fails where a table of a user's own has a column of the type; docs/guide/operations.md says what to do.
ALTER TYPE mq_message ADD ATTRIBUTE headers jsonb, ADD ATTRIBUTE priority integer;
COMMENT ON TYPE mq_message IS
  'A message as its handler gets it. attempt is 1 on the first attempt; attempts_left counts those that remain after this one; headers and priority are as they were sent.';

-- --- messages that wait for others ---------------------------------------------------------------

-- What messages wait for (`after` of mq_send): a row for each message, and each that it waits for.
CREATE TABLE mq_prerequisites (
  prerequisite uuid NOT NULL,
  dependent uuid NOT NULL
);
COMMENT ON TABLE mq_prerequisites IS 'Messages that wait until others have been handled. Empty while nobody uses after.';
COMMENT ON COLUMN mq_prerequisites.prerequisite IS 'The message that is to be handled first.';
COMMENT ON COLUMN mq_prerequisites.dependent IS 'The message that waits for it; its due_at in mq_msgs is not NULL.';
CREATE INDEX mq_prerequisites_prerequisite ON mq_prerequisites (prerequisite, dependent);
CREATE INDEX mq_prerequisites_dependent ON mq_prerequisites (dependent, prerequisite);

CREATE TABLE mq_rechecks (
  dependent uuid NOT NULL,
  prerequisite uuid NOT NULL
);
COMMENT ON TABLE mq_rechecks IS 'What dependents may not wait for any more: somebody was ending or sending the other message when it was looked at. Every claim looks here first; as a rule it is empty.';
ALTER TABLE mq_prerequisites REPLICA IDENTITY FULL;
ALTER TABLE mq_rechecks REPLICA IDENTITY FULL;
SELECT pg_catalog.pg_extension_config_dump('mq_prerequisites', '');
SELECT pg_catalog.pg_extension_config_dump('mq_rechecks', '');
-- Whoever updates may be another superuser than the owner.
DO $$
DECLARE
  owner text := (SELECT c.relowner::pg_catalog.regrole FROM pg_catalog.pg_class c WHERE c.oid = 'mq_msgs'::pg_catalog.regclass);
BEGIN
  EXECUTE pg_catalog.format('ALTER TABLE mq_prerequisites OWNER TO %s', owner);
  EXECUTE pg_catalog.format('ALTER TABLE mq_rechecks OWNER TO %s', owner);
END $$;

CREATE TABLE mq_cancelled (
  message_id uuid NOT NULL,
  seq bigint NOT NULL,
  error text NOT NULL
);
COMMENT ON TABLE mq_cancelled IS 'Messages that mq_cancel has cancelled while a worker had their rows locked: the worker moves them to mq_dead. As a rule it is empty.';
COMMENT ON COLUMN mq_cancelled.seq IS 'As in mq_msgs: a message that is sent under the same id later has another one, and is not meant.';
ALTER TABLE mq_cancelled REPLICA IDENTITY FULL;
SELECT pg_catalog.pg_extension_config_dump('mq_cancelled', '');
-- Whoever updates may be another superuser than the owner.
DO $$ BEGIN EXECUTE pg_catalog.format('ALTER TABLE mq_cancelled OWNER TO %s', (SELECT c.relowner::pg_catalog.regrole FROM pg_catalog.pg_class c WHERE c.oid = 'mq_msgs'::pg_catalog.regclass)); END $$;

-- --- limits ---------------------------------------------------------------------------------------

CREATE TABLE mq_channel_limits (
  channel_name text COLLATE "C" PRIMARY KEY,
  max_pending bigint CHECK (max_pending >= 0),
  max_running integer CHECK (max_running BETWEEN 1 AND 1000),
  max_running_per_args integer CHECK (max_running_per_args BETWEEN 1 AND 1000),
  rate integer CHECK (rate > 0),
  per interval CHECK (per > '0' AND per <= '36500 days'),
  rate_per_args boolean NOT NULL DEFAULT false,
  CONSTRAINT mq_channel_limits_rate CHECK ((rate IS NULL) = (per IS NULL) AND (rate IS NOT NULL OR NOT rate_per_args))
);
COMMENT ON TABLE mq_channel_limits IS 'The limits of channels: how many messages they may have, and how many calls may run or begin. Written by mq_limit and mq_unlimit; the view mq_limits shows what is used of them.';
COMMENT ON COLUMN mq_channel_limits.max_pending IS 'A send that would make more messages pending than these fails. NULL: no limit, as in the other columns.';
COMMENT ON COLUMN mq_channel_limits.max_running IS 'So many calls run at once, on all workers and consumers together.';
COMMENT ON COLUMN mq_channel_limits.max_running_per_args IS 'So many unordered messages of one channel_args run at once.';
COMMENT ON COLUMN mq_channel_limits.rate IS 'So many calls begin in each per.';
COMMENT ON COLUMN mq_channel_limits.rate_per_args IS 'The rate is that of each channel_args on its own.';
SELECT pg_catalog.pg_extension_config_dump('mq_channel_limits', '');
-- Whoever updates may be another superuser than the owner.
DO $$ BEGIN EXECUTE pg_catalog.format('ALTER TABLE mq_channel_limits OWNER TO %s', (SELECT c.relowner::pg_catalog.regrole FROM pg_catalog.pg_class c WHERE c.oid = 'mq_msgs'::pg_catalog.regclass)); END $$;
-- --- schedules --------------------------------------------------------------------------------

-- Schedules. The columns from message_name to keep are those of mq_send.
CREATE TABLE mq_timetable (
  name text COLLATE "C" PRIMARY KEY,
  schedule text NOT NULL,
  time_zone text NOT NULL,
  catch_up text NOT NULL,
  overlap boolean NOT NULL,
  channel_name text COLLATE "C" NOT NULL,
  message_name text COLLATE "C",
  channel_args text COLLATE "C" NOT NULL,
  payload_json jsonb,
  payload_bytes bytea,
  headers jsonb,
  ordered boolean NOT NULL,
  priority integer NOT NULL,
  retries integer NOT NULL,
  retry_backoff interval NOT NULL,
  dedup_key text COLLATE "C",
  expires interval,
  keep interval,
  run_as text NOT NULL,
  enabled_id uuid,
  run_as_oid oid,
  anchor timestamptz NOT NULL,
  next_at timestamptz NOT NULL,
  planned_at timestamptz NOT NULL,
  last_at timestamptz,
  last_id uuid,
  retry_at timestamptz,
  failures integer NOT NULL DEFAULT 0,
  sqlstate text,
  error text,
  CONSTRAINT mq_timetable_catch_up CHECK (catch_up IN ('none', 'one', 'all'))
);
COMMENT ON TABLE mq_timetable IS 'Schedules, with what they send. Written by mq_schedule, mq_unschedule and the workers; mq_schedules shows it.';
COMMENT ON COLUMN mq_timetable.message_name IS 'NULL: the name of the channel.';
COMMENT ON COLUMN mq_timetable.run_as IS 'Name of the role that made the schedule, and that sends. If it is renamed, so it is here by the next time that is sent.';
COMMENT ON COLUMN mq_timetable.enabled_id IS 'Id of the row in mq_enabled under which it was made. Of another one: it comes from another database, and nothing is sent.';
COMMENT ON COLUMN mq_timetable.run_as_oid IS 'The role run_as, in the database that enabled_id tells; elsewhere mq_enable() looks for its name. 0: it was dropped.';
COMMENT ON COLUMN mq_timetable.anchor IS 'From when an interval counts: when the schedule was made.';
COMMENT ON COLUMN mq_timetable.next_at IS 'The next time. It moves on in the transaction that sends the message. infinity: there is none.';
COMMENT ON COLUMN mq_timetable.planned_at IS 'When next_at was found.';
COMMENT ON COLUMN mq_timetable.last_at IS 'The last time for which a message was sent.';
COMMENT ON COLUMN mq_timetable.last_id IS 'That message.';
COMMENT ON COLUMN mq_timetable.retry_at IS 'Not NULL: to send for next_at has failed, and is tried again at this time.';
COMMENT ON COLUMN mq_timetable.failures IS 'How often it has failed in a row; sqlstate and error are of the last failure.';
CREATE INDEX mq_timetable_next_at ON mq_timetable (next_at) WHERE retry_at IS NULL;
CREATE INDEX mq_timetable_retry_at ON mq_timetable (retry_at) WHERE retry_at IS NOT NULL;
SELECT pg_catalog.pg_extension_config_dump('mq_timetable', '');
-- Whoever updates may be another superuser than the owner.
DO $$ BEGIN EXECUTE pg_catalog.format('ALTER TABLE mq_timetable OWNER TO %s', (SELECT c.relowner::pg_catalog.regrole FROM pg_catalog.pg_class c WHERE c.oid = 'mq_msgs'::pg_catalog.regclass)); END $$;

CREATE VIEW mq_heads AS
  SELECT id, channel_name, channel_args, channel_key, seq, created_at, attempt_at, attempt, attempts, after_message_id, commit_interval, lease, expires_at,
         due_at, priority, message_name, location
    FROM (
         SELECT id, channel_name, channel_args, channel_key, seq, created_at, attempt_at, attempt, attempts, after_message_id, commit_interval, lease, expires_at, due_at, priority, message_name, ctid AS location, true AS ordinary
           FROM mq_msgs
         UNION ALL
         SELECT id, channel_name, channel_args, channel_key, seq, created_at, attempt_at, attempt, attempts, after_message_id, commit_interval, lease, expires_at, due_at, priority, message_name, ctid, false
           FROM mq_msgs) AS m
   WHERE (after_message_id IS NULL OR after_message_id = '00000000-0000-0000-0000-000000000000') AND (priority = 0) = ordinary;
COMMENT ON VIEW mq_heads IS 'Messages that may be the next of their channel: unordered ones, and the first of each ordered channel. For mq_stats, mq_health() and mq_why().';
COMMENT ON COLUMN mq_heads.location IS 'The ctid of the row in mq_msgs.';

-- Whoever updates may be another superuser than the owner.
DO $$ BEGIN EXECUTE pg_catalog.format('ALTER VIEW mq_heads OWNER TO %s', (SELECT c.relowner::pg_catalog.regrole FROM pg_catalog.pg_class c WHERE c.oid = 'mq_msgs'::pg_catalog.regclass)); END $$;

-- --- topics --------------------------------------------------------------------------------------

-- The primary key is the tree of words that mq_publish goes down (bgworker/queue/topics.hpp). So own_args stands in it for
-- whether channel_args is NULL.
CREATE TABLE mq_subscribers (
  topic text COLLATE "C" NOT NULL,
  channel_name text COLLATE "C" NOT NULL,
  own_args boolean NOT NULL,
  channel_args text COLLATE "C" NOT NULL,
  ordered boolean NOT NULL,
  subscribed_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (topic, channel_name, own_args, channel_args)
);
COMMENT ON TABLE mq_subscribers IS 'The channels that topics go to. Written by mq_subscribe and mq_unsubscribe; mq_subscriptions shows it.';
COMMENT ON COLUMN mq_subscribers.topic IS 'The pattern: words with dots between; * stands for one word, # for any number of words.';
COMMENT ON COLUMN mq_subscribers.own_args IS 'False: the channel_args are those that the publisher gives, and channel_args here is empty.';
CREATE VIEW mq_subscriptions AS
  SELECT topic, channel_name, CASE WHEN own_args THEN channel_args END AS channel_args, ordered, subscribed_at FROM mq_subscribers;
COMMENT ON VIEW mq_subscriptions IS 'The subscriptions: which channels get what is published to which topics.';
COMMENT ON COLUMN mq_subscriptions.channel_args IS 'NULL: those that the publisher gives.';
COMMENT ON COLUMN mq_subscriptions.ordered IS 'True: its messages are ordered, also those that are published without ordered.';

SELECT pg_catalog.pg_extension_config_dump('mq_subscribers', '');
-- Whoever updates may be another superuser than the owner.
DO $$
DECLARE
  owner text := (SELECT c.relowner::pg_catalog.regrole FROM pg_catalog.pg_class c WHERE c.oid = 'mq_msgs'::pg_catalog.regclass);
BEGIN
  EXECUTE pg_catalog.format('ALTER TABLE mq_subscribers OWNER TO %s', owner);
  EXECUTE pg_catalog.format('ALTER VIEW mq_subscriptions OWNER TO %s', owner);
END $$;

-- --- functions -----------------------------------------------------------------------------------
ALTER FUNCTION mq_worker_seats() RENAME TO mq_worker_slots;
-- Those that take more arguments now; what users were granted on them goes to the new ones below.
DO $$
DECLARE
  old regprocedure;
BEGIN
  FOR old IN SELECT p.oid FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_depend d ON d.objid = p.oid AND d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
                JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid AND d.deptype = 'e' AND e.extname = 'mq'
               WHERE p.proname IN ('mq_send', 'mq_send_many', 'mq_send_once', 'mq_register_handler') LOOP
    EXECUTE pg_catalog.format('ALTER FUNCTION %s RENAME TO %I', old, (SELECT p.proname FROM pg_catalog.pg_proc p WHERE p.oid = old) || '_before');
  END LOOP;
END $$;
-- replace 30_send.sql
-- replace 35_wait.sql
-- replace 36_topics.sql
-- replace 37_schedules.sql
-- Whoever updates may be another superuser than the owner.
DO $$ BEGIN EXECUTE pg_catalog.format('ALTER FUNCTION mq_last_state(uuid) OWNER TO %s', (SELECT c.relowner::pg_catalog.regrole FROM pg_catalog.pg_class c WHERE c.oid = 'mq_msgs'::pg_catalog.regclass)); END $$;
DO $$ BEGIN EXECUTE pg_catalog.format('ALTER VIEW mq_schedules OWNER TO %s', (SELECT c.relowner::pg_catalog.regrole FROM pg_catalog.pg_class c WHERE c.oid = 'mq_msgs'::pg_catalog.regclass)); END $$;
-- replace 40_consume.sql
-- replace 50_handlers.sql
-- replace 54_rates.sql
-- replace 55_limits.sql
-- replace 60_look.sql
-- replace 61_why.sql
-- replace 62_health.sql
-- Whoever updates may be another superuser than the owner.
DO $$ BEGIN EXECUTE pg_catalog.format('ALTER VIEW mq_limits OWNER TO %s', (SELECT c.relowner::pg_catalog.regrole FROM pg_catalog.pg_class c WHERE c.oid = 'mq_msgs'::pg_catalog.regclass)); END $$;
-- What users have granted to PUBLIC, which 80_grants.sql revokes. Where the ACL is NULL it is not theirs.
DO $$
DECLARE
  schema oid := (SELECT e.extnamespace FROM pg_catalog.pg_extension e WHERE e.extname = 'mq');
BEGIN
  PERFORM pg_catalog.set_config('update_of_mq.grants', pg_catalog.concat(
    (SELECT pg_catalog.string_agg(pg_catalog.format('GRANT EXECUTE ON ROUTINE %s TO PUBLIC;', p.oid::pg_catalog.regprocedure), ' ')
       FROM pg_catalog.pg_proc p, pg_catalog.aclexplode(p.proacl) a WHERE p.pronamespace = schema AND p.proname ~ '^mq_' AND p.proname !~ '_before$' AND a.grantee = 0),
    (SELECT pg_catalog.string_agg(pg_catalog.format('GRANT USAGE ON TYPE %s TO PUBLIC;', t.oid::pg_catalog.regtype), ' ')
       FROM pg_catalog.pg_type t, pg_catalog.aclexplode(t.typacl) a WHERE t.typnamespace = schema AND t.typname IN ('mq_new_t', 'mq_message') AND a.grantee = 0)), true);
END $$;
-- replace 80_grants.sql
DO $$ BEGIN EXECUTE pg_catalog.current_setting('update_of_mq.grants'); END $$;

-- Functions of 0.1.1 depend on the table.
ALTER EXTENSION mq DROP TABLE mq_payloads;
DROP TABLE mq_payloads;
CREATE VIEW mq_payloads AS
  SELECT id, message_name AS name, message_json AS payload_json, message_bytes AS payload_bytes, channel_key FROM mq_msgs WHERE attempt_at IS NOT NULL;
-- Whoever updates may be another superuser than the owner.
DO $$ BEGIN EXECUTE pg_catalog.format('ALTER VIEW mq_payloads OWNER TO %s', (SELECT c.relowner::pg_catalog.regrole FROM pg_catalog.pg_class c WHERE c.oid = 'mq_msgs'::pg_catalog.regclass)); END $$;
COMMENT ON COLUMN mq_payloads.channel_key IS 'As in mq_msgs.';
COMMENT ON VIEW mq_payloads IS 'Names and payloads of pending messages. An UPDATE changes them in mq_msgs; DELETE and TRUNCATE remove the messages.';

-- Fails where a view or a function with a SQL body of a user's own calls one of them.
DO $$
DECLARE
  old regprocedure;
  new regprocedure;
  given record;
BEGIN
  FOR old, new IN SELECT o.oid, n.oid FROM pg_catalog.pg_proc o JOIN pg_catalog.pg_proc n ON n.pronamespace = o.pronamespace AND n.proname = pg_catalog.regexp_replace(o.proname, '_before$', '')
                   WHERE o.proname IN ('mq_send_before', 'mq_send_many_before', 'mq_send_once_before', 'mq_register_handler_before')
                     AND o.pronamespace = (SELECT e.extnamespace FROM pg_catalog.pg_extension e WHERE e.extname = 'mq') LOOP
    FOR given IN SELECT a.grantee, a.is_grantable FROM pg_catalog.pg_proc p, pg_catalog.aclexplode(p.proacl) a WHERE p.oid = old AND a.grantee <> p.proowner LOOP
      EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO %s %s', new,
                                CASE WHEN given.grantee = 0 THEN 'PUBLIC' ELSE given.grantee::pg_catalog.regrole::pg_catalog.text END,
                                CASE WHEN given.is_grantable THEN 'WITH GRANT OPTION' END);
    END LOOP;
    EXECUTE pg_catalog.format('DROP FUNCTION %s', old);
  END LOOP;
END $$;

-- A database in use.
SELECT mq_enable();
SELECT mq_announce();
