# A publication for all tables, which tools for change data capture make by default, breaks nothing; a subscriber handles
# nothing of what its publisher handles until mq_enable(). And pg_dump by an administrator who is no superuser.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my %settings = (wal_level => 'logical', max_wal_senders => 8, max_replication_slots => 8, 'mq.poll_interval' => '100ms');
my $publisher = mq_node('publisher', %settings);

# What handlers write is not published, so each server tells of its own handlers.
my $prepare = q{
	CREATE EXTENSION mq;
	CREATE UNLOGGED TABLE handled (n bigserial, channel text, payload jsonb);
	CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE sql AS $$ INSERT INTO handled (channel, payload) VALUES (m.channel_name, m.payload_json) $$;
	CREATE FUNCTION fail(m mq_message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$};
$publisher->safe_psql($db, $prepare);
$publisher->safe_psql($db, 'CREATE PUBLICATION everything FOR ALL TABLES');

# --- everything works as without it ---------------------------------------------------------------

holds($publisher, $db, q{
	SELECT string_agg(c.relname, ' ') FROM pg_class c JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
	 WHERE c.relkind IN ('r', 'p') AND c.relreplident <> 'f'
	   AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND (i.indisprimary AND c.relreplident = 'd' OR i.indisreplident))},
	'', 'each table has a replica identity');
$publisher->safe_psql($db, q{
	SELECT mq_register_handler('c', 'fail(mq_message)');
	SELECT mq_register_handler('c', 'handle(mq_message)');
	SELECT mq_register_handler('dying', 'fail(mq_message)');
	SELECT mq_register_handler('gone', 'handle(mq_message)');
	SELECT mq_unregister_handler('gone');
	SELECT mq_pause('c'), mq_pause('c');
	SELECT mq_resume('c');
	SELECT count(*) FROM mq_send_many('c', array(SELECT to_jsonb(n) FROM generate_series(1, 1000) n));
	SELECT count(*) FROM mq_send_many('c', array(SELECT to_jsonb(n) FROM generate_series(1, 100) n), ordered => true);
	SELECT mq_send('dying', retries => 2, retry_backoff => '1 ms')});
within(20, $publisher, $db, 'SELECT count(*) FROM handled', 1100, 'messages are handled');
within(20, $publisher, $db, 'SELECT count(*) FROM mq_dead', 1, 'and die');
$publisher->safe_psql($db, q{SELECT mq_register_handler('dying', 'handle(mq_message)'); SELECT mq_redrive()});
within(20, $publisher, $db, 'SELECT count(*) FROM handled', 1101, 'and are redriven');

# Channels whose first message may not be head are noted, and forgotten again.
$publisher->safe_psql($db, q{SELECT mq_pause('c'); SELECT mq_send('c', '"first"', channel_args => 'x', ordered => true)});
$publisher->safe_psql($db, q{BEGIN; SELECT mq_send('c', '"second"', channel_args => 'x', ordered => true); PREPARE TRANSACTION 'appends'});
$publisher->safe_psql($db, q{COMMIT PREPARED 'appends'});
within(20, $publisher, $db, 'SELECT count(*) FROM mq_headless', 0, 'a worker forgets which channels are noted');
$publisher->safe_psql($db, q{SELECT mq_resume('c')});
within(20, $publisher, $db, 'SELECT count(*) FROM handled', 1103, 'and handles their messages');

# The sweep, and what it does; mq_run.
$publisher->safe_psql($db, q{
	SELECT mq_send('nobody', expires => '1 ms');
	SELECT mq_send('nobody', commit_interval => '1 ms');
	INSERT INTO mq_dead (id, died_at, channel_name, channel_args, ordered, attempts_made, reason, retry_backoff, channel_key)
	  VALUES (gen_random_uuid(), now() - interval '1000 days', 'old', '', false, 1, 'exhausted', '1 s', 1);
	INSERT INTO mq_msgs (id, attempts, attempt, lease, channel_name, channel_args, after_message_id, channel_key, message_name)
	  VALUES (gen_random_uuid(), 0, 1, 0, 'nobody', '', NULL, mq_channel_key('nobody', ''), 'its last lease has run out');
	UPDATE mq_failures SET failed_at = now() - interval '1000 days'});
within(20, $publisher, $db, q{SELECT (SELECT count(*) FROM mq_msgs), (SELECT count(*) FROM mq_payloads), (SELECT count(*) FROM mq_failures),
	(SELECT string_agg(reason, ' ' ORDER BY reason) FROM mq_dead)}, '0|0|0|exhausted expired', 'the sweep works');
within(20, $publisher, $db, 'SELECT count(*) FROM mq_stats_deltas', 0, 'totals are rolled up');
$publisher->safe_psql($db, 'SELECT mq_reset_stats()');
within(20, $publisher, $db, q{SELECT handled + failed + died FROM mq_stats WHERE channel_name = 'c'}, 0, 'and reset');
set_and_reload($publisher, 'mq.max_workers' => 0);
within(20, $publisher, $db, "SELECT count(*) FROM ($MqTest::WORKERS) w", 0, 'without workers');
$publisher->safe_psql($db, q{SELECT mq_send_many('c', '{1, 2, 3}')});
is($publisher->safe_psql($db, 'CALL mq_run()'), 3, 'mq_run handles messages');
$publisher->safe_psql($db, q{SELECT mq_send('c', '"first"', channel_args => 'x', ordered => true)});
$publisher->safe_psql($db, q{BEGIN; SELECT mq_send('c', '"second"', channel_args => 'x', ordered => true); PREPARE TRANSACTION 'appends'});
$publisher->safe_psql($db, q{COMMIT PREPARED 'appends'});
holds($publisher, $db, 'SELECT count(*) FROM mq_headless', 1, 'a channel is noted');
is($publisher->safe_psql($db, q{SELECT count(id) FROM mq_poll('{c}', 10)}), 1, 'mq_poll goes on');
holds($publisher, $db, 'SELECT count(*) FROM mq_headless', 0, 'and forgets it');
$publisher->safe_psql($db, q{SELECT mq_send_many('c', '{1, 2, 3}'); SELECT mq_clear('{c}'); SELECT mq_send('c'); SELECT mq_clear_all()});

# --- a subscriber ---------------------------------------------------------------------------------

$publisher->safe_psql($db, q{TRUNCATE handled; DELETE FROM mq_dead; SELECT mq_send_many('c', array(SELECT to_jsonb(n) FROM generate_series(1, 100) n))});
my $subscriber = mq_node('subscriber', %settings);
$subscriber->safe_psql($db, $prepare);
# It was enabled, and handles its own.
$subscriber->safe_psql($db, q{SELECT mq_register_handler('own', 'handle(mq_message)'); SELECT mq_send('own')});
within(20, $subscriber, $db, 'SELECT count(*) FROM handled', 1, 'a server handles its messages');
$subscriber->safe_psql($db, q{TRUNCATE handled; SELECT mq_unregister_handler('own')});
$subscriber->safe_psql($db, sprintf q{CREATE SUBSCRIPTION copy CONNECTION $$%s$$ PUBLICATION everything}, $publisher->connstr($db));
$subscriber->wait_for_subscription_sync($publisher, 'copy');

sub is_left_alone {
	my ($messages, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $since = q{SELECT COALESCE(max(since), '-infinity') FROM mq_workers WHERE database = current_database() AND state = 'waiting'};
	my $looks = 0;
	for (1 .. 5) {
		my $last = $subscriber->safe_psql($db, $since);
		$looks += (value_within(20, $subscriber, $db, "SELECT s > '$last' FROM ($since) AS w (s)", 't'))[0];
	}
	is($looks, 5, "$what: a worker looks again and again");
	holds($subscriber, $db, q{SELECT (SELECT count(*) FROM mq_msgs), (SELECT count(*) FROM mq_payloads), (SELECT count(*) FROM handled)}, "$messages|$messages|0",
		"$what: and leaves everything alone");
	like($subscriber->safe_psql($db, q{SELECT detail FROM mq_health() WHERE "check" = 'database enabled' AND NOT ok}),
		qr/^a subscription writes .* until SELECT mq_enable\(\)$/, "$what: mq_health() says so, and why");
}

within(20, $subscriber, $db, 'SELECT count(*) FROM mq_msgs', 100, 'it becomes a subscriber');
is_left_alone(100, 'what came with the subscription');
holds($subscriber, $db, 'SELECT count(*) FROM mq_enabled', 0, 'neither is its own mark left, nor has that of the publisher come');
$publisher->safe_psql($db, q{SELECT mq_send_many('c', '{1, 2, 3, 4, 5}'); SELECT mq_enable()});
$publisher->wait_for_catchup('copy');
is_left_alone(105, 'what came later');
set_and_reload($publisher, 'mq.max_workers' => 2);
within(20, $publisher, $db, 'SELECT count(*) FROM handled', 105, 'the publisher handles its messages');
$publisher->wait_for_catchup('copy');
is_left_alone(0, 'what was handled elsewhere');
set_and_reload($publisher, 'mq.max_workers' => 0);
within(20, $publisher, $db, "SELECT count(*) FROM ($MqTest::WORKERS) w", 0, 'it stops');
$publisher->safe_psql($db, q{
	SELECT mq_send_many('c', array(SELECT to_jsonb(n) FROM generate_series(1, 50) n));
	SELECT mq_send_many('c', array(SELECT to_jsonb(n) FROM generate_series(1, 20) n), ordered => true, channel_args => 'o')});
$publisher->wait_for_catchup('copy');
is_left_alone(70, 'what is sent now');
$subscriber->safe_psql($db, 'SELECT mq_enable()');
within(20, $subscriber, $db, 'SELECT count(*) FROM handled', 70, 'after mq_enable() it is handled here');
$publisher->safe_psql($db, q{SELECT mq_send_many('c', '{1, 2, 3, 4, 5}')});
within(20, $subscriber, $db, 'SELECT count(*) FROM handled', 75, 'and so is what comes later, since it was called under the subscription');

# A handler that is registered on the publisher is not one here.
$publisher->safe_psql($db, q{SELECT mq_register_handler('theirs', 'handle(mq_message)'); SELECT mq_send('theirs')});
$publisher->wait_for_catchup('copy');
within(20, $subscriber, $db, q{SELECT detail FROM mq_health() WHERE "check" = 'handlers enabled' AND NOT ok}, qr/^registered in another database.*: theirs public\.handle/, 'a handler of elsewhere is named');
holds($subscriber, $db, q{SELECT count(*) FROM handled WHERE channel = 'theirs'}, 0, 'and not called');
$subscriber->safe_psql($db, 'DROP SUBSCRIPTION copy');
holds($subscriber, $db, q{SELECT ok FROM mq_health() WHERE "check" = 'database enabled'}, 't', 'without the subscription it is enabled still');
$subscriber->safe_psql($db, 'SELECT mq_enable()');
within(20, $subscriber, $db, q{SELECT count(*) FROM handled WHERE channel = 'theirs'}, 1, 'until mq_enable() takes it over');
# Sequence numbers drawn elsewhere may be greater than those drawn here.
$subscriber->safe_psql($db, q{SELECT mq_pause('c'); INSERT INTO mq_msgs (id, channel_name, channel_args, channel_key, seq, message_name) VALUES (gen_random_uuid(), 'c', '', 1, 1000000000, 'far')});
$subscriber->safe_psql($db, q{SELECT mq_enable(); SELECT mq_send('c', '"behind"', ordered => true)});
holds($subscriber, $db, q{SELECT seq > 1000000000 FROM mq_msgs JOIN mq_payloads USING (id) WHERE payload_json = '"behind"'}, 't', 'mq_enable() advances the sequences');
$subscriber->stop;

# --- pg_dump by an administrator ------------------------------------------------------------------

$publisher->safe_psql($db, q{
	SELECT mq_register_handler('dying', 'fail(mq_message)');
	SELECT mq_send('dying', retries => 0);
	CALL mq_run('{dying}');
	SELECT mq_subscribe('orders.#', 'c');
	CREATE ROLE dumper LOGIN;
	SELECT mq_grant('dumper', 'admin');
	GRANT SELECT ON handled, handled_n_seq TO dumper});
holds($publisher, $db, q{
	SELECT string_agg(c.relname, ' ') FROM pg_class c JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
	 WHERE c.relkind IN ('r', 'S', 'v') AND NOT has_table_privilege('dumper', c.oid, 'SELECT')}, '', 'admin reads every table, view and sequence');
my $dump = $publisher->basedir . '/admin.sql';
$publisher->command_ok([ 'pg_dump', '--no-publications', '--username', 'dumper', '--file', $dump, $publisher->connstr($db) ], 'pg_dump by an administrator');
$publisher->safe_psql($db, 'CREATE DATABASE again');
$publisher->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $publisher->connstr('again') ], 'is restored');
for my $table (qw(mq_msgs mq_payloads mq_dead mq_failures mq_handlers mq_paused mq_stats_totals mq_stats_deltas mq_headless mq_prerequisites mq_rechecks mq_cancelled mq_subscribers mq_channel_limits mq_timetable)) {
	my $rows = "SELECT string_agg(t::text, E'\\n' ORDER BY t::text) FROM $table t";
	is($publisher->safe_psql('again', $rows), $publisher->safe_psql($db, $rows), "$table arrives");
}
my $numbers = 'SELECT p.last_value, d.last_value, f.last_value FROM mq_msgs_seq p, mq_dead_dead_no_seq d, mq_failures_failure_no_seq f';
is($publisher->safe_psql('again', $numbers), $publisher->safe_psql($db, $numbers), 'and the sequences');
$publisher->stop;

log_is_clean($publisher);
log_is_clean($subscriber, qr/logical replication|FATAL: .*terminating logical replication/);
unlike(slurp_file($_->logfile), qr/does not have a replica identity/, 'no statement missed a replica identity on ' . $_->name) for $publisher, $subscriber;
done_testing();
