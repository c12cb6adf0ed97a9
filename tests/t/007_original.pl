# Every flaw of the original in delivering and ordering: the same statements go wrong on the original schema
# (ONLY=original shows that) and right on the extension.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqFlaw;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = flaw_node('original', shared_preload_libraries => '');

# --- delivery -----------------------------------------------------------------------------------

flaw 1, 'overlapping polls', sub {
	session('a')->query(insert('x'));
	session('a')->query('BEGIN');
	my $first = session('a')->query(poll());
	session('b')->start(poll());
	session('a')->query('COMMIT');
	return "$first, then " . (session('b')->result || 'nothing');
}, 'x, then x', 'x, then nothing';

flaw 2, 'a poll beside a locked message', sub {
	session('a')->query(insert($_)) for 'x', 'y';
	session('a')->query('BEGIN');
	session('a')->query(keep('x'));
	session('b')->query(q{SET lock_timeout = '300ms'});
	return session('b')->query(poll(1));
}, 'error 55P03', 'y';

flaw 3, 'polls of two channels', sub {
	session('a')->query(insert('x', channel => 'one') . ';' . insert('y', channel => 'two'));
	session($_)->query('BEGIN') for 'a', 'b';
	session('a')->query(poll(1, 'one'));
	session('b')->query(poll(1, 'two'));
	session('a')->start(poll(1, 'two'));
	session('b')->start(poll(1, 'one'));
	my @results = map { session($_)->result } 'a', 'b';
	return (grep { $_ eq 'error 40P01' } @results) ? 'a deadlock' : join ', ', map { $_ || 'nothing' } @results;
}, 'a deadlock', 'nothing, nothing';

flaw 4, 'a message that is being handled', sub {
	session('a')->query(insert('x', backoff => '0.05 s'));
	if ($kind eq 'original') {
		session('a')->query(poll());
	} else {
		session('a')->query(q{
			CREATE FUNCTION handle(mq_message) RETURNS void LANGUAGE sql AS '';
			BEGIN;
			SELECT mq_register_handler('c', 'handle(mq_message)');
			CALL mq_run()});
	}
	session('b')->query('SELECT pg_sleep(0.1)');
	return 'another gets: ' . session('b')->query(poll());
}, 'another gets: x', 'another gets: ';

flaw 5, 'the last attempt, polled twice', sub {
	session('a')->query(insert('x', retries => 0));
	session('a')->query('BEGIN');
	session('a')->query(poll());
	session('b')->start(poll());
	session('a')->query('COMMIT');
	session('b')->result;
	return session('a')->query('SELECT attempts FROM mq_msgs WHERE id = ' . id('x')) . ' attempts left';
}, '-1 attempts left', '0 attempts left';

flaw 6, 'the lease of a last attempt', sub {
	session('a')->query(insert('x', retries => 0) . ';' . poll());
	return session('a')->query('SELECT attempt_at > now() FROM mq_msgs WHERE id = ' . id('x')) || 'none';
}, 'none', 't';

flaw 7, 'a dead head of an ordered channel', sub {
	session('a')->query(append('x y', retries => 0, backoff => '0.05 s') . ';' . poll());
	session('a')->query('SELECT pg_sleep(0.1)');
	my $next = session('a')->query(poll());
	return 'next: ' . $next . ', left: ' . session('a')->query(q{SELECT count(*) FROM mq_msgs WHERE id = } . id('x'));
}, 'next: , left: 1', 'next: y, left: 0';

flaw 8, 'a backoff beyond all bounds', sub {
	session('a')->query(insert('x', backoff => '293000 years'));
	session('a')->query(insert('y'));
	return session('b')->query(poll());
}, 'error 22008', 'y';
flaw 8, 'a backoff that doubles for ever', sub {
	session('a')->query(insert('x', retries => 100, backoff => '1 s'));
	my $at = q{UPDATE mq_msgs SET attempt_at = now() WHERE attempt_at IS NOT NULL};
	for (1 .. 60) {
		my $got = session('a')->query(poll());
		return $got if $got =~ /error/;
		session('a')->query($at);
	}
	return session('a')->query(poll());
}, 'error 22008', 'x';

flaw 9, 'a message without its payload', sub {
	session('a')->query(insert('x'));
	session('a')->query('DELETE FROM mq_payloads');
	session('a')->query('SELECT * FROM mq_poll(ARRAY[\'c\'])');
	return session('a')->query('SELECT count(*) FROM mq_msgs WHERE id = ' . id('x')) . ' pending';
}, '1 pending', '0 pending';
flaw 9, 'a payload without its message', sub {
	session('a')->query(insert('x'));
	session('a')->query('DELETE FROM mq_msgs WHERE id = ' . id('x'));
	session('a')->query(poll());
	session('a')->query('CALL mq_run()') if $kind eq 'extension';
	return session('a')->query('SELECT count(*) FROM mq_payloads') . ' payloads';
}, '1 payloads', '0 payloads';

flaw 10, 'the order of a batch', sub {
	session('a')->query('BEGIN');
	session('a')->query(insert(chr(ord('f') + $_), args => $_ % 10, delay => (19 - $_) * 0.01 . ' s')) for 0 .. 19;
	session('a')->query('COMMIT; SELECT pg_sleep(0.2)');
	my @names = split /\n/, session('a')->query(poll(20));
	return "@names" eq join(' ', reverse sort @names) ? 'oldest first' : 'mixed';
}, 'mixed', 'oldest first';
flaw 10, 'a channel of one message beside one of 1,000', sub {
	session('a')->query(q{SELECT mq_insert(array_agg((gen_random_uuid(), '0', 4, '1 h', 'c', 'busy', NULL, false, 'busy', NULL, NULL)::mq_new_t))
		FROM generate_series(1, 1000)});
	session('a')->query(insert('x', args => 'lonely'));
	my $polls = 0;
	for (1 .. 20) {
		session('a')->query('BEGIN');
		++$polls if session('a')->query(poll(10)) =~ /^x$/m;
		session('a')->query('ROLLBACK');
	}
	return $polls == 20 ? 'in each poll' : 'in some polls';
}, 'in some polls', 'in each poll';

# --- ordering -----------------------------------------------------------------------------------

flaw 11, 'two transactions append', sub {
	session('a')->query('BEGIN');
	session('a')->query(append('x'));
	session('b')->start(append('y'));
	session('a')->query('COMMIT');
	my $result = session('b')->result || 'sent';
	return "$result, delivered: " . drain();
}, 'error 23505, delivered: x', 'sent, delivered: x y';

flaw 12, 'three appends in one transaction', sub {
	session('a')->query('BEGIN');
	my @results = map { session('a')->query(append($_)) || 'sent' } 'y', 'x', 'z';
	session('a')->query('COMMIT');
	return join(', ', @results) . ', delivered: ' . drain();
}, 'sent, sent, error 23505, delivered: ', 'sent, sent, sent, delivered: y x z';

flaw 13, 'an older transaction appends after a younger one', sub {
	session('a')->query('BEGIN; SELECT now()');
	session('b')->query(append('x'));
	session('a')->query(append('y'));
	session('a')->query('COMMIT');
	my $result = session('b')->query(append('z')) || 'sent';
	return "$result, delivered: " . drain();
}, 'error 23505, delivered: x y', 'sent, delivered: x y z';

flaw 14, 'the order of an array', sub {
	session('a')->query(append('z x y'));
	return drain();
}, 'x y z', 'z x y';

flaw 15, 'a message is deleted from the middle', sub {
	session('a')->query(append('x y z'));
	my $result = session('a')->query(remove('y')) || 'deleted';
	return "$result, delivered: " . drain();
}, 'error 23505, delivered: x y z', 'deleted, delivered: x z';

flaw 16, 'an append while the tail is being deleted', sub {
	session('a')->query(append('x'));
	session('a')->query('BEGIN');
	session('a')->query(remove('x'));
	session('b')->start(append('y'));
	session('a')->query('COMMIT');
	my $result = session('b')->result || 'sent';
	return "$result, delivered: " . drain();
}, 'error 23503, delivered: ', 'sent, delivered: y';
flaw 16, 'a delete while the next is being appended', sub {
	session('a')->query(append('x'));
	session('a')->query('BEGIN');
	session('a')->query(append('y'));
	session('b')->query(q{SET lock_timeout = '300ms'});
	my $result = session('b')->query(remove('x')) || 'deleted';
	session('a')->query('COMMIT');
	return "$result, delivered: " . drain();
}, 'error 55P03, delivered: x y', 'deleted, delivered: y';

flaw 17, 'the nil message and the channel without a name are deleted', sub {
	session('a')->query(q{SELECT mq_delete(ARRAY['00000000-0000-0000-0000-000000000000'::uuid])});
	session('a')->query(q{SELECT mq_clear(ARRAY[''])}) if $kind eq 'extension';
	return session('a')->query(append('x')) || 'sent';
}, 'error 23503', 'sent';
flaw 18, 'an append with a stale snapshot', sub {
	session('a')->query(append('x'));
	session('a')->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM mq_msgs');
	session('b')->query(append('y'));
	return session('a')->query(append('z'));
}, 'error 23505', 'error 40001';

# --- two-phase messages -----------------------------------------------------------------------------

flaw 20, 'a message that is committed after it was polled as expired', sub {
	session('a')->query(insert('x', commit_interval => '0.05 s'));
	session('a')->query('SELECT pg_sleep(0.1)');
	my $polled = session('b')->query(q{SELECT is_committed FROM mq_poll(ARRAY['c'])});
	# As the original's client does.
	my $committed = session('a')->query('SELECT mq_commit(ARRAY[' . id('x') . '])');
	session('b')->query(remove('x')) if $polled eq 'f';
	return 'mq_commit returns ' . ($committed || 'nothing') . ", pending: " . session('a')->query(q{SELECT count(*) FROM mq_msgs WHERE id = } . id('x'));
}, 'mq_commit returns nothing, pending: 0', 'mq_commit returns {}, pending: 0';

$node->stop;
log_is_clean($node, $kind eq 'original' ? qr/deadlock detected/ : ());
done_testing();
