-- The index of an AT Protocol AppView, and what its handlers keep beside it. In a database of its own.
CREATE EXTENSION IF NOT EXISTS mq;

-- Which host has a repository; and the repositories that are indexed. A rev is a TID: later ones have greater letters.
CREATE TABLE hosts (did text PRIMARY KEY, host text NOT NULL, listed boolean NOT NULL DEFAULT true);
CREATE TABLE repos (
  did text PRIMARY KEY,
  host text NOT NULL,
  sync uuid,                                       -- the message of its sync job
  handle text,
  status text NOT NULL DEFAULT 'active',
  seq bigint NOT NULL DEFAULT 0,                   -- of its last event about identity or account
  floor text COLLATE "C" NOT NULL DEFAULT ''       -- commits up to this rev are in the index, or gone with the account
);

-- Each record with the rev that changed it last. One that was deleted stays, without a cid: an old event must not bring it back.
CREATE TABLE records (
  did text NOT NULL, collection text NOT NULL, rkey text NOT NULL,
  rev text COLLATE "C" NOT NULL, cid text, PRIMARY KEY (did, collection, rkey)
);

-- The index.
CREATE TABLE posts (did text NOT NULL, rkey text NOT NULL, body text NOT NULL, created_at timestamptz NOT NULL, parent text, PRIMARY KEY (did, rkey));
CREATE TABLE likes (did text NOT NULL, rkey text NOT NULL, subject text NOT NULL, PRIMARY KEY (did, rkey));
CREATE TABLE follows (did text NOT NULL, rkey text NOT NULL, subject text NOT NULL, PRIMARY KEY (did, rkey));
CREATE TABLE profiles (did text PRIMARY KEY, display_name text, description text);
CREATE INDEX ON likes (subject);
CREATE INDEX ON follows (subject);

-- What fetch.py has brought, until the sync job has indexed it; and how far feed.py has read the stream.
CREATE TABLE snapshots (did text PRIMARY KEY, rev text COLLATE "C" NOT NULL, handle text NOT NULL, records jsonb NOT NULL);
CREATE TABLE cursors (stream text PRIMARY KEY, time_us bigint NOT NULL);
INSERT INTO cursors VALUES ('jetstream', 0);
