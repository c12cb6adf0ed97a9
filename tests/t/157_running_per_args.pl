# max_running_per_args: so many unordered messages of one channel_args run at once, and no more, of workers, leased calls and
# consumers outside; what waits for that is handled as soon as one has ended, however it ends, and nobody looks for it before.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = mq_node('running_per_args', 'mq.max_workers' => 4, autovacuum => 'off', fsync => 'off', max_connections => 100);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
# Each call notes how many of its channel and args run beside it: in memory of the whole server, so that it sees those of open
# transactions. An advisory lock of a session stands for a call.
sql(q{
	CREATE EXTENSION mq;
	CREATE TABLE begun (channel text, args text, n int, beside int, mode text, at timestamptz DEFAULT clock_timestamp());
	CREATE FUNCTION beside(key int) RETURNS bigint LANGUAGE sql AS $$
	  SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 7 AND objid = key AND objsubid = 2 AND mode = 'ShareLock' $$;
	CREATE FUNCTION begin_call(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE key int := abs(hashtext(m.channel_name || ' ' || m.channel_args)) % 1000000; seen bigint;
	BEGIN
	  PERFORM pg_advisory_lock_shared(7, key);
	  seen := beside(key);
	  PERFORM pg_sleep(random() * 0.01);
	  seen := GREATEST(seen, beside(key));
	  INSERT INTO begun (channel, args, n, beside, mode) VALUES (m.channel_name, m.channel_args, (m.payload_json)::int, seen, 'handler');
	  PERFORM pg_advisory_unlock_shared(7, key);
	  IF m.channel_name LIKE 'fails%' AND m.attempt = 1 THEN RAISE 'on purpose'; END IF;
	END $$;
	CREATE FUNCTION gated(m mq_message) RETURNS void LANGUAGE sql AS $$ SELECT pg_advisory_xact_lock_shared(1) $$;
	CREATE PROCEDURE consume(channel text, until_empty boolean DEFAULT true) LANGUAGE plpgsql AS $$
	DECLARE m mq_delivery; key int;
	BEGIN
	  FOR i IN 1 .. 100000 LOOP
	    EXIT WHEN NOT EXISTS (SELECT FROM mq_msgs WHERE channel_name = channel);
	    FOR m IN SELECT * FROM mq_receive(ARRAY[channel], 4) LOOP
	      key := abs(hashtext(m.channel_name || ' ' || m.channel_args)) % 1000000;
	      COMMIT;
	      PERFORM pg_advisory_lock_shared(7, key);
	      PERFORM pg_sleep(random() * 0.005);
	      INSERT INTO begun (channel, args, n, beside, mode) VALUES (m.channel_name, m.channel_args, (m.payload_json)::int, beside(key), 'consumer');
	      PERFORM pg_advisory_unlock_shared(7, key);
	      PERFORM mq_ack(ARRAY[m.id], m.lease);
	    END LOOP;
	    COMMIT;
	    PERFORM pg_sleep(0.005);
	  END LOOP;
	END $$});
my $send = sub { my ($channel, $count, $keys) = @_; sql("SELECT count(mq_send('$channel', to_jsonb(n), channel_args => 'k' || n % $keys, retry_backoff => '10 ms')) FROM generate_series(1, $count) n") };

# --- never more ------------------------------------------------------------------------------------------

for my $case ([ 'transactional', 1 ], [ 'transactional2', 2 ], [ 'leased', 1 ], [ 'leased2', 3 ], [ 'fails', 1 ]) {
	my ($channel, $most) = @$case;
	my $mode = $channel =~ /^leased/ ? 'leased' : 'transactional';
	sql("SELECT mq_limit('$channel', max_running_per_args => $most), mq_register_handler('$channel', 'begin_call(mq_message)', mode => '$mode')");
	$send->($channel, 200, 3);
	within(120, $node, $db, "SELECT count(*) FROM mq_msgs WHERE channel_name = '$channel'", 0, "$channel: all are handled");
	is(sql("SELECT count(DISTINCT n), max(beside) <= $most FROM begun WHERE channel = '$channel'"), '200|t', "$channel: never more than $most of a key at once");
}
# Workers and consumers of one channel.
sql(q{SELECT mq_limit('both', max_running_per_args => 2), mq_register_handler('both', 'begin_call(mq_message)')});
$send->('both', 300, 3);
my @consumers = map { MqSession->new($node, $db) } 1 .. 3;
$_->begin(q{CALL consume('both')}) for @consumers;
within(120, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'both'}, 0, 'both: all are handled');
$_->result for @consumers;
is(sql(q{SELECT count(DISTINCT n), max(beside) <= 2 FROM begun WHERE channel = 'both'}), '300|t', 'workers and consumers: never more than two of a key at once');

# --- what waits for one is handled when it ends, however it ends ----------------------------------------------

sql(q{SELECT mq_limit(c, max_running_per_args => 1) FROM unnest('{gated, gated leased, out}'::text[]) c;
      SELECT mq_register_handler('gated', 'gated(mq_message)'), mq_register_handler('gated leased', 'gated(mq_message)', mode => 'leased')});
my $gate = $node->background_psql($db);
for my $channel ('gated', 'gated leased') {
	my $pending = "SELECT count(*) FROM mq_msgs WHERE channel_name = '$channel'";
	my $put_off = "SELECT put_off FROM mq_limits WHERE channel_name = '$channel'";
	$gate->query('SELECT pg_advisory_lock(1)');
	# Two that come one after the other, so that they are in no batch together.
	for my $n (1, 2) {
		sql("SELECT mq_send('$channel', '$n', channel_args => 'k')");
		within(60, $node, $db, $n == 1 ? q{SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'} : $put_off, 1, "$channel: message $n " . ($n == 1 ? 'runs' : 'waits'));
	}
	sql("SELECT mq_send('$channel', '3', channel_args => 'another')");
	within(60, $node, $db, q{SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'}, 2, "$channel: another key runs beside it");
	like(sql("SELECT mq_why(id) FROM mq_msgs WHERE channel_name = '$channel' AND throttled_at IS NOT NULL"), qr/max_running_per_args of mq_limit lets no more/, "$channel: mq_why() says so");
	is(sql("SELECT throttled FROM mq_stats WHERE channel_name = '$channel'"), 1, "$channel: mq_stats counts it");
	$gate->query('SELECT pg_advisory_unlock(1)');
	within(60, $node, $db, $pending, 0, "$channel: the one that waited is handled when the other has ended");
	# It is cancelled.
	$gate->query('SELECT pg_advisory_lock(1)');
	sql("SELECT mq_send('$channel', '1', channel_args => 'k')");
	within(60, $node, $db, q{SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'}, 1, "$channel: one runs");
	my $id = sql("SELECT id FROM mq_msgs WHERE channel_name = '$channel'");
	sql("SELECT mq_send('$channel', '2', channel_args => 'k')");
	within(60, $node, $db, $put_off, 1, "$channel: one waits");
	sql("SELECT count(*) FROM mq_cancel(ARRAY['$id']::uuid[])");
	within(60, $node, $db, "SELECT count(*) FROM mq_dead WHERE id = '$id'", 1, "$channel: it is cancelled");
	within(60, $node, $db, q{SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'}, 1, "$channel: and the next one runs");
	$gate->query('SELECT pg_advisory_unlock(1)');
	within(60, $node, $db, $pending, 0, "$channel: and ends");
}

# A consumer that waits is woken by the end of another's message, and by the end of its lease.
sub receives { my ($session, $wait) = @_; $session->begin("SELECT payload_json FROM mq_receive('{out}', 1, wait => '$wait')") }
$send->('out', 2, 1);
my ($id, $lease) = split /\|/, sql(q{SELECT id, lease FROM mq_receive('{out}')});
is(sql(q{SELECT count(*) FROM mq_receive('{out}')}), 0, 'consumers: the second one waits');
my $session = MqSession->new($node, $db);
receives($session, '250 s');
within(60, $node, $db, "SELECT count(*) FROM pg_stat_activity WHERE pid = $session->{pid} AND wait_event_type = 'Extension'", 1, 'a consumer waits');
sql("SELECT mq_ack(ARRAY['$id']::uuid[], $lease)");
is($session->result, '2', '... until the first is acknowledged');
sql(q{SELECT mq_clear('{out}')});
$send->('out', 2, 1);
is(sql(q{SELECT payload_json FROM mq_receive('{out}', lease => '4 s')}), '1', 'consumers: a lease that will run out');
is(sql(q{SELECT count(*) FROM mq_receive('{out}')}), 0, '... holds up the second one');
receives($session, '250 s');
like($session->result, qr/^[12]$/, '... until it has run out');

# --- beside max_running: a slot is taken only where something is due ------------------------------------------------

sql(q{SELECT mq_limit('both limits', max_running => 2, max_running_per_args => 1)});
$send->('both limits', 2, 1);
($id, $lease) = split /\|/, sql(q{SELECT id, lease FROM mq_receive('{both limits}')});
is(sql(q{SELECT count(*) FROM mq_receive('{both limits}')}), 0, 'with max_running as well: the second one waits');
sql("SELECT mq_ack(ARRAY['$id']::uuid[], $lease)");
is(sql(q{SELECT payload_json FROM mq_receive('{both limits}')}), '2', '... until the first is acknowledged');

# A worker that knows the channel as a quick one, and a consumer that has a message of the key first.
my $one = mq_node('one_worker', 'mq.max_workers' => 1, autovacuum => 'off', fsync => 'off');
$one->safe_psql($db, q{
	CREATE EXTENSION mq;
	CREATE FUNCTION quick(m mq_message) RETURNS void LANGUAGE sql AS '';
	SELECT mq_register_handler('quick', 'quick(mq_message)'), mq_limit('quick', max_running => 2, max_running_per_args => 1);
	SELECT count(mq_send('quick', to_jsonb(n), channel_args => 'k' || n)) FROM generate_series(1, 100) n});
my $left = q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'quick'};
within(60, $one, $db, $left, 0, 'a worker handles a quick channel');
($id, $lease) = split /\|/, $one->safe_psql($db, q{
	BEGIN; SELECT FROM mq_send('quick', '1', channel_args => 'k'); SELECT id, lease FROM mq_receive('{quick}', lease => '1 hour'); COMMIT}) =~ s/^\n//r;
$one->safe_psql($db, q{SELECT FROM mq_send('quick', '2', channel_args => 'k')});
within(60, $one, $db, q{SELECT put_off FROM mq_limits WHERE channel_name = 'quick'}, 1, '... and puts off a message whose key a consumer has');
$one->safe_psql($db, "SELECT mq_ack(ARRAY['$id']::uuid[], $lease)");
within(30, $one, $db, $left, 0, '... until that is acknowledged');
$one->stop;

# --- what waits is asked for again where nothing came of it --------------------------------------------------------

sub clear_out { sql(q{SELECT mq_clear('{out}')}) }
# Leases the first $leased of $count messages of one key, so many as may run; the others are put off.
sub waiting {
	my ($count, $leased) = @_;
	clear_out();
	sql("SELECT mq_limit('out', max_running_per_args => $leased)");
	$send->('out', $count, 1);
	my @receipts = map { [ split /\|/ ] } split /\n/, sql("SELECT id, lease FROM mq_receive('{out}', $leased, lease => '1 hour')");
	is(scalar @receipts, $leased, "$leased are leased");
	is(sql(q{SELECT count(*) FROM mq_receive('{out}', 100)}), 0, '... no more may be');
	is(sql(q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'out' AND throttled_at IS NOT NULL}), $count - $leased, '... the others wait');
	return @receipts;
}
sub ack { my ($receipt) = @_; sql("SELECT mq_ack(ARRAY['$receipt->[0]']::uuid[], $receipt->[1])") }
my $received = q{SELECT count(*) FROM mq_receive('{out}')};

ack($_) for waiting(3, 2);
$session = MqSession->new($node, $db);
$session->query('BEGIN');
is($session->query($received), 1, 'a transaction receives what has waited');
$session->query('ROLLBACK');
is(sql($received), 1, '... and rolls back: the next one receives it');

ack($_) for waiting(3, 2);
$session->query('BEGIN; SAVEPOINT s');
is($session->query($received), 1, 'under a savepoint');
$session->query('ROLLBACK TO s');
is(sql($received), 1, '... that is rolled back: another one receives it before the transaction ends');
$session->query('COMMIT');

my @receipts = waiting(4, 2);
$session->query(q{BEGIN; SELECT FROM mq_msgs WHERE channel_name = 'out' AND throttled_at IS NOT NULL FOR UPDATE});
ack($receipts[0]);
is(sql($received), 0, 'rows that are locked when somebody looks');
$session->query('COMMIT');
ack($receipts[1]);
is(sql(q{SELECT count(*) FROM mq_receive('{out}', 100)}), 2, '... are found when the next one has ended');

# More channels than a claim looks at, in which more run than may by now.
clear_out();
sql(q{SELECT mq_limit('out', max_running_per_args => 2)});
$send->('out', 450, 150);
is(sql(q{SELECT count(*) FROM mq_receive('{out}', 1000, lease => '1 hour')}), 300, 'two of each of 150 keys');
is(sql(q{SELECT count(*) FROM mq_receive('{out}', 1000)}), 0, '... no more may be');
sql(q{SELECT count(a) FROM (SELECT lease, array_agg(id) AS ids FROM mq_msgs WHERE channel_name = 'out' AND lease IS NOT NULL GROUP BY 1) m, mq_ack(ids, lease) a});
my $found = 0;
for (1 .. 10) { $found += sql(q{SELECT count(*) FROM mq_receive('{out}', 1000, lease => '1 hour')}) }
is($found, 150, 'all that waited are received');

# A name without the limit: what is asked for of it holds up no other.
ack($_) for waiting(3, 2);
sql(q{SELECT mq_unlimit('out')});
is(sql(q{SELECT count(*) FROM mq_receive('{out}', 100)}), 1, 'without the limit it is received');
sql(q{SELECT mq_limit('out', max_running_per_args => 1)});

# --- nobody looks meanwhile; a restart; the sweep ----------------------------------------------------------------

sql(q{SELECT mq_clear('{out}')});
$send->('out', 20_000, 100);
is(sql(q{SELECT count(*) FROM mq_receive('{out}', 1000, lease => '1 hour')}), 100, 'one of each of a hundred keys');
# Those that wait are put off by whoever comes by.
for (1 .. 40) { last if sql(q{SELECT count(*) FROM mq_receive('{out}', 1000)}) == 0 && sql(q{SELECT put_off FROM mq_limits WHERE channel_name = 'out'}) == 19_900 }
is(sql(q{SELECT put_off FROM mq_limits WHERE channel_name = 'out'}), 19_900, 'the others are put off');
usleep(1_200_000);
my $reads = q{SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'mq_msgs'};
my $read = sql($reads);
is(sql(q{SELECT count(*) FROM mq_receive('{out}', 1000)}), 0, 'another look finds none');
usleep(1_200_000);
cmp_ok(sql($reads) - $read, '<', 5_000, '... and does not read them');
$node->restart;
sql(q{SELECT count(a) FROM (SELECT lease, array_agg(id) AS ids FROM mq_msgs WHERE channel_name = 'out' AND channel_args = 'k7' AND lease IS NOT NULL GROUP BY 1) m, mq_ack(ids, lease) a});
set_and_reload($node, 'mq.poll_interval' => '1s');
sql(q{SELECT mq_register_handler('unused', 'gated(mq_message)')});
receives($session = MqSession->new($node, $db), '250 s');
is($session->result =~ /^\d+$/ ? 'one' : 'none', 'one', '... until the sweep finds that');
sql(q{SELECT mq_unlimit('out')});
is(sql(q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'out' AND throttled_at IS NOT NULL}), 0, 'without the limit all are due again');
$node->stop;
log_is_clean($node, qr/on purpose/);
done_testing();
