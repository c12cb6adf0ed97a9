-- The storage. docs/architecture.md says why it is as it is; in short: no triggers, no foreign keys, nothing unique
-- across channels but the id, and a channel_key (XXH3 of channel_name and channel_args, computed in C++) on
-- every table of messages in place of two texts.

CREATE SEQUENCE mq_msgs_seq AS bigint;
COMMENT ON SEQUENCE mq_msgs_seq IS 'Sequence numbers of messages: within an ordered channel a later message has a greater one.';

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
  seq bigint NOT NULL DEFAULT pg_catalog.nextval('mq_msgs_seq'::pg_catalog.regclass),
  attempt integer NOT NULL DEFAULT 0,
  lease bigint,
  dedup_key text COLLATE "C",
  expires_at timestamptz,
  due_at timestamptz,
  throttled_at timestamptz,
  keep interval,
  priority smallint NOT NULL DEFAULT 0,
  fair boolean NOT NULL DEFAULT true,
  message_name text COLLATE "C" NOT NULL,
  headers jsonb,
  message_json jsonb,
  message_bytes bytea
);
-- Each message that is handled leaves a row to remove. With the server's default pauses autovacuum does not keep pace
-- with more than some ten thousand a second.
ALTER TABLE mq_msgs SET (autovacuum_vacuum_cost_delay = 0);
-- Never out of line: they are read before there is a snapshot to fetch from a TOAST table with.
ALTER TABLE mq_msgs ALTER channel_name SET STORAGE MAIN, ALTER channel_args SET STORAGE MAIN, ALTER dedup_key SET STORAGE MAIN,
  ALTER message_name SET STORAGE MAIN;
COMMENT ON TABLE mq_msgs IS 'Messages that are pending, with their payload. A large payload is out of line, and an update of the row does not write it again.';
COMMENT ON COLUMN mq_msgs.attempt_at IS 'When the message is due next; while an outside consumer works on it, when its lease runs out. infinity: it waits for a handler of its name, or until other messages have been handled (due_at is not NULL then). NULL: a dead message that blocks its ordered channel.';
COMMENT ON COLUMN mq_msgs.attempts IS 'How many attempts are left, as in the original schema; attempt says how many were made, as attempts_made of mq_dead does.';
COMMENT ON COLUMN mq_msgs.retry_backoff IS 'Wait before the next retry; doubled with each attempt, within bounds.';
COMMENT ON COLUMN mq_msgs.commit_interval IS 'Not NULL: a two-phase message that is hidden until mq_commit; it expires at attempt_at.';
COMMENT ON COLUMN mq_msgs.after_message_id IS 'NULL: not ordered. The nil uuid: head of its ordered channel. Else the message it was appended after.';
COMMENT ON COLUMN mq_msgs.channel_key IS 'XXH3 hash (64 bits) of channel_name and channel_args.';
COMMENT ON COLUMN mq_msgs.seq IS 'Sequence number: the order within the channel; from mq_msgs_seq.';
COMMENT ON COLUMN mq_msgs.attempt IS 'How many attempts were made.';
COMMENT ON COLUMN mq_msgs.lease IS 'Token of the lease until attempt_at, if there is one. Above 0: of a leased call; below 0: of mq_receive; no two have the same. 0: of mq_poll.';
COMMENT ON COLUMN mq_msgs.dedup_key IS 'Not NULL: no second message of the channel has this key while this one is pending.';
COMMENT ON COLUMN mq_msgs.expires_at IS 'Not NULL: dead by then if nobody has handled it. attempt_at is not beyond it, but for a lease, while commit_interval is not NULL, and while it waits for a handler or for other messages.';
COMMENT ON COLUMN mq_msgs.due_at IS 'Not NULL: it waits until other messages have been handled (mq_prerequisites), and is due at this time then. NULL: it waits for none.';
COMMENT ON COLUMN mq_msgs.throttled_at IS 'Not NULL: a limit of its channel has put it off until attempt_at; it was due at this time. NULL: none has.';
COMMENT ON COLUMN mq_msgs.keep IS 'How long it is kept once it is handled; above 0, at most 36,500 days. NULL: as mq_handlers.keep says.';
COMMENT ON COLUMN mq_msgs.priority IS 'From -1000 to 1000: of the due messages of a channel name those with the greatest come first. 0 in an ordered message.';
COMMENT ON COLUMN mq_msgs.fair IS 'Has an entry in mq_msgs_fair, if its priority is 0. false: it has another priority; or it has no channel_args, was due at once, and no other channel of its name had messages when it was sent.';
COMMENT ON COLUMN mq_msgs.message_name IS 'The name. This and the payload have other names here than in mq_payloads, so that a join of the two needs no prefixes.';
COMMENT ON COLUMN mq_msgs.headers IS 'A JSON object that goes with the payload and is handed on as it is: trace context, tenant, content type. NULL: none.';
COMMENT ON COLUMN mq_msgs.message_json IS 'The payload as jsonb: key order and duplicate keys are not kept, \u0000 is refused. NULL in a dead message that blocks its ordered channel, as message_bytes is.';
COMMENT ON COLUMN mq_msgs.message_bytes IS 'The payload as bytea.';

-- Due messages of a channel name, oldest first. Heads only: an unordered message, or the head of an ordered
-- channel.
CREATE INDEX mq_msgs_due ON mq_msgs (channel_name, attempt_at, seq)
  WHERE (after_message_id IS NULL OR after_message_id = '00000000-0000-0000-0000-000000000000') AND priority = 0;
-- The same by channel, so that part of a batch can be taken fairly from the channels of one name.
CREATE INDEX mq_msgs_fair ON mq_msgs (channel_name, channel_key, attempt_at, seq)
  WHERE fair AND (after_message_id IS NULL OR after_message_id = '00000000-0000-0000-0000-000000000000') AND priority = 0;
-- Messages of another priority than 0, which are in neither of those: in the order of claims, and oldest first.
CREATE INDEX mq_msgs_priority ON mq_msgs (channel_name, priority DESC, attempt_at, seq)
  WHERE priority <> 0 AND (after_message_id IS NULL OR after_message_id = '00000000-0000-0000-0000-000000000000');
CREATE INDEX mq_msgs_prioritized ON mq_msgs (channel_name, attempt_at, seq)
  WHERE priority <> 0 AND (after_message_id IS NULL OR after_message_id = '00000000-0000-0000-0000-000000000000');
-- Ordered channels: their tail, their first message, the run behind a head.
CREATE INDEX mq_msgs_chain ON mq_msgs (channel_key, seq) WHERE after_message_id IS NOT NULL;
-- For the sweep: two-phase messages that expire, and last attempts whose lease runs out.
CREATE INDEX mq_msgs_exhausted ON mq_msgs (attempt_at) WHERE commit_interval IS NOT NULL OR attempts <= 0;
-- What leased handlers are called with; empty where there are none.
CREATE INDEX mq_msgs_lease ON mq_msgs (lease) WHERE lease > 0;
-- For mq_stats: what is leased.
CREATE INDEX mq_msgs_leased ON mq_msgs (channel_name, attempt_at) WHERE lease IS NOT NULL;
-- For the sweep, and the timers of workers: messages that expire.
CREATE INDEX mq_msgs_expiry ON mq_msgs (expires_at) WHERE expires_at IS NOT NULL AND commit_interval IS NULL;
-- Messages that limits have put off; empty where none has.
CREATE INDEX mq_msgs_throttled ON mq_msgs (channel_name, channel_key, attempt_at) WHERE throttled_at IS NOT NULL;
-- One pending message for a dedup_key. With the names, since two channels may share a channel_key.
CREATE UNIQUE INDEX mq_msgs_dedup ON mq_msgs (channel_key, dedup_key, channel_name, channel_args)
  WHERE dedup_key IS NOT NULL;

CREATE TABLE mq_headless (
  channel_key bigint NOT NULL,
  channel_name text COLLATE "C" NOT NULL,
  channel_args text COLLATE "C" NOT NULL
);
COMMENT ON TABLE mq_headless IS 'Ordered channels whose first message may not be head yet, since somebody was removing the one before it when it was written. Every claim looks here first; as a rule it is empty.';

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

CREATE TABLE mq_cancelled (
  message_id uuid NOT NULL,
  seq bigint NOT NULL,
  error text NOT NULL
);
COMMENT ON TABLE mq_cancelled IS 'Messages that mq_cancel has cancelled while a worker had their rows locked: the worker moves them to mq_dead. As a rule it is empty.';
COMMENT ON COLUMN mq_cancelled.seq IS 'As in mq_msgs: a message that is sent under the same id later has another one, and is not meant.';

-- A table in the original schema. TRUNCATE of it is answered by the library where it is preloaded.
CREATE VIEW mq_payloads AS
  SELECT id, message_name AS name, message_json AS payload_json, message_bytes AS payload_bytes, channel_key FROM mq_msgs WHERE attempt_at IS NOT NULL;
COMMENT ON COLUMN mq_payloads.channel_key IS 'As in mq_msgs.';
COMMENT ON VIEW mq_payloads IS 'Names and payloads of pending messages. An UPDATE changes them in mq_msgs; DELETE and TRUNCATE remove the messages.';

-- Two parts, so that each is read in the order of its index, mq_msgs_due or mq_msgs_prioritized. With a condition within
-- them the planner would not see that.
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
  reason text NOT NULL CHECK (reason IN ('exhausted', 'discarded', 'crashed', 'expired', 'cancelled', 'prerequisite')),
  sqlstate text,
  error text,
  detail text,
  hint text,
  context text,
  retry_backoff interval NOT NULL,
  channel_key bigint NOT NULL,
  dedup_key text COLLATE "C",
  keep interval,
  priority smallint NOT NULL DEFAULT 0,
  headers jsonb,
  after uuid[]
);
COMMENT ON TABLE mq_dead IS 'Dead letters: messages that will not be tried again, with their payload and the last error. mq_redrive sends them again.';
COMMENT ON COLUMN mq_dead.attempts_made IS 'How many attempts were made; attempts of mq_msgs is how many are left.';
COMMENT ON COLUMN mq_dead.reason IS 'exhausted: no attempt left; discarded: by its handler; crashed: it brought the server down twice; expired: not handled in time; cancelled: by mq_cancel; prerequisite: one of those that it waited for is dead.';
COMMENT ON COLUMN mq_dead.retry_backoff IS 'Wait that the next retry would have had; mq_redrive goes on with it.';
COMMENT ON COLUMN mq_dead.dedup_key IS 'As in mq_msgs; mq_redrive sends the message with it again.';
COMMENT ON COLUMN mq_dead.keep IS 'As in mq_msgs; mq_redrive sends the message with it again.';
COMMENT ON COLUMN mq_dead.priority IS 'As in mq_msgs; mq_redrive sends the message with it again.';
COMMENT ON COLUMN mq_dead.headers IS 'As in mq_msgs; mq_redrive sends the message with them again.';
COMMENT ON COLUMN mq_dead.after IS 'What it still waited for when it died; mq_redrive sends the message after those again. NULL: nothing.';
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
  keep interval,
  -- As mq_register_handler has them.
  CONSTRAINT mq_handlers_mode CHECK (mode IN ('transactional', 'leased')),
  CONSTRAINT mq_handlers_batch_size CHECK (batch_size BETWEEN 1 AND 100000),
  CONSTRAINT mq_handlers_timeout CHECK (timeout > '0' AND timeout <= '36500 days'),
  CONSTRAINT mq_handlers_max_workers CHECK (max_workers BETWEEN 1 AND 1000),
  CONSTRAINT mq_handlers_max_backoff CHECK (max_backoff > '0' AND max_backoff <= '36500 days'),
  CONSTRAINT mq_handlers_on_dead CHECK (on_dead IN ('skip', 'block')),
  CONSTRAINT mq_handlers_priority CHECK (priority BETWEEN -1000 AND 1000),
  CONSTRAINT mq_handlers_keep CHECK (keep > '0' AND keep <= '36500 days')
);
COMMENT ON TABLE mq_handlers IS 'The registered handlers. Written by mq_register_handler and mq_unregister_handler.';
COMMENT ON COLUMN mq_handlers.message_name IS 'NULL: every name on the channel that has no handler of its own.';
COMMENT ON COLUMN mq_handlers.handler IS 'The function, schema-qualified, with its argument type.';
COMMENT ON COLUMN mq_handlers.run_as IS 'Name of the role that the worker is connected as. If it is renamed, so it is here by the next worker that looks; if it is dropped, the registration is left alone.';
COMMENT ON COLUMN mq_handlers.enabled_id IS 'Id of the row in mq_enabled under which it was registered. Of another one: it comes from another database, and is not called.';
COMMENT ON COLUMN mq_handlers.run_as_oid IS 'The role run_as, in the database that enabled_id tells; elsewhere mq_enable() looks for its name. 0: it was dropped.';
COMMENT ON COLUMN mq_handlers.keep IS 'How long a message is kept once it is handled, unless it says so itself. NULL: it is not kept.';
CREATE UNIQUE INDEX mq_handlers_name ON mq_handlers (channel_name, message_name) WHERE message_name IS NOT NULL;
CREATE UNIQUE INDEX mq_handlers_any ON mq_handlers (channel_name) WHERE message_name IS NULL;
-- For what asks for all handlers of a name: with a partial index it would read all names'.
CREATE INDEX mq_handlers_channel ON mq_handlers (channel_name);

CREATE TABLE mq_paused (
  channel_name text COLLATE "C" PRIMARY KEY,
  paused_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE mq_paused IS 'Channels that workers leave alone. Written by mq_pause and mq_resume.';

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

-- Totals: what each transaction adds is appended to mq_stats_deltas, so nobody waits for anybody; later those rows are
-- rolled up into mq_stats_totals. mq_stats sums both. Histograms are arrays of step, count, step, count and so on.
CREATE TABLE mq_stats_totals (
  channel_name text COLLATE "C" NOT NULL,
  handled bigint NOT NULL,
  failed bigint NOT NULL,
  died bigint NOT NULL,
  handle_times bigint[] NOT NULL,
  wait_times bigint[] NOT NULL
);
CREATE INDEX mq_stats_totals_channel_name ON mq_stats_totals (channel_name);
COMMENT ON TABLE mq_stats_totals IS 'What has been handled, has failed and died of each channel, and how long that took; without what mq_stats_deltas holds. For mq_stats.';
CREATE TABLE mq_stats_deltas (LIKE mq_stats_totals);
COMMENT ON TABLE mq_stats_deltas IS 'What transactions have added to mq_stats_totals, until it is rolled up into that.';

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
ALTER TABLE mq_headless REPLICA IDENTITY FULL;
ALTER TABLE mq_prerequisites REPLICA IDENTITY FULL;
ALTER TABLE mq_rechecks REPLICA IDENTITY FULL;
ALTER TABLE mq_cancelled REPLICA IDENTITY FULL;
ALTER TABLE mq_handlers REPLICA IDENTITY FULL;
ALTER TABLE mq_stats_totals REPLICA IDENTITY FULL;
ALTER TABLE mq_stats_deltas REPLICA IDENTITY FULL;

-- pg_dump takes the messages, the dead letters and the handlers along.
SELECT pg_catalog.pg_extension_config_dump('mq_msgs_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mq_msgs', '');
SELECT pg_catalog.pg_extension_config_dump('mq_headless', '');
SELECT pg_catalog.pg_extension_config_dump('mq_prerequisites', '');
SELECT pg_catalog.pg_extension_config_dump('mq_rechecks', '');
SELECT pg_catalog.pg_extension_config_dump('mq_cancelled', '');
SELECT pg_catalog.pg_extension_config_dump('mq_dead', '');
SELECT pg_catalog.pg_extension_config_dump('mq_dead_dead_no_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mq_done', '');
SELECT pg_catalog.pg_extension_config_dump('mq_done_done_no_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mq_failures', '');
SELECT pg_catalog.pg_extension_config_dump('mq_failures_failure_no_seq', '');
SELECT pg_catalog.pg_extension_config_dump('mq_handlers', '');
SELECT pg_catalog.pg_extension_config_dump('mq_paused', '');
SELECT pg_catalog.pg_extension_config_dump('mq_subscribers', '');
SELECT pg_catalog.pg_extension_config_dump('mq_channel_limits', '');
SELECT pg_catalog.pg_extension_config_dump('mq_timetable', '');
SELECT pg_catalog.pg_extension_config_dump('mq_stats_totals', '');
SELECT pg_catalog.pg_extension_config_dump('mq_stats_deltas', '');
