# Schedules when something ends: a worker that is killed or terminated while it sends, the server for a week, the primary.
# Each time is sent once, and what was missed as catch_up says. A restored copy sends nothing until mq_enable().
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('faults', 'mq.max_workers' => 2, wal_level => 'replica', max_wal_senders => 5, hot_standby => 'on', restart_after_crash => 'on');
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
sub comes { my ($query, $expected, $what) = @_; local $Test::Builder::Level = $Test::Builder::Level + 1; return within(60, $node, $db, $query, $expected, $what) }
# Of each schedule: how many messages, how many times twice, how many left out.
my $state = q{
	CREATE VIEW sent AS
	  SELECT headers #>> '{schedule,name}' AS name, count(*) AS messages, count(*) - count(DISTINCT headers #>> '{schedule,at}') AS doubled,
	         extract(epoch FROM max((headers #>> '{schedule,at}')::timestamptz) - min((headers #>> '{schedule,at}')::timestamptz))::int + 1 - count(*) AS left_out
	    FROM mq_msgs WHERE headers ? 'schedule' GROUP BY 1};
sql(qq{
	CREATE EXTENSION mq;
	$state;
	-- Waits, before a message is written, while there is a row in the table.
	CREATE TABLE gate (shut text);
	CREATE FUNCTION wait_at_the_gate() RETURNS trigger LANGUAGE plpgsql AS \$\$
	BEGIN
	  IF EXISTS (SELECT FROM public.gate) THEN
	    PERFORM set_config('application_name', 'at the gate', true);
	    WHILE EXISTS (SELECT FROM public.gate) LOOP PERFORM pg_sleep(0.01); END LOOP;
	  END IF;
	  RETURN NEW;
	END \$\$;
	CREATE TRIGGER gate BEFORE INSERT ON mq_msgs FOR EACH ROW EXECUTE FUNCTION wait_at_the_gate()});

# --- a worker ends while it sends ----------------------------------------------------------------------

for my $how ('terminated', 'killed') {
	sql(q{INSERT INTO gate VALUES ('shut')});
	sql(q{SELECT mq_schedule('yearly', '@yearly', 'c', catch_up => 'all'); UPDATE mq_timetable SET next_at = date_trunc('year', now()) - interval '9 years'});
	comes(q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'at the gate'}, 1, 'one worker sends');
	my $pid = sql(q{SELECT pid FROM pg_stat_activity WHERE application_name = 'at the gate'});
	$how eq 'killed' ? kill('KILL', $pid) : sql("SELECT pg_terminate_backend($pid)");
	within(60, $node, $db, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'at the gate' AND pid <> $pid", 1, "it is $how: another begins anew");
	holds($node, $db, 'SELECT count(*) FROM mq_msgs', 0, '... nothing was kept');
	sql(q{DELETE FROM gate});
	comes(q{SELECT count(*) FROM mq_timetable WHERE next_at <= now()}, 0, 'it is sent');
	holds($node, $db, q{SELECT count(*), count(DISTINCT headers #>> '{schedule,at}') FROM mq_msgs}, '10|10', '... each time once');
	sql(q{SELECT mq_unschedule('yearly'); TRUNCATE mq_msgs});
}
sql(q{DROP TRIGGER gate ON mq_msgs});

# --- a week ---------------------------------------------------------------------------------------------

# By days of a zone in which it is not midnight now.
my $zone = sql(q{SELECT CASE WHEN extract(hour FROM now() AT TIME ZONE 'UTC') BETWEEN 2 AND 21 THEN 'UTC' ELSE 'Etc/GMT+6' END});
set_and_reload($node, 'mq.max_workers' => 0);
within(30, $node, $db, $MqTest::WORKERS, '', 'the workers leave');
sql(qq{SELECT mq_schedule('daily ' || c, '\@daily', 'c', time_zone => '$zone', catch_up => c), mq_schedule('seconds ' || c, '10 seconds', 'c', catch_up => c)
		FROM unnest(ARRAY['none', 'one', 'all']) AS c});
sql(qq{UPDATE mq_timetable SET next_at = date_trunc('day', now() AT TIME ZONE '$zone') AT TIME ZONE '$zone' - interval '6 days', last_at = now() - interval '7 days' WHERE schedule = '\@daily';
	UPDATE mq_timetable SET next_at = now() - interval '1 hour', anchor = now() - interval '1 hour' WHERE schedule <> '\@daily'});
like(sql(q{SELECT ok || detail FROM mq_health() WHERE "check" = 'schedules sent'}), qr/^false.*daily all \(since/, 'mq_health() says that nothing is sent');
set_and_reload($node, 'mq.max_workers' => 2);
$node->restart;
comes(q{SELECT count(*) FROM mq_timetable WHERE next_at < now() - interval '10 s'}, 0, 'after a week the server starts: all are sent');
comes(q{SELECT string_agg(name || ' ' || messages, ', ' ORDER BY name) FROM sent WHERE name LIKE 'daily%'}, 'daily all 7, daily one 1', 'catch_up: all, one or none of a week');
holds($node, $db, q{SELECT messages >= 360, doubled FROM sent WHERE name = 'seconds all'}, 't|0', 'all of an hour');
comes(q{SELECT count(*) FROM sent WHERE name LIKE 'seconds%' AND messages > CASE name WHEN 'seconds all' THEN 362 ELSE 2 END}, 3, 'and they go on');
holds($node, $db, q{SELECT messages < 100 FROM sent WHERE name = 'seconds one'}, 't', '... but one for the hour');
holds($node, $db, q{SELECT ok FROM mq_health() WHERE "check" = 'schedules sent'}, 't', 'mq_health() is content');
sql(q{SELECT mq_unschedule(name) FROM mq_schedules; TRUNCATE mq_msgs});

# --- a copy ---------------------------------------------------------------------------------------------

sql(q{SELECT mq_schedule('copied', '@hourly', 'c', '{"a": 1}', catch_up => 'all', headers => '{"x": 1}'); UPDATE mq_timetable SET last_at = '2026-01-01'});
my $dump = "$PostgreSQL::Test::Utils::tmp_check/schedules.sql";
$node->command_ok([ 'pg_dump', '-f', $dump, $node->connstr($db) ], 'a dump');
$node->safe_psql($db, 'CREATE DATABASE copy');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $node->connstr('copy') ], '... is restored');
my $row = q{SELECT name, schedule, time_zone, catch_up, channel_name, payload_json, headers, next_at, last_at, run_as FROM mq_timetable};
is($node->safe_psql('copy', $row), sql($row), '... with the schedule as it was');
$node->safe_psql('copy', q{UPDATE mq_timetable SET next_at = next_at - interval '3 hours'});
set_and_reload($node, 'mq.poll_interval' => '100ms');
looks_again($node, 'copy', 'a copy');
set_and_reload($node, 'mq.poll_interval' => '1h');
like($node->safe_psql('copy', q{SELECT detail FROM mq_health() WHERE "check" = 'database enabled'}), qr/mq_enable/, 'mq_health() says what to do');
holds($node, 'copy', 'SELECT count(*) FROM mq_msgs', 0, 'a copy sends nothing');
my (undef, undef, $error) = $node->psql('copy', 'CALL mq_run()');
like($error, qr/messages are not handled in this database/, '... nor by mq_run');
$node->safe_psql('copy', 'SELECT mq_enable()');
within(60, $node, 'copy', q{SELECT count(*) BETWEEN 2 AND 4 FROM mq_msgs}, 't', 'once it is enabled it does');
holds($node, $db, q{SELECT count(*) FROM mq_msgs}, 0, 'the other database has sent nothing for that');
$node->safe_psql($db, 'DROP DATABASE copy');
sql(q{SELECT mq_unschedule(name) FROM mq_schedules; TRUNCATE mq_msgs});

# --- the primary ends -----------------------------------------------------------------------------------

$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
sql(q{SELECT mq_schedule('tick', '1 second', 'ticks', catch_up => 'all')});
comes(q{SELECT messages > 2, doubled, left_out FROM sent}, 't|0|0', 'the primary sends');
within(60, $standby, $db, q{SELECT messages > 2, doubled, left_out FROM sent}, 't|0|0', 'the standby has it');
$node->stop;
my $sent = $standby->safe_psql($db, 'SELECT messages FROM sent');
$standby->promote;
within(60, $standby, $db, "SELECT messages > $sent + 2, doubled, left_out FROM sent", 't|0|0', 'promoted, it goes on: no time is doubled or left out');
$standby->stop;
log_is_clean($node, qr/terminated by signal 9|terminating|terminated|crash|recovery|not properly shut down|redo|invalid record length|not yet accepting connections/i);
log_is_clean($standby, qr/terminating|recovery|redo|invalid record length|could not connect|could not receive|primary|waiting for WAL/i);
done_testing();
