--
-- Limits: what mq_limit takes and refuses, who may, and what max_pending and max_running hold back.
--
-- Workers stay out of this database.
ALTER SYSTEM SET mq.max_workers = 0;
SELECT pg_reload_conf();
\c
SET timezone = 'UTC';
CREATE EXTENSION mq;

-- --- what is refused ------------------------------------------------------------------------------

-- A limit that nobody gave is none.
SELECT mq_limit('c');
SELECT mq_limit('c', rate_per_args => false);
SELECT mq_limit(NULL, 1);
SELECT mq_limit(repeat('x', 1025), 1);
SELECT mq_limit('c', max_pending => -1);
SELECT mq_limit('c', max_pending => 1000000000000001);
SELECT mq_limit('c', max_running => 0);
SELECT mq_limit('c', max_running => 1001);
SELECT mq_limit('c', max_running_per_args => 0);
SELECT mq_limit('c', max_running_per_args => -2147483648);
SELECT mq_limit('c', rate => 0);
SELECT mq_limit('c', rate => -5, per => '1 minute');
SELECT mq_limit('c', rate => 1000001);
SELECT mq_limit('c', rate => 11, per => '10 microseconds');
SELECT mq_limit('c', rate => 1, per => '0');
SELECT mq_limit('c', rate => 1, per => '-1 second');
SELECT mq_limit('c', rate => 1, per => '36501 days');
SELECT mq_limit('c', per => '1 second');
SELECT mq_limit('c', max_pending => 1, rate_per_args => true);
SELECT mq_unlimit(NULL);
SELECT mq_unlimit(repeat('x', 1025));
BEGIN READ ONLY;
SELECT mq_limit('c', 1);
ROLLBACK;
BEGIN READ ONLY;
SELECT mq_unlimit('c');
ROLLBACK;
SELECT count(*) FROM mq_channel_limits;

-- --- what is taken --------------------------------------------------------------------------------

SELECT mq_limit('c', 10, 2, 3, 100, '1 minute', true);
SELECT mq_limit('d', rate => 7);
SELECT mq_limit('e', rate => 10, per => '10 microseconds'), mq_limit('f', max_running_per_args => 1000), mq_limit('g', max_pending => 0);
SELECT mq_limit('', max_running => 1000), mq_limit('c', rate => 1, per => '1 day');  -- replaces
SELECT channel_name, max_pending, pending, sending, max_running, running, max_running_per_args, rate, per, rate_per_args FROM mq_limits ORDER BY channel_name;
SELECT mq_unlimit('d'), mq_unlimit('d'), mq_unlimit('C'), mq_unlimit('');
SELECT mq_unlimit(channel_name) FROM mq_limits;
SELECT channel_name FROM mq_limits;
-- By hand: the table itself refuses as much.
INSERT INTO mq_channel_limits (channel_name, rate) VALUES ('c', 1);
INSERT INTO mq_channel_limits (channel_name, rate_per_args) VALUES ('c', true);
INSERT INTO mq_channel_limits (channel_name, max_running) VALUES ('c', 0);

-- --- max_pending ----------------------------------------------------------------------------------

-- What comes of a statement: SQLSTATE and message, or 'sent'.
CREATE FUNCTION try(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE statement;
  RETURN 'sent';
EXCEPTION WHEN OTHERS THEN
  RETURN SQLSTATE || ' ' || SQLERRM;
END $$;
SELECT mq_limit('c', max_pending => 3);
SELECT mq_send('c', '1') IS NOT NULL;
SELECT count(*) FROM mq_send_many('c', '{2,3}');
\set VERBOSITY default
SELECT mq_send('c', '4');
SELECT count(*) FROM mq_send_many('c', '{4,5}');
\set VERBOSITY terse
-- Nothing of it is written; other channels are not held up.
SELECT count(*), max(message_json::text) FROM mq_msgs;
SELECT mq_send('other') IS NOT NULL;
SELECT channel_name, max_pending, pending, sending FROM mq_limits;
SELECT "check", ok, detail FROM mq_health() WHERE "check" = 'limits reached';
-- Whatever makes a message pending.
SELECT try($$SELECT mq_send('c', delay => '1 day')$$);
SELECT try($$SELECT mq_send('c', ordered => true)$$);
SELECT try($$SELECT mq_send('c', commit_interval => '1 day')$$);
SELECT try($$SELECT mq_send('c', channel_args => 'x', expires => '1 day', priority => 3)$$);
SELECT try($$SELECT mq_send('c', dedup_key => 'k')$$);
SELECT try($$SELECT * FROM mq_send_once('c', 'k')$$);
SELECT try($$SELECT mq_insert(ARRAY[(gen_random_uuid(), '0', 1, '1 s', 'c', '', NULL, false, 'n', NULL, NULL)::mq_new_t])$$);
SELECT try($$SELECT mq_insert(ARRAY[(gen_random_uuid(), '0', 1, '1 s', 'other', '', NULL, false, 'n', NULL, NULL)::mq_new_t,
                                    (gen_random_uuid(), '0', 1, '1 s', 'c', '', NULL, false, 'n', NULL, NULL)::mq_new_t])$$);
SELECT try($$SELECT mq_send('c', after => (SELECT array_agg(id) FROM mq_msgs))$$);
CALL mq_call('c', '4', NULL);
SELECT channel_name, count(*) FROM mq_msgs GROUP BY 1 ORDER BY 1;
-- In a query over many messages, the query fails and nothing is sent.
SELECT mq_delete(ARRAY[id]) FROM mq_msgs WHERE message_json = '1';
SELECT try($$SELECT mq_send('c', to_jsonb(n)) FROM generate_series(10, 12) n$$);
SELECT count(*) FROM mq_msgs WHERE channel_name = 'c';
SELECT mq_send('c', '1') IS NOT NULL;
-- A message that is deduplicated is not sent.
SELECT mq_unlimit('c');
SELECT mq_send('c', dedup_key => 'k') IS NOT NULL;
SELECT mq_limit('c', max_pending => 4);
SELECT mq_send('c', dedup_key => 'k') = (SELECT id FROM mq_msgs WHERE dedup_key = 'k'), (SELECT sent FROM mq_send_once('c', 'k'));
-- A transaction sees its own: what it has deleted makes room, what it has sent takes it.
BEGIN;
SELECT mq_delete(array_agg(id)) FROM mq_msgs WHERE message_json IN ('1', '2');
SELECT count(*) FROM mq_send_many('c', '{21,22}');
SAVEPOINT a;
SELECT mq_send('c', '23');
ROLLBACK TO a;
SELECT mq_delete(array_agg(id)) FROM mq_msgs WHERE message_json = '21';
SELECT mq_send('c', '24') IS NOT NULL;
SAVEPOINT b;
SELECT mq_send('c', '25');
ROLLBACK TO b;
SELECT pending, sending FROM mq_limits;
COMMIT;
-- What a savepoint has sent goes with it.
SELECT mq_delete(array_agg(id)) FROM mq_msgs WHERE message_json = '24';
BEGIN;
SAVEPOINT a;
SELECT mq_send('c', '31') IS NOT NULL;
ROLLBACK TO a;
SELECT mq_send('c', '32') IS NOT NULL;
SAVEPOINT b;
SAVEPOINT c;
SELECT mq_delete(array_agg(id)) FROM mq_msgs WHERE message_json = '32';
SELECT mq_send('c', '33') IS NOT NULL;
RELEASE c;
ROLLBACK TO b;
SELECT mq_send('c', '34');
ROLLBACK;
SELECT mq_send('c', '35') IS NOT NULL;
SELECT mq_send('c', '36');
-- The limit of this very transaction holds in it, and is gone with it.
BEGIN;
SELECT mq_limit('c', max_pending => 5);
SELECT mq_send('c', '37') IS NOT NULL;
SAVEPOINT a;
SELECT mq_unlimit('c');
SELECT mq_send('c', '38') IS NOT NULL;
ROLLBACK TO a;
SELECT mq_send('c', '38');
ROLLBACK;
SELECT mq_send('c', '37');
-- By an old snapshot, too: the limits and the messages are those of now.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT max_pending FROM mq_channel_limits;
SELECT mq_send('c', '37');
ROLLBACK;
-- Below what is pending: no more come until enough have gone.
SELECT mq_limit('c', max_pending => 1);
SELECT try($$SELECT mq_send('c', '41')$$);
SELECT mq_delete(array_agg(id)) FROM (SELECT id FROM mq_msgs WHERE channel_name = 'c' LIMIT 3) m;
SELECT try($$SELECT mq_send('c', '41')$$);
SELECT mq_clear('{c}');
SELECT try($$SELECT mq_send('c', '41')$$), try($$SELECT mq_send('c', '42')$$);
SELECT mq_limit('c', max_pending => 0);
SELECT mq_clear('{c}');
SELECT try($$SELECT mq_send('c', '43')$$);
-- By hand: the rows are counted again.
SELECT mq_limit('c', max_pending => 5);
SELECT count(*) FROM mq_send_many('c', '{1,2,3,4,5}');
DELETE FROM mq_msgs WHERE channel_name = 'c' AND message_json <> '1';
SELECT count(*) FROM mq_send_many('c', '{2,3,4,5}');
SELECT try($$SELECT mq_send('c', '6')$$);
BEGIN;
DELETE FROM mq_msgs WHERE channel_name = 'c' AND message_json = '1';
SELECT try($$SELECT mq_send('c', '6')$$), try($$SELECT mq_send('c', '7')$$);
ROLLBACK;
SELECT try($$SELECT mq_send('c', '6')$$);
TRUNCATE mq_payloads;
SELECT count(*) FROM mq_send_many('c', '{1,2,3,4,5}');
SELECT try($$SELECT mq_send('c', '6')$$);
UPDATE mq_channel_limits SET max_pending = 6;
SELECT try($$SELECT mq_send('c', '6')$$), try($$SELECT mq_send('c', '7')$$);
SELECT mq_clear('{c}');
-- Messages behind others in ordered channels, dead ones that block, those that wait, and leased ones.
CREATE FUNCTION fail(jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
SELECT mq_register_handler('c', 'fail(jsonb)', on_dead => 'block');
SELECT count(*) FROM mq_send_many('c', '{1,2,3}', ordered => true, retries => 0);
SELECT mq_send('c', '4', after => array_agg(id)) IS NOT NULL FROM mq_msgs WHERE channel_name = 'c';
SELECT mq_send('c', '5', channel_args => 'x', ordered => true) IS NOT NULL;
SELECT mq_send('c', '6', channel_args => 'y', priority => 3, delay => '1 day') IS NOT NULL;
SELECT try($$SELECT mq_send('c', '7')$$);
SELECT count(*) FROM mq_receive('{c}', lease => '1 day');
SELECT try($$SELECT mq_send('c', '7')$$);
UPDATE mq_msgs SET lease = NULL, attempt = 0, attempts = attempts + 1, attempt_at = now() WHERE lease IS NOT NULL;
SELECT mq_pause('other');
CALL mq_run();
SELECT count(*), count(*) FILTER (WHERE attempt_at IS NULL) AS blocking FROM mq_msgs WHERE channel_name = 'c';
SELECT pending FROM mq_limits;
SELECT mq_unregister_handler('c'), mq_resume('other');
-- A redrive sends. What blocks its channel has its row already.
SELECT payload_json, reason FROM mq_dead ORDER BY dead_no;
SELECT mq_limit('c', max_pending => 5);
SELECT try($$SELECT mq_send('c', '7')$$);
SELECT mq_redrive(ids => array_agg(id)) FROM mq_dead WHERE payload_json = '1';
SELECT try($$SELECT mq_redrive()$$);
SELECT payload_json, reason FROM mq_dead ORDER BY dead_no;
SELECT mq_limit('c', max_pending => 10);
SELECT mq_redrive() > 0;
SELECT count(*) FROM mq_dead;
SELECT mq_clear('{c}');

-- A handler that sends counts as any other sender; the message that it was called with counts until it is settled.
CREATE FUNCTION resend(m mq_message) RETURNS void LANGUAGE sql AS $$ SELECT mq_send('c', m.payload_json, retries => 0) $$;
SELECT mq_register_handler('c', 'resend(mq_message)');
SELECT mq_limit('c', max_pending => 1);
SELECT mq_send('c', '1', retries => 0) IS NOT NULL;
CALL mq_run('{c}', 1);
SELECT payload_json, reason, sqlstate, error FROM mq_dead;
SELECT mq_limit('c', max_pending => 2);
SELECT mq_send('c', '2', retries => 0) IS NOT NULL;
CALL mq_run('{c}', 2);
SELECT count(*) FROM mq_dead;
SELECT count(*) FROM mq_msgs WHERE channel_name = 'c';
DELETE FROM mq_dead;
SELECT mq_unregister_handler('c'), mq_unlimit('c');
SELECT mq_clear('{c}');

-- A prepared transaction would be counted by nobody. (What may be prepared is in tests/t/150_limits.pl.)
SELECT mq_limit('c', max_pending => 10);
BEGIN;
SELECT mq_send('c', '1') IS NOT NULL;
PREPARE TRANSACTION 'limits';
SELECT pending, sending FROM mq_limits;

-- --- max_running ----------------------------------------------------------------------------------

SELECT mq_limit('c', max_running => 2), mq_limit('d', max_pending => 100);
SELECT count(*) FROM mq_send_many('c', '{1,2,3,4,5}');
SELECT count(*) FROM mq_send_many('d', '{1,2,3,4,5}');
-- A call of mq_receive is one, however many messages it gets. Other channels are not held up.
SELECT count(*) FROM mq_receive('{c}', 2);
SELECT count(*) FROM mq_receive('{c}');
SELECT count(*) FROM mq_receive('{c}');
SELECT channel_name, count(*) FROM mq_receive('{c,d}', 10) GROUP BY 1;
SELECT channel_name, max_running, running FROM mq_limits ORDER BY 1;
-- The first one that is over makes room.
SELECT count(*) FROM (SELECT m.lease, array_agg(m.id) AS ids FROM mq_msgs m WHERE m.lease IS NOT NULL AND m.channel_name = 'c' GROUP BY 1 ORDER BY m.lease DESC LIMIT 1) AS r, mq_ack(r.ids, r.lease);
SELECT max_running, running FROM mq_limits WHERE channel_name = 'c';
SELECT count(*) FROM mq_receive('{c}');
SELECT count(*) FROM mq_receive('{c}');
-- mq_run and leased calls count as well.
CREATE FUNCTION handle(jsonb) RETURNS void LANGUAGE sql RETURN NULL;
SELECT mq_register_handler('c', 'handle(jsonb)', max_workers => 3);
CALL mq_run('{c}');
SELECT mq_register_handler('c', 'handle(jsonb)', mode => 'leased', max_workers => 3);
CALL mq_run('{c}');
SELECT ok, detail FROM mq_health() WHERE "check" = 'calls limited';
SELECT mq_limit('c', max_running => 3);
CALL mq_run('{c}');
SELECT count(*) FROM mq_msgs WHERE channel_name = 'c' AND lease IS NULL;
-- The lesser of max_running and max_workers holds.
SELECT mq_register_handler('c', 'handle(jsonb)', mode => 'leased', max_workers => 2);
SELECT mq_send('c', '6') IS NOT NULL;
CALL mq_run('{c}');
SELECT mq_register_handler('c', 'handle(jsonb)', mode => 'leased');
CALL mq_run('{c}');
SELECT mq_unregister_handler('c');

-- --- who may --------------------------------------------------------------------------------------

CREATE ROLE regress_mq_limits_developer LOGIN;
CREATE ROLE regress_mq_limits_other LOGIN;
CREATE ROLE regress_mq_limits_monitor LOGIN;
CREATE ROLE regress_mq_limits_producer LOGIN;
SELECT mq_grant('regress_mq_limits_developer', 'develop'), mq_grant('regress_mq_limits_monitor', 'monitor'), mq_grant('regress_mq_limits_producer', 'produce');
GRANT CREATE, USAGE ON SCHEMA public TO regress_mq_limits_developer, regress_mq_limits_other;
SELECT mq_register_handler('theirs', 'handle(jsonb)', run_as => 'regress_mq_limits_other');
SET ROLE regress_mq_limits_developer;
SELECT mq_limit('free', 1), mq_unlimit('free'), mq_limit('free', 2);
SELECT mq_limit('theirs', 1);
SELECT mq_unlimit('theirs');
SELECT channel_name, max_pending FROM mq_channel_limits WHERE channel_name = 'free';
SET ROLE regress_mq_limits_monitor;
SELECT channel_name, max_pending, pending FROM mq_limits WHERE channel_name = 'free';
SELECT mq_limit('free', 1);
SET ROLE regress_mq_limits_producer;
SELECT mq_unlimit('free');
SELECT channel_name FROM mq_limits;
SELECT * FROM mq_channel_limits;
-- The limit holds for all, and an error tells nothing of what others have sent.
SELECT mq_send('free') IS NOT NULL, mq_send('free') IS NOT NULL;
\set VERBOSITY default
SELECT mq_send('free');
\set VERBOSITY terse
RESET ROLE;
DROP OWNED BY regress_mq_limits_developer, regress_mq_limits_other, regress_mq_limits_monitor, regress_mq_limits_producer;
SELECT mq_unregister_handler('theirs');
DROP ROLE regress_mq_limits_developer, regress_mq_limits_other, regress_mq_limits_monitor, regress_mq_limits_producer;

DROP EXTENSION mq CASCADE;
DROP FUNCTION try, fail, handle;
ALTER SYSTEM RESET mq.max_workers;
SELECT pg_reload_conf();
