# mq_progress with workers: what a handler says of its call shows in other sessions while its transaction is open, in both
# modes, and ends with the call, however that ends.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('progress', 'mq.max_workers' => 2, 'mq.poll_interval' => '200ms');
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }

# A handler stops at a gate that the test holds shut, having said something.
sql(q{
	CREATE EXTENSION mq;
	CREATE TABLE effects (n int);
	CREATE FUNCTION take(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO effects VALUES (1);
	  PERFORM mq_progress(0.25, 'at the gate');
	  PERFORM pg_advisory_xact_lock_shared(1);
	  IF m.payload_json ->> 'then' = 'fail' THEN RAISE 'no'; END IF;
	  PERFORM mq_progress(0.75);
	  PERFORM pg_advisory_xact_lock_shared(2);
	END $$;
	CREATE FUNCTION take_all(m mq_message[]) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM mq_progress(note => cardinality(m) || ' messages');
	  PERFORM pg_advisory_xact_lock_shared(1);
	END $$;
	SELECT mq_register_handler('transactional', 'take(mq_message)'), mq_register_handler('leased', 'take(mq_message)', mode => 'leased'),
	       mq_register_handler('batch', 'take_all(mq_message[])');
	CREATE ROLE mailer LOGIN;
	CREATE ROLE member IN ROLE mailer;
	CREATE ROLE monitor;
	CREATE ROLE administrator;
	GRANT INSERT ON effects TO mailer;
	SELECT mq_grant('mailer', 'consume'), mq_grant('member', 'monitor'), mq_grant('monitor', 'monitor'), mq_grant('administrator', 'admin');
	SELECT mq_register_handler('mail', 'take(mq_message)', run_as => 'mailer')});

my %gates = map { $_ => $node->background_psql($db, on_error_die => 1) } 1, 2;
sub shut { $gates{$_}->query_safe("SELECT pg_advisory_lock($_)") for 1, 2 }
sub open_gate { my $n = shift; $gates{$n}->query_safe("SELECT pg_advisory_unlock($n)") }
my $told = q{SELECT COALESCE(string_agg(concat_ws(' ', state, channel_name, progress, note), ', '), 'nothing') FROM mq_workers WHERE progress IS NOT NULL OR note IS NOT NULL};

for (['transactional', 'handling'], ['leased', 'leased']) {
	my ($mode, $state) = @$_;
	shut();
	my $id = sql("SELECT mq_send('$mode', '{}')");
	within(20, $node, $db, $told, "$state $mode 0.25 at the gate", "$mode: it shows before any commit");
	holds($node, $db, q{SELECT count(*) FROM effects}, 0, '... and nothing else does');
	holds($node, $db, "SELECT count(*) FROM mq_workers WHERE message_id = '$id' AND progress = 0.25", 1, '... with its message');
	holds($node, $db, q{SELECT bool_and(a.pid IS NOT NULL) FROM mq_workers w LEFT JOIN pg_stat_activity a USING (pid)}, 't', '... and a process that there is');
	open_gate(1);
	within(20, $node, $db, $told, "$state $mode 0.75 at the gate", 'the note stays where only the fraction is given');
	open_gate(2);
	within(20, $node, $db, $told, 'nothing', 'it ends with the call');
	within(20, $node, $db, q{SELECT count(*) FROM mq_msgs}, 0, '... which has handled the message');
	sql('TRUNCATE effects');

	# However that ends.
	shut();
	sql(qq{SELECT mq_send('$mode', '{"then": "fail"}', retries => 0)});
	within(20, $node, $db, $told, "$state $mode 0.25 at the gate", "$mode: the next call says it again");
	open_gate(1);
	within(20, $node, $db, $told, 'nothing', 'it ends with a failed call');
	open_gate(2);
	within(20, $node, $db, q{SELECT count(*) FROM mq_msgs}, 0, '... of a message that is dead');

	shut();
	sql("SELECT mq_send('$mode', '{}', retries => 0)");
	within(20, $node, $db, $told, "$state $mode 0.25 at the gate", "$mode: and the next");
	sql("SELECT pg_terminate_backend(pid) FROM mq_workers WHERE progress = 0.25");
	within(20, $node, $db, q{SELECT count(*) FROM mq_workers WHERE progress = 0.25 AND since < now() - interval '0'}, qr/^[01]$/, 'its process is ended');
	open_gate($_) for 1, 2;
	within(30, $node, $db, q{SELECT count(*) FROM mq_msgs}, 0, '... and its message is done with');
	within(20, $node, $db, $told, 'nothing', '... and nothing is left of it');
	sql('TRUNCATE effects, mq_dead');
}

# A note is the user's data, as a payload is.
shut();
sql(q{SELECT mq_send('mail', '{}')});
within(20, $node, $db, $told, 'handling mail 0.25 at the gate', 'the owner of the extension sees a note');
holds($node, $db, "SET ROLE member; $told", 'handling mail 0.25 at the gate', '... and a member of the role that the handler runs as');
holds($node, $db, "SET ROLE administrator; $told", 'handling mail 0.25 at the gate', '... and who may read the messages');
holds($node, $db, "SET ROLE monitor; $told", 'handling mail 0.25', 'who may only monitor sees the fraction');
sql('CREATE DATABASE elsewhere');
$node->safe_psql('elsewhere', q{CREATE EXTENSION mq; SELECT mq_grant('administrator', 'admin'), mq_grant('member', 'monitor')});
holds($node, 'elsewhere', "SET ROLE administrator; $told", 'handling 0.25', 'so does who may read the messages of another database');
holds($node, 'elsewhere', "SET ROLE member; $told", 'handling 0.25 at the gate', 'a member sees it there, too');
open_gate($_) for 1, 2;
within(20, $node, $db, q{SELECT count(*) FROM mq_msgs}, 0, 'the message is handled');

# A batch handler speaks for its call.
shut();
sql(q{SELECT mq_pause('batch')});
sql(q{SELECT count(*) FROM mq_send_many('batch', '{1,2,3}')});
sql(q{SELECT mq_resume('batch')});
within(20, $node, $db, $told, qr/^handling batch \d messages?/, 'a batch handler says it for its messages');
open_gate($_) for 1, 2;
within(20, $node, $db, q{SELECT count(*) FROM mq_msgs}, 0, '... which it handles');

# CALL mq_run in a session of a user's.
sql(q{ALTER SYSTEM SET mq.max_workers = 0}); sql(q{SELECT pg_reload_conf()});
within(20, $node, $db, "SELECT count(*) FROM ($MqTest::WORKERS) w", 0, 'without workers');
shut();
sql(q{SELECT mq_send('transactional', '{}')});
my $run = $node->background_psql($db, on_error_die => 1);
$run->query_until(qr/^$/, "CALL mq_run();\n");
within(20, $node, $db, $told, 'mq_run transactional 0.25 at the gate', 'mq_run: it shows before any commit');
holds($node, $db, q{SELECT count(*) FROM mq_workers w JOIN pg_stat_activity a USING (pid) WHERE w.progress = 0.25 AND a.query = 'CALL mq_run();'}, 1, '... with the process of its session');
open_gate($_) for 1, 2;
$run->quit;
holds($node, $db, $told, 'nothing', 'and ends with the call');

$_->quit for values %gates;
log_is_clean($node, qr/terminating|no\b/);
$node->stop;
done_testing();
