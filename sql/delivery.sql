--
-- Delivery to consumers outside the server: leases and attempts, dead letters, what becomes of
-- rows that somebody changed by hand, and that no channel is shut out by another.
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
  UPDATE mq_msgs SET attempt_at = attempt_at - passed
$$;

-- An attempt is charged when the message is polled; its lease is the backoff, which doubles.
SELECT mq_send('work', '1', retries => 2, retry_backoff => '1 minute', id => pg_temp.id(1));
SELECT id, retry_backoff FROM mq_poll('{work}');
SELECT attempts, retry_backoff, attempt_at - now() BETWEEN '59 s' AND '61 s' AS leased FROM mq_msgs;
SELECT id FROM mq_poll('{work}');
SELECT pg_temp.pass('1 minute');
SELECT id, retry_backoff FROM mq_poll('{work}');
SELECT attempts, retry_backoff, attempt_at - now() BETWEEN '119 s' AND '121 s' AS leased FROM mq_msgs;
SELECT pg_temp.pass('2 minutes');
-- Where the transaction of the poll takes long, the lease begins at its end.
CREATE TEMPORARY TABLE polled (id uuid, before_commit timestamptz);
SELECT mq_send('late', '1', retry_backoff => '1 s', id => pg_temp.id(n)) FROM generate_series(11, 13) AS n;
BEGIN;
INSERT INTO polled SELECT id FROM mq_poll('{late}', 2);
SAVEPOINT undone;
SELECT count(*) AS polled FROM mq_poll('{late}', 2) WHERE id IS NOT NULL;
ROLLBACK TO undone;
SELECT pg_sleep(0.2);
UPDATE polled SET before_commit = clock_timestamp();
COMMIT;
SELECT m.id, m.attempt_at >= p.before_commit + '1 s' AS begins_late, m.lease, m.attempt
  FROM mq_msgs m LEFT JOIN polled p USING (id) WHERE channel_name = 'late' ORDER BY 1;
SELECT mq_clear('{late}');
-- The last attempt has a lease as any other: it is not dead while it runs,
SELECT id, retry_backoff FROM mq_poll('{work}');
SELECT attempts, attempt_at - now() BETWEEN '239 s' AND '241 s' AS leased FROM mq_msgs;
SELECT id, wait_time > '0' AS waits FROM mq_poll('{work}');
SELECT count(*) AS dead FROM mq_dead;
-- and may still be handled.
BEGIN;
SELECT mq_delete(ARRAY[pg_temp.id(1)]);
SELECT (SELECT count(*) FROM mq_msgs) AS messages, (SELECT count(*) FROM mq_dead) AS dead;
ROLLBACK;
-- It is dead-lettered when the lease has passed, payload and all, and delivered no more.
SELECT pg_temp.pass('4 minutes');
SELECT id, wait_time FROM mq_poll('{work}');
SELECT id, channel_name, channel_args, name, payload_json, payload_bytes, ordered, attempts_made, reason,
       died_at > created_at AS died FROM mq_dead;
SELECT (SELECT count(*) FROM mq_msgs) AS messages, (SELECT count(*) FROM mq_payloads) AS payloads;
DELETE FROM mq_dead;

-- Without retries there is one attempt. A checkpoint on the last attempt keeps it alive, or adds to it.
SELECT mq_send('work', '1', retries => 0, id => pg_temp.id(1));
SELECT id FROM mq_poll('{work}');
SELECT id FROM mq_poll('{work}');
SELECT attempts FROM mq_msgs;
SELECT mq_checkpoint(pg_temp.id(1), '1 minute', '2', NULL, NULL);
SELECT attempts FROM mq_msgs;
SELECT pg_temp.pass('30 s');
SELECT id FROM mq_poll('{work}');
SELECT mq_checkpoint(pg_temp.id(1), '0', '3', NULL, 1);
SELECT pg_temp.pass('1 minute');
SELECT id, payload_json FROM mq_poll('{work}');
SELECT attempts FROM mq_msgs;
SELECT pg_temp.pass('1 hour');
SELECT id FROM mq_poll('{work}');
SELECT id, payload_json, attempts_made, reason FROM mq_dead;
DELETE FROM mq_dead;
-- A consumer whose last attempt outlived its lease says that it has handled the message: that counts, and no dead letter is
-- left to be redriven. What died of anything else stays.
SELECT mq_reset_stats();
SELECT mq_send('work', '1', retries => 0, id => pg_temp.id(1)), mq_send('work', '2', retries => 0, id => pg_temp.id(2));
SELECT count(id) FROM mq_poll('{work}', 10);
SELECT pg_temp.pass('1 hour');
SELECT id FROM mq_poll('{work}');
INSERT INTO mq_dead (id, died_at, channel_name, channel_args, ordered, attempts_made, reason, sqlstate, retry_backoff, channel_key)
  VALUES (pg_temp.id(3), now(), 'work', '', false, 1, 'exhausted', 'P0001', '1 s', mq_channel_key('work', '')),
         (pg_temp.id(4), now(), 'work', '', false, 1, 'discarded', NULL, '1 s', mq_channel_key('work', ''));
SELECT id, sqlstate, error FROM mq_dead ORDER BY id;
SELECT dead, handled, died FROM mq_stats WHERE channel_name = 'work';
SELECT mq_delete(ARRAY[pg_temp.id(1), pg_temp.id(3), pg_temp.id(4), pg_temp.id(5)]);
SELECT id FROM mq_dead ORDER BY id;
SELECT dead, handled, died FROM mq_stats WHERE channel_name = 'work';
SELECT mq_redrive(ARRAY[pg_temp.id(1)]);
-- One that was redriven since is a pending message, and goes as such.
SELECT mq_redrive(ARRAY[pg_temp.id(2)]);
SELECT mq_delete(ARRAY[pg_temp.id(2)]);
SELECT count(*) FROM mq_msgs;
DELETE FROM mq_dead;

-- Any number of extra retries is within bounds.
SELECT mq_send('work', id => pg_temp.id(1), retries => 2147483646);
SELECT mq_checkpoint(pg_temp.id(1), '0', NULL, NULL, 2147483646);
SELECT attempts FROM mq_msgs;
SELECT mq_clear_all();

-- A dead head lets its ordered channel go on.
SELECT mq_insert(ARRAY[(pg_temp.id(1), '0', 0, '1 s', 'steps', '', NULL, true, 'first', '1', NULL)::mq_new_t,
                       (pg_temp.id(2), '0', 4, '1 s', 'steps', '', NULL, true, 'second', '2', NULL)::mq_new_t]);
SELECT name FROM mq_poll('{steps}', 10);
SELECT name FROM mq_poll('{steps}', 10);
SELECT pg_temp.pass('1 s');
SELECT name FROM mq_poll('{steps}', 10);
SELECT name, ordered, reason FROM mq_dead;
DELETE FROM mq_dead;
SELECT mq_clear_all();

-- However long a backoff gets, polls go on: here it is beyond all timestamps, and the 50th of doublings.
SELECT mq_send('work', '1', id => pg_temp.id(1));
SELECT mq_send('work', '2', id => pg_temp.id(2), retries => 100);
UPDATE mq_msgs SET retry_backoff = '178000000 years' WHERE id = pg_temp.id(1);
SELECT id, retry_backoff FROM mq_poll('{work}', 10) ORDER BY id;
SELECT id, attempt_at - now() < '366 days' AS leased, retry_backoff <= '366 days' AS bounded FROM mq_msgs ORDER BY id;
DO $$
BEGIN
  FOR i IN 1..50 LOOP
    UPDATE mq_msgs SET attempt_at = now() - interval '1 s' WHERE id = '00000000-0000-0000-0000-000000000002';
    IF NOT EXISTS (SELECT FROM mq_poll('{work}') WHERE id IS NOT NULL) THEN
      RAISE EXCEPTION 'poll % found nothing', i;
    END IF;
  END LOOP;
END $$;
SELECT attempts, retry_backoff, attempt_at - now() <= '366 days' AS leased FROM mq_msgs WHERE id = pg_temp.id(2);
SELECT mq_clear_all();
-- A backoff of nothing, or less, set by hand: due again at once, and never negative.
SELECT mq_send('work', retries => 3, retry_backoff => '0', id => pg_temp.id(1));
SELECT count(*) FROM mq_poll('{work}') WHERE id IS NOT NULL;
UPDATE mq_msgs SET retry_backoff = '-1 day';
SELECT retry_backoff FROM mq_poll('{work}') WHERE id IS NOT NULL;
SELECT attempts, retry_backoff FROM mq_msgs;
SELECT mq_clear_all();

-- Batches come in the order in which their messages were due.
SELECT mq_send('late', 'null', delay => '2 hours', name => 'third') IS NOT NULL
   AND mq_send('soon', 'null', delay => '1 hour', name => 'second') IS NOT NULL
   AND mq_send('late', 'null', delay => '3 hours', name => 'fourth') IS NOT NULL
   AND mq_send('soon', 'null', delay => '4 hours', name => 'fifth') IS NOT NULL
   AND mq_send('late', 'null', name => 'first') IS NOT NULL AS sent;
SELECT pg_temp.pass('5 hours');
SELECT name FROM mq_poll(NULL, 10);
SELECT mq_clear_all();

-- A flood in one channel does not shut out the one message of another: neither beside it in the same
-- channel name nor under another name is it missing from any poll.
CREATE FUNCTION pg_temp.polls_with_it(single text, args text, flood text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  found bigint := 0;
BEGIN
  FOR i IN 1..30 LOOP
    PERFORM mq_send_many(flood, array_fill('null'::jsonb, ARRAY[100]));
    PERFORM mq_send(single, channel_args => args, name => 'single', delay => '1 ms');
    PERFORM pg_sleep(0.002);
    found := found + (SELECT count(*) FROM mq_poll(NULL, 10) WHERE name = 'single');
    PERFORM mq_clear_all();
  END LOOP;
  RETURN found;
END $$;
SELECT pg_temp.polls_with_it('work', 'beside', 'work') AS same_name, pg_temp.polls_with_it('other', '', 'work') AS other_name;
-- All that a poll may return it returns, whatever names there is nothing for.
SELECT count(*) FROM mq_send_many('work', array_fill('null'::jsonb, ARRAY[1000]));
SELECT mq_send('work', channel_args => 'beside') IS NOT NULL AS sent;
SELECT count(*), count(DISTINCT id) AS ids FROM mq_poll('{none,work,nothing}', 1000);
SELECT count(*) FROM mq_poll('{none,work,nothing}', 1000) WHERE id IS NOT NULL;
SELECT mq_clear_all();

-- A message that somebody removed by its payload is gone, without a dead letter; the next of its channel is due.
SELECT mq_send('work', id => pg_temp.id(1));
SELECT mq_insert(ARRAY[(pg_temp.id(2), '0', 0, '1 s', 'steps', '', NULL, true, 'first', '1', NULL)::mq_new_t,
                       (pg_temp.id(3), '0', 4, '1 s', 'steps', '', NULL, true, 'second', '2', NULL)::mq_new_t]);
DELETE FROM mq_payloads WHERE id IN (pg_temp.id(1), pg_temp.id(2));
SELECT id, name FROM mq_poll(NULL, 10);
SELECT id, channel_name, name, ordered, attempts_made, reason, sqlstate, error FROM mq_dead ORDER BY id;
SELECT id, attempts, attempt FROM mq_msgs;
SELECT mq_clear_all();

-- So are many, and nothing else is, however often somebody looks for what is to be repaired.
SELECT count(*) FROM mq_send_many('work', array_fill('null'::jsonb, ARRAY[1200]));
SELECT mq_send('later', delay => '1 hour', id => pg_temp.id(1));
DELETE FROM mq_payloads USING mq_msgs WHERE mq_msgs.id = mq_payloads.id AND channel_name = 'work';
DO $$
DECLARE
  handled bigint := 0;
BEGIN
  FOR i IN 1..10 LOOP
    CALL mq_run(handled => handled);
  END LOOP;
END $$;
SELECT (SELECT count(*) FROM mq_msgs) AS messages, count(*) AS payloads, count(*) FILTER (WHERE id = pg_temp.id(1)) AS of_later FROM mq_payloads;
SELECT mq_clear_all();

-- Heads that somebody deleted, from the table or through the view: the next becomes head. A poll finds it before it says
-- that there is nothing, each time, wherever the search for such heads ended the time before.
CREATE FUNCTION pg_temp.heal(empty_polls int, "from" regclass) RETURNS TABLE (polls_before int, deleted_from regclass, heads text[], next_heads text[])
LANGUAGE plpgsql AS $$
BEGIN
  polls_before := empty_polls;
  deleted_from := "from";
  PERFORM mq_insert(array_agg((pg_temp.id(n), '0', 4, '1 hour', 'steps', (n % 3)::text, NULL, true, n::text, NULL, NULL)::mq_new_t ORDER BY n))
     FROM generate_series(1, 9) AS n;
  SELECT array_agg(name ORDER BY name) INTO heads FROM mq_poll('{steps}', 10);
  FOR i IN 1..empty_polls LOOP
    PERFORM mq_poll('{steps}', 10);
  END LOOP;
  EXECUTE format('DELETE FROM %s WHERE id IN (pg_temp.id(1), pg_temp.id(2))', "from");
  SELECT array_agg(name ORDER BY name) INTO next_heads FROM mq_poll('{steps}', 10);
  RETURN NEXT;
  PERFORM mq_clear_all();
END $$;
SELECT heal.* FROM generate_series(0, 4) AS empty_polls CROSS JOIN unnest('{mq_msgs,mq_payloads}'::regclass[]) AS "from"
 CROSS JOIN LATERAL pg_temp.heal(empty_polls, "from") AS heal ORDER BY polls_before, deleted_from::text;

-- So does mq_run, and in the middle nothing needs to be repaired.
CREATE TABLE handled (n serial, name text);
CREATE FUNCTION handle(message mq_message) RETURNS void LANGUAGE sql AS $$ INSERT INTO handled (name) VALUES (message.name) $$;
SELECT mq_register_handler('steps', 'handle(mq_message)');
SELECT mq_insert(array_agg((pg_temp.id(n), '0', 4, '1 hour', 'steps', (n % 2)::text, NULL, true, n::text, NULL, NULL)::mq_new_t ORDER BY n))
  FROM generate_series(1, 10) AS n;
DELETE FROM mq_msgs WHERE id IN (pg_temp.id(1), pg_temp.id(2));
DELETE FROM mq_payloads WHERE id IN (pg_temp.id(3), pg_temp.id(8));
CALL mq_run();
SELECT name::int % 2 AS channel, array_agg(name ORDER BY n) AS handled FROM handled GROUP BY 1 ORDER BY 1;
SELECT count(*) FROM mq_msgs;
SELECT mq_unregister_handler('steps');
DROP FUNCTION handle(mq_message);
DROP TABLE handled;

DROP EXTENSION mq;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
