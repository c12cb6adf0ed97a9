--
-- Messages that expire: what was not handled in time is dead, whoever looks first, and never delivered afterwards.
--
-- Workers stay out of this database.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;
-- A day has 24 hours, whatever day it is.
SET TimeZone = 'UTC';

CREATE FUNCTION pg_temp.id(n int) RETURNS uuid LANGUAGE sql AS $$ SELECT lpad(n::text, 32, '0')::uuid $$;
-- As if so much time had passed.
CREATE FUNCTION pg_temp.pass(passed interval) RETURNS void LANGUAGE sql AS $$
  UPDATE mq_msgs SET attempt_at = attempt_at - passed, created_at = created_at - passed, expires_at = expires_at - passed
$$;
CREATE TABLE handled (n serial, what text, attempt int);
-- Sleeps as long as the payload says, then fails or snoozes if that says so.
CREATE FUNCTION handle(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO handled (what, attempt) VALUES (message.name, message.attempt);
  PERFORM pg_sleep(COALESCE((message.payload_json ->> 'sleep')::float8, 0));
  IF message.payload_json ? 'snooze' THEN PERFORM mq_snooze((message.payload_json ->> 'snooze')::interval); END IF;
  IF message.payload_json ? 'fail' THEN RAISE EXCEPTION 'attempt % failed', message.attempt USING DETAIL = 'the detail', HINT = 'the hint'; END IF;
END $$;
SELECT mq_register_handler('work', 'handle(mq_message)');
CREATE FUNCTION pg_temp.handled() RETURNS text LANGUAGE sql AS $$ SELECT string_agg(what, ' ' ORDER BY n) FROM handled $$;
CREATE VIEW letters AS SELECT name, channel_name, reason, attempts_made, sqlstate, error, detail, hint FROM mq_dead ORDER BY dead_no;

-- Bad values name the field, the value and the rule; nothing of the call is kept.
SELECT mq_send('work', expires => '0');
SELECT mq_send('work', expires => '-1 second');
SELECT mq_send('work', expires => '1 month -31 days');
SELECT mq_send('work', expires => '101 years');
SELECT mq_send('work', expires => '178000000 years');
SELECT mq_send_many('work', '{1,2}', expires => '0');
SELECT count(*) FROM mq_msgs;

-- It is counted from the sending; NULL is no expiry.
SELECT mq_send('work', name => 'a', expires => '1 hour') IS NOT NULL AND mq_send('work', name => 'b', expires => NULL) IS NOT NULL AS sent;
SELECT count(*) FROM mq_send_many('work', '{1,2}', name => 'many', expires => '36500 days');
SELECT name, expires_at - created_at AS expires_after FROM mq_msgs JOIN mq_payloads USING (id) ORDER BY seq;
SELECT mq_clear_all();

-- Not delivered when it has expired, but dead, with its payload and no attempt made. In time it is like any other.
SELECT mq_send('work', '{"n": 1}', name => 'late', expires => '1 minute', payload_bytes => '\x01') IS NOT NULL
   AND mq_send('work', name => 'in time', expires => '2 hours') IS NOT NULL AS sent;
SELECT pg_temp.pass('1 hour');
CALL mq_run();
SELECT pg_temp.handled();
SELECT * FROM letters;
SELECT payload_json, payload_bytes, died_at > created_at AS died FROM mq_dead;
SELECT (SELECT count(*) FROM mq_msgs) AS messages, (SELECT count(*) FROM mq_payloads) AS payloads, (SELECT count(*) FROM mq_failures) AS failures;
-- Redriven it does not expire again.
SELECT mq_redrive();
SELECT expires_at FROM mq_msgs;
CALL mq_run();
SELECT pg_temp.handled();
TRUNCATE handled;

-- Whoever looks first: a poll,
SELECT mq_send('outside', name => 'late', expires => '1 minute') IS NOT NULL AND mq_send('outside', name => 'next') IS NOT NULL AS sent;
SELECT pg_temp.pass('1 hour');
SELECT name FROM mq_poll('{outside}', 10);
SELECT * FROM letters;
SELECT mq_clear_all();
TRUNCATE mq_dead;
-- or the sweep, where nobody handles the channel or it is paused.
SELECT mq_pause('work');
SELECT mq_send('work', name => 'paused', expires => '1 minute') IS NOT NULL AND mq_send('unwatched', name => 'unwatched', expires => '1 minute') IS NOT NULL
   AND mq_send('unwatched', name => 'not yet', expires => '2 hours') IS NOT NULL AS sent;
SELECT pg_temp.pass('1 hour');
CALL mq_run();
SELECT * FROM letters;
SELECT name FROM mq_msgs JOIN mq_payloads USING (id);
SELECT mq_resume('work');
SELECT mq_clear_all();
TRUNCATE mq_dead;

-- What is scheduled for later than its expiry dies at that, not later; a poll says when.
SELECT mq_send('work', name => 'scheduled', delay => '1 day', expires => '1 hour') IS NOT NULL AS sent;
SELECT p.wait_time, m.expires_at - now() BETWEEN '59 minutes' AND '1 hour' AS till_then FROM mq_poll('{work}') p, mq_msgs m;
SELECT pg_temp.pass('1 hour');
CALL mq_run();
SELECT * FROM letters;
TRUNCATE mq_dead;
-- So does what waits for a retry, with the error of its last attempt; and what was put off by its handler.
SELECT mq_send('work', '{"fail": 1}', 'retried', retry_backoff => '30 minutes', expires => '1 hour') IS NOT NULL
   AND mq_send('work', '{"snooze": "1 day"}', 'snoozed', expires => '1 hour') IS NOT NULL AS sent;
CALL mq_run();
SELECT pg_temp.pass('40 minutes');
CALL mq_run();
SELECT name, attempt, attempt_at = expires_at AS till_its_expiry FROM mq_msgs JOIN mq_payloads USING (id) ORDER BY seq;
SELECT pg_temp.pass('20 minutes');
CALL mq_run();
SELECT pg_temp.handled();
SELECT * FROM letters;
SELECT count(*) FROM mq_msgs;
TRUNCATE handled, mq_dead, mq_failures;

-- What runs when it expires is not interrupted: it is handled. If it fails that was its last attempt.
SELECT mq_send('work', '{"sleep": 1.6}', 'long', expires => '1.5 s') IS NOT NULL AS sent;
CALL mq_run();
SELECT mq_send('work', '{"sleep": 1.6, "fail": 1}', 'long and fails', expires => '1.5 s') IS NOT NULL AS sent;
CALL mq_run();
SELECT pg_temp.handled();
SELECT * FROM letters;
SELECT attempt, error FROM mq_failures;
TRUNCATE handled, mq_dead, mq_failures;
-- What expires while it waits behind that for its turn is not delivered.
SELECT mq_send('work', '{"sleep": 0.15}', 'first') IS NOT NULL AND mq_send('work', name => 'behind', expires => '0.1 s') IS NOT NULL AS sent;
CALL mq_run();
SELECT pg_temp.handled();
SELECT * FROM letters;
TRUNCATE handled, mq_dead;

-- Ordered channels: the rest goes on, from wherever in the channel it went.
SELECT count(*) FROM mq_send_many('work', '{}', expires => '1 minute');
SELECT mq_send('work', name => 'a', ordered => true, expires => '1 minute') IS NOT NULL
   AND mq_send('work', '{"fail": 1}', 'b', ordered => true, retries => 1, retry_backoff => '30 minutes') IS NOT NULL
   AND mq_send('work', name => 'c', ordered => true, expires => '3 minutes') IS NOT NULL
   AND mq_send('work', name => 'd', ordered => true, expires => '4 hours') IS NOT NULL
   AND mq_send('work', name => 'e', ordered => true) IS NOT NULL AS sent;
SELECT pg_temp.pass('2 minutes');
CALL mq_run();
SELECT * FROM letters;
SELECT pg_temp.pass('2 minutes');
CALL mq_run();
SELECT * FROM letters;
SELECT pg_temp.handled();
SELECT pg_temp.pass('1 hour');
CALL mq_run();
SELECT pg_temp.handled();
SELECT * FROM letters;
TRUNCATE handled, mq_dead, mq_failures;

-- Where the handler of the message was registered so, the channel waits, whoever found it: mq_run, a poll, the sweep.
SELECT mq_register_handler('blocking', 'handle(mq_message)', 'go on');
SELECT mq_register_handler('blocking', 'handle(mq_message)', on_dead => 'block');
SELECT mq_register_handler('sweep only', 'handle(mq_message)', on_dead => 'block');
SELECT mq_pause('sweep only');
SELECT mq_send(channel, name => 'expired', channel_args => args, ordered => true, expires => '1 minute') IS NOT NULL
   AND mq_send(channel, name => 'behind ' || args, channel_args => args, ordered => true) IS NOT NULL AS sent
  FROM (VALUES ('blocking', 'run'), ('sweep only', 'sweep')) AS c (channel, args);
SELECT mq_send('blocking', name => 'go on', channel_args => 'other name', ordered => true, expires => '1 minute') IS NOT NULL
   AND mq_send('blocking', name => 'behind other name', channel_args => 'other name', ordered => true) IS NOT NULL
   AND mq_send('blocking', name => 'unordered', expires => '1 minute') IS NOT NULL AS sent;
SELECT pg_temp.pass('1 hour');
CALL mq_run();
SELECT mq_resume('sweep only');
CALL mq_run();
SELECT pg_temp.handled();
SELECT mq_send('blocking', name => 'expired', channel_args => 'poll', ordered => true, expires => '1 minute') IS NOT NULL
   AND mq_send('blocking', name => 'behind poll', channel_args => 'poll', ordered => true) IS NOT NULL AS sent;
SELECT pg_temp.pass('1 hour');
SELECT name FROM mq_poll('{blocking}', 10);
CALL mq_run();
SELECT pg_temp.handled();
SELECT name, channel_args, reason FROM mq_dead ORDER BY channel_args;
SELECT channel_args, attempt_at, attempts, attempt, expires_at FROM mq_msgs WHERE attempt_at IS NULL ORDER BY channel_args;
-- In the middle of a channel what is before goes on.
SELECT mq_clear_all();
TRUNCATE handled, mq_dead;
SELECT mq_send('blocking', name => 'a', ordered => true, delay => '2 hours') IS NOT NULL
   AND mq_send('blocking', name => 'expired', ordered => true, expires => '1 minute', id => pg_temp.id(1)) IS NOT NULL
   AND mq_send('blocking', name => 'c', ordered => true) IS NOT NULL AS sent;
SELECT pg_temp.pass('1 hour');
CALL mq_run();
SELECT * FROM letters;
SELECT pg_temp.pass('1 hour');
CALL mq_run();
SELECT pg_temp.handled();
SELECT count(*) FROM mq_msgs;
-- Redriven it goes to the end, and lets the others pass.
SELECT mq_redrive();
CALL mq_run();
SELECT pg_temp.handled();
SELECT mq_unregister_handler('blocking', 'go on'), mq_unregister_handler('blocking'), mq_unregister_handler('sweep only');
TRUNCATE handled;

-- Leased to a consumer outside: it stays theirs until the lease ends.
SELECT mq_send('outside', name => 'done', retry_backoff => '1 hour', expires => '1 minute', id => pg_temp.id(1)) IS NOT NULL
   AND mq_send('outside', name => 'abandoned', retry_backoff => '1 hour', expires => '1 minute', id => pg_temp.id(2)) IS NOT NULL
   AND mq_send('outside', name => 'given back', retry_backoff => '1 hour', expires => '3 hours', id => pg_temp.id(3)) IS NOT NULL AS sent;
SELECT name FROM mq_poll('{outside}', 10);
SELECT pg_temp.pass('30 minutes');
CALL mq_run();
SELECT count(*) FROM letters;
SELECT mq_delete(ARRAY[pg_temp.id(1)]);
SELECT pg_temp.pass('30 minutes');
CALL mq_run();
SELECT * FROM letters;
SELECT name, (SELECT attempt FROM mq_msgs) AS attempt FROM mq_poll('{outside}', 10);
SELECT mq_clear_all();
TRUNCATE mq_dead;

-- Two-phase: what nobody commits is removed as ever, and not dead; what is committed too late is.
SELECT mq_send('work', name => 'removed', commit_interval => '30 minutes', expires => '1 minute', id => pg_temp.id(1)) IS NOT NULL
   AND mq_send('work', name => 'committed', commit_interval => '2 hours', delay => '3 hours', expires => '1 minute', id => pg_temp.id(2)) IS NOT NULL AS sent;
SELECT pg_temp.pass('1 hour');
CALL mq_run();
SELECT name, commit_interval FROM mq_msgs JOIN mq_payloads USING (id);
SELECT count(*) FROM letters;
SELECT mq_commit(ARRAY[pg_temp.id(1), pg_temp.id(2)]);
SELECT attempt_at = expires_at AS at_its_expiry FROM mq_msgs;
CALL mq_run();
SELECT * FROM letters;
SELECT pg_temp.handled();
TRUNCATE mq_dead;

-- Many are dead-lettered in bounded steps, of a transaction each.
CREATE TABLE steps (transaction bigint DEFAULT txid_current(), letters bigint);
CREATE FUNCTION note_step() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
BEGIN INSERT INTO steps (letters) SELECT count(*) FROM letter; RETURN NULL; END $$;
CREATE TRIGGER step AFTER INSERT ON mq_dead REFERENCING NEW TABLE AS letter FOR EACH STATEMENT EXECUTE FUNCTION note_step();
SELECT count(*) FROM mq_send_many('unwatched', array_fill('1'::jsonb, ARRAY[1200]), expires => '1 minute');
SELECT pg_temp.pass('1 hour');
CALL mq_run();
SELECT letters, count(DISTINCT transaction) FROM steps GROUP BY letters ORDER BY letters;
SELECT count(*) FROM mq_dead;
SELECT count(*) FROM mq_msgs;
DROP TRIGGER step ON mq_dead;
DROP FUNCTION note_step();
DROP TABLE steps;

DROP VIEW letters;
DROP FUNCTION handle(mq_message);
DROP TABLE handled;
DROP EXTENSION mq;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
