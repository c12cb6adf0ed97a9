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

$node->stop;
log_is_clean($node);
done_testing();
