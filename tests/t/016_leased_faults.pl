# What happens to leased handlers around them: connections that are refused, workers and sessions that end, the server's
# crash, a lost lease, a database that is dropped.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = mq_node('faults', 'mq.max_workers' => 1, restart_after_crash => 'on');
my $db = 'postgres';
my $sessions = q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mq handler'};
my $health = q{SELECT ok, detail FROM mq_health() WHERE "check" = 'leased connections'};

sub sql { return $node->safe_psql($db, shift) }

sql(q{
	CREATE EXTENSION mq;
	CREATE TABLE steps (n bigserial, step text, attempt int);
	CREATE FUNCTION take(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  IF m.payload_json ? 'seconds' THEN PERFORM pg_sleep((m.payload_json ->> 'seconds')::float8); END IF;
	  IF m.payload_json ? 'once' AND m.attempt = 1 THEN PERFORM pg_sleep(60); END IF;
	  IF m.payload_json ? 'gate' THEN PERFORM pg_advisory_xact_lock_shared(1); END IF;
	  INSERT INTO steps (step, attempt) VALUES (m.payload_json ->> 'step', m.attempt);
	END $$;
	-- Resumes from its checkpoint: the payload says which step is next.
	CREATE PROCEDURE travel(m mq_message) LANGUAGE plpgsql AS $$
	BEGIN
	  FOR step IN (m.payload_json ->> 'next')::int .. 3 LOOP
	    INSERT INTO steps (step, attempt) VALUES (step, m.attempt);
	    PERFORM mq_checkpoint(m.id, '1 h', jsonb_build_object('next', step + 1)::text, NULL, 0);
	    COMMIT;
	    IF m.attempt = 1 AND step = 2 THEN PERFORM pg_sleep(60); END IF;
	  END LOOP;
	END $$;
	SELECT mq_register_handler('work', 'take(mq_message)', mode => 'leased'),
	       mq_register_handler('travel', 'travel(mq_message)', mode => 'leased')});

# The server refuses the connection: shown, and nobody is charged.
my $hba = slurp_file($node->data_dir . '/pg_hba.conf');
sub set_hba {
	open my $file, '>', $node->data_dir . '/pg_hba.conf' or die $!;
	print $file @_;
	close $file;
	$node->reload;
}
is(($node->psql($db, q{ALTER SYSTEM SET mq.leased_conninfo = 'nonsense'}))[0], 3, 'a connection string that is none is refused');
sql(q{CREATE ROLE locked_out LOGIN; GRANT ALL ON steps, steps_n_seq TO locked_out});
set_hba("local all locked_out reject\n", $hba);
sql(q{SELECT mq_register_handler('refused', 'take(mq_message)', mode => 'leased', run_as => 'locked_out'),
             mq_send('refused', '{"step": "refused", "seconds": 0}')});
within(20, $node, $db, $health, qr/^f\|as locked_out: .*pg_hba/, 'mq_health tells of a refused connection');
holds($node, $db, q{SELECT count(*) FROM mq_failures UNION ALL SELECT attempt FROM mq_msgs}, "0\n0", 'no attempt is charged');
sql(q{SELECT mq_send('work', '{"step": "other", "seconds": 0}')});
within(20, $node, $db, q{SELECT count(*) FROM steps WHERE step = 'other'}, 1, 'those of other roles go on');
set_hba($hba);
within(40, $node, $db, q{SELECT attempt FROM steps WHERE step = 'refused'}, 1, 'when it is let in the message is handled');
within(20, $node, $db, $health, 't|', 'and mq_health is content');
sql(q{SELECT mq_unregister_handler('refused')});
# What the server is sure to refuse is not tried: the calls of such a role share the session that they may have.
sql(q{CREATE ROLE limited LOGIN CONNECTION LIMIT 1; GRANT ALL ON steps, steps_n_seq TO limited;
      SELECT mq_register_handler('limited', 'take(mq_message)', mode => 'leased', run_as => 'limited');
      SELECT count(mq_send('limited', '{"step": "limited", "seconds": 0.3}')) FROM generate_series(1, 12)});
within(20, $node, $db, $health, qr/^f\|as limited: role "limited" has a CONNECTION LIMIT of 1, and 1 connections: ALTER ROLE/, 'mq_health tells of a connection limit');
within(40, $node, $db, q{SELECT count(*) FROM steps WHERE step = 'limited'}, 12, 'all is handled in one session');
within(20, $node, $db, $health, 't|', 'then mq_health is content');
unlike(slurp_file($node->logfile), qr/too many connections for role/, 'the server has refused nothing');
sql(q{SELECT mq_unregister_handler('limited')});
set_and_reload($node, 'mq.leased_conninfo' => 'host=/nonexistent');
within(20, $node, $db, $sessions, 0, 'no session is left that could be used again');
sql(q{SELECT mq_send('work', '{"step": "elsewhere", "seconds": 0}')});
within(20, $node, $db, $health, qr/^f\|as postgres: .*nonexistent/, 'so it does of a socket that is not there');
set_and_reload($node, 'mq.leased_conninfo' => '');
within(40, $node, $db, q{SELECT attempt FROM steps WHERE step = 'elsewhere'}, 1, 'the setting is read again');

# Password authentication, by a file that libpq reads.
my $passfile = $node->data_dir . '/mq.pass';
open my $file, '>', $passfile or die $!;
print $file "*:*:*:postgres:secret word\n";
close $file;
chmod 0600, $passfile;
sql(q{SET password_encryption = 'scram-sha-256'; ALTER ROLE postgres PASSWORD 'secret word'});
set_and_reload($node, 'mq.leased_conninfo' => "passfile=$passfile");
within(20, $node, $db, $sessions, 0, 'no session is left');
# Only the handlers' sessions are asked for the password: this test comes as another role.
sql(q{CREATE ROLE tester SUPERUSER LOGIN});
set_hba("local all tester trust\nlocal all postgres scram-sha-256\n", $hba);
sub as_tester { return $node->safe_psql($db, shift, extra_params => [ '-U', 'tester' ]) }
sub handled_by_session {
	my ($step) = @_;
	as_tester(qq{SELECT mq_send('work', '{"step": "$step", "seconds": 0}')});
	for (1 .. 400) {
		return 1 if as_tester(qq{SELECT count(*) FROM steps WHERE step = '$step'});
		select undef, undef, undef, 0.05;
	}
	return 0;
}
ok(handled_by_session('scram'), 'a session logs in by scram with a passfile');

# As the server's own user of the system, by a map.
open my $ident, '>>', $node->data_dir . '/pg_ident.conf' or die $!;
print $ident 'mq ' . getpwuid($<) . " postgres\n";
close $ident;
set_hba("local all tester trust\nlocal all postgres peer map=mq\n", $hba);
as_tester(q{ALTER SYSTEM SET mq.leased_conninfo = ''; SELECT pg_reload_conf()});
as_tester(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mq handler'});
ok(handled_by_session('peer'), 'a session logs in by peer with a map');
set_hba($hba);

# A worker that is told to end takes its sessions along; the next one finds the lease an orphan.
my $worker = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'mq worker'";
my $running = q{SELECT count(*) FROM mq_msgs WHERE lease > 0};
sql(q{TRUNCATE steps; SELECT mq_send('work', '{"step": "orphan", "seconds": 3}', retry_backoff => '0.1 s')});
within(20, $node, $db, $running, 1, 'a handler runs');
sql("SELECT pg_terminate_backend(pid) FROM ($worker) w");
within(20, $node, $db, 'SELECT string_agg(attempt::text, $$,$$) FROM steps', '1', 'the message is handled by the next worker, once');
holds($node, $db, 'SELECT count(*) FROM mq_failures', 0, 'that a worker was ended is charged to nobody');
sql('TRUNCATE steps, mq_failures');

# A session that is ended or cancelled by hand fails its attempt.
for my $how ('terminate', 'cancel') {
	sql(qq{SELECT mq_send('work', '{"step": "$how", "once": true}', retry_backoff => '0.1 s')});
	within(20, $node, $db, $running, 1, "$how: a handler runs");
	within(20, $node, $db, qq{SELECT bool_or(pg_${how}_backend(pid)) FROM pg_stat_activity WHERE application_name = 'mq handler' AND wait_event = 'PgSleep'},
		't', "$how: its session is hit");
	within(20, $node, $db, qq{SELECT attempt FROM steps WHERE step = '$how'}, 2, "$how: the attempt has failed, the next one works");
}
holds($node, $db, q{SELECT string_agg(sqlstate, ',' ORDER BY failure_no) FROM mq_failures}, '57P01,57014', 'with the server\'s own errors');
sql('TRUNCATE steps, mq_failures');

# A lease that is lost: who had it changes nothing.
my $gate = $node->background_psql($db);
$gate->query_safe('SELECT pg_advisory_lock(1)');
sql(q{SELECT mq_send('work', '{"step": "lost", "gate": true}', retry_backoff => '1 h')});
within(20, $node, $db, $running, 1, 'a handler runs');
sql(q{UPDATE mq_msgs SET attempt_at = now(), lease = NULL});
holds($node, $db, q{SELECT id IS NOT NULL FROM mq_poll('{work}')}, 't', 'somebody else gets its message');
$gate->query_safe('SELECT pg_advisory_unlock(1)');
within(20, $node, $db, q{SELECT count(*) FROM steps WHERE step = 'lost'}, 1, 'the first handler ends');
within(20, $node, $db, $sessions . q{ AND state = 'active'}, 0, 'and is settled');
holds($node, $db, 'SELECT count(*), max(lease) FROM mq_msgs', '1|0', 'but the message is still with the other');
sql('SELECT mq_clear_all(); TRUNCATE steps');

# The lease's end alone does not give a message away while its handler runs.
$gate->query_safe('SELECT pg_advisory_lock(1)');
sql(q{SELECT mq_send('work', '{"step": "late", "gate": true}')});
within(20, $node, $db, $running, 1, 'a handler runs');
sql(q{UPDATE mq_msgs SET attempt_at = now() - interval '1 s'});
holds($node, $db, q{SELECT id IS NULL FROM mq_poll('{work}')}, 't', 'nobody gets a message whose handler runs, though the lease is over');
$gate->query_safe('SELECT pg_advisory_unlock(1)');
$gate->quit;
within(20, $node, $db, 'SELECT string_agg(attempt::text, $$,$$) FROM steps', '1', 'it is handled once');
within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'and removed');
sql('TRUNCATE steps');

# A crash of the server: from the checkpoint on.
sub crash {
	my ($pid) = @_;
	kill 'KILL', $pid;
	value_within(30, $node, $db, "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid", 0);
}
sql(q{SELECT mq_send('travel', '{"next": 1}', retry_backoff => '0.1 s')});
within(20, $node, $db, 'SELECT max(step) FROM steps', 2, 'a procedure has come to its second step');
crash(sql($worker));
within(30, $node, $db, q{SELECT string_agg(step || ':' || attempt, ' ' ORDER BY n) FROM steps}, '1:1 2:1 3:1', 'after a crash it goes on behind its checkpoint');
within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'and is done');
holds($node, $db, 'SELECT count(*) FROM mq_failures', 0, 'the crash was the worker\'s, not its own');
sql('TRUNCATE steps, mq_failures');

# The same where the session notices that its worker is gone before the postmaster does, which is made to sleep.
sql(q{SELECT mq_send('travel', '{"next": 1}', retry_backoff => '0.1 s')});
within(20, $node, $db, 'SELECT max(step) FROM steps', 2, 'a procedure has come to its second step');
my ($gone, $left) = map { sql($_) } $worker, q{SELECT pid FROM pg_stat_activity WHERE application_name = 'mq handler' AND state = 'active'};
my ($postmaster) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
kill 'STOP', $postmaster;
kill 'KILL', $gone;
my $end = time + 30;
usleep(10_000) while time < $end && slurp_file("/proc/$left/stat") !~ /\) Z /;
like(slurp_file("/proc/$left/stat"), qr/\) Z /, 'the session has ended');
kill 'CONT', $postmaster;
value_within(30, $node, $db, "SELECT count(*) FROM pg_stat_activity WHERE pid = $gone", 0);
within(30, $node, $db, q{SELECT string_agg(step || ':' || attempt, ' ' ORDER BY n) FROM steps}, '1:1 2:1 3:1', 'it goes on behind its checkpoint');
within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'and is done');
holds($node, $db, 'SELECT count(*) FROM mq_failures', 0, 'the crash was the worker\'s, not its own');
sql('TRUNCATE steps, mq_failures');

# A message whose session is killed each time dies when its retries are used up; those beside it do not.
sql(q{SELECT mq_send('work', format('{"step": "%s", "seconds": %s}', i, CASE i WHEN 2 THEN 60 ELSE 1 END)::jsonb, retries => CASE i WHEN 2 THEN 1 ELSE 0 END, retry_backoff => '0.1 s')
  FROM generate_series(1, 3) i});
for (1 .. 2) {
	my $sleeper = q{SELECT a.pid FROM pg_stat_activity a JOIN mq_msgs m ON m.lease > 0 AND a.application_name = 'mq handler'
	  AND a.wait_event = 'PgSleep' JOIN mq_payloads p USING (id) WHERE p.payload_json ->> 'step' = '2' AND (SELECT count(*) FROM mq_msgs) = 1};
	my ($good, $pid) = value_within(30, $node, $db, $sleeper, qr/^\d+$/);
	ok($good, 'the handler of the second message runs') or last;
	crash($pid);
}
within(30, $node, $db, 'SELECT reason, attempts_made, sqlstate, payload_json ->> $$step$$ FROM mq_dead', 'exhausted|2|57P02|2', 'what was killed twice is dead');
within(30, $node, $db, q{SELECT string_agg(step, ',' ORDER BY step) FROM steps}, '1,3', 'the others are handled once');

# DROP DATABASE does not wait for a handler, CREATE EXTENSION finds nothing left.
sql('CREATE DATABASE other');
$node->safe_psql('other', q{CREATE EXTENSION mq; CREATE FUNCTION doze(jsonb) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(60)';
  SELECT mq_register_handler('doze', 'doze(jsonb)', mode => 'leased'), mq_send('doze')});
within(20, $node, 'other', $running, 1, 'a handler runs');
is(($node->psql('postgres', 'DROP DATABASE other'))[0], 0, 'its database can be dropped');

sql(q{SELECT mq_send('work', '{"step": "gone", "seconds": 60}')});
within(20, $node, $db, $running, 1, 'a handler runs');
sql('DROP EXTENSION mq CASCADE');
within(20, $node, $db, $sessions, 0, 'DROP EXTENSION ends what runs');
my $before = time;
$node->stop('fast');
cmp_ok(time - $before, '<', 20, 'the server stops');

log_is_clean($node, qr/was terminated by signal 9: Killed/, qr/WARNING:  terminating connection because of crash/,
	qr/FATAL:  the database system is (in recovery mode|starting up|not yet accepting connections)/, qr/pg_hba.conf rejects connection/,
	qr/connection to client lost/, qr/terminating connection due to administrator command/, qr/no password supplied/);
done_testing();
