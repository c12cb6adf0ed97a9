# Which messages a claim takes, and in which order: the oldest and a fair sample, names in equal shares, ordered heads with
# their followers. Nobody else is at work: mq_poll() claims heads alone, CALL mq_run() heads with followers, a transaction
# for each batch.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('claim', 'mq.max_workers' => 0, autovacuum => 'off');
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
sub is_now { my ($query, $expected, $what) = @_; local $Test::Builder::Level = $Test::Builder::Level + 1; holds($node, $db,
	$query, $expected, $what) }
my $seed = $ENV{MQ_SEED} // int(rand(2**31));
note "MQ_SEED=$seed";
srand($seed);

# fill() sends messages named '1', '2', ... of one channel; names go on where the last call ended.
sql(q{
	CREATE EXTENSION mq;
	CREATE SEQUENCE names;
	CREATE TABLE done (n bigserial, channel text, args text, name int, batch xid8 DEFAULT pg_current_xact_id());
	CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE sql AS $$
	  INSERT INTO done (channel, args, name) VALUES (m.channel_name, m.channel_args, m.name::int) $$;
	CREATE FUNCTION fill(channel text, args text, count int, ordered boolean DEFAULT false,
		delay interval DEFAULT '0') RETURNS void LANGUAGE sql AS $$
	  SELECT count(mq_send(channel, name => nextval('names')::text, channel_args => args, ordered => ordered, delay => delay))
	    FROM generate_series(1, count) $$;
	CREATE VIEW batches AS
	  SELECT row_number() OVER (ORDER BY min(n)) AS batch, string_agg(name::text, ' ' ORDER BY n) AS names FROM done
		GROUP BY done.batch;
	-- What a poll returns, so many times, each time of the same messages.
	CREATE FUNCTION polls(channels text[], size int, times int) RETURNS TABLE (poll int, n bigint, channel_name text,
		channel_args text, name int)
	LANGUAGE plpgsql AS $$
	DECLARE
	  got jsonb;
	BEGIN
	  FOR poll IN 1 .. times LOOP
	    BEGIN
	      SELECT jsonb_agg(jsonb_build_array(p.n, m.channel_name, m.channel_args, p.name) ORDER BY p.n) INTO got
	        FROM (SELECT row_number() OVER () AS n, q.id, q.name FROM mq_poll(channels, size) AS q) AS p JOIN mq_msgs m USING (id);
	      RAISE EXCEPTION USING ERRCODE = 'MQ001';
	    EXCEPTION WHEN SQLSTATE 'MQ001' THEN NULL;
	    END;
	    RETURN QUERY SELECT poll, (g ->> 0)::bigint, g ->> 1, g ->> 2, (g ->> 3)::int FROM jsonb_array_elements(got) AS g;
	  END LOOP;
	END $$});
sub start_over { sql(q{SELECT mq_clear_all(), mq_unregister_handler(channel_name, message_name) FROM mq_handlers;
	SELECT mq_clear_all();
	TRUNCATE done; DELETE FROM mq_dead; ALTER SEQUENCE names RESTART}) }
sub handle { sql("SELECT mq_register_handler('$_', 'handle(mq_message)')") for @_ }
my $batches = q{SELECT string_agg(names, ' | ' ORDER BY batch) FROM batches};

# --- the oldest, and a sample ----------------------------------------------------------------------

sql(q{SELECT fill('c', 'big', 40), fill('c', 'late', 1)});
sql(q{UPDATE mq_msgs SET attempt_at = attempt_at - interval '1 s' WHERE channel_args = 'late'});
is_now(q{SELECT bool_and(names[1] = 41 AND cardinality(names) = 8 AND names[2:] = (SELECT array_agg(x ORDER BY x)
	FROM unnest(names[2:]) x))
	FROM (SELECT array_agg(name ORDER BY n) AS names FROM polls('{c}', 8, 20) GROUP BY poll) AS p}, 't',
		'what is sampled stands where it belongs among the oldest');
is_now(q{SELECT string_agg(DISTINCT size::text, ' ') FROM generate_series(1, 20) AS size WHERE (SELECT count(*)
	FROM polls('{c}', size, 1)) <> size}, '',
	'a poll of any size is filled, whatever is drawn');

start_over();
sql(q{SELECT fill('c', n::text, 1) FROM generate_series(1, 50) n});
is_now(q{SELECT count(*), count(*) FILTER (WHERE name = 1) BETWEEN 120 AND 280, count(DISTINCT name) > 20
	FROM polls('{c}', 1, 400)}, '400|t|t',
	'polls of one return the oldest and a drawn one by turns');

start_over();
sql(q{SELECT fill('c', 'flood', 1000);
      SELECT fill('c', 'tenant ' || n, 1) FROM generate_series(1, 20) n});
sql(q{DO $$
	BEGIN
	  FOR poll IN 1 .. 25 LOOP
	    PERFORM mq_delete(array_agg(id)) FROM mq_poll('{c}', 20);
	  END LOOP;
	END $$});
is_now(q{SELECT count(*) FILTER (WHERE channel_args LIKE 'tenant%'), count(*) > 400 FROM mq_msgs}, '0|t',
	'small channels are served long before a flood is over');

# Within one CALL the sample is spared for a few claims after it found nothing new.
start_over();
handle('c');
sql(q{SET mq.batch_size = 10; SELECT fill('c', 'big', 1000); CALL mq_run(max_messages => 100)});
is_now('SELECT count(*), count(DISTINCT batch) FROM done', '100|10', 'a channel of a thousand is claimed from in batches');
sub samples {
	my ($statement) = @_;
	my $read = q{SELECT pg_stat_force_next_flush(); SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'mq_msgs_fair'};
	my ($before) = sql($read) =~ /(\d+)$/;
	my ($after) = sql("$statement; $read") =~ /(\d+)$/;
	return $after - $before;
}
# The least of three: a claim may do more than sample.
my ($many) = sort { $a <=> $b } map { samples('SET mq.batch_size = 10; CALL mq_run(max_messages => 10)') } 1 .. 3;
my $more = samples('SET mq.batch_size = 10; CALL mq_run(max_messages => 400)');
cmp_ok($more, '>', $many * 4, "a sample that found nothing new is taken again after a few claims: $many, $more");
# Claims that a busy machine makes slow take one each.
sql(q{SELECT fill('c', 'big', 2000)});
my $spared = 0;
for (1 .. 40) {
	$spared = samples('SET mq.batch_size = 10; CALL mq_run(max_messages => 50)') < $many * 4 and last;
}
ok($spared, '... and spared until then');
sql(q{CREATE FUNCTION handle_slowly(m mq_message) RETURNS void LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.001); END';
      SELECT mq_register_handler('c', 'handle_slowly(mq_message)')});
cmp_ok(samples('SET mq.batch_size = 10; CALL mq_run(max_messages => 50)'), '>', $many * 4, '... but not between slow batches');
sql(q{SELECT fill('few', '', 5)});
is(samples(q{SELECT FROM mq_poll('{few}', 20)}), 0, 'a poll that takes all there is draws no sample');
sql(q{TRUNCATE done; SELECT mq_clear_all(); SELECT fill('new', 'big', 1000)});
# The small channel's message is sent by the fiftieth call.
sql(q{CREATE FUNCTION handle_and_send(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM handle(m);
	  IF (SELECT count(*) FROM done) = 50 THEN PERFORM fill('new', 'small', 1); END IF;
	END $$;
      SELECT mq_register_handler('new', 'handle_and_send(mq_message)');
      SET mq.batch_size = 10; CALL mq_run(max_messages => 400)});
is_now(q{SELECT count(*) FILTER (WHERE d.n <= s.n) - 50 <= 100 FROM done d, (SELECT n FROM done WHERE args = 'small') s}, 't',
	'a channel that comes late is found within a few claims');

# --- channel names -----------------------------------------------------------------------------------

start_over();
sql(q{SELECT fill(c, '', 100) FROM unnest('{a,b,c}'::text[]) c});
is_now(q{SELECT DISTINCT counts FROM (SELECT poll, string_agg(channel_name || count, ' ' ORDER BY channel_name) AS counts
	FROM (SELECT poll, channel_name, count(*) FROM polls('{a,b,c}', 30, 10) GROUP BY 1, 2) AS c GROUP BY 1) AS p}, 'a10 b10 c10',
		'names share a poll evenly');
sql(q{SELECT mq_delete(array_agg(id)) FROM (SELECT id FROM mq_msgs WHERE channel_name = 'a' LIMIT 98) AS m});
is_now(q{SELECT bool_and(a = 2 AND b >= 10 AND c >= 10 AND a + b + c = 30)
	FROM (SELECT count(*) FILTER (WHERE channel_name = 'a') AS a,
	count(*) FILTER (WHERE channel_name = 'b') AS b, count(*) FILTER (WHERE channel_name = 'c') AS c FROM polls('{a,b,c}', 30, 15)
		GROUP BY poll) AS p}, 't',
	'what a name does not use is left to the others');
sql(q{SELECT fill(c, '', 10) FROM unnest('{d,e}'::text[]) c; SELECT fill('a', '', 10)});
is_now(q{SELECT count(*), min(count) > 30, sum(count) FROM (SELECT channel_name, count(*) FROM polls('{a,b,c,d,e}', 2, 200)
	GROUP BY 1) AS c}, '5|t|400',
	'each name has its turn where there are more than a poll takes');

start_over();
sql(q{SELECT mq_register_handler('a', 'handle(mq_message)', batch_size => 3), mq_register_handler('o', 'handle(mq_message)',
	batch_size => 4);
      SELECT fill('a', '', 20), fill('o', '', 20, true); CALL mq_run()});
is_now(q{SELECT count(*), count(*) FILTER (WHERE channel = 'a'), (SELECT max(n) FROM (SELECT count(*) AS n FROM done
	WHERE channel = 'a' GROUP BY batch) AS b),
	(SELECT max(n) FROM (SELECT count(*) AS n FROM done WHERE channel = 'o' GROUP BY batch) AS b) FROM done}, '40|20|3|4',
		'a name gives no more to a batch than it may');

# Names of equal priority in one batch, heads with their followers; what is left over is for the next priority.
start_over();
sql(q{SELECT mq_register_handler('low', 'handle(mq_message)', priority => -1), mq_register_handler('ordered',
	'handle(mq_message)', priority => 5),
             mq_register_handler('high', 'handle(mq_message)', priority => 5);
      SELECT fill('low', '', 20), fill('high', '', 3), fill('ordered', '', 4, true)});
sql('SET mq.batch_size = 9; CALL mq_run(max_messages => 9)');
is_now(q{SELECT string_agg(left(channel, 1), '' ORDER BY n) ~ '^(hhhoooo|oooohhh)ll$', count(DISTINCT batch) FROM done}, 't|1',
	'names of greater priority are claimed first, their followers as well, and the rest is for the next');
sql(q{TRUNCATE done; SELECT fill('high', '', 3), fill('ordered', '', 4, true)});
sql('SET mq.batch_size = 2; CALL mq_run(max_messages => 7)');
is_now(q{SELECT count(*) FILTER (WHERE channel = 'low') FROM done}, 0, '... of which none is claimed while there is another');

# --- ordered channels --------------------------------------------------------------------------------

start_over();
handle('c');
sql(q{SELECT fill('c', 'x', 1, true), fill('c', 'y', 1, true), fill('c', '', 1) FROM generate_series(1, 3); CALL mq_run()});
is_now($batches, '1 4 7 2 5 8 3 6 9', 'followers go right behind their head');

# One batch of that size.
sub first_batch {
	my ($size, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sql("TRUNCATE done; SET mq.batch_size = $size; CALL mq_run()");
	is_now(q{SELECT names FROM batches WHERE batch = 1}, $expected, $what);
}
start_over();
handle('c');
sql(q{SELECT fill('c', 'x', 50, true), fill('c', 'y', 50, true)});
first_batch(10, '1 2 3 4 5 51 52 53 54 55', 'the followers of two heads share the room');
is_now('SELECT count(*), max(size) FROM (SELECT count(*) AS size FROM done GROUP BY batch) AS b', '10|10',
	'and in the next batches');
for my $case ([ 4, '1 2 6 11' ], [ 3, '1 6 11' ]) {
	start_over();
	handle('c');
	sql(q{SELECT fill('c', n::text, 5, true) FROM generate_series(1, 3) n});
	first_batch(@$case, "followers take no more than the room that many heads leave: $case->[0]");
	is_now('SELECT count(*) FROM done', 15, '... and all are handled in the end');
}

start_over();
handle('c');
sql(q{SELECT fill('c', 'x', 5, true); UPDATE mq_msgs SET expires_at = now() - interval '1 s' WHERE message_name = '3'; CALL mq_run()});
is_now($batches, '1 2 | 4 5', 'followers end before one that cannot be delivered');
is_now('SELECT reason FROM mq_dead', 'expired', '... which is dead-lettered when it is head');
start_over();
handle('c');
sql(q{SELECT fill('c', 'x', 4, true); UPDATE mq_msgs SET expires_at = now() - interval '1 s' WHERE message_name = '1'; BEGIN; CALL mq_run(max_messages => 1); COMMIT;
	CALL mq_run()});
is_now($batches, '2 | 3 4', 'nothing is lost behind a head that cannot be delivered');

# As if all channels had the same key.
start_over();
handle('c');
my $collide = q{UPDATE mq_msgs SET channel_key = 7};
sql("SELECT fill('c', 'x', 1, true), fill('c', 'y', 3, true), fill('c', 'z', 2, true); $collide; CALL mq_run()");
is_now($batches, '1 2 3 4 5 6', 'followers of channels that share a key stay apart');
sql("TRUNCATE done; SELECT fill('c', 'x', 1, true), fill('c', 'y', 3, true), fill('c', 'x', 1, true); $collide; CALL mq_run()");
is_now($batches, '7 11 8 9 10', '... wherever they stand');

# --- at random ---------------------------------------------------------------------------------------

# Ordered and other channels of three names, some messages not due, some that cannot be delivered. Each CALL handles what is due.
for my $round (1 .. 8) {
	start_over();
	my %most = map { $_ => 1 + int(rand 20) } qw(a b c);
	my $limit = 1 + int(rand 25);
	sql(join '', map { "SELECT mq_register_handler('$_', 'handle(mq_message)', batch_size => $most{$_});" } sort keys %most);
	my @sends;
	for (1 .. 40 + int(rand 60)) {
		my ($name, $channel, $kind) = ((qw(a b c))[ rand 3 ], int(rand 8), int(rand 20));
		push @sends, sprintf q{SELECT fill('%s', '%s', 1, %s, '%s');}, $name, $channel, $channel < 3 ? 'true' : 'false',
			$kind < 2 ? '1 h' : '0';
	}
	sql(join '', @sends);
	sql(q{UPDATE mq_msgs SET expires_at = now() - interval '1 s' WHERE random() < 0.05; UPDATE mq_msgs SET attempts = 0 WHERE random() < 0.05});
	sql($collide) if $round % 4 == 0;
	sql(q{CREATE TABLE sent AS SELECT m.seq, channel_name, channel_args, message_name::int AS name, attempts > 0 AND expires_at IS NULL AS good,
		attempt_at, after_message_id IS NOT NULL AS ordered
		FROM mq_msgs m});
	for my $call (1, 2) {
		sql("SET mq.batch_size = $limit; CALL mq_run()");
		sql(q{UPDATE mq_msgs SET attempt_at = now()}) if $call == 1;
	}
	is_now('SELECT (SELECT count(*) FROM mq_msgs), (SELECT count(*) FROM done) = (SELECT count(*) FROM sent WHERE good),
		(SELECT count(DISTINCT name) = count(*) FROM done)',
		'0|t|t', "round $round: all that can be delivered is handled once");
	is_now("SELECT max(count) <= $limit FROM (SELECT count(*) FROM done GROUP BY batch) AS b", 't',
		'... in batches of no more than mq.batch_size');
	is_now(join(' UNION ALL ', map { "SELECT 'too many of $_' FROM done WHERE channel = '$_'
		GROUP BY batch HAVING count(*) > $most{$_}" } sort keys %most), '',
		'... and no more of a name than its handler takes');
	is_now(q{SELECT count(*) FROM (SELECT name, lag(name) OVER (PARTITION BY channel, args ORDER BY n) AS before FROM done
		WHERE args < '3') AS d WHERE name < before}, 0,
		'... ordered channels in their order');
	is_now(q{SELECT count(*) FROM (SELECT batch, channel, count(*) FILTER (WHERE new) AS times FROM
		(SELECT batch, channel, channel IS DISTINCT FROM lag(channel) OVER (PARTITION BY batch ORDER BY n) AS new FROM done) AS d
			GROUP BY 1, 2) AS t WHERE times > 1}, 0,
		'... and the messages of a name together');
	sql('DROP TABLE sent');
}

$node->stop;
log_is_clean($node);
done_testing();
