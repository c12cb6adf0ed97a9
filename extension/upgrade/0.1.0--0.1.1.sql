\echo Use "ALTER EXTENSION mq UPDATE" to load this file. \quit

-- What 0.1.1 changes in the catalog; tests/t/050_upgrade.pl compares the result with a fresh installation.

ALTER TABLE mq_dead RENAME attempts TO attempts_made;
COMMENT ON COLUMN mq_dead.attempts_made IS 'How many attempts were made; attempts of mq_msgs is how many are left.';
COMMENT ON COLUMN mq_msgs.attempts IS 'How many attempts are left, as in the original schema; attempt says how many were made, as attempts_made of mq_dead does.';
COMMENT ON COLUMN mq_msgs.attempt IS 'How many attempts were made.';

ALTER TABLE mq_failures ADD crash boolean;
COMMENT ON COLUMN mq_failures.crash IS 'True: the attempt is proven to have brought the server down; false: so it is, but mq_checkpoint has been called since.';
COMMENT ON TABLE mq_failures IS 'Failed attempts, with the error as the server reported it (each text cut to 8 kB) and how long the handler had run: of a message the first five, those at powers of two, and the last one.';

COMMENT ON COLUMN mq_handlers.run_as IS 'Name of the role that the worker is connected as. If it is renamed, so it is here by the next worker that looks; if it is dropped, the registration is left alone.';
ALTER TABLE mq_handlers ADD COLUMN enabled_id uuid;
COMMENT ON COLUMN mq_handlers.enabled_id IS 'Id of the row in mq_enabled under which it was registered. Of another one: it comes from another database, and is not called.';
-- mq_enable() below looks for the roles.
ALTER TABLE mq_handlers ADD COLUMN run_as_oid oid;
COMMENT ON COLUMN mq_handlers.run_as_oid IS 'The role run_as, in the database that enabled_id tells; elsewhere mq_enable() looks for its name. 0: it was dropped.';

ALTER TABLE mq_handlers
  ADD CONSTRAINT mq_handlers_mode CHECK (mode IN ('transactional', 'leased')),
  ADD CONSTRAINT mq_handlers_batch_size CHECK (batch_size BETWEEN 1 AND 100000),
  ADD CONSTRAINT mq_handlers_timeout CHECK (timeout > '0' AND timeout <= '36500 days'),
  ADD CONSTRAINT mq_handlers_max_workers CHECK (max_workers BETWEEN 1 AND 1000),
  ADD CONSTRAINT mq_handlers_max_backoff CHECK (max_backoff > '0' AND max_backoff <= '36500 days'),
  ADD CONSTRAINT mq_handlers_on_dead CHECK (on_dead IN ('skip', 'block')),
  ADD CONSTRAINT mq_handlers_priority CHECK (priority BETWEEN -1000 AND 1000);

-- Not in a dump: a database that is restored is not the one that it is a dump of.
CREATE TABLE mq_enabled (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
  database oid NOT NULL,
  system_identifier bigint NOT NULL,
  extension_xmin xid NOT NULL,
  subscribed boolean NOT NULL,
  enabled_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  enabled_by text NOT NULL
);
COMMENT ON TABLE mq_enabled IS 'The database in which messages are handled, if it is this one: at most one row. Written by CREATE EXTENSION, mq_register_handler and mq_enable; gone when a dump is restored.';
COMMENT ON COLUMN mq_enabled.id IS 'New whenever another database is meant; handlers that are registered under it have it in enabled_id.';
COMMENT ON COLUMN mq_enabled.extension_xmin IS 'xmin of the row in pg_extension: pg_upgrade writes that anew, and nothing else that changes the system identifier.';
COMMENT ON COLUMN mq_enabled.subscribed IS 'Messages are handled though a subscription writes into the tables.';
CREATE FUNCTION mq_enabled_stays() RETURNS trigger LANGUAGE c AS 'MODULE_PATHNAME', 'mq_enabled_stays';
COMMENT ON FUNCTION mq_enabled_stays() IS 'Keeps the row of a publisher out of mq_enabled.';
CREATE TRIGGER mq_enabled_stays BEFORE INSERT OR UPDATE OR DELETE ON mq_enabled FOR EACH ROW EXECUTE FUNCTION mq_enabled_stays();
ALTER TABLE mq_enabled ENABLE REPLICA TRIGGER mq_enabled_stays;

-- With a publication for all tables, rows without a replica identity can be neither updated nor deleted.
ALTER TABLE mq_loose REPLICA IDENTITY FULL;
ALTER TABLE mq_handlers REPLICA IDENTITY FULL;
ALTER TABLE mq_totals REPLICA IDENTITY FULL;
ALTER TABLE mq_tally REPLICA IDENTITY FULL;

-- The functions come with 0.1.1--0.2.0: the library of a later version works with its own only.

COMMENT ON COLUMN mq_msgs.attempt_at IS 'When the message is due next; while an outside consumer works on it, when its lease runs out. infinity: no handler of its channel takes its name, and it waits for one. NULL: a dead message that blocks its ordered channel.';
COMMENT ON COLUMN mq_msgs.expires_at IS 'Not NULL: dead by then if nobody has handled it. attempt_at is not beyond it, but for a lease, while commit_interval is not NULL, and while it waits for a handler.';
