# Workers tell handlers about their call by settings (mq.message_id and its like) in every mode: in the worker itself, in the
# session of a leased call, also after the COMMIT of a procedure, and in parallel workers of both. What a configuration file, a
# role, a database, a function or a client says of them has no effect.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('call_settings', 'mq.max_workers' => 1, 'mq.channel_args' => 'forged', 'mq.call' => 'forged', max_parallel_workers => 8);
my $db = 'app';
my $look = q{concat_ws('/', current_setting('mq.message_id'), current_setting('mq.channel_name'), current_setting('mq.channel_args'), current_setting('mq.attempt'), current_setting('mq.traceparent'))};
my $parallel = qq{SELECT string_agg(DISTINCT $look, ',') FROM wide};
$node->safe_psql('postgres', 'CREATE DATABASE app; CREATE ROLE alice LOGIN SUPERUSER');
$node->safe_psql($db, qq{
	CREATE EXTENSION mq;
	CREATE TABLE seen (n bigserial, what text, call text, pid int DEFAULT pg_backend_pid());
	CREATE TABLE wide AS SELECT n FROM generate_series(1, 2000) n;
	CREATE FUNCTION note(what text) RETURNS void LANGUAGE sql AS \$\$ INSERT INTO seen (what, call) VALUES (what, $look) \$\$;
	CREATE FUNCTION note_parallel(what text) RETURNS void LANGUAGE plpgsql AS \$\$
	DECLARE
	  found text;
	BEGIN
	  PERFORM set_config('parallel_setup_cost', '0', true), set_config('parallel_tuple_cost', '0', true), set_config('min_parallel_table_scan_size', '0', true),
	          set_config('parallel_leader_participation', 'off', true);
	  EXECUTE \$q\$$parallel\$q\$ INTO found;
	  INSERT INTO seen (what, call) VALUES (what || ' in parallel', found);
	END \$\$;
	CREATE FUNCTION take(m mq_message) RETURNS void LANGUAGE plpgsql AS \$\$
	BEGIN
	  PERFORM note('take');
	  PERFORM note_parallel('take');
	  PERFORM mq_delete(ARRAY[m.id]);
	  PERFORM note('deleted');
	  PERFORM note_parallel('deleted');
	END \$\$;
	CREATE FUNCTION take_json(j jsonb) RETURNS void LANGUAGE plpgsql AS \$\$ BEGIN INSERT INTO deferring VALUES (1); PERFORM note('take'); PERFORM note_parallel('take'); END \$\$;
	CREATE PROCEDURE proceed(j jsonb) LANGUAGE plpgsql AS \$\$
	BEGIN
	  PERFORM note('before');
	  BEGIN
	    SET LOCAL mq.channel_args = 'mine';
	  EXCEPTION WHEN OTHERS THEN PERFORM note(SQLERRM);
	  END;
	  COMMIT;
	  PERFORM note('after');
	  PERFORM note_parallel('after');
	  COMMIT;
	  RESET ALL;
	  PERFORM note('reset');
	END \$\$;
	CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN PERFORM note('at commit'); RETURN NULL; END \$\$;
	CREATE TABLE deferring (n int);
	CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON deferring DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION at_commit();
	CREATE FUNCTION take_all(m mq_message[]) RETURNS void LANGUAGE sql AS \$\$ SELECT note('of ' || cardinality(m)) \$\$;
	CREATE FUNCTION take_immutable(j jsonb) RETURNS int LANGUAGE plpgsql IMMUTABLE AS \$\$
	BEGIN
	  EXECUTE 'SELECT note(\$2) WHERE \$1 > 0' USING 1, '1:x1:x1:x1:x1:x'::text;
	  RETURN 1;
	END \$\$;
	SELECT mq_register_handler('plain', 'take(mq_message)', run_as => 'alice');
	SELECT mq_register_handler('json', 'take_json(jsonb)', run_as => 'alice');
	SELECT mq_register_handler('leased', 'take(mq_message)', run_as => 'alice', mode => 'leased');
	SELECT mq_register_handler('leased json', 'take_json(jsonb)', run_as => 'alice', mode => 'leased');
	SELECT mq_register_handler('procedure', 'proceed(jsonb)', run_as => 'alice', mode => 'leased');
	SELECT mq_register_handler('leased batch', 'take_all(mq_message[])', run_as => 'alice', mode => 'leased', batch_size => 10);
	SELECT mq_register_handler('immutable', 'take_immutable(jsonb)', run_as => 'alice', mode => 'leased')});

sub sees {
	my ($channel, $id, $args, $headers, @expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->safe_psql($db, "SELECT mq_send('$channel', id => '$id', channel_args => '$args', headers => $headers)");
	within(20, $node, $db, q{SELECT string_agg(what || '=' || call, '; ' ORDER BY n) FROM seen}, join('; ', @expected), $channel);
	within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, "$channel: handled");
	$node->safe_psql($db, 'TRUNCATE seen');
}
my $id = '00000000-0000-0000-0000-00000000000a';
my $headers = q{'{"traceparent": "00-1"}'};
sub call { "$id/$_[0]/$_[1]/1/$_[2]" }

sees('plain', $id, 'a', $headers, map { "$_=" . call('plain', 'a', '00-1') } 'take', 'take in parallel', 'deleted', 'deleted in parallel');
sees('json', $id, 'b', 'NULL', (map { "$_=" . call('json', 'b', '') } 'take', 'take in parallel'), 'at commit=////');
sees('leased', $id, '1:a', $headers, map { "$_=" . call('leased', '1:a', '00-1') } 'take', 'take in parallel', 'deleted', 'deleted in parallel');
sees('leased json', $id, '', 'NULL', map { "$_=" . call('leased json', '', '') } 'take', 'take in parallel', 'at commit');
sees('procedure', $id, 'ä', $headers,
	map { "$_=" . call('procedure', 'ä', '00-1') } 'before', 'parameter "mq.channel_args" cannot be changed', 'after', 'after in parallel', 'reset');
sees('leased batch', $id, 'c', $headers, 'of 1=' . call('leased batch', 'c', '00-1'));

# A function that the server evaluates before the statement begins knows nothing of its call, and cannot forge it with parameters
# of its own.
sees('immutable', $id, 'e', 'NULL', '1:x1:x1:x1:x1:x=////');

# The session of a leased call goes on to the next one, and knows that.
for my $n (1 .. 3) {
	$node->safe_psql($db, "SELECT mq_send('leased json', channel_args => 'round $n')");
	within(20, $node, $db, qq{SELECT split_part(call, '/', 3) FROM seen WHERE what = 'take' ORDER BY n DESC LIMIT 1}, "round $n", "call $n of a session");
}

within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'handled');
$node->safe_psql($db, 'TRUNCATE seen');

# What others say of them.
my $ask = q{SELECT current_setting('mq.channel_args') || current_setting('mq.call')};
is($node->safe_psql($db, $ask), '', 'a line in postgresql.conf has no effect');
like(slurp_file($node->logfile), qr/parameter "mq.channel_args" cannot be changed/, 'the log says so');
my ($ret, $out, $err) = do {
	local $ENV{PGOPTIONS} = '-c mq.channel_args=x';
	$node->psql($db, 'SELECT 1');
};
like($err, qr/parameter "mq.channel_args" cannot be changed/, 'PGOPTIONS are refused');
# A placeholder of a time when the library was not loaded.
$node->safe_psql($db, q{SET allow_system_table_mods = on;
	INSERT INTO pg_db_role_setting (setdatabase, setrole, setconfig) VALUES (0, 'alice'::regrole, '{mq.channel_args=x,mq.call=1:x}')});
is($node->safe_psql($db, $ask, connstr => $node->connstr($db) . ' user=alice'), '', 'settings of a role have no effect');
sees('leased json', $id, 'd', 'NULL', map { "$_=" . call('leased json', 'd', '') } 'take', 'take in parallel', 'at commit');
$node->stop;
done_testing();
