# How many messages a batch takes: as many as can be handled in a fifth of a second, no more than mq.batch_size and than
# their handlers allow. No time is measured: calls that sleep bound how many fit, and calls that do not are many.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('pace', 'mq.max_workers' => 0);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
sub is_now {
	my ($query, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return holds($node, $db, $query, $expected, $what);
}

sql($MqTest::CLAIMED);
sql(q{
	CREATE EXTENSION mq;
	CREATE SEQUENCE calls;
	CREATE TABLE done (n bigserial, channel text, name text, batch xid8 DEFAULT pg_current_xact_id(), claimed int);
	CREATE TABLE given (messages int);
	CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO done (channel, name, claimed) VALUES (m.channel_name, m.name, CASE WHEN m.payload_json ? 'claimed'
		THEN claimed() END);
	  IF m.payload_json ? 'sleeps' THEN PERFORM pg_sleep((m.payload_json ->> 'sleeps')::float8); END IF;
	  IF m.payload_json ? 'waits' THEN PERFORM pg_advisory_xact_lock_shared(1); END IF;
	  IF m.payload_json ? 'removes' THEN PERFORM mq_delete(array_agg(id)) FROM mq_payloads
		WHERE name = m.payload_json ->> 'removes'; END IF;
	  IF m.payload_json ? 'conflicts' AND nextval('calls') = 1 THEN RAISE serialization_failure; END IF;
	  IF m.payload_json ? 'fails' THEN RAISE 'on purpose'; END IF;
	END $$;
	CREATE FUNCTION handle_all(m mq_message[]) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO given VALUES (cardinality(m));
	  PERFORM handle(one) FROM unnest(m) AS one;
	END $$;
	CREATE FUNCTION fill(channel text, count int, payload jsonb DEFAULT '{}', name text DEFAULT 'n',
		ordered boolean DEFAULT false) RETURNS void
	LANGUAGE sql AS $$ SELECT count(mq_send(channel, payload, name, ordered => ordered, retries => 0))
		FROM generate_series(1, count) $$});
sub start_over {
	sql(q{SELECT mq_clear_all(), mq_unregister_handler(channel_name, message_name) FROM mq_handlers; SELECT mq_clear_all();
	      TRUNCATE done, given; DELETE FROM mq_dead; ALTER SEQUENCE calls RESTART});
}
sub handle { my ($channel, @more) = @_; sql('SELECT mq_register_handler(' . join(', ', "'$channel'", q{'handle(mq_message)'},
	@more) . ')') }
my $largest = 'SELECT max(count) FROM (SELECT count(*) FROM done GROUP BY batch) AS b';

# --- what fits ---------------------------------------------------------------------------------------

handle('c');
sql(q{SELECT fill('c', 20, '{"sleeps": 0.03}'); CALL mq_run()});
is_now("SELECT count(*), ($largest) BETWEEN 1 AND 7 FROM done", '20|t',
	'a batch ends with its slice of time, and the rest is claimed again');

# A session handles slow messages; it waits in one of a later batch, and another counts what it has locked.
start_over();
handle('c');
my ($runner, $holder) = map { MqSession->new($node, $db) } 1 .. 2;
$holder->query('SELECT pg_advisory_lock(1)');
sql(q{SELECT fill('c', 16, '{"sleeps": 0.03}'), fill('c', 1, '{"waits": 1}'), fill('c', 80, '{"sleeps": 0.001}')});
my $before = sql('SELECT count(*) FROM mq_msgs');
$runner->start('CALL mq_run()');
is($before - sql(q{SELECT count(*) FROM (SELECT FROM mq_msgs FOR UPDATE SKIP LOCKED) AS m}) <= 17 + 8 ? 'few' : 'many', 'few',
	'later batches claim no more than fits');
cmp_ok(sql('SELECT count(DISTINCT batch) FROM done'), '>', 1, '... and were there');
$holder->query('SELECT pg_advisory_unlock_all()');
unlike($runner->result, qr/error/, 'all is handled');
is_now('SELECT count(*) FROM done', 97, '... once');
$_->quit for $runner, $holder;

for my $ordered ('false', 'true') {
	start_over();
	handle('c');
	sql("SELECT fill('c', 3000, ordered => $ordered); CALL mq_run()");
	is_now("SELECT count(*), ($largest) > 100 FROM done", '3000|t', "batches of quick messages grow, from 64 on, ordered $ordered");
}
start_over();
handle('c');
sql(q{SELECT fill('c', 4, '{"sleeps": 0.25}'), fill('c', 3000); CALL mq_run()});
is_now("SELECT count(*), ($largest) > 100 FROM done", '3004|t', 'they grow again behind slow ones');

# --- what is allowed -----------------------------------------------------------------------------------

start_over();
handle('c');
sql(q{SELECT fill('c', 100); SET mq.batch_size = 7; CALL mq_run()});
is_now("SELECT count(*), ($largest) FROM done", '100|7', 'no batch has more than mq.batch_size');
start_over();
sql(q{SELECT mq_register_handler('c', 'handle_all(mq_message[])', batch_size => 3), fill('c', 10); CALL mq_run()});
is_now("SELECT count(*), ($largest), (SELECT max(messages) FROM given) FROM done", '10|3|3',
	'a handler gets no more than its batch_size, nor has its channel more in a batch');
for my $channel ('c', '') {
	start_over();
	sql(qq{SELECT mq_register_handler('$channel', 'handle_all(mq_message[])', batch_size => 100), mq_register_handler('$channel',
		'handle_all(mq_message[])', 'single', batch_size => 1);
	      SELECT fill('$channel', 1, name => CASE i % 2 WHEN 1 THEN 'n' ELSE 'single' END, ordered => true)
		FROM generate_series(1, 40) AS i; CALL mq_run()});
	is_now(q{SELECT count(*), max(single) FROM (SELECT batch, count(*) FILTER (WHERE name = 'single') AS single FROM done
		GROUP BY 1) AS b}, '20|1',
		"batch_size holds for each handler of a channel, '$channel'");
	is_now(q{SELECT count(*), bool_and(name = CASE i % 2 WHEN 1 THEN 'n' ELSE 'single' END)
		FROM (SELECT name, row_number() OVER (ORDER BY n) AS i FROM done) AS d}, '40|t',
		'... in their order');
}
# Which channel a claim begins with is drawn.
for my $round (1 .. 6) {
	start_over();
	handle('a', 'batch_size => 500');
	handle('a', q{message_name => 'single'}, 'batch_size => 1');
	handle('b');
	sql(q{SELECT fill('a', 30, name => 'single'), fill('b', 10); CALL mq_run()});
	is_now(q{SELECT min(n) FILTER (WHERE channel = 'b') < min(n) + 11, count(*) FILTER (WHERE channel = 'b'
		AND batch = (SELECT batch FROM done ORDER BY n LIMIT 1)), count(*) FROM done},
		't|10|40', "a handler that has had its fill does not shut out other channels ($round)");
}

# --- workers ---------------------------------------------------------------------------------------------

set_and_reload($node, 'mq.max_workers' => 1);
sub all_handled { local $Test::Builder::Level = $Test::Builder::Level + 1; return within(60, $node, $db,
	'SELECT count(*) FROM mq_msgs', 0, $_[0]) }
sub warm {
	my (@channels) = @_;
	for my $round (1 .. 3) {
		sql(join ';', map { "SELECT fill('$_', 300)" } @channels);
		value_within(60, $node, $db, 'SELECT count(*) FROM mq_msgs', 0);
	}
	sql('TRUNCATE done');
}

start_over();
sql(q{SELECT mq_register_handler('b', 'handle_all(mq_message[])'), fill('b', 150, '{"sleeps": 0.01}')});
all_handled('a batch handler that takes long');
is_now(q{SELECT sum(count), count(*) > 2, max(count) FILTER (WHERE i > 1) <= 20
	FROM (SELECT count(*), row_number() OVER (ORDER BY min(n)) AS i FROM done GROUP BY batch) AS b},
	'150|t|t', '... is given no more than it can do in its slice, once that is known');

start_over();
handle('c');
warm('c');
sql(q{SELECT fill('c', 1, '{"removes": "victim", "claimed": 1}'), fill('c', 1, '{}', 'victim'), fill('c', 300, '{"claimed": 1}')});
all_handled('a call that changes others');
# It takes some milliseconds, which the next batch allows for; after a collision each batch would be of one message.
is_now(q{SELECT count, (SELECT max(claim) FROM unnest(claims[2:]) AS claim) > 1
	FROM (SELECT count(*), array_agg(claimed ORDER BY n) FILTER (WHERE claimed IS NOT NULL) AS claims FROM done) AS d}, '301|t',
	'... ends its batch, but counts as no collision');

start_over();
handle($_) for 'c', 'd';
warm('c', 'd');
sql(q{SELECT fill('c', 1, '{"conflicts": 1}'), fill('c', 300, '{"claimed": 1}', 'in'), fill('d', 300, '{"claimed": 1}', 'in')});
all_handled('a call that conflicts');
is_now(q{SELECT count(*), max(claimed) FILTER (WHERE channel = 'c') >= 10, max(claimed) FILTER (WHERE channel = 'd') >= 10
	FROM done}, '601|t|t', '... makes no batches of one message');
is_now('SELECT count(*) FROM mq_failures', 0, '... and is not charged');

# The others of a flooded channel's worker.
start_over();
handle($_) for 'a', 'b';
sql(q{SELECT fill('a', 60, '{"sleeps": 0.05}'), fill('b', 3)});
all_handled('a flood of slow messages');
is_now(q{SELECT count(*) < 10 FROM done WHERE n <= (SELECT max(n) FROM done WHERE channel = 'b') AND channel = 'a'}, 't',
	'... does not shut out another channel');

# The rows that a subtransaction has written have its id.
start_over();
handle('c');
warm('c');
sql(q{SELECT fill('c', 1, CASE i % 2 WHEN 0 THEN '{"fails": 1}'::jsonb ELSE '{}' END) FROM generate_series(1, 400) AS i});
all_handled('a queue of which every other message fails');
is_now('SELECT (SELECT count(*) FROM done), (SELECT count(*) FROM mq_dead), max(count) <= 60
	FROM (SELECT count(DISTINCT xmin::text) FROM done GROUP BY batch) AS b', '200|200|t',
	'... takes no more subtransactions for a batch than the server remembers without effort');

$node->stop;
log_is_clean($node);
done_testing();
