\echo Use "ALTER EXTENSION mq UPDATE" to load this file. \quit

-- What 0.1.1 changes in the catalog; tests/t/050_upgrade.pl compares the result with a fresh installation.

ALTER TABLE mq_dead RENAME attempts TO attempts_made;
COMMENT ON COLUMN mq_dead.attempts_made IS 'How many attempts were made; attempts of mq_msgs is how many are left.';
COMMENT ON COLUMN mq_msgs.attempts IS 'How many attempts are left, as in the original schema; attempt says how many were made, as attempts_made of mq_dead does.';
COMMENT ON COLUMN mq_msgs.attempt IS 'How many attempts were made.';

-- replace 30_send.sql
-- replace 50_handlers.sql

-- replace 61_why.sql
REVOKE ALL ON FUNCTION mq_some(text[]), mq_leased_calls(), mq_service(), mq_server_mode(), mq_reason(uuid), mq_why(uuid) FROM PUBLIC;

-- replace 62_health.sql
-- replace 80_grants.sql

COMMENT ON TABLE mq_failures IS 'Failed attempts, with the error as the server reported it (each text cut to 8 kB) and how long the handler had run: of a message the first five, those at powers of two, and the last one.';

SELECT mq_announce();
