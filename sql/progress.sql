--
-- mq_progress: a handler says how far its call is, and mq_workers shows it at once, before any commit.
--
-- Workers stay out: the handlers run in mq_run. A handler looks at mq_workers itself, since the row is of shared memory.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION mq;

CREATE FUNCTION told() RETURNS text LANGUAGE sql AS $$
  SELECT COALESCE(string_agg(concat_ws(' ', state, channel_name, message_id IS NOT NULL, since <= clock_timestamp(), pid = pg_backend_pid(), handled, COALESCE(progress::text, '-'), COALESCE(quote_literal(note), '-')), ', '), 'nothing')
    FROM mq_workers WHERE database = current_database() AND state IN ('mq_run', 'leased') $$;
CREATE TABLE seen (n serial, what text, told text);
CREATE FUNCTION take(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  step text;
BEGIN
  INSERT INTO seen (what, told) VALUES ('begins', told());
  FOREACH step IN ARRAY ARRAY(SELECT jsonb_array_elements_text(m.payload_json)) LOOP
    BEGIN
      EXECUTE 'SELECT mq_progress(' || step || ')';
      INSERT INTO seen (what, told) VALUES (step, told());
    EXCEPTION WHEN OTHERS THEN
      INSERT INTO seen (what, told) VALUES (step, sqlstate || ' ' || sqlerrm);
    END;
  END LOOP;
END $$;
SELECT mq_register_handler('work', 'take(mq_message)');

-- What is NULL stays as it was; the last call counts. A rollback takes nothing back: it shows at once, whatever becomes of
-- the transaction.
SELECT mq_send('work', '["0.25", "note => ''first''", "0.5", "fraction => 1::real, note => ''''", "NULL, NULL", ""]') IS NOT NULL AS sent;
CALL mq_run();
SELECT what, told FROM seen ORDER BY n;
TRUNCATE seen RESTART IDENTITY;
-- It ends with the call: the next one begins with nothing, and nothing is left.
SELECT mq_send('work', '[]') IS NOT NULL AS sent;
CALL mq_run();
SELECT what, told FROM seen ORDER BY n;
SELECT told();
TRUNCATE seen RESTART IDENTITY;

-- Bad values are refused, and what was said before stays.
SELECT mq_send('work', to_jsonb(ARRAY['0.5, ''half''', '-0.1', '1.5', '''NaN''::real', '''Infinity''::real', '''-Infinity''::real',
  'note => repeat(''x'', 501)', 'note => repeat(''ü'', 251)', 'note => repeat(''x'', 500)', 'fraction => 0.6, note => repeat(''x'', 501)', 'fraction => ''-0''::real, note => ''end'''])) IS NOT NULL AS sent;
CALL mq_run();
SELECT what, CASE WHEN length(told) > 200 THEN length(told)::text || ' characters' ELSE told END FROM seen ORDER BY n;
TRUNCATE seen RESTART IDENTITY;

-- A handler that fails takes what it said with it.
CREATE FUNCTION fail(jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM mq_progress(0.9, 'nearly'); RAISE 'no'; END $$;
SELECT mq_register_handler('fail', 'fail(jsonb)');
SELECT mq_send('fail', retries => 0) IS NOT NULL AS sent;
CALL mq_run();
SELECT told();
SELECT sqlstate, error FROM mq_failures;

-- A batch handler speaks for its call, which shows with the first of its messages.
CREATE FUNCTION take_all(m mq_message[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM mq_progress(0.5, cardinality(m) || ' messages');
  INSERT INTO seen (what, told) SELECT m[1].id = message_id, told() FROM mq_workers WHERE state = 'mq_run';
END $$;
SELECT mq_register_handler('batch', 'take_all(mq_message[])');
SELECT count(mq_send_many) FROM mq_send_many('batch', '{1,2,3}');
CALL mq_run();
SELECT what, told FROM seen ORDER BY n;
TRUNCATE seen RESTART IDENTITY;

-- In a leased handler, and in a procedure beyond its commits.
SELECT mq_register_handler('leased', 'take(mq_message)', mode => 'leased');
SELECT mq_send('leased', '["0.25", "note => ''leased''", "2"]') IS NOT NULL AS sent;
CALL mq_run();
CREATE PROCEDURE walk(m mq_message) LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. 2 LOOP
    PERFORM mq_progress((i / 2.0)::real, 'step ' || i);
    COMMIT;
    INSERT INTO seen (what, told) VALUES ('after a commit', told());
  END LOOP;
END $$;
SELECT mq_register_handler('walk', 'walk(mq_message)', mode => 'leased');
SELECT mq_send('walk') IS NOT NULL AS sent;
CALL mq_run();
SELECT what, told FROM seen ORDER BY n;
SELECT told();
TRUNCATE seen RESTART IDENTITY;

-- Outside of a handler there is nothing to tell of.
SELECT mq_progress(0.5);
SELECT mq_progress();
SELECT mq_progress(note => 'x');

-- No WAL is written for it.
CREATE FUNCTION quiet(jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  before pg_lsn;
  least numeric;
BEGIN
  -- Other processes write some now and then.
  FOR round IN 1 .. 50 LOOP
    before := pg_current_wal_insert_lsn();
    FOR i IN 1 .. 20 LOOP PERFORM mq_progress((i / 20.0)::real, 'step ' || i); END LOOP;
    least := LEAST(least, pg_current_wal_insert_lsn() - before);
  END LOOP;
  RAISE WARNING 'WAL: % bytes', least;
END $$;
SELECT mq_register_handler('quiet', 'quiet(jsonb)');
SELECT mq_send('quiet') IS NOT NULL AS sent;
CALL mq_run('{quiet}');

-- Rights: consume, as for mq_snooze. Who sees a note is in t/110_progress.
CREATE ROLE regress_mq_progress_monitor;
CREATE ROLE regress_mq_progress_consumer;
SELECT mq_grant('regress_mq_progress_monitor', 'monitor'), mq_grant('regress_mq_progress_consumer', 'consume');
SET ROLE regress_mq_progress_monitor;
SELECT mq_progress(0.5);
SELECT count(*) >= 0 AS looked FROM mq_telling_calls();
SET ROLE regress_mq_progress_consumer;
SELECT mq_progress(0.5);
SELECT * FROM mq_telling_calls();
RESET ROLE;

DROP OWNED BY regress_mq_progress_monitor, regress_mq_progress_consumer;
DROP ROLE regress_mq_progress_monitor, regress_mq_progress_consumer;
DROP TABLE seen;
DROP FUNCTION told(), take(mq_message), fail(jsonb), take_all(mq_message[]), quiet(jsonb);
DROP PROCEDURE walk(mq_message);
DROP EXTENSION mq;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
