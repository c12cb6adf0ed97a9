# Message names that no handler takes, with live workers: such messages wait at nobody's cost, and are handled when a
# handler is registered, whoever put them aside and whenever that commits.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('unhandled', 'mq.max_workers' => 3);
my $db = 'postgres';
my $aside = q{SELECT count(*) FROM mq_msgs WHERE attempt_at = 'infinity'};
my $left = 'SELECT count(*) FROM mq_msgs';

$node->safe_psql($db, 'CREATE EXTENSION mq');
handled_table($node, $db);
$node->safe_psql($db, q{
	CREATE FUNCTION handle_all(messages mq_message[]) RETURNS void LANGUAGE sql AS $$
	  INSERT INTO handled (name, payload) SELECT m.name, m.payload_json FROM unnest(messages) AS m
	$$;
	SELECT mq_register_handler('c', 'handle(mq_message)', 'known');
	SELECT mq_register_handler('l', 'handle(mq_message)', 'known', mode => 'leased');
	SELECT mq_register_handler('b', 'handle_all(mq_message[])', 'known')});

# --- a hundred names, thousands of messages, in every mode ---------------------------------------

$node->safe_psql($db, q{
	SELECT count(mq_send(c, to_jsonb(n), 'name ' || n % 100, retries => 0)) FROM unnest('{c,b}'::text[]) AS c, generate_series(1, 2000) AS n;
	SELECT count(mq_send('l', to_jsonb(n), 'name ' || n % 100, retries => 0)) FROM generate_series(1, 100) AS n});
within(30, $node, $db, $aside, 4100, 'messages that no handler takes are put aside');
$node->safe_psql($db, q{SELECT count(mq_send(c, '0', 'known')) FROM unnest('{c,b,l}'::text[]) AS c});
within(10, $node, $db, q{SELECT count(*) FROM handled WHERE name = 'known'}, 3, 'others of their channels are handled');
holds($node, $db, q{SELECT count(*) FROM mq_failures}, 0, 'and nothing was charged');
holds($node, $db, q{SELECT ok FROM mq_health() WHERE "check" = 'message names handled'}, 'f', 'mq_health() tells of them');
$node->safe_psql($db, q{SELECT mq_register_handler(c, 'handle(mq_message)', 'name 42', mode => CASE c WHEN 'l' THEN 'leased' ELSE 'transactional' END)
	FROM unnest('{c,l,b}'::text[]) AS c});
within(20, $node, $db, q{SELECT count(*) FROM handled WHERE name = 'name 42'}, 41, 'those of a name are handled when its handler is registered');
within(20, $node, $db, $left, 4059, 'and no others');
$node->safe_psql($db, q{SELECT mq_register_handler('c', 'handle(mq_message)'), mq_register_handler('b', 'handle_all(mq_message[])'),
	mq_register_handler('l', 'handle(mq_message)', mode => 'leased')});
within(60, $node, $db, $left, 0, 'the rest when one for all names is');
holds($node, $db, q{SELECT count(*), count(DISTINCT (name, payload)) FROM handled WHERE name <> 'known'}, '4100|2000', 'each once');
holds($node, $db, q{SELECT ok FROM mq_health() WHERE "check" = 'message names handled'}, 't', 'and mq_health() is content');

# --- order --------------------------------------------------------------------------------------

$node->safe_psql($db, q{
	TRUNCATE handled;
	SELECT mq_register_handler('o', 'handle(mq_message)', 'known');
	SELECT count(mq_send('o', to_jsonb(n), CASE WHEN n % 3 = 0 THEN 'new' ELSE 'known' END, args, ordered => true))
	  FROM unnest('{x,y}'::text[]) AS args, generate_series(1, 9) AS n});
within(10, $node, $db, q{SELECT string_agg(payload::text, ' ' ORDER BY payload) FROM handled}, '1 1 2 2', 'an ordered channel waits behind such a message');
within(10, $node, $db, $aside, 2, 'which is put aside at its head');
$node->safe_psql($db, q{SELECT mq_register_handler('o', 'handle(mq_message)', 'new')});
within(10, $node, $db, q{SELECT string_agg(payload::text, '' ORDER BY n) ~ '^(?=.*1.*2.*3.*4.*5.*6.*7.*8.*9).*$', count(*) FROM handled}, 't|18', 'and goes on in order');

# --- put aside by those who knew the old handlers -----------------------------------------------

# A transaction that handles messages commits after the registration: the sweep finds what it has put aside.
set_and_reload($node, 'mq.poll_interval' => '1s');
$node->safe_psql($db, q{
	TRUNCATE handled;
	SELECT mq_pause('c');
	SELECT mq_unregister_handler('c');
	SELECT count(*) FROM mq_send_many('c', array_fill('1'::jsonb, ARRAY[700]), name => 'late')});
my $session = $node->background_psql($db);
$session->query_safe('BEGIN');
$session->query_safe('DELETE FROM mq_paused');
$session->query_safe('CALL mq_run()');
is($session->query_safe($aside), 700, 'a transaction has put messages aside, and is open');
$node->safe_psql($db, q{SELECT mq_register_handler('c', 'handle(mq_message)')});
$session->query_safe('COMMIT');
$session->quit;
within(30, $node, $db, $left, 0, 'they are handled though their handler was registered meanwhile');

# Registrations come and go while messages are sent: nothing is left, nothing is handled twice.
$node->safe_psql($db, 'TRUNCATE handled');
for my $round (1 .. 15) {
	$node->safe_psql($db, qq{SELECT mq_register_handler('r', 'handle(mq_message)', 'known')}) if $round == 1;
	$node->safe_psql($db, qq{SELECT count(*) FROM mq_send_many('r', array_fill('$round'::jsonb, ARRAY[20]), name => 'coming and going')});
	$node->safe_psql($db, $round % 2 ? q{SELECT mq_register_handler('r', 'handle(mq_message)', 'coming and going')}
		: q{SELECT mq_unregister_handler('r', 'coming and going')});
}
within(30, $node, $db, $left, 0, 'registrations that come and go leave nothing behind');
holds($node, $db, q{SELECT count(*), count(DISTINCT payload) FROM handled}, '300|15', 'and each message is handled once');

# --- the last handler goes ----------------------------------------------------------------------

$node->safe_psql($db, q{
	SELECT mq_register_handler('gone', 'handle(mq_message)', 'known');
	SELECT mq_send('gone', '1', 'new')});
within(10, $node, $db, $aside, 1, 'put aside');
$node->safe_psql($db, q{SELECT mq_unregister_handler('gone', 'known')});
within(10, $node, $db, $aside, 0, 'a channel without any handler is for consumers outside again');
holds($node, $db, q{SELECT name FROM mq_poll('{gone}')}, 'new', 'who can poll it');
$node->safe_psql($db, 'SELECT mq_clear_all()');

# --- a worker that starts -----------------------------------------------------------------------

set_and_reload($node, 'mq.poll_interval' => '1h');
$node->safe_psql($db, q{
	TRUNCATE handled;
	SELECT mq_send('o', '1', 'newest'); SELECT mq_send('o', '2', 'newest', expires => '1 s')});
within(10, $node, $db, q{SELECT reason, payload_json FROM mq_dead}, 'expired|2', 'one that expires is dead by then');
within(10, $node, $db, $aside, 1, 'the other waits');
set_and_reload($node, 'mq.max_workers' => 0);
within(10, $node, $db, "SELECT count(*) FROM ($MqTest::WORKERS) w", 0, 'no worker is there');
$node->safe_psql($db, q{SELECT mq_register_handler('o', 'handle(mq_message)')});
$node->restart;
set_and_reload($node, 'mq.max_workers' => 2);
within(20, $node, $db, q{SELECT name, payload FROM handled}, 'newest|1', 'and is handled by a worker that starts after the registration');

$node->stop;
log_is_clean($node);
done_testing();
