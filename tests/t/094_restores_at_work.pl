# A restore beside what is at work: whoever has found the database enabled a moment before handles, settles, repairs and dead-letters
# nothing that the restore brings, and what it has begun itself ends before the restore commits or comes again.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqSession;
use MqTest;
use Test::More;

my @served = qw(tables leased charged);
my $node = mq_node('restores', 'mq.poll_interval' => '100ms', 'mq.max_workers' => 1, 'mq.databases' => join ', ', @served);

# A database with the extension, and in the table `kept` a message of the channel 'c' that a restore may bring: one that is due, or has expired.
sub database {
	my ($name, $expires) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql($name, 'CREATE EXTENSION mq');
	handled_table($node, $name);
	$node->safe_psql($name, qq{
		CREATE FUNCTION handle_locked(m mq_message) RETURNS void LANGUAGE plpgsql AS \$\$
		BEGIN
		  PERFORM pg_advisory_xact_lock_shared(1);
		  INSERT INTO handled (name, attempt) VALUES (m.name, m.attempt);
		END \$\$;
		BEGIN;
		SELECT mq_send('c', name => 'restored', expires => @{[$expires ? "'$expires'" : 'NULL']});
		CREATE TABLE kept AS SELECT * FROM mq_msgs;
		DELETE FROM mq_msgs;
		COMMIT});
}

# A session that restores what is kept, and one that holds up handlers.
my ($restore, $other);
sub sessions {
	my ($name) = @_;
	($restore, $other) = map { MqSession->new($node, $name) } 1 .. 2;
	$restore->query('SET row_security = off');
	$other->query('SELECT pg_advisory_lock(1)');
}
sub release { $other->query('SELECT pg_advisory_unlock(1)') }
sub end { $_->quit for $restore, $other }

my $bring = 'INSERT INTO mq_msgs SELECT * FROM kept';
my $enabled = q{SELECT ok FROM mq_health() WHERE "check" = 'database enabled'};
sub waits {
	my ($condition) = @_;
	return "SELECT count(*) > 0 FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted AND a.datname = current_database() AND $condition";
}

# --- every table of a dump --------------------------------------------------------------------------

database('tables');
my @tables = split /\n/, $node->safe_psql('tables', q{
	SELECT c.relname FROM pg_extension e, unnest(e.extconfig) AS t (oid) JOIN pg_class c ON c.oid = t.oid WHERE e.extname = 'mq' AND c.relkind = 'r' ORDER BY 1});
cmp_ok(scalar @tables, '>', 5, 'a dump has tables of mq');
for my $table (@tables) {
	my $file = $node->basedir . "/$table";
	$node->safe_psql('tables', "COPY (SELECT * FROM $table LIMIT 0) TO '$file'");
	for my $statement ("INSERT INTO $table OVERRIDING SYSTEM VALUE SELECT * FROM $table LIMIT 0", "COPY $table FROM '$file'") {
		$node->safe_psql('tables', "SET row_security = off; $statement");
		holds($node, 'tables', $enabled, 'f', "a restore disables that begins with $statement");
		$node->safe_psql('tables', 'SELECT mq_enable()');
	}
}
$node->safe_psql('tables', "COPY mq_dead FROM '@{[$node->basedir]}/mq_dead'");
holds($node, 'tables', $enabled, 't', 'dead letters that are copied back by hand are no restore');

# --- leased calls -----------------------------------------------------------------------------------

# Each of two sessions has had a call, so one is idle. The worker is held up while it settles the other's call: after that, it
# would begin calls for what is due.
database('leased');
sessions('leased');
$node->safe_psql('leased', q{
	SELECT mq_register_handler('c', 'handle_locked(mq_message)', mode => 'leased'), mq_register_handler('c', 'handle(mq_message)', 'second', mode => 'leased'),
	       mq_send('c', name => 'first'), mq_send('c', name => 'second')});
within(20, $node, 'leased', waits(q{a.application_name = 'mq handler'}), 't', 'a leased call waits');
within(20, $node, 'leased', q{SELECT string_agg(name, ' ') FROM handled}, 'second', 'another is over');
within(20, $node, 'leased', q{SELECT string_agg(message_name, ' ') FROM mq_msgs}, 'first', 'and settled');
$restore->query('BEGIN; LOCK TABLE mq_msgs IN SHARE MODE');
release();
within(20, $node, 'leased', waits(q{a.backend_type = 'mq worker' AND l.relation = 'mq_msgs'::regclass}), 't', 'the worker waits while it settles the first call');
# Due a moment ago, or the low-water mark of the channel would hide it.
is($restore->query("UPDATE kept SET attempt_at = clock_timestamp(); $bring; COMMIT"), '', 'a restore does not wait for it');
looks_again($node, 'leased', 'leased');
within(20, $node, 'leased', q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mq handler'}, 0, 'its worker has left');
holds($node, 'leased', $enabled, 'f', 'leased: the database is not enabled');
holds($node, 'leased', q{SELECT string_agg(name, ' ' ORDER BY name) FROM handled}, 'first second', 'no leased call began for what was restored');
holds($node, 'leased', q{SELECT string_agg(message_name, ' ' ORDER BY message_name) FROM mq_msgs}, 'first restored', 'and a call that had ended is not settled');
$node->safe_psql('leased', 'SELECT mq_enable()');
within(20, $node, 'leased', q{SELECT string_agg(name || ' ' || attempt, ', ' ORDER BY n) FROM handled WHERE name <> 'second'}, qr/^first 1, (first 1, restored 1|restored 1, first 1)$/,
	'once enabled both are called, and nothing is charged for that call');
end();

# --- an error at COMMIT -----------------------------------------------------------------------------

# The worker's transaction is over when it charges the message.
database('charged');
sessions('charged');
$node->safe_psql('charged', q{
	CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM pg_advisory_xact_lock_shared(1);
	  RAISE unique_violation;
	END $$;
	CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON handled DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail();
	SELECT mq_register_handler('c', 'handle(mq_message)'), mq_send('c', name => 'failing', retries => 0)});
within(20, $node, 'charged', waits(q{a.backend_type = 'mq worker' AND l.locktype = 'advisory'}), 't', 'a worker commits');
$restore->query('BEGIN');
$restore->start($bring);
release();
is($restore->result, '', 'a restore waits for that');
within(20, $node, 'charged', waits(q{a.backend_type = 'mq worker' AND l.locktype = 'object'}) . ' OR EXISTS (SELECT FROM mq_dead)', 't', 'the worker goes on');
holds($node, 'charged', 'SELECT count(*) FROM mq_dead', 0, 'no message dies while rows are restored');
$restore->query('COMMIT');
looks_again($node, 'charged', 'charged');
holds($node, 'charged', q{SELECT string_agg(message_name || ' ' || attempt, ', ' ORDER BY message_name) FROM mq_msgs}, 'failing 0, restored 0', 'and none is charged after that');
$node->safe_psql('charged', 'SELECT mq_enable()');
within(20, $node, 'charged', q{SELECT string_agg(name, ' ') FROM mq_dead}, 'failing', 'once enabled it fails again, and dies');
end();

# --- mq_run -----------------------------------------------------------------------------------------

# No worker is here, nor in what follows.
database('run');
sessions('run');
$node->safe_psql('run', q{SELECT mq_register_handler('c', 'handle_locked(mq_message)'), mq_send('c', name => 'sent')});
my $runner = MqSession->new($node, 'run');
$runner->start('CALL mq_run()');
$restore->start($bring);
holds($node, 'run', waits(q{l.locktype = 'object' AND l.mode = 'AccessExclusiveLock'}), 't', 'a restore waits for the batch of mq_run');
release();
is($runner->result, 'error 55000', 'mq_run ends with that batch');
is($restore->result, '', 'and the restore goes on');
holds($node, 'run', q{SELECT string_agg(name, ' ') FROM handled}, 'sent', 'what was there is handled');
holds($node, 'run', q{SELECT string_agg(message_name, ' ') FROM mq_msgs}, 'restored', 'what was restored is not');
$runner->quit;
end();

# --- mq_poll ----------------------------------------------------------------------------------------

# It looks first whether the database is enabled, then waits for the table.
database('polled', '1 ms');
sessions('polled');
my $poller = MqSession->new($node, 'polled');
$restore->query('BEGIN; LOCK TABLE mq_msgs');
$poller->start(q{SELECT count(id) FROM mq_poll('{c}')});
$restore->query("$bring; COMMIT");
is($poller->result, 0, 'mq_poll passes over what a restore brings that cannot be delivered');
holds($node, 'polled', 'SELECT count(*) FROM mq_dead', 0, 'and does not move it to the dead letters');
holds($node, 'polled', 'SELECT count(*) FROM mq_msgs', 1, 'it is as it was');
# Ordered messages whose head is still to come, and a channel that is noted for its head.
$node->safe_psql('polled', q{
	SELECT mq_enable(), mq_clear_all();
	BEGIN;
	SELECT mq_send('c', name => 'first', ordered => true), mq_send('c', name => 'second', ordered => true);
	TRUNCATE kept;
	INSERT INTO kept SELECT * FROM mq_msgs WHERE message_name = 'second';
	CREATE TABLE noted AS SELECT channel_key, channel_name, channel_args FROM kept;
	DELETE FROM mq_msgs;
	COMMIT});
for my $noted (0, 1) {
	$restore->query('BEGIN; LOCK TABLE mq_msgs, mq_headless');
	$poller->start(q{SELECT count(id) FROM mq_poll('{c}')});
	$restore->query($bring . ($noted ? '; INSERT INTO mq_headless SELECT * FROM noted' : '') . '; COMMIT');
	is($poller->result, 0, "mq_poll gives no ordered message whose head is still to come ($noted noted)");
	holds($node, 'polled', q{SELECT after_message_id <> '00000000-0000-0000-0000-000000000000' FROM mq_msgs}, 't', 'nor makes it the head');
	holds($node, 'polled', 'SELECT count(*) FROM mq_headless', $noted, 'and what is noted stays so');
	$node->safe_psql('polled', 'TRUNCATE mq_msgs, mq_headless; SELECT mq_enable()');
}
$poller->quit;
end();

# --- a first handler, and a key ---------------------------------------------------------------------

# The database is empty and not enabled, as after a dump of the schema alone.
database('empty');
sessions('empty');
$restore->query("$bring LIMIT 0");
$restore->query("BEGIN; $bring");
$other->start(q{SELECT mq_register_handler('c', 'handle(mq_message)')});
$restore->query('COMMIT');
$other->result;
holds($node, 'empty', $enabled, 'f', 'the first handler does not enable a database that a restore fills');
$node->safe_psql('empty', q{SELECT mq_send('keyed', dedup_key => 'k', expires => '1 ms')});
$node->safe_psql('empty', q{SELECT mq_send('keyed', name => 'new', dedup_key => 'k')});
holds($node, 'empty', q{SELECT string_agg(message_name || ' ' || (dedup_key IS NOT NULL), ', ' ORDER BY seq) FROM mq_msgs WHERE channel_name = 'keyed'}, 'keyed false, new true',
	'in a database that is not enabled a message that has expired gives up its key');
holds($node, 'empty', 'SELECT count(*) FROM mq_dead', 0, 'and does not die of it');
end();

log_is_clean($node, qr/mq worker: canceling statement due to user request/,    # it gave way to the restore
	qr/mq worker: .*duplicate key value|mq worker: unique_violation/);
done_testing();
