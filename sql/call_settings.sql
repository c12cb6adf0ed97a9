--
-- What a handler learns of its call from settings: mq.message_id, mq.channel_name, mq.channel_args, mq.attempt and
-- mq.traceparent. Outside of handlers they are empty, and nobody sets them.
--
-- Workers stay out.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION mq;
CREATE VIEW call AS
  SELECT current_setting('mq.message_id') AS id, current_setting('mq.channel_name') AS name, current_setting('mq.channel_args') AS args,
         current_setting('mq.attempt') AS attempt, current_setting('mq.traceparent') AS traceparent;
CREATE TABLE seen (n serial, at text, id text, name text, args text, attempt text, traceparent text);
CREATE FUNCTION look(at text) RETURNS void LANGUAGE sql AS $$ INSERT INTO seen (at, id, name, args, attempt, traceparent) SELECT at, call.* FROM call $$;
CREATE FUNCTION pg_temp.seen() RETURNS TABLE (at text, id text, name text, args text, attempt text, traceparent text) LANGUAGE sql AS $$
  WITH gone AS (DELETE FROM seen RETURNING *) SELECT at, id, name, args, attempt, traceparent FROM gone ORDER BY n $$;

-- Outside.
SELECT * FROM call;
SHOW mq.message_id;
SELECT name, setting, context, vartype, category, short_desc, extra_desc, reset_val, source FROM pg_settings
 WHERE name ~ '^mq\.(message_id|channel_name|channel_args|attempt|traceparent|call)$' ORDER BY name;

-- Transactional: each call of a batch its own, each attempt, and nothing after the call.
CREATE FUNCTION take(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM look('take');
  IF m.attempt = 1 AND m.name = 'again' THEN PERFORM mq_snooze('0'); END IF;
  IF m.attempt = 1 AND m.name = 'fails' THEN RAISE 'no'; END IF;
END $$;
SELECT mq_register_handler('plain', 'take(mq_message)');
SELECT mq_send('plain', id => '00000000-0000-0000-0000-000000000001');
SELECT mq_send('plain', id => '00000000-0000-0000-0000-000000000002', channel_args => E'a\nb:3:''"ä', headers => '{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tenant": 7}');
SELECT mq_send('plain', id => '00000000-0000-0000-0000-000000000003', name => 'fails', retry_backoff => '0', headers => '{"tracestate": "a"}');
CALL mq_run();
SELECT * FROM pg_temp.seen();
SELECT * FROM call;

-- A traceparent that is no string is none; a long one, out of line, is whole.
SELECT count(mq_send('plain', name => 'odd', headers => h))
  FROM unnest('{"{\"traceparent\": 1}", "{\"traceparent\": null}", "{\"traceparent\": [\"a\"]}", "{\"traceparent\": {\"traceparent\": \"a\"}}", "{\"traceparent\": \"\"}", "{}"}'::jsonb[]) AS h;
CALL mq_run();
SELECT DISTINCT traceparent = '' AS none FROM pg_temp.seen();
CREATE FUNCTION take_long(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO seen (at) VALUES (md5(current_setting('mq.traceparent')) = md5(m.headers ->> 'traceparent'));
  PERFORM mq_delete(ARRAY[m.id]);
  INSERT INTO seen (at) VALUES (md5(current_setting('mq.traceparent')) = md5(m.headers ->> 'traceparent'));
END $$;
SELECT mq_register_handler('long', 'take_long(mq_message)');
SELECT count(mq_send('long', headers => jsonb_build_object('traceparent', (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 1000) n))));
CALL mq_run();
SELECT at FROM pg_temp.seen();

-- A handler that takes the payload alone learns of its message from them; so does what it calls, and triggers.
CREATE FUNCTION take_json(j jsonb) RETURNS void LANGUAGE sql AS $$ SELECT look('json') $$;
SELECT mq_register_handler('json', 'take_json(jsonb)');
SELECT mq_send('json', id => '00000000-0000-0000-0000-000000000004', channel_args => 'acme');
CALL mq_run();
SELECT * FROM pg_temp.seen();

-- A batch: what its messages have in common.
CREATE FUNCTION take_all(m mq_message[]) RETURNS void LANGUAGE sql AS $$ SELECT look('of ' || cardinality(m)) $$;
SELECT mq_register_handler('batch', 'take_all(mq_message[])', batch_size => 10);
SELECT mq_send('batch', id => '00000000-0000-0000-0000-000000000005', channel_args => 'acme', headers => '{"traceparent": "t"}');
CALL mq_run();
SELECT count(mq_send('batch', channel_args => 'acme', headers => '{"traceparent": "t"}')) FROM generate_series(1, 2);
CALL mq_run();
SELECT count(mq_send('batch', channel_args => args, headers => jsonb_build_object('traceparent', args))) FROM unnest('{acme,other}'::text[]) AS args;
CALL mq_run();
SELECT * FROM pg_temp.seen();

-- Leased, in the session of mq_run: a function, also when it has settled its message; a procedure, also after its COMMIT.
CREATE FUNCTION lease(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM look('leased');
  PERFORM mq_discard('unwanted');
  PERFORM look('discarded');
END $$;
CREATE PROCEDURE proceed(j jsonb) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM look('procedure');
  PERFORM mq_delete(ARRAY[current_setting('mq.message_id')::uuid]);
  COMMIT;
  PERFORM look('committed');
END $$;
SELECT mq_register_handler('leased', 'lease(mq_message)', mode => 'leased');
SELECT mq_register_handler('procedure', 'proceed(jsonb)', mode => 'leased');
SELECT mq_register_handler('batches', 'take_all(mq_message[])', batch_size => 10, mode => 'leased');
SELECT mq_send('leased', id => '00000000-0000-0000-0000-000000000006', channel_args => 'a', headers => '{"traceparent": "t"}');
CALL mq_run();
SELECT mq_send('procedure', id => '00000000-0000-0000-0000-000000000007', channel_args => 'b', headers => '{"traceparent": "u"}');
CALL mq_run();
SELECT count(mq_send('batches', channel_args => 'c', headers => jsonb_build_object('traceparent', n))) FROM generate_series(1, 2) n;
CALL mq_run();
SELECT * FROM pg_temp.seen();
SELECT * FROM call;

-- Nobody sets them.
SET mq.message_id = 'x';
SET LOCAL mq.channel_args = 'x';
SELECT set_config('mq.attempt', '1', false);
SELECT set_config('mq.traceparent', 'x', true);
RESET mq.channel_name;
ALTER SYSTEM SET mq.message_id = 'x';
ALTER ROLE CURRENT_USER SET mq.channel_args = 'x';
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET mq.channel_args = %L', current_database(), 'x'); END $$;
CREATE FUNCTION pretend() RETURNS text LANGUAGE sql SET mq.channel_args = 'x' AS $$ SELECT current_setting('mq.channel_args') $$;
UPDATE pg_settings SET setting = 'x' WHERE name = 'mq.message_id';
SET mq.call = '1:x';
SELECT set_config('mq.call', '1:x', true);
ALTER ROLE CURRENT_USER SET mq.call = '1:x';
ALTER SYSTEM SET mq.call = '1:x';
SELECT * FROM call;

-- A handler neither, nor does it lose them.
CREATE FUNCTION attack(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  attempt text;
BEGIN
  FOREACH attempt IN ARRAY ARRAY['SET mq.message_id = ''x''', 'SET LOCAL mq.channel_args = ''x''', 'SELECT set_config(''mq.traceparent'', ''x'', true)',
                                 'RESET mq.channel_name', 'RESET ALL', 'DISCARD ALL', 'SET mq.call = ''1:x''', 'CALL mq_run()']
  LOOP
    BEGIN
      EXECUTE attempt;
      PERFORM look(attempt);
    EXCEPTION WHEN OTHERS THEN PERFORM look(SQLERRM);
    END;
  END LOOP;
END $$;
SELECT mq_register_handler('attack', 'attack(mq_message)');
SELECT mq_register_handler('attack leased', 'attack(mq_message)', mode => 'leased');
SELECT mq_send('attack', id => '00000000-0000-0000-0000-000000000008', channel_args => 'a', headers => '{"traceparent": "t"}');
CALL mq_run();
SELECT mq_send('attack leased', id => '00000000-0000-0000-0000-000000000009', channel_args => 'b');
CALL mq_run();
SELECT * FROM pg_temp.seen();

-- A role without any right asks outside.
CREATE ROLE regress_mq_asks;
SET ROLE regress_mq_asks;
SELECT current_setting('mq.message_id') AS id, current_setting('mq.channel_args') AS args, current_setting('mq.call') AS call;
RESET ROLE;
DROP ROLE regress_mq_asks;

-- A query of a handler in parallel workers: they know the call, too.
CREATE TABLE wide AS SELECT n FROM generate_series(1, 2000) n;
CREATE FUNCTION in_parallel(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  ids text;
BEGIN
  PERFORM set_config('parallel_setup_cost', '0', true), set_config('parallel_tuple_cost', '0', true), set_config('min_parallel_table_scan_size', '0', true),
          set_config('max_parallel_workers_per_gather', '2', true), set_config('parallel_leader_participation', 'off', true);
  EXECUTE 'SELECT string_agg(DISTINCT concat_ws('' '', current_setting(''mq.message_id''), current_setting(''mq.channel_args''), current_setting(''mq.attempt''), current_setting(''mq.traceparent'')), '','') FROM wide WHERE current_setting(''mq.channel_name'') = ''parallel'''
    INTO ids;
  INSERT INTO seen (at) VALUES (ids);
END $$;
SELECT mq_register_handler('parallel', 'in_parallel(mq_message)');
SELECT mq_send('parallel', id => '00000000-0000-0000-0000-00000000000a', channel_args => 'p:1', headers => '{"traceparent": "t"}');
SELECT mq_send('parallel', id => '00000000-0000-0000-0000-00000000000b', channel_args => 'p:2');
CALL mq_run();
SELECT at FROM pg_temp.seen() ORDER BY at;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
SET parallel_leader_participation = off;
SELECT count(*) FROM wide WHERE current_setting('mq.channel_name') || current_setting('mq.call') = '';

\c
SET client_min_messages = warning;
DROP EXTENSION mq CASCADE;
DROP VIEW call CASCADE;
DROP TABLE seen, wide CASCADE;
DROP FUNCTION take_json;
DROP PROCEDURE proceed;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
