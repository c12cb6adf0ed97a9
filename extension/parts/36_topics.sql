-- Topics: a message that is published goes to each channel that has subscribed to its topic.

CREATE FUNCTION mq_subscribe(topic text, channel_name text, channel_args text DEFAULT NULL, ordered boolean DEFAULT false) RETURNS boolean
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_subscribe';
COMMENT ON FUNCTION mq_subscribe(text, text, text, boolean) IS
  'Has a channel get what is published to the topics that a pattern matches, once this commits: words with dots between, in which * stands for one word and # for any number of words. channel_args NULL: those that the publisher gives. ordered: also what is published without. False: the channel had subscribed to the pattern already, and the subscription is now as given. 22023 or 22004 for a bad value.';

CREATE FUNCTION mq_unsubscribe(topic text, channel_name text, channel_args text DEFAULT NULL) RETURNS boolean
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_unsubscribe';
COMMENT ON FUNCTION mq_unsubscribe(text, text, text) IS
  'Removes the subscription that mq_subscribe has made with these arguments; false if there is none. Messages that were published before stay. 22004 for a NULL in topic or channel_name.';

CREATE FUNCTION mq_publish(
  topic text, payload_json jsonb DEFAULT NULL, name text DEFAULT NULL, channel_args text DEFAULT '',
  ordered boolean DEFAULT false, delay interval DEFAULT '0', retries integer DEFAULT 24,
  retry_backoff interval DEFAULT '1 second', commit_interval interval DEFAULT NULL,
  payload_bytes bytea DEFAULT NULL, dedup_key text DEFAULT NULL, expires interval DEFAULT NULL,
  priority integer DEFAULT 0, headers jsonb DEFAULT NULL, after uuid[] DEFAULT NULL, keep interval DEFAULT NULL) RETURNS SETOF uuid
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mq_publish';
COMMENT ON FUNCTION mq_publish(text, jsonb, text, text, boolean, interval, integer, interval, interval, bytea, text, interval, integer, jsonb, uuid[], interval) IS
  'Sends a message to each channel that has subscribed to a pattern that matches the topic, once whatever the number of such patterns, when the transaction commits; returns their ids in the order of channel_name and channel_args, none where nobody has subscribed. The arguments are those of mq_send, for each of the messages. headers get the topic as topic, unless they have a topic. Errors as in mq_send, and 22023 for a bad topic.';
