# What a server gives that only reads. A read replica answers each view and function that reads as the primary does. And the
# history, mq_done and mq_dead, goes by logical replication to a server that has no mq, where it stays after the retention.
# t/070_why has that a standby refuses what writes, t/052_replication what a subscriber with mq does.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $primary = mq_node('primary', wal_level => 'logical', max_wal_senders => 8, max_replication_slots => 8, hot_standby => 'on', 'mq.max_workers' => 1);
$primary->safe_psql($db, q{
	CREATE EXTENSION mq;
	CREATE FUNCTION handle(m mq_message) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN
	  IF m.name = 'fail' THEN RAISE unique_violation; END IF;
	  RETURN m.payload_json; END $$;
	SELECT mq_register_handler('c', 'handle(mq_message)', keep => '1 day', max_backoff => '1 hour');
	SELECT mq_subscribe('orders.#', 'c'), mq_limit('c', 1000, 10), mq_schedule('yearly', '@yearly', 'later')});

# --- a read replica -------------------------------------------------------------------------------

$primary->backup('base');
my $replica = PostgreSQL::Test::Cluster->new('replica');
$replica->init_from_backup($primary, 'base', has_streaming => 1);
$replica->start;

# Messages in each state; then the workers stop, so that both servers are asked about the same.
my %id;
$id{$_->[0]} = $primary->safe_psql($db, "SELECT mq_send($_->[1])") for (
	[ handled => q{'c', '{"n": 1}'} ], [ dead => q{'c', name => 'fail', retries => 0} ], [ retrying => q{'c', name => 'fail', retry_backoff => '1 hour'} ],
	[ scheduled => q{'c', delay => '1 day'} ], [ first => q{'o', channel_args => 'a', ordered => true} ], [ second => q{'o', channel_args => 'a', ordered => true} ],
	[ uncommitted => q{'c', commit_interval => '1 day'} ], [ leased => q{'out'} ]);
$id{dependent} = $primary->safe_psql($db, "SELECT mq_send('o', after => '{$id{first}}')");
$primary->safe_psql($db, q{SELECT FROM mq_receive('{out}', lease => '1 day'); SELECT mq_pause('paused')});
my $settled = q{SELECT (SELECT count(*) FROM mq_done), (SELECT count(*) FROM mq_dead), (SELECT count(*) FROM mq_failures)};
within(60, $primary, $db, $settled, '1|1|2', 'what is due is handled, dead or waits for its retry');
set_and_reload($primary, 'mq.max_workers' => 0);
within(60, $primary, $db, "SELECT count(*) FROM ($MqTest::WORKERS) w", 0, 'the workers end');
$primary->wait_for_catchup($replica, 'replay');

my $ids = "'{" . join(',', map { $id{$_} } sort keys %id) . "}'";
my %reads = (
	mq_stats => q{SELECT channel_name, ready, scheduled, running, dead, paused, handled, failed, died, handle_p50, handle_p99, wait_p50, wait_p99, throttled FROM mq_stats ORDER BY 1},
	mq_metrics => q{SELECT to_jsonb(m) - 'oldest_ready_seconds' FROM mq_metrics m ORDER BY channel_name},
	mq_limits => q{SELECT channel_name, max_pending, pending, max_running FROM mq_limits ORDER BY 1},
	(map { $_ => "SELECT t::text FROM $_ t ORDER BY 1" }
		qw(mq_histogram mq_schedules mq_subscriptions mq_payloads mq_msgs mq_dead mq_failures mq_done mq_handlers mq_paused)),
	mq_status => "SELECT id, state, attempt, attempts_left, due_at, result, error FROM mq_status($ids)",
	'mq_wait, without waiting' => "SELECT id, state FROM mq_wait($ids, '0')",
	# Of what is due it says that nothing is handled there.
	mq_why => "SELECT i, mq_why(i) FROM unnest($ids\:\:uuid[]) i WHERE i NOT IN ('$id{first}', '$id{second}')",
	mq_next_times => q{SELECT * FROM mq_next_times('0 12 * * *', 'Europe/Vienna', '2030-01-01', 3)},
	mq_channel_key => q{SELECT mq_channel_key('o', 'a') = channel_key FROM mq_msgs WHERE channel_name = 'o' AND channel_args = 'a'},
	mq_uuid_exists => "SELECT mq_uuid_exists('$id{scheduled}'), mq_uuid_exists('$id{handled}')",
	mq_latest_message => q{SELECT mq_latest_message('o', 'a')},
	mq_active_channels => q{SELECT * FROM mq_active_channels('{o}', 10) ORDER BY 1, 2});
for my $what (sort keys %reads) {
	my $there = $primary->safe_psql($db, $reads{$what});
	isnt($there, '', "$what: there is something on the primary");
	is($replica->safe_psql($db, $reads{$what}), $there, "$what: the replica answers the same");
}
holds($replica, $db, 'SELECT count(*) FROM mq_workers', 0, 'mq_workers: there is none on the replica');
holds($replica, $db, q{SELECT string_agg("check", ', ') FROM mq_health() WHERE NOT ok}, 'server mode, channels handled, channels not paused, schedules handled',
	'mq_health(): the replica says what it is, and finds what is amiss in the tables');
holds($replica, $db, $settled, '1|1|2', 'and no look has changed anything');
$replica->stop;

# --- the history, on a server that has no mq --------------------------------------------------------

my $archive = PostgreSQL::Test::Cluster->new('archive');
$archive->init(extra => [ "--username=$ENV{PGUSER}", '--locale=C', '--encoding=UTF8' ]);
$archive->start;
for my $table (qw(mq_done mq_dead)) {
	my $columns = $primary->safe_psql($db, qq{SELECT string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum)
		FROM pg_attribute WHERE attrelid = '$table'::regclass AND attnum > 0 AND NOT attisdropped});
	$archive->safe_psql($db, "CREATE TABLE $table ($columns)");
}
$primary->safe_psql($db, q{CREATE PUBLICATION history FOR TABLE mq_done, mq_dead WITH (publish = 'insert')});
$archive->safe_psql($db, sprintf q{CREATE SUBSCRIPTION history CONNECTION $$%s$$ PUBLICATION history}, $primary->connstr($db));
$archive->wait_for_subscription_sync($primary, 'history');
my $history = q{SELECT (SELECT string_agg(d::text, E'\n' ORDER BY done_no) FROM mq_done d), (SELECT string_agg(d::text, E'\n' ORDER BY dead_no) FROM mq_dead d)};
my $before = $primary->safe_psql($db, $history);
holds($archive, $db, $history, $before, 'the history is copied');
is($primary->safe_psql($db, q{SELECT mq_send_many('c', '{2, 3}'); SELECT mq_send('c', name => 'fail', retries => 0); CALL mq_run('{c}')}) =~ s/^.*\n//sr, 2, 'more is handled');
my $after = $primary->safe_psql($db, $history);
isnt($after, $before, 'and the history goes on');
$primary->wait_for_catchup('history');
holds($archive, $db, $history, $after, 'there, too');

# The sweep deletes here what is too old, which is not published, and is not refused either.
$primary->safe_psql($db, q{UPDATE mq_done SET keep_until = now() - interval '1 s'; UPDATE mq_dead SET died_at = now() - interval '1000 days'});
set_and_reload($primary, 'mq.max_workers' => 1, 'mq.poll_interval' => '100ms');
within(60, $primary, $db, 'SELECT (SELECT count(*) FROM mq_done), (SELECT count(*) FROM mq_dead)', '0|0', 'the sweep removes it');
$primary->wait_for_catchup('history');
holds($archive, $db, $history, $after, 'and the archive keeps it');
$archive->safe_psql($db, 'DROP SUBSCRIPTION history');
$archive->stop;
$primary->stop;
log_is_clean($primary);
log_is_clean($replica, qr/terminating walreceiver process/);
done_testing();
