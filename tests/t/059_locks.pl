# A transaction that stays open with rows of mq's tables locked, as an application's foreign key, a SELECT ... FOR UPDATE
# or a forgotten psql does, holds up those rows and nothing else. mq_health() says who it is.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

# What is held is looked for again now and then, so the interval is not an hour; and the sweep comes with it.
my $node = mq_node('locks', 'mq.max_workers' => 1, 'mq.poll_interval' => '200ms', 'mq.dead_retention' => '0', 'mq.failure_retention' => '0');
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }

sql(q{
	CREATE EXTENSION mq;
	CREATE TABLE handled (n int);
	CREATE FUNCTION take(p jsonb) RETURNS void LANGUAGE sql AS 'INSERT INTO handled VALUES ((p ->> ''n'')::int)';
	CREATE FUNCTION wait(p jsonb) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM pg_advisory_xact_lock(7);
	END $$;
	SELECT mq_register_handler('fast', 'take(jsonb)'), mq_register_handler('leased', 'take(jsonb)', mode => 'leased'),
	       mq_register_handler('wait', 'wait(jsonb)');
	-- An application's table that points at messages.
	CREATE TABLE orders (n int, message uuid REFERENCES mq_msgs)});

my $held_by;
sub hold {
	my ($statement) = @_;
	$held_by = $node->background_psql($db, on_error_die => 1);
	$held_by->query_safe(q{SET application_name = 'the holder'});
	$held_by->query_safe('BEGIN');
	return $held_by->query_safe($statement);
}
sub let_go {
	$held_by->query_safe('ROLLBACK');
	$held_by->quit;
}
sub n_of { return "SELECT count(*) FROM handled WHERE n = $_[0]" }
my $left = 'SELECT (SELECT count(*) FROM mq_msgs), (SELECT count(*) FROM mq_payloads)';
sub id_of { return sprintf '00000000-0000-4000-8000-%012d', shift }
my $n = 0;
# Another message is handled; it is the only worker that does.
sub goes_on {
	my ($channel, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	for (1 .. 3) {
		++$n;
		sql(qq{SELECT mq_send('$channel', '{"n": $n}')});
		within(20, $node, $db, n_of($n), 1, "$what: others are handled ($channel, $_)") or return;
	}
}
sub health { my ($check) = @_; return qq{SELECT ok, detail FROM mq_health() WHERE "check" = '$check'} }

# --- rows of other tables ------------------------------------------------------------------------

goes_on('fast', 'before');
for my $table ('mq_dead', 'mq_failures') {
	sql(q{ALTER SYSTEM SET mq.dead_retention = '-1'; ALTER SYSTEM SET mq.failure_retention = '-1'; SELECT pg_reload_conf()});
	within(10, $node, $db, q{SHOW mq.dead_retention}, '-1', "$table: it is kept");
	sql($table eq 'mq_dead'
		? q{INSERT INTO mq_dead (id, died_at, channel_name, channel_args, ordered, attempts_made, reason, retry_backoff, channel_key)
		      SELECT gen_random_uuid(), now() - interval '1 year', 'old', '', false, 1, 'exhausted', '1 s', 0 FROM generate_series(1, 3)}
		: q{INSERT INTO mq_failures (message_id, attempt, failed_at, channel_name, channel_args, sqlstate, error, channel_key)
		      SELECT gen_random_uuid(), 1, now() - interval '1 year', 'old', '', 'P0001', 'no', 0 FROM generate_series(1, 3)});
	hold("SELECT ctid FROM $table ORDER BY ctid LIMIT 1 FOR UPDATE");
	sql(q{ALTER SYSTEM RESET ALL; SELECT pg_reload_conf()});
	within(20, $node, $db, "SELECT count(*) FROM $table", 1, "$table: retention goes on behind a row that is held");
	goes_on('fast', "a held row of $table");
	let_go();
	within(20, $node, $db, "SELECT count(*) FROM $table", 0, "$table: and takes that later");
}
sql(q{SELECT mq_pause('paused')});
for my $table ('mq_stats_totals', 'mq_handlers', 'mq_paused', 'mq_stats_deltas') {
	hold("SELECT ctid FROM $table FOR UPDATE");
	goes_on($_, "held rows of $table") for 'fast', 'leased';
	let_go();
}
holds($node, $db, q{SELECT sum(handled) FROM mq_stats}, sql('SELECT count(*) FROM handled'), 'and the totals are right');

# --- rows of messages ----------------------------------------------------------------------------

my $lock = 10_000;
for my $channel ('fast', 'leased') {
	for my $how ('FOR KEY SHARE', 'FOR SHARE', 'FOR UPDATE', 'a foreign key') {
		my $id = id_of(++$lock);
		# It is held before it is claimed.
		sql(qq{SELECT mq_pause('$channel')});
		sql(qq{SELECT mq_send('$channel', '{"n": $lock}', id => '$id')});
		hold($how eq 'a foreign key' ? "INSERT INTO orders VALUES (1, '$id')" : "SELECT id FROM mq_msgs WHERE id = '$id' $how");
		sql(qq{SELECT mq_resume('$channel')});
		goes_on($_, "a message held $how") for 'fast', 'leased';
		within(20, $node, $db, health('messages not locked'), qr/^f\|.*1 of $channel by process \d+ \(the holder, idle in transaction\) since .*pg_terminate_backend/s,
			"mq_health() names who holds a message of $channel $how");
		let_go();
		within(20, $node, $db, n_of($lock), 1, "$channel: then it is handled, once");
		within(20, $node, $db, $left, '0|0', "$channel: and gone");
	}
	for my $how ('FOR KEY SHARE', 'FOR UPDATE') {
		my $id = id_of(++$lock);
		sql(qq{SELECT mq_pause('$channel')});
		sql(qq{SELECT mq_send('$channel', '{"n": $lock}', id => '$id')});
		hold("SELECT id FROM mq_payloads WHERE id = '$id' $how");
		sql(qq{SELECT mq_resume('$channel')});
		goes_on($_, "a message held $how by its payload") for 'fast', 'leased';
		within(20, $node, $db, health('messages not locked'), qr/^f\|.*1 of $channel by process \d+ \(the holder, idle in transaction\)/s,
			"mq_health() names who holds a message of $channel $how by its payload");
		let_go();
		within(20, $node, $db, n_of($lock), 1, "$channel: then it is handled, once");
		within(20, $node, $db, $left, '0|0', "$channel: and gone");
	}
}
within(20, $node, $db, health('messages not locked'), 't|', 'mq_health() is content');
holds($node, $db, 'SELECT count(*) FROM handled GROUP BY n HAVING count(*) > 1', '', 'nothing was handled twice');
holds($node, $db, 'SELECT count(*) FROM mq_failures', 0, 'and nobody was charged');

# mq_poll waits for nobody, also where it has to remove what has expired.
sql(q{SELECT mq_send('outside', '{"n": 1}', id => '} . id_of(999) . q{', expires => '1 h'), mq_send('outside', '{"n": 2}')});
hold(q{SELECT id FROM mq_msgs WHERE id = '} . id_of(999) . q{' FOR KEY SHARE});
sql(q{UPDATE mq_msgs SET expires_at = now() WHERE expires_at IS NOT NULL});
holds($node, $db, q{SET statement_timeout = '10 s'; SELECT payload_json FROM mq_poll('{outside}', 1)}, '{"n": 2}', 'mq_poll does not wait for an expired message');
let_go();
sql('SELECT mq_clear_all()');

# --- locks of tables, and a handler's own ------------------------------------------------------------

sql(q{SELECT mq_pause('fast')});
sql(q{SELECT mq_send('fast', '{"n": 5000}')});
hold('LOCK TABLE mq_payloads IN SHARE MODE');
sql(q{SELECT mq_resume('fast')});
within(20, $node, $db, health('workers do not wait for locks'),
	qr/^f\|.*which looks after the queue, for RowExclusiveLock on mq_msgs, behind process \d+ \(the holder, idle in transaction\)/s, 'mq_health() says that the worker waits for a locked table, and for whom');
let_go();
within(20, $node, $db, n_of(5000), 1, 'then it goes on');
hold('SELECT pg_advisory_xact_lock(7)');
sql(q{SELECT mq_send('wait', '{}')});
within(20, $node, $db, health('workers do not wait for locks'), qr/^f\|.*in its handler, for ExclusiveLock on advisory, behind process \d+ \(the holder, idle in transaction\)/s,
	'and that it is the handler which waits');
let_go();
within(20, $node, $db, $left, '0|0', 'all is handled');
within(20, $node, $db, health('workers do not wait for locks'), 't|', 'mq_health() is content');

# Who would look at a table that is locked does not wait, but is told.
my ($somebody) = split /\n/, sql(q{SELECT mq_send('fast', '{}', delay => '1 h')});
hold('LOCK TABLE mq_msgs IN ACCESS EXCLUSIVE MODE');
within(20, $node, $db, q{SELECT string_agg(concat_ws('|', "check", ok, detail), ' ') FROM mq_health() WHERE NOT ok},
	qr/^tables readable\|f\|mq_msgs is locked by process \d+ \(the holder, idle in transaction\) since [^;]*; messages wait for that, and no more can be told of them meanwhile: end that transaction$/,
	'mq_health() says which table is locked, and waits for nobody');
holds($node, $db, "SELECT mq_why('$somebody') ~ '^is where nobody can see it, and waits if it is due: mq_msgs is locked by process'", 't', 'mq_why() likewise');
let_go();
my $reader = $node->background_psql($db);
$reader->query_safe('BEGIN; SELECT count(*) FROM mq_dead');
my $locker = $node->background_psql($db);
$locker->query_until(qr/begun/, "BEGIN;\n\\echo begun\nLOCK TABLE mq_dead IN ACCESS EXCLUSIVE MODE;\n");
within(20, $node, $db, q{SELECT detail FROM mq_health() WHERE NOT ok}, qr/^whoever would read mq_dead waits behind the ALTER, VACUUM FULL, REINDEX or LOCK of process \d+ /,
	'nor behind somebody who waits to lock it');
$reader->query_safe('COMMIT');
$reader->quit;
$locker->query_safe('ROLLBACK');
$locker->quit;
sql(q{SELECT mq_clear('{fast}')});
within(20, $node, $db, health('tables readable'), 't|', 'mq_health() is content');

# REINDEX locks the table before its indexes. So do consumers, whatever they do: no deadlock comes of it.
set_and_reload($node, 'mq.max_workers' => 0);
within(30, $node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker'}, 0, 'the workers have gone');
my $clients = $node->basedir . '/clients.sql';
append_to_file($clients, q{SELECT count(*) FROM mq_send_many('received', array_fill('1'::jsonb, ARRAY[5]));
SELECT count(*) FROM (SELECT mq_ack(array_agg(id), lease) FROM mq_receive('{received}', 5) GROUP BY lease) a;
SELECT mq_delete(COALESCE(array_agg(id), '{}')) FROM mq_poll('{received}', 2) WHERE id IS NOT NULL;
});
my ($said, $complained) = ('', '');
my $load = IPC::Run::start([ 'pgbench', '--no-vacuum', '--client=6', '--time=60', '--file', $clients, $node->connstr($db) . ' application_name=clients' ], '>', \$said, '2>', \$complained, IPC::Run::timeout(200));
within(30, $node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'clients'}, 6, 'clients send and receive');
my @deadlocks = grep { !/^$/ } map { ($node->psql($db, "SET lock_timeout = '30 s'; REINDEX TABLE mq_msgs"))[2] } 1 .. 15;
is("@deadlocks", '', 'fifteen times the table is indexed anew beside them');
$load->signal('INT');
$load->finish;
unlike($complained, qr/deadlock|aborted/, 'none of them meets a deadlock');

# A sweep that comes upon a locked table does not wait for long, and says so.
log_is_clean($node, qr/LOG:  mq worker: canceling statement due to lock timeout \(SQLSTATE 55P03\)/);
$node->stop;
done_testing();
