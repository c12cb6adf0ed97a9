# Work starts by itself: with the server, at the commit of CREATE EXTENSION, at the commit of what is sent, and
# when what waits becomes due. The poll interval is an hour, so nothing here is found by looking around.
#
# Flaw 19 of the original: mq_commit woke nobody.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('start');
my $db = 'postgres';
my $names = q{SELECT string_agg(name, ' ' ORDER BY n) FROM handled};

sub forget { $node->safe_psql($db, 'DELETE FROM handled') }

within(10, $node, $db, $MqTest::LAUNCHER, qr/^\d+$/, 'the launcher runs');
$node->safe_psql($db, 'CREATE EXTENSION mq');
within(5, $node, $db, "SELECT count(*) FROM ($MqTest::WORKERS) w", 1, 'a worker comes at the commit of CREATE EXTENSION');
handled_table($node, $db);

# --- what is sent -------------------------------------------------------------------------

$node->safe_psql($db, q{SELECT mq_send('c', name => 'early')});
$node->safe_psql($db, q{SELECT mq_register_handler('c', 'handle(mq_message)')});
within(5, $node, $db, $names, 'early', 'a handler gets what was sent before it was registered');

$node->safe_psql($db, q{SELECT mq_send('c', '{"x": 1}', name => 'a')});
within(5, $node, $db, $names, 'early a', 'a message is handled at once');
holds($node, $db, q{SELECT payload ->> 'x', attempt FROM handled WHERE name = 'a'}, '1|1', 'with its payload, on the first attempt');
holds($node, $db, q{SELECT (SELECT count(*) FROM mq_msgs), (SELECT count(*) FROM mq_payloads)}, '0|0', 'and it is gone');

forget();
my $session = $node->background_psql($db);
$session->query_safe(q{BEGIN; SELECT mq_send('c', name => 'open')});
$node->safe_psql($db, q{SELECT mq_send('c', name => 'meanwhile')});
within(5, $node, $db, $names, 'meanwhile', 'a message is not handled before its transaction commits');
$session->query_safe('COMMIT');
within(5, $node, $db, $names, 'meanwhile open', 'but then');
$session->query_safe(q{BEGIN; SELECT mq_send('c', name => 'not sent'); ROLLBACK});
$session->query_safe(q{BEGIN; SAVEPOINT s; SELECT mq_send('c', name => 'not sent'); ROLLBACK TO s; SELECT mq_send('c', name => 'sent'); COMMIT});
within(5, $node, $db, $names, 'meanwhile open sent', 'what was rolled back is never handled');

forget();
$node->safe_psql($db, q{SELECT mq_send_many('c', ARRAY['1', '2', '3']::jsonb[], ordered => true)});
within(5, $node, $db, q{SELECT string_agg(payload::text, ' ' ORDER BY n) FROM handled}, '1 2 3', 'mq_send_many wakes');
$node->safe_psql($db, q{SELECT mq_insert(ARRAY[(gen_random_uuid(), '0', 4, '1 s', 'c', '', NULL, false, 'inserted', '4', NULL)::mq_new_t])});
within(5, $node, $db, $names, qr/inserted$/, 'mq_insert wakes');

# Each of many wake-ups counts: one that was lost would cost an hour.
forget();
$session->query_safe("SELECT mq_send('c', name => '$_')") for 1 .. 200;
within(10, $node, $db, 'SELECT count(*) FROM handled', 200, 'no wake-up is lost');

# --- what becomes due ---------------------------------------------------------------------

forget();
$node->safe_psql($db, q{
	SELECT mq_send('c', name => 'never', delay => '1 h');
	SELECT mq_send('c', '{}', name => 'delayed', delay => '1.5 s');
	SELECT mq_send('c', '{}', name => 'sooner', delay => '0.5 s');
	CREATE TABLE sent AS SELECT now() AS at;});
within(6, $node, $db, $names, 'sooner delayed', 'delayed messages are handled when they are due, the sooner first');
holds($node, $db, q{SELECT string_agg(name, ' ') FROM handled, sent
	WHERE handled.at < sent.at + CASE name WHEN 'sooner' THEN interval '0.4 s' ELSE interval '1.4 s' END}, '', 'and not before');

forget();
$node->safe_psql($db, q{
	CREATE FUNCTION fail_twice(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  IF message.attempt < 3 THEN RAISE 'not yet' USING ERRCODE = 'XX123', DETAIL = 'Attempt ' || message.attempt; END IF;
	  PERFORM handle(message);
	END $$;
	SELECT mq_register_handler('failing', 'fail_twice(mq_message)');
	SELECT mq_send('failing', name => 'retried', retry_backoff => '0.5 s');});
within(10, $node, $db, q{SELECT name, attempt FROM handled}, 'retried|3', 'a message that fails twice is handled on the third attempt');
holds($node, $db, q{SELECT attempt, channel_name, name, sqlstate, error, detail FROM mq_failures ORDER BY attempt},
	"1|failing|retried|XX123|not yet|Attempt 1\n2|failing|retried|XX123|not yet|Attempt 2", 'both failures are on record');
holds($node, $db, q{
	WITH attempts AS (SELECT attempt, failed_at AS at FROM mq_failures UNION ALL SELECT attempt, at FROM handled),
	     waits AS (SELECT attempt, at - lag(at) OVER (ORDER BY attempt) AS wait FROM attempts)
	SELECT attempt, wait >= '0.5 s'::interval * (attempt - 1) FROM waits WHERE attempt > 1 ORDER BY attempt}, "2|t\n3|t",
	'each retry comes after the backoff, which has doubled');

$node->safe_psql($db, q{SELECT mq_send('failing', name => 'dies', retries => 1, retry_backoff => '0.1 s')});
within(10, $node, $db, q{SELECT name, attempts_made, reason, error FROM mq_dead}, 'dies|2|exhausted|not yet', 'a message without attempts_made left is dead');
forget();
$node->safe_psql($db, q{SELECT mq_unregister_handler('failing'); SELECT mq_register_handler('failing', 'handle(mq_message)')});
holds($node, $db, 'SELECT mq_redrive()', 1, 'a dead letter is redriven');
within(5, $node, $db, $names, 'dies', 'and handled at once');

# A consumer outside took a message and was not heard of again; another deletes the head of a channel.
forget();
$node->safe_psql($db, q{
	SELECT mq_send('outside', name => 'polled', retry_backoff => '1 s');
	SELECT mq_poll(ARRAY['outside']);
	SELECT mq_register_handler('outside', 'handle(mq_message)')});
within(6, $node, $db, $names, 'polled', 'a message whose lease runs out is handled then');
forget();
$node->safe_psql($db, q{
	SELECT mq_pause('outside');
	SELECT mq_send('outside', name => 'head', ordered => true, retry_backoff => '1 h', id => md5('head')::uuid);
	SELECT mq_send('outside', name => 'next', ordered => true);
	SELECT mq_poll(ARRAY['outside'], 10);
	SELECT mq_resume('outside');
	SELECT mq_send('outside', name => 'beside')});
within(5, $node, $db, $names, 'beside', 'the head of an ordered channel is leased');
$node->safe_psql($db, q{SELECT mq_delete(ARRAY[md5('head')::uuid])});
within(5, $node, $db, $names, 'beside next', 'the next message is handled when somebody deletes the head');

# --- other things that make messages ready --------------------------------------------------

forget();
$node->safe_psql($db, q{SELECT mq_send('c', name => 'two-phase', commit_interval => '1 h', id => md5('two-phase')::uuid); SELECT mq_send('c', name => 'plain')});
within(5, $node, $db, $names, 'plain', 'a two-phase message is not handled');
$node->safe_psql($db, q{SELECT mq_commit(ARRAY[md5('two-phase')::uuid])});
within(5, $node, $db, $names, 'plain two-phase', 'until mq_commit, which wakes');

forget();
holds($node, $db, q{SELECT mq_pause('c')}, 't', 'a channel is paused');
$node->safe_psql($db, q{SELECT mq_send('c', name => 'paused'); SELECT mq_send('failing', name => 'not paused')});
within(5, $node, $db, $names, 'not paused', 'its messages wait');
holds($node, $db, q{SELECT mq_resume('c')}, 't', 'and is resumed');
within(5, $node, $db, $names, 'not paused paused', 'which wakes');

forget();
$node->safe_psql($db, q{SELECT mq_send('none', name => 'new', retries => 0, delay => '0.2 s');
	SELECT mq_register_handler('none', 'handle(mq_message)', message_name => 'other')});
within(5, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE attempt_at = 'infinity'}, 1, 'a message whose name no handler takes is put aside');
$node->safe_psql($db, q{SELECT mq_register_handler('none', 'handle(mq_message)', message_name => 'new')});
within(5, $node, $db, $names, 'new', 'until one is registered for it, which wakes');

# --- the server starts ----------------------------------------------------------------------

# Nobody connects: the handler writes to the server's log.
$node->safe_psql($db, q{
	CREATE FUNCTION handle_aloud(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM handle(message);
	  RAISE LOG 'handled: %', message.name;
	END $$;
	SELECT mq_register_handler('aloud', 'handle_aloud(mq_message)');
	SELECT mq_pause('aloud');
	SELECT mq_send('aloud', name => 'ready at the start');
});
forget();
$session->quit;
for my $mode ('fast', 'immediate') {
	$node->safe_psql($db, qq{DELETE FROM mq_paused; SELECT mq_send('aloud', name => 'sent before $mode', delay => '1 s')});
	my $offset = -s $node->logfile;
	$node->stop($mode);
	$node->start;
	$node->wait_for_log(qr/handled: sent before $mode/, $offset);
	pass("what is pending at a $mode stop is handled after the start, without anybody connecting");
}
within(10, $node, $db, q{SELECT string_agg(name, ' / ' ORDER BY name) FROM handled},
	'ready at the start / sent before fast / sent before immediate', 'each once');

$node->stop;
log_is_clean($node);
done_testing();
