# Leased handlers: sessions of their own, several at once beside the transactional channels; procedures that commit;
# outcomes from within; time limits; order; limits of a channel; errors.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('leased', 'mq.max_workers' => 1, 'mq.leased_sessions' => 4);
my $db = 'postgres';
$node->safe_psql($db, 'CREATE EXTENSION mq; CREATE ROLE app LOGIN; GRANT CREATE ON SCHEMA public TO app');
handled_table($node, $db);
$node->safe_psql($db, 'GRANT ALL ON handled, handled_n_seq TO app');

sub sql { return $node->safe_psql($db, shift) }

sub register {
	my ($channel, $handler, $options) = @_;
	sql("SELECT mq_register_handler('$channel', '$handler', mode => 'leased'" . ($options ? ", $options" : '') . ')');
}

sub nothing_left { within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, shift . ': nothing is left') }

# Side by side, in sessions of the handler's role, while the worker serves its other channels.
sql(q{CREATE FUNCTION handle_gated(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM pg_advisory_xact_lock_shared(1);
	  PERFORM handle(m);
	END $$});
register('side', 'handle_gated(mq_message)', q{run_as => 'app'});
sql(q{SELECT mq_register_handler('quick', 'handle(mq_message)', run_as => 'app')});
my $gate = $node->background_psql($db);
$gate->query_safe('SELECT pg_advisory_lock(1)');
sql(q{SELECT mq_send_many('side', array_agg('{}'::jsonb)) FROM generate_series(1, 6)});
my $at_gate = q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mq handler' AND wait_event = 'advisory'};
within(20, $node, $db, $at_gate, 4, 'as many leased handlers as mq.leased_sessions run at once');
holds($node, $db, q{SELECT count(*), min(attempt), min(attempts) FROM mq_msgs WHERE lease > 0 AND attempt_at > now()}, '4|1|24',
	'their messages are leased, and an attempt is charged');
sql(q{SELECT mq_send('quick')});
within(20, $node, $db, q{SELECT count(*) FROM handled WHERE name = 'quick'}, 1, 'a transactional message is handled');
holds($node, $db, $at_gate, 4, '... meanwhile');
$gate->query_safe('SELECT pg_advisory_unlock(1)');
$gate->quit;
nothing_left('side by side');
holds($node, $db, q{SELECT count(*), count(DISTINCT payload), min(attempt), max(attempt), string_agg(DISTINCT role, ',')
  FROM handled WHERE name = 'side'}, '6|1|1|1|app', 'each is handled once, as its role');
holds($node, $db, q{SELECT count(*) FROM handled h WHERE name = 'side' AND pid IN (SELECT pid FROM pg_stat_activity WHERE backend_type = 'mq worker')},
	0, 'not by the worker itself');
within(20, $node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mq handler'}, 0, 'idle sessions are closed');
sql('TRUNCATE handled');

# A second role would have the one worker take turns.
sql(q{SELECT mq_unregister_handler('side'), mq_unregister_handler('quick')});

# What a handler leaves in its session does not reach the next.
sql(q{CREATE FUNCTION stain(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO handled (name, payload) VALUES (coalesce(current_setting('my.stain', true), '') || to_regclass('pg_temp.stain')::text
	    || current_setting('work_mem'), m.payload_json);
	  INSERT INTO handled (name, payload) VALUES (concat('[', current_setting('my.stain', true), to_regclass('pg_temp.stain'), current_setting('work_mem'), ']'), m.payload_json);
	  PERFORM set_config('my.stain', 'x', false), set_config('work_mem', '1MB', false), pg_advisory_lock(7);
	  CREATE TEMP TABLE stain (n int);
	  LISTEN mq;
	END $$});
register('stain', 'stain(mq_message)', 'max_workers => 1');
sql(q{SELECT mq_send('stain') FROM generate_series(1, 3)});
nothing_left('stains');
holds($node, $db, q{SELECT DISTINCT name FROM handled WHERE name IS NOT NULL}, '[4MB]', 'nothing of a handler reaches the next one');
sql('TRUNCATE handled');

# Shapes, payloads, and arguments that travel in binary.
sql(q{CREATE FUNCTION take_json(p jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO handled (name, payload) VALUES ('json', p) $$;
      CREATE FUNCTION take_batch(ms mq_message[]) RETURNS void LANGUAGE sql AS $$
        INSERT INTO handled (name, payload, attempt) SELECT m.name || octet_length(m.payload_bytes), m.payload_json, array_length(ms, 1) FROM unnest(ms) m $$;
      CREATE PROCEDURE proceed(p jsonb) LANGUAGE plpgsql AS $$ BEGIN INSERT INTO handled (name, payload) VALUES ('p1', p); COMMIT;
        INSERT INTO handled (name, payload) VALUES ('p2', p); END $$});
register('json', 'take_json(jsonb)');
register('batch', 'take_batch(mq_message[])', 'batch_size => 3');
register('proc', 'proceed(jsonb)');
sql(q{SELECT mq_pause('batch')});
sql(q{SELECT mq_send('json', '{"a": [1, null, "ü"]}'), mq_send('json'), mq_send('proc', '7')});
sql(q{SELECT mq_send('batch', to_jsonb(i), payload_bytes => '\x00ff00') FROM generate_series(1, 7) i});
within(20, $node, $db, q{SELECT string_agg(concat(name, payload), ' ' ORDER BY name, payload) FROM handled},
	'json{"a": [1, null, "ü"]} json p17 p27', 'payloads and NULL arrive, a procedure may commit');
sql(q{SELECT mq_resume('batch')});
nothing_left('shapes');
holds($node, $db, q{SELECT max(attempt), count(*), count(DISTINCT payload) FROM handled WHERE name = 'batch3'}, '3|7|7', 'batches of three at most');
sql('TRUNCATE handled');

# Order: the next message of a channel does not start before the one before is settled.
register('order', 'handle_slowly(mq_message)');
sql(q{SELECT mq_send('order', jsonb_build_object('n', i, 'c', c, 'seconds', 0.05 * (i % 3)), channel_args => c, ordered => true)
  FROM generate_series(1, 6) i, unnest('{a,b}'::text[]) c});
nothing_left('order');
holds($node, $db, q{SELECT string_agg(o, ' ' ORDER BY c) FROM (SELECT payload ->> 'c' AS c, string_agg(payload ->> 'n', '' ORDER BY n) AS o
	FROM handled GROUP BY 1) h}, '123456 123456', 'each once and in order');
sql('TRUNCATE handled');

# Most calls on a channel at once.
register('few', 'handle_slowly(mq_message)', 'max_workers => 2');
sql(q{SELECT mq_send('few', '{"seconds": 0.5}') FROM generate_series(1, 6)});
my $most = 0;
for (1 .. 100) {
	my $now = sql(q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'few' AND lease > 0});
	$most = $now if $now > $most;
	last if sql(q{SELECT count(*) FROM mq_msgs}) == 0;
}
is($most, 2, 'max_workers is the most calls on a channel at once');
nothing_left('max_workers');
sql('TRUNCATE handled');

# Outcomes from within.
sql(q{CREATE SEQUENCE calls;
      CREATE FUNCTION decide(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO handled (name, payload, attempt) VALUES (m.payload_json ->> 'do', m.payload_json, m.attempt);
	  CASE m.payload_json ->> 'do'
	    WHEN 'snooze' THEN
	      IF (SELECT count(*) FROM handled WHERE name = 'snooze') < 3 THEN PERFORM mq_snooze('0.2 s'); END IF;
	    WHEN 'discard' THEN PERFORM mq_discard('not for me');
	    WHEN 'fail' THEN PERFORM mq_snooze('1 h'); RAISE 'no' USING detail = 'd', hint = 'h', errcode = 'MQ001';
	    WHEN 'other' THEN PERFORM mq_discard('x', '00000000-0000-0000-0000-000000000001');
	    WHEN 'conflict' THEN
	      IF nextval('calls') <= 5 OR m.payload_json ? 'always' THEN RAISE 'again' USING errcode = '40001'; END IF;
	    WHEN 'delete' THEN PERFORM mq_delete(ARRAY[m.id]);
	    WHEN 'keep' THEN PERFORM mq_keep_alive(ARRAY[m.id], '1 h'); PERFORM pg_sleep(0.3);
	  END CASE;
	END $$});
register('decide', 'decide(mq_message)', q{run_as => 'postgres'});
sql(q{SELECT mq_send('decide', '{"do": "snooze"}')});
within(20, $node, $db, q{SELECT string_agg(attempt::text, '') FROM handled WHERE name = 'snooze'}, '111', 'a snoozed message comes again, and no attempt is charged');
nothing_left('snooze');
sql(q{SELECT mq_send('decide', '{"do": "discard"}')});
within(20, $node, $db, 'SELECT reason, error, attempts_made, payload_json FROM mq_dead', 'discarded|not for me|1|{"do": "discard"}', 'a discarded one is a dead letter');
holds($node, $db, q{SELECT count(*) FROM handled WHERE name = 'discard'}, 1, 'what its handler wrote stays');
sql(q{SELECT mq_send('decide', '{"do": "delete"}'), mq_send('decide', '{"do": "keep"}')});
nothing_left('mq_delete and mq_keep_alive by the handler');
sql(q{SELECT mq_send('decide', '{"do": "fail"}', retries => 1, retry_backoff => '0.1 s')});
within(20, $node, $db, q{SELECT reason, attempts_made, sqlstate, error, detail, hint, context ~ 'PL/pgSQL function' FROM mq_dead WHERE reason = 'exhausted'},
	'exhausted|2|MQ001|no|d|h|t', 'errors arrive whole; what a failed handler wished for is void');
holds($node, $db, q{SELECT string_agg(attempt || ' ' || (duration < '5 s'), ', ' ORDER BY failure_no) FROM mq_failures WHERE sqlstate = 'MQ001'},
	'1 true, 2 true', 'each failed attempt is recorded once');
holds($node, $db, q{SELECT count(*) FROM handled WHERE name = 'fail'}, 0, 'what a failed handler wrote is gone');
sql(q{SELECT mq_send('decide', '{"do": "other"}', retries => 0)});
within(20, $node, $db, q{SELECT sqlstate FROM mq_dead WHERE payload_json = '{"do": "other"}'}, '22023', 'an id that is not of the call is refused');
is(($node->psql($db, q{SELECT mq_snooze('1 s')}))[0], 3, 'outside of a handler mq_snooze is an error');
nothing_left('outcomes');
sql('TRUNCATE handled');

# A serialization failure is tried again at once, ten times in a row.
sql(q{SELECT mq_send('decide', '{"do": "conflict"}', retry_backoff => '1 h')});
nothing_left('conflicts are tried again at once');
holds($node, $db, q{SELECT string_agg(attempt::text, '') FROM handled}, '1', 'and charge no attempt');
sql(q{SELECT setval('calls', 1, false), mq_send('decide', '{"do": "conflict", "always": 1}', retries => 0)});
within(20, $node, $db, q{SELECT sqlstate FROM mq_dead WHERE payload_json ? 'always'}, '40001', 'but not for ever');
holds($node, $db, 'SELECT last_value FROM calls', 11, 'after ten in a row the attempt is charged');
sql('TRUNCATE handled, mq_failures, mq_dead');

# A batch that fails is called one by one.
sql(q{CREATE FUNCTION picky(ms mq_message[]) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  IF 3 = ANY (SELECT (m.payload_json)::int FROM unnest(ms) m) THEN RAISE 'three'; END IF;
	  INSERT INTO handled (name, payload, attempt) SELECT 'picky', m.payload_json, m.attempt FROM unnest(ms) m;
	END $$});
register('picky', 'picky(mq_message[])');
sql(q{SELECT mq_send_many('picky', '{1,2,3,4,5}', retries => 0)});
nothing_left('a batch with a bad message');
holds($node, $db, q{SELECT string_agg(payload::text || ':' || attempt, ' ' ORDER BY payload) FROM handled}, '1:1 2:1 4:1 5:1', 'the good ones are handled, uncharged');
holds($node, $db, 'SELECT count(*), max(error), max(attempts_made) FROM mq_dead', '1|three|1', 'the bad one is dead');
sql('TRUNCATE handled, mq_dead');

# Time limits: a sleep, a loop, a lock wait, a handler that catches the cancel.
sql(q{CREATE TABLE locked (n int);
      CREATE FUNCTION dawdle(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE n int := 0;
	BEGIN
	  CASE m.payload_json #>> '{}'
	    WHEN 'sleep' THEN PERFORM pg_sleep(60);
	    WHEN 'loop' THEN LOOP n := 1 - n; END LOOP;
	    WHEN 'lock' THEN LOCK TABLE locked;
	    WHEN 'stubborn' THEN LOOP BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP;
	  END CASE;
	END $$});
register('dawdle', 'dawdle(mq_message)', q{timeout => '0.3 s'});
my $locker = $node->background_psql($db);
$locker->query('BEGIN; LOCK TABLE locked');
sql(q{SELECT mq_send('dawdle', to_jsonb(w), retries => 0) FROM unnest('{sleep,loop,lock,stubborn}'::text[]) w});
within(30, $node, $db, q{SELECT string_agg(payload_json #>> '{}', ' ' ORDER BY payload_json), string_agg(DISTINCT sqlstate || ' ' || error, ',') FROM mq_dead},
	'lock loop sleep stubborn|57014 handler timed out after 300 ms', 'the time limit ends sleeps, loops, lock waits and who ignores it');
holds($node, $db, q{SELECT string_agg(payload_json #>> '{}', ' ') FROM mq_dead WHERE detail IS NOT NULL}, 'stubborn', 'the last one by the end of its session');
$locker->quit;
within(20, $node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mq handler' AND state = 'active'}, 0, 'none of them goes on');

# Leases are renewed when half of them is over.
sql('TRUNCATE handled');
register('long', 'handle_slowly(mq_message)');
sql(q{SELECT mq_send('long', '{"seconds": 18}')});
within(10, $node, $db, q{SELECT attempt_at - clock_timestamp() BETWEEN '20 s' AND '30 s' FROM mq_msgs WHERE lease > 0}, 't', 'a lease lasts half a minute');
my $first = sql('SELECT attempt_at FROM mq_msgs');
within(25, $node, $db, "SELECT attempt_at > '$first' FROM mq_msgs", 't', 'and is renewed while the handler runs');
nothing_left('a long one');
holds($node, $db, 'SELECT count(*), max(attempt) FROM handled', '1|1', 'it ran once');

# A snooze does not outlast the message.
sql('TRUNCATE handled, mq_dead');
sql(q{CREATE FUNCTION put_off(m mq_message) RETURNS void LANGUAGE sql AS $$ SELECT mq_snooze('1 h') $$});
register('put off', 'put_off(mq_message)');
sql(q{SELECT mq_send('put off', expires => '1 s')});
within(20, $node, $db, 'SELECT reason, attempts_made FROM mq_dead', 'expired|0', 'a message that is snoozed expires in time');

# Nothing of a function's result travels: its type may have no binary form.
sql(q{CREATE FUNCTION give(p jsonb) RETURNS aclitem LANGUAGE plpgsql AS $$
	BEGIN INSERT INTO handled (payload) VALUES (p); RETURN NULL; END $$});
register('give', 'give(jsonb)');
sql(q{SELECT mq_send('give', '1', retries => 0)});
within(20, $node, $db, q{SELECT payload FROM handled}, '1', 'the type of a result does not matter');

# A role's client_encoding changes nothing: the worker sends, and the session reads, what is in the database.
sql(q{TRUNCATE handled; CREATE ROLE latin LOGIN; ALTER ROLE latin SET client_encoding = 'LATIN1'; GRANT ALL ON handled, handled_n_seq TO latin});
register('encoded', 'handle(mq_message)', q{run_as => 'latin'});
sql(qq{SELECT mq_send('encoded', '"\xe2\x82\xac \xe6\x97\xa5\xe6\x9c\xac"', retries => 0)});
within(20, $node, $db, q{SELECT role, payload = '"\u20ac \u65e5\u672c"' FROM handled}, 'latin|t', 'payloads arrive whatever the encoding of the role\'s clients');

log_is_clean($node);
$node->stop;
done_testing();
