SELECT mq_announce();
