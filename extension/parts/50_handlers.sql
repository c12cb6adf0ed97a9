-- Handlers: functions in this database that workers in the server call.

CREATE FUNCTION mq_register_handler(
  channel_name text, handler regprocedure, message_name text DEFAULT NULL, mode text DEFAULT 'transactional',
  batch_size integer DEFAULT NULL, timeout interval DEFAULT NULL, max_workers integer DEFAULT NULL,
  run_as regrole DEFAULT NULL, max_backoff interval DEFAULT '1 hour', on_dead text DEFAULT 'skip',
  priority integer DEFAULT 0, keep interval DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_register_handler';
COMMENT ON FUNCTION mq_register_handler(text, regprocedure, text, text, integer, interval, integer, regrole, interval, text, integer, interval) IS
  'Registers a function of the shape f(jsonb), f(mq_message) or f(mq_message[]) for a channel, or for one message name on it; replaces what was registered for them. Workers take channels with a greater priority (-1000 to 1000) first. In mode leased it runs in a session of its own and may be a procedure of the first two shapes. 22023 or 22004 for a bad value, 42883 for a function of another shape or kind, 42501 without EXECUTE on the function for run_as (leased: and USAGE on its schema), or where the caller is not a member of run_as, or the function''s owner no member of it, or what is replaced runs as a role that the caller, without the right admin, is no member of; 55000 before ALTER EXTENSION mq UPDATE.';

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
  'Sends dead messages again with their own ids and dedup_keys: those that are among ids, of the channel, and died at died_after or later and before died_before, as far as each is given; with none given, all. Ordered ones join the tail of their channel, but one that its channel waits for (on_dead block) returns to its own position; none expires again. One whose dedup_key a pending message has stays where it is. Returns how many were sent. 22023 or 22004 for bad retries.';

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

CREATE FUNCTION mq_progress(fraction real DEFAULT NULL, note text DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_progress';
COMMENT ON FUNCTION mq_progress(real, text) IS
  'From a handler: shows in mq_workers at once, before any commit, how far its call is: fraction from 0 to 1, note at most 500 bytes. NULL leaves what was said before. Both end with the call. 55000 outside of a handler, 22023 for a bad value.';

-- Tells the launcher, when this transaction commits, to look at this database.
CREATE FUNCTION mq_announce() RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_announce';
COMMENT ON FUNCTION mq_announce() IS 'Has the launcher look at this database when the transaction commits: CREATE EXTENSION calls it.';
