--
-- mq_redrive by the time of death, in steps; and how dead letters and failures are forgotten.
--
-- Workers stay out of this database.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;

CREATE FUNCTION pg_temp.id(n int) RETURNS uuid LANGUAGE sql AS $$ SELECT lpad(n::text, 32, '0')::uuid $$;
-- A dead letter.
CREATE FUNCTION pg_temp.dead_letter(n int, channel text, died timestamptz, key text DEFAULT NULL) RETURNS void LANGUAGE sql AS $$
  INSERT INTO mq_dead (id, created_at, died_at, channel_name, channel_args, name, payload_json, payload_bytes, ordered, attempts_made,
                       reason, retry_backoff, channel_key, dedup_key)
  VALUES (pg_temp.id(n), died - interval '1 day', died, channel, '', 'job', to_jsonb(n), '\x01', true, 5, 'exhausted', '1 s',
          mq_channel_key(channel, ''), key)
$$;
-- What was sent again, in the order of the channels; what is left.
CREATE FUNCTION pg_temp.sent() RETURNS text LANGUAGE sql AS $$
  SELECT string_agg(payload_json::text, ' ' ORDER BY seq) FROM mq_msgs JOIN mq_payloads USING (id)
$$;
CREATE FUNCTION pg_temp.dead() RETURNS text LANGUAGE sql AS $$ SELECT string_agg(payload_json::text, ' ' ORDER BY dead_no) FROM mq_dead $$;

-- From died_after on, and before died_before; together with the others.
SELECT pg_temp.dead_letter(n, CASE WHEN n % 2 = 0 THEN 'even' ELSE 'odd' END, timestamptz '2024-01-01 00:00+00' + n * interval '1 day')
  FROM generate_series(1, 12) AS n;
SELECT mq_redrive(died_after => '2024-01-12 00:00+00'), pg_temp.sent(), pg_temp.dead();
SELECT mq_redrive(died_before => '2024-01-03 00:00+00'), pg_temp.sent(), pg_temp.dead();
SELECT mq_redrive(died_after => '2024-01-04 00:00+00', died_before => '2024-01-05 00:00+00'), pg_temp.sent(), pg_temp.dead();
SELECT mq_redrive(died_after => '2024-01-05 00:00+00', died_before => '2024-01-05 00:00+00') AS none,
       mq_redrive(died_after => '2024-01-20 00:00+00') AS none, mq_redrive(died_before => '-infinity') AS none;
SELECT mq_redrive(channel_name => 'even', died_before => '2024-01-08 00:00+00'), pg_temp.sent(), pg_temp.dead();
SELECT mq_redrive(ARRAY[pg_temp.id(5), pg_temp.id(10)], 'even', 7, '2024-01-07 00:00+00', '2024-01-30 00:00+00'), pg_temp.sent(), pg_temp.dead();
SELECT attempts, expires_at FROM mq_msgs WHERE id = pg_temp.id(10);
-- None given: all, in the order in which they died, with what they had.
SELECT mq_clear_all();
SELECT mq_redrive(), pg_temp.sent(), pg_temp.dead();
SELECT DISTINCT name, payload_bytes, attempts, attempt, retry_backoff, ordered FROM
  (SELECT p.name, p.payload_bytes, m.attempts, m.attempt, m.retry_backoff, m.after_message_id IS NOT NULL AS ordered
     FROM mq_msgs m JOIN mq_payloads p USING (id)) AS sent;
SELECT mq_clear_all();

-- More than a step takes; some of them with keys, some of which are taken, some with the
-- id of another or of a message that is pending.
SELECT count(pg_temp.dead_letter(n, 'many', now(), CASE WHEN n % 500 = 0 THEN 'key ' || n % 1500 END)) FROM generate_series(1, 20100) AS n;
SELECT count(pg_temp.dead_letter(n, 'many', now())) FROM generate_series(20100, 20101) AS n;
SELECT mq_send('many', id => pg_temp.id(3), ordered => true);
SELECT mq_send('many', dedup_key => 'key 500', ordered => true, id => pg_temp.id(99999));
SELECT mq_redrive();
SELECT string_agg(payload_json::text, ' ') FROM (SELECT payload_json FROM mq_dead WHERE dedup_key IS NULL ORDER BY dead_no) AS left_behind;
SELECT count(*), count(*) FILTER (WHERE payload_json IN ('1000', '1500')) AS first_ones FROM mq_dead WHERE dedup_key IS NOT NULL;
SELECT count(*) AS messages, count(dedup_key) AS with_key FROM mq_msgs;
SELECT count(*) AS out_of_order FROM (SELECT payload_json::int - lag(payload_json::int) OVER (ORDER BY seq) AS step
                                        FROM mq_msgs JOIN mq_payloads USING (id)) AS s WHERE step <= 0;
SELECT count(*) AS badly_linked FROM (SELECT after_message_id = lag(id, 1, '00000000-0000-0000-0000-000000000000') OVER (ORDER BY seq) AS linked
                                        FROM mq_msgs) AS l WHERE NOT linked;
SELECT mq_clear_all();
TRUNCATE mq_dead;

-- What a row that blocks its channel still holds is replaced by what its dead letter has: without a key, with a key, and
-- where the dead letter is not ordered.
SELECT pg_temp.dead_letter(1, 'work', now()), pg_temp.dead_letter(2, 'keys', now(), 'k'), pg_temp.dead_letter(3, 'unordered', now());
UPDATE mq_dead SET ordered = false WHERE id = pg_temp.id(3);
INSERT INTO mq_msgs (id, attempt_at, attempts, channel_name, channel_args, channel_key, message_name, message_json)
  SELECT d.id, NULL, 0, d.channel_name, '', d.channel_key, 'left', '"left"' FROM mq_dead AS d ORDER BY d.dead_no;
SELECT count(*) FROM mq_payloads;
SELECT mq_redrive(), pg_temp.sent(), pg_temp.dead();
SELECT name, payload_bytes, count(*) FROM mq_payloads GROUP BY 1, 2;
SELECT channel_name, attempts, attempt, dedup_key, after_message_id FROM mq_msgs ORDER BY seq;
SELECT mq_clear_all();

-- headers, priority and keep go into the dead letter and come back from there: without a key, with a key, for a message
-- that its channel waits for, whose row has no headers and no keep meanwhile, and where a trigger asks for an INSERT.
CREATE FUNCTION fail(mq_message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
CREATE FUNCTION let() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
SELECT mq_register_handler('skips', 'fail(mq_message)'), mq_register_handler('blocks', 'fail(mq_message)', on_dead => 'block');
\set given 'right(id::text, 1) AS n, priority, keep, headers ->> ''n'' AS header, length(headers ->> ''large'') AS length FROM'
SELECT count(*) FROM (SELECT mq_send('skips', id => pg_temp.id(1), retries => 0), mq_send('skips', id => pg_temp.id(2), retries => 0, dedup_key => 'k'),
  mq_send('blocks', id => pg_temp.id(3), retries => 0, ordered => true), mq_send('skips', id => pg_temp.id(4), retries => 0)) AS sent;
UPDATE mq_msgs SET priority = CASE WHEN after_message_id IS NULL THEN -1000 ELSE 0 END, keep = '1 day', due_at = now(),
                   headers = jsonb_build_object('n', right(id::text, 1), 'large', (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 500) AS n))
 WHERE id <> pg_temp.id(4);
SELECT :given mq_msgs ORDER BY id;
CALL mq_run();
SELECT :given mq_dead ORDER BY id;
SELECT due_at, :given mq_msgs ORDER BY id;
SELECT mq_redrive(retries => 0);
SELECT due_at, :given mq_msgs ORDER BY id;
CALL mq_run();
CREATE TRIGGER let BEFORE INSERT ON mq_msgs FOR EACH ROW EXECUTE FUNCTION let();
SELECT mq_redrive();
DROP TRIGGER let ON mq_msgs;
SELECT :given mq_msgs ORDER BY id;
SELECT mq_clear_all();
SELECT mq_unregister_handler('skips'), mq_unregister_handler('blocks');
DROP FUNCTION fail(mq_message), let();
TRUNCATE mq_failures;

-- Rolled back: nothing was sent, and the letters are there.
SELECT pg_temp.dead_letter(1, 'work', now()), pg_temp.dead_letter(2, 'work', now(), 'k');
BEGIN;
SELECT mq_redrive();
ROLLBACK;
SELECT pg_temp.sent(), pg_temp.dead();
TRUNCATE mq_dead;

-- What is older than its retention is forgotten in bounded steps, of a transaction each.
CREATE TABLE steps (transaction bigint DEFAULT txid_current(), of_table text, rows bigint);
CREATE FUNCTION note_step() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
BEGIN
  INSERT INTO steps (of_table, rows) SELECT TG_TABLE_NAME, count(*) FROM gone HAVING count(*) > 0;
  RETURN NULL;
END $$;
CREATE TRIGGER step AFTER DELETE ON mq_dead REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION note_step();
CREATE TRIGGER step AFTER DELETE ON mq_failures REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION note_step();
SELECT count(pg_temp.dead_letter(n, 'work', now() - CASE WHEN n <= 1100 THEN interval '31 days' ELSE '29 days' END)) FROM generate_series(1, 1110) AS n;
INSERT INTO mq_failures (message_id, attempt, failed_at, channel_name, channel_args, sqlstate, error, channel_key)
  SELECT gen_random_uuid(), 1, now() - CASE WHEN n <= 700 THEN interval '8 days' ELSE '6 days' END, 'work', '', 'XX000', 'error',
         mq_channel_key('work', '') FROM generate_series(1, 710) AS n;
ALTER SYSTEM SET mq.dead_retention = -1;
ALTER SYSTEM SET mq.failure_retention = -1;
SELECT pg_reload_conf();
\c
CALL mq_run();
SELECT (SELECT count(*) FROM mq_dead) AS dead, (SELECT count(*) FROM mq_failures) AS failures;
ALTER SYSTEM RESET mq.dead_retention;
ALTER SYSTEM RESET mq.failure_retention;
SELECT pg_reload_conf();
\c
CALL mq_run();
SELECT (SELECT count(*) FROM mq_dead) AS dead, (SELECT count(*) FROM mq_failures) AS failures;
SELECT of_table, rows, count(DISTINCT transaction) FROM steps GROUP BY of_table, rows ORDER BY of_table, rows;
DROP TRIGGER step ON mq_dead;
DROP TRIGGER step ON mq_failures;
DROP FUNCTION note_step();
DROP TABLE steps;

DROP EXTENSION mq;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
