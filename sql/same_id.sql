--
-- A message that is sent under the id of one that is being handled is another message: what becomes of the old one does
-- not happen to it.
--
-- Workers stay out.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;

CREATE FUNCTION id(n int) RETURNS uuid LANGUAGE sql AS $$ SELECT lpad(n::text, 32, '0')::uuid $$;
CREATE TABLE handled (n serial, what text, batch xid8 DEFAULT pg_current_xact_id());
CREATE FUNCTION send_anew(ids uuid[], what text) RETURNS void LANGUAGE sql AS $$
  SELECT mq_delete(ids);
  SELECT mq_send('later', to_jsonb(what), id => i) FROM unnest(ids) AS i;
$$;
CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO handled (what) VALUES (m.name);
  CASE m.name
    WHEN 'again' THEN
      IF m.payload_json::int < 3 THEN
        PERFORM mq_delete(ARRAY[m.id]);
        PERFORM mq_send('act', to_jsonb(m.payload_json::int + 1), 'again', id => m.id);
      END IF;
    WHEN 'replace' THEN PERFORM send_anew(ARRAY[m.id], 'replaced');
    WHEN 'replace and snooze' THEN PERFORM send_anew(ARRAY[m.id], 'not snoozed'); PERFORM mq_snooze('1 hour');
    WHEN 'replace and discard' THEN PERFORM send_anew(ARRAY[m.id], 'not discarded'); PERFORM mq_discard('no use');
    WHEN 'replace others' THEN
      PERFORM send_anew(ARRAY(SELECT i::uuid FROM jsonb_array_elements_text(m.payload_json -> 0) AS i), m.payload_json ->> 1);
    WHEN 'checkpoint and replace' THEN
      PERFORM mq_checkpoint(m.id, '0', '"saved"', NULL, 0);
      PERFORM send_anew(ARRAY[m.id], 'replaced');
    WHEN 'with its key' THEN
      PERFORM mq_delete(ARRAY[m.id]);
      PERFORM mq_send('later', '"first"', dedup_key => 'k', id => m.id);
      PERFORM mq_send('later', '"second"', dedup_key => 'k');
    WHEN 'rewrite' THEN
      CLUSTER mq_msgs USING mq_msgs_pkey;
      PERFORM send_anew(ARRAY[m.id], 'replaced');
    WHEN 'update by hand' THEN UPDATE mq_msgs SET retry_backoff = '2 seconds' WHERE id = m.id;
    WHEN 'move by hand' THEN
      CREATE TEMP TABLE moved ON COMMIT DROP AS SELECT * FROM mq_msgs WHERE id = m.id;
      DELETE FROM mq_msgs WHERE id = m.id;
      INSERT INTO mq_msgs SELECT * FROM moved;
    WHEN 'insert by hand' THEN
      DELETE FROM mq_msgs WHERE id = m.id;
      INSERT INTO mq_msgs (id, channel_name, channel_args, channel_key, after_message_id, message_name, message_json)
      VALUES (m.id, 'later', '', mq_channel_key('later', ''), NULL, 'new', '"by hand"');
    WHEN 'fail' THEN RAISE EXCEPTION 'on purpose';
    WHEN 'snooze' THEN PERFORM mq_snooze('1 hour');
    WHEN 'discard' THEN PERFORM mq_discard('no use');
    ELSE NULL;
  END CASE;
END $$;
SELECT mq_register_handler('act', 'handle(mq_message)', message_name => n)
  FROM unnest('{again,replace,replace and snooze,replace and discard,replace others,checkpoint and replace,with its key,rewrite,update by hand,move by hand,insert by hand,fail,snooze,discard,nothing}'::text[]) AS n;

-- What is to be handled; how many dead letters and payloads there are.
CREATE FUNCTION pg_temp.left() RETURNS TABLE (payload text, at_once boolean, attempt int, dead bigint, payloads bigint) LANGUAGE sql AS $$
  SELECT p.payload_json ->> 0, m.attempt_at <= clock_timestamp(), m.attempt, (SELECT count(*) FROM mq_dead), (SELECT count(*) FROM mq_payloads)
    FROM mq_msgs m JOIN mq_payloads p USING (id) ORDER BY m.id
$$;
CREATE FUNCTION pg_temp.handled() RETURNS TABLE (what text, batches bigint) LANGUAGE sql AS $$
  SELECT string_agg(what, ', ' ORDER BY n), count(DISTINCT batch) FROM handled
$$;

-- Its own id, again and again.
SELECT mq_send('act', '1', 'again', id => id(1)) = id(1) AS sent;
TRUNCATE handled, mq_dead, mq_failures;
CALL mq_run();
SELECT what FROM pg_temp.handled();
SELECT count(*) FROM mq_msgs;

-- Whatever the handler says of the old one.
SELECT num_nonnulls(mq_send('act', name => 'replace', id => id(1)), mq_send('act', name => 'replace and snooze', id => id(2)),
       mq_send('act', name => 'replace and discard', id => id(3)), mq_send('act', name => 'checkpoint and replace', id => id(4))) AS sent;
TRUNCATE handled, mq_dead, mq_failures;
CALL mq_run();
SELECT * FROM pg_temp.left();
SELECT mq_clear_all();
SELECT num_nonnulls(mq_send('act', name => 'with its key', id => id(1))) AS sent;
TRUNCATE handled, mq_dead, mq_failures;
CALL mq_run();
SELECT * FROM pg_temp.left();
SELECT mq_clear_all();

-- Ids of others of the batch that came before it (behind it none is called any more), or are never called: handled, failed
-- with and without a retry, snoozed, discarded, expired, without a handler.
SELECT count(mq_send('act', name => name, retries => retries, id => id(n), expires => expires::interval, ordered => ordered, channel_args => args)) AS sent
  FROM (VALUES (1, 'nothing', 0, NULL, false, ''), (2, 'fail', 3, NULL, false, ''), (3, 'fail', 0, NULL, false, ''), (4, 'snooze', 0, NULL, false, ''),
               (5, 'discard', 0, NULL, false, ''), (6, 'nothing', 0, '1 ms', false, ''), (7, 'no handler', 0, NULL, false, ''),
               (8, 'nothing', 0, NULL, true, 'ordered')) AS v (n, name, retries, expires, ordered, args);
SELECT num_nonnulls(mq_send('act', jsonb_build_array(array(SELECT id(n) FROM generate_series(1, 8) AS n), 'new'), 'replace others')) AS sent;
SELECT pg_sleep(0.01);
TRUNCATE handled, mq_dead, mq_failures;
CALL mq_run();
SELECT * FROM pg_temp.handled();
SELECT error FROM mq_failures;
SELECT * FROM pg_temp.left();
SELECT mq_clear_all();
-- A channel that waits for its dead: not for the new one.
SELECT mq_register_handler('blocks', 'handle(mq_message)', on_dead => 'block');
SELECT num_nonnulls(mq_send('blocks', name => 'fail', ordered => true, retries => 0, id => id(2)),
       mq_send('blocks', name => 'nothing', ordered => true, id => id(3)),
       mq_send('blocks', jsonb_build_array(array[id(2)], 'new'), 'replace others')) AS sent;
TRUNCATE handled, mq_dead, mq_failures;
CALL mq_run();
SELECT what FROM pg_temp.handled();
SELECT * FROM pg_temp.left();
SELECT mq_clear_all();

-- What was a message's own row stays that, wherever somebody has put it; what was written anew is another message.
SELECT num_nonnulls(mq_send('act', name => 'update by hand', id => id(1)), mq_send('act', name => 'move by hand', id => id(2))) AS sent;
TRUNCATE handled, mq_dead, mq_failures;
CALL mq_run();
SELECT what FROM pg_temp.handled();
SELECT * FROM pg_temp.left();
SELECT num_nonnulls(mq_send('act', '"old"', 'insert by hand', id => id(3))) AS sent;
TRUNCATE handled, mq_dead, mq_failures;
CALL mq_run();
SELECT * FROM pg_temp.left();
SELECT mq_clear_all();
SELECT num_nonnulls(mq_send('act', name => 'rewrite', id => id(1))) AS sent;
TRUNCATE handled, mq_dead, mq_failures;
CALL mq_run();
SELECT * FROM pg_temp.left();
SELECT mq_clear_all();

-- A lease goes with the message that was polled.
SELECT num_nonnulls(mq_send('later', '"old"', retry_backoff => '1 second', id => id(1))) AS sent;
BEGIN;
SELECT id FROM mq_poll('{later}', 1);
SELECT pg_sleep(0.15);
SELECT mq_delete(ARRAY[id(1)]);
SELECT num_nonnulls(mq_send('later', '"new"', id => id(1))) AS sent;
COMMIT;
SELECT * FROM pg_temp.left();

SET client_min_messages = warning;
DROP EXTENSION mq CASCADE;
DROP FUNCTION send_anew, id;
DROP TABLE handled;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
