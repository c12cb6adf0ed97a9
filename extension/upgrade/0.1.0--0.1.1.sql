\echo Use "ALTER EXTENSION mq UPDATE" to load this file. \quit

-- What 0.1.1 changes in the catalog; tests/t/050_upgrade.pl compares the result with a fresh installation.

-- replace 62_health.sql

SELECT mq_announce();
