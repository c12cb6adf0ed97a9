# Where an append and the removal of what it follows meet, the message is handled when both are over, by a worker
# that nobody but they can have woken: the poll interval is an hour. Also over prepared transactions, and while
# the append's commit takes its time.
#
# Flaws 16 and 28 of the original: the append failed, or the delete waited for the producer's whole transaction;
# a transaction that sends could not be prepared.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('tail', wal_level => 'replica', max_wal_senders => 2, synchronous_commit => 'local');
my $db = 'postgres';
$node->safe_psql($db, 'CREATE EXTENSION mq');
handled_table($node, $db);
$node->safe_psql($db, q{
	SELECT mq_register_handler('c', 'handle(mq_message)');
	CREATE PROCEDURE append(name text, delay interval DEFAULT '0') BEGIN ATOMIC
	  SELECT mq_send('c', name => name, ordered => true, delay => delay, id => md5(name)::uuid);
	END;
	CREATE PROCEDURE remove(name text) BEGIN ATOMIC
	  SELECT mq_delete(ARRAY[md5(name)::uuid]);
	END});
my $names = q{SELECT COALESCE(string_agg(name, ' ' ORDER BY n), '') FROM handled};
my ($producer, $deleter, $other) = map { MqSession->new($node, $db) } 1 .. 3;

# The statements one after the other, each as [session, SQL]; none of them fails, none waits. Before that the
# channel has a message that is not due for an hour, so that nothing behind it is handled.
sub channel_after {
	my ($handled, $what, @steps) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$producer->query("TRUNCATE handled; SELECT mq_clear_all(); CALL append('a', '1 h')");
	my @got = map { my ($session, $sql) = @$_; "$sql: " . $session->query("SET lock_timeout = '5s'; $sql") } @steps;
	is(join("\n", grep { /error/ } @got), '', "$what: nothing fails");
	within(5, $node, $db, $names, $handled, "$what: then it is handled");
}

channel_after('b', 'appended and committed while the tail is being deleted',
	[ $deleter, q{BEGIN; CALL remove('a')} ], [ $producer, q{CALL append('b')} ], [ $deleter, 'COMMIT' ]);
channel_after('b', 'appended while the tail is being deleted, committed later',
	[ $deleter, q{BEGIN; CALL remove('a')} ], [ $producer, q{BEGIN; CALL append('b')} ], [ $deleter, 'COMMIT' ], [ $producer, 'COMMIT' ]);
channel_after('b', 'the tail is deleted while something is being appended',
	[ $producer, q{BEGIN; CALL append('b')} ], [ $deleter, q{CALL remove('a')} ], [ $producer, 'COMMIT' ]);
channel_after('b', 'the tail is being deleted while something is appended and committed',
	[ $producer, q{BEGIN; CALL append('b')} ], [ $deleter, q{BEGIN; CALL remove('a')} ], [ $producer, 'COMMIT' ], [ $deleter, 'COMMIT' ]);
channel_after('c', 'the head is deleted while the message behind it is being deleted',
	[ $producer, q{CALL append('b'); CALL append('c')} ], [ $other, q{BEGIN; CALL remove('b')} ], [ $deleter, q{CALL remove('a')} ],
	[ $other, 'COMMIT' ]);
channel_after('b c', 'the head is deleted, the message behind it is kept after all',
	[ $producer, q{CALL append('b'); CALL append('c')} ], [ $other, q{BEGIN; CALL remove('b')} ], [ $deleter, q{CALL remove('a')} ],
	[ $other, 'ROLLBACK' ]);
channel_after('b', 'the head is deleted while somebody keeps the message behind it alive',
	[ $producer, q{CALL append('b')} ], [ $other, q{BEGIN; SELECT mq_keep_alive(ARRAY[md5('b')::uuid], '0')} ], [ $deleter, q{CALL remove('a')} ],
	[ $other, 'COMMIT' ]);
channel_after('c', 'the producer takes back what it appended first',
	[ $producer, q{BEGIN; CALL append('b'); CALL append('c'); CALL remove('b')} ], [ $deleter, q{CALL remove('a')} ], [ $producer, 'COMMIT' ]);
channel_after('b', 'the channel is cleared while something is being appended',
	[ $producer, q{BEGIN; CALL append('b')} ], [ $deleter, q{SELECT mq_clear(ARRAY['c'])} ], [ $producer, 'COMMIT' ]);
channel_after('b', 'the producer has rolled back to a savepoint',
	[ $producer, q{BEGIN; SAVEPOINT s; CALL append('x'); ROLLBACK TO s; CALL append('b')} ], [ $deleter, q{CALL remove('a')} ], [ $producer, 'COMMIT' ]);

# While nothing can be done about a channel that was noted, no worker looks for that time after time.
my $commits = q{SELECT pg_stat_get_db_xact_commit(oid) FROM pg_database WHERE datname = current_database()};
$producer->query("TRUNCATE handled; SELECT mq_clear_all(); CALL append('a', '1 h')");
$deleter->query(q{BEGIN; CALL remove('a')});
$producer->query(q{CALL append('b')});
my $before = $node->safe_psql($db, $commits);
sleep 4;
cmp_ok($node->safe_psql($db, $commits) - $before, '<=', 400, 'a worker that cannot link a channel does not spin');
$deleter->query('COMMIT');
within(10, $node, $db, $names, 'b', 'and links it once it can');

# The append is committed, but its transaction not over: it waits for a standby that never comes.
for my $removal (q{CALL remove('a')}, q{SELECT mq_clear(ARRAY['c'])}) {
	$producer->query(q{TRUNCATE handled; SELECT mq_clear_all(); CALL append('a', '1 h')});
	set_and_reload($node, synchronous_standby_names => 'nobody');
	my $waits = MqSession->new($node, $db);
	$waits->{psql}{stdin} .= "SET synchronous_commit = on; CALL append('b');\n\\echo query is over\n";
	$waits->{psql}{run}->pump_nb;
	within(10, $node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'}, 1, "$removal: the commit of an append hangs");
	$deleter->start($removal);
	set_and_reload($node, synchronous_standby_names => '');
	unlike($deleter->result, qr/error/, 'the removal waits for no more than that');
	unlike($waits->result, qr/error/, 'and does not disturb it');
	within(5, $node, $db, $names, 'b', 'then the message is handled');
	$waits->quit;
}

# --- at random -----------------------------------------------------------------------------------------

# Ten clients append to, remove from, hold, poll and clear three channels that two workers serve. When they have
# ended all is handled, without a poll interval's help: no message was left behind anything.
$producer->query(q{
	TRUNCATE handled;
	SELECT mq_clear_all();
	CREATE SEQUENCE place;
	CREATE FUNCTION some_of(channel int, most int) RETURNS uuid[] LANGUAGE sql AS $$
	  SELECT COALESCE(array_agg(id), '{}') FROM (SELECT id FROM mq_msgs WHERE channel_args = channel::text ORDER BY random() LIMIT most) m
	$$;
	CREATE PROCEDURE append_to(channel int) LANGUAGE plpgsql AS $$
	BEGIN
	  -- The place is taken under the channel's lock, so it tells the order of commits.
	  PERFORM pg_advisory_xact_lock(channel);
	  PERFORM mq_send('c', to_jsonb(nextval('place')), name => channel::text, channel_args => channel::text, ordered => true);
	END $$});
# Weight, and statements; in the middle of each transaction it sleeps.
my %mix = (
	append => [ 60, 'CALL append_to(:c);', 'COMMIT;' ],
	append_again => [ 20, 'CALL append_to(:c); SAVEPOINT s; CALL append_to(:c);', 'ROLLBACK TO s; CALL append_to(:c); COMMIT;' ],
	not_sent => [ 5, 'CALL append_to(:c);', 'ROLLBACK;' ],
	remove => [ 20, 'SELECT mq_delete(some_of(:c, 2));', 'COMMIT;' ],
	not_removed => [ 10, 'SELECT mq_delete(some_of(:c, 2));', 'ROLLBACK;' ],
	hold => [ 10, q{SELECT mq_keep_alive(some_of(:c, 2), '0');}, 'COMMIT;' ],
	poll => [ 10, 'SELECT count(mq_delete(ARRAY[id])) FROM mq_poll(NULL, 3) WHERE id IS NOT NULL;', 'COMMIT;' ],
	clear => [ 1, q{SELECT mq_clear(ARRAY['c']);}, 'COMMIT;' ]);
my @files;
for my $name (sort keys %mix) {
	my ($weight, $begin, $end) = @{ $mix{$name} };
	my $file = $node->basedir . "/$name.sql";
	append_to_file($file, join "\n", '\set c random(1, 3)', '\set ms random(0, 8)', 'BEGIN;', $begin, '\sleep :ms ms', $end, '');
	push @files, '--file', "$file\@$weight";
}
my $seed = $ENV{MQ_SEED} // int(rand(2**31));
note "MQ_SEED=$seed";
$node->command_checks_all([ 'pgbench', '--no-vacuum', '--client=10', '--time=6', "--random-seed=$seed", @files, $node->connstr($db) ],
	0, [qr/number of failed transactions: 0/], [qr/^(?!.*(error|aborted))/s], 'ten clients do what they like');
within(5, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'nothing is left behind');
holds($node, $db, 'SELECT count(DISTINCT payload) = count(*), count(*) > 100 FROM handled', 't|t', 'each is handled once');
holds($node, $db, q{
	SELECT count(*) FROM (SELECT payload::int - lag(payload::int) OVER (PARTITION BY name ORDER BY n) AS step FROM handled) s WHERE step <= 0},
	0, 'in order');

# --- prepared transactions ----------------------------------------------------------------------------

# A transaction that somebody commits for another wakes nobody: the poll interval is the net.
set_and_reload($node, 'mq.poll_interval' => '500ms');
$producer->query('SET mq.notify = on');
channel_after('b', 'the tail is deleted while an append is prepared',
	[ $producer, q{BEGIN; CALL append('b'); PREPARE TRANSACTION 'p'} ], [ $deleter, q{CALL remove('a')} ], [ $other, q{COMMIT PREPARED 'p'} ]);
channel_after('b', 'an append is prepared while the tail is being deleted',
	[ $deleter, q{BEGIN; CALL remove('a')} ], [ $producer, q{BEGIN; CALL append('b'); PREPARE TRANSACTION 'p'} ], [ $deleter, 'COMMIT' ],
	[ $other, q{COMMIT PREPARED 'p'} ]);
channel_after('a b', 'the tail is kept after all',
	[ $deleter, q{BEGIN; CALL remove('a')} ], [ $producer, q{BEGIN; CALL append('b'); PREPARE TRANSACTION 'p'} ], [ $deleter, 'ROLLBACK' ],
	[ $other, q{COMMIT PREPARED 'p'; UPDATE mq_msgs SET attempt_at = now()} ]);
channel_after('c', 'a prepared append is rolled back',
	[ $producer, q{BEGIN; CALL append('b'); PREPARE TRANSACTION 'p'} ], [ $deleter, q{CALL remove('a')} ], [ $other, q{ROLLBACK PREPARED 'p'} ],
	[ $producer, q{CALL append('c')} ]);
channel_after('b', 'the removal of the tail is prepared',
	[ $deleter, q{BEGIN; CALL remove('a'); PREPARE TRANSACTION 'p'} ], [ $producer, q{CALL append('b')} ], [ $other, q{COMMIT PREPARED 'p'} ]);

# What is prepared is not sent before it is committed; a restart does not change that.
$producer->query(q{TRUNCATE handled; SELECT mq_clear_all(); BEGIN; SELECT mq_send('c', name => 'prepared'); PREPARE TRANSACTION 'p'; SELECT mq_send('c', name => 'beside')});
within(5, $node, $db, $names, 'beside', 'a prepared message is not handled');
$_->quit for $producer, $deleter, $other;
$node->restart;
$node->safe_psql($db, q{SELECT mq_send('c', name => 'after the start')});
within(5, $node, $db, $names, 'beside after the start', 'nor after a restart');
$node->safe_psql($db, q{COMMIT PREPARED 'p'});
within(5, $node, $db, $names, 'beside after the start prepared', 'but when it is committed');

$node->stop;
log_is_clean($node);
done_testing();
