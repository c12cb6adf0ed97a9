# Errors of the server at COMMIT are waited out, charged to nobody, and told in the log; a message whose COMMIT never succeeds
# comes to an end all the same.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('trouble_at_commit', 'mq.max_workers' => 8);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
sub is_now {
	my ($query, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return holds($node, $db, $query, $expected, $what);
}

# Each SQLSTATE has a channel, a role, whose worker alone waits, and a sequence that counts its COMMITs. A message's payload says
# how many of those fail.
my @states = qw(53100 57014 58030 XX000);
sql(q{
	CREATE EXTENSION mq;
	CREATE TABLE done (n bigserial, channel text, attempt int);
	CREATE TABLE late (channel text, failures int);
	CREATE FUNCTION fail_late() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
	BEGIN
	  IF nextval(quote_ident('commits_' || NEW.channel)) <= NEW.failures THEN RAISE EXCEPTION USING ERRCODE = left(NEW.channel, 5),
		MESSAGE = 'no commit, says the test'; END IF;
	  RETURN NULL;
	END $$;
	CREATE CONSTRAINT TRIGGER late AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail_late();
	CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  IF m.channel_name <> 'slow' THEN INSERT INTO done (channel, attempt) VALUES (m.channel_name, m.attempt); END IF;
	  IF m.payload_json ? 'failures' THEN INSERT INTO late VALUES (m.channel_name, (m.payload_json ->> 'failures')::int); END IF;
	  IF m.payload_json ? 'sleeps' THEN PERFORM pg_sleep((m.payload_json ->> 'sleeps')::float8); END IF;
	END $$});
for my $channel (@states, '53200 for ever') {
	my $role = 'role_' . substr($channel, 0, 5) . ($channel =~ /ever/ ? '_ever' : '');
	sql(qq{CREATE SEQUENCE "commits_$channel"; CREATE ROLE $role LOGIN; GRANT INSERT, SELECT ON done, late TO $role;
		GRANT USAGE ON done_n_seq TO $role;
	       SELECT mq_register_handler('$channel', 'handle(mq_message)', run_as => '$role')});
}
my $failures = 'SELECT count(*) FROM mq_failures';

# --- waited out ------------------------------------------------------------------------------------------

# One whose COMMIT never succeeds. Its worker takes turns with a slow channel, and pauses for a second only after each success.
sql(q{SELECT mq_register_handler('slow', 'handle(mq_message)', run_as => 'role_53200_ever');
      SELECT count(*) FROM mq_send_many('slow', array_fill('{"sleeps": 0.03}'::jsonb, ARRAY[60]));
      SELECT mq_send('53200 for ever', '{"failures": 1000}', 'bad', retries => 0)});
sql("SELECT mq_send('$_', '{\"failures\": 2}', retries => 0)") for @states;
within(30, $node, $db, 'SELECT count(*), max(attempt) FROM done', '4|1',
	'errors of the server at COMMIT are waited out, on the only attempt');
is_now($failures, 0, '... and charged to nobody');
is_now(join(', ', map { ($_ eq $states[0] ? 'SELECT ' : '') . "(SELECT last_value FROM \"commits_$_\")" } @states), '3|3|3|3',
	'... after as many COMMITs as failed');
for my $state (@states) { like(slurp_file($node->logfile), qr/mq worker: .*no commit, says the test \(SQLSTATE $state\)/,
	"... which the log tells, $state") }
# A batch fails as a whole; the worker does not know of whom it is.
sql(q{TRUNCATE done; ALTER SEQUENCE "commits_53100" RESTART; SELECT count(*)
	FROM mq_send_many('53100', array_fill('{"failures": 2}'::jsonb, ARRAY[10]), retries => 0)});
within(30, $node, $db, "SELECT count(*), max(attempt), ($failures) FROM done", '10|1|0', 'so it is with those of a batch');

# --- for ever ----------------------------------------------------------------------------------------------

within(90, $node, $db, q{SELECT name, reason, attempts_made, sqlstate FROM mq_dead}, 'bad|exhausted|1|53200',
	'a message whose COMMIT never succeeds dies of it');
is_now(q{SELECT last_value BETWEEN 11 AND 81 FROM "commits_53200 for ever"}, 't',
	'... when one of its workers has tried eleven times');

$node->stop;
log_is_clean($node, qr/mq worker: .*says the test/);
done_testing();
