# What shares a transaction with what: slow calls and quick ones, retries, calls that conflict or collide, channels with a
# limit of workers, and messages whose result cannot be written.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('sharing', 'mq.max_workers' => 1);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
sub is_now {
	my ($query, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return holds($node, $db, $query, $expected, $what);
}

# A failure tells what claimed() says.
sql($MqTest::CLAIMED);
sql(q{
	CREATE EXTENSION mq;
	CREATE SEQUENCE calls;
	CREATE TABLE done (n bigserial, channel text, name text, attempt int, batch xid8 DEFAULT pg_current_xact_id(), claimed int);
	CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO done (channel, name, attempt, claimed)
	  VALUES (m.channel_name, m.name, m.attempt, CASE WHEN m.payload_json ? 'fails' THEN claimed() END);
	  IF m.payload_json ? 'sleeps' THEN PERFORM pg_sleep((m.payload_json ->> 'sleeps')::float8); END IF;
	  IF m.payload_json ? 'waits' THEN PERFORM pg_advisory_xact_lock_shared(1); END IF;
	  IF m.payload_json ? 'conflicts' AND nextval('calls') <= (m.payload_json ->> 'conflicts')::int
		THEN RAISE serialization_failure; END IF;
	  IF m.attempt <= (m.payload_json ->> 'attempts')::int THEN
	    RAISE EXCEPTION USING ERRCODE = m.payload_json ->> 'fails', MESSAGE = 'claimed ' || claimed();
	  END IF;
	END $$;
	CREATE FUNCTION handle_all(m mq_message[]) RETURNS void LANGUAGE sql AS 'SELECT handle(one) FROM unnest(m) AS one';
	-- What another call of its transaction has left is in its way, as a temporary table would be.
	CREATE FUNCTION collide(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM nextval('calls');
	  IF EXISTS (SELECT FROM done WHERE batch = pg_current_xact_id() AND channel = m.channel_name) THEN RAISE duplicate_table;
		END IF;
	  PERFORM handle(m);
	END $$;
	CREATE FUNCTION fill(channel text, count int, payload jsonb DEFAULT '{}', name text DEFAULT 'n') RETURNS void
	LANGUAGE sql AS $$ SELECT count(mq_send(channel, payload, name, retry_backoff => '1 h')) FROM generate_series(1, count) $$});
sub all_handled { local $Test::Builder::Level = $Test::Builder::Level + 1; return within(60, $node, $db,
	'SELECT count(*) FROM mq_msgs', 0, $_[0]) }
# Registers handlers, and has their channels known to be quick.
sub warm {
	my (@channels) = @_;
	sql(q{SELECT mq_clear_all(), mq_unregister_handler(channel_name, message_name) FROM mq_handlers; SELECT mq_clear_all();
	      DELETE FROM mq_dead; DELETE FROM mq_failures; ALTER SEQUENCE calls RESTART});
	for my $channel (@channels) { sql("SELECT mq_register_handler('$channel', 'handle(mq_message)')") }
	for my $round (1 .. 3) {
		sql(join ';', 'SELECT 1', map { "SELECT fill('$_', 100)" } @channels);
		value_within(60, $node, $db, 'SELECT count(*) FROM mq_msgs', 0);
	}
	sql('TRUNCATE done');
}
sub messages_of { my ($channel) = @_; return "SELECT count(*) FROM mq_msgs WHERE channel_name = '$channel'" }

# --- slow calls ------------------------------------------------------------------------------------------

warm();
sql(q{SELECT mq_register_handler('c', 'handle_all(mq_message[])', 'x'), mq_register_handler('c', 'handle_all(mq_message[])',
	'y')});
sql(q{SELECT fill('c', 1, '{"sleeps": 0.15}', name) FROM generate_series(1, 5), unnest('{x,y}'::text[]) AS name});
all_handled('slow calls of two batch handlers of a channel come to an end');
is_now('SELECT count(*), (SELECT count(*) FROM mq_failures) FROM done', '10|0', '... once each');

warm('fast');
sql(q{SELECT mq_register_handler('slow', 'handle(mq_message)')});
sql(q{SELECT fill('slow', 30, '{"sleeps": 0.1}'), fill('fast', 5)});
all_handled('a slow channel and a quick one');
is_now(q{SELECT count(*) <= 5 FROM done WHERE channel = 'slow' AND n < (SELECT max(n) FROM done WHERE channel = 'fast')}, 't',
	'... take turns');

warm('fast');
sql(q{SELECT mq_register_handler('slow', 'handle(mq_message)', priority => 1)});
sql(q{SELECT fill('slow', 10, '{"sleeps": 0.05}'), fill('fast', 10)});
all_handled('a slow channel of greater priority and a quick one');
is_now(q{SELECT (SELECT max(n) FROM done WHERE channel = 'slow') < (SELECT min(n) FROM done WHERE channel = 'fast')}, 't',
	'... is done first');

# --- retries -----------------------------------------------------------------------------------------------

# One of 50 has failed so often, and is due again with 50 others.
sub try_again {
	my ($failed) = @_;
	within(20, $node, $db, 'SELECT count(*) FROM mq_failures', $failed, "a message has failed $failed times");
	within(20, $node, $db, messages_of('c'), 1, '... and waits for its retry');
	sql(q{SELECT mq_pause('c')});
	sql(q{UPDATE mq_msgs SET attempt_at = now(); SELECT fill('c', 50)});
	sql(q{SELECT mq_resume('c')});
}
warm('c');
sql(q{SELECT fill('c', 10), fill('c', 1, '{"fails": "23505", "attempts": 1}', 'bad'), fill('c', 10)});
try_again(1);
all_handled('a retry after an error that sharing may have caused');
is_now(q{SELECT claimed FROM done WHERE name = 'bad'}, 1, '... has a transaction for itself');
warm('c');
sql(q{SELECT fill('c', 10), fill('c', 1, '{"fails": "P0001", "attempts": 3}', 'bad'), fill('c', 10)});
try_again($_) for 1 .. 3;
all_handled('retries after another error');
is_now(q{SELECT string_agg(CASE error WHEN 'claimed 1' THEN 'alone' ELSE 'shares' END, ' ' ORDER BY attempt) FROM mq_failures},
	'shares shares alone',
	'... share the first time, and not later');
is_now(q{SELECT attempt, claimed FROM done WHERE name = 'bad'}, '4|1', '... until it is handled');

# --- conflicts and collisions ---------------------------------------------------------------------------

warm('c', 'd');
sql(q{SELECT fill('c', 1, '{"conflicts": 2}')});
all_handled('a message that conflicts twice');
sql(q{SELECT fill('c', 50), fill('d', 50)});
all_handled('what is sent after that');
is_now(q{SELECT max(channels), max(c) FROM (SELECT count(DISTINCT channel) AS channels, count(*) FILTER (WHERE channel = 'c')
	AS c FROM done GROUP BY batch) AS b}, '1|1',
	'a channel whose calls conflict is claimed from by itself, and in small batches');

warm('e', 'other');
sql(q{SELECT mq_register_handler('e', 'collide(mq_message)')});
sql(q{SELECT fill('e', 50), fill('other', 50)});
all_handled('calls that get in each other\'s way');
is_now(q{SELECT count(*), (SELECT count(*) FROM mq_failures), (SELECT last_value
	FROM calls) <= 60, count(DISTINCT batch) FILTER (WHERE channel = 'e') FROM done}, '100|0|t|50',
	'... have a transaction each, and are not charged');
sql(q{TRUNCATE done; ALTER SEQUENCE calls RESTART; SELECT fill('e', 20)});
all_handled('and the next ones');
is_now('SELECT count(*), count(DISTINCT batch), (SELECT last_value FROM calls) FROM done', '20|20|20',
	'... of which none collides');

# --- limits of workers ----------------------------------------------------------------------------------

# A worker that has looked for messages of a narrow channel when its only one was locked waits in another call.
set_and_reload($node, 'mq.max_workers' => 2);
warm('other');
sql(q{SELECT mq_register_handler('narrow', 'handle(mq_message)', max_workers => 1)});
for my $round (1 .. 3) { sql(q{SELECT fill('narrow', 20)}); value_within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0) }
sql('TRUNCATE done');
my ($locker, $holder) = map { MqSession->new($node, $db) } 1 .. 2;
$holder->query('SELECT pg_advisory_lock(1)');
sql(q{SELECT mq_pause('narrow'); SELECT fill('narrow', 1)});
$locker->query(q{BEGIN; SELECT FROM mq_msgs FOR UPDATE});
sql(q{BEGIN; SELECT mq_resume('narrow'); SELECT fill('other', 1, '{"waits": 1}'); COMMIT});
my $waiting = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND wait_event = 'advisory'};
within(20, $node, $db, $waiting, 1, 'a worker waits in a call of another channel');
$locker->query('ROLLBACK');
within(20, $node, $db, q{SELECT count(*) FROM done WHERE channel = 'narrow'}, 1,
	'and has no place of a channel of which it has claimed nothing');
is_now($waiting, 1, '... while it waits still');
$holder->query('SELECT pg_advisory_unlock_all()');
all_handled('all are handled');
$_->quit for $locker, $holder;

# --- what cannot be written --------------------------------------------------------------------------------

warm();
sql(q{ALTER TABLE mq_msgs ADD CONSTRAINT no_aside CHECK (attempt_at < 'infinity');
      SELECT mq_register_handler('c', 'handle(mq_message)', 'known')});
sql(q{SELECT fill('c', 10, name => 'known'), fill('c', 1, name => 'unknown'), fill('c', 10, name => 'known')});
within(20, $node, $db, q{SELECT count(*) FROM done}, 20,
	'messages are handled beside one that no handler takes, and that cannot be put aside');
within(20, $node, $db, q{SELECT detail FROM mq_health() WHERE "check" = 'messages settled' AND NOT ok}, qr/ of c.*no_aside/,
	'... which mq_health() names');
is_now(q{SELECT attempt, attempt_at BETWEEN now() AND now() + interval '11 minutes', (SELECT count(*) FROM mq_failures)
	FROM mq_msgs}, '0|t|0',
	'... and which is put off, uncharged');
sql('ALTER TABLE mq_msgs DROP CONSTRAINT no_aside');

$node->stop;
log_is_clean($node, qr/mq worker: .*no_aside/);
done_testing();
