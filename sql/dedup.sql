--
-- mq_send with a dedup_key: while a message with that key is pending in the channel, the id of that one is returned
-- and nothing is sent.
--
-- Workers stay out of this database.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;

CREATE FUNCTION pg_temp.id(n int) RETURNS uuid LANGUAGE sql AS $$ SELECT lpad(n::text, 32, '0')::uuid $$;
CREATE FUNCTION pg_temp.number(id uuid) RETURNS int LANGUAGE sql AS $$ SELECT replace(id::text, '-', '')::int $$;
-- Sends message n, and returns the number of the one that is pending under the key.
CREATE FUNCTION pg_temp.send(n int, key text, channel text DEFAULT 'work', args text DEFAULT '', is_ordered boolean DEFAULT false) RETURNS int
  LANGUAGE sql AS $$
  SELECT pg_temp.number(mq_send(channel, to_jsonb(n), channel_args => args, ordered => is_ordered, id => pg_temp.id(n),
                                retry_backoff => '1 hour', dedup_key => key))
$$;
CREATE FUNCTION pg_temp.pending() RETURNS int[] LANGUAGE sql AS $$ SELECT array_agg(pg_temp.number(id) ORDER BY seq) FROM mq_msgs $$;
-- As if so much time had passed.
CREATE FUNCTION pg_temp.pass(passed interval) RETURNS void LANGUAGE sql AS $$
  UPDATE mq_msgs SET attempt_at = attempt_at - passed, expires_at = expires_at - passed
$$;

-- One message for a key of a channel; other keys, other channels, and messages without a key have nothing to do with it.
SELECT pg_temp.send(1, 'k'), pg_temp.send(2, 'k') AS again, pg_temp.send(3, 'K') AS other_key, pg_temp.send(4, 'k', 'other') AS other_name,
       pg_temp.send(5, 'k', 'work', 'x') AS other_args, pg_temp.send(6, NULL) AS no_key, pg_temp.send(7, NULL) AS no_key;
SELECT pg_temp.pending();
-- The first stays as it was sent, its payload too; what was not sent has left nothing.
SELECT pg_temp.number(id) AS n, payload_json, dedup_key FROM mq_msgs JOIN mq_payloads USING (id) ORDER BY seq;
SELECT count(*) FROM mq_payloads;
-- An id that is not given; the same id again.
SELECT mq_send('work', dedup_key => 'k') = pg_temp.id(1) AS of_the_first, pg_temp.send(1, 'k') AS same_id;
-- The empty key is one like any other.
SELECT pg_temp.send(8, ''), pg_temp.send(9, '') AS again;
-- Two channels may have the same channel_key; that alone makes no duplicate.
UPDATE mq_msgs SET channel_name = 'another of that key' WHERE id = pg_temp.id(1);
SELECT pg_temp.send(10, 'k'), pg_temp.send(11, 'k') AS again;
SELECT mq_clear_all();

-- Bad values name the field, the value and the rule.
SELECT mq_send('work', dedup_key => repeat('k', 1025));
SELECT mq_send(repeat('c', 1024), channel_args => repeat('a', 1024), dedup_key => repeat('k', 1000));
-- At the edge: what the index has to hold cannot be compressed.
CREATE FUNCTION pg_temp.noise(length int) RETURNS text LANGUAGE sql AS $$
  SELECT left(string_agg(translate(encode(sha512(i::text::bytea), 'base64'), E'\n', ''), ''), length) FROM generate_series(1, 30) AS i
$$;
SELECT mq_send(pg_temp.noise(1024), channel_args => pg_temp.noise(552), dedup_key => pg_temp.noise(1024), id => pg_temp.id(1));
SELECT mq_send(pg_temp.noise(1024), channel_args => pg_temp.noise(552), dedup_key => pg_temp.noise(1024));
SELECT mq_clear_all();

-- Pending is also what is scheduled, leased, waits for a retry, or is two-phase and not committed yet.
SELECT mq_send('scheduled', delay => '1 hour', dedup_key => 'k', id => pg_temp.id(1));
SELECT mq_send('leased', dedup_key => 'k', retry_backoff => '1 hour', id => pg_temp.id(2));
SELECT id FROM mq_poll('{leased}');
SELECT mq_send('retried', dedup_key => 'k', retry_backoff => '1 hour', id => pg_temp.id(3));
CREATE FUNCTION fail(jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'as ever'; END $$;
SELECT mq_register_handler('retried', 'fail(jsonb)');
CALL mq_run();
SELECT mq_send('uncommitted', dedup_key => 'k', commit_interval => '1 hour', id => pg_temp.id(4));
SELECT pg_temp.number(mq_send(name, dedup_key => 'k')) FROM unnest('{scheduled,leased,retried,uncommitted}'::text[]) AS name;
SELECT mq_commit(ARRAY[pg_temp.id(4)]);
SELECT pg_temp.number(mq_send('uncommitted', dedup_key => 'k')) AS committed;
SELECT pg_temp.pending();
SELECT mq_clear_all();

-- A handler is told of another message that is pending.
CREATE TABLE handled (n serial, what int, sent int);
CREATE FUNCTION handle(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO handled (what, sent) VALUES (message.payload_json::int, replace(mq_send('work', dedup_key => 'k')::text, '-', '')::int);
END $$;
SELECT mq_register_handler('work', 'handle(mq_message)');
SELECT pg_temp.number(mq_send('work', delay => '1 hour', dedup_key => 'k', id => pg_temp.id(1)));
SELECT pg_temp.send(8, NULL);
CALL mq_run();
SELECT what, sent FROM handled;
SELECT pg_temp.pending();
SELECT mq_delete(ARRAY[pg_temp.id(1)]);

-- The key is free when the message was handled, deleted, cleared or rolled back.
SELECT pg_temp.send(2, 'k');
SELECT mq_delete(ARRAY[pg_temp.id(2)]);
SELECT pg_temp.send(3, 'k');
SELECT mq_clear('{work}');
BEGIN;
SELECT pg_temp.send(4, 'k');
SELECT mq_delete(ARRAY[pg_temp.id(4)]);
SELECT pg_temp.send(5, 'k');
SAVEPOINT s;
SELECT mq_delete(ARRAY[pg_temp.id(5)]);
SELECT pg_temp.send(6, 'k');
ROLLBACK TO s;
SELECT pg_temp.send(7, 'k');
ROLLBACK;
SELECT pg_temp.send(8, 'k');
SELECT pg_temp.pending();
SELECT mq_clear_all();

-- A two-phase message that was not committed in time does not count, though nobody has removed it yet.
SELECT mq_send('work', '1', commit_interval => '1 minute', dedup_key => 'k', id => pg_temp.id(1));
SELECT pg_temp.pass('2 minutes');
SELECT pg_temp.send(2, 'k');
SELECT pg_temp.pending(), (SELECT count(*) FROM mq_payloads) AS payloads, (SELECT count(*) FROM mq_dead) AS dead;
-- Nor one that has expired: it is dead now. In an ordered channel what is behind them is head.
SELECT mq_send('work', '3', ordered => true, dedup_key => 'o', expires => '1 minute', id => pg_temp.id(3));
SELECT mq_send('work', '4', ordered => true, id => pg_temp.id(4));
SELECT pg_temp.pass('2 minutes');
SELECT pg_temp.send(5, 'o', is_ordered => true);
SELECT pg_temp.number(id) AS n, pg_temp.number(after_message_id) AS after FROM mq_msgs ORDER BY seq;
SELECT pg_temp.number(id) AS n, reason, dedup_key FROM mq_dead;
SELECT mq_clear_all();
TRUNCATE mq_dead;

-- A dead message does not count, not even one that blocks its channel.
SELECT mq_register_handler('steps', 'fail(jsonb)', on_dead => 'block');
SELECT mq_send('steps', '1', ordered => true, retries => 0, dedup_key => 'k', id => pg_temp.id(1));
SELECT mq_send('retried', '2', retries => 0, dedup_key => 'k', id => pg_temp.id(2));
CALL mq_run();
SELECT pg_temp.number(id) AS n, reason, dedup_key FROM mq_dead ORDER BY id;
SELECT id, dedup_key FROM mq_msgs;
SELECT pg_temp.send(3, 'k', 'steps', is_ordered => true), pg_temp.send(4, 'k', 'retried');
-- mq_redrive sends with the key again. What somebody else has the key of stays, and goes on blocking.
SELECT mq_redrive();
SELECT pg_temp.number(id) AS n FROM mq_dead ORDER BY id;
SELECT pg_temp.pending();
SELECT mq_delete(ARRAY[pg_temp.id(3), pg_temp.id(4)]);
SELECT mq_redrive();
SELECT pg_temp.number(id) AS n, dedup_key, attempts FROM mq_msgs ORDER BY id;
SELECT pg_temp.send(5, 'k', 'steps', is_ordered => true) AS redriven;
SELECT count(*) FROM mq_dead;
SELECT mq_clear_all();
TRUNCATE mq_dead, mq_failures;
-- Of several letters with one key, the first is sent.
DO $$
DECLARE
  handled bigint;
BEGIN
  FOR n IN 1..3 LOOP
    PERFORM mq_send('retried', to_jsonb(n), ordered => true, retries => 0, id => lpad(n::text, 32, '0')::uuid,
                    dedup_key => CASE WHEN n <> 2 THEN 'k' END);
    CALL mq_run(handled => handled);
  END LOOP;
END $$;
SELECT mq_redrive();
SELECT pg_temp.number(id) AS n, pg_temp.number(after_message_id) AS after FROM mq_msgs ORDER BY seq;
SELECT pg_temp.number(id) AS n FROM mq_dead;
SELECT mq_clear_all();
TRUNCATE mq_dead, mq_failures, handled;

-- Ordered channels: what is not sent leaves no gap and no mark, in the transaction that sends on neither.
SELECT pg_temp.send(1, 'a', is_ordered => true);
BEGIN;
SELECT pg_temp.send(2, 'a', is_ordered => true), pg_temp.send(3, 'b', is_ordered => true), pg_temp.send(4, 'b', is_ordered => true),
       pg_temp.send(5, NULL, is_ordered => true), pg_temp.send(6, 'a'), pg_temp.send(7, 'c');
COMMIT;
SELECT pg_temp.number(id) AS n, pg_temp.number(after_message_id) AS after FROM mq_msgs ORDER BY seq;
SELECT count(*) FROM mq_headless;
CREATE OR REPLACE FUNCTION handle(message mq_message) RETURNS void LANGUAGE sql AS $$ INSERT INTO handled (what) VALUES (message.payload_json::int) $$;
CALL mq_run();
SELECT what FROM handled WHERE what NOT IN (7) ORDER BY n;
SELECT pg_temp.pending();

-- REPEATABLE READ: it sees its own messages, and those before its snapshot.
SELECT pg_temp.send(1, 'a');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT pg_temp.send(2, 'a'), pg_temp.send(3, 'b');
SELECT pg_temp.send(4, 'b');
COMMIT;
SELECT pg_temp.pending();
SELECT mq_clear_all();

-- An id that is in use by another message is refused as ever.
SELECT pg_temp.send(1, 'a');
\set VERBOSITY sqlstate
SELECT pg_temp.send(1, 'b');
\set VERBOSITY default
SELECT pg_temp.pending(), (SELECT count(*) FROM mq_payloads) AS payloads;

DROP FUNCTION handle(mq_message);
DROP FUNCTION fail(jsonb);
DROP TABLE handled;
-- A job sends itself again under its own key: the message that the call handles does not count. If the call fails, or the
-- savepoint in which it sent is rolled back, the message has its key still.
TRUNCATE mq_msgs, mq_payloads, mq_dead, mq_failures;
CREATE TABLE said (n serial, what text);
CREATE FUNCTION again(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  id uuid;
BEGIN
  id := mq_send(m.channel_name, to_jsonb(m.payload_json::int - 1), dedup_key => 'job', delay => '1 hour', ordered => m.ordered);
  IF m.payload_json = '2' AND m.attempt = 1 THEN RAISE 'fails'; END IF;
  BEGIN
    PERFORM mq_send(m.channel_name, dedup_key => 'other');
    RAISE 'back';
  EXCEPTION WHEN raise_exception THEN NULL;
  END;
  INSERT INTO said (what) VALUES (concat_ws(' ', m.payload_json, id <> m.id, mq_send(m.channel_name, dedup_key => 'job') = id));
END $$;
CREATE FUNCTION again_all(messages mq_message[]) RETURNS void LANGUAGE sql AS $$ SELECT again(m) FROM unnest(messages) AS m $$;
CREATE FUNCTION pg_temp.jobs() RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(concat_ws(' ', payload_json, dedup_key, attempt), ', ' ORDER BY seq) FROM mq_msgs JOIN mq_payloads USING (id) $$;
CREATE FUNCTION pg_temp.job(handler regprocedure, mode text, is_ordered boolean DEFAULT false) RETURNS void LANGUAGE sql AS $$
  DELETE FROM said;
  SELECT mq_register_handler('job', handler, mode => mode), mq_send('job', '3', dedup_key => 'job', ordered => is_ordered);
$$;
CREATE FUNCTION pg_temp.due() RETURNS void LANGUAGE sql AS $$ UPDATE mq_msgs SET attempt_at = now() - interval '1 s' $$;
CREATE FUNCTION pg_temp.said() RETURNS text LANGUAGE sql AS $$ SELECT string_agg(what, ', ' ORDER BY n) FROM said $$;
SELECT pg_temp.job('again(mq_message)', 'transactional');
CALL mq_run();
SELECT pg_temp.said(), pg_temp.jobs();
SELECT pg_temp.due();
CALL mq_run();
SELECT pg_temp.said(), pg_temp.jobs();
SELECT pg_temp.due();
CALL mq_run();
SELECT pg_temp.said(), pg_temp.jobs();
TRUNCATE mq_msgs, mq_payloads;
SELECT pg_temp.job('again(mq_message)', 'transactional', true);
CALL mq_run();
SELECT pg_temp.said(), pg_temp.jobs();
TRUNCATE mq_msgs, mq_payloads;
SELECT pg_temp.job('again_all(mq_message[])', 'transactional');
CALL mq_run();
SELECT pg_temp.due();
CALL mq_run();
SELECT pg_temp.said(), pg_temp.jobs();
TRUNCATE mq_msgs, mq_payloads;
SELECT mq_unregister_handler('job');
SELECT pg_temp.job('again(mq_message)', 'leased');
CALL mq_run();
SELECT pg_temp.said(), pg_temp.jobs();
SELECT pg_temp.due();
CALL mq_run();
SELECT pg_temp.said(), pg_temp.jobs();
SELECT pg_temp.due();
CALL mq_run();
SELECT pg_temp.said(), pg_temp.jobs();
SELECT mq_unregister_handler('job');
SELECT mq_clear_all();

-- Whether something was sent.
SELECT id IS NOT NULL AS id, sent FROM mq_send_once('once', 'key', '1', 'name', ordered => true, delay => '1 hour');
SELECT id = (SELECT m.id FROM mq_msgs m) AS its_id, sent FROM mq_send_once('once', 'key', '2');
SELECT sent FROM mq_send_once('once', 'other', channel_args => 'args', expires => '1 hour', retries => 0);
SELECT sent FROM mq_send_once('once', NULL);
SELECT channel_args, name, payload_json, dedup_key, attempts, expires_at IS NOT NULL AS expires, after_message_id IS NOT NULL AS ordered FROM mq_msgs JOIN mq_payloads USING (id) ORDER BY seq;
SELECT mq_clear_all();
DROP TABLE said;
DROP FUNCTION again, again_all;

DROP EXTENSION mq;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
