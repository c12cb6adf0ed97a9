\echo Use "ALTER EXTENSION mq UPDATE" to load this file. \quit

-- What 0.1.1 changes in the catalog; tests/t/050_upgrade.pl compares the result with a fresh installation.

-- replace 61_why.sql
REVOKE ALL ON FUNCTION mq_some(text[]), mq_leased_calls(), mq_service(), mq_server_mode(), mq_reason(uuid), mq_why(uuid) FROM PUBLIC;

-- replace 62_health.sql

COMMENT ON TABLE mq_failures IS 'Failed attempts, with the error as the server reported it (each text cut to 8 kB) and how long the handler had run: of a message the first five, those at powers of two, and the last one.';

SELECT mq_announce();
