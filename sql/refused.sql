--
-- Triggers and rules on tables of mq that keep rows as they are, or out: the statement that would do it raises an error,
-- so nothing is done twice and nothing is lost.
--
-- Workers stay out.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;

CREATE FUNCTION id(n int) RETURNS uuid LANGUAGE sql AS $$ SELECT lpad(n::text, 32, '0')::uuid $$;
CREATE TABLE handled (what text);
CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO handled VALUES (m.name);
  CASE m.name
    WHEN 'fail' THEN RAISE EXCEPTION 'on purpose';
    WHEN 'snooze' THEN PERFORM mq_snooze('1 hour');
    WHEN 'discard' THEN PERFORM mq_discard('no use');
    WHEN 'delete' THEN PERFORM mq_delete(ARRAY[m.id]);
    ELSE NULL;
  END CASE;
END $$;
SELECT mq_register_handler('act', 'handle(mq_message)', message_name => n) FROM unnest('{succeed,fail,snooze,discard,delete}'::text[]) AS n;
SELECT mq_register_handler('blocks', 'handle(mq_message)', on_dead => 'block');
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;

-- Messages, how many of them have a payload, what the handler wrote, dead letters.
CREATE FUNCTION pg_temp.left() RETURNS TABLE (messages bigint, whole bigint, handled bigint, failures bigint, dead bigint) LANGUAGE sql AS $$
  SELECT count(*), count(p.id), (SELECT count(*) FROM handled), (SELECT count(*) FROM mq_failures), (SELECT count(*) FROM mq_dead)
    FROM mq_msgs m LEFT JOIN mq_payloads p USING (id)
$$;
CREATE FUNCTION pg_temp.send(n int, name text, channel text DEFAULT 'act', ordered boolean DEFAULT false) RETURNS boolean LANGUAGE sql AS $$
  SELECT mq_send(channel, name => name, retries => 1, ordered => ordered, id => id(n)) IS NOT NULL AS sent
$$;

-- Messages that cannot be removed.
CREATE TRIGGER keep BEFORE DELETE ON mq_msgs FOR EACH ROW EXECUTE FUNCTION keep();
SELECT pg_temp.send(1, 'succeed');
CALL mq_run();
SELECT * FROM pg_temp.left();
SELECT mq_delete(ARRAY[id(1)]);
SELECT mq_delete(ARRAY[id(99)]);
SELECT mq_clear('{act}');
SELECT mq_clear('{nothing}');
SELECT * FROM pg_temp.left();
UPDATE mq_payloads SET name = 'discard';
CALL mq_run();
SELECT * FROM pg_temp.left();
SELECT mq_send('act', dedup_key => 'k', expires => '1 ms') IS NOT NULL AS sent;
SELECT pg_sleep(0.01);
SELECT mq_send('act', dedup_key => 'k');
DROP TRIGGER keep ON mq_msgs;
CREATE RULE keep AS ON DELETE TO mq_msgs DO INSTEAD NOTHING;
UPDATE mq_payloads SET name = 'succeed';
CALL mq_run();
DROP RULE keep ON mq_msgs;
SELECT mq_clear_all();
-- A trigger that lets them go is in nobody's way, also where a handler has removed its message.
CREATE FUNCTION let_go() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN OLD; END $$;
CREATE TRIGGER keep BEFORE DELETE ON mq_msgs FOR EACH ROW EXECUTE FUNCTION let_go();
SELECT pg_temp.send(1, 'delete'), pg_temp.send(2, 'succeed');
CALL mq_run();
SELECT * FROM pg_temp.left();
DROP TRIGGER keep ON mq_msgs;
TRUNCATE handled;

-- Messages that cannot be changed: a retry, a snooze, a lease, the next of a channel, a channel that is to wait, one that no
-- handler takes.
CREATE TRIGGER keep BEFORE UPDATE ON mq_msgs FOR EACH ROW EXECUTE FUNCTION keep();
SELECT pg_temp.send(1, 'fail');
CALL mq_run();
SELECT * FROM pg_temp.left();
UPDATE mq_payloads SET name = 'snooze';
CALL mq_run();
UPDATE mq_payloads SET name = 'taken by nobody';
CALL mq_run();
SELECT id FROM mq_poll('{act}');
SELECT mq_clear_all();
SELECT pg_temp.send(1, 'succeed', 'act', true), pg_temp.send(2, 'succeed', 'act', true);
CALL mq_run(max_messages => 1);
SELECT * FROM pg_temp.left();
SELECT mq_clear_all();
SELECT mq_send('blocks', name => 'fail', ordered => true, retries => 0, id => id(1)) IS NOT NULL AS sent;
CALL mq_run();
SELECT * FROM pg_temp.left();
DROP TRIGGER keep ON mq_msgs;
CALL mq_run();
SELECT * FROM pg_temp.left();
CREATE TRIGGER keep BEFORE UPDATE ON mq_msgs FOR EACH ROW EXECUTE FUNCTION keep();
SELECT mq_redrive();
DROP TRIGGER keep ON mq_msgs;
SELECT mq_clear_all();
DELETE FROM mq_dead;
DELETE FROM mq_failures;

-- Payloads that cannot be removed: the row of a message that blocks its channel keeps none.
CREATE TRIGGER keep BEFORE UPDATE OF message_json ON mq_msgs FOR EACH ROW EXECUTE FUNCTION keep();
SELECT mq_send('blocks', name => 'fail', ordered => true, retries => 0, id => id(1)) IS NOT NULL AS sent;
CALL mq_run();
SELECT * FROM pg_temp.left();
DROP TRIGGER keep ON mq_msgs;
SELECT mq_clear_all();
-- What stands in front of the view mq_payloads keeps only what is done through that.
CREATE TRIGGER keep INSTEAD OF DELETE ON mq_payloads FOR EACH ROW EXECUTE FUNCTION keep();
SELECT pg_temp.send(1, 'succeed'), pg_temp.send(2, 'succeed', 'nothing');
DELETE FROM mq_payloads;
SELECT * FROM pg_temp.left();
CALL mq_run();
SELECT mq_delete(ARRAY[id(2)]);
SELECT * FROM pg_temp.left();
DROP TRIGGER keep ON mq_payloads;
TRUNCATE handled;

-- Dead letters that cannot be written, or removed.
SELECT pg_temp.send(1, 'discard');
CREATE TRIGGER keep BEFORE INSERT ON mq_dead FOR EACH ROW EXECUTE FUNCTION keep();
CALL mq_run();
SELECT * FROM pg_temp.left();
DROP TRIGGER keep ON mq_dead;
CALL mq_run();
CREATE TRIGGER keep BEFORE DELETE ON mq_dead FOR EACH ROW EXECUTE FUNCTION keep();
SELECT mq_redrive();
DROP TRIGGER keep ON mq_dead;
SELECT * FROM pg_temp.left();

-- What comes back, or is sent once, and is kept out.
CREATE RULE keep AS ON INSERT TO mq_msgs WHERE NEW.message_name = 'discard' DO INSTEAD NOTHING;
SELECT mq_redrive();
DROP RULE keep ON mq_msgs;
CREATE TRIGGER keep BEFORE INSERT ON mq_msgs FOR EACH ROW EXECUTE FUNCTION keep();
SELECT mq_redrive();
SELECT mq_send('act', dedup_key => 'k');
DROP TRIGGER keep ON mq_msgs;
SELECT * FROM pg_temp.left();
SELECT mq_redrive();
SELECT * FROM pg_temp.left();

SET client_min_messages = warning;
DROP EXTENSION mq CASCADE;
DROP FUNCTION keep, let_go, id;
DROP TABLE handled;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
