--
-- Leased mode through mq_run, in the caller's session: the claim is committed first, the handler runs in transactions of
-- its own, and what it did stays if it says so.
--
-- Workers stay out.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION mq;
CREATE TABLE handled (n serial, what text, attempt int);
CREATE FUNCTION take(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO handled (what, attempt) VALUES (m.payload_json ->> 'do', m.attempt);
  CASE m.payload_json ->> 'do'
    WHEN 'see' THEN
      INSERT INTO handled (what) SELECT concat_ws(' ', attempts, attempt, lease > 0, attempt_at > now()) FROM mq_msgs WHERE id = m.id;
    WHEN 'snooze' THEN IF m.attempt = 1 THEN PERFORM mq_snooze('1 hour'); END IF;
    WHEN 'discard' THEN PERFORM mq_discard('unwanted');
    WHEN 'fail' THEN RAISE 'no' USING detail = 'detail', hint = 'hint';
    WHEN 'set' THEN PERFORM set_config('work_mem', '1MB', false);
    WHEN 'sleep' THEN PERFORM pg_sleep(60);
    WHEN 'elsewhere' THEN PERFORM mq_snooze('1 s', '00000000-0000-0000-0000-000000000009');
    ELSE NULL;
  END CASE;
END $$;
SELECT mq_register_handler('work', 'take(mq_message)', mode => 'leased', timeout => '0.9 s');
CREATE FUNCTION pg_temp.state() RETURNS TABLE (messages text, took text) LANGUAGE sql AS $$
  SELECT (SELECT string_agg(concat_ws(' ', p.payload_json ->> 'do', m.attempts, m.attempt, m.lease, CASE WHEN m.attempt_at > now() + '50 minutes' THEN 'later' END), ', ' ORDER BY m.seq) FROM mq_msgs m JOIN mq_payloads p USING (id)),
         (SELECT string_agg(concat_ws(' ', what, attempt), ', ' ORDER BY n) FROM handled) $$;

-- While it runs the message is leased, and the attempt charged.
SELECT count(mq_send('work', '{"do": "see"}'));
CALL mq_run();
SELECT * FROM pg_temp.state();
TRUNCATE handled;

-- Its token is nobody else's, though the sequence that it is drawn from was set back: 'other' goes on.
SELECT mq_send('unhandled', '{"do": "other"}', id => '00000000-0000-0000-0000-00000000000a');
SELECT setval('mq_msgs_seq', 5000);
UPDATE mq_msgs SET lease = 4001, attempt_at = now() + interval '1 day';
SELECT setval('mq_msgs_seq', 3999);
SELECT count(mq_send('work', '{"do": "nothing"}'));
CALL mq_run();
SELECT * FROM pg_temp.state();
SELECT mq_delete('{00000000-0000-0000-0000-00000000000a}');
TRUNCATE handled;

-- Outcomes. What a failed handler wrote is gone, and charged once.
SELECT count(mq_send('work', format('{"do": "%s"}', what)::jsonb, retry_backoff => '1 hour'))
  FROM unnest('{snooze,discard,set,fail,elsewhere}'::text[]) AS what;
CALL mq_run();
SELECT * FROM pg_temp.state();
SHOW work_mem;
SELECT payload_json ->> 'do' AS what, reason, error, attempts_made FROM mq_dead;
SELECT attempt, sqlstate, error, detail, hint, context ~ 'take' AS context FROM mq_failures ORDER BY failure_no;
SELECT mq_clear_all();
TRUNCATE handled, mq_dead, mq_failures;

-- A time limit; the last attempt. What no handler takes waits (unhandled.sql).
SELECT mq_register_handler('names', 'take(mq_message)', 'known', mode => 'leased');
SELECT count(mq_send('work', '{"do": "sleep"}', retries => 0)), count(mq_send('names', '{}', 'unknown', retries => 0));
CALL mq_run();
SELECT channel_name, reason, sqlstate, error FROM mq_dead ORDER BY channel_name;
SELECT mq_clear('{names}');
TRUNCATE handled, mq_dead, mq_failures;

-- Order, max_messages, and the channels that are named.
SELECT count(mq_send('work', format('{"do": "%s"}', i)::jsonb, ordered => true)) FROM generate_series(1, 4) AS i;
CALL mq_run('{names}');
CALL mq_run(max_messages => 2);
SELECT * FROM pg_temp.state();
CALL mq_run('{work}');
SELECT * FROM pg_temp.state();
TRUNCATE handled;

-- A leased call counts when it is settled, which comes before the next batch.
CREATE FUNCTION pass_on(payload jsonb) RETURNS void LANGUAGE sql AS $$ SELECT mq_send('plain', payload) $$;
CREATE FUNCTION take_plain(payload jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO handled (what) VALUES ('plain') $$;
SELECT mq_register_handler('pass', 'pass_on(jsonb)', mode => 'leased'), mq_register_handler('plain', 'take_plain(jsonb)');
SELECT count(mq_send('pass', '{}'));
CALL mq_run(max_messages => 1);
SELECT channel_name FROM mq_msgs;
CALL mq_run();
SELECT * FROM pg_temp.state();
SELECT count(*) FROM mq_failures;
TRUNCATE handled;

-- Inside a transaction block nothing can be committed first: leased channels are left alone.
SELECT count(mq_send('work', '{"do": "it"}'));
BEGIN;
CALL mq_run();
COMMIT;
SELECT * FROM pg_temp.state();
CALL mq_run();

-- A procedure may commit. When it fails it ends mq_run with its error; the next one goes on from its checkpoint.
CREATE PROCEDURE travel(m mq_message) LANGUAGE plpgsql AS $$
DECLARE r record;
BEGIN
  FOR step IN (m.payload_json ->> 'next')::int .. 3 LOOP
    INSERT INTO handled (what, attempt) VALUES (step, m.attempt);
    IF step = 2 AND m.attempt = 1 THEN
      FOR r IN SELECT 1 / (99 - i) FROM generate_series(1, 100) AS i LOOP NULL; END LOOP;
    END IF;
    PERFORM mq_checkpoint(m.id, '1 minute', jsonb_build_object('next', step + 1)::text, NULL, 0);
    COMMIT;
  END LOOP;
END $$;
SELECT mq_register_handler('travel', 'travel(mq_message)', mode => 'leased');
TRUNCATE handled;
SELECT count(mq_send('travel', '{"next": 1}', retry_backoff => '0'));
CALL mq_run();
SELECT m.attempts, m.attempt, m.lease > 0 AS leased, p.payload_json FROM mq_msgs m JOIN mq_payloads p USING (id);
CALL mq_run();
SELECT * FROM pg_temp.state();
SELECT attempt, sqlstate, error FROM mq_failures;
-- The same from PL/pgSQL, which has a connection of its own around.
SELECT count(mq_send('travel', '{"next": 3}'));
DO $$ DECLARE n bigint; BEGIN CALL mq_run(handled => n); RAISE WARNING '%', n; END $$;
TRUNCATE handled, mq_failures;

-- A batch is one call; one that fails is called one by one, and who is at fault is charged.
CREATE FUNCTION take_batch(ms mq_message[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO handled (what) SELECT string_agg(m.payload_json #>> '{}', '+') FROM unnest(ms) AS m;
  IF 'bad' = ANY (SELECT m.payload_json #>> '{}' FROM unnest(ms) AS m) THEN RAISE 'bad one'; END IF;
  IF array_length(ms, 1) > 1 THEN PERFORM mq_discard('second', ms[2].id); END IF;
END $$;
SELECT mq_register_handler('batch', 'take_batch(mq_message[])', mode => 'leased', batch_size => 3);
SELECT count(mq_send('batch', to_jsonb(what), retries => 0)) FROM unnest('{a,b,c}'::text[]) AS what;
CALL mq_run();
SELECT * FROM pg_temp.state();
SELECT payload_json, reason, error FROM mq_dead;
TRUNCATE handled, mq_dead;
SELECT count(mq_send('batch', to_jsonb(what), retries => 0)) FROM unnest('{a,bad,c}'::text[]) AS what;
CALL mq_run();
SELECT * FROM pg_temp.state();
SELECT payload_json, reason, error, attempts_made FROM mq_dead;
TRUNCATE handled, mq_dead, mq_failures;

-- An error at COMMIT is the handler's.
CREATE TABLE strict (n int UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION defer(p jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO strict VALUES (1), (1) $$;
SELECT mq_register_handler('defer', 'defer(jsonb)', mode => 'leased');
SELECT count(mq_send('defer', retries => 0));
CALL mq_run();
SELECT reason, sqlstate FROM mq_dead;
SELECT count(*) FROM strict;

-- With the session's rights a handler would have more than its role's.
CREATE ROLE regress_mq_leased LOGIN;
GRANT ALL ON SCHEMA public TO regress_mq_leased;
SELECT mq_grant('regress_mq_leased', 'admin');
SET ROLE regress_mq_leased;
CREATE FUNCTION mine(p jsonb) RETURNS void LANGUAGE sql AS $$ SELECT NULL::void $$;
SELECT mq_register_handler('mine', 'mine(jsonb)', mode => 'leased');
SELECT count(mq_send('mine'));
CALL mq_run();
RESET ROLE;
DROP EXTENSION mq CASCADE;
DROP FUNCTION mine(jsonb), defer(jsonb);
DROP TABLE handled, strict;
DROP OWNED BY regress_mq_leased;
DROP ROLE regress_mq_leased;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
