-- What the generator's clients work on, and the handlers. A handler does what the payload says:
--   fail N      raises MQF01 on its first N attempts, unless the message is in `mended`
--   snooze      asks once to be called again later; discard  moves itself to the dead letters
--   sleep S     takes so many seconds; progress  tells how far it is
-- and then leaves an effect, in the transaction of its call. Each call leaves a line in the server's log as well, which no
-- rollback takes back.
CREATE EXTENSION mq;
CREATE EXTENSION amcheck;
CREATE TABLE effects (
  n bigserial PRIMARY KEY, id uuid NOT NULL, channel text NOT NULL, args text NOT NULL, attempt int NOT NULL, ordered boolean NOT NULL,
  what text NOT NULL, payload jsonb, headers jsonb, began timestamptz NOT NULL,
  xid text NOT NULL DEFAULT pg_current_xact_id());
CREATE INDEX ON effects (id);
CREATE TABLE mended (id uuid PRIMARY KEY);

CREATE FUNCTION leave(m mq_message, what text, began timestamptz) RETURNS void LANGUAGE sql AS $$
  INSERT INTO effects (id, channel, args, attempt, ordered, what, payload, headers, began)
  VALUES (m.id, m.channel_name, m.channel_args, m.attempt, m.ordered, what, m.payload_json, m.headers, began)
$$;

CREATE FUNCTION rest(seconds float8) RETURNS void LANGUAGE sql AS $$ SELECT pg_sleep(seconds) $$;

CREATE FUNCTION work(m mq_message) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE began timestamptz := clock_timestamp();
BEGIN
  RAISE LOG 'mq-call % % %', m.id, m.attempt, m.channel_name;
  IF m.payload_json ? 'progress' THEN PERFORM mq_progress(0.5, 'half'); END IF;
  IF m.payload_json ? 'sleep' THEN PERFORM rest((m.payload_json ->> 'sleep')::float8); END IF;
  IF (m.payload_json ->> 'fail')::int >= m.attempt AND NOT EXISTS (SELECT FROM mended WHERE id = m.id) THEN
    PERFORM leave(m, 'handled', began);
    RAISE EXCEPTION 'planned' USING ERRCODE = 'MQF01';
  ELSIF m.payload_json ? 'snooze' AND NOT EXISTS (SELECT FROM effects WHERE id = m.id) THEN
    PERFORM leave(m, 'snoozed', began), mq_snooze('50 ms', m.id);
  ELSIF m.payload_json ? 'discard' AND NOT EXISTS (SELECT FROM mended WHERE id = m.id) THEN
    PERFORM leave(m, 'discarded', began), mq_discard('planned', m.id);
  ELSE
    PERFORM leave(m, 'handled', began);
  END IF;
  RETURN jsonb_build_object('of', m.id);
END $$;

CREATE FUNCTION work_batch(messages mq_message[]) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  m mq_message;
  results jsonb := '[]';
BEGIN
  FOREACH m IN ARRAY messages LOOP results := results || work(m); END LOOP;
  RETURN results;
END $$;

-- Comes to a checkpoint and commits, then goes on with what the checkpoint has left in the payload.
CREATE PROCEDURE travel(m mq_message) LANGUAGE plpgsql AS $$
DECLARE began timestamptz := clock_timestamp();
BEGIN
  RAISE LOG 'mq-call % % %', m.id, m.attempt, m.channel_name;
  IF NOT m.payload_json ? 'half' THEN
    PERFORM leave(m, 'step', began), mq_checkpoint(m.id, '1 minute', (m.payload_json || '{"half": true}')::text, NULL, 0);
    COMMIT;
  END IF;
  PERFORM leave(m, 'handled', began);
END $$;

SELECT mq_register_handler('plain', 'work(mq_message)', max_backoff => '200 ms'),
       mq_register_handler('batch', 'work_batch(mq_message[])', max_backoff => '200 ms'),
       mq_register_handler('kept', 'work(mq_message)', max_backoff => '200 ms', keep => '1 hour'),
       mq_register_handler('block', 'work(mq_message)', max_backoff => '200 ms', on_dead => 'block'),
       mq_register_handler('leased', 'work(mq_message)', mode => 'leased', max_backoff => '200 ms'),
       mq_register_handler('travel', 'travel(mq_message)', mode => 'leased', max_backoff => '200 ms'),
       mq_register_handler('calls', 'work(mq_message)', keep => '1 hour'),
       mq_register_handler('ticks', 'work(mq_message)'),
       mq_register_handler('all news', 'work(mq_message)'),
       mq_register_handler('some news', 'work(mq_message)');
SELECT mq_subscribe('news.#', 'all news'), mq_subscribe('news.eu.*', 'some news', ordered => true);
SELECT mq_limit('limited', max_pending => 200, max_running => 1);
SELECT mq_register_handler('limited', 'work(mq_message)', max_backoff => '200 ms');
