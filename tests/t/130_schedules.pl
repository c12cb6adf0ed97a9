# Schedules with workers: each time is sent once, at its time, whoever is there, also where no handler is; what changes
# schedules wakes a worker; nobody wakes who has nothing to do; what fails, or takes long, stops no other schedule.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

# mq.poll_interval is an hour: what is sent was sent on time, or somebody was woken for it.
my $node = mq_node('schedules', 'mq.max_workers' => 2);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
sub comes { my ($query, $expected, $what) = @_; local $Test::Builder::Level = $Test::Builder::Level + 1; return within(60, $node, $db, $query, $expected, $what) }
sql(q{
	CREATE EXTENSION mq;
	-- Times for which messages are there: of each schedule, none twice and none left out.
	CREATE VIEW sent AS
	  SELECT headers #>> '{schedule,name}' AS name, count(*) AS messages, count(*) - count(DISTINCT headers #>> '{schedule,at}') AS doubled,
	         extract(epoch FROM max((headers #>> '{schedule,at}')::timestamptz) - min((headers #>> '{schedule,at}')::timestamptz))::int + 1 - count(*) AS left_out
	    FROM mq_msgs WHERE headers ? 'schedule' GROUP BY 1;
	CREATE FUNCTION missed(since interval) RETURNS void LANGUAGE sql AS $$ UPDATE mq_timetable SET next_at = date_trunc('minute', now() - since) $$});

# --- without handlers -------------------------------------------------------------------------------

pids($node, $db, $MqTest::WORKERS, 1);
within(30, $node, $db, q{SELECT count(*) FROM mq_workers WHERE state = 'waiting'}, 1, 'the worker of a database without handlers waits');
sql(q{SELECT mq_schedule('tick', '1 second', 'ticks', catch_up => 'all')});
comes(q{SELECT messages >= 4, doubled, left_out FROM sent}, 't|0|0', 'a schedule that is made wakes it, and is sent every second, each time once');
sql(q{SELECT mq_unschedule('tick')});
sql(q{SELECT mq_schedule('far', '@yearly', 'far')});
sql(q{UPDATE mq_timetable SET next_at = now() - interval '1 s'});
comes(q{SELECT messages, next_at > now() FROM sent s JOIN mq_schedules USING (name)}, '1|t', 'a time that is set by hand');
sql(q{BEGIN; SELECT mq_schedule('prepared', '1 second', 'c'); PREPARE TRANSACTION 'makes'});
sql(q{COMMIT PREPARED 'makes'});
comes(q{SELECT messages > 0 FROM sent WHERE name = 'prepared'}, 't', 'one that a prepared transaction makes');
sql(q{BEGIN; SELECT mq_schedule('undone', '1 second', 'c'); ROLLBACK});
sql(q{SELECT mq_schedule('prepared', '@yearly', 'c')});
holds($node, $db, q{SELECT count(*) FROM sent WHERE name = 'undone'}, 0, 'what is rolled back sends nothing');
# The nearer of two, though the worker sleeps until the other.
sql(q{SELECT mq_schedule('soon', '1 hour', 'c')});
sql(q{SELECT mq_schedule('sooner', '2 seconds', 'c')});
comes(q{SELECT messages > 1 FROM sent WHERE name = 'sooner'}, 't', 'a nearer one that is made later');
sql(q{SELECT mq_unschedule(name) FROM mq_schedules; TRUNCATE mq_msgs});

# --- nobody wakes who has nothing to do --------------------------------------------------------------

sub sleeps { my ($pid) = @_; return slurp_file("/proc/$pid/status") =~ /^voluntary_ctxt_switches:\s*(\d+)/m ? $1 : die 'no count' }
my ($worker) = pids($node, $db, $MqTest::WORKERS, 1);
sql(q{SELECT mq_schedule('daily', '@daily', 'c')});
# After COMMIT PREPARED it is not known which names have handlers, until a worker has been told to look.
sql(q{SELECT mq_pause('nothing'), mq_resume('nothing')});
within(30, $node, $db, q{SELECT count(*) FROM mq_workers WHERE state = 'waiting'}, 1, 'it waits');
my $before = sleeps($worker);
sql(join ';', ("SELECT mq_send('elsewhere')") x 300);
cmp_ok(sleeps($worker) - $before, '<', 30, 'while nothing is due the worker sleeps');
# Two workers: one keeps time, the other sleeps.
sql(q{CREATE ROLE other LOGIN; CREATE TABLE handled (pid int); GRANT ALL ON handled TO other; SELECT mq_grant('other', 'admin');
	CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.handled VALUES (pg_backend_pid()) $$;
	-- Waits while there is a row in the table.
	CREATE TABLE gate (shut text); GRANT SELECT ON gate TO other;
	CREATE FUNCTION wait_at_the_gate(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  WHILE EXISTS (SELECT FROM public.gate) LOOP PERFORM pg_sleep(0.01); END LOOP;
	END $$;
	SELECT mq_register_handler('mine', 'handle(mq_message)');
	SELECT mq_register_handler('gated', 'wait_at_the_gate(mq_message)')});
sql(q{SET ROLE other; SELECT mq_register_handler('theirs', 'handle(mq_message)')});
sql(q{SET ROLE other; SELECT mq_register_handler('gated too', 'wait_at_the_gate(mq_message)')});
my @workers = pids($node, $db, "$MqTest::WORKERS AND usename IN ('other', '$ENV{PGUSER}')", 2);
sql(q{SELECT mq_schedule('tick', '1 second', 'ticks', catch_up => 'all')});
comes(q{SELECT messages >= 2 FROM sent WHERE name = 'tick'}, 't', 'two workers: it is sent');
my %slept = map { $_ => sleeps($_) } @workers;
my $sent = sql(q{SELECT messages FROM sent WHERE name = 'tick'});
comes(qq{SELECT messages >= $sent + 6, doubled, left_out FROM sent WHERE name = 'tick'}, 't|0|0', '... six more times');
my ($idle, $keeper) = sort { $a <=> $b } map { sleeps($_) - $slept{$_} } @workers;
cmp_ok($keeper, '>=', 5, 'one worker wakes each time');
cmp_ok($idle, '<', 4, 'the other sleeps');

like(sql(q{SELECT ok || detail FROM mq_health() WHERE "check" = 'schedules handled'}), qr/^false.*: daily to c, tick to ticks;/, 'mq_health() names schedules without a handler');

# --- while calls run ---------------------------------------------------------------------------------

# mq.max_workers are two, one for each role. The one that keeps time is in a long call: the other takes over.
for my $channel ('gated', 'gated too') {
	sql(q{INSERT INTO gate VALUES ('shut')});
	sql("SELECT mq_send('$channel')");
	comes(q{SELECT count(*) FROM mq_workers WHERE state = 'handling'}, 1, "a worker sits in a call of '$channel'");
	$sent = sql(q{SELECT messages FROM sent WHERE name = 'tick'});
	comes(qq{SELECT messages >= $sent + 4 FROM sent WHERE name = 'tick'}, 't', '... the other sends what is due');
	sql(q{DELETE FROM gate});
	comes(q{SELECT count(*) FROM mq_msgs WHERE channel_name LIKE 'gated%'}, 0, '... the call ends');
}
comes(q{SELECT doubled, left_out FROM sent WHERE name = 'tick'}, '0|0', 'each time was sent once all along');
sql(q{SELECT mq_unschedule(name) FROM mq_schedules; TRUNCATE mq_msgs});
# To a handler.
sql(q{SELECT mq_schedule('mine', '1 second', 'mine'), mq_schedule('theirs', '1 second', 'theirs', keep => '1 hour')});
comes(q{SELECT count(*) > 5 AND count(DISTINCT pid) = 2 FROM handled}, 't', 'handlers of two roles are called with what schedules send');
comes(q{SELECT last_state FROM mq_schedules WHERE name = 'theirs'}, qr/^(done|ready|running)$/, 'last_state is of the last message');
sql(q{SELECT mq_unschedule(name) FROM mq_schedules; SELECT mq_clear_all()});

# --- many --------------------------------------------------------------------------------------------

set_and_reload($node, 'mq.max_workers' => 4);
sql(q{SELECT count(mq_schedule('many ' || n, '@yearly', 'many', to_jsonb(n))) FROM generate_series(1, 2000) AS n});
sql(q{UPDATE mq_timetable SET next_at = date_trunc('year', now())});
comes(q{SELECT count(*) FROM mq_timetable WHERE next_at <= now()}, 0, 'two thousand schedules that are due at once are sent');
holds($node, $db, q{SELECT count(*), count(DISTINCT payload_json), count(DISTINCT id) FROM mq_payloads}, '2000|2000|2000', '... each once');
holds($node, $db, q{SELECT count(*) FROM mq_schedules s JOIN mq_msgs m ON m.id = s.last_id AND m.headers #>> '{schedule,name}' = s.name}, 2000, '... and known by its message');
sql(q{DELETE FROM mq_timetable; TRUNCATE mq_msgs});

# Workers, and sessions in mq_run, at once.
sql(q{SELECT count(mq_schedule('many ' || n, '@yearly', 'many', catch_up => 'all')) FROM generate_series(1, 100) AS n});
my @runs = map { MqSession->new($node, $db) } 1 .. 4;
sql(q{UPDATE mq_timetable SET next_at = date_trunc('year', now()) - interval '20 years'});
$_->begin(q{CALL mq_run('{many}')}) for @runs;
unlike($_->result, qr/error/, 'mq_run beside workers') for @runs;
comes(q{SELECT count(*) FROM mq_timetable WHERE next_at <= now()}, 0, 'all are sent');
holds($node, $db, q{SELECT count(*), count(DISTINCT (headers #>> '{schedule,name}', headers #>> '{schedule,at}')) FROM mq_msgs}, '2100|2100', 'each time of each schedule once');
$_->quit for @runs;
sql(q{DELETE FROM mq_timetable; TRUNCATE mq_msgs});

# --- what fails --------------------------------------------------------------------------------------

sql(q{SET ROLE other; SELECT mq_schedule('of other', '1 second', 'c')});
sql(q{SELECT mq_revoke('other', 'admin'); SELECT mq_schedule('tick', '1 second', 'ticks', catch_up => 'all')});
comes(q{SELECT sqlstate, failures > 0 FROM mq_timetable WHERE name = 'of other'}, '42501|t', 'a role without the right to send');
comes(q{SELECT messages > 2, doubled, left_out FROM sent WHERE name = 'tick'}, 't|0|0', '... does not stop others');
sql(q{UPDATE mq_timetable SET next_at = now() - interval '1 minute' WHERE name = 'of other'});
like(sql(q{SELECT ok || detail FROM mq_health() WHERE "check" = 'schedules sent'}), qr/^false.*of other \(since .*; failed \d+ times, the last with SQLSTATE 42501\)/, 'mq_health() names it');
sql(q{SELECT mq_grant('other', 'produce')});
comes(q{SELECT messages > 0 FROM sent WHERE name = 'of other'}, 't', 'once it has the right it is sent');
comes(q{SELECT failures FROM mq_timetable WHERE name = 'of other'}, 0, '... and fails no more');
# The table is locked: messages are handled all the same.
my $locker = MqSession->new($node, $db);
$locker->query('BEGIN; LOCK TABLE mq_timetable IN ACCESS EXCLUSIVE MODE');
sql(q{TRUNCATE handled; SELECT count(mq_send('mine')) FROM generate_series(1, 10)});
comes(q{SELECT count(*) FROM handled}, 10, 'while the table is locked messages are handled');
$sent = sql(q{SELECT messages FROM sent WHERE name = 'tick'});
$locker->query('COMMIT');
comes(qq{SELECT messages > $sent, doubled, left_out FROM sent WHERE name = 'tick'}, 't|0|0', 'after that schedules go on, and none of their times is left out');
# A row is locked.
$locker->query(q{BEGIN; SELECT FROM mq_timetable WHERE name = 'tick' FOR UPDATE});
$sent = sql(q{SELECT messages FROM sent WHERE name = 'of other'});
comes(qq{SELECT messages > $sent + 2 FROM sent WHERE name = 'of other'}, 't', 'a schedule whose row is locked does not stop others');
$sent = sql(q{SELECT messages FROM sent WHERE name = 'tick'});
$locker->query('COMMIT');
comes(qq{SELECT messages > $sent, doubled, left_out FROM sent WHERE name = 'tick'}, 't|0|0', '... and is sent after that');
$locker->quit;

# --- the extension is dropped and made again -----------------------------------------------------------

sql(q{DROP VIEW sent; DROP EXTENSION mq CASCADE; CREATE EXTENSION mq; SELECT mq_schedule('new', '1 second', 'c')});
comes(q{SELECT count(*) > 2 FROM mq_msgs}, 't', 'in an extension that is made anew');

$node->stop;
log_is_clean($node);
done_testing();
