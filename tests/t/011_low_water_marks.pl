# Low-water marks: entries of messages that are gone do not slow down claims while somebody holds a snapshot, and
# a message that becomes due below a mark is found all the same: at once where the server knows of it, within the poll
# interval where it cannot.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqReads;
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('marks', 'mq.databases' => 'postgres', autovacuum => 'off');
my $db = 'postgres';
$node->safe_psql($db, 'CREATE EXTENSION mq');
handled_table($node, $db);
$node->safe_psql($db, q{
	SELECT mq_register_handler('c', 'handle(mq_message)')});
my $names = q{SELECT COALESCE(string_agg(name, ' ' ORDER BY n), '') FROM handled WHERE name <> 'flow'};
my ($one, $two) = map { MqSession->new($node, $db) } 1 .. 2;

# So many messages flow through the channel that its mark is raised to now: the last claim, which finds nothing,
# looks how far.
sub raise_mark {
	local $Test::Builder::Level = $Test::Builder::Level + 2;
	$node->safe_psql($db, q{SELECT count(*) FROM mq_send_many('c', array_fill('0'::jsonb, ARRAY[100]), name => 'flow')});
	within(10, $node, $db, q{SELECT count(*) FROM handled WHERE name = 'flow'}, 100, 'messages flow');
	$node->safe_psql($db, 'TRUNCATE handled');
}

# Statements before the mark is raised, and after; then these are handled, without a poll interval's help.
sub found_below {
	my ($what, $before, $after, $handled) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->safe_psql($db, 'SELECT mq_clear_all(); TRUNCATE handled');
	my @got = map { $_->[0]->query($_->[1]) } @$before;
	raise_mark();
	push @got, map { $_->[0]->query($_->[1]) } @$after;
	is(join(' ', grep { /error/ } @got), '', "$what: nothing fails");
	within(10, $node, $db, $names, $handled, "$what: it is handled");
}

my $send = q{SELECT mq_send('c', name => '%s', id => md5('%1$s')::uuid%s)};
sub sent { return sprintf $send, $_[0], $_[1] // '' }

found_below('an older transaction commits late',
	[ [ $one, 'BEGIN; ' . sent('a') ] ], [ [ $one, 'COMMIT' ] ], 'a');
found_below('an older transaction sends late',
	[ [ $one, 'BEGIN; SELECT now()' ] ], [ [ $one, sent('a') . '; COMMIT' ] ], 'a');
found_below('an ordered message becomes head',
	[ [ $one, sent('a', q{, ordered => true, delay => '1 h'}) . ';' . sent('b', ', ordered => true') ] ],
	[ [ $one, q{SELECT mq_delete(ARRAY[md5('a')::uuid])} ] ], 'b');
found_below('an ordered message becomes head when its producer commits',
	[ [ $one, sent('a', q{, ordered => true, delay => '1 h'}) ], [ $two, 'BEGIN;' . sent('b', ', ordered => true') ] ],
	[ [ $one, q{SELECT mq_delete(ARRAY[md5('a')::uuid])} ], [ $two, 'COMMIT' ] ], 'b');
found_below('a two-phase message is committed',
	[ [ $one, sent('a', q{, commit_interval => '1 h'}) ] ], [ [ $one, q{SELECT mq_commit(ARRAY[md5('a')::uuid])} ] ], 'a');
found_below('a claim is rolled back',
	[ [ $two, 'BEGIN' ], [ $one, 'BEGIN; ' . sent('a') . q{; SELECT mq_pause('c')} ], [ $one, 'COMMIT' ],
		[ $two, q{SELECT name FROM mq_poll(ARRAY['c'], 1)} ], [ $one, q{SELECT mq_resume('c')} ] ],
	[ [ $two, 'ROLLBACK' ], [ $one, sent('b') ] ], 'a b');
found_below('a message that somebody had locked',
	[ [ $one, 'BEGIN; ' . sent('a') . '; PREPARE TRANSACTION \'p\'' ], [ $two, 'BEGIN' ],
		[ $one, q{SELECT mq_pause('c'); COMMIT PREPARED 'p'} ],
		[ $two, q{SELECT id FROM mq_msgs FOR UPDATE} ], [ $one, q{SELECT mq_resume('c')} ] ],
	[ [ $two, 'COMMIT' ], [ $one, sent('b') ] ], 'a b');
found_below('a message is deleted, but then not',
	[ [ $two, 'BEGIN' ], [ $one, q{SELECT mq_pause('c');} . sent('a') ], [ $two, q{SELECT mq_delete(ARRAY[md5('a')::uuid])} ],
		[ $one, q{SELECT mq_resume('c')} ] ],
	[ [ $two, 'ROLLBACK' ], [ $one, sent('b') ] ], 'a b');

# --- the net -------------------------------------------------------------------------------------

set_and_reload($node, 'mq.poll_interval' => '500ms');
found_below('a transaction that somebody commits for another',
	[ [ $one, 'BEGIN; ' . sent('a') . q{; PREPARE TRANSACTION 'p'} ] ], [ [ $two, q{COMMIT PREPARED 'p'} ] ], 'a');
found_below('a row that is written by hand',
	[ [ $one, sent('a', q{, delay => '1 h'}) ] ], [ [ $one, q{UPDATE mq_msgs SET attempt_at = now() - interval '1 h'} ] ], 'a');

# --- without workers -----------------------------------------------------------------------------

$node->safe_psql($db, 'CREATE DATABASE alone');
$node->safe_psql('alone', q{
	CREATE EXTENSION mq;
	CREATE FUNCTION ignore(jsonb) RETURNS void LANGUAGE sql AS '';
	SELECT mq_register_handler('c', 'ignore(jsonb)');
	SELECT mq_register_handler('d', 'ignore(jsonb)');
	CREATE PROCEDURE flow_in_order(messages int) LANGUAGE plpgsql AS $$
	BEGIN
	  FOR i IN 1 .. messages LOOP
	    PERFORM mq_send('o', ordered => true);
	    COMMIT;
	    PERFORM mq_delete(array_agg(id)) FROM mq_poll(ARRAY['o'], 1);
	    COMMIT;
	  END LOOP;
	END $$;
	CREATE PROCEDURE flow(messages int) LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM mq_send_many('c', array_fill('0'::jsonb, ARRAY[messages]), name => 'flow', retry_backoff => '1 h');
	  COMMIT;
	  FOR i IN 1 .. 4 LOOP
	    PERFORM mq_delete(array_agg(id)) FROM mq_poll(NULL, messages / 4);
	    COMMIT;
	  END LOOP;
	END $$});
my ($caller, $other) = map { MqSession->new($node, 'alone') } 1 .. 2;
my $poll = q{SELECT name FROM mq_poll(ARRAY['c'], 1)};

$other->query('BEGIN; SELECT now()');
$caller->query('CALL flow(100); CALL flow(100);' . sent('z'));
is($other->query(sent('a') . ";$poll;COMMIT") =~ s/^\S+\n//r, 'a', 'a transaction finds what it has sent itself');
$caller->query('SELECT mq_clear_all()');

$other->query('BEGIN; ' . sent('b') . q{; PREPARE TRANSACTION 'p'});
$caller->query(q{CALL flow(100); CALL flow(100); COMMIT PREPARED 'p'});
is($caller->query($poll), 'b', 'a poll looks from the beginning before it says that there is nothing');

$other->query('BEGIN; ' . sent('c') . q{; PREPARE TRANSACTION 'p'});
$caller->query(q{CALL flow(100); CALL flow(100); COMMIT PREPARED 'p'});
is($caller->query('CALL mq_run()'), 1, 'and so does mq_run');

# --- in steps ------------------------------------------------------------------------------------

# More is gone from the front than a step reads, and more is due than the calls take.
set_and_reload($node, 'mq.poll_interval' => '100ms');
$caller->query(q{SELECT count(*) FROM mq_send_many('d', array_fill('0'::jsonb, ARRAY[20000]))});
$other->query(q{BEGIN; SELECT mq_send('d', name => 'hidden'); PREPARE TRANSACTION 'p'});
$caller->query(q{SELECT count(*) FROM mq_send_many('d', array_fill('0'::jsonb, ARRAY[20000])); CALL mq_run(ARRAY['d'], 21000)});
$other->query(q{COMMIT PREPARED 'p'});
my $hidden = q{SELECT count(*) FROM mq_msgs WHERE message_name = 'hidden'};
is($caller->query($hidden), 1, 'a message is below the mark');
my $steps = 0;
++$steps while $steps < 1000 && $caller->query(q{CALL mq_run(ARRAY['d'], 10)}) && $caller->query($hidden);
cmp_ok($steps, '<', 1000, "claims that find enough look for it in steps: $steps");
$caller->query('SELECT mq_clear_all()');

# --- ordered channels ----------------------------------------------------------------------------

# The statements, on a channel that has held one message, which is gone, and then holds 'a'; then 'z' is appended.
# It is behind 'a'.
my $channel = 0;
sub behind_the_tail {
	my ($what, @statements) = @_;
	++$channel;
	my $ordered = ", ordered => true, channel_args => '$channel'";
	my $remove = q{SELECT mq_delete(ARRAY[md5('a')::uuid])};
	$caller->query(sent('x', $ordered) . q{; SELECT mq_delete(array_agg(id)) FROM mq_msgs;} . sent('a', $ordered));
	my @got = map { $caller->query(s/REMOVE/$remove/r =~ s/SEND/sent('b', $ordered)/er) } @statements, sent('z', $ordered);
	is($caller->query(q{SELECT string_agg(name, ' ' ORDER BY seq) FROM mq_msgs JOIN mq_payloads USING (id)
		WHERE after_message_id = '00000000-0000-0000-0000-000000000000'}), 'a', "$what: the tail is found");
	unlike("@got", qr/error/, "$what: nothing fails");
	$caller->query('SELECT mq_clear_all()');
}
behind_the_tail('a tail that was there all the time');
behind_the_tail('removed and replaced, but not committed', 'BEGIN', 'REMOVE', 'SEND', 'ROLLBACK');
behind_the_tail('removed and replaced, up to a savepoint', 'BEGIN', 'SAVEPOINT s', 'REMOVE', 'SEND', 'ROLLBACK TO s', 'COMMIT');
behind_the_tail('removed, then replaced in a savepoint', 'BEGIN', 'SAVEPOINT s', 'REMOVE', 'SAVEPOINT t', 'SEND', 'RELEASE t', 'ROLLBACK TO s',
	'COMMIT');

# --- what a claim reads --------------------------------------------------------------------------

SKIP: {
	skip 'the counts of an older server come late', 5 if $node->pg_version < 15;

	# Between the claims the interval ends.
	$caller->query(q{SELECT mq_send_many('d', array_fill('0'::jsonb, ARRAY[30000])); CALL mq_run(ARRAY['d'], 25000)});
	my @reads = map { $caller->query('SELECT pg_sleep(0.2)'); reads_of($caller, q{CALL mq_run(ARRAY['d'], 1)}) } 1 .. 3;
	cmp_ok((sort { $b <=> $a } @reads)[0], '<', 5000, "no claim reads all that is gone from the front: @reads");
	$caller->query('SELECT mq_clear_all()');

	# Marks are checked each half poll interval, which is a search from the beginning: the slower, the more of them.
	set_and_reload($node, 'mq.poll_interval' => '1h');
	$caller->query('SELECT pg_sleep(0.01)') until $caller->query('SHOW mq.poll_interval') eq '1h';
	my $holder = hold_snapshot($node, 'alone');
	cmp_ok(growth_of_reads($caller, 'CALL flow(400)'), '<', 1.5, 'polls beside a held snapshot read no more and more');

	cmp_ok(growth_of_reads($caller, 'CALL flow_in_order(100)'), '<', 1.5, 'nor do they and appends to an ordered channel');

	$caller->query(q{SELECT mq_send_many('d', array_fill('0'::jsonb, ARRAY[6000]), channel_args => a::text) FROM generate_series(1, 2) a});
	cmp_ok(growth_of_reads($caller, q{CALL mq_run(ARRAY['d'], 1000)}), '<', 1.5, 'nor do workers while a queue is burnt down');
	$holder->quit;
}

$_->quit for $one, $two, $caller, $other;
$node->stop;
log_is_clean($node);
done_testing();
