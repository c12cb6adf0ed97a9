# A database that was restored or copied: nothing in it is handled, swept or dead-lettered until mq_enable(), then all of it is.
# A restart, a crash, a failover and a dump of the schema alone need no call.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Where the dumps come from nobody works, so everything is there when it is dumped.
my $source = mq_node('source', 'mq.max_workers' => 0);
$source->safe_psql('postgres', 'CREATE EXTENSION mq');
handled_table($source, 'postgres');
my $node = mq_node('restored', 'mq.poll_interval' => '100ms', 'mq.max_workers' => 2, wal_level => 'logical', max_wal_senders => 5, hot_standby => 'on');

my $state = q{SELECT format('%s messages, %s payloads, %s dead, %s handled',
	(SELECT count(*) FROM mq_msgs), (SELECT count(*) FROM mq_payloads), (SELECT count(*) FROM mq_dead), (SELECT count(*) FROM handled))};
my $restored = '1053 messages, 1053 payloads, 1 dead, 0 handled';
my $first_half = '52 messages, 52 payloads, 1 dead, 0 handled';
my $dead_letters = '0 messages, 0 payloads, 1 dead, 0 handled';
my $handled = '0 messages, 0 payloads, 2 dead, 1050 handled';
my $enabled = q{SELECT ok FROM mq_health() WHERE "check" = 'database enabled'};

sub fill {
	my ($where, $database) = @_;
	$where->safe_psql($database, q{
		SELECT mq_register_handler('c', 'handle(mq_message)');
		SELECT mq_register_handler('o', 'handle(mq_message)', on_dead => 'block');
		SELECT count(*) FROM mq_send_many('c', array(SELECT to_jsonb(n) FROM generate_series(1, 1000) n));
		SELECT count(*) FROM mq_send_many('o', array(SELECT to_jsonb(n) FROM generate_series(1, 50) n), ordered => true);
		SELECT mq_send('late', expires => '1 ms');
		SELECT mq_send('uncommitted', commit_interval => '1 ms');
		SELECT mq_send('lost', retries => 0, retry_backoff => '1 ms');
		SELECT count(*) FROM mq_poll('{lost}');
		INSERT INTO mq_dead (id, died_at, channel_name, channel_args, ordered, attempts_made, reason, retry_backoff, channel_key)
		  VALUES (gen_random_uuid(), now() - interval '1000 days', 'old', '', false, 1, 'exhausted', '1 s', 1)});
}

# The probe worker has looked at the database often enough, and has left everything alone.
sub is_left_alone {
	my ($database, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	looks_again($node, $database, $what);
	holds($node, $database, $state, $expected, "$what: and leaves everything alone");
	holds($node, $database, $enabled, 'f', "$what: mq_health() says so");
}

sub is_handled {
	my ($database, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	within(30, $node, $database, $state, $handled, "$what: everything is handled");
	holds($node, $database, q{SELECT count(DISTINCT payload) FROM handled WHERE name = 'c'}, 1000, "$what: each once");
	holds($node, $database, q{SELECT count(*) FROM (SELECT payload::int AS p, lag(payload::int) OVER (ORDER BY n) AS before FROM handled WHERE name = 'o') h WHERE before > p}, 0,
		"$what: in order");
	holds($node, $database, q{SELECT string_agg(reason, ' ' ORDER BY reason) FROM mq_dead}, 'exhausted expired', "$what: what had no attempt left is dead, what is old is gone");
}

sub enable_and_see {
	my ($database, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->safe_psql($database, 'SELECT mq_enable()');
	holds($node, $database, $enabled, 't', "$what: enabled");
	is_handled($database, $what);
}

sub dump_of {
	my ($file, @options) = @_;
	my $path = $source->basedir . "/$file";
	$source->command_ok([ 'pg_dump', @options, '--file', $path, $source->connstr('postgres') ], "pg_dump @options");
	return $path;
}

sub psql_file {
	my ($database, $file, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $file, $node->connstr($database) ], $what);
}

# The dump in two parts. Of the messages the first has those that cannot be delivered: without an attempt left, expired,
# uncommitted, or behind a head that is not there yet.
sub halves {
	my ($file) = @_;
	my $dump = slurp_file($file);
	$dump =~ s/^\\(un)?restrict .*\n//mg;
	my ($header) = $dump =~ /^(SET .*?row_security = off;\n)/ms or die 'the dump does not set row_security';
	my ($before, $messages, $after) = $dump =~ /^(.*?)^((?:COPY|INSERT INTO) public\.mq_msgs .*?)^(--\n-- .*)$/ms or die 'no messages';
	my $copy = $messages =~ /^(COPY .*\n)/ ? $1 : '';
	my @rows = grep { $copy ? /\t/ : /^INSERT/ } split /(?<=\n)/, $messages =~ s/^COPY .*\n//r;
	my $deliverable = qr/[\t']c[\t']|00000000-0000-0000-0000-000000000000/;
	my $part = sub { return join('', $copy, @_, $copy && "\\.\n") };
	append_to_file("$file.1", $before . $part->(grep { !/$deliverable/ } @rows));
	append_to_file("$file.2", $header . $part->(grep { /$deliverable/ } @rows) . $after);
	return ("$file.1", "$file.2");
}

# The dump in two parts. The first ends with the dead letters.
sub cut {
	my ($file) = @_;
	my $dump = slurp_file($file);
	my ($header) = $dump =~ /^(SET .*?row_security = off;\n)/ms or die 'the dump does not set row_security';
	my ($before, $after) = $dump =~ /^(.*?^COPY public\.mq_dead .*?^\\\.\n)(.*)$/ms or die 'no dead letters';
	die 'more than notes comes before the dead letters' if $before =~ /^COPY public\.mq_(?!dead |cancelled |channel_limits )/m;
	append_to_file("$file.tables", $before);
	append_to_file("$file.rest", $header . $after);
	return ("$file.tables", "$file.rest");
}

fill($source, 'postgres');
holds($source, 'postgres', $state, $restored, 'there is something to dump');
$node->safe_psql('postgres', "CREATE DATABASE $_") for qw(plain parallel inserts data_only same schema_only);

# --- dumps ----------------------------------------------------------------------------------------

for my $case ([ 'plain' ], [ 'inserts', '--inserts' ]) {
	my ($database, @options) = @$case;
	my ($first, $second) = halves(dump_of("$database.sql", @options));
	psql_file($database, $first, "$database: the first half is restored");
	is_left_alone($database, $first_half, "$database, the first half");
	# Consumers connect on purpose: what is there is theirs, and nothing is dead.
	is($node->safe_psql($database, q{SELECT count(id) FROM mq_poll(NULL, 100)}), 0, "$database: mq_poll passes over what cannot be delivered");
	holds($node, $database, $state, $first_half, "$database: and moves nothing to the dead letters");
	$node->safe_psql($database, q{SELECT mq_send('polled', id => '00000000-0000-0000-0000-000000000001')});
	is($node->safe_psql($database, q{SELECT id FROM mq_poll('{polled}', 10)}), '00000000-0000-0000-0000-000000000001', "$database: a message is sent and polled");
	$node->safe_psql($database, q{SELECT mq_delete('{00000000-0000-0000-0000-000000000001}')});
	psql_file($database, $second, "$database: and the second");
	is_left_alone($database, $restored, $database);
	is($node->safe_psql($database, q{BEGIN; SELECT count(id) FROM mq_poll(NULL, 100); ROLLBACK}), 100, "$database: mq_poll gives what is there");
	my ($rc, $out, $err) = $node->psql($database, 'CALL mq_run()', extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like($err, qr/55000: messages are not handled in this database.*DETAIL:.*restored or copied.*HINT:.*SELECT public\.mq_enable\(\)/s, "$database: mq_run is refused");
	like($node->safe_psql($database, q{SELECT mq_why(id) FROM mq_msgs WHERE channel_name = 'c' LIMIT 1}), qr/left alone: .* until SELECT mq_enable\(\)/, "$database: mq_why() says so");
	enable_and_see($database, $database);
	$node->safe_psql($database, q{SELECT mq_send('c', '0', 'again')});
	within(10, $node, $database, q{SELECT count(*) FROM handled WHERE name = 'again'}, 1, "$database: and so is what is sent later");
}

my $custom = dump_of('custom', '--format=custom');
$node->command_ok([ 'pg_restore', '-j', 2, '-d', $node->connstr('parallel'), $custom ], 'pg_restore -j 2');
is_left_alone('parallel', $restored, 'pg_restore -j');
enable_and_see('parallel', 'pg_restore -j');

# Into an extension that was there before, with workers.
$node->safe_psql('data_only', 'CREATE EXTENSION mq');
handled_table($node, 'data_only');
$node->safe_psql('data_only', q{SELECT mq_register_handler('before', 'handle(mq_message)'); SELECT mq_send('before')});
within(10, $node, 'data_only', $state, '0 messages, 0 payloads, 0 dead, 1 handled', 'workers are at work');
$node->safe_psql('data_only', 'TRUNCATE handled; SELECT mq_unregister_handler(channel_name) FROM mq_handlers');
my ($first, $second) = halves(dump_of('data_only.sql', '--data-only'));
my ($tables, $rest) = cut($first);
psql_file('data_only', $tables, 'the dead letters, which a dump has first, are restored under the workers');
is_left_alone('data_only', $dead_letters, 'data only, the dead letters');
psql_file('data_only', $rest, 'then the rest of the first half of the data');
is_left_alone('data_only', $first_half, 'data only, the first half');
psql_file('data_only', $second, 'and the second');
is_left_alone('data_only', $restored, 'data only');
enable_and_see('data_only', 'data only');
# Rolled back, such a restore changes nothing.
$node->safe_psql('data_only', q{
	BEGIN;
	SET LOCAL row_security = off;
	INSERT INTO mq_handlers SELECT * FROM mq_handlers LIMIT 0;
	ROLLBACK});
holds($node, 'data_only', $enabled, 't', 'a restore that was rolled back disables nothing');
$node->safe_psql('data_only', q{INSERT INTO mq_handlers SELECT * FROM mq_handlers LIMIT 0});
holds($node, 'data_only', $enabled, 't', 'nor does an INSERT outside of a dump');
my $parallel_data = dump_of('data_only.custom', '--format=custom', '--data-only');
$node->safe_psql('data_only', 'SELECT mq_unregister_handler(channel_name) FROM mq_handlers; TRUNCATE handled, mq_dead, mq_failures, mq_stats_totals, mq_stats_deltas');
$node->command_ok([ 'pg_restore', '-j', 2, '--data-only', '-d', $node->connstr('data_only'), $parallel_data ], 'pg_restore -j 2 --data-only');
is_left_alone('data_only', $restored, 'data only, in parallel');
enable_and_see('data_only', 'data only, in parallel');

# In the same database, after the extension was dropped.
my $plain = dump_of('same.sql');
psql_file('same', $plain, 'a database is restored');
$node->safe_psql('same', q{SELECT mq_enable(); DROP EXTENSION mq CASCADE; DROP TABLE handled});
psql_file('same', $plain, 'and once more, after DROP EXTENSION');
is_left_alone('same', $restored, 'after DROP EXTENSION');
enable_and_see('same', 'after DROP EXTENSION');

# --- a restore that has locked tables ------------------------------------------------------------

# Its transaction has locked what a worker waits for, who has begun to work: the worker gives way. It waits for longer than
# deadlock_timeout already, so it does not find the deadlock itself.
set_and_reload($node, deadlock_timeout => '10ms');
$node->safe_psql('postgres', 'CREATE DATABASE locked');
$node->safe_psql('locked', q{
	CREATE EXTENSION mq;
	CREATE TABLE app (x int);
	CREATE FUNCTION insert_into_app(m mq_message) RETURNS void LANGUAGE sql AS 'INSERT INTO app VALUES (m.attempt)';
	SELECT mq_register_handler('c', 'insert_into_app(mq_message)')});
for my $case ([ 'mq_msgs', 'in its claim' ], [ 'app', 'in a handler' ]) {
	my ($table, $where) = @$case;
	my $restore = $node->background_psql('locked');
	$restore->query_safe("SET row_security = off; BEGIN; TRUNCATE $table");
	$node->safe_psql('locked', q{SELECT mq_send('c', retries => 0)}) if $table eq 'app';
	within(20, $node, 'locked', qq{SELECT count(*) > 0 FROM pg_locks l JOIN pg_stat_activity a USING (pid)
		WHERE a.backend_type = 'mq worker' AND l.relation = '$table'::regclass AND NOT l.granted AND l.waitstart < clock_timestamp() - interval '100 ms'},
		't', "a worker waits $where for a transaction that has locked $table");
	$restore->query_safe("INSERT INTO mq_handlers SELECT * FROM mq_handlers WHERE false; COMMIT");
	$restore->quit;
	holds($node, 'locked', $enabled, 'f', "restored beside a worker $where");
	$node->safe_psql('locked', 'SELECT mq_enable()');
}
within(20, $node, 'locked', q{SELECT string_agg(x::text, ' ') FROM app}, '1', 'a call that gave way is made again, and charged nothing');
holds($node, 'locked', 'SELECT (SELECT count(*) FROM mq_failures) + (SELECT count(*) FROM mq_dead)', 0, 'nothing has failed');
set_and_reload($node, deadlock_timeout => '1s');

# --- nothing was restored -------------------------------------------------------------------------

psql_file('schema_only', dump_of('schema.sql', '--schema-only'), 'a dump of the schema is loaded');
holds($node, 'schema_only', $enabled, 'f', 'the schema only: not enabled yet');
$node->safe_psql('schema_only', q{SELECT mq_register_handler('c', 'handle(mq_message)'); SELECT mq_send('c', '1')});
within(10, $node, 'schema_only', 'SELECT count(*) FROM handled', 1, 'with the first handler it is: what is sent is handled');

# --- copies ---------------------------------------------------------------------------------------

$node->safe_psql('postgres', 'CREATE DATABASE original');
$node->safe_psql('original', 'CREATE EXTENSION mq');
handled_table($node, 'original');
$node->safe_psql('original', q{SELECT mq_pause('c'), mq_pause('o'), mq_pause('late'), mq_pause('lost')});
fill($node, 'original');
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE original');
$node->safe_psql('copy', q{SELECT mq_resume('c'), mq_resume('o'), mq_resume('late'), mq_resume('lost')});
my $copied = $node->safe_psql('copy', $state);
like($copied, qr/^105\d messages, .* 0 handled$/, 'CREATE DATABASE ... TEMPLATE copies messages');
is_left_alone('copy', $copied, 'a copy');
holds($node, 'copy', 'SELECT count(*) FROM mq_enabled', 0, 'the mark of the original is removed for good');
$node->safe_psql('copy', 'SELECT mq_enable()');
within(30, $node, 'copy', $state, $handled, 'enabled, everything in it is handled');
holds($node, 'original', q{SELECT count(*) FROM handled}, 0, 'and nothing in the original');
my ($rc, $out, $err) = $node->psql('copy', q{CREATE ROLE nobody; SET ROLE nobody; SELECT mq_enable()});
like($err, qr/permission denied for function mq_enable/, 'not everybody enables');

# mq_enable() commits between a worker's look at the mark and its removal of the mark: the new one stays. The lock lets the
# worker look, and holds up the removal.
set_and_reload($node, 'mq.databases' => 'original');
$node->safe_psql('postgres', 'CREATE DATABASE racing TEMPLATE original');
$node->append_conf('postgresql.conf', "mq.databases = '*'\n");
$node->safe_psql('racing', q{
	BEGIN;
	LOCK TABLE mq_enabled IN SHARE MODE;
	SELECT pg_reload_conf();
	DO $$
	BEGIN
	  FOR i IN 1..600 LOOP
	    EXIT WHEN EXISTS (SELECT FROM pg_locks WHERE relation = 'mq_enabled'::regclass AND NOT granted);
	    ASSERT i < 600, 'no worker comes to remove the mark';
	    PERFORM pg_sleep(0.1);
	  END LOOP;
	END $$;
	SELECT mq_enable();
	COMMIT;
	SELECT mq_resume('c'), mq_resume('o'), mq_resume('late'), mq_resume('lost')});
is_handled('racing', 'enabled while a worker removes the mark of the original');

# An extension that comes with the template is as one that is created: nothing was copied but the catalog.
$node->safe_psql('postgres', 'CREATE DATABASE empty');
$node->safe_psql('empty', 'CREATE EXTENSION mq');
$node->safe_psql('postgres', 'CREATE DATABASE born TEMPLATE empty');
handled_table($node, 'born');
$node->safe_psql('born', q{SELECT mq_register_handler('c', 'handle(mq_message)'); SELECT mq_send('c', '1')});
within(10, $node, 'born', 'SELECT count(*) FROM handled', 1, 'a copy of an empty database is enabled with its first handler');

# --- what needs nobody ----------------------------------------------------------------------------

$node->backup('base');
$node->safe_psql('original', q{SELECT mq_resume('c'), mq_resume('o'), mq_resume('late'), mq_resume('lost')});
is_handled('original', 'the original');

# The same messages in a standby that takes over.
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$node->safe_psql('original', q{SELECT mq_pause('c'); TRUNCATE handled; SELECT count(*) FROM mq_send_many('c', '{1, 2, 3}')});
$standby->start;
$node->wait_for_catchup($standby);
holds($standby, 'original', $enabled, 't', 'a standby has the mark of its primary');
$node->stop;
$standby->promote;
$standby->safe_psql('original', q{SELECT mq_resume('c')});
within(20, $standby, 'original', 'SELECT count(*) FROM handled', 3, 'after a failover the messages are handled');
$standby->safe_psql('original', q{SELECT mq_pause('c'); SELECT count(*) FROM mq_send_many('c', '{4, 5, 6}')});
$standby->restart;
$standby->safe_psql('original', q{SELECT mq_resume('c')});
within(20, $standby, 'original', 'SELECT count(*) FROM handled', 6, 'and after a restart');
$standby->safe_psql('original', q{SELECT mq_pause('c'); SELECT count(*) FROM mq_send_many('c', '{7, 8, 9}')});
$standby->stop('immediate');
$standby->start;
$standby->safe_psql('original', q{SELECT mq_resume('c')});
within(20, $standby, 'original', 'SELECT count(*) FROM handled', 9, 'and after a crash');
$standby->stop;

$source->stop;
log_is_clean($source);
log_is_clean($node, qr/mq worker: canceling statement due to user request/,    # it gave way,
	qr/mq worker: deadlock detected/,    # or began to wait a moment later, and found the deadlock itself
	qr/walsender .*FATAL:  the database system is shutting down/);
done_testing();
