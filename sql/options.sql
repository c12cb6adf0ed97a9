--
-- What goes with a message: priority, headers and keep, checked at the door, stored, and given to its handler.
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

-- Each function takes them, and refuses what the others refuse.
\pset format unaligned
SELECT sender, option, pg_temp.refusal(format('SELECT %s, %s)', sender, option))
  FROM unnest(ARRAY['mq_send(''work'', ''1''', 'mq_send_many(''work'', ''{1}''', 'mq_send_once(''work'', ''key''']) AS sender,
       unnest(ARRAY['priority => -1001', 'priority => 1001', 'priority => NULL', 'priority => 1, ordered => true',
                    'headers => ''[1]''', 'headers => ''"text"''', 'headers => ''null''',
                    'keep => ''0''', 'keep => ''-1 day''', 'keep => ''36501 days''', 'keep => ''1 mon -30 days -1 hour''']) AS option;
\pset format aligned
SELECT count(*) FROM mq_msgs;

-- They are stored as they were given. A payload of any size goes with headers of any size.
SELECT mq_send('work', '1', priority => -1000, headers => '{"b": 1, "a": {"tenant": "x"}}', keep => '1 mon 3 hours') IS NOT NULL AS sent;
SELECT count(*) FROM mq_send_many('work', '{2, 3}', priority => 1000, headers => '{}', keep => '36500 days');
SELECT sent FROM mq_send_once('work', 'key', '4', priority => 7, headers => jsonb_build_object('large', repeat('x', 100000)));
SELECT mq_send('work', '5', ordered => true, priority => 0) IS NOT NULL AS sent;
SELECT message_json, priority, left(headers::text, 40) AS headers, length(headers ->> 'large') AS large, keep > '1 month' AS keep FROM mq_msgs ORDER BY message_json;

-- Handlers get them.
CREATE TABLE seen (payload jsonb, priority integer, headers text, large integer);
CREATE FUNCTION note(message mq_message) RETURNS void LANGUAGE sql AS $$
  INSERT INTO seen VALUES (message.payload_json, message.priority, left(message.headers::text, 40), length(message.headers ->> 'large')) $$;
CREATE FUNCTION note_all(messages mq_message[]) RETURNS void LANGUAGE sql AS $$ SELECT note(m) FROM unnest(messages) AS m $$;
SELECT mq_register_handler('work', 'note(mq_message)');
CALL mq_run();
SELECT * FROM seen ORDER BY payload;
TRUNCATE seen;
SELECT mq_register_handler('work', 'note_all(mq_message[])');
SELECT count(*) FROM mq_send_many('work', '{1, 2}', priority => 3, headers => '{"h": true}');
CALL mq_run();
SELECT * FROM seen ORDER BY payload;
TRUNCATE seen;
SELECT mq_register_handler('work', 'note(mq_message)', mode => 'leased');
SELECT mq_send('work', '1', priority => -3, headers => '{"h": "leased"}') IS NOT NULL AS sent;
CALL mq_run();
SELECT * FROM seen ORDER BY payload;

-- keep of a registration.
SELECT o AS option, pg_temp.refusal(format('SELECT mq_register_handler(''work'', ''note(mq_message)'', keep => %L)', o))
  FROM unnest(ARRAY['0', '-1 s', '36501 days']) AS o;
SELECT keep FROM mq_handlers;
SELECT mq_register_handler('work', 'note(mq_message)', keep => '7 days');
SELECT keep FROM mq_handlers;
SELECT mq_register_handler('work', 'note(mq_message)');
SELECT keep FROM mq_handlers;

DROP EXTENSION mq CASCADE;
DROP TABLE seen;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
