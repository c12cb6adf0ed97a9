# A message whose process is killed is charged an attempt by the next start, though nothing was committed, and dies when
# its retries are used up (t/058_crashes.pl has the crashes that are proven). The others of its batch are handled. A handler that ignores its time limit is ended with its
# worker, and charged as well. A worker that is told to end charges nobody.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('aborted_calls', restart_after_crash => 'on', 'mq.max_workers' => 1);
my $db = 'postgres';
$node->safe_psql($db, q{
	CREATE EXTENSION mq;
	CREATE TABLE effects (n int);
	CREATE FUNCTION take_effect(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO effects VALUES ((payload ->> 'n')::int);
	  IF payload ? 'sleeps' THEN PERFORM pg_sleep(60); END IF;
	  WHILE payload ? 'stubborn' LOOP
	    BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END;
	  END LOOP;
	END $$;
	CREATE FUNCTION take_batch(messages mq_message[]) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE message mq_message;
	BEGIN
	  FOREACH message IN ARRAY messages LOOP PERFORM take_effect(message.payload_json); END LOOP;
	END $$;
	SELECT mq_register_handler('single', 'take_effect(jsonb)'), mq_register_handler('batch', 'take_batch(mq_message[])'),
	       mq_register_handler('stubborn', 'take_effect(jsonb)', timeout => '0.3 s')});

# Kills, with the signal, the worker whose handler sleeps.
sub kill_sleeper {
	my ($signal, $what) = @_;
	my $sleeper = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'mq worker' AND wait_event = 'PgSleep'};
	my ($good, $pid) = value_within(20, $node, $db, $sleeper, qr/^\d+$/);
	ok($good, $what) or return;
	kill $signal, $pid;
	value_within(20, $node, $db, "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid", 0);
}

my $send = q{SELECT mq_send_many('CHANNEL', '{"{\"n\": 1}","{\"n\": 2, \"sleeps\": 1}","{\"n\": 3}"}', retries => 1, retry_backoff => '0.1 s')};
my $fate = 'SELECT reason, attempts_made, sqlstate FROM mq_dead';
my $effects = q{SELECT string_agg(n::text, ',' ORDER BY n) FROM effects};

for my $channel ('single', 'batch') {
	$node->safe_psql($db, $send =~ s/CHANNEL/$channel/r);
	# Of a batch that was called together nobody knows the culprit: it comes out when they run one by one.
	kill_sleeper('KILL', "$channel: the server goes down under a message") for 1 .. ($channel eq 'batch' ? 3 : 2);
	within(20, $node, $db, $fate, 'exhausted|2|57P02', "$channel: the second time its retries are used up");
	within(20, $node, $db, $effects, '1,3', "$channel: the others of the batch are handled once");
	holds($node, $db, q{SELECT string_agg(attempt || ' ' || sqlstate, ', ' ORDER BY failure_no) FROM mq_failures}, '1 57P02, 2 57P02',
		"$channel: both attempts are recorded");
	$node->safe_psql($db, 'TRUNCATE effects; DELETE FROM mq_dead; DELETE FROM mq_failures');
}

$node->safe_psql($db, $send =~ s/CHANNEL/single/r);
kill_sleeper('TERM', 'a worker is terminated under a message');
kill_sleeper('TERM', 'the message is running again');
holds($node, $db, 'SELECT count(*) FROM mq_failures', 0, 'nobody is charged for that');
$node->safe_psql($db, $_) for q{SELECT mq_pause('single')},
	q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'mq worker'}, 'SELECT mq_clear_all()';

$node->safe_psql($db, q{SELECT mq_send('stubborn', '{"stubborn": 1, "n": 9}', retries => 1, retry_backoff => '0.1 s')});
within(30, $node, $db, $fate, 'exhausted|2|57014', 'a handler that catches every cancel is ended at the second limit, and charged');
holds($node, $db, q{SELECT count(*) FROM effects WHERE n = 9}, 0, 'nothing of it stays');
holds($node, $db, q{SELECT "check", detail FROM mq_health() WHERE "check" = 'workers succeed' AND NOT ok}, '', 'mq_health() does not blame the workers that ended with it');

log_is_clean($node, qr/was terminated by signal 9: Killed/, qr/WARNING:  terminating connection because of crash/,
	qr/FATAL:  the database system is (in recovery mode|starting up|not yet accepting connections)/);
$node->stop;
done_testing();
