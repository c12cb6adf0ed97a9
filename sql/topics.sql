--
-- Topics: mq_subscribe, mq_unsubscribe, mq_publish. What matches what is in tests/unit/topics_test.cpp too; races are in
-- tests/isolation/specs/topics.spec.
--
-- Workers stay out of this database.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
SET timezone = 'UTC';
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
-- The channels that a topic goes to, in the order of the ids.
CREATE FUNCTION pg_temp.goes_to(topic text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  sent uuid[] := array(SELECT mq_publish(topic));
  channels text;
BEGIN
  SELECT string_agg(m.channel_name || COALESCE(':' || NULLIF(m.channel_args, ''), ''), ' ' ORDER BY p.n) INTO channels
    FROM unnest(sent) WITH ORDINALITY AS p (id, n) JOIN mq_msgs m ON m.id = p.id;
  PERFORM mq_clear_all();
  RETURN COALESCE(channels, '-');
END $$;

-- A subscription is there once; to subscribe again changes its options.
SELECT mq_subscribe('orders.*.created', 'mail');
SELECT mq_subscribe('orders.*.created', 'mail');
SELECT topic, channel_name, channel_args, ordered, subscribed_at = now() AS now FROM mq_subscriptions;
SELECT mq_subscribe('orders.*.created', 'mail', ordered => true);
SELECT topic, channel_name, channel_args, ordered FROM mq_subscriptions;
SELECT mq_subscribe('orders.*.created', 'mail', 'eu'), mq_subscribe('orders.*.created', 'mail', '');
SELECT topic, channel_name, channel_args, ordered FROM mq_subscriptions ORDER BY topic, channel_name, channel_args;
SELECT mq_unsubscribe('orders.*.created', 'mail', 'us'), mq_unsubscribe('orders.*', 'mail'), mq_unsubscribe('orders.*.created', 'post');
SELECT mq_unsubscribe('orders.*.created', 'mail'), mq_unsubscribe('orders.*.created', 'mail', 'eu'), mq_unsubscribe('orders.*.created', 'mail', '');
SELECT mq_unsubscribe('orders.*.created', 'mail');
SELECT count(*) FROM mq_subscriptions;

-- Bad values, whether anybody has subscribed or not.
SELECT s.statement, pg_temp.refusal(s.statement)
  FROM unnest(ARRAY[
    $$SELECT mq_subscribe(NULL, 'c')$$, $$SELECT mq_subscribe('a', NULL)$$, $$SELECT mq_subscribe('a', 'c', ordered => NULL)$$,
    $$SELECT mq_subscribe('', 'c')$$, $$SELECT mq_subscribe('a..b', 'c')$$, $$SELECT mq_subscribe('.a', 'c')$$, $$SELECT mq_subscribe('a.', 'c')$$,
    $$SELECT mq_subscribe('a*', 'c')$$, $$SELECT mq_subscribe('a.##', 'c')$$, $$SELECT mq_subscribe(rtrim(repeat('#.', 33), '.'), 'c')$$,
    $$SELECT mq_subscribe(repeat('a', 1025), 'c')$$, $$SELECT mq_subscribe('a', repeat('c', 1025))$$, $$SELECT mq_subscribe('a', 'c', repeat('a', 2049))$$,
    $$SELECT mq_subscribe(repeat('a', 1024), repeat('c', 1024), repeat('b', 553))$$,
    $$SELECT mq_unsubscribe(NULL, 'c')$$, $$SELECT mq_unsubscribe('a', NULL)$$, $$SELECT mq_unsubscribe('a*', 'c')$$,
    $$SELECT mq_publish(NULL)$$, $$SELECT mq_publish('')$$, $$SELECT mq_publish('a.*')$$, $$SELECT mq_publish('#')$$, $$SELECT mq_publish('a..b')$$,
    $$SELECT mq_publish(repeat('a.', 32) || 'a')$$, $$SELECT mq_publish(repeat('a', 1025))$$,
    $$SELECT mq_publish('a', channel_args => NULL)$$, $$SELECT mq_publish('a', channel_args => repeat('a', 2049))$$, $$SELECT mq_publish('a', name => repeat('n', 1025))$$,
    $$SELECT mq_publish('a', ordered => NULL)$$, $$SELECT mq_publish('a', delay => '-1 s')$$, $$SELECT mq_publish('a', retries => -1)$$,
    $$SELECT mq_publish('a', retry_backoff => NULL)$$, $$SELECT mq_publish('a', commit_interval => '-1 s')$$, $$SELECT mq_publish('a', dedup_key => repeat('k', 1025))$$,
    $$SELECT mq_publish('a', expires => '0')$$, $$SELECT mq_publish('a', priority => 1001)$$, $$SELECT mq_publish('a', priority => 1, ordered => true)$$,
    $$SELECT mq_publish('a', headers => '[1]')$$, $$SELECT mq_publish('a', headers => '"topic"')$$, $$SELECT mq_publish('a', after => '{NULL}')$$, $$SELECT mq_publish('a', keep => '0')$$,
    $$SELECT mq_publish('a', commit_interval => '1 s', after => '{00000000-0000-0000-0000-000000000001}')$$]) WITH ORDINALITY AS s (statement, n)
 ORDER BY s.n;
SELECT count(*) FROM mq_subscriptions;
BEGIN READ ONLY;
SELECT pg_temp.refusal($$SELECT mq_subscribe('a', 'c')$$), pg_temp.refusal($$SELECT mq_unsubscribe('a', 'c')$$), pg_temp.refusal($$SELECT mq_publish('a')$$);
COMMIT;
-- The longest that there may be.
SELECT mq_subscribe(repeat('a', 1024), repeat('c', 1024), repeat('b', 552)), mq_subscribe(rtrim(repeat('#.', 32), '.'), 'hashes');
SELECT count(*) FROM mq_publish(repeat('a', 1024));
SELECT count(*) FROM mq_publish(rtrim(repeat('a.', 32), '.'));
SELECT mq_unsubscribe(repeat('a', 1024), repeat('c', 1024), repeat('b', 552)), mq_unsubscribe(rtrim(repeat('#.', 32), '.'), 'hashes');
SELECT mq_clear_all();

-- What matches.
SELECT pg_temp.goes_to('orders.eu.created') AS nobody;
SELECT bool_and(mq_subscribe(topic, topic))
  FROM unnest(ARRAY['orders', 'orders.eu', 'orders.eu.created', 'orders.*', 'orders.*.*', '*', '*.*', '*.eu.*', '#', '#.created', 'orders.#', 'orders.#.created',
                    'orders.eu.#', 'orders.eu.created.#', '#.eu.#', 'orders-old', 'orders!', 'ordersx', 'Orders', 'orders.eux', 'órdenes.#']) AS topic;
SELECT topic, pg_temp.goes_to(topic) FROM unnest(ARRAY['orders', 'orders.eu', 'orders.eu.created', 'orders.eu.item.created', 'órdenes', 'órdenes.eu', 'orders-old', 'other']) AS topic;
DELETE FROM mq_subscribers;
-- As a pattern is matched by regular expressions.
CREATE FUNCTION pg_temp.matches(topic text, pattern text) RETURNS boolean LANGUAGE sql AS $$
  SELECT '.' || topic ~ ('^' || string_agg(CASE word WHEN '*' THEN '\.[^.]+' WHEN '#' THEN '(\.[^.]+)*' ELSE '\.' || word END, '' ORDER BY n) || '$')
    FROM unnest(string_to_array(pattern, '.')) WITH ORDINALITY AS w (word, n)
$$;
SELECT bool_and(mq_subscribe(pattern, pattern))
  FROM (SELECT DISTINCT concat_ws('.', a, b, c) AS pattern
          FROM unnest(ARRAY['x', 'y', '*', '#']) AS a, unnest(ARRAY['x', 'y', '*', '#', NULL]) AS b, unnest(ARRAY['x', 'y', '*', '#', NULL]) AS c) AS p;
SELECT count(*) AS patterns FROM mq_subscriptions;
SELECT t.topic, count(*) FILTER (WHERE s.matches) AS matched, count(*) FILTER (WHERE s.matches IS DISTINCT FROM s.got) AS wrong
  FROM (SELECT DISTINCT concat_ws('.', a, b, c) AS topic
          FROM unnest(ARRAY['x', 'y', 'z']) AS a, unnest(ARRAY['x', 'y', NULL]) AS b, unnest(ARRAY['x', NULL]) AS c) AS t
 CROSS JOIN LATERAL (SELECT ' ' || pg_temp.goes_to(t.topic) || ' ' AS channels) AS g
 CROSS JOIN LATERAL (SELECT pg_temp.matches(t.topic, s.topic), strpos(g.channels, ' ' || s.topic || ' ') > 0 AS got FROM mq_subscriptions s) AS s
 GROUP BY t.topic ORDER BY t.topic COLLATE "C";
DELETE FROM mq_subscribers;

-- One message to a channel, whatever the number of its patterns that match; the ids come by channel.
SELECT mq_subscribe('a.b', 'two'), mq_subscribe('a.*', 'two'), mq_subscribe('#', 'two'), mq_subscribe('a.#', 'one'), mq_subscribe('*.b', 'three');
SELECT pg_temp.goes_to('a.b');
-- channel_args: the publisher's, or the subscription's. The same channel in both ways gets one message.
SELECT mq_subscribe('a.b', 'one', 'mine'), mq_subscribe('a.b', 'one', ''), mq_subscribe('a.b', 'four', '4');
SELECT pg_temp.goes_to('a.b');
SELECT count(*) FROM mq_publish('a.b', channel_args => 'mine');
SELECT channel_name, channel_args FROM mq_msgs ORDER BY 1, 2;
SELECT mq_clear_all();
DELETE FROM mq_subscribers;

-- All that is said of a message is as mq_send has it, but the header.
SELECT mq_subscribe('t', 'published');
CREATE FUNCTION pg_temp.differences(options text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  rows jsonb[];
  differences text;
BEGIN
  EXECUTE format($q$SELECT mq_send('published', %s), (SELECT count(*) FROM mq_publish('t', %1$s))$q$, options);
  SELECT array_agg(to_jsonb(m) - '{id,seq}'::text[] ORDER BY m.seq) INTO rows FROM mq_msgs m;
  SELECT string_agg(format('%s: %s, %s', key, s.value, p.value), '; ' ORDER BY key) INTO differences
    FROM jsonb_each_text(rows[1]) s FULL JOIN jsonb_each_text(rows[2]) p USING (key) WHERE s.value IS DISTINCT FROM p.value;
  PERFORM mq_clear_all();
  RETURN cardinality(rows) || ' rows; ' || differences;
END $$;
SELECT options, pg_temp.differences(options)
  FROM unnest(ARRAY[
    $$payload_json => '{"a": [1]}'$$, $$payload_bytes => '\x00ff', name => 'n', channel_args => 'args'$$,
    $$delay => '1 hour', retries => 3, retry_backoff => '5 s'$$, $$commit_interval => '1 min'$$, $$expires => '1 day', keep => '2 days', priority => -7$$,
    $$headers => '{"tenant": 7}'$$, $$headers => '{}'$$]) WITH ORDINALITY AS o (options, n) ORDER BY n;
-- Headers that have a topic keep it.
SELECT count(*) FROM mq_publish('t', headers => '{"topic": "mine", "tenant": 7}');
SELECT count(*) FROM mq_publish('t', headers => '{"topic": null}');
SELECT headers FROM mq_msgs ORDER BY seq;
SELECT mq_clear_all();
DELETE FROM mq_subscribers;
SELECT mq_subscribe('a"\b', 'odd');
SELECT count(*) FROM mq_publish('a"\b');
SELECT headers FROM mq_msgs;
SELECT mq_clear_all();
DELETE FROM mq_subscribers;

-- Each of the messages waits for what it is sent after, and is committed by itself.
SELECT mq_subscribe('t', 'a'), mq_subscribe('t', 'b');
SELECT mq_send('first', id => '00000000-0000-0000-0000-000000000001') IS NOT NULL AS sent;
SELECT s.state FROM mq_publish('t', after => '{00000000-0000-0000-0000-000000000001}') AS p (id), mq_status(ARRAY[p.id]) AS s;
SELECT count(*) FROM mq_prerequisites;
SELECT mq_delete('{00000000-0000-0000-0000-000000000001}');
SELECT channel_name, mq_why(id) FROM mq_msgs ORDER BY channel_name;
SELECT mq_clear_all();
WITH p AS MATERIALIZED (SELECT array_agg(id) AS ids FROM mq_publish('t', commit_interval => '1 hour') AS p (id)) SELECT mq_commit(ids[1:1]) = ids[1:1] AS committed FROM p;
SELECT channel_name, commit_interval FROM mq_msgs ORDER BY channel_name;
SELECT mq_clear_all();

-- Once for a dedup_key, in each channel by itself.
CREATE TEMP TABLE published (n serial, id uuid);
INSERT INTO published (id) SELECT mq_publish('t', '1', dedup_key => 'k');
INSERT INTO published (id) SELECT mq_publish('t', '2', dedup_key => 'k');
SELECT count(*), count(DISTINCT id) FROM published;
SELECT mq_delete(ARRAY[(SELECT id FROM mq_msgs WHERE channel_name = 'a')]);
INSERT INTO published (id) SELECT mq_publish('t', '3', dedup_key => 'k', ordered => true);
SELECT m.channel_name, p.payload_json, m.after_message_id IS NOT NULL AS ordered, m.dedup_key FROM mq_msgs m JOIN mq_payloads p USING (id) ORDER BY 1;
SELECT (SELECT array_agg(id ORDER BY n) FROM published WHERE n > 4) = array_agg(id ORDER BY channel_name) AS both FROM mq_msgs;
-- A key that is too long for one of the channels: nothing is sent to any.
SELECT mq_clear_all();
SELECT mq_subscribe('t', 'z', repeat('z', 2048));
SELECT pg_temp.refusal(format($$SELECT mq_publish('t', dedup_key => %L)$$, repeat('k', 1000)));
SELECT count(*) FROM mq_msgs;
DROP TABLE published;
DELETE FROM mq_subscribers;

-- ordered: if the publisher asks for it, in all channels; if a subscription does, in its channel.
SELECT mq_subscribe('t', 'a'), mq_subscribe('t', 'b', ordered => true);
SELECT count(*) FROM mq_publish('t', '1', priority => 5);
SELECT count(*) FROM mq_publish('t', '2');
SELECT count(*) FROM mq_publish('t', '3', ordered => true);
SELECT count(*) FROM mq_publish('t', '4', ordered => true);
SELECT channel_name, message_json, priority, after_message_id IS NOT NULL AS ordered,
       (SELECT f.message_json FROM mq_msgs f WHERE f.id = m.after_message_id) AS follows
  FROM mq_msgs m ORDER BY channel_name, message_json::text;
SELECT mq_clear_all();
-- Another pattern of the channel asks for it.
SELECT mq_subscribe('#', 'a', ordered => true);
SELECT count(*) FROM mq_publish('t');
SELECT channel_name, after_message_id IS NOT NULL AS ordered FROM mq_msgs ORDER BY channel_name;
SELECT mq_clear_all();
DELETE FROM mq_subscribers;

-- A transaction sees its own subscriptions, and takes all back with a rollback.
BEGIN;
SELECT mq_subscribe('t', 'a');
SAVEPOINT s;
SELECT mq_subscribe('t', 'b');
SELECT pg_temp.goes_to('t');
ROLLBACK TO s;
SELECT pg_temp.goes_to('t');
SELECT mq_unsubscribe('t', 'a'), mq_subscribe('t', 'c'), pg_temp.goes_to('t');
SELECT count(*) FROM mq_publish('t');
ROLLBACK;
SELECT pg_temp.goes_to('t');
SELECT count(*) FROM mq_msgs;

-- Handlers get the message, and its topic. One that publishes does so in its transaction. What was published before
-- unsubscribing is handled.
CREATE TABLE handled (n serial, channel text, topic text, payload jsonb);
CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO handled (channel, topic, payload) VALUES (m.channel_name, m.headers ->> 'topic', m.payload_json);
  IF m.payload_json = '"again"' THEN PERFORM mq_publish('again.' || m.channel_name, m.payload_json || '1'); END IF;
END $$;
SELECT mq_register_handler(c, 'handle(mq_message)') FROM unnest('{a,b,c}'::text[]) AS c;
SELECT mq_subscribe('t.#', 'a'), mq_subscribe('t.b', 'b'), mq_subscribe('again.*', 'c', ordered => true);
SELECT count(*) FROM mq_publish('t.b', '"again"', ordered => true);
SELECT count(*) FROM mq_publish('t.b', '2', ordered => true);
SELECT mq_unsubscribe('t.b', 'b');
SELECT count(*) FROM mq_publish('t.b', '3', ordered => true);
CALL mq_run();
SELECT channel, string_agg(topic || ' ' || payload::text, ', ' ORDER BY topic, n) FROM handled GROUP BY channel ORDER BY channel;
SELECT count(*) FROM mq_msgs;
-- A message that is dead is sent again to its own channel alone.
SELECT mq_unregister_handler('c');
SELECT count(*) FROM mq_publish('again.x', retries => 0, expires => '1 us');
CALL mq_run();
SELECT channel_name, reason, headers FROM mq_dead;
SELECT mq_redrive();
SELECT channel_name, headers FROM mq_msgs;
SELECT mq_clear_all();

SELECT bool_or(mq_unregister_handler(c)) FROM unnest('{a,b}'::text[]) AS c;

-- What a publish reads grows with the subscriptions that match, and not with those that do not: descents of the index, entries,
-- and rows.
CREATE FUNCTION pg_temp.reads(OUT descents bigint, OUT entries bigint, OUT "rows" bigint) RETURNS record LANGUAGE sql AS $$
  SELECT pg_stat_get_xact_numscans(i), pg_stat_get_xact_tuples_returned(i), pg_stat_get_xact_tuples_fetched(i) FROM CAST('mq_subscribers_pkey' AS regclass) AS i
$$;
CREATE FUNCTION pg_temp.reads_of(topic text) RETURNS TABLE (sent bigint, descents bigint, entries bigint, "rows" bigint) LANGUAGE plpgsql AS $$
DECLARE
  before record;
BEGIN
  before := pg_temp.reads();
  SELECT count(*) INTO sent FROM mq_publish(topic);
  RETURN QUERY SELECT sent, r.descents - before.descents, r.entries - before.entries, r."rows" - before."rows" FROM pg_temp.reads() r;
END $$;
-- Without what is left of rows that are gone.
TRUNCATE mq_subscribers;
SELECT * FROM pg_temp.reads_of('orders.eu.created');
SELECT mq_subscribe('orders.eu.created', 'a'), mq_subscribe('orders.*.created', 'b'), mq_subscribe('orders.#', 'c');
SELECT * FROM pg_temp.reads_of('orders.eu.created');
SELECT count(mq_subscribe(format('customers.%s.%s', n, kind), 'c' || n)) FROM generate_series(1, 250) AS n, unnest('{created,*,#,eu.created}'::text[]) AS kind;
SELECT * FROM pg_temp.reads_of('orders.eu.created');
SELECT count(mq_subscribe(format('orders.%s.created', n), 'd' || n)) FROM generate_series(1, 1000) AS n;
SELECT * FROM pg_temp.reads_of('orders.eu.created');
SELECT count(mq_subscribe('orders.eu.created', 'e', n::text)) FROM generate_series(1, 1000) AS n;
SELECT * FROM pg_temp.reads_of('orders.eu.created');
-- Patterns that cannot be met: the steps are bounded.
SELECT mq_clear_all();
TRUNCATE mq_subscribers;
SELECT mq_subscribe(repeat('#.', 31) || 'z', 'z'), mq_subscribe(repeat('#.a.', 15) || '#.z', 'z'), mq_subscribe(repeat('*.', 31) || 'z', 'z');
SELECT sent, descents <= 2 * 3 * (31 + 31 + 31) AS bounded FROM pg_temp.reads_of(rtrim(repeat('a.', 32), '.'));
SELECT mq_clear_all();
DELETE FROM mq_subscribers;

-- Rows that were written by hand.
INSERT INTO mq_subscribers SELECT topic, 'by hand', false, '', false FROM unnest(ARRAY['', '.', 'a..b', '#a', 'a.', repeat('#.', 100000) || '#', 'a.b']) AS topic;
SELECT pg_temp.goes_to('a.b');
DELETE FROM mq_subscribers;

-- More channels than a transaction locks one by one; each gets it, in order.
SELECT count(mq_subscribe('t', 'many', n::text, ordered => true)) FROM generate_series(1, 1000) AS n;
SELECT count(*), count(DISTINCT id) FROM mq_publish('t', '1') AS p (id);
SELECT count(*) FROM mq_publish('t', '2', dedup_key => 'k');
SELECT message_json, count(*), count(DISTINCT channel_key), count(*) FILTER (WHERE after_message_id = '00000000-0000-0000-0000-000000000000') AS heads FROM mq_msgs GROUP BY 1 ORDER BY 1;
SELECT mq_clear_all();
DELETE FROM mq_subscribers;

-- A trigger of somebody's that keeps a subscription out is no success.
CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER keep_out BEFORE INSERT ON mq_subscribers FOR EACH ROW EXECUTE FUNCTION keep_out();
SELECT pg_temp.refusal($$SELECT mq_subscribe('t', 'a')$$);
DROP TRIGGER keep_out ON mq_subscribers;
DROP FUNCTION keep_out;

-- Producers publish, into every channel that has subscribed; who subscribes is for admin.
CREATE ROLE regress_mq_producer;
CREATE ROLE regress_mq_developer;
CREATE ROLE regress_mq_monitor;
CREATE ROLE regress_mq_consumer;
CREATE ROLE regress_mq_admin;
CREATE ROLE regress_mq_nobody;
SELECT mq_grant('regress_mq_producer', 'produce'), mq_grant('regress_mq_developer', 'develop'), mq_grant('regress_mq_monitor', 'monitor'),
       mq_grant('regress_mq_consumer', 'consume'), mq_grant('regress_mq_admin', 'admin');
CREATE FUNCTION pg_temp.as_role(role name, statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  result text;
BEGIN
  EXECUTE format('SET LOCAL ROLE %I', role);
  EXECUTE statement INTO result;
  RESET ROLE;
  RETURN result;
EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE || ' ' || SQLERRM;
END $$;
SELECT role, pg_temp.as_role(role, $$SELECT mq_subscribe('t', role) FROM current_user AS role$$) AS subscribe,
       pg_temp.as_role(role, $$SELECT mq_unsubscribe('t', role) FROM current_user AS role$$) AS unsubscribe
  FROM unnest(ARRAY['regress_mq_admin', 'regress_mq_consumer', 'regress_mq_developer', 'regress_mq_monitor', 'regress_mq_nobody', 'regress_mq_producer']) AS role;
SELECT mq_subscribe('t', 'secret');
SELECT role, pg_temp.as_role(role, $$SELECT count(*) FROM mq_publish('t')$$) AS publish, pg_temp.as_role(role, 'SELECT channel_name FROM mq_subscriptions') AS look,
       pg_temp.as_role(role, $$DELETE FROM mq_subscribers RETURNING 'gone'$$) AS remove
  FROM unnest(ARRAY['regress_mq_admin', 'regress_mq_consumer', 'regress_mq_developer', 'regress_mq_monitor', 'regress_mq_nobody', 'regress_mq_producer']) AS role;
SELECT count(*) FROM mq_msgs;
DROP OWNED BY regress_mq_producer, regress_mq_developer, regress_mq_monitor, regress_mq_consumer, regress_mq_admin;
DROP ROLE regress_mq_producer, regress_mq_developer, regress_mq_monitor, regress_mq_consumer, regress_mq_admin, regress_mq_nobody;

DROP FUNCTION handle;
DROP EXTENSION mq;
DROP TABLE handled;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
