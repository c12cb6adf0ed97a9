# What a transactional handler leaves in its worker's session is gone for the next batch, as after DISCARD ALL; what
# calls of one batch make for the same name has them run one to a transaction, uncharged.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('session_state', 'mq.max_workers' => 1);
my $db = 'postgres';
my $left = 'SELECT count(*) FROM mq_msgs';
my $trouble = 'SELECT (SELECT count(*) FROM mq_failures) + (SELECT count(*) FROM mq_dead)';

$node->safe_psql($db, 'CREATE EXTENSION mq');
handled_table($node, $db);

# A channel whose handler is that body, which has `m`, the message. It notes each call.
sub channel {
	my ($name, $body) = @_;
	$node->safe_psql($db, qq{
		CREATE FUNCTION $name(m mq_message) RETURNS void LANGUAGE plpgsql AS \$\$
		DECLARE note text := '';
		BEGIN
		  $body;
		  INSERT INTO handled (name, payload) VALUES (m.channel_name || note, m.payload_json);
		END \$\$;
		SELECT mq_register_handler('$name', '$name(mq_message)')});
}

# Messages one by one, so that each has a batch of its own; then fifty together.
sub handles_all {
	my ($name, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->safe_psql($db, 'TRUNCATE handled');
	for my $n (1 .. 3) {
		$node->safe_psql($db, "SELECT mq_send('$name', '$n', retries => 0)");
		within(10, $node, $db, $left, 0, "$what: batch $n");
	}
	$node->safe_psql($db, "SELECT count(*) FROM mq_send_many('$name', array_fill('4'::jsonb, ARRAY[50]), retries => 0)");
	within(30, $node, $db, $left, 0, "$what: fifty together");
	holds($node, $db, "SELECT count(*) FROM handled WHERE name LIKE '$name%'", 53, "$what: each was handled");
	holds($node, $db, $trouble, 0, "$what: and none has failed");
}

# --- advisory locks ----------------------------------------------------------------------------

channel('locks', q{PERFORM pg_advisory_lock(42), pg_advisory_lock_shared(43)});
handles_all('locks', 'session-level advisory locks');
within(10, $node, $db, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid IN (42, 43)}, 0, 'which are free after the batch');
my ($worker) = pids($node, $db, $MqTest::WORKERS, 1);
# A failed call, and a batch that is rolled back at its commit, leave none either.
$node->safe_psql($db, q{
	CREATE TABLE one (x int UNIQUE DEFERRABLE INITIALLY DEFERRED);
	INSERT INTO one VALUES (1)});
channel('fails', q{PERFORM pg_advisory_lock(44); RAISE 'no'});
channel('fails_late', q{PERFORM pg_advisory_lock(45); INSERT INTO one VALUES (1)});
$node->safe_psql($db, q{SELECT mq_send('fails', retries => 0), mq_send('fails_late', retries => 0)});
within(10, $node, $db, q{SELECT count(*) FROM mq_dead}, 2, 'two calls fail, one of them at the commit');
within(10, $node, $db, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid IN (44, 45)}, 0, 'and hold no lock any more');
$node->safe_psql($db, 'TRUNCATE mq_dead, mq_failures');
# Another session that wants such a lock gets it, and no worker hangs on another's.
set_and_reload($node, 'mq.max_workers' => 3);
channel('contended', q{PERFORM pg_advisory_lock(46)});
$node->safe_psql($db, q{SELECT count(*) FROM mq_send_many('contended', array_fill('1'::jsonb, ARRAY[2000]), retries => 0)});
within(60, $node, $db, $left, 0, 'workers that take the same lock come to their end');
holds($node, $db, 'SELECT pg_try_advisory_lock(46)', 't', 'and leave it to the application');
holds($node, $db, $trouble, 0, 'with nothing charged');
set_and_reload($node, 'mq.max_workers' => 1);
within(20, $node, $db, "SELECT count(*) FROM ($MqTest::WORKERS) w", 1, 'one worker is left');

# --- temporary objects -------------------------------------------------------------------------

channel('temp_drop', q{CREATE TEMP TABLE work (x int) ON COMMIT DROP; INSERT INTO work VALUES (1)});
handles_all('temp_drop', 'CREATE TEMP TABLE ON COMMIT DROP');
channel('temp', q{CREATE TEMP TABLE work (x int); CREATE TEMP SEQUENCE numbers; CREATE TYPE pg_temp.pair AS (a int, b int)});
handles_all('temp', 'temporary tables, sequences and types');
# Of a large view the definition is out of line in the catalogs.
channel('temp_view', q{EXECUTE (
	SELECT 'CREATE TEMP VIEW work AS SELECT ' || string_agg(format('%L AS c%s', (SELECT string_agg(md5(n::text || i), '') FROM generate_series(1, 20) AS n), i), ', ')
	  FROM generate_series(1, 60) AS i)});
handles_all('temp_view', 'temporary views');
channel('temp_once', q{CREATE TEMP TABLE IF NOT EXISTS work (x int); note := ' ' || (SELECT count(*) FROM work); INSERT INTO work VALUES (1)});
for my $n (1 .. 2) {
	$node->safe_psql($db, "TRUNCATE handled; SELECT mq_send('temp_once', '$n')");
	within(10, $node, $db, q{SELECT name FROM handled}, 'temp_once 0', "rows of a temporary table are not seen by the next batch ($n)");
}
# In one batch with another channel that makes a table of that name.
channel('temp_too', q{CREATE TEMP TABLE work (y text) ON COMMIT DROP});
$node->safe_psql($db, q{
	TRUNCATE handled;
	SELECT count(mq_send(c, to_jsonb(n), retries => 0)) FROM generate_series(1, 50) AS n, unnest('{temp_drop,temp_too}'::text[]) AS c});
within(30, $node, $db, q{SELECT count(*) FROM handled}, 100, 'two channels that make a table of the same name');
holds($node, $db, $trouble, 0, 'fail nothing');
# For batch handlers it is one call a transaction.
$node->safe_psql($db, q{
	CREATE FUNCTION all_temp(m mq_message[]) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  CREATE TEMP TABLE work (x int) ON COMMIT DROP;
	  INSERT INTO handled (name) SELECT 'all_temp' FROM unnest(m);
	END $$;
	SELECT mq_register_handler('all_temp', 'all_temp(mq_message[])', 'a', batch_size => 7), mq_register_handler('all_temp', 'all_temp(mq_message[])', 'b', batch_size => 7);
	SELECT count(mq_send('all_temp', name => CASE n % 2 WHEN 0 THEN 'a' ELSE 'b' END, retries => 0)) FROM generate_series(1, 100) AS n});
within(30, $node, $db, q{SELECT count(*) FROM handled WHERE name = 'all_temp'}, 100, 'batch handlers with temporary tables');
holds($node, $db, $trouble, 0, 'fail nothing');
# What exists for good fails its message.
$node->safe_psql($db, 'CREATE TABLE real (x int)');
channel('real_table', q{IF m.payload_json = '2' THEN CREATE TABLE real (x int); END IF});
$node->safe_psql($db, q{SELECT count(*) FROM mq_send_many('real_table', '{1,1,2,1,1}', retries => 0)});
within(20, $node, $db, q{SELECT sqlstate, attempts_made, payload_json FROM mq_dead}, '42P07|1|2', 'a table that exists for good is the failure of its message');
within(20, $node, $db, q{SELECT count(*) FROM handled WHERE name = 'real_table'}, 4, 'and of no other');
$node->safe_psql($db, 'TRUNCATE mq_dead, mq_failures');

# --- prepared statements, cursors ----------------------------------------------------------------

channel('prepared', q{EXECUTE 'PREPARE plan AS SELECT 1'});
handles_all('prepared', 'PREPARE');
channel('held', q{EXECUTE 'DECLARE held CURSOR WITH HOLD FOR SELECT generate_series(1, 1000)'});
handles_all('held', 'cursors WITH HOLD');
channel('open_cursor', q{EXECUTE 'DECLARE opened CURSOR FOR SELECT 1'});
handles_all('open_cursor', 'cursors of one name that are left open');

# --- constraints -----------------------------------------------------------------------------------

$node->safe_psql($db, q{
	CREATE TABLE parent (id int PRIMARY KEY);
	CREATE TABLE child (parent int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)});
# In batches with calls whose constraints are deferred.
my %others = (
	immediate => 'SET CONSTRAINTS ALL IMMEDIATE',
	caught => 'BEGIN SET CONSTRAINTS ALL IMMEDIATE; EXCEPTION WHEN OTHERS THEN NULL; END',
	refused => q{BEGIN
	    INSERT INTO child VALUES (-1);
	    SET CONSTRAINTS ALL IMMEDIATE;
	  EXCEPTION WHEN foreign_key_violation THEN note := ' by a constraint';
	  END},
	alters => 'ALTER TABLE child ALTER parent SET STATISTICS 100');
for my $other (sort keys %others) {
	channel($other, qq{
		IF m.payload_json::int % 4 = 0 THEN
		  $others{$other};
		ELSE
		  INSERT INTO child SELECT m.payload_json::int;
		  INSERT INTO parent SELECT m.payload_json::int;
		  note := ' deferred';
		END IF});
	$node->safe_psql($db, 'TRUNCATE handled, parent, child');
	$node->safe_psql($db, "SELECT count(*) FROM mq_send_many('$other', array(SELECT to_jsonb(n) FROM generate_series(0, 39) AS n), retries => 0)");
	within(30, $node, $db, $left, 0, "$other: beside calls with deferred constraints");
	my $note = $other eq 'refused' ? 'refused by a constraint' : $other;
	holds($node, $db, 'SELECT name, count(*) FROM handled GROUP BY 1 ORDER BY 1', "$note|10\n$other deferred|30", "$other: each was handled as if it were alone");
	holds($node, $db, $trouble, 0, "$other: and none has failed");
	$node->safe_psql($db, 'TRUNCATE mq_dead, mq_failures');
}

# --- settings, roles, sequences ------------------------------------------------------------------

channel('settings', q{
	note := concat(' ', current_setting('search_path'), ' ', current_setting('statement_timeout'), ' ', current_setting('my.own', true), ' ',
	               current_user, ' ', session_user);
	PERFORM set_config('search_path', 'pg_catalog, public', false), set_config('my.own', 'x', false);
	SET statement_timeout = '7 s'; SET ROLE app; SET SESSION AUTHORIZATION app; RESET SESSION AUTHORIZATION});
$node->safe_psql($db, q{CREATE ROLE app; GRANT INSERT ON handled TO app; GRANT USAGE ON handled_n_seq TO app});
my $user = $node->safe_psql($db, 'SELECT current_user');
$node->safe_psql($db, 'TRUNCATE handled');
$node->safe_psql($db, "SELECT mq_send('settings', '$_')") for 1 .. 2;
$node->safe_psql($db, q{SELECT count(*) FROM mq_send_many('settings', '{3,3,3}')});
within(20, $node, $db, q{SELECT DISTINCT name, (SELECT count(*) FROM handled) FROM handled}, qq{settings "\$user", public 0  $user $user|5},
	'settings, SET ROLE and SET SESSION AUTHORIZATION end with their call');

$node->safe_psql($db, 'CREATE SEQUENCE numbers');
channel('sequence', q{
	BEGIN
	  note := ' ' || currval('numbers');
	EXCEPTION WHEN object_not_in_prerequisite_state THEN note := ' undefined';
	END;
	PERFORM nextval('numbers')});
for my $n (1 .. 2) {
	$node->safe_psql($db, "TRUNCATE handled; SELECT mq_send('sequence', '$n')");
	within(10, $node, $db, 'SELECT name FROM handled', 'sequence undefined', "currval of another batch is not seen ($n)");
}

# --- what is refused, and what stays ---------------------------------------------------------------

channel('listens', q{LISTEN something});
$node->safe_psql($db, q{SELECT mq_send('listens', retries => 0)});
within(10, $node, $db, q{SELECT error ~ 'background process' FROM mq_dead}, 't', 'LISTEN is refused in a worker');
$node->safe_psql($db, 'TRUNCATE mq_dead, mq_failures');

# mq_run leaves the session of its caller as handlers leave it: nothing of the caller's is discarded.
set_and_reload($node, 'mq.max_workers' => 0);
within(20, $node, $db, "SELECT count(*) FROM ($MqTest::WORKERS) w", 0, 'no worker is left');
is($node->safe_psql($db, q{
	PREPARE mine AS SELECT 'prepared';
	CREATE TEMP TABLE my_table AS SELECT 'a temporary table' AS t;
	SELECT nextval('numbers') > 0, pg_advisory_lock(50);
	BEGIN; DECLARE my_cursor CURSOR WITH HOLD FOR SELECT 'held'; COMMIT;
	SELECT mq_send('locks') IS NOT NULL;
	CALL mq_run('{locks}');
	EXECUTE mine; SELECT t FROM my_table; FETCH my_cursor;
	SELECT currval('numbers') > 0;
	SELECT array_agg(objid ORDER BY objid) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()}),
	"t|\nt\n1\nprepared\na temporary table\nheld\nt\n{42,43,50}", 'mq_run discards nothing of its caller, and leaves what a handler did');

$node->stop;
log_is_clean($node);
done_testing();
