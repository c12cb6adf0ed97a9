--
-- mq_stats: how many messages of each channel name are ready, scheduled, running and dead, and what has become of the
-- others. Small channels are counted, of large ones the number of rows is kept up by commits: both must agree
-- with the tables, whatever people do.
--
-- Workers stay out.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;
SELECT * FROM mq_stats;

CREATE VIEW pending AS SELECT channel_name, ready, scheduled, running, dead FROM mq_stats ORDER BY 1;
CREATE VIEW totals AS SELECT channel_name, handled, failed, died FROM mq_stats ORDER BY 1;

-- A row for each channel that has a handler, a pause, a message.
CREATE FUNCTION handle(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  CASE message.name
    WHEN 'fail' THEN RAISE EXCEPTION 'failed';
    WHEN 'snooze' THEN PERFORM mq_snooze('1 hour');
    WHEN 'discard' THEN PERFORM mq_discard('unwanted');
    WHEN 'conflict' THEN RAISE EXCEPTION SQLSTATE '40001';
    WHEN 'delete' THEN PERFORM mq_delete(ARRAY[message.id]);
    ELSE NULL;
  END CASE;
END $$;
SELECT mq_register_handler('handled', 'handle(mq_message)');
SELECT mq_pause('paused');
SELECT mq_send('sent') IS NOT NULL AS sent;
SELECT channel_name, ready, scheduled, running, dead, paused, oldest_ready >= '0' AS oldest, handled, failed, died,
       handle_p50, handle_p95, handle_p99, wait_p50, wait_p95, wait_p99 FROM mq_stats ORDER BY 1;
SELECT mq_resume('paused'), mq_clear_all();

-- Ready and scheduled.
SELECT count(mq_send('due')), count(mq_send('later', delay => '1 hour')),
       count(mq_send('two-phase', commit_interval => '1 hour', id => md5(i::text)::uuid)) FROM generate_series(1, 3) i;
SELECT mq_send('later', delay => '0 s') IS NOT NULL AS sent;
TABLE pending;
SELECT channel_name, oldest_ready FROM mq_stats WHERE channel_name IN ('two-phase', 'handled');
SELECT cardinality(mq_commit(ARRAY[md5('1')::uuid]));
UPDATE mq_msgs SET attempt_at = now() - interval '3 hours' WHERE channel_name = 'due';
SELECT channel_name, ready, scheduled, oldest_ready BETWEEN '3 hours' AND '4 hours' AS hours FROM mq_stats
 WHERE channel_name IN ('due', 'two-phase') ORDER BY 1;
-- Two-phase messages that have expired are nothing but the sweep's.
UPDATE mq_msgs SET attempt_at = now() - interval '1 second' WHERE commit_interval IS NOT NULL;
SELECT * FROM pending WHERE channel_name = 'two-phase';
SELECT mq_clear_all();

-- Ordered: what is behind a head that is not due cannot be handled either, nor what is behind a later one.
SELECT count(mq_send('ready', ordered => true)) FROM generate_series(1, 5);
SELECT mq_send('ready', ordered => true, delay => '1 hour') IS NOT NULL AS sent;
SELECT count(mq_send('ready', ordered => true)) FROM generate_series(1, 2);
SELECT mq_send('waiting', ordered => true, delay => '1 hour') IS NOT NULL AS sent;
SELECT count(mq_send('waiting', ordered => true)) FROM generate_series(1, 3);
SELECT count(mq_send('waiting', NULL, 'x', 'another', ordered => true)) FROM generate_series(1, 2);
TABLE pending;
SELECT mq_clear_all();
-- A dead message that blocks counts as dead alone.
SELECT mq_register_handler('block', 'handle(mq_message)', on_dead => 'block');
SELECT mq_send('block', NULL, 'fail', ordered => true, retries => 0) IS NOT NULL AS sent;
SELECT count(mq_send('block', NULL, ordered => true)) FROM generate_series(1, 3);
CALL mq_run();
SELECT * FROM pending WHERE channel_name = 'block';
SELECT mq_redrive(retries => 1);
SELECT * FROM pending WHERE channel_name = 'block';
SELECT mq_clear_all(), mq_unregister_handler('block');
-- One that waits for its retry holds the others up.
SELECT mq_send('handled', NULL, 'fail', ordered => true, retry_backoff => '1 hour') IS NOT NULL AS sent;
SELECT count(mq_send('handled', NULL, ordered => true)) FROM generate_series(1, 3);
CALL mq_run();
SELECT * FROM pending WHERE channel_name = 'handled';
SELECT mq_clear_all();

-- Running: leased to a consumer outside, until the lease is over.
SELECT count(mq_send('polled', NULL, i::text, retries => i)) FROM generate_series(0, 3) i;
SELECT count(*) FROM mq_poll('{polled}', 3);
SELECT * FROM pending WHERE channel_name = 'polled';
UPDATE mq_msgs SET attempt_at = now() - interval '1 second' WHERE lease IS NOT NULL;
-- The one that had no retry is about to be dead; the others come again.
SELECT * FROM pending WHERE channel_name = 'polled';
SELECT count(*) FROM mq_poll('{polled}', 10);
SELECT * FROM pending WHERE channel_name = 'polled';
-- Behind a leased head others wait.
SELECT count(mq_send('chain', ordered => true)) FROM generate_series(1, 4);
SELECT count(*) FROM mq_poll('{chain}', 10);
SELECT * FROM pending WHERE channel_name = 'chain';
-- A handler that failed leaves nothing running, whoever had polled the message before.
SELECT mq_send('handled', NULL, 'fail', retry_backoff => '1 hour') IS NOT NULL AS sent;
SELECT count(*) FROM mq_poll('{handled}', 1);
UPDATE mq_msgs SET attempt_at = now() WHERE channel_name = 'handled';
CALL mq_run();
SELECT * FROM pending WHERE channel_name = 'handled';
SELECT mq_clear_all(), mq_reset_stats();
TRUNCATE mq_dead, mq_failures;

-- Totals: handled, failed, dead. Snoozed and discarded ones were not handled; what its handler deletes
-- has been handled. A conflict counts when it is charged, the tries before do not.
SELECT count(mq_send('handled', NULL, name, retries => 1, retry_backoff => '0'))
  FROM unnest('{ok,ok,ok,fail,snooze,discard,delete}'::text[]) AS name;
CALL mq_run();
SELECT * FROM totals;
SELECT mq_clear_all();
SELECT mq_send('handled', NULL, 'conflict', retries => 0) IS NOT NULL AS sent;
CALL mq_run();
SELECT * FROM totals;
-- Dead by the sweep; dead and redriven.
SELECT mq_send('outside', retries => 0) IS NOT NULL AS sent;
SELECT count(*) FROM mq_poll('{outside}', 1);
UPDATE mq_msgs SET attempt_at = now();
CALL mq_run();
SELECT * FROM totals WHERE channel_name = 'outside';
SELECT mq_redrive(channel_name => 'outside');
SELECT ready, dead, died FROM mq_stats WHERE channel_name = 'outside';
-- mq_delete: what was leased has been handled outside, what was not has been given up.
SELECT count(mq_send('outside')) FROM generate_series(1, 4);
SELECT count(*) FROM mq_poll('{outside}', 2);
SELECT mq_delete(array_agg(id)) FROM mq_msgs;
SELECT * FROM totals WHERE channel_name = 'outside';
-- Rolled back: nothing has happened.
SELECT count(mq_send('handled')) FROM generate_series(1, 3);
BEGIN;
CALL mq_run();
SELECT handled FROM totals WHERE channel_name = 'handled';
ROLLBACK;
SELECT handled FROM totals WHERE channel_name = 'handled';
BEGIN;
SAVEPOINT s;
CALL mq_run();
ROLLBACK TO s;
COMMIT;
SELECT handled FROM totals WHERE channel_name = 'handled';
SELECT * FROM pending WHERE channel_name = 'handled';
CALL mq_run();
SELECT handled FROM totals WHERE channel_name = 'handled';

-- What transactions add is rolled up into one row a channel, which changes nothing for who looks.
CREATE TEMP TABLE before AS SELECT * FROM mq_stats;
SELECT count(mq_send('handled')) FROM generate_series(1, 3);
CALL mq_run(max_messages => 1);
CALL mq_run(max_messages => 1);
CALL mq_run();
CALL mq_run();
SELECT (SELECT count(*) FROM mq_stats_deltas) AS appended, count(*) AS rolled, count(DISTINCT channel_name) AS channels FROM mq_stats_totals;
SELECT s.handled - b.handled AS handled, s.failed - b.failed AS failed, s.died - b.died AS died
  FROM mq_stats s JOIN before b USING (channel_name) WHERE channel_name = 'handled';
-- Reset: with the transaction, or not.
BEGIN;
SELECT mq_reset_stats();
SELECT * FROM totals;
ROLLBACK;
SELECT count(*) > 0 AS kept FROM totals WHERE handled > 0;
SELECT mq_reset_stats();
SELECT mq_send('handled') IS NOT NULL AS sent;
CALL mq_run();
SELECT * FROM totals;
CALL mq_run();
SELECT channel_name, handled FROM mq_stats_totals;
DROP TABLE before;

-- Times: how long the handler took, and how long the message had been due.
CREATE FUNCTION handle_slowly(jsonb) RETURNS void LANGUAGE sql AS $$ SELECT pg_sleep(0.02) $$;
CREATE FUNCTION handle_batch(mq_message[]) RETURNS void LANGUAGE sql AS $$ SELECT pg_sleep(0.2) $$;
SELECT mq_register_handler('slow', 'handle_slowly(jsonb)'), mq_register_handler('batch', 'handle_batch(mq_message[])');
SELECT count(mq_send('slow')), count(mq_send('batch')) FROM generate_series(1, 20);
UPDATE mq_msgs SET attempt_at = now() - CASE WHEN channel_name = 'slow' THEN interval '1 hour' ELSE '1 day' END;
CALL mq_run('{batch}');
CALL mq_run('{slow}');
SELECT channel_name, handled, handle_p50 >= '17 ms' AS slow, handle_p50 <= handle_p95 AND handle_p95 <= handle_p99 AS ascending,
       wait_p50 BETWEEN '50 min' AND '70 min' AS an_hour FROM mq_stats WHERE channel_name = 'slow';
-- The time of a batch is divided among its messages.
SELECT channel_name, handled, handle_p99 BETWEEN '8 ms' AND '150 ms' AS divided, wait_p95 BETWEEN '21 hours' AND '27 hours' AS a_day
  FROM mq_stats WHERE channel_name = 'batch';
SELECT mq_unregister_handler('slow'), mq_unregister_handler('batch'), mq_reset_stats();

-- Large channels. The second look rests on what the first one counted.
CREATE FUNCTION pg_temp.agree() RETURNS TABLE (channel_name text, ready bigint, scheduled bigint, dead bigint, agrees boolean)
  LANGUAGE sql AS $$
  SELECT s.channel_name, s.ready, s.scheduled, s.dead,
         s.ready = (SELECT count(*) FROM mq_msgs m WHERE m.channel_name = s.channel_name AND m.attempt_at <= clock_timestamp())
         AND s.scheduled = (SELECT count(*) FROM mq_msgs m WHERE m.channel_name = s.channel_name AND m.attempt_at > clock_timestamp())
         AND s.dead = (SELECT count(*) FROM mq_dead d WHERE d.channel_name = s.channel_name)
    FROM mq_stats s WHERE s.channel_name LIKE 'large%' ORDER BY 1
$$;
SELECT count(*) FROM mq_send_many('large', array_fill('1'::jsonb, ARRAY[1000]));
SELECT count(*) FROM mq_send_many('large', array_fill('1'::jsonb, ARRAY[100]), delay => '1 hour');
SELECT count(*) FROM mq_send_many('large later', array_fill('1'::jsonb, ARRAY[1000]), delay => '1 hour');
SELECT count(*) FROM mq_send_many('large later', array_fill('1'::jsonb, ARRAY[10]));
SELECT count(*) FROM mq_send_many('large both', array_fill('1'::jsonb, ARRAY[1000]), delay => '1 hour');
SELECT count(*) FROM mq_send_many('large both', array_fill('1'::jsonb, ARRAY[1000]));
SELECT * FROM pg_temp.agree();
SELECT * FROM pg_temp.agree();
-- Sent and deleted, one by one, in bulk, in part, and not at all.
SELECT count(mq_send('large')), count(mq_send('large later', delay => '1 hour')) FROM generate_series(1, 7);
SELECT mq_delete(ARRAY(SELECT id FROM mq_msgs WHERE channel_name = 'large' ORDER BY seq LIMIT 20));
SELECT * FROM pg_temp.agree();
BEGIN;
SELECT count(mq_send('large')) FROM generate_series(1, 5);
SAVEPOINT a;
SELECT count(mq_send('large')) FROM generate_series(1, 50);
SAVEPOINT b;
SELECT mq_delete(ARRAY(SELECT id FROM mq_msgs WHERE channel_name = 'large' ORDER BY seq LIMIT 500));
RELEASE b;
ROLLBACK TO a;
SAVEPOINT c;
SELECT mq_delete(ARRAY(SELECT id FROM mq_msgs WHERE channel_name = 'large' ORDER BY seq LIMIT 3));
RELEASE c;
-- One's own changes show.
SELECT * FROM pg_temp.agree() WHERE channel_name = 'large';
COMMIT;
SELECT * FROM pg_temp.agree() WHERE channel_name = 'large';
BEGIN;
SELECT count(*) FROM mq_send_many('large', array_fill('1'::jsonb, ARRAY[1000]));
ROLLBACK;
SELECT * FROM pg_temp.agree() WHERE channel_name = 'large';
-- Handled, failed, dead.
SELECT mq_register_handler('large', 'handle(mq_message)');
CALL mq_run(max_messages => 300);
SELECT * FROM pg_temp.agree() WHERE channel_name = 'large';
SELECT count(*) FROM mq_send_many('large dead', array_fill('1'::jsonb, ARRAY[500]), name => 'discard');
SELECT mq_register_handler('large dead', 'handle(mq_message)');
SELECT * FROM pg_temp.agree() WHERE channel_name = 'large dead';
CALL mq_run('{large dead}', 250);
SELECT * FROM pg_temp.agree() WHERE channel_name = 'large dead';
CALL mq_run('{large dead}');
SELECT * FROM pg_temp.agree() WHERE channel_name = 'large dead';
SELECT mq_unregister_handler('large'), mq_unregister_handler('large dead');
SELECT mq_redrive(ARRAY(SELECT id FROM mq_dead LIMIT 100));
SELECT * FROM pg_temp.agree() WHERE channel_name = 'large dead';
-- By hand: noticed, and counted again.
DELETE FROM mq_msgs WHERE id IN (SELECT id FROM mq_msgs WHERE channel_name = 'large' ORDER BY seq LIMIT 100);
DELETE FROM mq_dead WHERE id IN (SELECT id FROM mq_dead ORDER BY dead_no LIMIT 10);
SELECT * FROM pg_temp.agree();
WITH gone AS (DELETE FROM mq_msgs WHERE id IN (SELECT id FROM mq_msgs WHERE channel_name = 'large later' ORDER BY seq LIMIT 100) RETURNING 1)
  SELECT count(*) FROM gone;
SELECT * FROM pg_temp.agree() WHERE channel_name = 'large later';
BEGIN;
DELETE FROM mq_msgs WHERE channel_name = 'large later';
SELECT * FROM pg_temp.agree() WHERE channel_name = 'large later';
ROLLBACK;
SELECT * FROM pg_temp.agree() WHERE channel_name = 'large later';
COPY mq_dead (id, died_at, channel_name, channel_args, ordered, attempts_made, reason, retry_backoff, channel_key) FROM stdin;
00000000-0000-0000-0000-000000000001	2100-01-01	large dead		f	1	exhausted	1 s	0
\.
SELECT * FROM pg_temp.agree() WHERE channel_name = 'large dead';
TRUNCATE mq_dead;
SELECT * FROM pg_temp.agree() WHERE channel_name = 'large dead';
UPDATE mq_msgs SET channel_name = 'large renamed', channel_key = mq_channel_key('large renamed', '') WHERE channel_name = 'large both';
SELECT * FROM pg_temp.agree() WHERE channel_name IN ('large both', 'large renamed');
-- By somebody's trigger on our table.
CREATE FUNCTION forget_another() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
BEGIN
  DELETE FROM mq_msgs WHERE id IN (SELECT id FROM mq_msgs WHERE channel_name = 'large' LIMIT 50);
  RETURN NULL;
END $$;
CREATE TRIGGER forget_another AFTER INSERT ON mq_msgs EXECUTE FUNCTION forget_another();
SELECT mq_send('large') IS NOT NULL AS sent;
DROP TRIGGER forget_another ON mq_msgs;
DROP FUNCTION forget_another();
SELECT * FROM pg_temp.agree() WHERE channel_name = 'large';
-- Cleared: one channel, all.
SELECT mq_clear('{large renamed}');
SELECT * FROM pg_temp.agree();
SELECT count(*) FROM mq_send_many('large', array_fill('1'::jsonb, ARRAY[300]));
SELECT mq_clear_all();
SELECT * FROM pg_temp.agree();

-- Large ordered channels.
SELECT count(*) FROM mq_send_many('large chain', array_fill('1'::jsonb, ARRAY[500]), ordered => true);
SELECT count(*) FROM mq_send_many('large chain', array_fill('1'::jsonb, ARRAY[50]), channel_args => 'later', delay => '1 hour', ordered => true);
SELECT * FROM pg_temp.agree();
SELECT count(mq_send('large chain', ordered => true)), count(mq_send('large chain', channel_args => 'later', ordered => true))
  FROM generate_series(1, 7);
SELECT * FROM pending WHERE channel_name = 'large chain';
SELECT mq_register_handler('large chain', 'handle(mq_message)');
CALL mq_run(max_messages => 100);
SELECT * FROM pending WHERE channel_name = 'large chain';
-- Its head fails: the chain waits.
UPDATE mq_payloads SET name = 'fail' WHERE id = (SELECT id FROM mq_msgs WHERE channel_args = '' ORDER BY seq LIMIT 1);
UPDATE mq_msgs SET retry_backoff = '1 hour';
SELECT * FROM pending WHERE channel_name = 'large chain';
CALL mq_run();
SELECT * FROM pending WHERE channel_name = 'large chain';
-- Another chain beside it; then one with delays of its own.
SELECT count(*) FROM mq_send_many('large chain', array_fill('1'::jsonb, ARRAY[300]), channel_args => 'another', ordered => true);
SELECT * FROM pending WHERE channel_name = 'large chain';
SELECT count(mq_send('large chain', channel_args => 'another', delay => '1 hour', ordered => true)) FROM generate_series(1, 30);
SELECT count(mq_send('large chain', channel_args => 'another', ordered => true)) FROM generate_series(1, 3);
SELECT * FROM pending WHERE channel_name = 'large chain';

SELECT mq_clear_all(), mq_reset_stats(), mq_unregister_handler('large chain'), mq_unregister_handler('handled');
SELECT * FROM mq_stats;

-- A dead message that blocks counts as dead alone also where it is not the head: here what it waits for is dead.
SELECT mq_register_handler('block', 'handle(mq_message)', on_dead => 'block');
SELECT mq_send('gone', id => md5('gone')::uuid) IS NOT NULL AS sent;
SELECT count(*) FROM mq_cancel(ARRAY[md5('gone')::uuid]);
SELECT mq_send('block', ordered => true) IS NOT NULL AND mq_send('block', channel_args => 'later', ordered => true, delay => '1 hour') IS NOT NULL AS sent;
SELECT count(mq_send('block', channel_args => a, ordered => true, after => ARRAY[md5('gone')::uuid])) FROM unnest('{"",later}'::text[]) a;
SELECT * FROM pending WHERE channel_name = 'block';
SELECT count(mq_send('block', channel_args => a, ordered => true)) FROM unnest('{"",later}'::text[]) a;
SELECT * FROM pending WHERE channel_name = 'block';
-- The sum of a large one; then what commits add to it.
SELECT count(*) FROM mq_send_many('block', array_fill('1'::jsonb, ARRAY[300]), channel_args => 'later', ordered => true);
SELECT * FROM pending WHERE channel_name = 'block';
SELECT count(*) FROM mq_send_many('block', array_fill('1'::jsonb, ARRAY[300]), channel_args => 'another', ordered => true);
SELECT mq_send('block', ordered => true) IS NOT NULL AS sent;
SELECT * FROM pending WHERE channel_name = 'block';
SELECT mq_clear_all();
DELETE FROM mq_dead;
-- One that dies behind due ones when their sum is known.
SELECT mq_unregister_handler('block'), mq_register_handler('behind', 'handle(mq_message)', on_dead => 'block');
SELECT count(*) FROM mq_send_many('behind', array_fill('1'::jsonb, ARRAY[300]), ordered => true);
SELECT mq_send('behind', ordered => true, expires => '1 s') IS NOT NULL AND mq_send('behind', ordered => true) IS NOT NULL AS sent;
SELECT count(*) FROM pending WHERE channel_name = 'behind';
SELECT pg_sleep(1.1);
SELECT mq_pause('behind');
CALL mq_run();
SELECT mq_resume('behind');
SELECT reason FROM mq_dead;
SELECT * FROM pending WHERE channel_name = 'behind';
CALL mq_run(max_messages => 100);
SELECT * FROM pending WHERE channel_name = 'behind';
SELECT mq_clear_all(), mq_unregister_handler('behind');
DELETE FROM mq_dead;
SELECT mq_reset_stats();

-- A reset that meets several rows of a name, which come of roll-ups beside each other: nothing of them comes back.
INSERT INTO mq_stats_totals SELECT 'twice', n, 0, 0, '{}', '{}' FROM unnest('{5,7}'::int[]) n;
SELECT handled FROM mq_stats WHERE channel_name = 'twice';
SELECT mq_reset_stats();
CALL mq_run();
SELECT (SELECT count(*) FROM mq_stats_totals WHERE channel_name = 'twice') AS rows, (SELECT count(*) FROM mq_stats_deltas) AS more, (SELECT count(*) FROM mq_stats) AS shown;
DROP VIEW pending, totals;
DROP FUNCTION handle(mq_message), handle_slowly(jsonb), handle_batch(mq_message[]);
DROP EXTENSION mq;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
