# Sending beside workers: transactions of every isolation level, sent READ ONLY or prepared at the end.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $node = mq_node('sending');
$node->safe_psql($db, 'CREATE EXTENSION mq');
handled_table($node, $db);

# A sender and a worker meet at the tail, in every state that it can be in.
$node->safe_psql($db, q{SELECT mq_register_handler('steps', 'handle(mq_message)')});
my @sends = map { my $level = (($_ / 5) % 2) ? 'SERIALIZABLE' : 'REPEATABLE READ';
	qq{BEGIN ISOLATION LEVEL $level; SELECT mq_send('steps', '$_', ordered => true); COMMIT;} } 1 .. 600;
my ($out, $err) = ('', '');
$node->psql($db, join("\n", @sends), stdout => \$out, stderr => \$err, on_error_stop => 0);
is($err, '', 'ordered sends under REPEATABLE READ and SERIALIZABLE beside a worker: none fails');
within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'all of them are handled');
holds($node, $db, 'SELECT count(*), bool_and(payload::int = o) FROM (SELECT payload, row_number() OVER (ORDER BY n) AS o FROM handled) h', '600|t',
	'in their order');

# The end of a transaction that was set READ ONLY after it sent.
$node->safe_psql($db, q{SELECT mq_send('prepared', '1', ordered => true)});
$node->safe_psql($db, q{BEGIN; SELECT mq_send('prepared', '2', ordered => true); SET TRANSACTION READ ONLY; PREPARE TRANSACTION 'two'});
$node->safe_psql($db, q{COMMIT PREPARED 'two'; DELETE FROM handled});
$node->safe_psql($db, q{BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT mq_send('prepared', '3', ordered => true); SET TRANSACTION READ ONLY; COMMIT});
$node->safe_psql($db, q{SELECT mq_register_handler('prepared', 'handle(mq_message)')});
within(10, $node, $db, q{SELECT string_agg(payload::text, ' ' ORDER BY n) FROM handled}, '1 2 3', 'a transaction is set READ ONLY after it sent');

# A prepared transaction blocks its own ordered channel and no other, though they shared a lock in 0.1.0; and mq_health()
# says who waits for whom.
$node->safe_psql($db, q{SELECT mq_unregister_handler('steps'), mq_unregister_handler('prepared')});
my $sibling = $node->safe_psql($db, q{SELECT n FROM generate_series(1, 100000) AS n
	WHERE mq_channel_key('c', n::text) & 1023 = mq_channel_key('c', '') & 1023 ORDER BY n LIMIT 1});
$node->safe_psql($db, q{BEGIN; SELECT mq_send('c', ordered => true); PREPARE TRANSACTION 'it''s forgotten'});
my $sent = $node->safe_psql($db, qq{SET statement_timeout = '30s'; SELECT mq_send('c', channel_args => '$sibling', ordered => true) IS NOT NULL});
is($sent, 't', 'an append to another channel does not wait for a prepared transaction');
my $sender = $node->background_psql($db);
$sender->query_until(qr/sends/, q{\echo sends
	SELECT mq_send('c', ordered => true);
});
within(20, $node, $db, q{SELECT detail FROM mq_health() WHERE "check" = 'senders not waiting' AND NOT ok},
	qr/^sessions that send wait for others: process \d+ since .* for prepared transaction 'it''s forgotten' \(COMMIT PREPARED 'it''s forgotten' or ROLLBACK PREPARED 'it''s forgotten' ends it\), which has appended to the same ordered channel; end that transaction$/, 'mq_health() names the prepared transaction that a sender waits for');
$node->safe_psql($db, q{COMMIT PREPARED 'it''s forgotten'});
my $holder = $node->background_psql($db);
$holder->query_safe(q{SET application_name = 'absent-minded'});
$holder->query_safe(q{BEGIN});
within(20, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'c' AND channel_args = ''}, 2, 'then it goes on');
$holder->query_safe(q{SELECT mq_send('c', ordered => true)});
$sender->query_until(qr/sends/, q{\echo sends
	SELECT mq_send('c', ordered => true);
});
within(20, $node, $db, q{SELECT detail FROM mq_health() WHERE "check" = 'senders not waiting' AND NOT ok},
	qr/ for process \d+ \(absent-minded, idle in transaction\), which has appended to the same ordered channel; end/, 'or the session');
$holder->query_safe('COMMIT');
within(20, $node, $db, q{SELECT ok FROM mq_health() WHERE "check" = 'senders not waiting'}, 't', 'mq_health(): nobody waits any more');
$holder->quit;
$sender->quit;

# More ordered channels than the lock table has room for: in one call, and in a call each.
$node->safe_psql($db, q{SELECT mq_clear_all()});
my $locks = q{SELECT count(*) < 1600 FROM pg_locks WHERE pid = pg_backend_pid()};
is($node->safe_psql($db, qq{BEGIN; SELECT mq_insert(array_agg((gen_random_uuid(), '0', 4, '1 s', 'wide', n::text, NULL, true, 'n', NULL, NULL)::mq_new_t))
	FROM generate_series(1, 100000) AS n; $locks; COMMIT}), "\nt", '100,000 ordered channels in one call: some hundred locks');
is($node->safe_psql($db, qq{BEGIN; SELECT count(mq_send('wide', channel_args => (-n)::text, ordered => true)) FROM generate_series(1, 100000) AS n; $locks; COMMIT}),
	"100000\nt", 'and in a call each');

$node->stop;
log_is_clean($node);
done_testing();
