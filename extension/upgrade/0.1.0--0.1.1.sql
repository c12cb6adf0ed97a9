\echo Use "ALTER EXTENSION mq UPDATE" to load this file. \quit

-- What 0.1.1 changes in the catalog; tests/t/050_upgrade.pl compares the result with a fresh installation.

-- replace 61_why.sql
REVOKE ALL ON FUNCTION mq_some(text[]), mq_leased_calls(), mq_service(), mq_server_mode(), mq_reason(uuid), mq_why(uuid) FROM PUBLIC;

-- replace 62_health.sql

SELECT mq_announce();
