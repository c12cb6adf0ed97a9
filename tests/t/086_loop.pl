# When a worker sleeps, and when it leaves: it sleeps while there is nothing that it may have, and leaves within a batch when it
# is told to, or when the extension is gone.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('loop', 'mq.max_workers' => 1);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }

sql(q{
	CREATE EXTENSION mq;
	CREATE SEQUENCE calls;
	CREATE TABLE done (n bigserial, name text);
	CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM nextval('calls');
	  IF m.payload_json ? 'sleeps' THEN PERFORM pg_sleep((m.payload_json ->> 'sleeps')::float8); END IF;
	  IF m.payload_json ? 'waits' THEN PERFORM pg_advisory_xact_lock_shared(1); END IF;
	  INSERT INTO done (name) VALUES (m.name);
	END $$;
	SELECT mq_register_handler('c', 'handle(mq_message)'), mq_register_handler('narrow', 'handle(mq_message)', max_workers => 1)});
my $left = 'SELECT count(*) FROM mq_msgs';
sub all_handled { local $Test::Builder::Level = $Test::Builder::Level + 1; return within(30, $node, $db, $left, 0, $_[0]) }
# --- sleep -----------------------------------------------------------------------------------------------

my ($locker, $holder) = map { MqSession->new($node, $db) } 1 .. 2;
# The processor time of all workers in two seconds, in hundredths of a second.
sub is_at_rest {
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
  SKIP: {
		skip 'the system does not tell how long processes ran', 1 unless -r '/proc/self/stat';
		my $ticks = sub {
			my $sum = 0;
			for my $pid (split /\n/, sql($MqTest::WORKERS)) {
				my @fields = split / /, slurp_file("/proc/$pid/stat") =~ s/.*\) //r;
				$sum += $fields[11] + $fields[12];
			}
			return $sum;
		};
		my $before = $ticks->();
		sql('SELECT pg_sleep(2)');
		my $took = $ticks->() - $before;
		cmp_ok($took, '<=', 20, "workers sleep $what: $took");
	}
}
within(20, $node, $db, q{SELECT state FROM mq_workers}, 'waiting', 'a worker rests');
is_at_rest('while there is nothing');

sql(q{BEGIN; SELECT mq_pause('c'), mq_send('c', name => 'locked'); COMMIT});
$locker->query('BEGIN; SELECT FROM mq_msgs FOR UPDATE');
sql(q{SELECT mq_resume('c')});
is_at_rest('while another session has what is due');
holds($node, $db, 'SELECT count(*) FROM done', 0, '... which they leave alone');
$locker->query('COMMIT');
all_handled('... until it is let go');

set_and_reload($node, 'mq.max_workers' => 2);
$holder->query('SELECT pg_advisory_lock(1)');
sql(q{SELECT mq_send('narrow', '{"waits": 1}', 'first'), mq_send('c', '{"waits": 1}', 'beside')});
my $waiting = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND state = 'active'
	AND wait_event = 'advisory' AND query LIKE '%: message %'};
within(20, $node, $db, $waiting, 2, 'what workers do is shown as their query');
sql(q{SELECT mq_send('narrow', name => 'second')});
is_at_rest('while a channel has as many workers as it may');
holds($node, $db, q{SELECT count(*) FROM done WHERE name = 'second'}, 0, '... whose next message waits');
$holder->query('SELECT pg_advisory_unlock_all()');
all_handled('... for its turn');
within(20, $node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker' AND (state <> 'idle'
	OR query <> '')}, 0, 'and that workers rest is shown');
set_and_reload($node, 'mq.max_workers' => 1);
within(20, $node, $db, "SELECT count(*) FROM ($MqTest::WORKERS) w", 1, 'one worker is left');

# --- told to leave --------------------------------------------------------------------------------------

# A call that a busy machine stops for a tenth of a second is made again, so there are several tries.
my $calls = 'SELECT count(*), (SELECT last_value FROM calls) FROM done';
for my $try (1 .. 5) {
	sql(q{TRUNCATE done; ALTER SEQUENCE calls RESTART; SELECT count(*) FROM mq_send_many('c', array_fill('{"sleeps": 0.002}'::jsonb,
		ARRAY[500]))});
	for my $round (1 .. 3) {
		within(20, $node, $db, "SELECT count(*) > 100 * $round FROM done", 't', 'messages are handled');
		set_and_reload($node, 'mq.max_workers' => 0);
		within(20, $node, $db, "SELECT count(*) FROM ($MqTest::WORKERS) w", 0, 'workers leave');
		set_and_reload($node, 'mq.max_workers' => 1);
	}
	all_handled('others go on');
	last if sql($calls) eq '500|500';
}
holds($node, $db, $calls, '500|500', 'no call was in vain');

$_->quit for $locker, $holder;

# --- the extension goes ----------------------------------------------------------------------------------

# Each time at another moment of a worker's work, until one was at work.
sql(q{CREATE DATABASE other});
$node->safe_psql('other', q{CREATE TABLE done (n bigserial);
	CREATE FUNCTION handle(jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.done DEFAULT VALUES $$;
	DO $$
	BEGIN
	  FOR i IN 1 .. 200 LOOP
	    EXIT WHEN i > 15 AND EXISTS (SELECT FROM done);
	    CREATE EXTENSION mq;
	    PERFORM mq_register_handler('c', 'handle(jsonb)');
	    COMMIT;
	    PERFORM mq_send_many('c', array_fill('1'::jsonb, ARRAY[500]));
	    COMMIT;
	    PERFORM pg_sleep(0.015 * (i % 8));
	    DROP EXTENSION mq;
	    COMMIT;
	  END LOOP;
	END $$});
within(20, $node, 'other', "SELECT count(*) FROM ($MqTest::WORKERS) w", 0, 'a worker whose extension is gone leaves');
holds($node, 'other', 'SELECT count(*) > 0 FROM done', 't', '... in the middle of its work');

$node->stop;
log_is_clean($node);
done_testing();
