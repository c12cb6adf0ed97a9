# Ordered channels whose head a user deleted: consumers that poll once in each session come to all of them. A channel that has its
# head keeps it, also if a look for lost heads was broken off within it while its messages were not committed.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use Test::More;

my $node = mq_node('lost_heads', 'mq.max_workers' => 0, autovacuum => 'off');
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }

# A poll that finds nothing looks at 4 to 50 channels. The one whose head is lost is the last of 100.
sql(q{
	CREATE EXTENSION mq;
	SELECT count(mq_send('c', name => n, channel_args => args::text, ordered => true, delay => '1 hour'))
	  FROM generate_series(1, 100) args, unnest('{head,next}'::text[]) n;
	UPDATE mq_msgs SET attempt_at = now() - interval '1 minute'
	 WHERE message_name = 'next' AND channel_key = (SELECT max(channel_key) FROM mq_msgs);
	DELETE FROM mq_msgs WHERE message_name = 'head' AND channel_key = (SELECT max(channel_key) FROM mq_msgs)});
my $poll = q{SELECT name FROM mq_poll('{c}', 10) WHERE name IS NOT NULL;};
# Its lease may run out meanwhile, and another session get it, too.
like(sql(join "\n", map { "\\c\n$poll" } 1 .. 400), qr/^next$/m, 'one of 400 sessions finds what is behind the lost head');

# A look ends after 20,000 rows that it does not see, and the next one of the session goes on there.
sql('TRUNCATE mq_msgs');
my ($sender, $consumer) = map { MqSession->new($node, $db) } 1 .. 2;
$sender->query(q{BEGIN; SELECT count(*) FROM mq_send_many('c', array_fill('{}'::jsonb, ARRAY[30000]), ordered => true)});
is($consumer->query(q{SELECT count(id) FROM mq_poll('{c}')}), 0, 'a poll finds nothing of what is not committed');
$sender->query('COMMIT');
is($sender->query(q{SELECT count(id) FROM mq_poll('{c}')}), 1, 'the first message is leased');
is($consumer->query(q{SELECT count(id) FROM mq_poll('{c}')}), 0, 'nobody is given another one before it is deleted') for 1 .. 3;
holds($node, $db, q{SELECT count(*) FROM mq_msgs WHERE after_message_id = '00000000-0000-0000-0000-000000000000'}, 1, 'the channel has one head');
$_->quit for $sender, $consumer;

done_testing();
