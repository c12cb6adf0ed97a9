# MqTest: what the TAP tests of mq share.
#
#   my $node = mq_node('name', 'mq.max_workers' => 3);   a running server with mq preloaded
#   within(5, $node, 'db', $query, $expected, $what);     a test: the query gives that in so many seconds
#   holds($node, 'db', $query, $expected, $what);         a test: the query gives that now
#   original_schema($node, 'db');                         makes that database, with the schema that mq replaces
#   messages_in_every_state($node, 'db', '0.1.0');        messages and handlers, with nobody at work; all_states_end
#                                                         tests that they end as they should once workers are
#   log_is_clean($node, qr/allowed/, ...);                a test: no line of its log tells of trouble
#
# What a test waits for has a limit that is far above what it takes; nothing sleeps for luck.
package MqTest;

use strict;
use warnings;

# The limit of whatever has none of its own, in seconds. A session in the background has it for its whole life.
BEGIN { $ENV{PG_TEST_TIMEOUT_DEFAULT} //= 300; }

use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

# The superuser has this name whoever runs the tests.
$ENV{PGUSER} = 'postgres';

our @EXPORT = qw(mq_node set_and_reload try_psql within holds value_within pids looks_again log_is_clean handled_table original_schema messages_in_every_state all_states_end);

# Pids of the workers of a database; of the launcher; of all there is.
our $WORKERS = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'mq worker' AND datname = current_database()};
our $LAUNCHER = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'mq launcher'};
# What a worker reports of its batch: how many messages it has claimed.
our $CLAIMED = q{CREATE FUNCTION claimed() RETURNS int LANGUAGE sql
	RETURN (SELECT CASE WHEN query ~ ': message ' THEN 1 ELSE substring(query FROM ': (\d+) messages, the first ')::int END
	  FROM pg_stat_activity WHERE pid = pg_backend_pid())};

sub mq_node {
	my ($name, %settings) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	my %all = (
		shared_preload_libraries => 'mq',
		max_worker_processes => 24,
		max_connections => 60,
		max_prepared_transactions => 10,
		# Work is woken up; whatever is handled before an hour has passed was not found by looking.
		'mq.poll_interval' => '1h',
		log_statement => 'none',
		log_line_prefix => '%m [%p] %b %q%d ',
		deadlock_timeout => '200ms',
		%settings);
	$node->init(extra => [ "--username=$ENV{PGUSER}", '--locale=C', '--encoding=UTF8' ]);
	$node->append_conf('postgresql.conf', join '', map { "$_ = '$all{$_}'\n" } sort keys %all);
	$node->start;
	return $node;
}

sub set_and_reload {
	my ($node, %settings) = @_;
	$node->append_conf('postgresql.conf', join '', map { "$_ = '$settings{$_}'\n" } sort keys %settings);
	$node->reload;
}

# psql, where the server may refuse connections: then psql may end before the query is written to it, which dies in
# the node's own function.
sub try_psql {
	my ($node, $database, $query) = @_;
	my @result = eval { $node->psql($database, $query) };
	return @result ? @result : (-1, '', $@);
}

# What the query gave last, and whether it came to be as expected in time. A machine that takes longer than a fifth of a second
# to look has more time.
sub value_within {
	my ($seconds, $node, $database, $query, $expected) = @_;
	my $end = time + $seconds;
	for (my $looks = 1;; ++$looks) {
		my ($rc, $out, $err) = try_psql($node, $database, $query);
		my $got = $rc == 0 ? $out : "error: $err";
		my $good = ref $expected ? $got =~ $expected : $got eq $expected;
		return ($good, $got) if $good || (time > $end && $looks >= 5 * $seconds);
		usleep(50_000);
	}
}

sub within {
	my ($seconds, $node, $database, $query, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($good, $got) = value_within($seconds, $node, $database, $query, $expected);
	return pass($what) if $good;
	fail($what);
	diag("within $seconds s: $query\nexpected: $expected\nlast got: $got");
	return 0;
}

sub holds {
	my ($node, $database, $query, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($node->safe_psql($database, $query), $expected, $what);
}

# The pids that a query gives, once there are as many as wanted.
sub pids {
	my ($node, $database, $query, $count) = @_;
	my ($good, $got) = value_within(60, $node, $database, "$query ORDER BY 1", qr/^\d+(\n\d+){@{[$count - 1]}}$/);
	diag("waited for $count pids, got: $got") unless $good;
	return split /\n/, $got;
}

# A worker looks at the database again and again, and finds nothing to do.
sub looks_again {
	my ($node, $database, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $since = q{SELECT COALESCE(max(since), '-infinity') FROM mq_workers WHERE database = current_database() AND state = 'waiting'};
	my $last = $node->safe_psql($database, $since);
	my $looks = 0;
	for (1 .. 5) {
		my ($again) = value_within(20, $node, $database, "SELECT s > '$last' FROM ($since) AS w (s)", 't');
		$looks += $again;
		$last = $node->safe_psql($database, $since);
	}
	return is($looks, 5, "$what: a worker looks again and again");
}

# A table of what was handled, in that order, and two handlers that fill it.
sub handled_table {
	my ($node, $database) = @_;
	$node->safe_psql($database, q{
		CREATE TABLE handled (
		  n bigserial, name text, payload jsonb, attempt int, pid int DEFAULT pg_backend_pid(),
		  role text DEFAULT current_user, at timestamptz DEFAULT clock_timestamp());
		CREATE FUNCTION handle(message mq_message) RETURNS void LANGUAGE sql AS $$
		  INSERT INTO handled (name, payload, attempt) VALUES (message.name, message.payload_json, message.attempt)
		$$;
		CREATE FUNCTION handle_slowly(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
		BEGIN
		  PERFORM pg_sleep((message.payload_json ->> 'seconds')::float8);
		  INSERT INTO handled (name, payload, attempt) VALUES (message.name, message.payload_json, message.attempt);
		END $$;
	});
}

# What an upgrade has to take along, in a database where no worker works. In one of an older version than the library's the
# functions refuse, so it is written by hand.
sub messages_in_every_state {
	my ($node, $database, $version) = @_;
	my $old = $version =~ /^0\.1\./;
	my $made = $version eq '0.1.0' ? 'attempts' : 'attempts_made';
	handled_table($node, $database);
	$node->safe_psql($database, q{
		CREATE FUNCTION fail(mq_message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE $e$no$e$; END $$;
		CREATE FUNCTION handle_bytes(m mq_message) RETURNS void LANGUAGE sql AS $$
		  INSERT INTO handled (name, payload, attempt) VALUES (m.name, to_jsonb(md5(m.payload_bytes)), m.attempt)
		$$;
		-- 1 MB that does not get smaller when it is compressed.
		CREATE FUNCTION many_bytes() RETURNS bytea LANGUAGE sql AS $$
		  SELECT string_agg(decode(md5(n::text), 'hex'), '' ORDER BY n) FROM generate_series(1, 65536) n
		$$});
	for (['bytes', 'handle_bytes'], ['ready'], ['scheduled'], ['ordered'], ['retrying'], ['twophase'], ['dying', 'fail'], ['blocked', 'handle', 'block'], ['paused'], ['once'], ['expiring'])
	{
		my ($channel, $handler, $on_dead) = @$_;
		($handler, $on_dead) = ($handler // 'handle', $on_dead // 'skip');
		$node->safe_psql($database, $old
			? qq{INSERT INTO mq_handlers (channel_name, handler, mode, run_as, max_backoff, on_dead, priority)
				 VALUES ('$channel', 'public.$handler(public.mq_message)', 'transactional', current_user, '1 h', '$on_dead', 0)}
			: qq{SELECT mq_register_handler('$channel', '$handler(mq_message)', on_dead => '$on_dead')});
	}
	if ($old) {
		$node->safe_psql($database, q{
			CREATE TEMP SEQUENCE n;
			CREATE FUNCTION pg_temp.old_send(channel text, payload jsonb DEFAULT NULL, ordered boolean DEFAULT false, delay interval DEFAULT '0',
			  left_over int DEFAULT 25, backoff interval DEFAULT '1 s', uncommitted interval DEFAULT NULL, key text DEFAULT NULL,
			  expiry interval DEFAULT NULL, new_id uuid DEFAULT gen_random_uuid()) RETURNS uuid LANGUAGE plpgsql AS $$
			BEGIN
			  INSERT INTO mq_msgs (id, attempt_at, attempts, retry_backoff, channel_name, channel_args, commit_interval, after_message_id, channel_key, dedup_key, expires_at)
			    VALUES (new_id, now() + LEAST(delay + COALESCE(uncommitted, '0'), expiry), left_over, backoff, channel, '', uncommitted,
			            CASE WHEN ordered THEN COALESCE((SELECT m.id FROM mq_msgs m WHERE m.channel_name = channel AND m.after_message_id IS NOT NULL ORDER BY m.place DESC LIMIT 1),
			              '00000000-0000-0000-0000-000000000000') END,
			            mq_channel_key(channel, ''), key, now() + expiry);
			  INSERT INTO mq_payloads (id, name, payload_json, channel_key) VALUES (new_id, channel, payload, mq_channel_key(channel, ''));
			  RETURN new_id;
			END $$;
			INSERT INTO mq_paused (channel_name) VALUES ('paused');
			SELECT pg_temp.old_send('ready', to_jsonb(n)) FROM generate_series(1, 100) n;
			SELECT pg_temp.old_send('paused', to_jsonb(n)) FROM generate_series(1, 5) n;
			SELECT pg_temp.old_send('ordered', to_jsonb(n), true) FROM generate_series(1, 20) n;
			SELECT pg_temp.old_send('scheduled', delay => '2 s'), pg_temp.old_send('far', delay => '1 day');
			SELECT pg_temp.old_send('expiring', expiry => '1 ms'), pg_temp.old_send('dying', left_over => 1);
			SELECT pg_temp.old_send('once', key => 'k', delay => '2 s', new_id => '00000000-0000-0000-0000-000000000004');
			SELECT pg_temp.old_send('twophase', uncommitted => '1 day', new_id => '00000000-0000-0000-0000-000000000001');
			SELECT pg_temp.old_send('twophase', uncommitted => '1 ms');
			SELECT pg_temp.old_send('leased', new_id => '00000000-0000-0000-0000-000000000002');
			UPDATE mq_msgs SET attempt_at = now() + '1 s', attempt = 1, attempts = 24, lease = 0 WHERE channel_name = 'leased';
			SELECT pg_temp.old_send('last try', left_over => 0);
			UPDATE mq_msgs SET attempt = 1, lease = 0 WHERE channel_name = 'last try';
			SELECT pg_temp.old_send('bytes');
			UPDATE mq_payloads SET payload_bytes = many_bytes() WHERE name = 'bytes';
			SELECT pg_temp.old_send('retrying', left_over => 6);
			SELECT pg_temp.old_send('blocked', '1', true, new_id => '00000000-0000-0000-0000-000000000003'), pg_temp.old_send('blocked', '2', true);
			-- As a dump leaves it that is restored in pieces, and somebody's large payload.
			SELECT pg_temp.old_send('bare', new_id => '00000000-0000-0000-0000-000000000005');
			DELETE FROM mq_payloads WHERE id = '00000000-0000-0000-0000-000000000005';
			INSERT INTO mq_payloads (id, name, channel_key) VALUES ('00000000-0000-0000-0000-000000000006', 'orphan', 1);
			UPDATE mq_payloads SET payload_bytes = convert_to(repeat(md5('x'), 40000), 'UTF8') WHERE id = '00000000-0000-0000-0000-000000000002'});
	} else {
		$node->safe_psql($database, q{
			SELECT mq_pause('paused');
			SELECT count(*) FROM mq_send_many('ready', array(SELECT to_jsonb(n) FROM generate_series(1, 100) n));
			SELECT count(*) FROM mq_send_many('paused', array(SELECT to_jsonb(n) FROM generate_series(1, 5) n));
			SELECT count(*) FROM mq_send_many('ordered', array(SELECT to_jsonb(n) FROM generate_series(1, 20) n), ordered => true);
			SELECT mq_send('scheduled', delay => '2 s'), mq_send('far', delay => '1 day');
			SELECT mq_send('expiring', expires => '1 ms'), mq_send('dying', retries => 0);
			SELECT mq_send('once', dedup_key => 'k', delay => '2 s', id => '00000000-0000-0000-0000-000000000004');
			SELECT mq_send('twophase', commit_interval => '1 day', id => '00000000-0000-0000-0000-000000000001');
			SELECT mq_send('twophase', commit_interval => '1 ms');
			SELECT mq_send('leased', retry_backoff => '1 s', id => '00000000-0000-0000-0000-000000000002');
			SELECT count(*) FROM mq_poll('{leased}');
			SELECT mq_send('last try', retries => 0, retry_backoff => '1 ms');
			SELECT count(*) FROM mq_poll('{last try}');
			SELECT mq_send('bytes', payload_bytes => many_bytes());
			SELECT mq_send('retrying', retries => 5);
			SELECT mq_send('blocked', '1', ordered => true, id => '00000000-0000-0000-0000-000000000003'), mq_send('blocked', '2', ordered => true)});
	}
	$node->safe_psql($database, qq{
		UPDATE mq_msgs SET attempt = 1, attempts = 5, attempt_at = now() + interval '2 s' WHERE channel_name = 'retrying';
		INSERT INTO mq_failures (message_id, attempt, failed_at, channel_name, channel_args, sqlstate, error, channel_key)
		  SELECT id, 1, now(), channel_name, channel_args, 'P0001', 'no', channel_key FROM mq_msgs WHERE channel_name = 'retrying';
		INSERT INTO mq_dead (id, created_at, died_at, channel_name, channel_args, name, payload_json, ordered, $made, reason, retry_backoff, channel_key)
		  SELECT m.id, m.created_at, now(), channel_name, channel_args, p.name, payload_json, true, 1, 'exhausted', retry_backoff, m.channel_key
		    FROM mq_msgs m JOIN mq_payloads p USING (id) WHERE m.id = '00000000-0000-0000-0000-000000000003'});
	$node->safe_psql($database, q{DELETE FROM mq_payloads WHERE id = '00000000-0000-0000-0000-000000000003'}) if $old;
	$node->safe_psql($database, q{UPDATE mq_msgs SET attempt_at = NULL, attempts = 0, attempt = 1} . ($old ? '' : ', message_json = NULL') .
		q{ WHERE id = '00000000-0000-0000-0000-000000000003'});
}

sub all_states_end {
	my ($node, $database, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	within(60, $node, $database, q{SELECT string_agg(name || ' ' || n, ', ' ORDER BY name) FROM (SELECT name, count(*) AS n FROM handled GROUP BY name) h},
		'bytes 1, once 1, ordered 20, ready 100, retrying 1, scheduled 1', "$what: what is ready, scheduled, retried or waits in order is handled, once");
	holds($node, $database, q{SELECT string_agg(payload::text, ' ' ORDER BY n) FROM handled WHERE name = 'ordered'}, join(' ', 1 .. 20), "$what: in order");
	holds($node, $database, q{SELECT payload = to_jsonb(md5(many_bytes())) FROM handled WHERE name = 'bytes'}, 't', "$what: a large payload is what it was");
	holds($node, $database, q{SELECT attempt FROM handled WHERE name = 'retrying'}, 2, "$what: a retry is the second attempt");
	within(20, $node, $database, q{SELECT string_agg(channel_name || ' ' || reason, ', ' ORDER BY channel_name) FROM mq_dead},
		'blocked exhausted, dying exhausted, expiring expired, last try exhausted', "$what: what fails, expires or was never deleted is dead, and what was dead is");
	holds($node, $database, q{SELECT string_agg(message_name, ', ') FROM (SELECT DISTINCT channel_name || ' ' || sqlstate FROM mq_failures ORDER BY 1) f (message_name)},
		'dying P0001, retrying P0001', "$what: failures are kept");
	within(20, $node, $database, q{SELECT string_agg(channel_name || ' ' || n, ', ' ORDER BY channel_name) FROM (SELECT channel_name, count(*) AS n FROM mq_msgs GROUP BY 1) m},
		'blocked 2, far 1, leased 1, paused 5, twophase 1', "$what: the rest waits");
	$node->safe_psql($database, q{
		SELECT mq_commit('{00000000-0000-0000-0000-000000000001}');
		SELECT mq_resume('paused');
		SELECT mq_redrive(channel_name => 'blocked');
		SELECT mq_send('once', dedup_key => 'k')});
	is($node->safe_psql($database, q{SELECT id FROM mq_poll('{leased}')}), '00000000-0000-0000-0000-000000000002', "$what: a lease that ran out is polled again");
	within(20, $node, $database, q{SELECT string_agg(name || ' ' || n, ', ' ORDER BY name) FROM (SELECT name, count(*) AS n FROM handled GROUP BY name) h},
		'blocked 2, bytes 1, once 2, ordered 20, paused 5, ready 100, retrying 1, scheduled 1, twophase 1', "$what: committed, resumed, redriven, sent again");
}

# A new database with the original schema, for the suite 'original'.
sub original_schema {
	my ($node, $database) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $ENV{MQ_ORIGINAL}, $node->connstr($database) ],
		'the original schema is loaded');
}

# Lines that no test may leave in a server's log unless it says so. That a process is told to end is no trouble.
sub log_is_clean {
	my ($node, @allowed) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	push @allowed, qr/FATAL: .*terminating (background worker "mq (worker|launcher)"|connection|autovacuum process) due to administrator command/;
	# A client of the test has left in the middle of a statement.
	push @allowed, qr/FATAL:  connection to client lost/;
	my @bad = grep {
		my $line = $_;
		$line =~ /PANIC:|TRAP:|segfault|was terminated by|deadlock detected|FATAL:|mq worker:|WARNING:|exited with exit code [^01]/
		  && !grep { $line =~ $_ } @allowed
	} split /\n/, slurp_file($node->logfile);
	is(join("\n", @bad), '', 'the log of ' . $node->name . ' tells of no trouble');
}

1;
