# Many clients that send with few keys while workers handle what they send: no error, no deadlock, nothing handled
# twice, never two pending messages of a key, and every id that was returned names a message that was sent.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('dedup', 'mq.max_workers' => 3, 'mq.poll_interval' => '500ms');
my $db = 'postgres';
$node->safe_psql($db, q{
	CREATE EXTENSION mq;
	CREATE TABLE handled (n bigserial, id uuid, channel text, ordered boolean);
	CREATE TABLE returned (id uuid);
	CREATE FUNCTION take(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO handled (id, channel, ordered) VALUES (message.id, message.channel_args, message.ordered);
	  IF message.attempt = 1 AND random() < 0.1 THEN RAISE 'this once'; END IF;
	  IF random() < 0.1 THEN PERFORM pg_sleep(0.005); END IF;
	END $$;
	-- A handler sends, too.
	CREATE FUNCTION take_and_send(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM take(message);
	  PERFORM mq_send('plain', channel_args => message.channel_args, dedup_key => '1');
	END $$;
	SELECT mq_register_handler('plain', 'take(mq_message)'), mq_register_handler('sending', 'take_and_send(mq_message)')});
my %mix = (
	commit => [ 60, 'COMMIT;' ],
	rollback => [ 15, 'ROLLBACK;' ],
	again => [ 15, q{SAVEPOINT s; INSERT INTO returned SELECT mq_send(:channel, channel_args => :args, ordered => :ordered = 1,
		dedup_key => :key, retry_backoff => '0.01 s'); ROLLBACK TO s; COMMIT;} ],
	delete => [ 10, 'SELECT mq_delete(ARRAY[:id]::uuid[]); COMMIT;' ]);
my @files;
for my $name (sort keys %mix) {
	my ($weight, $end) = @{ $mix{$name} };
	$end =~ s/\n\s*/ /g;
	my $file = $node->basedir . "/$name.sql";
	append_to_file($file, join "\n", '\set k random(1, 3)', '\set a random(1, 2)', '\set ordered random(0, 1)', '\set c random(0, 3)',
		'\set ms random(0, 4)', q{SELECT 'key ' || :k AS key, 'args ' || :a AS args, CASE WHEN :c = 0 THEN 'sending' ELSE 'plain' END AS channel \gset},
		'BEGIN;', q{SELECT mq_send(:channel, channel_args => :args, ordered => :ordered = 1, dedup_key => :key, retry_backoff => '0.01 s') AS id \gset},
		'INSERT INTO returned VALUES (:id);', '\sleep :ms ms', $end, '');
	push @files, '--file', "$file\@$weight";
}
my $seed = $ENV{MQ_SEED} // int(rand(2**31));
note "MQ_SEED=$seed";
$node->command_checks_all([ 'pgbench', '--no-vacuum', '--protocol=prepared', '--client=8', '--time=5', "--random-seed=$seed", @files,
		$node->connstr($db) ],
	0, [qr/number of failed transactions: 0/], [qr/^(?!.*(error|aborted))/s], 'eight clients send with few keys');
within(10, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'everything is handled');
holds($node, $db, 'SELECT count(*) - count(DISTINCT id), count(*) > 200 FROM handled', '0|t', 'once');
holds($node, $db, 'SELECT (SELECT count(*) FROM mq_dead), (SELECT count(*) FROM mq_payloads), (SELECT count(*) FROM mq_headless)', '0|0|0', 'nothing else is left');
my ($sent, $returned) = split /\|/, $node->safe_psql($db, 'SELECT count(DISTINCT id), count(*) FROM returned');
cmp_ok($returned, '>', $sent, "$returned calls sent $sent messages");

# A message that has expired while its leased call goes on beyond its lease is the call's: the key is still taken.
my $holder = $node->background_psql($db);
$holder->query_safe('SELECT pg_advisory_lock(1)');
$node->safe_psql($db, q{
	CREATE PROCEDURE wait(message mq_message) LANGUAGE sql AS $$
	  SELECT pg_advisory_lock_shared(1); INSERT INTO handled (id, channel) VALUES ((message).id, 'leased') $$;
	SELECT mq_register_handler('leased', 'wait(mq_message)', mode => 'leased')});
my $id = $node->safe_psql($db, q{SELECT mq_send('leased', dedup_key => 'k', expires => '1 hour')});
within(20, $node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND application_name = 'mq handler'}, 1, 'a leased call runs');
$node->safe_psql($db, q{UPDATE mq_msgs SET attempt_at = now() - interval '1 s', expires_at = now() - interval '1 s' WHERE channel_name = 'leased'});
my $sender = $node->background_psql($db);
is($sender->query_safe(q{BEGIN; SELECT mq_send('leased', dedup_key => 'k')}), $id, 'its key is taken while the call goes on');
holds($node, $db, 'SELECT count(*) FROM mq_dead', 0, 'and it is not dead');
# The sender's transaction stays open, and has nothing locked that the call's end waits for.
$holder->query_safe('SELECT pg_advisory_unlock(1)');
within(20, $node, $db, qq{SELECT count(*) FROM handled WHERE id = '$id'}, 1, 'it is handled');
within(20, $node, $db, 'SELECT (SELECT count(*) FROM mq_msgs), (SELECT count(*) FROM mq_dead)', '0|0', 'and gone');
$sender->query_safe('COMMIT');
$_->quit for $holder, $sender;

$node->stop;
log_is_clean($node);
done_testing();
