# Attacks on live workers: by what a handler does, by settings of its role and database, by who listens and looks on. Each
# must fail, and the worker goes on. Attacks by roles are in sql/attacks.sql, those on installing in sql/attacks_install.sql.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('attacks', 'mq.max_workers' => 4);
my $db = 'postgres';
my $workers = "SELECT count(*) FROM ($MqTest::WORKERS) w";

$node->safe_psql($db, q{
	CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE mallory LOGIN;
	CREATE ROLE gang; GRANT gang TO bob;
	CREATE EXTENSION mq;
	SELECT mq_grant('bob', 'consume');
	CREATE TABLE seen (n bigserial, what text, acts_as text DEFAULT current_user, session text DEFAULT session_user,
	                   path text DEFAULT current_setting('search_path'), pid int DEFAULT pg_backend_pid());
	GRANT ALL ON seen, seen_n_seq TO PUBLIC;
	CREATE FUNCTION alices_helper() RETURNS void LANGUAGE sql SECURITY DEFINER AS $$ INSERT INTO public.seen (what) VALUES ('helper') $$;
	ALTER FUNCTION alices_helper() OWNER TO alice;
	CREATE FUNCTION run(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  EXECUTE message.payload_json ->> 'sql';
	  INSERT INTO public.seen (what) VALUES (message.payload_json ->> 'sql');
	END $$;
	CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
	  RESET ROLE;
	  INSERT INTO public.seen (what) VALUES ('deferred trigger');
	  RETURN NULL;
	END $$;
	CREATE TABLE bait (n int);
	GRANT ALL ON bait TO PUBLIC;
	CREATE CONSTRAINT TRIGGER fire AFTER INSERT ON bait DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fire();
	SELECT mq_register_handler('bob', 'run(mq_message)', run_as => 'bob')});
within(10, $node, $db, $workers, 1, 'a worker serves bob');

# Has bob's handler execute the statement, and an innocent one behind it. Returns what became of the first.
sub attack {
	my ($sql) = @_;
	(my $quoted = $sql) =~ s/'/''/g;
	$node->safe_psql($db, qq{
		TRUNCATE seen;
		SELECT mq_send('bob', jsonb_build_object('sql', '$quoted'), channel_args => 'x', ordered => true, retries => 0,
		               id => '00000000-0000-0000-0000-000000000001');
		SELECT mq_send('bob', '{"sql": "SELECT 1"}', channel_args => 'x', ordered => true)});
	my ($good) = value_within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0);
	ok($good, "the worker goes on after: $sql");
	my $who = $node->safe_psql($db, q{SELECT acts_as, session, path FROM seen WHERE what = 'SELECT 1'});
	is($who, 'bob|bob|"$user", public', 'and the next handler runs as bob with its own settings');
	my $death = $node->safe_psql($db, q{SELECT sqlstate FROM mq_dead});
	my $effects = $node->safe_psql($db, q{SELECT string_agg(DISTINCT acts_as || '/' || session, ' ') FROM seen WHERE what <> 'SELECT 1'});
	$node->safe_psql($db, 'DELETE FROM mq_dead; DELETE FROM mq_failures');
	return $death eq '' ? $effects : $death;
}

# --- handlers ---------------------------------------------------------------------------------

is(attack($_->[0]), $_->[1], "what it comes to: $_->[0]") for
	[ 'RESET ROLE', 'bob/bob' ],
	[ 'SET ROLE NONE', 'bob/bob' ],
	[ 'RESET SESSION AUTHORIZATION', 'bob/bob' ],
	[ 'SET SESSION AUTHORIZATION postgres', '42501' ],
	[ 'SET ROLE postgres', '42501' ],
	[ 'SET ROLE alice', '42501' ],
	[ 'SET ROLE gang', 'gang/bob' ],
	[ 'SET LOCAL ROLE gang', 'gang/bob' ],
	[ 'DO $d$ BEGIN SET ROLE gang; INSERT INTO public.bait VALUES (1); RESET ROLE; END $d$',
		# From 18 on a deferred trigger fires as the role that queued it, and may not change that.
		$node->pg_version < 18 ? 'bob/bob' : '42501' ],
	[ 'DO $d$ BEGIN PERFORM public.alices_helper(); END $d$', 'alice/bob bob/bob' ],
	[ 'DECLARE c CURSOR WITH HOLD FOR SELECT public.alices_helper()', 'alice/bob bob/bob' ],
	[ 'SET search_path = pg_temp', 'bob/bob' ],
	[ 'CREATE TEMP TABLE mq_msgs ON COMMIT DROP AS SELECT 1 AS id', 'bob/bob' ],
	[ 'CREATE TEMP TABLE mq_payloads (LIKE public.seen)', 'bob/bob' ],
	[ 'SET transaction_read_only = on', '25006' ],
	[ 'SET enable_indexscan = off', 'bob/bob' ],
	[ 'SET mq.handler_timeout = 1', '42501' ],
	[ 'DISCARD ALL', '25001' ],
	[ 'SELECT payload_json FROM public.mq_payloads', '42501' ],
	[ 'DELETE FROM public.mq_msgs', '42501' ],
	[ 'UPDATE public.mq_handlers SET run_as = $q$postgres$q$', '42501' ],
	[ 'SELECT public.mq_register_handler($q$bob$q$, $q$public.run(public.mq_message)$q$, run_as => $q$postgres$q$)', '42501' ],
	[ 'SELECT public.mq_poll(NULL)', '55000' ],
	[ 'DROP EXTENSION mq', '42501' ],
	[ 'COPY (SELECT 1) TO PROGRAM $q$true$q$', '42501' ];

# A handler that ends its own worker is charged; it does not come back at once for ever.
is(attack($_), '57P01', "charged: $_") for
	'DO $d$ BEGIN SET exit_on_error = on; RAISE EXCEPTION $q$boo$q$; END $d$',
	'SELECT pg_terminate_backend(pg_backend_pid())';
cmp_ok(scalar(() = slurp_file($node->logfile) =~ /FATAL: /g), '<=', 3, 'each ended its worker once');

# --- settings of the role and the database ------------------------------------------------------

# Takes effect in new workers.
sub renew_workers {
	$node->safe_psql($db, "SELECT pg_terminate_backend(pid) FROM ($MqTest::WORKERS) w");
}
sub handled_as { return "SELECT acts_as, session FROM seen WHERE what = 'SELECT 1'" }
my @hostile = (
	[ 'role', 'gang' ], [ 'session_authorization', 'gang' ], [ 'exit_on_error', 'on' ], [ 'search_path', 'hostile, pg_temp' ],
	[ 'default_transaction_read_only', 'on' ], [ 'default_transaction_isolation', 'serializable' ], [ 'default_transaction_deferrable', 'on' ],
	[ 'statement_timeout', '1' ], [ 'idle_in_transaction_session_timeout', '1' ], [ 'enable_indexscan', 'off' ],
	[ 'enable_indexonlyscan', 'off' ], [ 'enable_nestloop', 'off' ], [ 'force_parallel_mode', 'on' ], [ 'row_security', 'off' ],
	[ 'local_preload_libraries', 'missing' ], [ 'session_preload_libraries', 'missing' ], [ 'session_replication_role', 'replica' ],
	[ 'transform_null_equals', 'on' ], [ 'quote_all_identifiers', 'on' ], [ 'IntervalStyle', 'iso_8601' ], [ 'DateStyle', 'German' ],
	[ 'bytea_output', 'escape' ], [ 'standard_conforming_strings', 'off' ], [ 'client_encoding', 'LATIN1' ], [ 'work_mem', '64' ]);
$node->safe_psql($db, q{
	CREATE SCHEMA hostile;
	GRANT ALL ON SCHEMA hostile TO PUBLIC;
	CREATE TABLE hostile.mq_msgs (LIKE mq_msgs);
	CREATE FUNCTION hostile.trap(uuid, uuid) RETURNS boolean LANGUAGE sql RETURN 1/0 = 1;
	CREATE OPERATOR hostile.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = hostile.trap)});
for my $whose ('ROLE bob', 'DATABASE postgres', 'ROLE bob IN DATABASE postgres') {
	# Some are not there in each version.
	my (undef, undef, $refused) = $node->psql($db, join('', map { "ALTER $whose SET $_->[0] = $_->[1];\n" } @hostile), on_error_stop => 0);
	cmp_ok(scalar(() = $refused =~ /ERROR:/g), '<', 3, "hostile settings: ALTER $whose SET") or diag($refused);
	# Sessions of ours have none of them.
	local $ENV{PGOPTIONS} = '-c role=none -c default_transaction_read_only=off -c search_path=public -c statement_timeout=0 -c exit_on_error=off'
	  . ' -c session_preload_libraries= -c local_preload_libraries=';
	renew_workers();
	$node->safe_psql($db, q{TRUNCATE seen; SELECT mq_send('bob', '{"sql": "SELECT 1"}'), mq_send('bob', '{"sql": "SELECT 1/0"}', retries => 0)});
	within(20, $node, $db, handled_as(), 'bob|bob', 'the worker handles, and as bob');
	within(20, $node, $db, 'SELECT sqlstate FROM mq_dead', '22012', 'and charges what fails');
	$node->safe_psql($db, "DELETE FROM mq_dead; ALTER $whose RESET ALL");
}
renew_workers();

# Leased handlers have sessions of their own: settings that would keep those out are shown by mq_health().
$node->safe_psql($db, q{
	ALTER ROLE bob SET role = gang; ALTER ROLE bob SET exit_on_error = on; ALTER ROLE bob SET search_path = hostile, pg_temp;
	ALTER ROLE bob SET default_transaction_read_only = on; ALTER ROLE bob SET statement_timeout = 1;
	TRUNCATE seen;
	SELECT mq_register_handler('leased', 'run(mq_message)', mode => 'leased', run_as => 'bob'),
	       mq_send('leased', '{"sql": "SELECT 1"}'), mq_send('leased', '{"sql": "SET SESSION AUTHORIZATION postgres"}', retries => 0)});
within(20, $node, $db, handled_as(), 'bob|bob', 'a leased handler runs as its role');
within(20, $node, $db, 'SELECT sqlstate FROM mq_dead', '42501', 'and as nobody else');
$node->safe_psql($db, q{DELETE FROM mq_dead; ALTER ROLE bob SET session_preload_libraries = missing});
$node->safe_psql($db, q{SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'bob'});
$node->safe_psql($db, q{SELECT mq_send('leased', '{"sql": "SELECT 2"}')});
within(20, $node, $db, q{SELECT detail FROM mq_health() WHERE "check" = 'leased connections'}, qr/^as bob: .*"missing"/, 'a session that is refused shows');
holds($node, $db, q{SELECT attempt FROM mq_msgs WHERE channel_name = 'leased'}, 0, 'and nobody is charged for it');
$node->safe_psql($db, 'ALTER ROLE bob RESET ALL');
within(30, $node, $db, q{SELECT acts_as FROM seen WHERE what = 'SELECT 2'}, 'bob', 'it is tried again');
$node->safe_psql($db, q{SELECT mq_unregister_handler('leased')});

# Those of mq are out of reach.
my @refused = map { my ($rc, undef, $err) = $node->psql($db, "SET ROLE bob; ALTER ROLE bob SET $_"); $err =~ /ERROR:  (.*)/ ? $1 : "set" }
	'mq.databases = other', 'mq.max_workers = 0', 'mq.handler_timeout = 1', 'mq.batch_size = 1', 'mq.made_up = 1', 'mq.dead_retention = 0';
is(scalar(grep { /denied|cannot be changed|invalid configuration/ } @refused), 6, 'no setting of mq that would redirect a worker: ' . join('; ', @refused));

# A superuser's handler in a database of somebody else, who would rather have it run as himself.
$node->safe_psql($db, 'CREATE DATABASE mallorys OWNER mallory');
$node->safe_psql('mallorys', q{
	CREATE EXTENSION mq;
	CREATE TABLE seen (acts_as text, session text);
	GRANT ALL ON seen TO PUBLIC;
	CREATE FUNCTION see(jsonb) RETURNS void LANGUAGE sql AS 'INSERT INTO public.seen VALUES (current_user, session_user)';
	SET SESSION AUTHORIZATION mallory;
	ALTER DATABASE mallorys SET role = mallory; ALTER DATABASE mallorys SET session_authorization = mallory;
	RESET SESSION AUTHORIZATION;
	SELECT mq_register_handler('c', 'see(jsonb)'), mq_send('c')});
within(20, $node, 'mallorys', 'SELECT * FROM seen', 'postgres|postgres', 'it runs as who registered it');

# --- looking on ---------------------------------------------------------------------------------

$node->safe_psql($db, q{SELECT mq_send('bob', '{"sql": "SELECT pg_sleep(60)", "secret": "s3cret"}', 'secret name', retries => 0)});
within(10, $node, $db, q{SELECT state FROM pg_stat_activity WHERE wait_event = 'PgSleep'}, 'active', 'bob\'s handler runs');
my $as_mallory = 'SET SESSION AUTHORIZATION mallory; ';
is($node->safe_psql($db, $as_mallory . q{SELECT DISTINCT query, state IS NULL FROM pg_stat_activity WHERE usename = 'bob'}),
	'<insufficient privilege>|t', 'others do not see what a worker does');
my (undef, undef, $denied) = $node->psql($db, $as_mallory . q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' OR usename = 'bob'});
like($denied, qr{must be a member of|permission denied}, 'nor may they end it');
holds($node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'}, 1, 'it still runs');
$node->safe_psql('mallorys', q{RESET SESSION AUTHORIZATION; RESET ROLE; ALTER DATABASE mallorys RESET ALL});
$node->safe_psql('mallorys', q{SELECT mq_grant('mallory', 'admin')});
is($node->safe_psql('mallorys', $as_mallory . q{SELECT count(channel_name) || ' ' || count(message_id) FROM mq_workers WHERE database = 'postgres' AND state = 'handling'}),
	'0 0', 'an administrator of another database does not see the names of this one\'s channels');
is($node->safe_psql('mallorys', q{SELECT channel_name FROM mq_workers WHERE database = 'postgres' AND state = 'handling'}),
	'bob', 'a superuser does');
$node->safe_psql($db, q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'});
within(10, $node, $db, q{SELECT count(*) FROM mq_dead}, 1, 'it is over');

my $listener = $node->background_psql($db);
$listener->query('SET SESSION AUTHORIZATION mallory; LISTEN mq; LISTEN mq_work');
$node->safe_psql($db, q{SET mq.notify = 'on'; SELECT mq_send('work', '{"secret": "s3cret"}', 'secret name'), mq_send('secret channel', '"s3cret"')});
my $heard = $listener->query('SELECT 1') . $listener->query('SELECT 1');
like($heard, qr/notification "mq_work" received/, 'whoever knows the name of a channel learns that something was sent');
unlike($heard, qr/payload|s[e3]cret/, 'and nothing more');
$listener->quit;

# --- an encoding that has few signs ---------------------------------------------------------------------

$node->safe_psql($db, q{CREATE DATABASE japanese TEMPLATE template0 ENCODING 'EUC_JP' LOCALE 'C'});
$node->safe_psql('japanese', q{
	CREATE EXTENSION mq;
	CREATE FUNCTION fail(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE '%', convert_from('\xa4a2', 'EUC_JP') || repeat('x', 20000); END $$;
	SELECT mq_register_handler('c', 'fail(jsonb)'), mq_send('c', '1', retries => 0)});
within(20, $node, 'japanese', q{SELECT encode(convert_to(left(error, 1), 'EUC_JP'), 'hex'), length(error) < 9000 FROM mq_dead}, 'a4a2|t', 'a database whose encoding has few signs');
holds($node, 'japanese', q{SELECT count(*) > 20 FROM mq_health()}, 't', '... and its health');

# --- names that are not valid anywhere else -----------------------------------------------------------

$node->safe_psql($db, q{CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'});
$node->safe_psql('ascii', q{
	CREATE EXTENSION mq;
	CREATE TABLE seen (name text);
	CREATE FUNCTION see(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO seen VALUES (message.name);
	  IF message.payload_json IS NOT NULL THEN PERFORM pg_sleep(60); END IF;
	END $$;
	SET mq.notify = 'on';
	SELECT mq_register_handler(E'\xff\xc3', 'see(mq_message)'),
	       mq_send(E'\xff\xc3', name => E'\xc3', channel_args => E'\x80', ordered => true), mq_send(repeat(E'\xc3', 1024))});
within(20, $node, 'ascii', q{SELECT encode(name::bytea, 'hex') FROM seen}, 'c3', 'a name of bytes that are no characters');
holds($node, 'ascii', q{SELECT encode(name::bytea, 'hex') = repeat('c3', 1024) FROM mq_poll(NULL)}, 't', 'and as a consumer gets it');
$node->safe_psql('ascii', q{SELECT mq_send(E'\xff\xc3', '1')});
within(10, $node, $db, q{SELECT channel_name IS NULL FROM mq_workers WHERE database = 'ascii' AND state = 'handling'}, 't',
	'another database does not show what is no text there');
holds($node, 'ascii', q{SELECT encode(channel_name::bytea, 'hex') FROM mq_workers WHERE database = 'ascii' AND state = 'handling'}, 'ffc3', 'its own does');
# A name that does not fit into shared memory is cut between characters.
$node->safe_psql($db, q{
	CREATE FUNCTION see(jsonb) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(60)';
	SELECT mq_register_handler('x' || repeat('ü', 500), 'see(jsonb)'), mq_send('x' || repeat('ü', 500))});
within(30, $node, $db, q{SELECT DISTINCT channel_name ~ '^xü+$' FROM mq_workers WHERE channel_name LIKE 'x%'}, 't', 'a long name is cut between characters');

log_is_clean($node, qr{FATAL:  boo}, qr{is not a PostgreSQL (?:backend|server) process}, qr{FATAL: .*"missing"}, qr{WARNING:  permission denied to set session authorization "gang"});
$node->stop('immediate');
done_testing();
