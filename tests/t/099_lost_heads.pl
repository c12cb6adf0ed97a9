# Ordered channels whose head a user deleted: consumers that poll once in each session come to all of them.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
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

done_testing();
