-- The handlers of an AT Protocol AppView. Each repository has an ordered channel, 'appview' with its DID.

-- Indexes a record, or removes it (value NULL). False: the index has that, or something newer.
CREATE FUNCTION put_record(did text, collection text, rkey text, rev text, cid text, value jsonb)
RETURNS boolean LANGUAGE plpgsql AS $$
#variable_conflict use_variable
BEGIN
  INSERT INTO records AS r VALUES (did, collection, rkey, rev, cid)
  ON CONFLICT ON CONSTRAINT records_pkey DO UPDATE SET rev = excluded.rev, cid = excluded.cid
   WHERE r.rev < excluded.rev;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  CASE collection
  WHEN 'app.bsky.feed.post' THEN
    DELETE FROM posts AS p WHERE p.did = put_record.did AND p.rkey = put_record.rkey;
    INSERT INTO posts
    SELECT did, rkey, value ->> 'text', (value ->> 'createdAt')::timestamptz,
           value #>> '{reply,parent,uri}' WHERE is_good(collection, value);
  WHEN 'app.bsky.feed.like' THEN
    DELETE FROM likes AS l WHERE l.did = put_record.did AND l.rkey = put_record.rkey;
    INSERT INTO likes
    SELECT did, rkey, value #>> '{subject,uri}' WHERE is_good(collection, value);
  WHEN 'app.bsky.graph.follow' THEN
    DELETE FROM follows AS f WHERE f.did = put_record.did AND f.rkey = put_record.rkey;
    INSERT INTO follows
    SELECT did, rkey, value ->> 'subject' WHERE is_good(collection, value);
  WHEN 'app.bsky.actor.profile' THEN
    DELETE FROM profiles AS p WHERE p.did = put_record.did;
    INSERT INTO profiles
    SELECT did, value ->> 'displayName', value ->> 'description' WHERE is_good(collection, value);
  ELSE
    NULL;     -- of other collections only the rev is kept
  END CASE;
  RETURN true;
END $$;

-- Whether a record has what its collection asks for. Anybody may write anything into a repository.
CREATE FUNCTION is_good(collection text, value jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT value IS NOT NULL AND CASE collection
    WHEN 'app.bsky.feed.post' THEN jsonb_typeof(value -> 'text') IS NOT DISTINCT FROM 'string'
         AND value ->> 'createdAt' ~ '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$' IS TRUE
    WHEN 'app.bsky.feed.like' THEN value #>> '{subject,uri}' LIKE 'at://%' IS TRUE
    WHEN 'app.bsky.graph.follow' THEN value ->> 'subject' LIKE 'did:%' IS TRUE
    WHEN 'app.bsky.actor.profile' THEN coalesce(jsonb_typeof(value -> 'displayName'), 'string') = 'string'
    ELSE true END
$$;

-- A commit of the stream: one operation on one record.
CREATE FUNCTION on_commit(message mq_message) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  c CONSTANT jsonb := message.payload_json -> 'commit';
BEGIN
  IF c ->> 'rev' COLLATE "C" <= (SELECT floor FROM repos WHERE did = message.channel_args)
     OR NOT put_record(message.channel_args, c ->> 'collection', c ->> 'rkey', c ->> 'rev',
                       c ->> 'cid', c -> 'record') THEN
    RETURN '"seen before"';
  END IF;
  IF c ? 'record' AND NOT is_good(c ->> 'collection', c -> 'record') THEN
    PERFORM mq_discard(format('%s/%s is malformed', c ->> 'collection', c ->> 'rkey'));
  END IF;
  RETURN '"indexed"';
END $$;

-- Another handle.
CREATE FUNCTION on_identity(message mq_message) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  i CONSTANT jsonb := message.payload_json -> 'identity';
BEGIN
  UPDATE repos SET handle = i ->> 'handle', seq = (i ->> 'seq')::bigint
   WHERE did = message.channel_args AND seq < (i ->> 'seq')::bigint;
  RETURN CASE WHEN FOUND THEN '"indexed"' ELSE '"seen before"' END;
END $$;

-- An account was deactivated, taken down, deleted, or is active again.
CREATE FUNCTION on_account(message mq_message) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  a CONSTANT jsonb := message.payload_json -> 'account';
  this CONSTANT text := message.channel_args;
BEGIN
  UPDATE repos SET status = coalesce(a ->> 'status', 'active'), seq = (a ->> 'seq')::bigint
   WHERE did = this AND seq < (a ->> 'seq')::bigint;
  IF NOT FOUND THEN
    RETURN '"seen before"';
  END IF;
  IF a ->> 'status' = 'deleted' THEN
    UPDATE repos SET floor = greatest(floor, (SELECT max(rev) FROM records WHERE did = this))
     WHERE did = this;
    DELETE FROM posts WHERE did = this;
    DELETE FROM likes WHERE did = this;
    DELETE FROM follows WHERE did = this;
    DELETE FROM profiles WHERE did = this;
    DELETE FROM records WHERE did = this;
  END IF;
  RETURN '"indexed"';
END $$;

-- The sync job of a repository: indexes all that its host has of it. It is the first message of its channel, so what the stream
-- tells of the repository waits behind it.
CREATE FUNCTION on_sync(message mq_message) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  this CONSTANT text := message.channel_args;
  s snapshots;
  r record;
  n int := 0;
  removed int;
BEGIN
  SELECT * INTO STRICT s FROM snapshots WHERE did = this;
  FOR r IN SELECT split_part(value ->> 'uri', '/', 4) AS collection,
                  split_part(value ->> 'uri', '/', 5) AS rkey, value
             FROM jsonb_array_elements(s.records) LOOP
    PERFORM mq_progress((n::real / jsonb_array_length(s.records))::real,
                        format('record %s of %s', n + 1, jsonb_array_length(s.records)));
    PERFORM put_record(this, r.collection, r.rkey, s.rev, r.value ->> 'cid', r.value -> 'value');
    n := n + 1;
  END LOOP;
  -- What the index has and the host has no more.
  SELECT count(*) FILTER (WHERE put_record(this, collection, rkey, s.rev, NULL, NULL)) INTO removed
    FROM records WHERE did = this AND rev < s.rev AND cid IS NOT NULL;
  UPDATE repos SET floor = greatest(floor, s.rev),
                   handle = CASE WHEN seq = 0 THEN s.handle ELSE handle END
   WHERE did = this;
  DELETE FROM snapshots WHERE did = this;
  RETURN jsonb_build_object('records', n, 'removed', removed, 'rev', s.rev);
END $$;

SELECT mq_register_handler('appview', 'on_commit(mq_message)', 'commit', keep => '1 hour'),
       mq_register_handler('appview', 'on_identity(mq_message)', 'identity', keep => '1 hour'),
       mq_register_handler('appview', 'on_account(mq_message)', 'account', keep => '1 hour'),
       mq_register_handler('appview', 'on_sync(mq_message)', 'sync', keep => '30 days');

-- Not more than 20 repositories a second from each host; and the stream waits when so much is pending.
SELECT mq_limit('appview_fetch', rate => 20, per => '1 second', rate_per_args => true),
       mq_limit('appview', max_pending => 3000);

-- Has a repository indexed from now on: fetch.py brings what its host has, then the sync job indexes that.
CREATE FUNCTION follow_repo(this text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  fetched uuid;
BEGIN
  INSERT INTO repos (did, host) SELECT did, host FROM hosts WHERE did = this
  ON CONFLICT DO NOTHING;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  fetched := mq_send('appview_fetch', jsonb_build_object('did', this), keep => '30 days',
                     channel_args => (SELECT host FROM hosts WHERE did = this));
  UPDATE repos SET sync = mq_send('appview', name => 'sync', channel_args => this, ordered => true,
                                  after => ARRAY[fetched])
   WHERE did = this;
END $$;

-- Takes events of the stream, in their order, and remembers how far that is. The call of a feed that died may still run: the lock
-- has its successor wait for it, and what it has sent is passed over.
CREATE FUNCTION ingest(this text, events jsonb[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  event jsonb;
  so_far bigint;
BEGIN
  SELECT time_us INTO STRICT so_far FROM cursors WHERE stream = this FOR UPDATE;
  FOREACH event IN ARRAY events LOOP
    CONTINUE WHEN (event ->> 'time_us')::bigint <= so_far;
    so_far := event ->> 'time_us';
    PERFORM follow_repo(event ->> 'did');
    PERFORM mq_send('appview', event, event ->> 'kind', channel_args => event ->> 'did',
                    ordered => true, retries => 5);
  END LOOP;
  UPDATE cursors SET time_us = so_far WHERE stream = this;
END $$;
