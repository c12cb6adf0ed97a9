# Further reasons why nothing moves, or a sender waits: commits that wait for a synchronous standby, retries that mq_failures
# does not know of, locks of tables, sequences and keys, sessions of which pg_stat_activity tells nothing, a standby that
# replays a lock, priorities, a full queue of notifications. Each is made so, seen, and taken away again.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('more_reasons', 'mq.max_workers' => 1, 'mq.poll_interval' => '1s', wal_level => 'replica', max_wal_senders => 5, hot_standby => 'on');
my $db = 'postgres';
my $ill = q{SELECT string_agg("check", ', ' ORDER BY "check") FROM mq_health() WHERE NOT ok};
sub sql { return $node->safe_psql($db, shift) }
sub detail { my ($check) = @_; return qq{SELECT ok, detail FROM mq_health() WHERE "check" = '$check'} }
sub why { my ($id) = @_; return qq{SELECT mq_why('$id')} }
sub session {
	my ($name, $statements) = @_;
	my $session = $node->background_psql($db, on_error_die => 1);
	$session->query_safe("SET application_name = '$name'; $statements");
	return $session;
}
sub ended { my ($session) = @_; $session->query_safe('ROLLBACK'); $session->quit }

sql('CREATE EXTENSION mq');
handled_table($node, $db);
sql(q{CREATE FUNCTION fail(mq_message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE unique_violation; END $$;
      SELECT mq_register_handler('c', 'handle(mq_message)'), mq_register_handler('fails', 'fail(mq_message)', max_backoff => '1 day');
      SELECT mq_send('c')});
within(30, $node, $db, 'SELECT count(*) FROM handled', 1, 'messages are handled');
within(10, $node, $db, $ill, '', 'all is well');

# --- a synchronous standby that is not there ---------------------------------------------------------

set_and_reload($node, synchronous_standby_names => 'nobody');
within(10, $node, $db, 'SHOW synchronous_standby_names', 'nobody', 'commits need a standby');
my $local = 'SET synchronous_commit = local';
my $mend = qr/\(synchronous_standby_names = nobody\): start it, or change the setting/;
my $first = sql("$local; SELECT mq_send('c')");
within(20, $node, $db, "$local; " . detail('commits not waiting'), qr/^f\|commits wait for a synchronous standby $mend; of process \d+ \(mq worker\)$/, 'mq_health() says that a worker waits for it');
within(20, $node, $db, "$local; " . why($first), qr/^(is due, but commits wait|has been handled, but the commit waits) for a synchronous standby $mend$/, 'mq_why() of what it has handled');
my $next = sql("$local; SELECT mq_send('c')");
within(20, $node, $db, "$local; " . why($next), qr/^is due, but commits wait for a synchronous standby $mend$/, 'and of what is behind that');
my $sender = $node->background_psql($db);
$sender->query_until(qr/sends/, "\\echo sends\nSELECT mq_send('c');\n");
within(20, $node, $db, "$local; " . detail('commits not waiting'), qr/; of process \d+ \(mq worker\), process \d+ \(client backend\)$/, 'a sender that waits is named');
set_and_reload($node, synchronous_standby_names => '');
within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'all is handled without it');
within(20, $node, $db, $ill, '', 'and mq_health() is content');
$sender->quit;

# --- failures that are long past, or forgotten -------------------------------------------------------

sql(q{SELECT mq_send('fails', channel_args => 'o', ordered => true, retry_backoff => '3 hours'), mq_send('fails', channel_args => 'o', ordered => true)});
sql(q{SELECT mq_send('fails', name => 'again', retry_backoff => '3 hours')});
within(20, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE attempt = 1}, 2, 'two messages have failed');
sql(q{UPDATE mq_msgs SET attempt = 3 WHERE after_message_id IS NULL});
sql(q{UPDATE mq_failures SET failed_at = now() - interval '2 hours'});
sql(q{INSERT INTO mq_failures (message_id, attempt, failed_at, channel_name, channel_args, sqlstate, error, channel_key)
        SELECT gen_random_uuid(), 1, now(), 'other', '', 'P0001', 'no', 0 FROM generate_series(1, 1100)});
within(10, $node, $db, detail('ordered channels move'), qr/^f\|messages wait behind one that failed and waits for its retry: fails o until /, 'an ordered channel behind a failure of two hours ago is named, whatever failed since');
within(10, $node, $db, detail('handlers succeed'), qr/^f\|fails \(2 messages wait for their retry, one after 3 failures, the last with SQLSTATE 23505\): see mq_failures/, 'so is a handler that fails');
sql('TRUNCATE mq_failures');
within(10, $node, $db, detail('ordered channels move'), qr/^f\|messages wait behind one that failed/, 'and when mq_failures is empty');
within(10, $node, $db, detail('handlers succeed'), qr/^f\|fails \(2 messages wait for their retry, one after 3 failures\): /, 'without the SQLSTATE then');
sql(q{SELECT mq_clear('{fails}')});
within(10, $node, $db, $ill, '', 'neither waits any more');

# --- senders that wait -------------------------------------------------------------------------------

sub waits {
	my ($what, $held, $send, $expected) = @_;
	my $holder = session('the holder', "BEGIN; $held");
	my $waiting = $node->background_psql($db);
	$waiting->query_until(qr/sends/, "\\echo sends\n$send;\n");
	within(20, $node, $db, detail('senders not waiting'), qr/^f\|sessions that send wait for others: process \d+ since \S+ \S+ for process \d+ \(the holder, idle in transaction\), which $expected; end that transaction$/, "$what: the sender and the holder are named");
	ended($holder);
	within(20, $node, $db, detail('senders not waiting'), 't|', "$what: until that has ended");
	$waiting->quit;
}
sql(q{SELECT mq_pause('c')});
waits('a dedup_key', q{SELECT mq_send('c', dedup_key => 'k')}, q{SELECT mq_send('c', dedup_key => 'k')}, 'has sent with the same dedup_key, or holds rows that are wanted');
waits('a locked table', 'LOCK mq_msgs IN SHARE MODE', q{SELECT mq_send('c')}, 'has locked mq_msgs');
waits('an altered sequence', 'ALTER SEQUENCE mq_msgs_seq CACHE 7', q{SELECT mq_send('c')}, 'has locked mq_msgs_seq');
waits('an ordered channel', q{SELECT mq_send('c', ordered => true)}, q{SELECT mq_send('c', ordered => true)}, 'has appended to the same ordered channel');
sql(q{SELECT mq_resume('c')});
within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'all is handled');
within(20, $node, $db, $ill, '', 'mq_health() is content');

# --- sessions that tell nothing of themselves --------------------------------------------------------

sql(q{SELECT mq_pause('c'); SELECT mq_send('c')});
my $silent = session('quiet', q{SET track_activities = off; BEGIN; SELECT FROM mq_msgs FOR UPDATE});
sql(q{SELECT mq_resume('c')});
within(20, $node, $db, detail('messages not locked'), qr/^f\|.*: 1 of c by process \d+ \(quiet[^()]*\); the others/, 'a session with track_activities = off that holds messages is named, without a time');
ended($silent);
within(20, $node, $db, q{SELECT count(*) FROM mq_msgs}, 0, 'then they are handled');
within(20, $node, $db, $ill, '', 'mq_health() is content');
sql(q{CREATE ROLE owner LOGIN; GRANT owner TO postgres;
      ALTER FUNCTION mq_health() OWNER TO owner; SELECT mq_grant('owner', 'admin'); GRANT ALL ON ALL TABLES IN SCHEMA public TO owner;
      GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO owner});
sql(q{SELECT mq_pause('c'); SELECT mq_send('c')});
my $holder = session('the holder', q{BEGIN; SELECT FROM mq_msgs FOR UPDATE});
sql(q{SELECT mq_resume('c')});
within(20, $node, $db, detail('messages not locked'), qr/^f\|.*: 1 of c by process \d+ \(the holder\); the others/, 'so is one whose state the owner of mq_health() may not see');
ended($holder);
within(20, $node, $db, q{SELECT count(*) FROM mq_msgs}, 0, 'then they are handled');
sql(q{ALTER FUNCTION mq_health() OWNER TO postgres});

# --- names of what is locked -------------------------------------------------------------------------

my $drop = session('the holder', 'SET client_min_messages = warning; BEGIN; DROP EXTENSION mq CASCADE');
within(10, $node, $db, detail('tables readable'), qr/^f\|\d+ tables of mq are locked by process \d+ \(the holder, idle in transaction\) since [^;,]*; messages wait for that/, 'an open DROP EXTENSION is one line');
is(sql(q{SELECT string_agg("check", ', ') FROM mq_health() WHERE "check" IN ('server mode', 'library preloaded', 'launcher runs', 'workers allowed')}),
	'server mode, library preloaded, launcher runs, workers allowed', 'what reads no table is told meanwhile');
ended($drop);
within(20, $node, $db, $ill, '', 'mq_health() is content');

sql(q{CREATE FUNCTION comments(mq_message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN COMMENT ON EXTENSION mq IS 'theirs'; END $$;
      SELECT mq_register_handler('comments', 'comments(mq_message)')});
my $comment = session('the holder', q{BEGIN; COMMENT ON EXTENSION mq IS 'mine'});
sql(q{SELECT mq_send('comments')});
within(20, $node, $db, detail('workers do not wait for locks'), qr/^f\|.*, for ShareUpdateExclusiveLock on extension mq, behind process \d+ \(the holder, idle in transaction\); it goes on/,
	'a locked object is named');
ended($comment);
within(20, $node, $db, $ill, '', 'mq_health() is content');

set_and_reload($node, 'mq.max_databases' => 77);
within(10, $node, $db, detail('settings in force'), 'f|wait for a restart: mq.max_databases', 'mq.max_databases waits for a restart');
set_and_reload($node, 'mq.max_databases' => 1000);
within(10, $node, $db, detail('settings in force'), 't|', 'and does not');

sql(q{SELECT mq_send('polled', retry_backoff => '1 hour'); SELECT FROM mq_poll('{polled}')});
holds($node, $db, detail('scheduled messages'), 't|', 'what a consumer has leased is not scheduled');
sql(q{SELECT mq_send('polled', delay => '1 hour')});
like(sql(detail('scheduled messages')), qr/^t\|nothing is due yet in: polled \(next at \S+ \S+\)$/, 'another one is');
sql(q{SELECT mq_clear('{polled}')});

# --- priorities ----------------------------------------------------------------------------------------

sql(q{SELECT mq_register_handler('urgent', 'handle_slowly(mq_message)', priority => 10, batch_size => 1);
      SELECT count(*) FROM mq_send_many('urgent', array(SELECT '{"seconds": 0.2}'::jsonb FROM generate_series(1, 1000)))});
within(20, $node, $db, q{SELECT count(*) > 0 FROM handled WHERE payload ? 'seconds'}, 't', 'urgent messages are handled');
my $low = sql(q{SELECT mq_send('c', name => 'low')});
within(10, $node, $db, why($low), 'waits since channel "urgent" with priority 10 has due messages, and its own channel has priority 0: mq_register_handler sets the priority', 'mq_why() says what comes before it');
my $behind = qr/messages wait since channels with a greater priority have due ones: c \(priority 0 since [^;]*\) behind urgent \(priority 10\); mq_register_handler/;
within(10, $node, $db, detail('priorities'), qr/^t\|$behind/, 'mq_health() mentions it');
sql(q{UPDATE mq_msgs SET attempt_at = attempt_at - interval '2 minutes' WHERE channel_name = 'c'});
within(10, $node, $db, detail('priorities'), qr/^f\|$behind/, 'and complains after a minute');
sql(q{SELECT mq_clear('{urgent}')});
within(20, $node, $db, q{SELECT count(*) FROM handled WHERE name = 'low'}, 1, 'it is handled when no urgent one is due');
within(20, $node, $db, detail('priorities'), 't|', 'mq_health() is content');

# --- the queue of notifications ------------------------------------------------------------------------

holds($node, $db, detail('NOTIFY queue'), 't|', 'the queue of notifications has room');
SKIP: {
	skip 'the queue holds 8 GB before version 17', 6 if $node->safe_psql($db, 'SHOW server_version_num') < 170000;
	$node->append_conf('postgresql.conf', 'max_notify_queue_pages = 64');
	$node->restart;
	my $listener = session('the listener', 'LISTEN mq_c; BEGIN; SELECT 1');
	my $used = 'SELECT pg_notification_queue_usage()';
	sub fill { my ($share) = @_; sql(q{SELECT pg_notify('x', repeat(n::text || ' ', 700)) FROM generate_series(1000, 1004) n}) until sql($used) > $share }
	fill(0.55);
	within(10, $node, $db, detail('NOTIFY queue'), qr/^f\|the server's queue of notifications is \d+ % full, since a session that listens stays in a transaction: the oldest is of process \d+ \(the listener, idle in transaction\) in database postgres since [^;]*; end it; with mq\.notify = auto/, 'mq_health() says who holds it back');
	fill(0.91);
	my $full = sql($used);
	sql(q{SELECT mq_send('c', name => 'silent') FROM generate_series(1, 5)}) for 1 .. 20;
	holds($node, $db, $used, $full, 'mq_send adds nothing to a queue that is nearly full');
	within(20, $node, $db, q{SELECT count(*) FROM handled WHERE name = 'silent'}, 100, 'and works');
	ended($listener);
	within(20, $node, $db, detail('NOTIFY queue'), 't|', 'mq_health() is content');
	$listener = session('the listener', 'LISTEN mq_c');
	sql(q{SELECT mq_send('c')});
	like($listener->query_safe('SELECT 1'), qr/1/, 'the listener lives');
	within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'all is handled');
	$listener->quit;
}

# --- a standby that replays a lock -------------------------------------------------------------------

$node->backup('copy');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'copy', has_streaming => 1);
$standby->start;
my $locker = session('the holder', 'BEGIN; LOCK mq_msgs');
sql('SELECT pg_switch_wal()'); # writes the lock, which the holder has only logged
$node->wait_for_catchup($standby, 'replay');
within(20, $standby, $db, q{SELECT string_agg("check" || ': ' || detail, ' / ' ORDER BY "check" DESC) FROM mq_health() WHERE NOT ok},
	qr{^tables readable: mq_msgs is locked by the replay of a transaction of the primary; messages wait for that, [^/]*: end that transaction / server mode: standby: [^/]*$}, 'a standby says whose lock it replays, and that it is one');
like($standby->safe_psql($db, why('00000000-0000-0000-0000-00000000ffff')), qr/^is where nobody can see it, and waits if it is due: mq_msgs is locked by the replay of a transaction of the primary; end that transaction$/, 'mq_why() likewise');
ended($locker);
$node->wait_for_catchup($standby, 'replay');
within(20, $standby, $db, $ill, 'server mode', 'then nothing is locked');
$standby->stop;

$node->stop;
log_is_clean($node, qr{WARNING:  NOTIFY queue is \d+% full});
done_testing();
