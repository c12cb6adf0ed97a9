# Limits: never more messages than max_pending, whoever sends and however that ends, and exactly as many when all is over;
# never more calls than max_running, of workers, leased calls and consumers; other channels are not held up, nobody spins, and
# whoever waits for room goes on when there is some.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run;
use MqSession;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $seed = $ENV{MQ_SEED} // int(rand(2**31));
note "MQ_SEED=$seed";
my $db = 'postgres';
# try_send: how many of the messages were sent. `most`: the greatest number of messages that anybody has seen.
my $functions = q{
	CREATE FUNCTION try_send(channel text, messages int DEFAULT 1, in_order boolean DEFAULT false, args text DEFAULT '') RETURNS bigint LANGUAGE plpgsql AS $$
	BEGIN
	  RETURN (SELECT count(*) FROM mq_send_many(channel, array_fill('1'::jsonb, ARRAY[messages]), ordered => in_order, channel_args => args));
	EXCEPTION WHEN configuration_limit_exceeded THEN
	  RETURN 0;
	END $$;
	CREATE TABLE stop (n int);
	CREATE FUNCTION watch(channel text, OUT looks bigint, OUT most bigint) LANGUAGE plpgsql AS $$
	DECLARE
	  found bigint;
	BEGIN
	  looks := 0;
	  most := 0;
	  LOOP
	    SELECT count(*) INTO found FROM mq_msgs WHERE channel_name = channel;
	    most := GREATEST(most, found);
	    looks := looks + 1;
	    EXIT WHEN looks > 100 AND EXISTS (SELECT FROM stop);
	  END LOOP;
	END $$;
	-- Terminates senders, one after the other; returns how many.
	CREATE FUNCTION terminate_senders(most int, OUT terminated int) LANGUAGE plpgsql AS $$
	BEGIN
	  terminated := 0;
	  LOOP
	    PERFORM pg_stat_clear_snapshot();
	    terminated := terminated + (SELECT count(pg_terminate_backend(pid))
	      FROM (SELECT pid FROM pg_stat_activity WHERE application_name = 'senders' ORDER BY random() LIMIT 1) a);
	    EXIT WHEN terminated >= most OR EXISTS (SELECT FROM stop);
	    PERFORM pg_sleep(0.02);
	  END LOOP;
	END $$;
	-- How many times in a second workers of this database begin to wait.
	CREATE FUNCTION waits_a_second() RETURNS float8 LANGUAGE plpgsql AS $$
	DECLARE
	  seen text[] := '{}';
	  began timestamptz := clock_timestamp();
	BEGIN
	  FOR n IN 1 .. 300 LOOP
	    seen := seen || array(SELECT pid || ' ' || since FROM mq_workers WHERE database = current_database() AND state = 'waiting');
	    PERFORM pg_sleep(0.005);
	  END LOOP;
	  RETURN (SELECT count(DISTINCT s) FROM unnest(seen) s) / extract(epoch FROM clock_timestamp() - began);
	END $$};

# Scripts of pgbench by their weights; each knows :n, how many messages it sends.
my $files = 0;
sub scripts {
	my ($node, %mix) = @_;
	my @files;
	for my $name (sort keys %mix) {
		my ($weight, $lines) = @{ $mix{$name} };
		my $file = $node->basedir . "/" . ++$files . " $name.sql";
		append_to_file($file, join "\n", '\set n random(1, 4)', '\set ms random(0, 3)', (map { s/^\s+//r } split /\n/, $lines), '');
		push @files, '--file', "$file\@$weight";
	}
	return @files;
}
sub mix {
	my ($c) = @_;
	# Whoever locks others of an ordered channel would wait for one another.
	my $first = qq{channel_name = '$c' AND COALESCE(after_message_id, '00000000-0000-0000-0000-000000000000') = '00000000-0000-0000-0000-000000000000'};
	return (
		commits => [ 30, "SELECT try_send('$c', :n);" ],
		ordered => [ 10, "SELECT try_send('$c', :n, true, 'x');" ],
		waits => [ 20, "BEGIN;\nSELECT try_send('$c', :n);\n\\sleep :ms ms\nSELECT try_send('$c');\nCOMMIT;" ],
		'rolls back' => [ 10, "BEGIN;\nSELECT try_send('$c', :n);\n\\sleep :ms ms\nROLLBACK;" ],
		savepoint => [ 10, "BEGIN;\nSELECT try_send('$c');\nSAVEPOINT a;\nSELECT try_send('$c', :n);\n\\sleep :ms ms\nROLLBACK TO a;\nSELECT try_send('$c');\nCOMMIT;" ],
		replaces => [ 10, "BEGIN;\nSELECT mq_delete(COALESCE(array_agg(id), '{}')) FROM (SELECT id FROM mq_msgs WHERE $first ORDER BY id LIMIT :n FOR UPDATE SKIP LOCKED) m;\nSELECT try_send('$c', :n);\nCOMMIT;" ],
		deletes => [ 6, "SELECT mq_delete(COALESCE(array_agg(id), '{}')) FROM (SELECT id FROM mq_msgs WHERE $first ORDER BY id DESC LIMIT 3 FOR UPDATE SKIP LOCKED) m;" ],
		'by hand' => [ 2, "BEGIN;\nDELETE FROM mq_msgs WHERE id IN (SELECT id FROM mq_msgs WHERE channel_name = '$c' AND after_message_id IS NULL LIMIT :n FOR UPDATE SKIP LOCKED);\nSELECT try_send('$c', :n);\nCOMMIT;" ]);
}
# Fills the channel up, one message at a time: so many are in it then.
sub fills_to {
	my ($node, $channel, $most, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->safe_psql($db, "SELECT count(*) FROM generate_series(1, $most + 10) n WHERE try_send('$channel') = 1");
	return holds($node, $db, "SELECT count(*) FROM mq_msgs WHERE channel_name = '$channel'", $most, $what);
}
# Runs them with so many clients while a session watches. `meanwhile` is called when they have begun.
sub race {
	my ($node, $channel, $most, $clients, $transactions, $what, $meanwhile) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->safe_psql($db, 'TRUNCATE stop');
	my $watch = MqSession->new($node, $db);
	$watch->begin("SELECT looks > 100, most FROM watch('$channel')");
	my ($out, $err) = ('', '');
	my $run = IPC::Run::start([ 'pgbench', '--no-vacuum', "--client=$clients", '--jobs=2', "--transactions=$transactions", "--random-seed=$seed",
			scripts($node, mix($channel)), $node->connstr($db) . ' application_name=senders' ], '>', \$out, '2>', \$err, IPC::Run::timeout(200));
	$meanwhile->() if $meanwhile;
	$run->finish;
	$node->safe_psql($db, 'INSERT INTO stop VALUES (1)');
	my ($looked, $seen) = split /\|/, $watch->result;
	$watch->quit;
	is($looked, 't', "$what: somebody has watched");
	cmp_ok($seen, '<=', $most, "$what: never more than max_pending");
	return $err;
}
my $clear = q{SELECT mq_clear('{c}')};

# --- max_pending, with shared memory --------------------------------------------------------------

my $node = mq_node('limits', 'mq.max_workers' => 0, max_connections => 80, restart_after_crash => 'on');
$node->safe_psql($db, "CREATE EXTENSION mq; $functions; SELECT mq_limit('c', max_pending => 40)");
my $err = race($node, 'c', 40, 32, 60, '32 senders');
unlike($err, qr/error|aborted/i, 'no sender gets another error');
fills_to($node, 'c', 40, '32 senders: exactly max_pending when all is over');
holds($node, $db, 'SELECT pending, sending FROM mq_limits', '40|0', 'nothing is reserved any more');

# Sessions are terminated in the middle of it.
$node->safe_psql($db, $clear);
my $terminator = MqSession->new($node, $db);
race($node, 'c', 40, 32, 60, 'with senders that are terminated', sub { $terminator->begin('SELECT terminate_senders(20)') });
my $terminated = $terminator->result;
$terminator->quit;
cmp_ok($terminated, '>', 0, "$terminated senders were terminated");
within(30, $node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'senders'}, 0, 'they are gone');
holds($node, $db, 'SELECT sending FROM mq_limits', '0', 'nothing is reserved any more');
fills_to($node, 'c', 40, 'with senders that are terminated: exactly max_pending when all is over');

# A sender whose transaction others see already, but whose change is not in the sum yet, while another session counts: it waits
# for the sum's lock, which a session has that has been stopped. That one drops the sum all the time, and is stopped until it has the lock.
$node->safe_psql($db, $clear);
my ($dropper, $deleter) = map { MqSession->new($node, $db) } 1 .. 2;
$node->safe_psql($db, q{SELECT try_send('c', 30)});
$dropper->begin('DO $$ BEGIN LOOP DELETE FROM mq_msgs WHERE false; COMMIT; END LOOP; END $$');
my $is_late = 0;
for (my $end = time + 60; !$is_late && time < $end;) {
	$deleter->query(q{BEGIN; SELECT mq_delete(ARRAY[(SELECT id FROM mq_msgs ORDER BY id LIMIT 1)])});
	kill 'STOP', $dropper->{pid};
	$deleter->begin('COMMIT');
	until ($deleter->is_over || $is_late) {
		$is_late = $node->safe_psql($db, "SELECT count(*) FROM pg_stat_activity WHERE pid = $deleter->{pid} AND wait_event = 'mq counts'");
	}
	kill 'STOP', $deleter->{pid} if $is_late;
	kill 'CONT', $dropper->{pid};
	$deleter->result if !$is_late;
	$node->safe_psql($db, q{SELECT try_send('c')}) if !$is_late;
}
ok($is_late, 'a transaction waits for the lock of the sum');
$node->safe_psql($db, "SELECT pg_cancel_backend($dropper->{pid})");
is($dropper->result, 'error 57014', 'nobody else drops the sum any more');
my $pending = q{SELECT pending, (SELECT count(*) FROM mq_msgs WHERE channel_name = 'c') FROM mq_limits};
holds($node, $db, $pending, '29|29', 'its message is gone, and so it is counted');
kill 'CONT', $deleter->{pid};
$deleter->result;
holds($node, $db, $pending, '29|29', '... once');
$_->quit for $dropper, $deleter;
fills_to($node, 'c', 40, '... so that there is room for exactly max_pending');

# A crash in the middle of it.
$node->safe_psql($db, $clear);
my $sender = MqSession->new($node, $db);
$sender->query("BEGIN; SELECT try_send('c', 30)");
holds($node, $db, 'SELECT pending, sending FROM mq_limits', '0|30', 'what is not committed counts');
kill 'KILL', $sender->{pid};
within(60, $node, $db, 'SELECT pending, sending FROM mq_limits', '0|0', 'after a crash nothing is reserved');
fills_to($node, 'c', 40, 'after a crash: exactly max_pending');
$sender->{psql}{run}->kill_kill;

# Limits are in a dump, and hold where it is restored; a restore into tables that are there is noticed.
my $dump = $node->basedir . '/dump.sql';
$node->safe_psql($db, q{SELECT mq_limit('d', 5, 2, 3, 100, '1 minute', true)});
$node->command_ok([ 'pg_dump', '--file', $dump, $node->connstr($db) ], 'pg_dump');
$node->safe_psql($db, 'CREATE DATABASE restored');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $node->connstr('restored') ], 'the dump is restored');
holds($node, 'restored', 'SELECT * FROM mq_channel_limits ORDER BY channel_name', "c|40|||||f\nd|5|2|3|100|00:01:00|t", 'with its limits');
holds($node, 'restored', q{SELECT try_send('c'), try_send('d', 5), try_send('d')}, '0|5|0', 'which hold');
my $other = MqSession->new($node, 'restored');
is($other->query(q{SELECT try_send('e', 3)}), '3', 'a channel without limits');
$node->safe_psql('restored', q{COPY mq_channel_limits FROM STDIN;
e	3	\N	\N	\N	\N	f
\.
});
is($other->query(q{SELECT try_send('e')}), '0', 'a limit that is restored holds in a session that was there before');
$node->safe_psql('restored', q{DELETE FROM mq_channel_limits WHERE channel_name = 'e'});
is($other->query(q{SELECT try_send('e')}), '1', 'one that is deleted by hand does not');
$other->quit;

# What has reserved room cannot be prepared. What others have prepared is counted once it is committed.
$node->safe_psql($db, "$clear; SELECT mq_clear('{d}')");
my ($rc, $out, $error) = $node->psql($db, q{BEGIN; SELECT try_send('c'); PREPARE TRANSACTION 'p'});
like($error, qr/cannot PREPARE a transaction that has sent messages to a channel with max_pending/, 'a transaction that has sent to the channel is not prepared');
holds($node, $db, q{SELECT pending, sending FROM mq_limits WHERE channel_name = 'c'}, '0|0', '... and nothing is left of it');
$node->safe_psql($db, q{BEGIN; SELECT try_send('other'); SAVEPOINT a; SELECT try_send('c'); ROLLBACK TO a; PREPARE TRANSACTION 'p'});
$node->safe_psql($db, q{SELECT mq_unlimit('d'); BEGIN; SELECT try_send('d', 3); PREPARE TRANSACTION 'before'});
$node->safe_psql($db, q{SELECT mq_limit('d', max_pending => 4); SELECT try_send('d')});
$node->safe_psql($db, q{COMMIT PREPARED 'p'; COMMIT PREPARED 'before'});
holds($node, $db, q{SELECT try_send('d'), pending FROM mq_limits WHERE channel_name = 'd'}, '0|4', 'COMMIT PREPARED has the messages counted again');

# --- max_running ----------------------------------------------------------------------------------

set_and_reload($node, 'mq.max_workers' => 4);
$node->safe_psql($db, q{
	CREATE TABLE calls (n bigserial, channel text, mode text);
	-- Runs while a session holds the lock 1. Counts how many do: nobody else has the shared lock 2.
	CREATE FUNCTION gated(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM pg_advisory_xact_lock_shared(2);
	  PERFORM pg_advisory_xact_lock_shared(1);
	END $$;
	CREATE FUNCTION quick(m mq_message) RETURNS void LANGUAGE sql AS $$ INSERT INTO calls (channel) VALUES (m.channel_name) $$;
	SELECT mq_unlimit(channel_name) FROM mq_limits;
	SELECT mq_clear_all();
	SELECT mq_limit('gated', max_running => 2);
	SELECT mq_register_handler('quick', 'quick(mq_message)', batch_size => 1)});
my $running = q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 2 AND objsubid = 1 AND granted};
my $gate = MqSession->new($node, $db);
for my $mode ('transactional', 'leased') {
	$gate->query('SELECT pg_advisory_lock(1)');
	$node->safe_psql($db, qq{SELECT mq_register_handler('gated', 'gated(mq_message)', mode => '$mode', batch_size => 1)});
	$node->safe_psql($db, q{SELECT count(*) FROM mq_send_many('gated', array_fill('1'::jsonb, ARRAY[6]))});
	within(30, $node, $db, $running, 2, "$mode: as many calls run as max_running allows");
	$node->safe_psql($db, q{TRUNCATE calls; SELECT count(*) FROM mq_send_many('quick', array_fill('1'::jsonb, ARRAY[20]))});
	within(30, $node, $db, 'SELECT count(*) FROM calls', 20, "$mode: another channel is not held up");
	# A worker looks at most ten times a second for what others hold, and ever less often.
	cmp_ok($node->safe_psql($db, 'SELECT waits_a_second()'), '<=', 45, "$mode: and nobody spins");
	within(60, $node, $db, 'SELECT waits_a_second() <= 6', 't', "$mode: in the end it looks once a second");
	holds($node, $db, $running, 2, "$mode: no further call has begun");
	holds($node, $db, 'SELECT max_running, running FROM mq_limits', '2|2', "$mode: mq_limits counts them");
	holds($node, $db, q{SELECT count(*) FROM mq_receive('{gated}')}, 0, "$mode: a consumer outside gets nothing");
	within(10, $node, $db, q{SELECT detail FROM mq_health() WHERE "check" = 'calls limited'}, qr/gated \(max_running 2, the longest since/, "$mode: mq_health() says so");
	holds($node, $db, q{SELECT count(*) FROM mq_msgs m WHERE mq_why(m.id) ~ 'as many calls for channel "gated" run as max_running => 2 of mq_limit allows'}, 4, "$mode: mq_why() does");
	$node->safe_psql($db, q{SELECT mq_limit('gated', max_running => 3)});
	within(30, $node, $db, $running, 3, "$mode: with a greater limit another one begins");
	$node->safe_psql($db, q{SELECT mq_limit('gated', max_running => 2)});
	$gate->query('SELECT pg_advisory_unlock(1)');
	within(30, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'gated'}, 0, "$mode: when those are over the others are handled");
}
# Consumers outside take the room of workers, and the end of theirs is heard of.
$node->safe_psql($db, q{SELECT mq_pause('gated'); SELECT count(*) FROM mq_send_many('gated', array_fill('1'::jsonb, ARRAY[4]))});
$node->safe_psql($db, q{SELECT mq_unregister_handler('gated'); SELECT mq_resume('gated')});
my $receive = q{SELECT array_agg(id)::text || ' ' || min(lease) FROM mq_receive('{gated}', lease => '1 hour')};
my @received = map { $node->safe_psql($db, $receive) } 1 .. 3;
is(join(' ', map { $_ ne '' ? 1 : 0 } @received), '1 1 0', 'of three consumers two receive');
$gate->query('SELECT pg_advisory_lock(1)');
$node->safe_psql($db, q{SELECT mq_register_handler('gated', 'gated(mq_message)', batch_size => 1)});
my ($ids, $lease) = split / /, $received[0];
holds($node, $db, $running, 0, 'no call begins beside them');
within(10, $node, $db, q{SELECT string_agg(DISTINCT mq_why(id), ' ') FROM mq_msgs WHERE lease IS NULL},
	'is due, but as many calls for channel "gated" run as max_running => 2 of mq_limit allows, of consumers outside the server', 'mq_why() says so');
$node->safe_psql($db, "SELECT mq_ack('$ids', $lease)");
within(30, $node, $db, $running, 1, 'one begins when a consumer is done');
($ids, $lease) = split / /, $received[1];
$node->safe_psql($db, "SELECT mq_nack('$ids', $lease, 'no')");
within(30, $node, $db, $running, 2, 'and another');
$gate->query('SELECT pg_advisory_unlock(1)');
within(30, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'gated'}, 0, 'all are handled');
$gate->quit;

# A crash while as many calls run as may: their room is free again, and no more than that begin.
for my $mode ('transactional', 'leased') {
	my $before = MqSession->new($node, $db);
	$before->query('SELECT pg_advisory_lock(1)');
	$node->safe_psql($db, qq{SELECT mq_register_handler('gated', 'gated(mq_message)', mode => '$mode', batch_size => 1)});
	$node->safe_psql($db, q{SELECT count(*) FROM mq_send_many('gated', array_fill('1'::jsonb, ARRAY[6]), retries => 3, retry_backoff => '100 ms')});
	within(30, $node, $db, $running, 2, "$mode: two calls run");
	$node->safe_psql($db, q{SELECT mq_pause('gated')});
	kill 'KILL', $node->safe_psql($db, q{SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 2 AND objsubid = 1 AND granted LIMIT 1});
	$before->{psql}{run}->kill_kill;
	within(60, $node, $db, q{SELECT running FROM mq_limits WHERE channel_name = 'gated'}, 0, "$mode: after a crash none does");
	my $after = MqSession->new($node, $db);
	$after->query('SELECT pg_advisory_lock(1)');
	$node->safe_psql($db, q{SELECT mq_resume('gated')});
	# A leased message that was in flight when the server crashed runs alone, while its lease is renewed.
	my $after_crash = $mode eq 'leased' ? 1 : 2;
	within(60, $node, $db, $running, $after_crash, "$mode: after a crash calls run again");
	holds($node, $db, q{SELECT running FROM mq_limits WHERE channel_name = 'gated'}, $after_crash, "$mode: and are counted");
	cmp_ok($node->safe_psql($db, q{SELECT max(c) FROM (SELECT (SELECT count(*) FROM pg_locks WHERE objid = 2 AND objsubid = 1 AND granted AND n > 0) c, pg_sleep(0.01) FROM generate_series(1, 100) n) x}),
		'<=', 2, "$mode: and no more begin");
	$after->quit;
	within(60, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'gated'}, 0, "$mode: all are handled");
}

# --- senders, workers and a limit, all at once ----------------------------------------------------

$node->safe_psql($db, q{SELECT mq_register_handler('c', 'quick(mq_message)'); SELECT mq_limit('c', max_pending => 40, max_running => 2)});
race($node, 'c', 40, 16, 60, 'with workers');
within(60, $node, $db, q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'c'}, 0, 'with workers: all are handled');
holds($node, $db, q{SELECT pending, sending, running FROM mq_limits WHERE channel_name = 'c'}, '0|0|0', 'with workers: nothing is left in use');
$node->safe_psql($db, q{SELECT mq_unregister_handler('c')});
fills_to($node, 'c', 40, 'with workers: exactly max_pending when all is over');
$node->stop;
log_is_clean($node, qr/terminating connection due to administrator command/, qr/was terminated by signal 9/, qr/terminating connection because of crash/,
	qr/the database system is (in recovery mode|not yet accepting connections|starting up)/);

# --- without shared memory ------------------------------------------------------------------------

my $plain = mq_node('plain', shared_preload_libraries => '', max_connections => 40);
$plain->safe_psql($db, "CREATE EXTENSION mq; $functions; SELECT mq_limit('c', max_pending => 10)");
$err = race($plain, 'c', 10, 8, 40, 'without preload');
unlike($err, qr/error|aborted/i, 'without preload: no sender gets another error');
fills_to($plain, 'c', 10, 'without preload: exactly max_pending when all is over');
holds($plain, $db, 'SELECT pending, sending FROM mq_limits', '10|', 'without preload: mq_limits');
# Senders wait for one another, and there is no harm in PREPARE.
$plain->safe_psql($db, "$clear; SELECT try_send('c', 9); BEGIN; SELECT try_send('c'); PREPARE TRANSACTION 'p'");
my $waiting = MqSession->new($plain, $db);
$waiting->start(q{SELECT try_send('c')});
is($waiting->is_over, 0, 'without preload: a sender waits for a transaction that has sent to the channel');
$plain->safe_psql($db, q{COMMIT PREPARED 'p'});
is($waiting->result, '0', 'without preload: and its messages count');
$waiting->quit;
$plain->stop;
log_is_clean($plain);

done_testing;
