# mq_cancel of messages that are being handled: the call is interrupted at the commit, what it wrote is rolled back, the message is
# dead with reason cancelled, no attempt is charged, and nothing else is touched: not the others of its batch, not the calls
# before and after it, not what the worker does between calls. A cancel that rolls back interrupts nobody.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('cancel', 'mq.max_workers' => 2, 'mq.poll_interval' => '200ms', restart_after_crash => 'on');
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }

# The handler stops at a gate that the test holds shut.
sql(q{
	CREATE EXTENSION mq;
	CREATE TABLE effects (n int, pid int DEFAULT pg_backend_pid());
	CREATE SEQUENCE calls;
	CREATE FUNCTION take(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM nextval('calls');
	  INSERT INTO effects VALUES ((m.payload_json ->> 'n')::int);
	  IF m.payload_json ? 'lock' THEN PERFORM mq_checkpoint(m.id, '1 minute', NULL, NULL, 0); END IF;
	  IF m.payload_json ? 'delete' THEN PERFORM mq_delete(ARRAY[m.id]); END IF;
	  IF m.payload_json ? 'gate' THEN PERFORM pg_advisory_xact_lock_shared(1); END IF;
	  IF m.payload_json ? 'catch' THEN
	    BEGIN
	      PERFORM pg_sleep(300);
	    EXCEPTION WHEN query_canceled THEN INSERT INTO effects VALUES (-1);
	    END;
	  END IF;
	  IF m.payload_json ? 'loop' THEN LOOP NULL; END LOOP; END IF;
	  IF m.payload_json ? 'sleep' THEN PERFORM pg_sleep(300); END IF;
	END $$;
	CREATE FUNCTION take_all(ms mq_message[]) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
	  m mq_message;
	BEGIN
	  FOREACH m IN ARRAY ms LOOP PERFORM take(m); END LOOP;
	END $$;
	SELECT mq_register_handler('plain', 'take(mq_message)'), mq_register_handler('batch', 'take_all(mq_message[])'),
	       mq_register_handler('leased', 'take(mq_message)', mode => 'leased'), mq_register_handler('leased batch', 'take_all(mq_message[])', mode => 'leased', batch_size => 10)});

my $gate = $node->background_psql($db, on_error_die => 1);
my $shut = 0;
sub shut { $gate->query_safe('SELECT pg_advisory_lock(1)') unless $shut; $shut = 1 }
sub opened { $gate->query_safe('SELECT pg_advisory_unlock(1)') if $shut; $shut = 0 }
sub id_of { return sprintf '00000000-0000-4000-8000-%012d', shift }
my $n = 0;
my $at_gate = q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 1 AND NOT granted};
my $asleep = q{SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'};
# Sends messages together, each with what its handler does and options; returns their numbers.
sub send_all {
	my ($channel, @messages) = @_;
	my @numbers;
	my @sends;
	for (@messages) {
		my ($does, $options) = @$_;
		push @numbers, ++$n;
		push @sends, qq{SELECT mq_send('$channel', '{"n": $n$does}', id => '} . id_of($n) . qq{'@{[$options // '']})};
	}
	sql(join ';', 'BEGIN', @sends, 'COMMIT');
	return @numbers;
}
sub cancels {
	my ($reason, @numbers) = @_;
	return sql('SELECT COALESCE(string_agg(right(c::text, 6)::int::text, \' \' ORDER BY c), \'none\') FROM mq_cancel(ARRAY[' . join(',', map { "'" . id_of($_) . "'" } @numbers) . "]::uuid[], '$reason') AS c");
}
sub dead_as { my ($i, $reason) = @_; return "SELECT reason, sqlstate, error, attempts_made FROM mq_dead WHERE id = '" . id_of($i) . "'" }
my $effects = q{SELECT COALESCE(string_agg(format('%s:%s', e.n, e.times), ' ' ORDER BY e.n), '') FROM (SELECT n, count(*) AS times FROM effects GROUP BY n) e};
sub clean {
	opened();
	within(30, $node, $db, q{SELECT count(*) FROM mq_msgs}, 0, 'nothing is left');
	holds($node, $db, q{SELECT count(*) FROM mq_failures}, 0, '... and no attempt was charged');
	holds($node, $db, q{SELECT count(*) FROM mq_cancelled}, 0, '... and no note is left');
	sql('TRUNCATE effects, mq_dead, mq_failures');
}

# How the row is held: not at all, by a lock of the worker, by a lock of the handler.
my %kinds = (
	'a plain message' => ['plain', ''],
	'one with a dedup_key' => ['plain', '', q{, dedup_key => 'k'}],
	'one of a channel with arguments' => ['plain', '', q{, channel_args => 'a'}],
	'an ordered one' => ['plain', '', q{, ordered => true}],
	'one that expires' => ['plain', '', q{, expires => '1 hour'}],
	'one whose handler has locked it' => ['plain', ', "lock": 1'],
	'one whose handler has deleted it' => ['plain', ', "delete": 1'],
	'one of a batch handler' => ['batch', ''],
	'a leased one' => ['leased', ''],
	'a leased one whose handler has locked it' => ['leased', ', "lock": 1'],
	'one of a leased batch handler' => ['leased batch', '']);
for my $kind (sort keys %kinds) {
	my ($channel, $does, $options) = @{ $kinds{$kind} };
	# Interrupted at the commit, not before.
	shut();
	my ($m) = send_all($channel, [ qq{$does, "gate": 1}, $options ]);
	within(20, $node, $db, $at_gate, 1, "$kind: its handler runs");
	my $session = $node->background_psql($db, on_error_die => 1);
	$session->query_safe('BEGIN');
	is($session->query_safe("SELECT count(*) FROM mq_cancel(ARRAY['" . id_of($m) . "'::uuid], 'why')"), 1, '... and it is cancelled');
	holds($node, $db, $at_gate, 1, '... but not interrupted before the commit');
	$session->query_safe('COMMIT');
	within(10, $node, $db, $at_gate, 0, '... but at the commit');
	within(10, $node, $db, dead_as($m), 'cancelled|57014|why|0', '... and dead');
	holds($node, $db, $effects, '', '... and what it wrote is rolled back');
	clean();

	# A cancel that rolls back does nothing, also one to a savepoint.
	shut();
	($m) = send_all($channel, [ qq{$does, "gate": 1}, $options ]);
	within(20, $node, $db, $at_gate, 1, "$kind: another");
	my $calls = sql(q{SELECT last_value FROM calls});
	$session->query_safe('BEGIN');
	$session->query_safe("SELECT count(*) FROM mq_cancel(ARRAY['" . id_of($m) . "'::uuid])");
	$session->query_safe('ROLLBACK');
	$session->query_safe('BEGIN; SAVEPOINT s');
	$session->query_safe("SELECT count(*) FROM mq_cancel(ARRAY['" . id_of($m) . "'::uuid])") for 1, 2;
	$session->query_safe('ROLLBACK TO s');
	is($session->query_safe("SELECT count(*) FROM mq_cancel(ARRAY['" . id_of($m) . "'::uuid])"), 1, '... which can be cancelled after a rollback to a savepoint');
	$session->query_safe('ROLLBACK TO s');
	$session->query_safe('COMMIT');
	holds($node, $db, $at_gate, 1, '... goes on after a rollback');
	opened();
	within(20, $node, $db, q{SELECT count(*) FROM mq_msgs}, 0, '... and is handled');
	holds($node, $db, $effects, "$m:1", '... once');
	holds($node, $db, q{SELECT last_value FROM calls}, $calls, '... by the same call');
	holds($node, $db, q{SELECT count(*) FROM mq_dead}, 0, '... and not dead');
	$session->quit;
	clean();

	# A transaction that cancels and stays open: the handler ends meanwhile, and does not commit before it.
	shut();
	($m) = send_all($channel, [ qq{$does, "gate": 1}, $options ]);
	within(20, $node, $db, $at_gate, 1, "$kind: one more");
	$session = $node->background_psql($db, on_error_die => 1);
	$session->query_safe('BEGIN');
	is($session->query_safe("SELECT count(*) FROM mq_cancel(ARRAY['" . id_of($m) . "'::uuid], 'late')"), 1, '... is cancelled');
	is($session->query_safe("SELECT count(*) FROM mq_cancel(ARRAY['" . id_of($m) . "'::uuid], 'again')"), 0, '... not twice');
	opened();
	my ($other) = send_all('plain', ['']);
	within(20, $node, $db, "SELECT count(*) FROM effects WHERE n = $other", 1, '... others are handled while that transaction is open');
	holds($node, $db, "SELECT count(*) FROM effects WHERE n = $m", 0, '... but not it');
	$session->query_safe('COMMIT');
	within(10, $node, $db, dead_as($m), 'cancelled|57014|late|0', '... and it is dead in the end');
	within(10, $node, $db, $effects, "$other:1", '... and nothing of it is there');
	$session->quit;
	clean();
}

# It cannot be tried again, nor does a note of before hit what is sent again.
shut();
my ($m) = send_all('plain', [ ', "gate": 1', q{, ordered => true} ]);
within(20, $node, $db, $at_gate, 1, 'an ordered message runs');
is(cancels('again', $m), $m, '... and is cancelled');
within(10, $node, $db, dead_as($m), 'cancelled|57014|again|0', '... and dead');
opened();
sql('SELECT mq_redrive()');
within(20, $node, $db, $effects, "$m:1", 'sent again it is handled');
clean();

# The others of a batch are unhurt, whatever shares it. One of them stops at the gate. By one worker, lest another one handle
# the others meanwhile.
sql(q{ALTER SYSTEM SET mq.max_workers = 1}); sql(q{SELECT pg_reload_conf()});
within(20, $node, $db, "SELECT count(*) FROM ($MqTest::WORKERS) w", 1, 'one worker');
for my $channel ('plain', 'batch', 'leased batch') {
	for my $options ('', q{, dedup_key => 'k%s'}) {
		shut();
		sql(qq{SELECT mq_pause('$channel')});
		my @sent = send_all($channel, map { [ $_ == 2 ? ', "gate": 1' : '', $options eq '' ? '' : sprintf($options, $_) ] } 1 .. 5);
		sql(qq{SELECT mq_resume('$channel')});
		within(20, $node, $db, $at_gate, 1, "$channel$options: a batch runs");
		is(cancels('one', $sent[1]), $sent[1], '... one of it is cancelled');
		within(20, $node, $db, q{SELECT count(*) FROM mq_msgs}, 0, '... the others are handled');
		within(20, $node, $db, $effects, join(' ', map { "$sent[$_]:1" } 0, 2, 3, 4), '... each once');
		clean();

		# One that the batch has not come to yet, and one that it is done with.
		shut();
		sql(qq{SELECT mq_pause('$channel')});
		@sent = send_all($channel, map { [ $_ == 2 ? ', "gate": 1' : '', $options eq '' ? '' : sprintf($options, $_) ] } 1 .. 5);
		sql(qq{SELECT mq_resume('$channel')});
		within(20, $node, $db, $at_gate, 1, "$channel$options: a batch runs");
		is(cancels('two', @sent[3, 4]), "$sent[3] $sent[4]", '... two are cancelled that it may not have come to yet');
		opened();
		within(20, $node, $db, q{SELECT count(*) FROM mq_msgs}, 0, '... the others are handled');
		within(20, $node, $db, $effects, join(' ', map { "$sent[$_]:1" } 0 .. 2), '... each once');
		holds($node, $db, q{SELECT count(*) FROM mq_dead WHERE reason = 'cancelled'}, 2, '... and two are dead');
		clean();
	}
}

sql(q{ALTER SYSTEM RESET mq.max_workers}); sql(q{SELECT pg_reload_conf()});

# An ordered channel goes on: the head runs, the middle is cancelled, then the head.
shut();
my @sent = send_all('plain', map { [ $_ == 1 ? ', "gate": 1' : '', q{, ordered => true} ] } 1 .. 4);
within(20, $node, $db, $at_gate, 1, 'the head of an ordered channel runs');
is(cancels('middle', $sent[2]), $sent[2], '... its middle is cancelled');
is(cancels('head', $sent[0]), $sent[0], '... and the head');
within(20, $node, $db, $effects, "$sent[1]:1 $sent[3]:1", 'the channel goes on, each once');
clean();

# Handlers that catch the cancel, or look for no interrupt but the server's.
for (['plain', ', "catch": 1', $asleep], ['leased', ', "catch": 1', $asleep], ['plain', ', "sleep": 1', $asleep], ['leased', ', "sleep": 1', $asleep],
	['plain', ', "loop": 1', q{SELECT count(*) > 0 FROM mq_workers WHERE state = 'handling'}])
{
	my ($channel, $does, $runs) = @$_;
	my ($m) = send_all($channel, [$does]);
	within(20, $node, $db, $runs, 't', "$channel$does: runs");
	is(cancels('stop', $m), $m, '... and is cancelled');
	within(20, $node, $db, dead_as($m), 'cancelled|57014|stop|0', '... and dead');
	within(20, $node, $db, $effects, '', '... without effects');
	clean();
}

# Statistics: it died, and failed not.
sql('SELECT mq_reset_stats()');
shut();
($m) = send_all('plain', [', "gate": 1']);
within(20, $node, $db, $at_gate, 1, 'one runs');
cancels('counted', $m);
within(20, $node, $db, q{SELECT handled, failed, died FROM mq_stats WHERE channel_name = 'plain'}, '0|0|1', 'it counts as died, not as failed');
clean();

# mq_run in a session of a user's: the cancel hits the call, and not mq_run.
sql(q{ALTER SYSTEM SET mq.max_workers = 0}); sql(q{SELECT pg_reload_conf()});
within(20, $node, $db, "SELECT count(*) FROM ($MqTest::WORKERS) w", 0, 'without workers');
for my $channel ('plain', 'batch', 'leased') {
	shut();
	my @sent = send_all($channel, [', "gate": 1'], ['']);
	my $run = $node->background_psql($db, on_error_die => 1);
	$run->query_until(qr/^$/, "CALL mq_run();\n");
	within(20, $node, $db, $at_gate, 1, "mq_run of $channel: a handler runs");
	is(cancels('run', $sent[0]), $sent[0], '... and its message is cancelled');
	within(20, $node, $db, dead_as($sent[0]), 'cancelled|57014|run|0', '... and dead');
	within(20, $node, $db, $effects, "$sent[1]:1", '... and mq_run goes on');
	$run->quit;
	clean();
}
sql(q{ALTER SYSTEM RESET mq.max_workers}); sql(q{SELECT pg_reload_conf()});

# A transaction that has cancelled what runs cannot be prepared: nobody would interrupt it.
shut();
($m) = send_all('plain', [', "gate": 1']);
within(20, $node, $db, $at_gate, 1, 'one runs');
like(($node->psql($db, "BEGIN; SELECT mq_cancel(ARRAY['" . id_of($m) . "'::uuid]); PREPARE TRANSACTION 'p'"))[2], qr/cannot PREPARE/, 'a transaction that cancels it cannot be prepared');
opened();
within(20, $node, $db, $effects, "$m:1", '... and it is handled');
clean();

# The server goes down between the commit and the burial: the note is there, and the message is never handled again.
shut();
($m) = send_all('plain', [', "gate": 1', q{, ordered => true}]);
within(20, $node, $db, $at_gate, 1, 'an ordered one runs');
my ($pid) = sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'mq worker' AND wait_event = 'advisory'});
kill 'STOP', $pid;
is(cancels('crash', $m), $m, '... and is cancelled while its worker stands still');
holds($node, $db, q{SELECT count(*) FROM mq_cancelled}, 1, '... so that its note is all there is');
kill 'KILL', $pid;
eval { $gate->quit };
within(60, $node, $db, dead_as($m), 'cancelled|57014|crash|0', 'after the crash it is dead');
holds($node, $db, $effects, '', '... and not handled');
$gate = $node->background_psql($db, on_error_die => 1);
$shut = 0;
clean();

# Cancels at random moments against two workers: each message has exactly one end, and the effects agree with it.
sql(q{
	CREATE FUNCTION work(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO effects VALUES ((m.payload_json ->> 'n')::int);
	  PERFORM pg_sleep((m.payload_json ->> 's')::float8);
	END $$;
	CREATE FUNCTION work_all(ms mq_message[]) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
	  m mq_message;
	BEGIN
	  FOREACH m IN ARRAY ms LOOP PERFORM work(m); END LOOP;
	END $$;
	SELECT mq_register_handler('s', 'work(mq_message)'), mq_register_handler('sb', 'work_all(mq_message[])', batch_size => 20), mq_register_handler('sl', 'work(mq_message)', mode => 'leased');
	CREATE TABLE cancelled (id uuid PRIMARY KEY);
	CREATE PROCEDURE cancel_some(times int) LANGUAGE plpgsql AS $$
	BEGIN
	  FOR i IN 1 .. times LOOP
	    INSERT INTO cancelled SELECT mq_cancel(ARRAY(SELECT id FROM mq_msgs ORDER BY CASE WHEN i % 2 = 0 THEN random() ELSE seq END LIMIT 1 + random() * 5));
	    PERFORM pg_sleep(random() * 0.02);
	    IF random() < 0.2 THEN ROLLBACK; ELSE COMMIT; END IF;
	  END LOOP;
	END $$});
# Then with most of them ordered and leased: their rows are locked by workers that lease them, and that settle what the calls have
# done already.
for my $leased (7, 2) {
	sql(q{TRUNCATE cancelled});
	sql(qq{
		SELECT mq_send(CASE WHEN n % $leased = 0 THEN 'sl' WHEN n % 3 = 0 THEN 'sb' ELSE 's' END, jsonb_build_object('n', n, 's', CASE WHEN n % 20 = 0 THEN 0.02 ELSE 0 END),
		               channel_args => CASE WHEN n % 4 = 0 THEN (n % 8)::text ELSE '' END, ordered => n % @{[ $leased == 2 ? 2 : 5 ]} = 0, id => format('00000000-0000-4000-8001-%s', lpad(n::text, 12, '0'))::uuid)
		  FROM generate_series(1, 2000) n});
	my @cancellers = map { my $s = $node->background_psql($db, on_error_die => 1); $s->query_until(qr/^$/, "CALL cancel_some(150);\n"); $s } 1 .. 3;
	$_->quit for @cancellers;
	within(120, $node, $db, q{SELECT count(*) FROM mq_msgs}, 0, '2,000 messages, cancelled at random: all have ended');
	holds($node, $db, q{SELECT count(*) > 20 FROM cancelled}, 't', 'some were cancelled');
	holds($node, $db, q{SELECT count(*) FROM effects WHERE n IN (SELECT right(id::text, 12)::bigint FROM cancelled)}, 0, 'nothing of those is there');
	holds($node, $db, q{SELECT count(*) FROM cancelled c WHERE (SELECT count(*) FROM mq_dead d WHERE d.id = c.id AND reason = 'cancelled') <> 1}, 0, 'each of those is dead once');
	holds($node, $db, q{SELECT count(*) FROM mq_dead d WHERE NOT EXISTS (SELECT FROM cancelled c WHERE c.id = d.id)}, 0, 'no other is');
	holds($node, $db, q{SELECT count(*) FROM (SELECT FROM effects GROUP BY n HAVING count(*) <> 1) e}, 0, 'no other took effect twice');
	holds($node, $db, q{SELECT (SELECT count(*) FROM effects) + (SELECT count(*) FROM cancelled)}, 2000, 'each has one end');
	clean();
}

$gate->quit;
$node->stop;
done_testing();
