# Limits, with live workers: a handler's time, the workers on a channel, a pause; and what mq_stats and an expiry make of
# leased messages.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('limits', 'mq.max_workers' => 4);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
sql('CREATE EXTENSION mq');

# Time limits in transactional mode: a sleep, a loop, a lock wait, a handler that catches the cancel.
sql(q{CREATE TABLE locked (n int);
      CREATE FUNCTION dawdle(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE n int := 0;
	BEGIN
	  CASE m.payload_json #>> '{}'
	    WHEN 'sleep' THEN PERFORM pg_sleep(60);
	    WHEN 'loop' THEN LOOP n := 1 - n; END LOOP;
	    WHEN 'lock' THEN LOCK TABLE locked;
	    WHEN 'stubborn' THEN LOOP BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP;
	    WHEN 'deaf' THEN BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END;
	    ELSE NULL;
	  END CASE;
	END $$;
      SELECT mq_register_handler('dawdle', 'dawdle(mq_message)', timeout => '0.3 s')});
my $locker = $node->background_psql($db);
$locker->query('BEGIN; LOCK TABLE locked');
sql(q{SELECT mq_send('dawdle', to_jsonb(w), retries => 0) FROM unnest('{sleep,loop,lock,deaf,stubborn,none}'::text[]) w});
within(40, $node, $db, q{SELECT string_agg(payload_json #>> '{}', ' ' ORDER BY payload_json), string_agg(DISTINCT sqlstate, ' ') FROM mq_dead},
	'deaf lock loop sleep stubborn|57014', 'the time limit ends sleeps, loops, lock waits, and who catches its cancel');
within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'the others of the batch are handled');
$locker->quit;

# mq.handler_timeout is the limit of who has none of his own.
set_and_reload($node, 'mq.handler_timeout' => '0.2 s');
sql(q{SELECT mq_register_handler('dawdle', 'dawdle(mq_message)'), mq_send('dawdle', '"sleep"', 'by setting', retries => 0)});
within(20, $node, $db, q{SELECT error FROM mq_dead WHERE name = 'by setting'}, 'handler timed out after 200 ms', 'mq.handler_timeout limits the others');
set_and_reload($node, 'mq.handler_timeout' => '5 min');

# The most workers on a channel at once, while more are there.
sql(q{CREATE TABLE spans (channel text, pid int DEFAULT pg_backend_pid(), began timestamptz, ended timestamptz DEFAULT clock_timestamp());
      CREATE FUNCTION take_time(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE t timestamptz := clock_timestamp();
	BEGIN
	  PERFORM pg_sleep(0.05);
	  INSERT INTO spans (channel, began) VALUES (m.channel_name, t);
	END $$;
      SELECT mq_register_handler('wide', 'take_time(mq_message)', batch_size => 1),
             mq_register_handler('narrow', 'take_time(mq_message)', batch_size => 1, max_workers => 2)});
sql(q{SELECT mq_send(c) FROM generate_series(1, 60), unnest('{wide,narrow}'::text[]) c});
within(40, $node, $db, 'SELECT count(*) FROM spans', 120, 'all are handled');
my $at_once = q{SELECT max(n) FROM (SELECT (SELECT count(*) FROM spans b WHERE b.channel = a.channel AND b.began <= a.began AND b.ended > a.began) AS n
	FROM spans a WHERE a.channel = '%s') s};
holds($node, $db, sprintf($at_once, 'narrow') =~ s/max\(n\)/max(n) BETWEEN 1 AND 2/r, 't', 'two workers at most where max_workers is 2');
holds($node, $db, sprintf($at_once, 'wide') =~ s/max\(n\)/max(n) > 2/r, 't', 'more where it is not');

# Pause and resume, under load.
sql(q{TRUNCATE spans; SELECT mq_send('wide') FROM generate_series(1, 400)});
within(20, $node, $db, 'SELECT count(*) > 0 FROM spans', 't', 'handlers run');
sql(q{SELECT mq_pause('wide')});
within(20, $node, $db, q{SELECT bool_and(state = 'waiting') FROM mq_workers}, 't', 'after a pause workers come to rest');
my $left = sql('SELECT count(*) FROM mq_msgs');
cmp_ok($left, '>', 0, 'and leave messages');
holds($node, $db, q{SELECT ready, running, paused FROM mq_stats WHERE channel_name = 'wide'}, "$left|0|t", 'as mq_stats shows');
sql(q{SELECT mq_send('narrow')});
within(20, $node, $db, q{SELECT count(*) FROM spans WHERE channel = 'narrow'}, 1, 'others go on');
holds($node, $db, 'SELECT count(*) FROM mq_msgs', $left, 'the paused channel does not');
sql(q{SELECT mq_resume('wide')});
within(60, $node, $db, q{SELECT count(*) FROM spans WHERE channel = 'wide'}, 400, 'resumed, all are handled');

# Leased messages: what mq_stats and mq_workers show, and expiry.
sql(q{CREATE FUNCTION take_long(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  IF m.payload_json ? 'gate' THEN PERFORM pg_sleep(0.5), pg_advisory_xact_lock_shared(1); END IF;
	  IF m.payload_json ? 'seconds' THEN PERFORM pg_sleep((m.payload_json ->> 'seconds')::float8); END IF;
	  IF m.payload_json ? 'fails' THEN RAISE 'late'; END IF;
	END $$;
      SELECT mq_register_handler('long', 'take_long(mq_message)', mode => 'leased'), mq_reset_stats()});
my $gate = $node->background_psql($db);
$gate->query_safe('SELECT pg_advisory_lock(1)');
sql(q{SELECT mq_send('long', '{"gate": 1}')});
within(20, $node, $db, q{SELECT ready, scheduled, running, handled FROM mq_stats WHERE channel_name = 'long'}, '0|0|1|0', 'a leased message is running');
$gate->query_safe('SELECT pg_advisory_unlock(1)');
$gate->quit;
within(20, $node, $db, q{SELECT ready, scheduled, running, handled, failed, died, handle_p50 BETWEEN '0.4 s' AND '1 min' FROM mq_stats WHERE channel_name = 'long'},
	'0|0|0|1|0|0|t', 'then it is counted as handled, with its time');
sql(q{SELECT mq_send('long', '{"seconds": 4}', 'in time', expires => '3 s'), mq_send('long', '{"seconds": 4, "fails": 1}', 'too late', expires => '3 s')});
within(20, $node, $db, q{SELECT name, reason, error, attempts_made FROM mq_dead WHERE channel_name = 'long'}, 'too late|expired|late|1',
	'what runs when it expires is not disturbed; if that attempt fails it is dead');
within(20, $node, $db, q{SELECT count(*) FROM mq_msgs}, 0, 'the other was handled');
holds($node, $db, q{SELECT handled, failed, died FROM mq_stats WHERE channel_name = 'long'}, '2|1|1', 'and each is counted once');

log_is_clean($node);
$node->stop;
done_testing();
