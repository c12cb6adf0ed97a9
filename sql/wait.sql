--
-- mq_wait: what it returns, and when at once; what it refuses. Waits that others end are in isolation/wait and t/099_waits.
--
-- Workers stay out. No wait of this test takes long, whatever goes wrong.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
\set VERBOSITY terse
SET client_min_messages = warning;
SET statement_timeout = '60 s';
CREATE EXTENSION mq;
CREATE FUNCTION id(n int) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$ SELECT format('00000000-0000-4000-8000-%s', lpad(n::text, 12, '0'))::uuid $$;
CREATE FUNCTION ids(VARIADIC n int[]) RETURNS uuid[] LANGUAGE sql IMMUTABLE AS $$ SELECT array_agg(id(i) ORDER BY o) FROM unnest(n) WITH ORDINALITY AS u (i, o) $$;
CREATE FUNCTION raises(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  message text; detail text; hint text;
BEGIN
  EXECUTE statement;
  RETURN 'nothing';
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
  RETURN concat_ws(' | ', SQLSTATE, message, nullif(detail, ''), nullif(hint, ''));
END $$;
-- The rows of a wait, and how long it took: not at all, or until the timeout.
CREATE FUNCTION waits(ids uuid[], timeout interval) RETURNS TABLE (n int, state text, took text) LANGUAGE plpgsql AS $$
DECLARE
  began timestamptz = clock_timestamp(); took interval;
BEGIN
  CREATE TEMP TABLE w ON COMMIT DROP AS SELECT * FROM mq_wait(ids, timeout);
  took := clock_timestamp() - began;
  RETURN QUERY SELECT right(w.id::text, 6)::int, w.state, CASE WHEN took >= timeout THEN 'until the timeout' ELSE 'less' END FROM w;
END $$;

-- The columns of mq_status.
SELECT (SELECT (proargnames[2:], proallargtypes[2:]) FROM pg_proc WHERE proname = 'mq_status') = (SELECT (proargnames[3:], proallargtypes[3:]) FROM pg_proc WHERE proname = 'mq_wait') AS same;

-- Bad values.
SELECT raises('SELECT mq_wait(NULL)');
SELECT raises('SELECT mq_wait(ARRAY[id(1), NULL])');
SELECT raises('SELECT mq_wait(ids(1), NULL)');
SELECT raises('SELECT mq_wait(ids(1), ''-1 s'')');
SELECT raises('SELECT mq_wait(ids(1), ''200 years'')');
SELECT raises('SELECT mq_wait(ids(1), ''infinity'')') ~ '^22' AS refused;

-- What has ended, or is nowhere, is not waited for. A row for each id, in that order.
SELECT * FROM waits('{}', '50 s');
SELECT * FROM waits(ids(1), '50 s');
CREATE FUNCTION take(m mq_message) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF m.payload_json ? 'fail' THEN RAISE 'no'; END IF;
  RETURN to_jsonb(m.id);
END $$;
SELECT mq_register_handler('c', 'take(mq_message)', keep => '1 hour'), mq_register_handler('block', 'take(mq_message)', on_dead => 'block');
SELECT mq_send('c', id => id(1)) = id(1) AND mq_send('c', '{"fail": 1}', id => id(2), retries => 0) = id(2)
   AND mq_send('c', id => id(3), delay => '1 hour') = id(3) AND mq_send('block', '{"fail": 1}', id => id(4), retries => 0, ordered => true) = id(4) AS sent;
CALL mq_run();
SELECT count(*) FROM mq_cancel(ids(3));
SELECT * FROM waits(ids(4, 9, 3, 2, 1, 2), '50 s');
SELECT id = id(1) AS one, state, attempt, attempts_left, due_at IS NOT NULL AS due, progress, note, result, error FROM mq_wait(ids(1, 2));
SELECT mq_delete(ids(4));

-- What is pending is waited for, in each state; at the timeout it is told as it is.
SELECT mq_send('c', id => id(11), delay => '1 hour') = id(11) AND mq_send('c', id => id(12), after => ids(11)) = id(12) AND mq_send('c', id => id(13), commit_interval => '1 hour') = id(13)
   AND mq_send('out', id => id(14)) = id(14) AND mq_send('out', id => id(15)) = id(15) AND mq_send('c', '{"fail": 1}', id => id(16), retry_backoff => '1 hour') = id(16) AS sent;
SELECT count(*) FROM mq_receive('{out}');
CALL mq_run();
SELECT w.* FROM generate_series(11, 16) AS n, LATERAL (SELECT s.state, s.attempt FROM mq_wait(ids(n), '1 ms') AS s) AS w;
SELECT * FROM waits(ids(1, 11, 9), '20 ms');
SELECT * FROM waits(ids(11, 1, 9), '20 ms');
-- Without a timeout it is a look.
SELECT state FROM mq_wait(ids(11, 1), '0');
SELECT state, count(*) FROM mq_wait((SELECT array_agg(id(n)) FROM generate_series(1, 1000) AS n), '1 ms') GROUP BY state ORDER BY state;
-- Several in a statement, and one in an expression.
SELECT array_agg(w.state) FROM generate_series(10, 12) AS n, LATERAL mq_wait(ids(n), '1 ms') AS w;

-- In a transaction: what others have sent. What it has sent or changed itself would not end.
BEGIN; SELECT * FROM waits(ids(11), '1 ms'); COMMIT;
BEGIN; SELECT mq_send('c', id => id(21)) = id(21) AS sent; SELECT raises('SELECT mq_wait(ids(1, 21))'); SELECT raises('SELECT mq_wait(ids(21), ''0'')'); ROLLBACK;
BEGIN; SAVEPOINT s; SELECT mq_send('c', id => id(21)) = id(21) AS sent; RELEASE s; SELECT raises('SELECT mq_wait(ids(21))') LIKE '55000%' AS refused; ROLLBACK;
BEGIN; SAVEPOINT s; SELECT mq_send('c', id => id(21)) = id(21) AS sent; ROLLBACK TO s; SELECT state FROM mq_wait(ids(21)); ROLLBACK;
BEGIN; SELECT mq_commit(ids(13)) = ids(13) AS committed; SELECT raises('SELECT mq_wait(ids(13))') LIKE '55000%' AS refused; ROLLBACK;
-- It is refused at once, wherever in the array it stands.
BEGIN; SELECT mq_send('c', id => id(21)) = id(21) AS sent; SELECT raises('SELECT mq_wait(ids(21) || array_fill(id(11), ARRAY[500]) || (SELECT array_agg(id(n)) FROM generate_series(100, 1000) AS n) || id(12))') LIKE '55000%' AS refused; ROLLBACK;
-- What it has ended itself has ended.
BEGIN; SELECT count(*) FROM mq_cancel(ids(11)); SELECT state FROM mq_wait(ids(11)); ROLLBACK;
BEGIN; SELECT mq_delete(ids(11)); SELECT state FROM mq_wait(ids(11)); ROLLBACK;
-- Each look sees what was committed since.
BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT raises('SELECT mq_wait(ids(1))'); SELECT state FROM mq_wait(ids(1), '0'); ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT raises('SELECT mq_wait(ids(1))') LIKE '25001%' AS refused; ROLLBACK;
-- It writes nothing.
BEGIN READ ONLY; SELECT state FROM mq_wait(ids(1, 11), '1 ms'); COMMIT;
BEGIN; SELECT state FROM mq_wait(ids(1, 11), '1 ms'); SELECT pg_current_xact_id_if_assigned(); COMMIT;

-- Not in a transactional handler; nor for its own message in a leased one.
CREATE TABLE told (mode text, what text);
CREATE FUNCTION wait_in(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO told VALUES (m.channel_name || ', its own', raises(format('SELECT mq_wait(ARRAY[%L]::uuid[])', m.id)));
  INSERT INTO told VALUES (m.channel_name || ', another', raises('SELECT mq_wait(ids(1))'));
END $$;
SELECT mq_register_handler('transactional', 'wait_in(mq_message)'), mq_register_handler('leased', 'wait_in(mq_message)', mode => 'leased');
SELECT mq_send('transactional', id => id(31)) = id(31) AND mq_send('leased', id => id(32)) = id(32) AS sent;
CALL mq_run('{transactional,leased}');
SELECT * FROM told ORDER BY mode;

-- statement_timeout ends it. Then the session waits again.
SET statement_timeout = '20 ms';
SELECT state FROM mq_wait(ids(11), '1 hour');
SET statement_timeout = '60 s';
SELECT state FROM mq_wait(ids(11), '1 ms');

-- Rights: produce and admin.
CREATE ROLE regress_mq_wait_asks; CREATE ROLE regress_mq_wait_not;
SELECT mq_grant('regress_mq_wait_asks', 'produce'), mq_grant('regress_mq_wait_not', 'consume'), mq_grant('regress_mq_wait_not', 'monitor');
SET ROLE regress_mq_wait_asks;
SELECT state FROM mq_wait(ids(1, 11), '1 ms');
SET ROLE regress_mq_wait_not;
SELECT state FROM mq_wait(ids(1));
RESET ROLE;

DROP OWNED BY regress_mq_wait_asks, regress_mq_wait_not;
DROP ROLE regress_mq_wait_asks, regress_mq_wait_not;
DROP EXTENSION mq CASCADE;
DROP TABLE told;
-- Without the extension there is nothing to call.
SELECT raises('SELECT mq_wait(ids(1))') LIKE '42883%' AS gone;
DROP FUNCTION waits(uuid[], interval), raises(text), ids(int[]), id(int);
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
