--
-- Messages that wait until others have been handled (after).
--
-- Workers stay out of this database.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;

CREATE FUNCTION id(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$ SELECT lpad(n::text, 32, '0')::uuid $$;
-- 0: an id that was made by mq.
CREATE FUNCTION n(id uuid) RETURNS integer LANGUAGE sql IMMUTABLE AS $$ SELECT CASE WHEN id < '00000000-0000-0000-0001-000000000000' THEN right(id::text, 12)::integer ELSE 0 END $$;
-- Sends message n to a channel, after others.
CREATE FUNCTION send(n integer, VARIADIC after integer[] DEFAULT '{}') RETURNS void LANGUAGE sql AS $$
  SELECT mq_send('work', to_jsonb(n), id => id(n), after => (SELECT array_agg(id(a)) FROM unnest(after) AS a)) $$;
CREATE VIEW pending AS
  SELECT n(m.id) AS n, m.channel_name, CASE WHEN m.due_at IS NOT NULL THEN 'waits' WHEN m.attempt_at <= now() THEN 'due' ELSE 'later' END AS state,
         (SELECT array_agg(n(q.prerequisite) ORDER BY q.prerequisite) FROM mq_prerequisites q WHERE q.dependent = m.id) AS after
    FROM mq_msgs m ORDER BY m.id;
CREATE VIEW dead AS
  SELECT n(d.id) AS n, d.channel_name, d.reason, d.sqlstate, d.attempts_made, (SELECT array_agg(n(a)) FROM unnest(d.after) AS a) AS after FROM mq_dead d ORDER BY d.id;
-- All that may be left of what messages waited for.
CREATE FUNCTION left_over() RETURNS TABLE (prerequisites bigint, rechecks bigint) LANGUAGE sql AS $$
  SELECT (SELECT count(*) FROM mq_prerequisites), (SELECT count(*) FROM mq_rechecks) $$;
-- Handlers: note what is handled, in its order; fail where the payload says so.
CREATE TABLE handled (no serial, n integer);
CREATE FUNCTION handle(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF message.payload_json ->> 'do' = 'discard' THEN PERFORM mq_discard('as told'); RETURN; END IF;
  IF message.payload_json ->> 'do' = 'fail' THEN RAISE 'as told'; END IF;
  INSERT INTO handled (n) VALUES (n(message.id));
END $$;
CREATE FUNCTION handled() RETURNS integer[] LANGUAGE sql AS $$
  WITH gone AS (DELETE FROM handled RETURNING no, n) SELECT array_agg(n ORDER BY no) FROM gone $$;
SELECT mq_register_handler('work', 'handle(mq_message)');

-- The error of a statement: SQLSTATE, message, detail, hint.
CREATE FUNCTION refusal(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  message text;
  detail text;
  hint text;
BEGIN
  EXECUTE statement;
  RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
  RETURN concat_ws(' | ', SQLSTATE, message, NULLIF(detail, ''), NULLIF(hint, ''));
END $$;

-- Refused at the door; nothing of the call is kept.
SELECT refusal($$SELECT mq_send('work', id => id(1), after => ARRAY[id(2), NULL])$$);
SELECT refusal($$SELECT mq_send('work', id => id(1), after => ARRAY[id(2), id(1)])$$);
SELECT refusal($$SELECT mq_send_many('work', '{1}', after => ARRAY[NULL]::uuid[])$$);
SELECT refusal($$SELECT mq_send_once('work', 'key', after => ARRAY[NULL]::uuid[])$$);
SELECT refusal($$SELECT mq_send('work', commit_interval => '1 minute', after => ARRAY[id(2)])$$);
SELECT refusal($$SELECT mq_send_many('work', array_fill('1'::jsonb, ARRAY[10000]), after => (SELECT array_agg(id(i)) FROM generate_series(1, 1001) AS i))$$);
SELECT * FROM pending;

-- A message waits until the other has been handled. Neither handlers nor consumers get it before.
SELECT send(1), send(2, 1);
SELECT mq_send('other', '3', id => id(3), after => ARRAY[id(1), id(2), id(1)]);
SELECT * FROM pending;
SELECT channel_name, ready, scheduled FROM mq_stats ORDER BY channel_name;
SELECT n, mq_why(id(n)) FROM generate_series(2, 3) AS n;
SELECT id, wait_time FROM mq_poll(ARRAY['other'], 10);
CALL mq_run(max_messages => 1);
SELECT handled();
SELECT * FROM pending;
CALL mq_run();
SELECT handled();
SELECT n(id) FROM mq_poll(ARRAY['other'], 10);
SELECT mq_delete(ARRAY[id(3)]);
SELECT * FROM left_over();

-- What is neither pending nor dead counts as handled, and an empty array is no array.
SELECT send(1, 77, 78);
SELECT mq_send('work', id => id(2), after => '{}');
SELECT * FROM pending;
SELECT mq_delete(ARRAY[id(2)]);
-- A delay counts from the send: what is handled after it leaves the message due.
SELECT mq_send('work', '3', id => id(3), after => ARRAY[id(1)], delay => '1 hour');
SELECT mq_send('work', '4', id => id(4), after => ARRAY[id(1)], delay => '1 microsecond');
SELECT due_at - created_at FROM mq_msgs WHERE due_at IS NOT NULL ORDER BY id;
-- Messages go by whoever removes them: mq_delete, mq_clear, mq_clear_all, two-phase messages that are not committed.
SELECT mq_delete(ARRAY[id(1)]);
SELECT * FROM pending;
SELECT mq_clear_all();
SELECT mq_send('first', '1', id => id(1)), send(2, 1), mq_send('second', '3', id => id(3), after => ARRAY[id(1)]);
SELECT mq_clear(ARRAY['first']);
SELECT * FROM pending;
SELECT mq_clear_all();
SELECT mq_send('work', '1', id => id(1), commit_interval => '1 microsecond'), send(2, 1);
SELECT * FROM pending WHERE n = 2;
CALL mq_run();
SELECT handled();
-- One that waits can go, too.
SELECT send(1), send(2, 1), send(3, 2), mq_send('second', '4', id => id(4), after => ARRAY[id(1)]);
SELECT mq_clear(ARRAY['second']);
SELECT mq_delete(ARRAY[id(2)]);
SELECT * FROM pending;
SELECT * FROM left_over();
SELECT mq_clear_all();
SELECT * FROM left_over();

-- Transactions: what is sent together, and what is rolled back.
BEGIN;
SELECT send(1);
SAVEPOINT s;
SELECT send(2, 1), mq_delete(ARRAY[id(1)]);
SELECT * FROM pending;
ROLLBACK TO s;
SELECT send(3, 1);
SAVEPOINT s;
SELECT mq_delete(ARRAY[id(1)]);
ROLLBACK TO s;
COMMIT;
SELECT * FROM pending;
BEGIN;
SELECT mq_delete(ARRAY[id(1)]);
ROLLBACK;
SELECT * FROM pending;
CALL mq_run();
SELECT handled();

-- A diamond, and a message that several wait for.
SELECT send(1), send(2, 1), send(3, 1), send(4, 2, 3), send(5, 1, 2, 3, 4);
CALL mq_run(max_messages => 1);
SELECT handled();
SELECT * FROM pending;
CALL mq_run(max_messages => 1);
SELECT * FROM pending;
CALL mq_run();
SELECT handled();
SELECT * FROM left_over();

-- A chain of 1,000, sent in one transaction.
DO $$ BEGIN FOR i IN 1..1000 LOOP PERFORM CASE WHEN i = 1 THEN send(i) ELSE send(i, i - 1) END; END LOOP; END $$;
CALL mq_run();
SELECT count(*), bool_and(n = no - (SELECT min(no) FROM handled) + 1) AS in_order FROM handled;
TRUNCATE handled;
-- 10,000 that one waits for, and 10,000 that wait for one.
SELECT mq_send('work', '0', id => id(1), after => (SELECT array_agg(m) FROM mq_send_many('work', array_fill('1'::jsonb, ARRAY[10000])) AS m)) IS NOT NULL AS sent;
SELECT count(*) FROM mq_prerequisites;
SELECT count(*) FROM mq_send_many('work', array_fill('2'::jsonb, ARRAY[10000]), after => ARRAY[id(1)]);
CREATE TABLE counted (no serial, payload jsonb, messages bigint);
CREATE FUNCTION count_all(messages mq_message[]) RETURNS void LANGUAGE sql AS $$ INSERT INTO counted (payload, messages) SELECT m.payload_json, count(*) FROM unnest(messages) AS m GROUP BY 1 $$;
SELECT mq_register_handler('work', 'count_all(mq_message[])');
CALL mq_run();
SELECT string_agg(payload::text, ' ' ORDER BY first) AS in_order FROM (SELECT payload, min(no) AS first FROM counted GROUP BY payload HAVING sum(messages) IN (1, 10000)) AS c;
SELECT * FROM left_over();
SELECT mq_register_handler('work', 'handle(mq_message)');
SELECT handled();

-- One that dies takes those along that wait for it, and theirs.
SELECT mq_send('work', '{"do": "discard"}', id => id(1)), send(2, 1), send(3, 2), send(4, 1, 3), send(5), send(6, 5, 2);
SELECT mq_send('other', '7', id => id(7), after => ARRAY[id(6)], ordered => true);
CALL mq_run();
SELECT handled();
SELECT * FROM pending;
SELECT * FROM dead;
SELECT n(id) AS n, error FROM mq_dead WHERE reason = 'prerequisite' ORDER BY id;
SELECT channel_name, dead, died FROM mq_stats ORDER BY channel_name;
SELECT * FROM left_over();
-- What is sent after it is dead at once.
SELECT n(mq_send('work', '8', id => id(8), after => ARRAY[id(1), id(99)]));
SELECT sent FROM mq_send_once('work', 'key', '9', after => ARRAY[id(8)]);
SELECT count(*) FROM mq_send_many('work', '{10, 11}', after => ARRAY[id(8)]);
SELECT channel_name, reason, payload_json, cardinality(after) AS after FROM mq_dead WHERE payload_json IN ('8', '9', '10', '11') ORDER BY payload_json::integer;
SELECT * FROM pending;
SELECT * FROM left_over();

-- mq_redrive of all runs all, in whatever order they stand.
UPDATE mq_dead SET payload_json = '1' WHERE id = id(1);
DELETE FROM mq_dead WHERE n(id) = 0;
SELECT mq_redrive(ARRAY[id(7), id(6), id(4), id(3), id(2), id(1), id(8)]);
SELECT * FROM pending;
SELECT * FROM dead;
CALL mq_run();
SELECT handled();
SELECT mq_clear_all();
SELECT * FROM left_over();
-- Of one alone, while the other is dead: it stays, with that as its reason.
SELECT mq_send('work', '{"do": "discard"}', id => id(1)), mq_send('work', '2', id => id(2), after => ARRAY[id(1)], expires => '1 microsecond');
SELECT send(3, 2);
CALL mq_run();
SELECT * FROM dead;
UPDATE mq_dead SET died_at = '2020-01-01';
SELECT mq_redrive(ARRAY[id(2), id(3)]);
SELECT * FROM dead;
SELECT n(id) AS n, died_at > '2020-01-02' AS anew, error FROM mq_dead ORDER BY id;
-- Of the other alone: the dependents stay dead, and wait again when they are redriven.
SELECT mq_redrive(ARRAY[id(1)]);
SELECT * FROM pending;
SELECT mq_redrive(ARRAY[id(2)]);
SELECT * FROM pending;
SELECT mq_redrive(ARRAY[id(3)]);
SELECT * FROM pending;
SELECT mq_delete(ARRAY[id(1)]);
-- What was handled meanwhile is not waited for any more.
CALL mq_run();
SELECT handled();
SELECT * FROM dead;
-- Those that wait for one another, by ids used twice, stay dead, and so do those that wait for them.
INSERT INTO mq_dead (id, created_at, died_at, channel_name, channel_args, name, ordered, attempts_made, reason, retry_backoff, channel_key, after)
  SELECT id(n), now(), now(), 'work', '', 'work', false, 0, 'prerequisite', '1 second', mq_channel_key('work', ''), ARRAY[id(CASE n WHEN 1 THEN 3 WHEN 4 THEN 2 WHEN 5 THEN 6 WHEN 6 THEN 77 ELSE n - 1 END)]
    FROM generate_series(1, 6) AS n;
SELECT mq_redrive();
SELECT * FROM pending;
SELECT * FROM dead;
CALL mq_run();
SELECT handled();
DELETE FROM mq_dead;
-- More than a step of mq_redrive, the dependents first.
INSERT INTO mq_dead (id, created_at, died_at, channel_name, channel_args, name, ordered, attempts_made, reason, retry_backoff, channel_key, after)
  SELECT id(n), now(), now(), 'work', '', 'work', false, 0, 'prerequisite', '1 second', mq_channel_key('work', ''), CASE WHEN n < 20002 THEN ARRAY[id(n + 1)] END
    FROM generate_series(1, 20002) AS n;
SELECT mq_redrive();
SELECT count(*), count(*) FILTER (WHERE due_at IS NULL) AS due, (SELECT count(*) FROM mq_dead) AS dead FROM mq_msgs;
SELECT mq_clear_all();
SELECT * FROM left_over();

-- One that expires, or that uses up its attempts, is dead.
SELECT mq_send('work', '1', id => id(1), delay => '1 day', expires => '1 microsecond'), send(2, 1);
CALL mq_run();
SELECT * FROM dead;
DELETE FROM mq_dead;
SELECT mq_send('work', '{"do": "fail"}', id => id(1), retries => 0), send(2, 1);
CALL mq_run();
SELECT * FROM dead;
DELETE FROM mq_dead;
-- One that is cancelled is dead; one that waits can be cancelled, too.
SELECT send(1), send(2, 1), send(3, 2), send(4), send(5, 4), send(6, 5);
SELECT n(c) FROM mq_cancel(ARRAY[id(1), id(5)]) AS c ORDER BY 1;
SELECT * FROM dead;
SELECT * FROM pending;
SELECT mq_redrive();
SELECT * FROM pending;
CALL mq_run();
SELECT handled();
SELECT * FROM left_over();
-- One that waits expires in time.
SELECT send(1), mq_send('work', '2', id => id(2), after => ARRAY[id(1)], expires => '1 microsecond'), mq_send('work', '3', id => id(3), after => ARRAY[id(1)], expires => '1 hour');
SELECT send(4, 2);
CALL mq_run(max_messages => 0);
CALL mq_run(ARRAY['other']);
SELECT * FROM dead;
SELECT * FROM pending;
CALL mq_run();
SELECT handled();
SELECT * FROM left_over();
DELETE FROM mq_dead;

-- Ordered channels: nothing overtakes a message that waits, and one that dies makes room or blocks as registered.
SELECT send(1), mq_send('ordered', '2', id => id(2), after => ARRAY[id(1)], ordered => true), mq_send('ordered', '3', id => id(3), ordered => true);
SELECT mq_register_handler('ordered', 'handle(mq_message)');
CALL mq_run(ARRAY['ordered']);
SELECT handled();
SELECT mq_why(id(3));
CALL mq_run();
SELECT handled();
SELECT mq_send('ordered', '1', id => id(1), ordered => true), mq_send('ordered', '2', id => id(2), after => ARRAY[id(1)], ordered => true), mq_send('ordered', '3', id => id(3), ordered => true);
CALL mq_run();
SELECT handled();
SELECT mq_register_handler('ordered', 'handle(mq_message)', on_dead => 'block');
SELECT mq_send('work', '{"do": "discard"}', id => id(1)), mq_send('ordered', '2', id => id(2), after => ARRAY[id(1)], ordered => true), mq_send('ordered', '3', id => id(3), ordered => true);
CALL mq_run();
SELECT handled();
SELECT * FROM dead;
SELECT n(id) AS n, attempt_at, due_at FROM mq_msgs WHERE attempt_at IS NULL;
UPDATE mq_dead SET payload_json = '1' WHERE id = id(1);
SELECT mq_redrive();
SELECT * FROM pending;
CALL mq_run();
SELECT handled();
SELECT * FROM left_over();
-- One that dies behind others is dead, and does not wait for them.
SELECT mq_send('work', '1', id => id(1), delay => '1 hour'), mq_send('ordered', '2', id => id(2), ordered => true, delay => '1 hour'),
       mq_send('ordered', '3', id => id(3), after => ARRAY[id(1)], ordered => true);
SELECT count(*) FROM mq_cancel(ARRAY[id(1)]);
SELECT s.state, mq_why(s.id) FROM mq_status(ARRAY[id(3)]) AS s;
SELECT mq_delete(ARRAY[id(2), id(3)]);
DELETE FROM mq_dead;
-- One that would stand before what it waits for, in their channel, joins the tail as that one has.
SELECT mq_register_handler('ordered', 'handle(mq_message)', message_name => 'skip');
SELECT mq_send('ordered', '{"do": "discard"}', name => 'skip', id => id(1), ordered => true),
       mq_send('ordered', '2', id => id(2), after => ARRAY[id(1)], ordered => true), mq_send('ordered', '3', id => id(3), ordered => true);
CALL mq_run();
SELECT handled();
UPDATE mq_dead SET payload_json = '1' WHERE id = id(1);
SELECT mq_redrive();
CALL mq_run();
SELECT handled();
SELECT * FROM pending;

-- So does one that would wait for itself through other channels: 4 waits for 3, which is behind 2, and 1 joins behind 4.
SELECT mq_register_handler('second', 'handle(mq_message)');
SELECT mq_send('second', '{"do": "discard"}', id => id(1), ordered => true), mq_send('ordered', '2', id => id(2), after => ARRAY[id(1)], ordered => true), mq_send('ordered', '3', id => id(3), ordered => true);
CALL mq_run();
SELECT * FROM dead;
SELECT send(5, 3), mq_send('second', '4', id => id(4), after => ARRAY[id(5)], ordered => true);
UPDATE mq_dead SET payload_json = '1' WHERE id = id(1);
SELECT mq_redrive();
SELECT * FROM pending;
CALL mq_run();
SELECT handled();
SELECT * FROM left_over();
-- Where nothing comes back to it, it returns to its own position.
SELECT mq_send('second', '{"do": "discard"}', id => id(1), ordered => true), mq_send('ordered', '2', id => id(2), after => ARRAY[id(1)], ordered => true), mq_send('ordered', '3', id => id(3), ordered => true);
CALL mq_run();
SELECT send(5), mq_send('second', '4', id => id(4), after => ARRAY[id(5)], ordered => true);
UPDATE mq_dead SET payload_json = '1' WHERE id = id(1);
SELECT mq_redrive();
CALL mq_run();
SELECT handled();
SELECT * FROM left_over();

-- dedup_key: a message that waits is pending, and what is not sent waits for nothing.
SELECT send(1);
SELECT sent FROM mq_send_once('work', 'key', '2', after => ARRAY[id(1)]);
SELECT sent FROM mq_send_once('work', 'key', '3', after => ARRAY[id(1)]);
SELECT count(*) FROM mq_prerequisites;
-- Nor does a send that finds its key taken free those that wait for its id.
SELECT mq_send('work', '4', id => id(4), dedup_key => 'other', after => ARRAY[id(1)]), send(5, 4);
SELECT mq_send('work', '4', id => id(4), dedup_key => 'other', after => ARRAY[id(1)]);
SELECT * FROM pending;
CALL mq_run();
SELECT cardinality(handled());

-- No cycle by an id that is used again: who waited for the old message is free.
SELECT send(1), send(2, 1);
DELETE FROM mq_msgs WHERE id = id(1);
SELECT send(1, 2);
SELECT * FROM pending;
CALL mq_run();
SELECT handled();

-- A handler that sends, removes and waits for its own message.
CREATE FUNCTION proceed(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM send(n(message.id) + 1, n(message.id));
  PERFORM send(n(message.id) + 2, n(message.id) + 1);
END $$;
SELECT mq_register_handler('steps', 'proceed(mq_message)');
SELECT mq_send('steps', '1', id => id(1));
CALL mq_run(ARRAY['steps']);
SELECT * FROM pending;
CALL mq_run();
SELECT handled();
SELECT mq_register_handler('steps', 'proceed(mq_message)', mode => 'leased');
SELECT mq_send('steps', '1', id => id(1));
CALL mq_run();
SELECT handled();
SELECT * FROM left_over();

-- A consumer outside: what it deletes is handled.
SELECT mq_send('outside', '1', id => id(1)), send(2, 1);
SELECT n(id) FROM mq_poll(ARRAY['outside'], 1);
CALL mq_run();
SELECT handled();
SELECT mq_delete(ARRAY[id(1)]);
CALL mq_run();
SELECT handled();

-- Rows that somebody has changed by hand: mq_health() says so, and CALL mq_run() or mq_poll lets messages go on.
SELECT send(1), send(2, 1), mq_send('poll', '3', id => id(3), after => ARRAY[id(1)]), mq_send('poll', '4', id => id(4), after => ARRAY[id(2)]);
SELECT ok, detail FROM mq_health() WHERE "check" = 'prerequisites';
DELETE FROM mq_msgs WHERE id = id(1);
SELECT ok, detail FROM mq_health() WHERE "check" = 'prerequisites';
SELECT n(id) FROM mq_poll(ARRAY['poll'], 10);
SELECT * FROM pending;
CALL mq_run();
SELECT handled();
SELECT mq_clear_all();
SELECT send(1), send(2, 1);
TRUNCATE mq_prerequisites;
SELECT mq_why(id(2));
SELECT ok, detail FROM mq_health() WHERE "check" = 'prerequisites';
CALL mq_run(ARRAY['none']);
SELECT * FROM pending;
SELECT mq_clear_all();
-- Dead letters that were written by hand count, and messages that are gone leave no rows.
SELECT send(1), send(2, 1), send(3, 1);
DELETE FROM mq_msgs WHERE id IN (id(1), id(3));
INSERT INTO mq_dead (id, died_at, channel_name, channel_args, name, ordered, attempts_made, reason, retry_backoff, channel_key)
  VALUES (id(1), now(), 'work', '', 'work', false, 0, 'discarded', '1 second', mq_channel_key('work', ''));
CALL mq_run();
SELECT * FROM dead;
SELECT * FROM left_over();
DELETE FROM mq_dead;

-- Triggers on the table are asked.
CREATE TABLE asked (operation text, prerequisite uuid);
CREATE FUNCTION ask() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.asked VALUES (TG_OP, COALESCE(NEW.prerequisite, OLD.prerequisite)); RETURN COALESCE(NEW, OLD); END $$;
CREATE TRIGGER ask BEFORE INSERT OR DELETE ON mq_prerequisites FOR EACH ROW EXECUTE FUNCTION ask();
SELECT send(1), send(2, 1);
CALL mq_run();
SELECT handled();
SELECT operation, n(prerequisite) AS n FROM asked;
DROP TRIGGER ask ON mq_prerequisites;

-- Names that no handler takes, and messages that wait for others, are told apart.
SELECT mq_unregister_handler('work');
SELECT mq_register_handler('work', 'handle(mq_message)', message_name => 'known');
SELECT mq_send('work', '1', name => 'known', id => id(1)), mq_send('work', '2', name => 'unknown', id => id(2), after => ARRAY[id(1)]), mq_send('work', '3', name => 'unknown', id => id(3));
CALL mq_run(max_messages => 0);
SELECT mq_register_handler('work', 'handle(mq_message)', message_name => 'unknown');
CALL mq_run(ARRAY['none']);
SELECT * FROM pending;
CALL mq_run();
SELECT handled();
SELECT * FROM left_over();

DROP EXTENSION mq CASCADE;
DROP TABLE handled, counted, asked;
DROP FUNCTION id, n, send, left_over, handled, refusal, ask;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
