# A rate for each channel_args on its own: what may not begin is put off to a slot of its own, which costs one update and nothing
# more, however many keys there are. Others wait for nothing; what was put off is due again when the limit goes.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = mq_node('rate_per_args', 'mq.max_workers' => 3, autovacuum => 'off', fsync => 'off', shared_buffers => '256MB');
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
sql(q{
	CREATE EXTENSION mq;
	CREATE TABLE begun (channel text, args text, n int, at timestamptz DEFAULT clock_timestamp());
	CREATE FUNCTION begin_call(m mq_message) RETURNS void LANGUAGE sql AS $$ INSERT INTO begun VALUES (m.channel_name, m.channel_args, (m.payload_json)::int) $$;
	-- As in t/155_rate, of the key where that is most.
	CREATE FUNCTION beyond(of text, rate float8) RETURNS float8 LANGUAGE sql AS $$
	  SELECT max(excess - least_before) FROM (
	    SELECT excess, min(excess) OVER (PARTITION BY args ORDER BY n) AS least_before FROM (
	      SELECT args, n, n - rate * extract(epoch FROM at) AS excess FROM (
	        SELECT args, at, row_number() OVER (PARTITION BY args ORDER BY at) AS n FROM begun WHERE channel = of) b) e) s $$});
sub is_bounded {
	my ($channel, $rate, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	cmp_ok(sql("SELECT beyond('$channel', $rate)"), '<=', $rate * 0.2 + 1, "$what: never more than its burst beyond the rate");
}
sub updates { usleep(1_200_000); return sql(q{SELECT pg_stat_get_tuples_updated('mq_msgs'::regclass)}) }

# --- some keys, workers and consumers --------------------------------------------------------------------

sql(q{SELECT mq_limit('hosts', rate => 5, rate_per_args => true), mq_register_handler('hosts', 'begin_call(mq_message)')});
sql(q{SELECT count(mq_send('hosts', to_jsonb(n), channel_args => 'host ' || n % 10)) FROM generate_series(1, 300) n});
# A key that comes later waits for nobody, nor does one of another channel.
within(60, $node, $db, q{SELECT count(*) > 15 FROM begun}, 't', 'calls begin');
sql(q{SELECT mq_send('hosts', '0', channel_args => 'another')});
within(60, $node, $db, q{SELECT count(*) FROM begun WHERE args = 'another'}, 1, 'another key does not wait for those that are put off');
cmp_ok(sql(q{SELECT count(*) FROM begun}), '<', 250, '... which have not been handled by then');
like(sql(q{SELECT throttled FROM mq_stats WHERE channel_name = 'hosts'}), qr/^[1-9]\d*$/, 'mq_stats tells how many are throttled');
within(60, $node, $db, q{SELECT count(*) FROM begun WHERE channel = 'hosts'}, 301, 'all are handled');
is_bounded('hosts', 5, 'ten keys');
my $span = sql(q{SELECT extract(epoch FROM max(at) - min(at)) FROM begun WHERE args = 'host 3'});
cmp_ok($span, '<=', 30 / 5 * 1.05 + 2, "thirty calls of a key take about six seconds ($span)");
is(sql(q{SELECT throttled FROM mq_stats WHERE channel_name = 'hosts'}), 0, 'nothing is throttled any more');
# What waits is counted from when it was due.
cmp_ok(sql(q{SELECT extract(epoch FROM wait_p99) FROM mq_stats WHERE channel_name = 'hosts'}), '>', 2, 'the time for which they were put off counts as waited');

# --- leased calls and consumers ----------------------------------------------------------------------------

sql(q{TRUNCATE begun; SELECT mq_limit('leased', rate => 5, rate_per_args => true), mq_register_handler('leased', 'begin_call(mq_message)', mode => 'leased')});
sql(q{SELECT count(mq_send('leased', to_jsonb(n), channel_args => 'host ' || n % 4)) FROM generate_series(1, 40) n});
within(60, $node, $db, q{SELECT count(*) FROM begun WHERE channel = 'leased'}, 40, 'leased calls: all are handled');
is_bounded('leased', 5, 'leased calls');
sql(q{SELECT mq_limit('out', rate => 1, per => '1 hour', rate_per_args => true)});
sql(q{SELECT count(mq_send('out', to_jsonb(n), channel_args => 'host ' || n % 4)) FROM generate_series(1, 40) n});
is(sql(q{SELECT count(*), count(DISTINCT channel_args) FROM mq_receive('{out}', 100)}), '4|4', 'mq_receive gets one of each key');
is(sql(q{SELECT count(*) FROM mq_receive('{out}', 100)}), 0, '... and no more');
is(sql(q{SELECT count(id) FROM mq_poll('{out}', 100)}), 0, 'nor does mq_poll');
is(sql(q{SELECT count(*), count(*) FILTER (WHERE attempt = 0 AND attempts = 25) FROM mq_msgs WHERE channel_name = 'out' AND throttled_at IS NOT NULL}), '36|36',
	'the others are put off, and no attempt is charged');

# A consumer that waits gets what comes.
my $consumer = MqSession->new($node, $db);
$consumer->begin(q{SELECT payload_json FROM mq_receive('{out}', 1, wait => '250 s')});
within(60, $node, $db, "SELECT count(*) FROM pg_stat_activity WHERE pid = $consumer->{pid} AND wait_event_type = 'Extension'", 1, 'a consumer waits');
sql(q{SELECT mq_send('out', '77', channel_args => 'new')});
is($consumer->result, '77', '... and is woken by a message of another key');

# --- ordered channels ----------------------------------------------------------------------------------------

sql(q{TRUNCATE begun; SELECT mq_limit('ordered', rate => 10, rate_per_args => true), mq_register_handler('ordered', 'begin_call(mq_message)')});
sql(q{SELECT count(mq_send('ordered', to_jsonb(n), channel_args => 'host ' || n % 3, ordered => true)) FROM generate_series(1, 60) n});
within(60, $node, $db, q{SELECT count(*) FROM begun WHERE channel = 'ordered'}, 60, 'ordered channels: all are handled');
is_bounded('ordered', 10, 'ordered channels');
is(sql(q{SELECT count(*) FROM (SELECT args, n < lag(n) OVER (PARTITION BY args ORDER BY at) AS before FROM begun) b WHERE before}), 0, '... in order');

# --- what is put off expires, can be cancelled, and leaves no gap ----------------------------------------------

sql(q{TRUNCATE begun; SELECT mq_limit('slow', rate => 1, per => '2 s', rate_per_args => true), mq_register_handler('slow', 'begin_call(mq_message)')});
sql(q{SELECT count(mq_send('slow', to_jsonb(n), channel_args => 'x')) FROM generate_series(1, 1000) n});
within(60, $node, $db, q{SELECT count(*) > 990 FROM mq_msgs WHERE channel_name = 'slow' AND throttled_at IS NOT NULL}, 't', 'a thousand of one key are put off');
sql(q{SELECT count(*) FROM mq_cancel(array(SELECT id FROM mq_msgs WHERE channel_name = 'slow'))});
sql(q{SELECT mq_send('slow', '5000', channel_args => 'x'), mq_send('slow', '5001', channel_args => 'x', expires => '3 s')});
within(60, $node, $db, q{SELECT count(*) FROM begun WHERE n = 5000}, 1, 'those that were cancelled have no slots any more');
sql(q{SELECT count(mq_send('slow', to_jsonb(n), channel_args => 'y', expires => '1 s')) FROM generate_series(1, 20) n});
within(60, $node, $db, q{SELECT count(*) > 15 FROM mq_dead WHERE channel_name = 'slow' AND reason = 'expired'}, 't', 'what is put off expires');

# --- a batch in progress puts off while the limit is taken away -------------------------------------------------

sql(q{
	ALTER SYSTEM SET mq.poll_interval = '1 s';
	SELECT pg_reload_conf();
	TRUNCATE begun;
	CREATE FUNCTION gated(m mq_message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(77); PERFORM begin_call(m); END $$;
	SELECT mq_limit('gone', rate => 1, per => '1 day', rate_per_args => true), mq_register_handler('gone', 'gated(mq_message)')});
my $gate = MqSession->new($node, $db);
$gate->query('SELECT pg_advisory_lock(77)');
sql(q{SELECT count(mq_send('gone', to_jsonb(n), channel_args => 'x')) FROM generate_series(1, 5) n});
within(60, $node, $db, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted}, 1, 'a call waits at the gate');
is(sql(q{SELECT mq_unlimit('gone')}), 't', '... when the limit is taken away');
$gate->query('SELECT pg_advisory_unlock(77)');
within(60, $node, $db, q{SELECT count(*) FROM begun WHERE channel = 'gone'}, 5, '... and what its batch has put off is handled all the same');
sql(q{ALTER SYSTEM RESET mq.poll_interval; SELECT pg_reload_conf()});

# --- a hundred thousand keys ----------------------------------------------------------------------------------

my $keys = 100_000;
sql(qq{TRUNCATE begun; SELECT mq_pause('many'); SELECT mq_limit('many', rate => 1, per => '1 day', rate_per_args => true), mq_register_handler('many', 'begin_call(mq_message)');
       SELECT count(mq_send('many', to_jsonb(n), channel_args => 'key ' || n % $keys)) FROM generate_series(1, 2 * $keys) n});
my $updates = updates();
sql(q{SELECT mq_resume('many')});
within(280, $node, $db, qq{SELECT (SELECT count(*) FROM begun WHERE channel = 'many'), count(*), count(throttled_at) FROM mq_msgs WHERE channel_name = 'many'}, "$keys|$keys|$keys",
	'of each of a hundred thousand keys one is handled, and the other put off');
$updates = updates() - $updates;
cmp_ok($updates, '<=', $keys * 1.01, "each that is put off is updated once ($updates)");
# Looks are cheap: nothing of it is read again.
within(60, $node, $db, q{SELECT count(*) FROM mq_workers WHERE database = current_database() AND state <> 'waiting'}, 0, 'the workers wait');
my $reads = q{SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'mq_msgs'};
usleep(1_200_000);
my $read = sql($reads);
sql(q{SELECT count(mq_send('hosts', to_jsonb(n), channel_args => 'beside ' || n)) FROM generate_series(1, 20) n});
within(60, $node, $db, q{SELECT count(*) FROM begun WHERE args LIKE 'beside%'}, 20, 'another channel is handled beside them');
usleep(1_200_000);
$read = sql($reads) - $read;
cmp_ok($read, '<', 20_000, "... without a look at those that are put off ($read index entries read)");
is(sql(q{SELECT throttled FROM mq_stats WHERE channel_name = 'many'}), $keys, 'mq_stats tells of them');

# --- more keys than there is room for ---------------------------------------------------------------------------

my $room = 131_072;
my $more = $room - $keys + 10_000;
holds($node, $db, q{SELECT ok FROM mq_health() WHERE "check" = 'limits kept'}, 't', 'there is room for all so far');
sql(qq{SELECT mq_pause('more'); SELECT mq_limit('more', rate => 1, per => '1 day', rate_per_args => true), mq_register_handler('more', 'begin_call(mq_message)');
       SELECT count(mq_send('more', to_jsonb(n), channel_args => 'key ' || n)) FROM generate_series(1, $more) n;
       SELECT mq_resume('more')});
within(280, $node, $db, q{SELECT ok FROM mq_health() WHERE "check" = 'limits kept'}, 'f', 'mq_health() says that there is no room for more keys');
sql(q{SELECT mq_register_handler('free', 'begin_call(mq_message)'), count(mq_send('free', to_jsonb(n))) FROM generate_series(1, 20) n});
within(60, $node, $db, q{SELECT count(*) FROM begun WHERE channel = 'free'}, 20, '... while a channel without limits goes on');
cmp_ok(sql(q{SELECT count(*) FROM begun WHERE channel IN ('many', 'more')}), '<=', $room, '... no more keys than there is room for begin');
is(sql(q{SELECT count(*) FROM (SELECT FROM begun WHERE channel IN ('many', 'more') GROUP BY channel, args HAVING count(*) > 1) g}), 0,
	'... and no key is called more often than it may');

$node->restart;
sql(q{SELECT mq_unlimit('many'), mq_unlimit('more')});
within(280, $node, $db, q{SELECT count(*) FROM begun WHERE channel = 'more'}, $more, 'with room all are handled');
within(280, $node, $db, q{SELECT count(*) FROM begun WHERE channel = 'many'}, 2 * $keys, 'without the limit they are handled at once');

$node->stop;
log_is_clean($node);
done_testing();
