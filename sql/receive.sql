--
-- Consumers outside the server: mq_receive, mq_ack, mq_nack, mq_extend.
--
-- Workers stay out of this database.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;
SET timezone = 'UTC';
CREATE FUNCTION n(n int) RETURNS uuid LANGUAGE sql AS $$ SELECT lpad(n::text, 32, '0')::uuid $$;
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

-- What a delivery has: the attributes of mq_message, and the token.
SELECT (SELECT array_agg(attname || ' ' || atttypid::regtype ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'mq_message'::regclass)
       || ARRAY['lease bigint'] =
       (SELECT array_agg(attname || ' ' || atttypid::regtype ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'mq_delivery'::regclass) AS same;
SELECT mq_send('mail', '{"to": "a"}', name => 'welcome', channel_args => 'x', id => n(1), headers => '{"tenant": 7}', payload_bytes => '\x0102', priority => 5);
SELECT id, name, channel_name, channel_args, payload_json, payload_bytes, attempt, attempts_left, created_at > now() - interval '1 minute' AS now, ordered, headers, priority,
       lease IS NOT NULL AS lease FROM mq_receive('{mail}');

-- The attempt is charged, and the lease ends after a minute, whatever the backoff.
SELECT attempt, attempts, retry_backoff, round(extract(epoch FROM attempt_at - clock_timestamp())) BETWEEN 55 AND 60 AS a_minute FROM mq_msgs WHERE id = n(1);
SELECT mq_why(n(1)) LIKE 'is leased to a consumer outside the server until %, attempt 1' AS why;
SELECT ready, scheduled, running FROM mq_stats WHERE channel_name = 'mail';
SELECT count(*) FROM mq_receive('{mail}');
SELECT count(*) FROM mq_receive();
SELECT id FROM mq_poll('{mail}');

-- Only the token counts.
SELECT mq_ack(ARRAY[n(1)], 0), mq_ack(ARRAY[n(1)], 1), mq_ack(ARRAY[n(1)], -1);
SELECT lease AS token FROM mq_msgs WHERE id = n(1) \gset
SELECT mq_ack(ARRAY[n(1)], :token - 1) UNION ALL SELECT mq_ack(ARRAY[n(1)], :token + 1) UNION ALL SELECT mq_ack(ARRAY[n(1)], -(:token));
SELECT mq_nack(ARRAY[n(1)], :token - 1, 'no') UNION ALL SELECT mq_extend(ARRAY[n(1)], :token - 1, '1 hour');
SELECT mq_ack(ARRAY[n(1)], :token);
SELECT mq_ack(ARRAY[n(1)], :token);
SELECT count(*) FROM mq_msgs;
SELECT handled, failed, died FROM mq_stats WHERE channel_name = 'mail';

-- A call has one token; the ids come back in the order of the array, each once.
SELECT count(*) FROM mq_send_many('mail', ARRAY['1', '2', '3', '4']::jsonb[]);
CREATE TEMP TABLE got AS SELECT * FROM mq_receive('{mail}', 10);
SELECT count(*), count(DISTINCT lease), array_agg(payload_json ORDER BY id) FROM got;
SELECT (SELECT payload_json FROM got g WHERE g.id = a) FROM mq_ack((SELECT array_agg(id ORDER BY payload_json DESC) || array_agg(id) || ARRAY[n(99)] FROM got), (SELECT max(lease) FROM got)) a;
SELECT count(*) FROM mq_msgs;
SELECT count(*) FROM mq_ack('{}', 1);

-- Results: an element for each id.
SELECT mq_send('mail', '1', id => n(2)), mq_send('mail', '1', id => n(3));
SELECT max(lease) AS token FROM mq_receive('{mail}', 2) \gset
SELECT raises(format('SELECT mq_ack(ARRAY[n(2), n(3)], %s, %L)', :token, r)) FROM unnest(ARRAY['null', '{}', '1', '[]', '[1]', '[1, 2, 3]', '"ab"']) r;
SELECT count(*) FROM mq_msgs;
SELECT mq_ack(ARRAY[n(2), n(3)], :token, '[{"ok": true}, null]') = n(2);
SELECT count(*) FROM mq_msgs;

-- What is kept goes to mq_done with its result.
SELECT mq_send('mail', '1', id => n(30), keep => '1 hour') = n(30) AND mq_send('mail', '2', id => n(31)) = n(31) AS sent;
SELECT max(lease) AS token FROM mq_receive('{mail}', 2) \gset
SELECT mq_ack(ARRAY[n(31), n(30), n(30), n(32)], :token, '["not kept", {"b": 1}, "twice", 4]');
SELECT id, payload_json, result, attempts, due_at, started_at, run_by = current_user AS by_us FROM mq_done;

-- mq_nack: the attempt is recorded, and the message is due again after its backoff.
SELECT mq_send('mail', '1', id => n(4), retry_backoff => '10 s', retries => 2);
SELECT lease AS token, attempt, attempts_left FROM mq_receive('{mail}') \gset
SELECT :attempt, :attempts_left;
SELECT mq_nack(ARRAY[n(4)], :token, 'smtp said no') = n(4);
SELECT attempt, attempts, retry_backoff, lease, attempt_at - clock_timestamp() BETWEEN '9 s' AND '11.1 s' AS backoff FROM mq_msgs WHERE id = n(4);
SELECT attempt, sqlstate, error, detail, duration, channel_name, name FROM mq_failures WHERE message_id = n(4);
SELECT mq_why(n(4)) ~ '^waits for its retry at .*: 1 attempts failed, the last with SQLSTATE P0001' AS why;
SELECT mq_nack(ARRAY[n(4)], :token, 'again'), mq_ack(ARRAY[n(4)], :token), mq_extend(ARRAY[n(4)], :token, '1 s');

-- retry_in is the wait; the last attempt is the last.
UPDATE mq_msgs SET attempt_at = now() - interval '1 s' WHERE id = n(4);
SELECT lease AS token, attempt, attempts_left FROM mq_receive('{mail}') \gset
SELECT :attempt, :attempts_left;
SELECT mq_nack(ARRAY[n(4)], :token, 'smtp is away', '08006', retry_in => '0') = n(4);
SELECT lease AS token, attempt, attempts_left FROM mq_receive('{mail}') \gset
SELECT :attempt, :attempts_left;
SELECT mq_nack(ARRAY[n(4)], :token, 'smtp is gone', retry_in => '1 hour') = n(4);
SELECT count(*) FROM mq_msgs;
SELECT attempt, sqlstate, error FROM mq_failures WHERE message_id = n(4) ORDER BY failure_no;
SELECT reason, attempts_made, sqlstate, error FROM mq_dead WHERE id = n(4);
SELECT handled, failed, died FROM mq_stats WHERE channel_name = 'mail';

-- dead => true: discarded, whatever attempts are left.
SELECT mq_send('mail', '1', id => n(5));
SELECT lease AS token FROM mq_receive('{mail}') \gset
SELECT mq_nack(ARRAY[n(5)], :token, 'no such address', '42704', dead => true) = n(5);
SELECT reason, attempts_made, sqlstate, error FROM mq_dead WHERE id = n(5);
SELECT attempt, sqlstate, error FROM mq_failures WHERE message_id = n(5);
-- A redriven message begins anew, and old tokens are worth nothing.
SELECT mq_redrive(ARRAY[n(5)]);
SELECT mq_ack(ARRAY[n(5)], :token);
SELECT attempt, attempts_left FROM mq_receive('{mail}');
SELECT mq_ack(ARRAY[n(5)], :token);
SELECT mq_clear('{mail}');

-- Every value is checked, and nothing of a refused call is kept.
SELECT mq_send('mail', '1', id => n(6));
\pset format unaligned
SELECT call, raises('SELECT ' || call) FROM unnest(ARRAY[
  'mq_receive(''{a,NULL}'')', 'mq_receive(NULL, NULL)', 'mq_receive(NULL, 0)', 'mq_receive(NULL, -1)', 'mq_receive(NULL, 100001)',
  'mq_receive(lease => NULL)', 'mq_receive(lease => ''0'')', 'mq_receive(lease => ''-1 s'')', 'mq_receive(lease => ''36501 days'')', 'mq_receive(lease => ''1000000 years'')',
  'mq_receive(wait => NULL)', 'mq_receive(wait => ''-1 ms'')', 'mq_receive(wait => ''36501 days'')',
  'mq_ack(NULL, 1)', 'mq_ack(''{NULL}'', 1)', 'mq_ack(''{}'', NULL)',
  'mq_nack(NULL, 1, ''e'')', 'mq_nack(''{NULL}'', 1, ''e'')', 'mq_nack(''{}'', NULL, ''e'')', 'mq_nack(''{}'', 1, NULL)',
  'mq_nack(''{}'', 1, ''e'', '''')', 'mq_nack(''{}'', 1, ''e'', ''P001'')', 'mq_nack(''{}'', 1, ''e'', ''P00011'')', 'mq_nack(''{}'', 1, ''e'', ''p0001'')', 'mq_nack(''{}'', 1, ''e'', ''P00 1'')', 'mq_nack(''{}'', 1, ''e'', ''00000'')',
  'mq_nack(''{}'', 1, ''e'', retry_in => ''-1 s'')', 'mq_nack(''{}'', 1, ''e'', retry_in => ''36501 days'')', 'mq_nack(''{}'', 1, ''e'', dead => NULL)', 'mq_nack(''{}'', 1, ''e'', retry_in => ''0'', dead => true)',
  'mq_extend(NULL, 1, ''1 s'')', 'mq_extend(''{NULL}'', 1, ''1 s'')', 'mq_extend(''{}'', NULL, ''1 s'')', 'mq_extend(''{}'', 1, NULL)', 'mq_extend(''{}'', 1, ''-1 s'')', 'mq_extend(''{}'', 1, ''36501 days'')',
  'mq_receive(''{}'')', 'mq_receive(''{nowhere}'')', 'mq_nack(''{}'', 1, '''')', 'mq_extend(''{}'', 1, ''0'')']) AS call;
\pset format aligned
SELECT attempt, lease FROM mq_msgs;
-- An error is kept as far as errors of handlers are.
SELECT lease AS token FROM mq_receive('{mail}') \gset
SELECT mq_nack(ARRAY[n(6), n(6)], :token, repeat('x', 100000), 'AB123', '2 days', false) = n(6);
SELECT sqlstate, length(error) BETWEEN 8000 AND 8300 AS cut FROM mq_failures WHERE message_id = n(6);
SELECT attempt_at - clock_timestamp() BETWEEN '47 hours' AND '48 hours' AS in_two_days FROM mq_msgs;
SELECT mq_clear('{mail}');

-- mq_extend: from now, never shorter; only what is still leased.
SELECT mq_send('mail', '1', id => n(7), expires => '1 hour');
SELECT lease AS token FROM mq_receive('{mail}', lease => '10 minutes') \gset
SELECT mq_extend(ARRAY[n(7), n(8)], :token, '1 minute') = n(7);
SELECT attempt_at - clock_timestamp() > '9 minutes' AS not_shorter FROM mq_msgs;
SELECT mq_extend(ARRAY[n(7)], :token, '20 minutes') = n(7);
SELECT attempt_at - clock_timestamp() BETWEEN '19 minutes' AND '20 minutes' AS longer, attempt FROM mq_msgs;
SELECT mq_extend(ARRAY[n(7)], :token, '2 hours') = n(7);
SELECT attempt_at > expires_at AS beyond_expiry FROM mq_msgs;
-- A retry is not: the message is due when it expires.
SELECT mq_nack(ARRAY[n(7)], :token, 'later', retry_in => '3 hours') = n(7);
SELECT attempt_at = expires_at AS at_expiry FROM mq_msgs;
SELECT mq_clear('{mail}');

-- A lease that has run out is worth nothing, though nobody has taken the message.
SELECT mq_send('mail', '1', id => n(8));
SELECT lease AS token FROM mq_receive('{mail}', lease => '1 ms') \gset
SELECT pg_sleep(0.01);
SELECT mq_ack(ARRAY[n(8)], :token), mq_nack(ARRAY[n(8)], :token, 'late'), mq_extend(ARRAY[n(8)], :token, '1 h');
SELECT attempt, lease = :token AS same FROM mq_msgs;
SELECT attempt, attempts_left, lease < :token AS newer FROM mq_receive('{mail}');
SELECT mq_ack(ARRAY[n(8)], :token);
-- What is deleted, cleared or polled by another is not ours any more.
SELECT lease AS token FROM mq_msgs \gset
SELECT mq_delete(ARRAY[n(8)]);
SELECT mq_ack(ARRAY[n(8)], :token), mq_nack(ARRAY[n(8)], :token, 'late'), mq_extend(ARRAY[n(8)], :token, '1 h');
SELECT handled FROM mq_stats WHERE channel_name = 'mail';
SELECT mq_send('mail', '1', id => n(8));
SELECT mq_ack(ARRAY[n(8)], :token), mq_nack(ARRAY[n(8)], :token, 'late'), mq_extend(ARRAY[n(8)], :token, '1 h');
SELECT lease AS token FROM mq_receive('{mail}', lease => '1 ms') \gset
SELECT pg_sleep(0.01);
SELECT id = n(8) AS polled FROM mq_poll('{mail}');
SELECT mq_ack(ARRAY[n(8)], :token), mq_ack(ARRAY[n(8)], 0);
SELECT mq_clear_all();

-- The last attempt whose lease runs out is dead with MQ001; mq_ack takes no dead letter away.
SELECT mq_send('mail', '1', id => n(9), retries => 0);
SELECT lease AS token, attempts_left FROM mq_receive('{mail}', lease => '1 ms') \gset
SELECT :attempts_left;
SELECT pg_sleep(0.01);
SELECT count(*) FROM mq_receive('{mail}');
SELECT reason, sqlstate, error, attempts_made FROM mq_dead WHERE id = n(9);
SELECT mq_ack(ARRAY[n(9)], :token);
SELECT count(*) FROM mq_dead WHERE id = n(9);
-- mq_delete does, but not one of an error to which the consumer gave that SQLSTATE.
SELECT mq_delete(ARRAY[n(9)]);
SELECT count(*) FROM mq_dead WHERE id = n(9);
SELECT mq_send('mail', '1', id => n(9), retries => 0);
SELECT lease AS token FROM mq_receive('{mail}') \gset
SELECT mq_nack(ARRAY[n(9)], :token, 'their server says so', 'MQ001');
SELECT mq_delete(ARRAY[n(9)]);
SELECT reason, sqlstate, error FROM mq_dead WHERE id = n(9);

-- Ordered channels: one at a time, in order; nothing overtakes a retry.
SELECT count(*) FROM mq_send_many('steps', ARRAY['1', '2', '3']::jsonb[], ordered => true, channel_args => 'a');
SELECT payload_json, ordered, id, lease AS token FROM mq_receive('{steps}', 10) \gset
SELECT :'payload_json', :'ordered';
SELECT count(*) FROM mq_receive('{steps}', 10);
SELECT mq_nack(ARRAY[:'id'::uuid], :token, 'once more', retry_in => '1 hour') IS NOT NULL AS nacked;
SELECT count(*) FROM mq_receive('{steps}', 10);
UPDATE mq_msgs SET attempt_at = now() WHERE id = :'id';
SELECT payload_json, attempt, id, lease AS token FROM mq_receive('{steps}', 10) \gset
SELECT :'payload_json', :attempt;
SELECT mq_ack(ARRAY[:'id'::uuid], :token) IS NOT NULL AS acked;
SELECT payload_json, id, lease AS token FROM mq_receive('{steps}', 10) \gset
SELECT :'payload_json';
-- Behind one that is discarded its channel goes on, unless its handler's registration says 'block'.
SELECT mq_nack(ARRAY[:'id'::uuid], :token, 'never', dead => true) IS NOT NULL AS nacked;
SELECT payload_json FROM mq_receive('{steps}', 10);
SELECT mq_clear('{steps}');
CREATE FUNCTION nothing(jsonb) RETURNS void LANGUAGE sql RETURN NULL;
SELECT mq_register_handler('steps', 'nothing(jsonb)', on_dead => 'block', max_backoff => '3 s');
SELECT count(*) FROM mq_send_many('steps', ARRAY['1', '2']::jsonb[], ordered => true, retry_backoff => '1 hour');
SELECT payload_json, id, lease AS token FROM mq_receive('{steps}', 10) \gset
SELECT mq_nack(ARRAY[:'id'::uuid], :token, 'no') IS NOT NULL AS nacked;
SELECT attempt_at - clock_timestamp() BETWEEN '2 s' AND '3.4 s' AS max_backoff FROM mq_msgs WHERE id = :'id';
UPDATE mq_msgs SET attempt_at = now() WHERE id = :'id';
SELECT payload_json, id, lease AS token FROM mq_receive('{steps}', 10) \gset
SELECT mq_nack(ARRAY[:'id'::uuid], :token, 'never', dead => true) IS NOT NULL AS nacked;
SELECT count(*) FROM mq_receive('{steps}', 10);
SELECT mq_why(:'id') ~ '^is dead, and its ordered channel waits for it' AS blocks;
SELECT mq_redrive(ARRAY[:'id'::uuid]);
SELECT payload_json FROM mq_receive('{steps}', 10);
SELECT mq_clear('{steps}'), mq_unregister_handler('steps');

-- Pauses hold, as for workers.
SELECT mq_send('mail', '1') IS NOT NULL AND mq_send('other', '2') IS NOT NULL AS sent;
SELECT mq_pause('mail');
SELECT payload_json FROM mq_receive(NULL, 10);
SELECT count(*) FROM mq_receive('{mail}');
SELECT mq_resume('mail');
SELECT payload_json FROM mq_receive(NULL, 10);
SELECT mq_clear_all();

-- max_workers counts consumers outside by their leases.
SELECT mq_register_handler('slow', 'nothing(jsonb)', max_workers => 2);
SELECT count(*) FROM mq_send_many('slow', ARRAY['1', '2', '3', '4', '5', '6']::jsonb[]);
SELECT lease AS first, array_agg(id) AS ids FROM mq_receive('{slow}', 2) GROUP BY lease \gset
SELECT lease AS second FROM mq_receive(NULL) \gset
SELECT count(*) FROM mq_receive('{slow}');
SELECT count(*) FROM mq_receive(NULL, 10);
SELECT count(*) FROM mq_ack((:'ids'::uuid[])[1:1], :first);
SELECT count(*) FROM mq_receive('{slow}');
SELECT count(*) FROM mq_ack(:'ids', :first);
SELECT count(*) FROM mq_receive('{slow}', lease => '1 ms');
SELECT pg_sleep(0.01);
SELECT lease AS third FROM mq_receive('{slow}') \gset
SELECT count(*) FROM mq_receive('{slow}');
-- mq_run, as a worker, finds no room either, until one of them is done.
CALL mq_run('{slow}');
SELECT count(*) FROM mq_ack((SELECT array_agg(id) FROM mq_msgs WHERE lease = :second), :second);
CALL mq_run('{slow}');
SELECT count(*) FROM mq_ack((SELECT array_agg(id) FROM mq_msgs WHERE lease = :third), :third);
-- So it is with leased calls.
SELECT mq_register_handler('slow', 'nothing(jsonb)', mode => 'leased', max_workers => 1);
SELECT count(*) FROM mq_send_many('slow', ARRAY['1', '2']::jsonb[]);
SELECT lease AS fourth FROM mq_receive('{slow}') \gset
CALL mq_run('{slow}');
SELECT count(*) FROM mq_ack((SELECT array_agg(id) FROM mq_msgs WHERE lease = :fourth), :fourth);
CALL mq_run('{slow}');
SELECT count(*) FROM mq_msgs;
SELECT mq_unregister_handler('slow');

-- Channels of a greater priority come first.
SELECT mq_register_handler('low', 'nothing(jsonb)', priority => -1), mq_register_handler('high', 'nothing(jsonb)', priority => 1);
SELECT mq_send('low', '"low"') IS NOT NULL AND mq_send('mid', '"mid"') IS NOT NULL AND mq_send('high', '"high"') IS NOT NULL AS sent;
SELECT payload_json FROM mq_receive();
SELECT payload_json FROM mq_receive();
SELECT payload_json FROM mq_receive();
SELECT mq_clear_all(), mq_unregister_handler('low'), mq_unregister_handler('high');

-- Two-phase messages, and those that expire.
SELECT mq_send('mail', '1', id => n(10), commit_interval => '1 hour'), mq_send('mail', '2', id => n(11), expires => '1 ms');
SELECT pg_sleep(0.01);
SELECT count(*) FROM mq_receive('{mail}', 10);
SELECT reason FROM mq_dead WHERE id = n(11);
SELECT mq_commit(ARRAY[n(10)]);
SELECT id, attempt FROM mq_receive('{mail}', 10);
SELECT mq_clear_all();

-- In one transaction: receive, work, acknowledge. A rollback gives everything back.
SELECT mq_send('mail', '1', id => n(12));
BEGIN;
SELECT lease AS token FROM mq_receive('{mail}') \gset
SELECT mq_ack(ARRAY[n(12)], :token) = n(12);
ROLLBACK;
SELECT attempt, lease FROM mq_msgs;
SELECT mq_ack(ARRAY[n(12)], :token);
BEGIN;
SELECT lease AS token FROM mq_receive('{mail}') \gset
SAVEPOINT s;
SELECT mq_ack(ARRAY[n(12)], :token) = n(12);
ROLLBACK TO s;
SELECT mq_nack(ARRAY[n(12)], :token, 'no', retry_in => '0') = n(12);
COMMIT;
SELECT attempt, lease FROM mq_msgs;
-- The lease of a transaction that took long begins at its end, as that of mq_poll.
BEGIN;
SELECT lease AS token FROM mq_receive('{mail}', lease => '2 s') \gset
SELECT pg_sleep(2.1);
SELECT mq_ack(ARRAY[n(12)], :token);
COMMIT;
SELECT mq_extend(ARRAY[n(12)], :token, '1 minute') = n(12) AS begins_again;
SELECT mq_clear_all();

-- Isolation: what was sent meanwhile is received, but nobody waits with an old snapshot.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM mq_msgs;
SELECT count(*) FROM mq_receive('{mail}');
SELECT raises($$SELECT mq_receive('{mail}', wait => '1 s')$$);
ROLLBACK;
BEGIN READ ONLY;
SELECT raises($$SELECT mq_receive('{mail}')$$);
SELECT raises($$SELECT mq_ack('{}', 1)$$);
SELECT raises($$SELECT mq_nack('{}', 1, 'e')$$);
SELECT raises($$SELECT mq_extend('{}', 1, '1 s')$$);
ROLLBACK;

-- A wait ends when its time is over, or at once when something is due.
CREATE FUNCTION waits(arguments text, at_least interval, at_most interval) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  begun timestamptz := clock_timestamp();
  found int;
BEGIN
  EXECUTE format('SELECT count(*) FROM mq_receive(%s)', arguments) INTO found;
  RETURN found || CASE WHEN clock_timestamp() - begun < at_least THEN ' too early' WHEN clock_timestamp() - begun > at_most THEN ' too late' ELSE '' END;
END $$;
SELECT waits($$'{mail}', wait => '200 ms'$$, '200 ms', '10 s');
SELECT waits($$wait => '1 ms'$$, '0', '10 s');
SELECT waits($$'{}', wait => '100 ms'$$, '100 ms', '10 s');
SELECT mq_send('mail', '1', id => n(13), delay => '2 s');
SELECT waits($$'{mail}', wait => '1 minute'$$, '1 s', '30 s');
SELECT waits($$'{mail}', wait => '200 ms'$$, '200 ms', '10 s');
SELECT mq_clear_all();
SELECT mq_send('mail', '1', id => n(13), retries => 1);
SELECT waits($$'{mail}', wait => '1 minute', lease => '2 s'$$, '0', '30 s');
SELECT waits($$'{mail}', wait => '1 minute', lease => '300 ms'$$, '1 s', '30 s');
-- Nothing is behind the last one; what ends the wait is its time.
SELECT waits($$'{mail}', wait => '600 ms'$$, '600 ms', '30 s');
SELECT reason FROM mq_dead WHERE id = n(13);
-- In an ordered channel the next one is.
SELECT count(*) FROM mq_send_many('mail', '{1,2}', ordered => true, retries => 0);
SELECT payload_json FROM mq_receive('{mail}', lease => '300 ms');
SELECT payload_json FROM mq_receive('{mail}', wait => '1 minute');
SELECT mq_clear_all();
-- Paused: it waits, too.
SELECT mq_send('mail', '1') IS NOT NULL AND mq_pause('mail') AS paused;
SELECT waits($$wait => '200 ms'$$, '200 ms', '10 s');
SELECT mq_resume('mail'), mq_clear_all();

-- Handlers may not receive; what they acknowledge is acknowledged.
CREATE FUNCTION receives(m mq_message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM mq_receive(); END $$;
SELECT mq_register_handler('h', 'receives(mq_message)');
SELECT mq_send('h', retries => 0, id => n(14));
CALL mq_run('{h}');
SELECT sqlstate, error FROM mq_dead WHERE id = n(14);
SELECT mq_send('outside', '1', id => n(15));
SELECT lease AS token FROM mq_receive('{outside}') \gset
SELECT format($f$CREATE FUNCTION acks(m mq_message) RETURNS void LANGUAGE sql AS 'SELECT mq_ack(ARRAY[n(15)], %s)'$f$, :token) AS acks \gset
:acks;
SELECT mq_register_handler('h', 'acks(mq_message)');
SELECT mq_send('h') IS NOT NULL AS sent;
CALL mq_run('{h}');
SELECT count(*) FROM mq_msgs;

-- Rights: consume has the four and the type, others nothing.
CREATE ROLE regress_mq_consumer;
CREATE ROLE regress_mq_nobody;
SELECT mq_grant('regress_mq_consumer', 'consume');
GRANT USAGE ON SCHEMA public TO regress_mq_consumer, regress_mq_nobody;
SELECT mq_send('mail', '1', id => n(16));
SET ROLE regress_mq_consumer;
CREATE TEMP TABLE mine AS SELECT * FROM mq_receive('{mail}');
SELECT mq_extend(ARRAY[n(16)], (SELECT lease FROM mine), '2 minutes') = n(16);
SELECT mq_nack(ARRAY[n(16)], (SELECT lease FROM mine), 'no', retry_in => '0') = n(16);
TRUNCATE mine;
INSERT INTO mine SELECT * FROM mq_receive('{mail}');
SELECT mq_ack(ARRAY[n(16)], (SELECT lease FROM mine)) = n(16);
DROP TABLE mine;
SET ROLE regress_mq_nobody;
SELECT mq_receive();
SELECT mq_ack('{}', 1);
SELECT mq_nack('{}', 1, 'e');
SELECT mq_extend('{}', 1, '1 s');
RESET ROLE;
SELECT mq_revoke('regress_mq_consumer', 'consume');
SET ROLE regress_mq_consumer;
SELECT mq_receive();
RESET ROLE;
REVOKE USAGE ON SCHEMA public FROM regress_mq_consumer, regress_mq_nobody;
DROP ROLE regress_mq_consumer, regress_mq_nobody;

-- Tokens stay unique where the sequence was set back.
SELECT mq_send('mail', '1', id => n(17));
SELECT lease AS token FROM mq_receive('{mail}', lease => '1 ms') \gset
SELECT pg_sleep(0.01);
SELECT setval('mq_msgs_seq', 1) = 1 AS back;
SELECT lease < :token AS newer FROM mq_receive('{mail}');
SELECT mq_clear_all();

DROP EXTENSION mq CASCADE;
DROP FUNCTION n, raises, nothing, waits;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
