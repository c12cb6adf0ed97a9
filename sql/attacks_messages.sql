--
-- Attacks on what comes with messages: options of the send, results, progress, cancels, tokens of leases. And bad values of
-- each argument: the error names it, its value and the rule, and nothing of the call is kept. Attacks by roles on every
-- object are in attacks.sql.
--
-- Workers stay out.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
SET client_min_messages = warning;
SET timezone = 'UTC';
CREATE EXTENSION mq;
CREATE ROLE regress_mq_producer;
CREATE ROLE regress_mq_alice LOGIN;
CREATE ROLE regress_mq_bob LOGIN;
GRANT ALL ON SCHEMA public TO regress_mq_alice, regress_mq_bob;
SELECT mq_grant('regress_mq_producer', 'produce'), mq_grant('regress_mq_alice', 'consume'), mq_grant('regress_mq_bob', 'consume');
CREATE FUNCTION n(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$ SELECT lpad(n::text, 32, '0')::uuid $$;
-- What comes of a statement as another role: SQLSTATE, message and detail, or the first column of its first row. It is undone.
CREATE FUNCTION pg_temp.try(role name, statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  result text;
  detail text;
BEGIN
  EXECUTE format('SET LOCAL ROLE %I', role);
  EXECUTE statement INTO result;
  RAISE EXCEPTION USING ERRCODE = 'MQ000', MESSAGE = 'done: ' || COALESCE(result, 'nothing');
EXCEPTION
  WHEN SQLSTATE 'MQ000' THEN RETURN SQLERRM;
  WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
    RETURN concat_ws(' | ', SQLSTATE || ' ' || left(SQLERRM, 160), nullif(detail, ''));
END $$;
CREATE FUNCTION pg_temp.rows() RETURNS text LANGUAGE sql AS $$
  SELECT concat_ws(' ', (SELECT count(*) FROM mq_msgs), (SELECT count(*) FROM mq_dead), (SELECT count(*) FROM mq_failures), (SELECT count(*) FROM mq_done),
                   (SELECT count(*) FROM mq_prerequisites), (SELECT count(*) FROM mq_cancelled), (SELECT count(*) FROM mq_handlers)) $$;

-- --- bad values -----------------------------------------------------------------------------------

-- Two messages are there, one of them leased.
SELECT mq_send('mail', '1', id => n(1)) = n(1) AND mq_send('mail', '2', id => n(2)) = n(2) AS sent;
SELECT lease AS token FROM mq_receive('{mail}') \gset
SELECT pg_temp.rows();
CREATE TEMP TABLE calls AS SELECT n, replace(statement, ':token', (:token)::text) AS statement FROM unnest(ARRAY[
  $$mq_send('c', headers => '[1]')$$, $$mq_send('c', headers => '"x"')$$, $$mq_send('c', headers => 'null')$$,
  $$mq_send('c', priority => 1001)$$, $$mq_send('c', priority => -1001)$$, $$mq_send('c', priority => 2147483647)$$, $$mq_send('c', priority => NULL)$$,
  $$mq_send('c', priority => 1, ordered => true)$$,
  $$mq_send('c', keep => '0')$$, $$mq_send('c', keep => '-1 s')$$, $$mq_send('c', keep => '36501 days')$$, $$mq_send('c', keep => '178000000 years')$$,
  $$mq_send('c', after => ARRAY[n(1), NULL])$$, $$mq_send('c', id => n(9), after => ARRAY[n(1), n(9)])$$, $$mq_send('c', after => ARRAY[n(1)], commit_interval => '1 s')$$,
  $$mq_send('c', id => n(8), after => '{{00000000-0000-0000-0000-000000000001},{00000000-0000-0000-0000-000000000002}}')$$,
  $$mq_send_many('c', '{1,2}', priority => 1001)$$, $$mq_send_many('c', '{1,2}', headers => '1')$$, $$mq_send_many('c', '{1,2}', keep => '0')$$, $$mq_send_many('c', '{1,2}', after => '{NULL}')$$,
  $$mq_send_once('c', 'key', priority => -1001)$$, $$mq_send_once('c', 'key', headers => '1')$$, $$mq_send_once('c', 'key', keep => '0')$$, $$mq_send_once('c', 'key', after => '{NULL}')$$,
  $$mq_register_handler('c', 'pg_catalog.jsonb_typeof(jsonb)', keep => '0')$$, $$mq_register_handler('c', 'pg_catalog.jsonb_typeof(jsonb)', keep => '-1 s')$$,
  $$mq_register_handler('c', 'pg_catalog.jsonb_typeof(jsonb)', keep => '36501 days')$$,
  $$mq_receive(ARRAY['mail', NULL])$$, $$mq_receive('{mail}', 0)$$, $$mq_receive('{mail}', 100001)$$, $$mq_receive('{mail}', NULL)$$,
  $$mq_receive('{mail}', lease => '0')$$, $$mq_receive('{mail}', lease => '-1 s')$$, $$mq_receive('{mail}', lease => '36501 days')$$, $$mq_receive('{mail}', lease => NULL)$$,
  $$mq_receive('{mail}', wait => '-1 s')$$, $$mq_receive('{mail}', wait => '36501 days')$$, $$mq_receive('{mail}', wait => NULL)$$,
  $$mq_ack(NULL, :token)$$, $$mq_ack(ARRAY[n(1), NULL], :token)$$, $$mq_ack(ARRAY[n(1)], NULL)$$, $$mq_ack(ARRAY[n(1)], :token, '1')$$, $$mq_ack(ARRAY[n(1)], :token, '[]')$$, $$mq_ack(ARRAY[n(1)], :token, '{"a": 1}')$$,
  $$mq_nack(NULL, :token, 'e')$$, $$mq_nack(ARRAY[n(1), NULL], :token, 'e')$$, $$mq_nack(ARRAY[n(1)], NULL, 'e')$$, $$mq_nack(ARRAY[n(1)], :token, NULL)$$,
  $$mq_nack(ARRAY[n(1)], :token, 'e', '1234')$$, $$mq_nack(ARRAY[n(1)], :token, 'e', '00000')$$, $$mq_nack(ARRAY[n(1)], :token, 'e', 'abcde')$$, $$mq_nack(ARRAY[n(1)], :token, 'e', 'ÄBCD')$$,
  $$mq_nack(ARRAY[n(1)], :token, 'e', retry_in => '-1 s')$$, $$mq_nack(ARRAY[n(1)], :token, 'e', retry_in => '36501 days')$$, $$mq_nack(ARRAY[n(1)], :token, 'e', retry_in => '1 s', dead => true)$$,
  $$mq_nack(ARRAY[n(1)], :token, 'e', dead => NULL)$$,
  $$mq_extend(NULL, :token, '1 s')$$, $$mq_extend(ARRAY[n(1), NULL], :token, '1 s')$$, $$mq_extend(ARRAY[n(1)], NULL, '1 s')$$, $$mq_extend(ARRAY[n(1)], :token, NULL)$$,
  $$mq_extend(ARRAY[n(1)], :token, '-1 s')$$, $$mq_extend(ARRAY[n(1)], :token, '36501 days')$$,
  $$mq_cancel(NULL)$$, $$mq_cancel(ARRAY[n(1), NULL])$$,
  $$mq_progress(1.5)$$, $$mq_progress('NaN')$$, $$mq_progress(note => repeat('x', 501))$$]) WITH ORDINALITY AS s (statement, n);
SELECT replace(statement, (:token)::text, 'token') AS statement, replace(pg_temp.try('postgres', 'SELECT ' || statement), (:token)::text, 'token') AS outcome FROM calls ORDER BY n;
SELECT pg_temp.rows();
SELECT attempt, lease = :token AS leased FROM mq_msgs WHERE id = n(1);
SELECT mq_clear_all();

-- --- after: who may send learns nothing by naming messages ------------------------------------------

-- Pending, dead, leased, handled, not committed, nowhere: the send looks the same, and shows nothing of the other.
CREATE FUNCTION discard(message mq_message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM mq_discard('secret reason'); END $$;
SELECT mq_register_handler('dies', 'discard(mq_message)');
SELECT mq_send('dies', '"secret"', id => n(2)) = n(2) AS sent;
CALL mq_run();
SELECT mq_send('secret', '"secret"', id => n(1), delay => '1 hour') = n(1), mq_send('leased', id => n(3)) = n(3), mq_send('uncommitted', id => n(4), commit_interval => '1 hour') = n(4);
SELECT count(*) FROM mq_receive('{leased}');
SELECT i AS names, pg_temp.try('regress_mq_producer', format('SELECT mq_send(''work'', id => n(9), after => ARRAY[n(%s)])', i)) FROM generate_series(1, 5) AS i;
-- Nor can it end or hold up one that is pending: one that waits is behind it, and its death is its own.
SELECT pg_temp.try('regress_mq_producer', $$SELECT mq_send('work', id => n(1), after => ARRAY[n(2)])$$);
SELECT pg_temp.try('regress_mq_producer', s) FROM unnest(ARRAY['DELETE FROM mq_prerequisites', 'SELECT dependent FROM mq_prerequisites', 'SELECT after FROM mq_dead', 'SELECT headers FROM mq_msgs']) AS s;
SELECT mq_clear_all();
TRUNCATE mq_dead;

-- --- results ----------------------------------------------------------------------------------------

-- The handler's role writes its result by returning it, and in no other way; nobody but admin reads it, whoever sent the message.
CREATE FUNCTION tell(message mq_message) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF message.payload_json IS NOT NULL THEN EXECUTE message.payload_json #>> '{}'; END IF;
  RETURN '"s3cret"';
END $$;
ALTER FUNCTION tell(mq_message) OWNER TO regress_mq_bob;
SELECT mq_register_handler('tell', 'tell(mq_message)', run_as => 'regress_mq_bob', keep => '1 hour');
SELECT count(*) FROM mq_send_many('tell', (SELECT array_agg(to_jsonb(s)) FROM unnest(ARRAY['SELECT 1', 'SELECT result FROM mq_done', 'DELETE FROM mq_done', 'UPDATE mq_done SET result = ''1''',
  'INSERT INTO mq_done SELECT FROM generate_series(1, 0)', 'SELECT nextval(''mq_done_done_no_seq'')', 'SELECT mq_redrive()']) AS s), retries => 0);
SET ROLE regress_mq_bob;
CALL mq_run();
RESET ROLE;
SELECT payload_json, result, run_by FROM mq_done ORDER BY done_no;
SELECT payload_json, sqlstate FROM mq_dead ORDER BY dead_no;
SELECT role, pg_temp.try(role, 'SELECT result FROM mq_done') FROM unnest(ARRAY['regress_mq_producer', 'regress_mq_alice', 'regress_mq_bob']) AS role;
TRUNCATE mq_done, mq_dead, mq_failures;

-- --- tokens -------------------------------------------------------------------------------------------

-- A token is good for what was received with it, while the lease lasts: not for what mq_poll has leased (0), nor for what a
-- leased handler has (above 0), nor for what nobody has.
SELECT mq_send('polled', id => n(1)) = n(1), mq_send('nobody', id => n(2)) = n(2), mq_send('received', id => n(3)) = n(3), mq_send('other', id => n(4)) = n(4), mq_send('ran out', id => n(5)) = n(5);
SELECT count(id) FROM mq_poll('{polled}');
SELECT lease AS token FROM mq_receive('{received}') \gset
SELECT lease AS other FROM mq_receive('{other}') \gset
SELECT lease AS late FROM mq_receive('{ran out}', lease => '1 microsecond') \gset
SELECT pg_sleep(0.001);
CREATE FUNCTION pg_temp.tokens(tokens bigint[]) RETURNS TABLE (acked text, nacked text, extended text) LANGUAGE plpgsql AS $$
DECLARE
  ids CONSTANT text := 'ARRAY(SELECT n(i) FROM generate_series(1, 9) AS i)';
BEGIN
  RETURN QUERY SELECT pg_temp.try('regress_mq_alice', format('SELECT string_agg(right(a::text, 2), '' '') FROM mq_ack(%s, %s) AS a', ids, t)),
                      pg_temp.try('regress_mq_alice', format('SELECT string_agg(right(a::text, 2), '' '') FROM mq_nack(%s, %s, ''e'', dead => true) AS a', ids, t)),
                      pg_temp.try('regress_mq_alice', format('SELECT string_agg(right(a::text, 2), '' '') FROM mq_extend(%s, %s, ''1 hour'') AS a', ids, t)) FROM unnest(tokens) AS t;
END $$;
SELECT * FROM pg_temp.tokens(ARRAY[0, 1, -1, -9223372036854775808, 9223372036854775807, -(:token), -(:late)]);
SELECT * FROM pg_temp.tokens(ARRAY[:late, :token, :other]);
-- A leased handler has no token of its own to use, and cannot guess one: its lease is not a consumer's.
CREATE FUNCTION guess(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  held bigint := (SELECT m.lease FROM mq_msgs m WHERE m.id = message.id);
BEGIN
  INSERT INTO guesses SELECT held > 0, (SELECT count(*) FROM mq_ack(ARRAY[message.id], t)), (SELECT count(*) FROM mq_nack(ARRAY[message.id], t, 'e')), (SELECT count(*) FROM mq_extend(ARRAY[message.id], t, '1 hour'))
    FROM unnest(ARRAY[held, -held, 0]) AS t;
END $$;
CREATE TABLE guesses (held boolean, acked bigint, nacked bigint, extended bigint);
SELECT mq_register_handler('guess', 'guess(mq_message)', mode => 'leased');
SELECT mq_send('guess') IS NOT NULL AS sent;
CALL mq_run('{guess}');
SELECT * FROM guesses;
SELECT mq_clear_all();

-- --- progress -------------------------------------------------------------------------------------------

-- Only while the handler runs, and only of its own call: not in a trigger at the commit, not in the session of mq_run afterwards.
CREATE FUNCTION progress() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM mq_progress(0.5); RETURN NULL; END $$;
CREATE TABLE bait (n int);
CREATE CONSTRAINT TRIGGER progress AFTER INSERT ON bait DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION progress();
CREATE FUNCTION at_commit(jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM mq_progress(0.5); INSERT INTO bait VALUES (1); END $$;
SELECT mq_register_handler('late', 'at_commit(jsonb)');
SELECT mq_send('late', retries => 0) IS NOT NULL AS sent;
CALL mq_run('{late}');
SELECT sqlstate, error FROM mq_failures;
SELECT count(*) FROM bait;
CREATE FUNCTION ends(jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM mq_progress(1, 'done'); END $$;
SELECT mq_register_handler('ends', 'ends(jsonb)');
SELECT mq_send('ends') IS NOT NULL AS sent;
BEGIN;
CALL mq_run('{ends}');
SELECT mq_progress(0.5);
ROLLBACK;
SELECT mq_clear_all();
TRUNCATE mq_dead, mq_failures;

-- --- cancels --------------------------------------------------------------------------------------------

-- consume and admin may, whoever sent the message; nobody writes a note, or reads one of another, by hand.
SELECT mq_send('work', id => n(1)) = n(1) AS sent;
SELECT role, pg_temp.try(role, 'SELECT mq_cancel(ARRAY[n(1)], ''mine'')'), pg_temp.try(role, 'INSERT INTO mq_cancelled VALUES (n(1), 1, ''mine'')'), pg_temp.try(role, 'SELECT error FROM mq_cancelled')
  FROM unnest(ARRAY['regress_mq_producer', 'regress_mq_alice']) AS role;
SELECT count(*) FROM mq_msgs;
SELECT mq_clear_all();

-- --- settings of a call -----------------------------------------------------------------------------------

-- A function that keeps the value of its making cannot tell it to anybody later.
CREATE FUNCTION captures(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE 'CREATE FUNCTION captured() RETURNS text LANGUAGE sql SET mq.channel_args FROM CURRENT AS $f$ SELECT current_setting(''mq.channel_args'') $f$';
END $$;
SELECT mq_register_handler('captures', 'captures(mq_message)');
SELECT mq_send('captures', channel_args => 'captured', retries => 0) IS NOT NULL AS sent;
CALL mq_run('{captures}');
SELECT sqlstate, error FROM mq_dead;
SELECT pg_temp.try('postgres', 'SELECT captured()');
SELECT pg_temp.try('postgres', s) FROM unnest(ARRAY['SET SESSION mq.attempt = 1', 'SET mq.attempt TO DEFAULT', 'ALTER ROLE ALL SET mq.attempt = 1', 'ALTER ROLE regress_mq_bob IN DATABASE postgres SET mq.attempt = 1',
  'ALTER FUNCTION n(integer) SET mq.attempt = 1', 'ALTER FUNCTION n(integer) SET mq.attempt FROM CURRENT', 'ALTER SYSTEM RESET mq.attempt']) AS s;
SELECT current_setting('mq.attempt') = '' AS empty;

\c
SET client_min_messages = warning;
DROP EXTENSION mq CASCADE;
DROP TABLE guesses, bait;
DROP FUNCTION n, progress, at_commit, ends;
DROP FUNCTION IF EXISTS captured;
REVOKE ALL ON SCHEMA public FROM regress_mq_alice, regress_mq_bob;
DROP ROLE regress_mq_producer, regress_mq_alice, regress_mq_bob;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
