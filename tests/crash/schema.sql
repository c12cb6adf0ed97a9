-- What the rounds of the suite `crash` work on. A handler does what the payload says, and leaves an effect:
--   fail N   raises MQF01 on its first N attempts
--   snooze   asks once to be called again later
CREATE EXTENSION mq;
CREATE EXTENSION amcheck;
CREATE TABLE effects (n bigserial PRIMARY KEY, key int NOT NULL, id uuid NOT NULL, channel text NOT NULL, attempt int NOT NULL);
CREATE INDEX ON effects (key);
CREATE TABLE snoozed (id uuid PRIMARY KEY);

CREATE FUNCTION work(m mq_message) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF m.payload_json ? 'snooze' AND NOT EXISTS (SELECT FROM snoozed WHERE id = m.id) THEN
    INSERT INTO snoozed VALUES (m.id);
    PERFORM mq_snooze('10 ms', m.id);
    RETURN NULL;
  END IF;
  INSERT INTO effects (key, id, channel, attempt) VALUES ((m.payload_json ->> 'key')::int, m.id, m.channel_name, m.attempt);
  IF (m.payload_json ->> 'fail')::int >= m.attempt THEN RAISE EXCEPTION 'planned' USING ERRCODE = 'MQF01'; END IF;
  RETURN jsonb_build_object('of', m.id);
END $$;

SELECT mq_register_handler(channel, 'work(mq_message)', max_backoff => '50 ms') FROM unnest('{plain,held,chain,limited,paced,capped,ticks}'::text[]) AS channel;
SELECT mq_register_handler('kept', 'work(mq_message)', keep => '1 hour'),
       mq_register_handler('leased', 'work(mq_message)', mode => 'leased', max_backoff => '50 ms');
SELECT mq_limit('limited', max_running => 1, max_running_per_args => 1), mq_limit('paced', rate => 500),
       mq_limit('capped', max_pending => 5), mq_limit('outside', max_running => 1, max_running_per_args => 2), mq_limit('pairs', max_running => 2, max_running_per_args => 1);
