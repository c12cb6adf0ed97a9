# Messages that wait for others, with three workers that end them at the same time: each is handled once, behind all that it
# waited for, or dies with one of them; while clients send, and across a crash of the server. The poll interval is an hour, so
# nothing is found by looking: whoever makes a message due, or may have, wakes a worker.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('prerequisites', 'mq.max_workers' => 3);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
my $seed = $ENV{MQ_SEED} // int(rand(2**31));
note "MQ_SEED=$seed";
sql(q{
	CREATE EXTENSION mq;
	CREATE TABLE handled (n bigserial, id uuid);
	CREATE TABLE sent (id uuid PRIMARY KEY, dies boolean NOT NULL, n bigserial);
	CREATE TABLE edges (dependent uuid NOT NULL, prerequisite uuid NOT NULL);
	CREATE INDEX ON sent (n);
	CREATE FUNCTION take(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO handled (id) VALUES (message.id);
	  IF message.payload_json ->> 'do' = 'die' THEN PERFORM mq_discard('as told'); END IF;
	  IF message.payload_json ->> 'do' = 'fail' AND message.attempt = 1 THEN RAISE 'this once'; END IF;
	END $$;
	CREATE FUNCTION take_all(messages mq_message[]) RETURNS void LANGUAGE sql AS $$ INSERT INTO handled (id) SELECT m.id FROM unnest(messages) AS m $$;
	SELECT mq_register_handler(c, 'take(mq_message)') FROM unnest(ARRAY['a', 'b', 'c', 'ordered']) AS c;
	SELECT mq_register_handler('leased', 'take(mq_message)', mode => 'leased');
	SELECT mq_register_handler('many', 'take_all(mq_message[])')});
my $left = 'SELECT count(*) FROM mq_msgs';
my $nothing_left = 'SELECT (SELECT count(*) FROM mq_prerequisites), (SELECT count(*) FROM mq_rechecks)';
# Claims look at what is noted.
sub nothing_is_left {
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sql(q{SELECT mq_send('a')});
	within(60, $node, $db, $left, 0, "$what: nothing is pending");
	sql(q{SELECT mq_send('a')});
	within(60, $node, $db, $nothing_left, '0|0', '... and no row is left of what waited');
	sql('TRUNCATE handled');
}

# --- shapes ---------------------------------------------------------------------------------------

sql(q{SELECT mq_send('a', id => md5('last')::uuid, after => (SELECT array_agg(m) FROM mq_send_many('many', array_fill('1'::jsonb, ARRAY[10000])) AS m))});
within(120, $node, $db, $left, 0, 'a message that waits for 10,000 is handled');
holds($node, $db, q{SELECT count(*), count(DISTINCT id), (SELECT id FROM handled ORDER BY n DESC LIMIT 1) = md5('last')::uuid FROM handled}, '10001|10001|t', '... behind all of them');
nothing_is_left('fan-in');
sql(q{BEGIN; SELECT count(*) FROM mq_send_many('a', '{1}', delay => '0.5 s') AS m, mq_send_many('many', array_fill('1'::jsonb, ARRAY[10000]), after => ARRAY[m]); COMMIT});
within(120, $node, $db, $left, 0, '10,000 messages that wait for one are handled');
holds($node, $db, 'SELECT count(*), count(DISTINCT id) FROM handled', '10001|10001', '... once');
nothing_is_left('fan-out');
sql(q{DO $$
	DECLARE last uuid;
	BEGIN
	  FOR i IN 1 .. 1000 LOOP
	    last := mq_send((ARRAY['a', 'b', 'c'])[1 + i % 3], to_jsonb(i), id => lpad(i::text, 32, '0')::uuid, after => CASE WHEN i > 1 THEN ARRAY[last] END);
	  END LOOP;
	END $$});
within(120, $node, $db, $left, 0, 'a chain of 1,000 is handled');
holds($node, $db, q{SELECT count(*), bool_and(id = lpad(i::text, 32, '0')::uuid) FROM (SELECT id, row_number() OVER (ORDER BY n) AS i FROM handled) AS h}, '1000|t', '... in its order');
nothing_is_left('chain');
sql(q{WITH top AS (SELECT mq_send('a') AS t FROM generate_series(1, 200)),
	sides AS (SELECT t, mq_send('b', after => ARRAY[t]) AS l, mq_send('c', after => ARRAY[t]) AS r FROM top)
	SELECT count(mq_send('leased', after => ARRAY[t, l, r])) FROM sides});
within(120, $node, $db, $left, 0, '200 diamonds are handled');
holds($node, $db, 'SELECT count(*), count(DISTINCT id) FROM handled', '800|800', '... each message once');
nothing_is_left('diamonds');
sql(q{SELECT mq_send('b', id => md5('last')::uuid, after => (SELECT array_agg(m) || mq_send('a', '{"do": "die"}', delay => '0.3 s') FROM mq_send_many('many', array_fill('1'::jsonb, ARRAY[1000])) AS m))});
sql(q{SELECT mq_send('c', after => ARRAY[md5('last')::uuid])});
within(60, $node, $db, $left, 0, 'one of 1,001 dies');
holds($node, $db, q{SELECT string_agg(reason, ' ' ORDER BY dead_no) FROM mq_dead}, 'discarded prerequisite prerequisite', '... and takes along what waits for it');
nothing_is_left('death');
sql('DELETE FROM mq_dead');

# --- random graphs, sent by several clients --------------------------------------------------------

# A transaction sends some messages, each behind some of its own and some that were committed lately.
sql(q{
	CREATE FUNCTION send_some(many integer) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
	  own uuid[] := '{}';
	  args text := floor(random() * 3)::text;  -- one ordered channel, or transactions would deadlock
	  wanted uuid[];
	  message uuid;
	  what text;
	BEGIN
	  FOR i IN 1 .. many LOOP
	    SELECT array_agg(DISTINCT p) INTO wanted
	      FROM (SELECT own[1 + floor(random() * cardinality(own))::int] AS p FROM generate_series(1, floor(random() * 3)::int)
	            UNION ALL
	            (SELECT l.id FROM (SELECT s.id FROM sent s ORDER BY s.n DESC LIMIT 30) AS l ORDER BY random() LIMIT floor(random() * 4))) AS c
	     WHERE p IS NOT NULL;
	    what := CASE WHEN random() < 0.01 THEN 'die' WHEN random() < 0.02 THEN 'fail' END;
	    IF random() < 0.1 THEN
	      message := mq_send('ordered', jsonb_build_object('do', what), channel_args => args, ordered => true, retry_backoff => '10 ms', after => wanted);
	    ELSE
	      message := mq_send((ARRAY['a', 'b', 'c', 'leased'])[1 + floor(power(random(), 3) * 4)::int], jsonb_build_object('do', what), retry_backoff => '10 ms', after => wanted,
	                         delay => CASE WHEN random() < 0.1 THEN interval '20 ms' ELSE interval '0' END);
	    END IF;
	    INSERT INTO sent VALUES (message, COALESCE(what = 'die', false));
	    INSERT INTO edges SELECT message, p FROM unnest(wanted) AS p;
	    own := own || message;
	  END LOOP;
	END $$});
my @files;
for (['commit', 80, 'COMMIT;'], ['rollback', 20, 'ROLLBACK;']) {
	my ($name, $weight, $end) = @$_;
	my $file = $node->basedir . "/$name.sql";
	append_to_file($file, join "\n", '\set many random(1, 8)', '\set ms random(0, 5)', 'BEGIN;', 'SELECT send_some(:many);', '\sleep :ms ms', $end, '');
	push @files, '--file', "$file\@$weight";
}
sub send_from_clients {
	my ($what, $seconds, $seeds) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->command_checks_all([ 'pgbench', '--no-vacuum', '--client=6', "--time=$seconds", "--random-seed=$seeds", @files, $node->connstr($db) ],
		0, [qr/number of transactions actually processed/], [qr/^(?!.*(?:ERROR|FATAL|aborted))/s], $what);
}
# What dies, says the model: what is told to, and what waits for it.
my $model = q{WITH RECURSIVE dying (id) AS (
	SELECT s.id FROM sent s WHERE s.dies UNION SELECT e.dependent FROM edges e JOIN dying d ON d.id = e.prerequisite)};
sub as_the_model_says {
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	within(150, $node, $db, $left, 0, "$what: all that was sent has ended");
	holds($node, $db, qq{$model SELECT count(*) FROM dying FULL JOIN mq_dead m USING (id) WHERE dying.id IS NULL OR m.id IS NULL}, 0, '... those that wait for a dead one are dead, and no others');
	holds($node, $db, qq{$model SELECT count(*) FROM mq_dead m WHERE m.reason <> CASE WHEN (SELECT s.dies FROM sent s WHERE s.id = m.id)
		AND NOT EXISTS (SELECT FROM edges e JOIN dying d ON d.id = e.prerequisite WHERE e.dependent = m.id) THEN 'discarded' ELSE 'prerequisite' END}, 0, '... with their reasons');
	holds($node, $db, q{SELECT count(*) FROM sent s LEFT JOIN mq_dead d USING (id)
		WHERE (SELECT count(*) FROM handled h WHERE h.id = s.id) <> CASE WHEN d.reason IS DISTINCT FROM 'prerequisite' THEN 1 ELSE 0 END}, 0, '... the others are handled once, and what died so never');
	holds($node, $db, q{SELECT count(*) FROM edges e JOIN handled d ON d.id = e.dependent LEFT JOIN handled p ON p.id = e.prerequisite
		WHERE p.id IS NULL OR p.n > d.n}, 0, '... behind what they waited for');
	holds($node, $db, q{SELECT (SELECT count(*) FROM sent) > 100, (SELECT count(*) FROM edges) > 100}, 't|t', '... and there were some');
	holds($node, $db, $model . q{ SELECT count(*) FROM mq_failures f LEFT JOIN dying d ON d.id = f.message_id WHERE f.sqlstate <> 'P0001'}, 0, '... nothing else failed');
	nothing_is_left($what);
	sql('TRUNCATE sent, edges; DELETE FROM mq_dead; DELETE FROM mq_failures');
}
send_from_clients('six clients send messages that wait for others', 5, $seed);
as_the_model_says('clients');

# --- a crash in between, and one with nothing but messages that wait ---------------------------------

# A leased handler may be called twice when the server crashes.
sql(q{SELECT mq_register_handler('leased', 'take(mq_message)')});
sql(q{INSERT INTO sent SELECT m, false FROM mq_send_many('a', array_fill('{"do": null}'::jsonb, ARRAY[20]), delay => '3 s') AS m});
sql('SELECT send_some(8) FROM generate_series(1, 100)');
send_from_clients('clients send again', 2, $seed + 1);
$node->stop('immediate');
$node->start;
as_the_model_says('a crash');

# --- prepared transactions --------------------------------------------------------------------------

sql(q{SELECT mq_pause('a')});
sql(q{SELECT mq_send('a', id => md5('p')::uuid)});
sql(q{BEGIN; SELECT mq_send('b', name => 'd', id => md5('d')::uuid, after => ARRAY[md5('p')::uuid]); PREPARE TRANSACTION 'sends'});
sql(q{SELECT mq_resume('a')});
within(60, $node, $db, $left, 0, 'what a prepared transaction waits for is handled');
holds($node, $db, 'SELECT count(*) FROM mq_rechecks', 1, '... and noted');
sql(q{COMMIT PREPARED 'sends'});
within(60, $node, $db, q{SELECT count(*) FROM handled WHERE id = md5('d')::uuid}, 1, '... and its message is handled once it is committed');
sql(q{SELECT mq_send('elsewhere', id => md5('q')::uuid)});
sql(q{BEGIN; SELECT mq_delete(ARRAY[md5('q')::uuid]); PREPARE TRANSACTION 'removes'});
sql(q{SELECT mq_send('b', id => md5('e')::uuid, after => ARRAY[md5('q')::uuid])});
sql(q{COMMIT PREPARED 'removes'});
within(60, $node, $db, q{SELECT count(*) FROM handled WHERE id = md5('e')::uuid}, 1, 'one that waits for what a prepared transaction removes is handled once that is committed');
nothing_is_left('prepared transactions');

# --- a trigger that fails -----------------------------------------------------------------------------

# d is locked while p dies, and what is noted of it cannot be done then.
my $session = MqSession->new($node, $db);
sql(q{SELECT mq_pause('b')});
sql(q{SELECT mq_send('b', '{"do": "die"}', id => md5('p')::uuid), mq_send('c', id => md5('d')::uuid, after => ARRAY[md5('p')::uuid])});
$session->query(q{BEGIN; SELECT FROM mq_msgs WHERE id = md5('d')::uuid FOR UPDATE});
sql(q{SELECT mq_resume('b')});
within(60, $node, $db, q{SELECT count(*) FROM mq_dead}, 1, 'a message dies while one that waits for it is locked');
sql(q{CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$;
	CREATE TRIGGER refuse BEFORE INSERT ON mq_dead FOR EACH ROW WHEN (NEW.reason = 'prerequisite') EXECUTE FUNCTION refuse()});
$session->query('ROLLBACK');
for (1 .. 3) {
	sql(q{SELECT mq_send('a', id => md5('f')::uuid)});
	within(60, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE id = md5('f')::uuid}, 0, 'others are handled though it cannot be moved to the dead letters');
}
holds($node, $db, q{SELECT count(*) FROM mq_msgs WHERE id = md5('d')::uuid AND due_at IS NOT NULL}, 1, '... and it waits');
sql('DROP TRIGGER refuse ON mq_dead');
sql(q{SELECT mq_send('a')});
within(60, $node, $db, q{SELECT reason FROM mq_dead WHERE id = md5('d')::uuid}, 'prerequisite', '... until it can');
nothing_is_left('trigger');

# --- a dump of messages that wait, and of what is noted -------------------------------------------------

# Where there is no handler no worker looks at what is noted.
sql('CREATE DATABASE dumped');
sub dumped { return $node->safe_psql('dumped', shift) }
dumped(q{CREATE EXTENSION mq;
	SELECT mq_send('first', id => md5(n)::uuid) FROM unnest(ARRAY['p', 'q', 'r']) AS n;
	SELECT mq_send('second', name => 'waits for two', id => md5('d')::uuid, after => ARRAY[md5('q')::uuid, md5('r')::uuid])});
my $remover = MqSession->new($node, 'dumped');
$remover->query(q{BEGIN; SELECT mq_delete(ARRAY[md5('p')::uuid])});
dumped(q{SELECT mq_send('second', name => 'noted', id => md5('e')::uuid, after => ARRAY[md5('p')::uuid])});
$remover->query('COMMIT');
$remover->quit;
my $waiting = q{SELECT (SELECT string_agg(message_name, ', ' ORDER BY message_name) FROM mq_msgs WHERE due_at IS NOT NULL), (SELECT count(*) FROM mq_rechecks)};
holds($node, 'dumped', $waiting, 'noted, waits for two|1', 'messages wait');
my $dump = $node->basedir . '/waiting.sql';
$node->command_ok([ 'pg_dump', '--file', $dump, $node->connstr('dumped') ], 'they are dumped');
sql('CREATE DATABASE restored');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $node->connstr('restored') ], 'and restored');
holds($node, 'restored', $waiting, 'noted, waits for two|1', '... and nothing looks at them');
$node->safe_psql('restored', q{SELECT mq_enable(); CREATE TABLE handled (n serial, name text);
	CREATE FUNCTION handle(message mq_message) RETURNS void LANGUAGE sql AS $$ INSERT INTO handled (name) VALUES (message.name) $$;
	SELECT mq_register_handler('second', 'handle(mq_message)')});
within(60, $node, 'restored', q{SELECT string_agg(name, ', ') FROM handled}, 'noted', 'once messages are handled there, the one that is noted goes');
$node->safe_psql('restored', q{SELECT mq_register_handler('first', 'handle(mq_message)')});
within(60, $node, 'restored', q{SELECT string_agg(name, ', ' ORDER BY n) FROM handled}, 'noted, first, first, waits for two', '... and the other behind what it waits for');
log_is_clean($node, qr/this once|terminating connection|not properly shut down|database system was interrupted|could not receive|background worker .* exited|server process .* exited/);
done_testing();
