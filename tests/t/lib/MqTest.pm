# MqTest: what the TAP tests of mq share.
#
#   my $node = mq_node('name', 'mq.max_workers' => 3);   a running server with mq preloaded
#   within(5, $node, 'db', $query, $expected, $what);     a test: the query gives that in so many seconds
#   holds($node, 'db', $query, $expected, $what);         a test: the query gives that now
#   original_schema($node, 'db');                         makes that database, with the schema that mq replaces
#   log_is_clean($node, qr/allowed/, ...);                a test: no line of its log tells of trouble
#
# What a test waits for has a limit that is far above what it takes; nothing sleeps for luck.
package MqTest;

use strict;
use warnings;

# The limit of whatever has none of its own, in seconds.
BEGIN { $ENV{PG_TEST_TIMEOUT_DEFAULT} //= 60; }

use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

our @EXPORT = qw(mq_node set_and_reload within holds value_within pids log_is_clean handled_table original_schema);

# Pids of the workers of a database; of the launcher; of all there is.
our $WORKERS = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'mq worker' AND datname = current_database()};
our $LAUNCHER = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'mq launcher'};

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
	$node->init(extra => [ '--locale=C', '--encoding=UTF8' ]);
	$node->append_conf('postgresql.conf', join '', map { "$_ = '$all{$_}'\n" } sort keys %all);
	$node->start;
	return $node;
}

sub set_and_reload {
	my ($node, %settings) = @_;
	$node->append_conf('postgresql.conf', join '', map { "$_ = '$settings{$_}'\n" } sort keys %settings);
	$node->reload;
}

# What the query gave last, and whether it came to be as expected in time.
sub value_within {
	my ($seconds, $node, $database, $query, $expected) = @_;
	my $end = time + $seconds;
	while (1) {
		my ($rc, $out, $err) = $node->psql($database, $query);
		my $got = $rc == 0 ? $out : "error: $err";
		my $good = ref $expected ? $got =~ $expected : $got eq $expected;
		return ($good, $got) if $good || time > $end;
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
	my ($good, $got) = value_within(10, $node, $database, "$query ORDER BY 1", qr/^\d+(\n\d+){@{[$count - 1]}}$/);
	diag("waited for $count pids, got: $got") unless $good;
	return split /\n/, $got;
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
	push @allowed, qr/FATAL: .*terminating (background worker "mq (worker|launcher)"|connection) due to administrator command/;
	my @bad = grep {
		my $line = $_;
		$line =~ /PANIC:|TRAP:|segfault|was terminated by|deadlock detected|FATAL:|mq worker:|WARNING:|exited with exit code [^01]/
		  && !grep { $line =~ $_ } @allowed
	} split /\n/, slurp_file($node->logfile);
	is(join("\n", @bad), '', 'the log of ' . $node->name . ' tells of no trouble');
}

1;
