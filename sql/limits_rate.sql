--
-- Rates, and max_running_per_args, in one session: what may begin, what is put off, and what is told of it.
--
-- Workers stay out of this database.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
SET timezone = 'UTC';
SET datestyle = 'ISO';
CREATE EXTENSION mq;

CREATE TABLE begun (n serial, channel text, args text, payload jsonb);
CREATE FUNCTION begin_call(m mq_message) RETURNS void LANGUAGE sql AS $$
  INSERT INTO begun (channel, args, payload) VALUES (m.channel_name, m.channel_args, m.payload_json) $$;
CREATE FUNCTION fail(m mq_message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
CREATE FUNCTION fill(channel text, many int, keys int DEFAULT 1, ordered boolean DEFAULT false) RETURNS bigint LANGUAGE sql AS $$
  SELECT count(mq_send(channel, to_jsonb(n), channel_args => CASE WHEN keys > 1 THEN 'k' || n % keys ELSE '' END, ordered => ordered))
    FROM generate_series(1, many) n $$;
CREATE VIEW pending AS
  SELECT channel_name, channel_args, message_json AS payload, attempt, attempts, lease IS NOT NULL AS leased, throttled_at IS NOT NULL AS put_off,
         attempt_at > now() + interval '10 minutes' AS later
    FROM mq_msgs ORDER BY channel_name, channel_args, message_json;

-- Of the channel name: one call an hour.
SELECT mq_limit('rated', rate => 1, per => '1 hour');
SELECT mq_register_handler('rated', 'begin_call(mq_message)'), mq_register_handler('free', 'begin_call(mq_message)');
SELECT fill('rated', 3), fill('free', 2);
SELECT ready, next_at < now() FROM mq_limits WHERE channel_name = 'rated';
CALL mq_run();
SELECT channel, count(*) FROM begun GROUP BY 1 ORDER BY 1;
SELECT ready, next_at - now() BETWEEN '59 minutes' AND '1 hour' AS in_an_hour, put_off FROM mq_limits WHERE channel_name = 'rated';
SELECT ready, scheduled, throttled FROM mq_stats WHERE channel_name = 'rated';
SELECT mq_why(id) FROM mq_msgs;
SELECT ok, detail FROM mq_health() WHERE "check" = 'calls throttled';
SELECT ok, detail FROM mq_health() WHERE "check" = 'limits kept';
-- Nor do consumers outside get any; no attempt is charged.
SELECT count(*) FROM mq_receive('{rated}', 10);
SELECT count(id), max(wait_time) FROM mq_poll('{rated}', 10);
SELECT * FROM pending;
-- A greater rate counts from the last call; without one the others begin.
SELECT mq_limit('rated', rate => 2, per => '1 hour');
SELECT ready, next_at - now() BETWEEN '29 minutes' AND '31 minutes' AS in_half_an_hour FROM mq_limits WHERE channel_name = 'rated';
CALL mq_run();
SELECT mq_unlimit('rated'), mq_register_handler('rated', 'begin_call(mq_message)');
CALL mq_run();
SELECT ready, throttled FROM mq_stats WHERE channel_name = 'rated';
SELECT mq_clear_all();
TRUNCATE begun RESTART IDENTITY;
-- A fast rate lets a burst begin: what falls into 0.1 s, and one.
SELECT mq_limit('burst', rate => 20, per => '100 seconds'), fill('burst', 10);
SELECT count(*) FROM mq_receive('{burst}', 10);
SELECT mq_limit('fast', rate => 1000, per => '10 seconds'), fill('fast', 20);
SELECT count(*) FROM mq_receive('{fast}', 20);
-- A call that fails has begun.
SELECT mq_limit('fails', rate => 1, per => '1 hour'), mq_register_handler('fails', 'fail(mq_message)'), fill('fails', 3);
CALL mq_run();
SELECT count(*) FROM mq_failures WHERE channel_name = 'fails';
SELECT count(mq_unlimit(channel_name)) FROM mq_limits;
SELECT mq_clear_all(), mq_unregister_handler('fails');

-- Of each channel_args.
SELECT mq_limit('keyed', rate => 1, per => '1 hour', rate_per_args => true);
SELECT mq_register_handler('keyed', 'begin_call(mq_message)');
SELECT fill('keyed', 6, 2);
CALL mq_run();
SELECT args, payload FROM begun ORDER BY args;
SELECT * FROM pending;
SELECT ready, scheduled, throttled FROM mq_stats WHERE channel_name = 'keyed';
SELECT ready, next_at, put_off FROM mq_limits WHERE channel_name = 'keyed';
SELECT regexp_replace(mq_why(id), '(since|until) \d[^,]*\+00', '\1 TIME', 'g') FROM mq_msgs ORDER BY channel_args, message_json;
-- They come back one after another.
SELECT channel_args, array_agg(round(extract(epoch FROM attempt_at - throttled_at) / 3600) ORDER BY attempt_at) FROM mq_msgs GROUP BY 1 ORDER BY 1;
-- One that is put off can be cancelled, deleted, handed on, and expires.
SELECT count(*) FROM mq_cancel(array(SELECT id FROM mq_msgs WHERE channel_args = 'k0' ORDER BY message_json LIMIT 1), 'not wanted');
SELECT mq_send('keyed', '"expires"', channel_args => 'k0', expires => '1 ms') IS NOT NULL AS sent;
SELECT pg_sleep(0.01);
CALL mq_run();
SELECT payload_json, reason, attempts_made FROM mq_dead WHERE channel_name = 'keyed' ORDER BY reason;
-- Another limit makes those due that the last one has put off, as they were.
SELECT mq_limit('keyed', max_pending => 100);
SELECT * FROM pending;
CALL mq_run();
SELECT args, payload FROM begun ORDER BY args, payload;
TRUNCATE begun;
-- A retry asks anew, and is a failed attempt, not one that was put off.
SELECT mq_limit('keyed', rate => 1, per => '1 hour', rate_per_args => true), mq_register_handler('keyed', 'fail(mq_message)');
SELECT mq_send('keyed', '1', channel_args => 'r', retry_backoff => '1 ms') IS NOT NULL AS sent;
CALL mq_run();
SELECT pg_sleep(0.01);
CALL mq_run();
SELECT * FROM pending;
SELECT mq_clear_all(), mq_register_handler('keyed', 'begin_call(mq_message)');
-- An ordered channel waits as a whole, behind its head.
SELECT fill('keyed', 6, 2, true);
CALL mq_run();
SELECT * FROM pending;
SELECT mq_unlimit('keyed');
CALL mq_run();
SELECT args, array_agg(payload ORDER BY n) FROM begun GROUP BY 1 ORDER BY 1;
TRUNCATE begun;

-- At once of each channel_args.
SELECT mq_limit('few', max_running_per_args => 2), fill('few', 10, 2);
SELECT channel_args, count(*) FROM mq_receive('{few}', 100) GROUP BY 1 ORDER BY 1;
SELECT count(*) FROM mq_receive('{few}', 100);
SELECT count(id) FROM mq_poll('{few}', 100);
SELECT * FROM pending;
SELECT put_off FROM mq_limits WHERE channel_name = 'few';
SELECT DISTINCT regexp_replace(mq_why(id), '(since|until) \d[^,]*\+00', '\1 TIME', 'g') FROM mq_msgs WHERE lease IS NULL;
-- As many as end let others begin: acknowledged, given back, deleted.
SELECT count(a) FROM (SELECT lease, array_agg(id) AS ids FROM mq_msgs WHERE channel_args = 'k1' AND lease IS NOT NULL GROUP BY 1) m, mq_ack(ids[:1], lease) a;
SELECT channel_args, payload_json FROM mq_receive('{few}', 100);
SELECT count(a) FROM (SELECT lease, array_agg(id) AS ids FROM mq_msgs WHERE channel_args = 'k0' AND lease IS NOT NULL GROUP BY 1) m, mq_nack(ids[:1], lease, 'no', retry_in => '1 hour') a;
SELECT mq_delete(array(SELECT id FROM mq_msgs WHERE channel_args = 'k0' AND lease IS NOT NULL));
SELECT channel_args, payload_json FROM mq_receive('{few}', 100) ORDER BY 1, 2;
-- Ordered messages are one at a time anyway, and those are not counted.
SELECT mq_send('few', '"ordered"', channel_args => 'k0', ordered => true) IS NOT NULL AS sent;
SELECT payload_json FROM mq_receive('{few}', 100);
-- What a savepoint has received goes with it, for its own transaction as well.
SELECT mq_limit('undone', max_running_per_args => 1), fill('undone', 2);
BEGIN;
SAVEPOINT a;
SELECT payload_json FROM mq_receive('{undone}', 100);
ROLLBACK TO a;
SAVEPOINT b;
SAVEPOINT c;
SELECT payload_json FROM mq_receive('{undone}', 100);
RELEASE c;
ROLLBACK TO b;
SELECT payload_json FROM mq_receive('{undone}', 100);
SELECT payload_json FROM mq_receive('{undone}', 100);
COMMIT;
SELECT payload_json FROM mq_receive('{undone}', 100);
SELECT payload, leased, put_off FROM pending WHERE channel_name = 'undone';
SELECT mq_unlimit('undone'), mq_clear('{undone}');
-- Not in a transaction that is prepared: nobody would know of them any more.
SELECT mq_send('few', '1', channel_args => 'k9') IS NOT NULL AS sent;
BEGIN;
SELECT payload_json FROM mq_receive('{few}', 100);
PREPARE TRANSACTION 'few';
ROLLBACK;
-- A worker handles a batch one after another, so it is not held up by its own.
SELECT mq_clear_all(), mq_limit('few', max_running_per_args => 1), mq_register_handler('few', 'begin_call(mq_message)'), fill('few', 10, 2);
CALL mq_run();
SELECT args, count(*) FROM begun GROUP BY 1 ORDER BY 1;
SELECT mq_unlimit('few'), mq_clear_all();

DROP VIEW pending;
DROP EXTENSION mq CASCADE;
DROP TABLE begun;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
