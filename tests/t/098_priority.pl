# Messages with a priority, with real workers, leased sessions and consumers outside: of what is due in a channel the greatest
# comes first, and whatever makes a message due, it is found without a look at the clock of mq.poll_interval.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqReads;
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('priority', 'mq.max_workers' => 1, autovacuum => 'off');
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
my $seed = $ENV{MQ_SEED} // int(rand(2**31));
note "MQ_SEED=$seed";

sql('CREATE EXTENSION mq');
handled_table($node, $db);
# 'gate' waits for the test; 'fails' fails once.
sql(q{
	CREATE FUNCTION work(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  IF message.name = 'gate' THEN PERFORM pg_advisory_xact_lock_shared(1); END IF;
	  IF message.name = 'fails' AND message.attempt = 1 THEN RAISE EXCEPTION 'not this time'; END IF;
	  PERFORM handle(message);
	END $$;
	SELECT mq_register_handler(c, 'work(mq_message)') FROM unnest('{c,d}'::text[]) c;
	CREATE FUNCTION send(name text, priority int, channel text DEFAULT 'c', delay interval DEFAULT '0', retry_backoff interval DEFAULT '1 ms') RETURNS uuid
	  LANGUAGE sql AS $$ SELECT mq_send(channel, name => name, priority => priority, delay => delay, retry_backoff => retry_backoff) $$});
my $names = q{SELECT COALESCE(string_agg(name, ' ' ORDER BY n), '') FROM handled};
my $gate = $node->background_psql($db, on_error_die => 1);
sub shut { $gate->query_safe('SELECT pg_advisory_lock(1)') }
sub opened { $gate->query_safe('SELECT pg_advisory_unlock(1)') }
my $at_the_gate = q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 1 AND NOT granted};
sub drained { local $Test::Builder::Level = $Test::Builder::Level + 2; within(60, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, "$_[0]: all are handled") }

# The only worker is in a call while the statements run; then it handles the rest.
sub behind_the_gate {
	my ($what, $expected, @statements) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sql('TRUNCATE handled');
	shut();
	sql(q{SELECT send('gate', 0)});
	within(20, $node, $db, $at_the_gate, 1, "$what: the worker is in a call");
	ref $_ ? $_->() : sql($_) for @statements;
	opened();
	drained($what);
	holds($node, $db, $names, $expected, $what) if defined $expected;
}

# --- the order ---------------------------------------------------------------------------------------

# The worker has waited, and in its claims there was no message with a priority; so its first claim does not look for any.
for my $turn (1 .. 3) {
	sql(q{SELECT send('one', 0)});
	drained('one without a priority');
	within(20, $node, $db, q{SELECT state FROM mq_workers WHERE database = current_database()}, 'waiting', 'the worker waits');
	sql(q{TRUNCATE handled; VACUUM mq_msgs});
	sql(q{SELECT send('b', 0), send('c', -1), send('a', 1)});
	drained('those that it is woken for');
	holds($node, $db, $names, 'a b c', 'are handled by their priorities');
}

behind_the_gate('each goes before those of less priority', 'gate a b c d e',
	q{SELECT send('d', 0)}, q{SELECT send('e', -1000)}, q{SELECT send('b', 1)}, q{SELECT send('a', 1000)}, q{SELECT send('c', 1)});
behind_the_gate('one that is due later hides nothing, and comes first once it is due', 'gate late a b',
	q{SELECT send('late', 5, delay => '100 ms')}, q{SELECT send('b', 0), send('a', 1)},
	sub { within(20, $node, $db, q{SELECT bool_and(attempt_at < clock_timestamp()) FROM mq_msgs}, 't', 'it becomes due') });

# Several channels share the batches; within each the order holds.
my $sends = qq{SELECT setseed(${\($seed / 2**31)});
	CREATE TABLE expected AS SELECT n, (random() * 6 - 3)::int * (random() * 300)::int AS priority, CASE WHEN random() < 0.5 THEN 'c' ELSE 'd' END AS channel
	  FROM generate_series(1, 5000) n;
	SELECT count(send(n::text, priority, channel)) FROM (SELECT * FROM expected ORDER BY n) e};
my $in_place = q{SELECT count(*), count(*) FILTER (WHERE h.name = e.n::text)
	FROM (SELECT h.name, e.channel, row_number() OVER (PARTITION BY e.channel ORDER BY h.n) AS place FROM handled h JOIN expected e ON e.n::text = h.name) h
	FULL JOIN (SELECT *, row_number() OVER (PARTITION BY channel ORDER BY priority DESC, n) AS place FROM expected) e USING (channel, place)};
behind_the_gate('5,000 of two channels', undef, $sends);
holds($node, $db, $in_place, '5000|5000', '... are handled in the order of a sort');

# One call at a time in leased sessions.
sql(q{SELECT mq_register_handler(c, 'work(mq_message)', mode => 'leased', max_workers => 1) FROM unnest('{c,d}'::text[]) c; DROP TABLE expected});
behind_the_gate('leased calls', 'gate a b c d',
	q{SELECT send('c', 0)}, q{SELECT send('a', 7)}, q{SELECT send('d', -7)}, q{SELECT send('b', 6)});
sql(q{SELECT mq_register_handler(c, 'work(mq_message)') FROM unnest('{c,d}'::text[]) c});

# --- what makes them due -----------------------------------------------------------------------------

# mq.poll_interval is an hour: what is handled was not found by looking.
sub comes {
	my ($what, $expected, @statements) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sql('TRUNCATE handled');
	sql($_) for @statements;
	drained($what);
	holds($node, $db, $names, $expected, $what);
}
for my $priority (-4, 4) {
	comes("priority $priority: a send", 'a', "SELECT send('a', $priority)");
	comes("priority $priority: a delay ends", 'a', "SELECT send('a', $priority, delay => '200 ms')");
	comes("priority $priority: a retry", 'fails', "SELECT send('fails', $priority, retry_backoff => '100 ms')");
	comes("priority $priority: a two-phase message is committed", 'a', "SELECT mq_send('c', name => 'a', priority => $priority, id => md5('a')::uuid, commit_interval => '1 hour')",
		"SELECT mq_commit(ARRAY[md5('a')::uuid])");
	comes("priority $priority: what it waits for is handled", 'a b', "SELECT mq_send('c', name => 'b', priority => $priority, after => ARRAY[send('a', ${\(-$priority)})])");
	sql(qq{SELECT mq_register_handler('none', 'work(mq_message)', 'other')});
	comes("priority $priority: its name has a handler at last", 'aside', "SELECT send('aside', $priority, 'none')",
		q{SELECT mq_register_handler('none', 'work(mq_message)')});
	sql(q{SELECT mq_unregister_handler('none', NULL), mq_unregister_handler('none', 'other')});
	sql(qq{SELECT mq_send('c', name => 'x', priority => $priority, expires => '300 ms', delay => '1 hour')});
	within(20, $node, $db, q{SELECT name, priority, reason FROM mq_dead}, qr/^x\|$priority\|expired$/, "priority $priority: an expiry");
	sql('DELETE FROM mq_dead');
}

# --- several workers -----------------------------------------------------------------------------------

set_and_reload($node, 'mq.max_workers' => 4);
sql('TRUNCATE handled; DROP TABLE IF EXISTS expected');
sql($sends);
sql(q{SELECT count(send('fails', (n % 5) - 2, retry_backoff => '10 ms')), count(send('later', (n % 7) - 3, 'd', delay => '50 ms')) FROM generate_series(1, 300) n});
drained('four workers');
holds($node, $db, q{SELECT count(*), count(DISTINCT name) FILTER (WHERE name ~ '\d'), count(*) FILTER (WHERE name = 'fails' AND attempt = 2), count(*) FILTER (WHERE name = 'later')
	FROM handled}, '5600|5000|300|300', '... handle each once');

# What one worker has in a call the others pass over, and so does a poll; they go on with what comes behind.
sql('TRUNCATE handled');
shut();
sql(q{SELECT send('gate', 9)});
within(20, $node, $db, $at_the_gate, 1, 'a worker is in a call of the greatest priority');
sql(q{SELECT send('high', 9), send('low', -9)});
within(20, $node, $db, $names, qr/^(high low|low high)$/, '... others handle the rest');
holds($node, $db, q{SELECT count(*) FROM mq_poll('{c}', 5) WHERE id IS NOT NULL}, 0, '... and a poll finds nothing');
holds($node, $db, q{SELECT count(*) FROM mq_receive('{c}', 5)}, 0, '... nor does a consumer');
opened();
drained('the call ends');

# --- consumers outside -----------------------------------------------------------------------------------

sql(q{SELECT mq_unregister_handler('c')});
my $receiver = MqSession->new($node, $db);
$receiver->begin(q{SELECT name, priority FROM mq_receive('{c}', 5, wait => '60 s')});
within(20, $node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%mq_receive%' AND wait_event_type = 'Extension' AND pid <> pg_backend_pid()}, 1, 'a consumer waits');
sql(q{SELECT send('a', -3)});
is($receiver->result, 'a|-3', '... and gets a message of less priority than 0');
sql(q{SELECT mq_clear_all(); SELECT send('b', 0), send('c', -1), send('a', 1)});
is($receiver->query(q{SELECT string_agg(name, ' ') FROM mq_receive(NULL, 2)}), 'a b', 'the greatest first');
is($receiver->query(q{SELECT string_agg(name, ' ') FROM mq_receive(NULL, 2)}), 'c', '... then the rest');
sql(q{SELECT mq_clear_all(); SELECT send('late', 3, delay => '300 ms')});
is($receiver->query(q{SELECT string_agg(name, ' ') FROM mq_receive(NULL, 2, wait => '60 s')}), 'late', 'a consumer waits until one is due');
sql(q{SELECT mq_clear_all()});

# --- mq_why ------------------------------------------------------------------------------------------------

set_and_reload($node, 'mq.max_workers' => 1);
sql(q{SELECT mq_register_handler('c', 'work(mq_message)')});
within(30, $node, $db, "SELECT count(*) FROM ($MqTest::WORKERS) w", 1, 'one worker is left');
my ($high, $zero, $low);
my $why = sub { return "SELECT mq_why('$_[0]')" };
behind_the_gate('what waits', 'gate high zero low', sub {
	($high, $zero, $low) = map { sql($_) } q{SELECT send('high', 2)}, q{SELECT send('zero', 0)}, q{SELECT send('low', -2)};
	within(20, $node, $db, $why->($high), qr/^is due, but all 1 workers sit in calls/, 'mq_why: the first waits for a worker');
	within(20, $node, $db, $why->($zero), 'waits since its channel has due messages of priority 2, and its own priority is 0', '... others for it');
	within(20, $node, $db, $why->($low), 'waits since its channel has due messages of priority 2, and its own priority is -2', '... whatever is between');
	sql("SELECT mq_delete('{$high}')");
	within(20, $node, $db, $why->($low), 'waits since its channel has due messages of priority 0, and its own priority is -2', '... or for one of priority 0');
	sql(q{SELECT send('high', 2)}) });

# --- low-water marks -----------------------------------------------------------------------------------------

# A flow raises the mark of the priority; what comes below it without the server's knowledge is found within the interval.
set_and_reload($node, 'mq.poll_interval' => '500ms');
my $one = MqSession->new($node, $db);
for my $priority (-6, 6) {
	sql('TRUNCATE handled');
	$one->query("BEGIN; SELECT send('hidden', $priority); PREPARE TRANSACTION 'p'");
	sql("SELECT count(send('flow', $priority)) FROM generate_series(1, 100)") for 1 .. 2;
	within(20, $node, $db, q{SELECT count(*) FROM handled WHERE name = 'flow'}, 200, "priority $priority: messages flow");
	$one->query(q{COMMIT PREPARED 'p'});
	within(20, $node, $db, q{SELECT count(*) FROM handled WHERE name = 'hidden'}, 1, '... and one that comes below them is found');
}
set_and_reload($node, 'mq.poll_interval' => '1h', 'mq.max_workers' => 0);

SKIP: {
	skip 'the counts of an older server come late', 2 if $node->pg_version < 15;
	sql(q{SELECT mq_unregister_handler('c'); SELECT mq_clear_all();
	      CREATE PROCEDURE flow(messages int) LANGUAGE plpgsql AS $$
	      BEGIN
	        PERFORM mq_send_many('c', array_fill('0'::jsonb, ARRAY[messages]), name => 'flow', priority => 8);
	        COMMIT;
	        FOR i IN 1 .. 4 LOOP
	          PERFORM mq_delete(array_agg(id)) FROM mq_poll(NULL, messages / 4);
	          COMMIT;
	        END LOOP;
	      END $$});
	within(20, $node, $db, 'SHOW mq.poll_interval', '1h', 'the interval is long again');
	# Something of less priority waits all the time.
	sql(q{SELECT send('waits', -8, delay => '1 hour'), send('other', -9, delay => '1 hour')});
	my $holder = hold_snapshot($node, $db);
	cmp_ok(growth_of_reads($one, 'CALL flow(400)'), '<', 1.5, 'polls beside a held snapshot read no more and more');
	$holder->quit;
}

# --- plans ---------------------------------------------------------------------------------------------------

# With and without statistics each part of mq_heads is read along its index.
sql(q{SELECT mq_clear_all(); SELECT count(*) FROM unnest('{0,5}'::int[]) p, LATERAL mq_send_many('c', array_fill('0'::jsonb, ARRAY[5000]), priority => p)});
for my $analyze ('', 'ANALYZE mq_msgs; ') {
	my $plan = $one->query($analyze . q{EXPLAIN (COSTS off) SELECT m.attempt_at FROM mq_heads m WHERE m.channel_name = 'c' ORDER BY m.attempt_at LIMIT 1});
	like($plan, qr/Merge Append.*mq_msgs_due.*mq_msgs_prioritized/s, ($analyze ? 'with' : 'without') . ' statistics: mq_heads is read along two indexes');
}

$_->quit for $one, $receiver, $gate;
$node->stop;
log_is_clean($node, qr/not this time/);
done_testing();
