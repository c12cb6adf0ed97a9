# A message waits for 10,000 others, which eight workers handle while its sender's transaction is open for long: nobody waits for
# that transaction, other messages are handled meanwhile, and when it ends the message is handled once, or nothing is left of it.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('after_in_size', 'mq.max_workers' => 8, max_worker_processes => 24);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
sql(q{
	CREATE EXTENSION mq;
	CREATE TABLE handled (n bigserial, id uuid);
	CREATE FUNCTION take(message mq_message) RETURNS void LANGUAGE sql AS $$ INSERT INTO handled (id) VALUES (message.id) $$;
	SELECT mq_register_handler(c, 'take(mq_message)', batch_size => 50) FROM unnest(ARRAY['last', 'beside'] || ARRAY(SELECT 'many' || i FROM generate_series(1, 8) AS i)) AS c;
	CREATE TABLE ids (id uuid)});
my $left = 'SELECT count(*) FROM mq_msgs';
for my $end ('COMMIT', 'ROLLBACK') {
	sql(q{TRUNCATE handled, ids; SELECT mq_pause('many' || i) FROM generate_series(1, 8) AS i});
	sql(q{INSERT INTO ids SELECT m FROM generate_series(1, 8) AS i, mq_send_many('many' || i, array_fill('1'::jsonb, ARRAY[1250])) AS m});
	my $sender = MqSession->new($node, $db);
	$sender->query(q{BEGIN; SELECT mq_send('last', id => md5('last')::uuid, after => (SELECT array_agg(id) FROM ids))});
	sql(q{SELECT mq_resume('many' || i) FROM generate_series(1, 8) AS i});
	within(120, $node, $db, $left, 0, "$end: 10,000 are handled while the transaction is open whose message waits for them");
	sql(q{SELECT mq_send('beside', id => md5('beside')::uuid)});
	within(60, $node, $db, q{SELECT count(*) FROM handled WHERE id = md5('beside')::uuid}, 1, '... and others, too');
	holds($node, $db, q{SELECT count(*) FROM handled WHERE id = md5('last')::uuid}, 0, '... but not the one that waits');
	$sender->query($end);
	$sender->quit;
	if ($end eq 'COMMIT') {
		within(60, $node, $db, q{SELECT count(*) FROM handled WHERE id = md5('last')::uuid}, 1, '... and then it is, too');
		holds($node, $db, q{SELECT id = md5('last')::uuid FROM handled ORDER BY n DESC LIMIT 1}, 't', '... behind all of them');
	}
	# Each claim looks at a hundred of the pairs that were noted.
	for (1 .. 20) {
		last if sql('SELECT count(*) FROM mq_rechecks') == 0;
		sql(q{SELECT mq_send('beside') FROM generate_series(1, 200)});
		within(60, $node, $db, $left, 0, '... messages beside it are handled');
	}
	within(120, $node, $db, 'SELECT (SELECT count(*) FROM mq_rechecks), (SELECT count(*) FROM mq_prerequisites)', '0|0', '... and no row is left of what it waited for');
	holds($node, $db, q{SELECT count(*), count(DISTINCT id) FROM handled WHERE id IN (SELECT id FROM ids)}, '10000|10000', '... each was handled once');
}
holds($node, $db, 'SELECT count(*) FROM mq_failures', 0, 'nothing has failed');
$node->stop;
log_is_clean($node);
done_testing();
