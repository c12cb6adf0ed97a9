# Where the library cannot be preloaded everything works but the workers: CALL mq_run() does their work.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('no_preload', shared_preload_libraries => '', 'mq.poll_interval' => '5s');
my $db = 'postgres';
my $names = q{SELECT string_agg(name, ' ' ORDER BY n) FROM handled};

$node->safe_psql($db, 'CREATE EXTENSION mq');
handled_table($node, $db);
$node->safe_psql($db, q{
	CREATE FUNCTION fail_once(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  IF message.attempt = 1 THEN RAISE 'not yet'; END IF;
	  PERFORM handle(message);
	END $$;
	SELECT mq_register_handler('c', 'handle(mq_message)');
	SELECT mq_register_handler('failing', 'fail_once(mq_message)');
	SELECT mq_send('c', name => 'a', ordered => true);
	SELECT mq_send('c', name => 'b', ordered => true);
	SELECT mq_send('c', name => 'later', delay => '1 h');
	SELECT mq_send('failing', name => 'retried', retry_backoff => '0.5 s')});

holds($node, $db, 'CALL mq_run()', 2, 'mq_run handles what is ready');
holds($node, $db, $names, 'a b', 'in order');
holds($node, $db, 'SELECT count(*), min(attempt) FROM mq_failures', '1|1', 'and charges what fails');
within(5, $node, $db, 'CALL mq_run()', 1, 'what is due again is handled by the next call');
holds($node, $db, 'CALL mq_run()', 0, 'then nothing is ready');

$node->safe_psql($db, q{SELECT mq_send('c', name => 'c' || n), mq_send('d', name => 'd') FROM generate_series(1, 10) n});
holds($node, $db, 'CALL mq_run(max_messages => 3)', 3, 'no more than max_messages');
holds($node, $db, q{CALL mq_run(ARRAY['d'])}, 0, 'the named channels only');
$node->safe_psql($db, q{BEGIN; CALL mq_run(); ROLLBACK});
holds($node, $db, 'SELECT count(*) FROM mq_msgs m JOIN mq_payloads USING (id) WHERE m.channel_name = \'c\'', 8, 'inside a transaction it is a part of that');
holds($node, $db, 'CALL mq_run()', 7, 'and comes again after a rollback');

# Two sessions at once.
$node->safe_psql($db, q{TRUNCATE handled; SELECT mq_send_many('c', array_agg(to_jsonb(n)), ordered => n % 2 = 0) FROM generate_series(1, 2000) n GROUP BY n % 2});
my @sessions = map { $node->background_psql($db) } 1 .. 2;
$_->query_until(qr/^$/, "CALL mq_run();\n") for @sessions;
within(20, $node, $db, 'SELECT count(*), count(DISTINCT payload) FROM handled', '2000|2000', 'two sessions share the work, each message once');
holds($node, $db, q{SELECT count(*) FROM (SELECT payload::int - lag(payload::int) OVER (ORDER BY n) AS step FROM handled WHERE payload::int % 2 = 0) s WHERE step <> 2}, 0,
	'ordered ones in their order');
$_->quit for @sessions;

# As a consumer outside does.
$node->safe_psql($db, q{SELECT mq_send('outside', name => 'polled', retry_backoff => '1 h')});
holds($node, $db, q{SELECT name FROM mq_poll(ARRAY['outside'])}, 'polled', 'mq_poll works');
holds($node, $db, q{SELECT mq_delete(array_agg(id)) FROM mq_msgs WHERE channel_name = 'outside'}, '', 'mq_delete works');
$node->safe_psql($db, 'DROP FUNCTION handle, handle_slowly, fail_once; DROP EXTENSION mq');

$node->stop;
log_is_clean($node);
done_testing();
