# Topics at work: each subscriber gets what was published in the order of the commits, each once, whoever publishes and whatever
# fails elsewhere, while others subscribe and unsubscribe; what was published before somebody unsubscribed is handled; channels
# that nobody takes messages from are named; subscriptions come with a dump; a thousand of them do not make a publish read more.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqReads;
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('topics', 'mq.max_workers' => 2);
my $db = 'postgres';
sub health { return q{SELECT ok, detail FROM mq_health() WHERE "check" = 'subscriptions handled'} }

# --- who takes what ------------------------------------------------------------------------------

$node->safe_psql($db, 'CREATE EXTENSION mq');
holds($node, $db, health(), 't|', 'no subscriptions');
$node->safe_psql($db, q{
	CREATE TABLE effects (e bigserial, channel text, args text, topic text, n int, attempt int);
	CREATE FUNCTION take_effect(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO effects (channel, args, topic, n, attempt) VALUES (m.channel_name, m.channel_args, m.headers ->> 'topic', (m.payload_json ->> 'n')::int, m.attempt);
	  IF m.channel_name = 'failing' AND m.attempt = 1 AND m.payload_json ->> 'n' = '50' THEN RAISE 'once'; END IF;
	END $$;
	SELECT mq_subscribe('orders.*', 'plain'), mq_subscribe('orders.#', 'failing'), mq_subscribe('#', 'all', 'mine'), mq_subscribe('#', 'all', 'other')});
holds($node, $db, health(), q{f|channels have subscribed to topics, but nobody takes their messages: all, failing, plain; mq_register_handler, a consumer outside the server, or mq_unsubscribe},
	'channels that have subscribed and have no handler are named');
my $consumer = $node->background_psql($db);
$consumer->query_safe('LISTEN mq_all');
holds($node, $db, health(), 't|', '... unless there are consumers outside the server');
$consumer->quit;
holds($node, $db, "SELECT ok FROM (@{[health()]}) h", 'f', '... who are gone');
$node->safe_psql($db, q{SELECT mq_register_handler(c, 'take_effect(mq_message)') FROM unnest('{plain,failing,all}'::text[]) c});
holds($node, $db, health(), 't|', 'all have handlers');

# --- in order, to each ---------------------------------------------------------------------------

# Each publisher counts up in the transaction that publishes. Every third takes the row's lock first, the others publish first:
# the number is the place in the order of commits in either case.
$node->safe_psql($db, q{
	CREATE TABLE published (topic int PRIMARY KEY, n int NOT NULL);
	INSERT INTO published SELECT t, 0 FROM generate_series(1, 3) t});
my ($publish, $toggle) = map { $node->basedir . "/$_.sql" } 'publish', 'toggle';
append_to_file($publish, q{
\set t random(1, 3)
BEGIN;
UPDATE published SET n = n + 1 WHERE topic = :t RETURNING n \gset
SELECT count(*) AS sent FROM mq_publish('orders.' || :t, jsonb_build_object('n', :n), ordered => true, retry_backoff => '0.2 s') \gset
COMMIT;
});
# Somebody comes and goes meanwhile.
append_to_file($toggle, q{
SELECT mq_subscribe('orders.*', 'passing', ordered => true) AS subscribed \gset
SELECT mq_unsubscribe('orders.*', 'passing') AS unsubscribed \gset
});
my ($out, $err) = ('', '');
my $toggler = IPC::Run::start([ 'pgbench', '--no-vacuum', '--client=1', '--transactions=100000', '--file', $toggle, $node->connstr($db) ], '>', \$out, '2>', \$err);
$node->command_ok([ 'pgbench', '--no-vacuum', '--client=6', '--transactions=100', '--file', $publish, $node->connstr($db) ],
	'600 are published by 6 clients, while somebody subscribes and unsubscribes');
$toggler->signal('INT');
$toggler->finish;
unlike($err, qr/ERROR/, 'which never fails');
$node->safe_psql($db, q{SELECT mq_unsubscribe('orders.*', 'passing')});
within(60, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE channel_name <> 'passing'}, 0, 'all are handled');
holds($node, $db, 'SELECT channel, args, count(*), count(DISTINCT (topic, n)) FROM effects GROUP BY 1, 2 ORDER BY 1, 2',
	join("\n", 'all|mine|600|600', 'all|other|600|600', 'failing||600|600', 'plain||600|600'), 'each channel got each once');
holds($node, $db, q{
	SELECT count(*) FROM (SELECT n, row_number() OVER (PARTITION BY channel, args, topic ORDER BY e) AS nth FROM effects) o WHERE n <> nth}, 0,
	'each channel got what was published to each topic in the order of the commits');
holds($node, $db, q{
	SELECT count(DISTINCT names) FROM (SELECT string_agg(topic || '/' || n, ' ' ORDER BY e) AS names FROM effects GROUP BY channel, args) o}, 1,
	'... and all of them in one order');
holds($node, $db, q{SELECT string_agg(DISTINCT channel, ',') FROM effects WHERE attempt > 1}, 'failing', 'one failed meanwhile, and was tried again');

# What the passing one got it got in order, and what is pending is handled though it has unsubscribed.
$node->safe_psql($db, q{SELECT count(*) FROM mq_subscribe('orders.*', 'passing')});
$node->safe_psql($db, q{SELECT count(*) FROM mq_publish('orders.4', '{"n": 1}', ordered => true)});
$node->safe_psql($db, q{SELECT mq_unsubscribe('orders.*', 'passing')});
cmp_ok($node->safe_psql($db, q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'passing'}), '>', 0, 'messages are pending in a channel that has unsubscribed');
$node->safe_psql($db, q{SELECT mq_register_handler('passing', 'take_effect(mq_message)')});
within(60, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'they are handled');
holds($node, $db, q{SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY topic ORDER BY e) AS before FROM effects WHERE channel = 'passing') o WHERE n <= before}, 0, '... in order');

# --- publishers that meet ------------------------------------------------------------------------

# To several ordered channels in every order of their subscriptions, together with sends to some of them.
$node->safe_psql($db, q{
	SELECT count(mq_subscribe(format('meet.%s.%s', t, CASE WHEN n % 3 = 0 THEN '#' ELSE '*' END), 'meet', ((n * 7 * t) % 12)::text, ordered => n % 2 = 0))
	  FROM generate_series(1, 3) t, generate_series(1, 12) n;
	SELECT mq_subscribe('meet.#', 'meet', '5', ordered => true)});
my $meet = $node->basedir . '/meet.sql';
append_to_file($meet, q{
\set t random(1, 3)
\set k random(1, 5)
\set how random(1, 4)
\if :how = 1
SELECT count(*) AS sent FROM mq_publish(format('meet.%s.x', :t), ordered => true) \gset
\elif :how = 2
SELECT count(*) AS sent FROM mq_publish(format('meet.%s.x', :t), ordered => true, dedup_key => :k::text) \gset
\elif :how = 3
SELECT count(*) AS sent FROM mq_publish(format('meet.%s.x', :t), dedup_key => :k::text) \gset
\else
SELECT count(*) AS sent FROM mq_send_many('meet', '{1, 2}', channel_args => :k::text, ordered => true) \gset
\endif
});
$node->command_ok([ 'pgbench', '--no-vacuum', '--client=6', '--transactions=150', '--file', $meet, $node->connstr($db) ], 'publishers that meet do not fail');
holds($node, $db, q{SELECT count(*) FROM mq_heads h JOIN mq_msgs m USING (id) WHERE h.channel_name = 'meet' AND m.after_message_id IS NOT NULL
	GROUP BY h.channel_args HAVING count(*) > 1}, '', 'no channel has two heads');
holds($node, $db, q{SELECT count(*) FROM (SELECT FROM mq_msgs WHERE dedup_key IS NOT NULL GROUP BY channel_args, dedup_key HAVING count(*) > 1) d}, 0, '... nor two messages of a key');
$node->safe_psql($db, q{SELECT mq_register_handler('meet', 'take_effect(mq_message)')});
within(60, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'all are handled');

# --- a thousand ----------------------------------------------------------------------------------

my $session = MqSession->new($node, $db);
my $read = q{SELECT count(*) FROM mq_publish('orders.1', '{"n": 0}')};
sub subscribers_read {
	my ($sql) = @_;
	my $so_far = q{SELECT idx_scan, idx_tup_read, idx_tup_fetch FROM pg_stat_user_indexes WHERE indexrelname = 'mq_subscribers_pkey'};
	$session->query('SELECT pg_stat_force_next_flush()');
	my @before = split /\|/, $session->query($so_far);
	$session->query($sql);
	$session->query('SELECT pg_stat_force_next_flush()');
	my @after = split /\|/, $session->query($so_far);
	my ($descents, $entries, $rows) = map { $after[$_] - $before[$_] } 0 .. 2;
	# Those of the rows, and where each descent leads to.
	cmp_ok($entries, '<=', $descents + $rows, "no further entries are read: $entries");
	return "$descents|$rows";
}
my $few = subscribers_read($read);
like($few, qr/^[1-9]\d*\|4$/, "a publish to 4 subscribers goes down the index some times, and reads their rows: $few");
$node->safe_psql($db, q{
	SELECT count(mq_subscribe(format('customers.%s.%s', n, kind), 'c' || n)) FROM generate_series(1, 500) n, unnest('{*,#,paid,orders.1}'::text[]) kind;
	SELECT count(mq_subscribe(format('orders.%s', n + 10), 'd' || n)) FROM generate_series(1, 1000) n});
is(subscribers_read($read), $few, '3,000 subscriptions that do not match do not make it read more');
# Rows that are gone, and that no vacuum has removed.
my $holder = hold_snapshot($node, $db);
$node->safe_psql($db, q{SELECT count(mq_unsubscribe(topic, channel_name)) FROM mq_subscriptions WHERE topic ~ '^(customers|orders\.\d)'});
is(subscribers_read($read), $few, '... nor while their rows cannot be vacuumed');
$holder->quit;
$node->safe_psql($db, q{SELECT count(mq_subscribe('orders.1', 'all', n::text)) FROM generate_series(1, 1000) n});
my ($sent) = $node->safe_psql($db, $read);
is($sent, 1004, 'each that matches gets a message');
within(60, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'which is handled');
$session->quit;

# --- a dump --------------------------------------------------------------------------------------

my $dump = $node->basedir . '/dump.sql';
$node->command_ok([ 'pg_dump', '--file', $dump, $node->connstr($db) ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $node->connstr('restored') ], 'is restored');
my $subscriptions = q{SELECT string_agg(s::text, E'\n' ORDER BY s::text) FROM mq_subscriptions s};
is($node->safe_psql('restored', $subscriptions), $node->safe_psql($db, $subscriptions), 'with the subscriptions');
holds($node, 'restored', q{SELECT count(*) FROM mq_publish('orders.2', '{"n": 0}')}, 4, 'which a publish finds');
holds($node, 'restored', q{SELECT ok FROM mq_health() WHERE "check" = 'database enabled'}, 'f', 'nothing is handled there');
$node->safe_psql('restored', 'SELECT mq_enable()');
within(60, $node, 'restored', 'SELECT count(*) FROM mq_msgs', 0, '... until it is enabled');

# A restore of the subscriptions alone, by pg_restore -t say, disables as well.
$node->safe_psql('restored', q{BEGIN; SET LOCAL row_security = off; COPY mq_subscribers FROM PROGRAM 'true'; COMMIT});
holds($node, 'restored', q{SELECT ok FROM mq_health() WHERE "check" = 'database enabled'}, 'f', 'a restore of subscriptions disables the database');

$node->stop;
log_is_clean($node, qr/WARNING:.*mq_enable/);
done_testing();
