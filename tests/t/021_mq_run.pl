# A leased call of mq_run is settled before mq_run ends: where another session has locked its message mq_run waits, and a
# cancel ends that wait.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('mq_run', 'mq.max_workers' => 0);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }

sql(q{
	CREATE EXTENSION mq;
	CREATE TABLE done (n int);
	CREATE FUNCTION take(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM pg_advisory_xact_lock_shared(1);
	  INSERT INTO done VALUES (payload::int);
	END $$;
	SELECT mq_register_handler('leased', 'take(jsonb)', mode => 'leased')});
my ($run, $holder) = map { $node->background_psql($db, on_error_stop => 0) } 1, 2;
my $state = q{SELECT (SELECT string_agg(n::text, ' ') FROM done), (SELECT count(*) FROM mq_msgs), (SELECT count(*) FROM mq_failures)};
my $waits = q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CALL mq_run%' AND wait_event_type = 'Extension'};

# Begins a call of the message n, locks the message, and lets the call end.
sub call_and_lock {
	my ($n) = @_;
	$holder->query_safe('SELECT pg_advisory_lock(1)');
	sql("SELECT mq_send('leased', '$n', retries => 1, retry_backoff => '0')");
	$run->{stdin} .= "CALL mq_run();\n\\echo over\n";
	$run->{run}->pump_nb;
	within(20, $node, $db, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}, 1, 'the call runs');
	$holder->query_safe('BEGIN; SELECT FROM mq_msgs FOR UPDATE; SELECT pg_advisory_unlock(1)');
	within(20, $node, $db, $state, "$n|1|0", 'the call has ended, and its message is locked');
	within(20, $node, $db, $waits, 1, 'mq_run waits');
}

call_and_lock(1);
$holder->query_safe('COMMIT');
within(20, $node, $db, $state, '1|0|0', 'the message is gone when the lock is, and not charged');
sql('TRUNCATE done');

# The message is charged as that of an mq_run that failed, by the next one.
call_and_lock(2);
sql(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL mq_run%' AND pid <> pg_backend_pid()});
within(20, $node, $db, q{SELECT state FROM pg_stat_activity WHERE query LIKE 'CALL mq_run%' AND pid <> pg_backend_pid()}, 'idle', 'a cancel ends the wait');
$holder->query_safe('COMMIT');
sql('CALL mq_run()');
is(sql('SELECT attempt, sqlstate, error FROM mq_failures'), '1|57P01|mq_run ended with an error while the handler ran', 'what mq_run could not settle is charged');
within(20, $node, $db, q{CALL mq_run(); SELECT (SELECT count(*) FROM done), (SELECT count(*) FROM mq_msgs)}, qr/2\|0$/, 'and handled again');

$_->quit for $run, $holder;
log_is_clean($node, qr/canceling statement due to user request/);
$node->stop;
done_testing();
