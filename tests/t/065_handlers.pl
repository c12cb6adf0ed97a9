# Handlers in sessions of their own: what they say of a message that somebody else has locked.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $node = mq_node('handlers');
$node->safe_psql($db, q{
	CREATE EXTENSION mq;
	CREATE TABLE said (what text);
	CREATE FUNCTION say(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM pg_advisory_xact_lock_shared(7);
	  INSERT INTO said VALUES (message.name);
	  IF message.name = 'snooze' THEN PERFORM mq_snooze('1 hour'); ELSE PERFORM mq_discard('unwanted'); END IF;
	END $$;
	SELECT mq_register_handler('says', 'say(mq_message)', mode => 'leased')});

# The handler waits for the first session until the second has locked its message.
my $gate = $node->background_psql($db);
my $other = $node->background_psql($db);
my $blocked = sub { qq{SELECT count(*) FROM pg_stat_activity WHERE query ~ 'say' AND wait_event_type = 'Lock' AND wait_event = '$_[0]'} };
for my $name (qw(snooze discard)) {
	$gate->query_safe('SELECT pg_advisory_lock(7)');
	$node->safe_psql($db, qq{SELECT mq_send('says', name => '$name', retries => 0)});
	within(20, $node, $db, $blocked->('advisory'), 1, "$name: the handler runs");
	$other->query_safe(qq{BEGIN; SELECT FROM mq_msgs JOIN mq_payloads USING (id) WHERE name = '$name' FOR UPDATE OF mq_msgs});
	$gate->query_safe('SELECT pg_advisory_unlock(7)');
	within(20, $node, $db, $blocked->('transactionid'), 1, "$name: it waits for whoever has locked its message");
	$other->query_safe('COMMIT');
	within(20, $node, $db, qq{SELECT count(*) FROM said WHERE what = '$name'}, 1, "$name: what it wrote is kept");
}
within(20, $node, $db, q{SELECT name, attempt, attempt_at > now() + interval '50 minutes' FROM mq_msgs JOIN mq_payloads USING (id)}, 'snooze|0|t',
	'the one is put off, and no attempt is charged');
within(20, $node, $db, 'SELECT name, reason, error FROM mq_dead', 'discard|discarded|unwanted', 'the other is a dead letter');
holds($node, $db, 'SELECT count(*) FROM mq_failures', 0, 'nothing failed');
$gate->quit;
$other->quit;

$node->stop;
log_is_clean($node);
done_testing();
