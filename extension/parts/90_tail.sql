-- Unless the session restores a dump.
SELECT mq_enable();
SELECT mq_announce();
