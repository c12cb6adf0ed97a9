--
-- Sending: what the defaults are, and that a bad value is refused at the door with an error that
-- names the field, its value and the rule, and nothing of the call is kept.
--
-- Workers stay out of this database.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
CREATE EXTENSION mq;

-- The error of a statement: SQLSTATE, message, detail.
CREATE FUNCTION pg_temp.refusal(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  message text;
  detail text;
BEGIN
  EXECUTE statement;
  RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
  RETURN concat_ws(' | ', SQLSTATE, message, NULLIF(detail, ''));
END $$;

-- mq_insert of a good message and of another that has `value` in `field`.
CREATE FUNCTION pg_temp.insert_with(field text, value text) RETURNS text LANGUAGE sql AS $$
  SELECT pg_temp.refusal(format($f$
    SELECT mq_insert(ARRAY[
      ('00000000-0000-0000-0000-000000000001', '0', 4, '1 s', 'work', '', NULL, false, 'good', '{}', NULL)::mq_new_t,
      jsonb_populate_record(NULL::mq_new_t, %L)])$f$,
    jsonb_build_object('id', '00000000-0000-0000-0000-000000000002', 'delay', '0', 'retries', 4, 'retry_backoff', '1 s',
                       'channel_name', 'work', 'channel_args', '', 'ordered', false, 'name', 'job')
    || jsonb_build_object(field, value)))
$$;

-- Each field of mq_insert.
SELECT field, left(value, 24) AS value, pg_temp.insert_with(field, value) AS outcome
  FROM (VALUES ('id', NULL),
               ('id', '00000000-0000-0000-0000-000000000000'),
               ('delay', NULL),
               ('delay', '-1 second'),
               ('delay', '1 month -31 days'),
               ('delay', '36501 days'),
               ('delay', '101 years'),
               ('delay', '178000000 years'),
               ('delay', '-178000000 years'),
               ('retries', NULL),
               ('retries', '-1'),
               ('retries', '2147483647'),
               ('retries', '-2147483648'),
               ('retry_backoff', NULL),
               ('retry_backoff', '-00:00:00.000001'),
               ('retry_backoff', '178000000 years'),
               ('channel_name', NULL),
               ('channel_name', repeat('c', 1025)),
               ('channel_name', repeat('ä', 513)),
               ('channel_args', NULL),
               ('channel_args', repeat('a', 2049)),
               ('commit_interval', '-1 second'),
               ('commit_interval', '178000000 years'),
               ('ordered', NULL),
               ('name', NULL),
               ('name', repeat('n', 1025)),
               ('payload_json', 'no json'),
               ('payload_json', '{"a": '),
               ('payload_json', ''),
               ('payload_json', '{"a": "\u0000"}')) AS bad (field, value);
SELECT count(*) AS messages, (SELECT count(*) FROM mq_payloads) AS payloads FROM mq_msgs;

-- Arrays: NULL, a NULL in it, none in it, an id twice in it.
SELECT pg_temp.refusal($$SELECT mq_insert(NULL)$$);
SELECT pg_temp.refusal($$SELECT mq_insert(ARRAY[NULL]::mq_new_t[])$$);
SELECT pg_temp.refusal($$SELECT mq_insert('{}')$$);
SELECT left(pg_temp.insert_with('id', '00000000-0000-0000-0000-000000000001'), 5) AS sqlstate;
SELECT count(*) AS messages, (SELECT count(*) FROM mq_payloads) AS payloads FROM mq_msgs;

-- At the edge of what is good.
SELECT pg_temp.refusal(call) AS outcome
  FROM unnest(ARRAY[$$SELECT mq_send('work', delay => '36500 days')$$,
                    $$SELECT mq_send('work', delay => '1 month -1 day')$$,
                    $$SELECT mq_send('work', retries => 0)$$,
                    $$SELECT mq_send('work', retries => 2147483646)$$,
                    $$SELECT mq_send('work', retry_backoff => '0')$$,
                    $$SELECT mq_send('work', retry_backoff => '36500 days')$$,
                    $$SELECT mq_send('work', commit_interval => '0')$$,
                    $$SELECT mq_send('')$$,
                    $$SELECT mq_send(repeat('c', 1024), channel_args => repeat('a', 2048), name => repeat('n', 1024))$$,
                    $$SELECT mq_send('work', name => '', payload_bytes => '')$$,
                    $$SELECT mq_send('work', 'null')$$]) AS call;
SELECT count(*) AS messages, (SELECT count(*) FROM mq_payloads) AS payloads FROM mq_msgs;
SELECT mq_clear_all();

-- A channel name that is too long to be notified whole can be sent to all the same.
SET mq.notify = 'on';
SELECT pg_temp.refusal(format('SELECT mq_send(%L)', repeat('long', 50)));
RESET mq.notify;
SELECT length(channel_name) FROM mq_msgs;
SELECT mq_clear_all();

-- jsonb is what payload_json is: of duplicate keys the last is kept, and keys are put in order.
SELECT mq_insert(ARRAY[('00000000-0000-0000-0000-000000000003', '0', 4, '1 s', 'work', '', NULL, false, 'job',
                        '{"b": 1, "a": 1, "b": 2}', NULL)::mq_new_t]);
SELECT payload_json FROM mq_poll('{work}');
-- A checkpoint replaces it; it is left alone by NULL and refused by what is not JSON.
SELECT mq_checkpoint('00000000-0000-0000-0000-000000000003', '1 minute', 'null', NULL, NULL);
SELECT payload_json, payload_json IS NULL AS missing FROM mq_payloads;
SELECT pg_temp.refusal($$SELECT mq_checkpoint('00000000-0000-0000-0000-000000000003', '1 minute', '{', NULL, NULL)$$);
SELECT pg_temp.refusal($$SELECT mq_checkpoint('00000000-0000-0000-0000-000000000003', '1 minute', '"\u0000"', NULL, NULL)$$);
SELECT payload_json FROM mq_payloads;
SELECT mq_clear_all();

-- The other functions, and their own values.
SELECT pg_temp.refusal(call) AS outcome
  FROM unnest(ARRAY[$$SELECT mq_poll(NULL, NULL)$$,
                    $$SELECT mq_poll(NULL, 0)$$,
                    $$SELECT mq_poll(NULL, -1)$$,
                    $$SELECT mq_poll(NULL, 2147483647)$$,
                    $$SELECT mq_poll('{work,NULL}')$$,
                    $$SELECT mq_delete(NULL)$$,
                    $$SELECT mq_delete('{NULL}')$$,
                    $$SELECT mq_keep_alive(NULL, '1 s')$$,
                    $$SELECT mq_keep_alive('{}', NULL)$$,
                    $$SELECT mq_keep_alive('{}', '-1 s')$$,
                    $$SELECT mq_keep_alive('{}', '178000000 years')$$,
                    $$SELECT mq_checkpoint(NULL, '1 s', NULL, NULL, NULL)$$,
                    $$SELECT mq_checkpoint('00000000-0000-0000-0000-000000000003', NULL, NULL, NULL, NULL)$$,
                    $$SELECT mq_checkpoint('00000000-0000-0000-0000-000000000003', '-1 s', NULL, NULL, NULL)$$,
                    $$SELECT mq_checkpoint('00000000-0000-0000-0000-000000000003', '1 s', NULL, NULL, -1)$$,
                    $$SELECT mq_commit(NULL)$$,
                    $$SELECT mq_commit('{00000000-0000-0000-0000-000000000003,NULL}')$$,
                    $$SELECT mq_clear(NULL)$$,
                    $$SELECT mq_clear('{NULL}')$$,
                    $$SELECT mq_redrive(retries => NULL)$$,
                    $$SELECT mq_redrive(retries => -1)$$,
                    $$SELECT mq_pause(NULL)$$,
                    $$SELECT mq_resume(NULL)$$]) AS call;

-- mq_send: the same rules.
SELECT pg_temp.refusal(call) AS outcome
  FROM unnest(ARRAY[$$SELECT mq_send(NULL)$$,
                    $$SELECT mq_send(repeat('c', 1025))$$,
                    $$SELECT mq_send('work', name => repeat('n', 1025))$$,
                    $$SELECT mq_send('work', channel_args => NULL)$$,
                    $$SELECT mq_send('work', ordered => NULL)$$,
                    $$SELECT mq_send('work', delay => NULL)$$,
                    $$SELECT mq_send('work', delay => '-1 s')$$,
                    $$SELECT mq_send('work', retries => NULL)$$,
                    $$SELECT mq_send('work', retries => -1)$$,
                    $$SELECT mq_send('work', retry_backoff => NULL)$$,
                    $$SELECT mq_send('work', retry_backoff => '-1 s')$$,
                    $$SELECT mq_send('work', commit_interval => '-1 s')$$,
                    $$SELECT mq_send('work', id => '00000000-0000-0000-0000-000000000000')$$,
                    $$SELECT mq_send_many('work', NULL)$$,
                    $$SELECT mq_send_many(NULL, '{1,2}')$$,
                    $$SELECT mq_send_many('work', '{1,2}', retries => -1)$$,
                    $$SELECT mq_send_many('work', '{1,2}', delay => NULL)$$]) AS call;
SELECT count(*) AS messages, (SELECT count(*) FROM mq_payloads) AS payloads FROM mq_msgs;

-- The defaults of mq_send, as a row.
SELECT mq_send('work', '{"n": 1}') AS id \gset
SELECT id = :'id' AS same_id, attempt_at = created_at AS due, attempts, retry_backoff, channel_name, channel_args,
       commit_interval, after_message_id FROM mq_msgs;
SELECT name, payload_json, payload_bytes FROM mq_payloads;

-- Its id is a uuid of version 7: time-ordered, by milliseconds since 1970.
SELECT substr(:'id', 15, 1) AS version, substr(:'id', 20, 1) IN ('8', '9', 'a', 'b') AS variant,
       abs(('x' || lpad(replace(left(:'id', 13), '-', ''), 16, '0'))::bit(64)::bigint
           - extract(epoch FROM clock_timestamp()) * 1000) < 60000 AS of_now;
SELECT mq_clear_all();

-- Every option of mq_send.
SELECT mq_send('work', '[1]', name => 'job', channel_args => 'a', ordered => true, delay => '1 hour', retries => 2,
               retry_backoff => '1 minute', commit_interval => '10 minutes', payload_bytes => '\xff',
               id => '00000000-0000-0000-0000-000000000005');
SELECT id, attempt_at - created_at AS due_after, attempts, retry_backoff, channel_name, channel_args, commit_interval,
       after_message_id FROM mq_msgs;
SELECT name, payload_json, payload_bytes FROM mq_payloads;
SELECT mq_clear_all();

-- NULL says nothing: no payload, the name of the channel, a new id.
SELECT mq_send('work', NULL, NULL, id => NULL) IS NOT NULL AS sent;
SELECT name, payload_json, payload_bytes FROM mq_payloads;
SELECT mq_clear_all();

-- mq_send_many: ids in the order of the array; ordered => true keeps that order.
CREATE TEMP TABLE sent AS
  SELECT * FROM mq_send_many('work', '{"\"c\"", "\"a\"", NULL, "\"b\""}', name => 'job', ordered => true, retries => 1,
                             payload_bytes => '\x01') WITH ORDINALITY AS s (id, n);
SELECT n, payload_json, name, payload_bytes, attempts
  FROM sent JOIN mq_msgs USING (id) JOIN mq_payloads USING (id) ORDER BY n;
DROP TABLE sent;
SELECT row_number() OVER (ORDER BY m.seq), p.payload_json, m.after_message_id = lag(m.id) OVER (ORDER BY m.seq) AS linked
  FROM mq_msgs m JOIN mq_payloads p USING (id) ORDER BY m.seq;
SELECT count(*) FROM mq_send_many('work', '{}');
SELECT mq_clear_all();

-- A thousand at once.
CREATE TEMP TABLE sent AS
  SELECT * FROM mq_send_many('work', (SELECT array_agg(to_jsonb(i) ORDER BY i) FROM generate_series(1, 1000) AS i))
                WITH ORDINALITY AS s (id, n);
SELECT count(*) AS messages, count(DISTINCT id) AS ids, bool_and(payload_json::int = n) AS in_order,
       bool_and(place_number = n) AS placed_in_order
  FROM sent JOIN mq_payloads USING (id)
  JOIN (SELECT id, row_number() OVER (ORDER BY seq) AS place_number FROM mq_msgs) AS m USING (id);
DROP TABLE sent;
SELECT mq_clear_all();

-- Sent when the transaction commits, and not at all when it rolls back, or to a savepoint before.
BEGIN;
SELECT mq_send('work', '"rolled back"') IS NOT NULL AS sent;
ROLLBACK;
BEGIN;
SELECT mq_send('work', '"kept"') IS NOT NULL AS sent;
SAVEPOINT s;
SELECT mq_send('work', '"rolled back"') IS NOT NULL AS sent;
ROLLBACK TO s;
COMMIT;
SELECT payload_json FROM mq_poll(NULL, 10);
SELECT mq_clear_all();

-- An id that is in use.
SELECT mq_send('work', id => '00000000-0000-0000-0000-000000000006');
SELECT left(pg_temp.refusal($$SELECT mq_send('other', id => '00000000-0000-0000-0000-000000000006')$$), 5) AS sqlstate;
SELECT channel_name FROM mq_msgs;
-- The error says which constraint, as a client needs it.
DO $$
DECLARE
  schema_name text;
  table_name text;
  constraint_name text;
BEGIN
  PERFORM mq_send('other', id => '00000000-0000-0000-0000-000000000006');
EXCEPTION WHEN unique_violation THEN
  GET STACKED DIAGNOSTICS schema_name = SCHEMA_NAME, table_name = TABLE_NAME, constraint_name = CONSTRAINT_NAME;
  RAISE NOTICE '% % %', schema_name, table_name, constraint_name;
END $$;
SELECT mq_clear_all();

-- A number of retries that outlasts an outage of hours.
SELECT mq_send('work') IS NOT NULL AS sent, count(*) FROM mq_send_many('work', '{1}');
SELECT attempts, count(*) FROM mq_msgs GROUP BY 1;
SELECT mq_clear_all();

DROP EXTENSION mq;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
