# Results that cannot be written, be it of a call, of a crash, or of a batch of nothing but what cannot be delivered: they are
# told, charged to nobody, written when they can be, and nobody spins meanwhile.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('not_written', 'mq.max_workers' => 1, restart_after_crash => 'on');
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
sub is_now {
	my ($query, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return holds($node, $db, $query, $expected, $what);
}
sql(q{
	CREATE EXTENSION mq;
	CREATE SEQUENCE calls;
	CREATE TABLE done (channel text, attempt int);
	CREATE TABLE gate ();
	CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO done (channel, attempt) VALUES (m.channel_name, m.attempt);
	  IF m.payload_json ? 'counted' THEN PERFORM nextval('calls'); END IF;
	  WHILE m.payload_json ? 'gate' AND NOT EXISTS (SELECT FROM gate) LOOP PERFORM pg_sleep(0.1); END LOOP;
	END $$;
	CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
	  RAISE EXCEPTION USING ERRCODE = '53100', MESSAGE = 'no space, says the test';
	END $$;
	SELECT mq_register_handler('c', 'handle(mq_message)'), mq_register_handler('gated', 'handle(mq_message)')});
my $failures = 'SELECT count(*) FROM mq_failures';

# --- a crash that cannot be charged -----------------------------------------------------------------------

sql(q{SELECT mq_send('gated', '{"gate": 1}', retries => 1, retry_backoff => '0')});
my $sleeper = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'mq worker' AND wait_event = 'PgSleep'};
my ($good, $pid) = value_within(20, $node, $db, $sleeper, qr/^\d+$/);
ok($good, 'a call runs');
sql(q{SELECT mq_pause('gated'); CREATE TRIGGER refuse BEFORE INSERT ON mq_failures FOR EACH ROW EXECUTE FUNCTION refuse()});
kill 'KILL', $pid;
value_within(20, $node, $db, "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid", 0);
sql('TRUNCATE done');
sql(q{SELECT mq_send('c')});
within(20, $node, $db, q{SELECT count(*) FROM done WHERE channel = 'c'}, 1,
	'others are handled though a crash cannot be charged');
within(20, $node, $db, q{SELECT string_agg(detail, ' ') FROM mq_health() WHERE NOT ok}, qr/no space, says the test/,
	'... which mq_health() tells');
is_now("SELECT attempt, ($failures) FROM mq_msgs WHERE channel_name = 'gated'", '0|0', '... and which is not forgotten');
sql('DROP TRIGGER refuse ON mq_failures');
within(20, $node, $db, q{SELECT attempt, sqlstate FROM mq_failures}, '1|57P02', 'it is charged when that can be written');
sql(q{INSERT INTO gate DEFAULT VALUES; SELECT mq_resume('gated')});
within(20, $node, $db, q{SELECT attempt FROM done WHERE channel = 'gated'}, 2, '... once');
sql('TRUNCATE done; DELETE FROM mq_failures');

# --- a result that cannot be written -----------------------------------------------------------------------

# Calls are counted, and COMMITs, of a worker that is woken all the time.
sub does_not_spin {
	my ($what, $counted) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	within(20, $node, $db, "SELECT last_value > 0 AND is_called FROM $counted", 't', "$what: a worker has tried");
	for my $round (1 .. 15) { sql(q{SELECT mq_send('c', name => 'beside'), pg_sleep(0.2)}) }
	cmp_ok(sql("SELECT last_value FROM $counted"), '<=', 25, "$what: and does not spin");
}
sql(q{CREATE TRIGGER refuse BEFORE DELETE ON mq_msgs FOR EACH ROW WHEN (OLD.channel_name = 'c') EXECUTE FUNCTION refuse()});
sql(q{SELECT mq_send('c', '{"counted": 1}')});
does_not_spin('a removal that is refused', 'calls');
sql('DROP TRIGGER refuse ON mq_msgs');
within(30, $node, $db, q{SELECT count(*) FROM done WHERE channel = 'c'}, 16, '... handled when it can be');
is_now($failures, 0, '... and nothing is charged');

# A batch of nothing but what cannot be delivered.
for my $state ('53100', '23503') {
	sql(qq{CREATE SEQUENCE commits; CREATE FUNCTION refuse_late() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN PERFORM nextval('public.commits'); RAISE EXCEPTION USING ERRCODE = '$state', MESSAGE = 'no letter, says the test';
			END \$\$;
		CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON mq_dead DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW EXECUTE FUNCTION refuse_late()});
	sql(q{SELECT mq_send('c', name => 'expired', expires => '1 us'), pg_sleep(0.001)});
	does_not_spin("a dead letter that fails at COMMIT with $state", 'commits');
	like(slurp_file($node->logfile), qr/mq worker: .*no letter, says the test \(SQLSTATE $state\)/, '... and is told in the log');
	sql('DROP TRIGGER refuse ON mq_dead; DROP SEQUENCE commits; DROP FUNCTION refuse_late');
	# It has been put off meanwhile.
	sql(q{UPDATE mq_msgs SET attempt_at = now() WHERE channel_name = 'c'; SELECT mq_pause('c'), mq_resume('c')});
	within(30, $node, $db, q{SELECT reason FROM mq_dead WHERE channel_name = 'c'}, 'expired', '... until it can be written');
	sql(q{DELETE FROM mq_dead WHERE channel_name = 'c'});
}

$node->stop;
log_is_clean($node, qr/mq worker: .*says the test/, qr/terminated by signal 9/, qr/WARNING: .*terminating connection because of/,
	qr/FATAL: .*(in recovery|starting up|not yet accepting)/, qr/exited with exit code 2/);
done_testing();
