--
-- What a handler can say about its message: mq_snooze keeps what it wrote and gives it the message again, without
-- charging an attempt; mq_discard keeps what it wrote and makes the message a dead letter.
--
-- Workers stay out.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;

CREATE TABLE handled (n serial, what jsonb, attempt int);
-- Does what the payload says, the first time that it sees it.
CREATE FUNCTION handle(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  again boolean := EXISTS (SELECT FROM handled WHERE what = message.payload_json);
BEGIN
  INSERT INTO handled (what, attempt) VALUES (message.payload_json, message.attempt);
  IF message.payload_json ? 'snooze' AND NOT again THEN PERFORM mq_snooze((message.payload_json ->> 'snooze')::interval); END IF;
  IF message.payload_json ? 'discard' THEN PERFORM mq_discard(message.payload_json ->> 'discard'); END IF;
  IF message.payload_json ? 'takes it back' THEN
    BEGIN
      PERFORM mq_discard('never mind');
      RAISE EXCEPTION 'taken back';
    EXCEPTION WHEN raise_exception THEN NULL;
    END;
  END IF;
  IF message.payload_json ? 'discard and fail' THEN PERFORM mq_discard('never mind'); RAISE EXCEPTION 'failed'; END IF;
END $$;
CREATE FUNCTION pg_temp.handled() RETURNS TABLE (what jsonb, attempt int) LANGUAGE sql AS $$
  SELECT what, attempt FROM handled ORDER BY n
$$;
SELECT mq_register_handler('outcomes', 'handle(mq_message)');

-- Outside of a handler they say so; bad values are refused.
SELECT mq_snooze('1 second');
SELECT mq_discard('why');
SELECT mq_snooze('-1 second');
SELECT mq_snooze(NULL);
SELECT mq_discard(NULL);

-- An ordered channel waits for the message that was put off, and goes on behind the one that was given up.
SELECT count(*) FROM mq_send_many('outcomes', '{"{\"n\": 1}","{\"snooze\": \"1 hour\"}","{\"discard\": \"no use\"}","{\"n\": 4}"}', ordered => true);
CALL mq_run();
SELECT * FROM pg_temp.handled();
SELECT attempts, attempt, attempt_at > now() + interval '59 minutes' AS later FROM mq_msgs ORDER BY seq LIMIT 1;
UPDATE mq_msgs SET attempt_at = now();
CALL mq_run();
SELECT * FROM pg_temp.handled();
SELECT payload_json, reason, attempts_made, sqlstate, error FROM mq_dead;
SELECT count(*) FROM mq_failures;
TRUNCATE handled;
DELETE FROM mq_dead;

-- What was wished for in a subtransaction goes with it, and so does what a handler wished that failed.
SELECT count(*) FROM mq_send_many('outcomes', '{"{\"takes it back\": 1}","{\"discard and fail\": 1}"}', retries => 0);
CALL mq_run();
SELECT * FROM pg_temp.handled();
SELECT payload_json, reason, error FROM mq_dead;
TRUNCATE handled;
DELETE FROM mq_dead;

-- A batch handler says which message it means, or means all of them.
CREATE FUNCTION handle_batch(messages mq_message[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  message mq_message;
BEGIN
  FOREACH message IN ARRAY messages LOOP
    INSERT INTO handled (what, attempt) VALUES (message.payload_json, message.attempt);
    IF message.payload_json = '2' THEN PERFORM mq_discard('two', message.id); END IF;
    IF message.payload_json = '"all"' THEN PERFORM mq_discard('all'); END IF;
    IF message.payload_json = '"other"' THEN PERFORM mq_discard('other', '00000000-0000-0000-0000-000000000001'); END IF;
  END LOOP;
END $$;
SELECT mq_register_handler('batch', 'handle_batch(mq_message[])');
SELECT count(*) FROM mq_send_many('batch', '{1,2,3}');
CALL mq_run();
SELECT payload_json, error FROM mq_dead ORDER BY dead_no;
DELETE FROM mq_dead;
SELECT count(*) FROM mq_send_many('batch', '{4,"\"all\""}');
CALL mq_run();
SELECT payload_json, error FROM mq_dead ORDER BY payload_json;
DELETE FROM mq_dead;
SELECT mq_send('batch', '"other"', retries => 0) IS NOT NULL AS sent;
CALL mq_run();
SELECT payload_json, reason, sqlstate, error FROM mq_dead;

-- mq_checkpoint and mq_keep_alive work on the message that is being handled; it is gone afterwards all the same.
CREATE FUNCTION handle_with_checkpoint(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM mq_checkpoint(message.id, '1 hour', '{"step": 2}', NULL, 1);
  PERFORM mq_keep_alive(ARRAY[message.id], '2 hours');
END $$;
SELECT mq_register_handler('outcomes', 'handle_with_checkpoint(mq_message)');
SELECT mq_send('outcomes', '{"step": 1}') IS NOT NULL AS sent;
CALL mq_run();
SELECT (SELECT count(*) FROM mq_msgs) AS messages, (SELECT count(*) FROM mq_payloads) AS payloads;

DROP TABLE handled;
SET client_min_messages = warning;
DROP EXTENSION mq CASCADE;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
