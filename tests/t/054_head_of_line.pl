# Head of line: a handler that takes long holds up nobody but itself while fewer such calls run than there are workers.
# No time is measured here; what is slow waits for a lock that the test holds.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('head', 'mq.max_workers' => 2);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
sql('CREATE EXTENSION mq');
handled_table($node, $db);
sql(q{CREATE FUNCTION wait_for_lock(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  IF m.payload_json ? 'lock' THEN PERFORM pg_advisory_xact_lock((m.payload_json ->> 'lock')::int); END IF;
	  INSERT INTO handled (name, payload, attempt) VALUES (m.name, m.payload_json, m.attempt);
	END $$;
      CREATE FUNCTION wait_stubbornly(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO handled (name, payload, attempt) VALUES ('began ' || m.name, m.payload_json, m.attempt);
	  IF m.payload_json ? 'lock' THEN
	    BEGIN
	      PERFORM pg_advisory_xact_lock((m.payload_json ->> 'lock')::int);
	    EXCEPTION WHEN query_canceled THEN RAISE EXCEPTION 'was disturbed';
	    END;
	  END IF;
	  INSERT INTO handled (name, payload, attempt) VALUES (m.name, m.payload_json, m.attempt);
	END $$;
      CREATE FUNCTION wait_in_batch(m mq_message[]) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE one mq_message;
	BEGIN
	  FOREACH one IN ARRAY m LOOP PERFORM wait_for_lock(one); END LOOP;
	END $$;
      SELECT mq_register_handler('slow', 'wait_for_lock(mq_message)'), mq_register_handler('fast', 'handle(mq_message)')});
my $holder = $node->background_psql($db);
$holder->query_safe('SELECT pg_advisory_lock(1), pg_advisory_lock(2)');
my $fast = q{SELECT count(*) FROM handled WHERE name = 'fast'};
my $waiting = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND wait_event = 'advisory'};

# Nothing is known of the channels: what is sent with a slow message, before, after, and what becomes due.
sql(q{SELECT mq_send('fast', '"together"') FROM generate_series(1, 20);
      SELECT mq_send('slow', '{"lock": 1}', 'blocked');
      SELECT mq_send('fast', '"together"') FROM generate_series(1, 20);
      SELECT mq_send('fast', '"later"', delay => '2 s')});
within(20, $node, $db, $waiting, 1, 'the slow handler waits');
sql(q{SELECT mq_send('fast', '"after"') FROM generate_series(1, 20)});
within(20, $node, $db, $fast, 61, 'others of its role are handled: what was sent before it, with it and after it, and what became due');
holds($node, $db, $waiting, 1, '... while it waits still');
holds($node, $db, q{SELECT ok FROM mq_health() WHERE "check" = 'workers free'}, 't', '... and a worker is free');

# Both workers sit in calls.
sql(q{SELECT mq_send('slow', '{"lock": 2}', 'blocked')});
within(20, $node, $db, $waiting, 2, 'as many wait as there are workers');
sql(q{SELECT mq_send('fast', '"stuck"')});
within(20, $node, $db, q{SELECT detail FROM mq_health() WHERE "check" = 'workers free' AND NOT ok},
	qr/mq.max_workers = 2 .*slow since .*slow since .*leased/, 'mq_health() says that none is free, in what they are, and what to do');
$holder->query_safe('SELECT pg_advisory_unlock_all()');
within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'all are handled when they can be');
holds($node, $db, q{SELECT ok FROM mq_health() WHERE "check" = 'workers free'}, 't', 'the workers are free again');
holds($node, $db, 'SELECT count(*), count(DISTINCT (payload, name)) > 0, max(attempt) FROM handled', '64|t|1', 'each was handled once, at its first attempt');

# A channel that was quick: the slow message is claimed together with others.
for my $handler ('wait_for_lock(mq_message)', 'wait_stubbornly(mq_message)', 'wait_in_batch(mq_message[])') {
	sql('TRUNCATE handled');
	sql(qq{SELECT mq_pause('slow'), mq_pause('fast')});
	sql(qq{SELECT mq_register_handler('slow', '$handler')});
	sql(q{SELECT mq_resume('slow'), mq_resume('fast')});
	for my $round (1 .. 15) {
		sql(q{SELECT mq_send('slow', '{}', 'warm'), mq_send('fast', '{}', 'warm')});
		within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, "$handler: warm, $round") if $round == 15;
	}
	$holder->query_safe('SELECT pg_advisory_lock(1)');
	sql(q{SELECT mq_pause('slow'), mq_pause('fast')});
	sql(q{SELECT mq_send('slow', '{"n": 1}', 'easy', ordered => true), mq_send('fast', '{}', 'fast') FROM generate_series(1, 5);
	      SELECT mq_send('slow', '{"lock": 1}', 'blocked', ordered => true);
	      SELECT mq_send('slow', '{"n": 2}', 'behind', ordered => true), mq_send('fast', '{}', 'fast') FROM generate_series(1, 5)});
	sql(q{BEGIN; SELECT mq_resume('slow'), mq_resume('fast'); COMMIT});
	# What a batch handler was given in one call with it may wait with it.
	my $easy = $handler =~ /\[\]/ ? qr/^10\|/ : '10|5';
	within(20, $node, $db, q{SELECT count(*) FILTER (WHERE name = 'fast'), count(*) FILTER (WHERE name = 'easy') FROM handled}, $easy,
		"$handler: what was claimed with it and before it is handled");
	within(20, $node, $db, $waiting, 1, "$handler: while it waits");
	holds($node, $db, q{SELECT count(*) FROM handled WHERE name = 'behind'}, 0, "$handler: what is behind it in its order is not");
	$holder->query_safe('SELECT pg_advisory_unlock_all()');
	within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, "$handler: then all are handled");
	holds($node, $db, q{SELECT string_agg(DISTINCT name, ' ' ORDER BY name), max(attempt) FROM handled WHERE name IN ('blocked', 'behind')}, 'behind blocked|1',
		"$handler: at their first attempts");
	holds($node, $db, q{SELECT count(*) = count(DISTINCT n), max(n) FILTER (WHERE name = 'blocked') < min(n) FILTER (WHERE name = 'behind') FROM handled}, 't|t',
		"$handler: in their order");
	holds($node, $db, 'SELECT count(*) FROM mq_failures', 0, "$handler: no failure is charged");
}

# A place of max_workers belongs to a batch that has messages of its channel.
sql(q{SELECT mq_register_handler('narrow', 'handle(mq_message)', max_workers => 1), mq_register_handler('slow', 'wait_for_lock(mq_message)')});
sql(q{SELECT mq_send('narrow', '{}', 'warm')});
within(20, $node, $db, q{SELECT count(*) FROM mq_msgs}, 0, 'the narrow channel is known');
$holder->query_safe('SELECT pg_advisory_lock(1)');
sql(q{SELECT mq_send('slow', '{"lock": 1}', 'blocked')});
within(20, $node, $db, $waiting, 1, 'a slow handler waits');
sql(q{SELECT mq_send('narrow', '{}', 'narrow')});
within(20, $node, $db, q{SELECT count(*) FROM handled WHERE name = 'narrow'}, 1, 'it holds no place of a channel that it has no message of');
holds($node, $db, $waiting, 1, '... while it waits still');
$holder->quit;
within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'all are handled');
log_is_clean($node);

done_testing();
