# ALTER EXTENSION mq UPDATE: the catalog of an upgraded database is that of a fresh one.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('upgrade');
my @older = grep { $_ ne '' } split /\n/, $node->safe_psql('postgres', q{
	SELECT version FROM pg_available_extension_versions WHERE name = 'mq' AND version IN ('0.1.0', '0.1.1') ORDER BY 1});
plan skip_all => 'the scripts of 0.1.0 and 0.1.1 are not installed' if @older < 2;

# What CREATE EXTENSION leaves in the catalog, a line for each thing.
my $catalog = q{
	WITH members AS (SELECT d.classid, d.objid FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
	                  WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'mq'),
	     relations AS (SELECT c.* FROM pg_class c JOIN members m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid)
	SELECT line FROM (
	  SELECT format('extension %s %s', extversion, (SELECT string_agg(format('%s %s', c::regclass, n), ', ' ORDER BY c::regclass::text COLLATE "C") FROM unnest(extconfig, extcondition) AS x (c, n))) FROM pg_extension WHERE extname = 'mq'
	  UNION ALL
	  SELECT format('member %s, comment %s', pg_describe_object(classid, objid, 0), obj_description(objid, classid::regclass::text::name)) FROM members
	  UNION ALL
	  SELECT format('relation %s: kind %s, replica identity %s, persistence %s, options %s, acl %s', oid::regclass, relkind, relreplident, relpersistence, reloptions, relacl::text) FROM relations
	  UNION ALL
	  SELECT format('column %s.%s: %s, not null %s, default %s, storage %s, identity %s, collation %s, position %s, acl %s, comment %s', r.oid::regclass, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
	                pg_get_expr(d.adbin, d.adrelid), a.attstorage, a.attidentity, a.attcollation::regcollation, row_number() OVER (PARTITION BY r.oid ORDER BY a.attnum), a.attacl::text, col_description(r.oid, a.attnum))
	    FROM relations r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped LEFT JOIN pg_attrdef d ON d.adrelid = r.oid AND d.adnum = a.attnum
	  UNION ALL
	  SELECT format('index %s, replica identity %s', pg_get_indexdef(i.indexrelid), i.indisreplident) FROM relations r JOIN pg_index i ON i.indrelid = r.oid
	  UNION ALL
	  SELECT format('constraint %s on %s: %s', c.conname, r.oid::regclass, pg_get_constraintdef(c.oid)) FROM relations r JOIN pg_constraint c ON c.conrelid = r.oid AND c.contype <> 'n'
	  UNION ALL
	  SELECT format('view %s: %s', r.oid::regclass, pg_get_viewdef(r.oid)) FROM relations r WHERE r.relkind = 'v'
	  UNION ALL
	  SELECT format('function %s, acl %s', CASE WHEN p.prokind IN ('f', 'p') THEN pg_get_functiondef(p.oid) END, p.proacl::text) FROM pg_proc p JOIN members m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid
	  UNION ALL
	  SELECT format('type %s, acl %s', t.oid::regtype, t.typacl::text) FROM pg_type t JOIN members m ON m.classid = 'pg_type'::regclass AND m.objid = t.oid
	) AS l (line) ORDER BY line COLLATE "C"};

$node->safe_psql('postgres', 'CREATE DATABASE fresh');
$node->safe_psql('fresh', 'CREATE EXTENSION mq');
my $fresh = $node->safe_psql('fresh', $catalog);
cmp_ok(length $fresh, '>', 10_000, 'the catalog has something to compare');
for my $version (@older) {
	$node->safe_psql('postgres', qq{CREATE DATABASE "upgraded from $version"});
	$node->safe_psql("upgraded from $version", qq{CREATE EXTENSION mq VERSION '$version'});
	$node->safe_psql("upgraded from $version", 'ALTER EXTENSION mq UPDATE');
	my $lines = $node->safe_psql("upgraded from $version", $catalog);
	is($lines, $fresh, "from $version: the catalog is that of a fresh installation")
	  or diag(diff_of(split_lines($fresh), split_lines($lines)));
}

sub split_lines { my ($text) = @_; return [ split /\n/, $text ] }

sub diff_of {
	my ($fresh, $upgraded) = @_;
	my %fresh = map { $_ => 1 } @$fresh;
	my %upgraded = map { $_ => 1 } @$upgraded;
	return join "\n", (map { "fresh only: $_" } grep { !$upgraded{$_} } @$fresh), (map { "upgraded only: $_" } grep { !$fresh{$_} } @$upgraded);
}

# --- what was granted -------------------------------------------------------------------------------

# Some right on each object that 0.1 has, to a role, with the grant option where the number is even, and to PUBLIC. Functions
# take more arguments after the update, tables and sequences have other names; mq_payloads is a new view.
my %renamed = (mq_place_seq => 'mq_msgs_seq', mq_loose => 'mq_headless', mq_totals => 'mq_stats_totals', mq_tally => 'mq_stats_deltas', mq_worker_seats => 'mq_worker_slots');
$node->safe_psql('postgres', 'CREATE ROLE grantee');
for my $version (@older) {
	my $db = "granted in $version";
	$node->safe_psql('postgres', qq{CREATE DATABASE "$db"});
	$node->safe_psql($db, qq{CREATE EXTENSION mq VERSION '$version';
		CREATE VIEW members AS
		  SELECT d.classid, d.objid, (SELECT relkind FROM pg_class WHERE d.classid = 'pg_class'::regclass AND oid = d.objid) AS relkind
		    FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'mq';
		CREATE VIEW held AS
		  SELECT concat_ws(' ', h.what, h.name, a.privilege_type, CASE WHEN a.grantee = 0 THEN 'PUBLIC' END, CASE WHEN a.is_grantable THEN 'WITH GRANT OPTION' END) AS line
		    FROM (SELECT 'function' AS what, p.proname::text AS name, p.proacl AS acl FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
		          UNION ALL SELECT 'relation', c.relname, c.relacl FROM members m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
		          UNION ALL SELECT 'column', c.relname || '.' || t.attname, t.attacl FROM members m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid JOIN pg_attribute t ON t.attrelid = c.oid
		          UNION ALL SELECT 'type', t.typname, t.typacl FROM members m JOIN pg_type t ON m.classid = 'pg_type'::regclass AND t.oid = m.objid) AS h,
		         aclexplode(h.acl) AS a
		   WHERE a.grantee IN (0, (SELECT oid FROM pg_roles WHERE rolname = 'grantee'))});
	$node->safe_psql($db, q{
		DO $$
		DECLARE
		  object regclass;
		  object_kind "char";
		  function regprocedure;
		  type regtype;
		BEGIN
		  FOR function IN SELECT m.objid FROM members m WHERE m.classid = 'pg_proc'::regclass LOOP
		    EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO grantee %s', function, CASE WHEN function::oid::bigint % 2 = 0 THEN 'WITH GRANT OPTION' END);
		    EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO PUBLIC', function);
		  END LOOP;
		  FOR object, object_kind IN SELECT m.objid, m.relkind FROM members m WHERE m.relkind IS NOT NULL LOOP
		    EXECUTE format('GRANT SELECT ON %s TO grantee, PUBLIC', object);
		    CONTINUE WHEN object_kind <> 'r';
		    EXECUTE format('GRANT INSERT, UPDATE (%I) ON %s TO grantee WITH GRANT OPTION', (SELECT attname FROM pg_attribute WHERE attrelid = object AND attnum = 1), object);
		  END LOOP;
		  FOR type IN SELECT t.oid FROM pg_type t WHERE t.typname IN ('mq_new_t', 'mq_message') LOOP
		    EXECUTE format('GRANT USAGE ON TYPE %s TO grantee, PUBLIC', type);
		  END LOOP;
		END $$});
	my $held = 'SELECT line FROM held ORDER BY line COLLATE "C"';
	my @before = split /\n/, $node->safe_psql($db, $held);
	for (@before) { s/\b(\w+)\b/$renamed{$1} \/\/ $1/ge }
	cmp_ok(scalar(grep { /^function mq_send / } @before), '==', 2, "$version: there are grants");
	$node->safe_psql($db, 'ALTER EXTENSION mq UPDATE');
	my %after = map { $_ => 1 } split /\n/, $node->safe_psql($db, $held);
	is(join("\n", grep { !$after{$_} } @before), join("\n", grep { /^(?:relation mq_payloads |column mq_payloads\.)/ } @before), "$version: what was granted is granted after the update, but for mq_payloads");
	my %before = map { $_ => 1 } @before;
	is(join("\n", grep { !$before{$_} } sort keys %after), '', "$version: and nothing more");
}

# --- between the new library and ALTER EXTENSION UPDATE -------------------------------------------

for my $version (@older) {
	my $db = "between $version";
	$node->safe_psql('postgres', qq{CREATE DATABASE "$db"});
	$node->safe_psql($db, qq{CREATE EXTENSION mq VERSION '$version'});
	messages_in_every_state($node, $db, $version);
	within(20, $node, $db, "SELECT count(*) FROM ($MqTest::WORKERS) w", 1, "$version: one worker waits for the update");
	my $session = $node->background_psql($db);
	for my $call ('CALL mq_run()', q{SELECT mq_register_handler('c', 'handle(mq_message)')}, q{SELECT mq_send('sent', '1')}, q{SELECT mq_send('sent', '1', ordered => true)},
		q{SELECT count(*) FROM mq_send_many('sent', '{1, 2}')}, q{SELECT mq_poll('{ready}')}, q{SELECT mq_poll(NULL)}, q{SELECT mq_delete('{00000000-0000-0000-0000-000000000005}')},
		q{SELECT mq_clear_all()}, q{SELECT mq_redrive()}, q{SELECT mq_grant('postgres', 'admin')}, q{SELECT mq_revoke('postgres', 'monitor')}, q{SELECT count(*) FROM mq_stats},
		$version eq '0.1.0' ? () : (q{SELECT count(*) FROM mq_health()}, q{SELECT mq_enable()})) {
		my ($rc, $out, $err) = $node->psql($db, $call, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
		like($err, qr/55000: extension "mq" is of version \Q$version\E in this database, its library of version 0\.2\.0.*HINT:.*ALTER EXTENSION mq UPDATE/s,
			"$version: not before the update: $call");
	}
	# The hooks of the new library meet tables of the old layout.
	$node->safe_psql($db, $_) for 'BEGIN; TRUNCATE mq_payloads; TRUNCATE mq_msgs; ROLLBACK', 'LISTEN mq_sent', 'COPY mq_msgs TO STDOUT',
	  'BEGIN; UPDATE mq_msgs SET attempts = attempts; DELETE FROM mq_msgs; ROLLBACK',
	  'BEGIN; SET LOCAL row_security = off; INSERT INTO mq_handlers SELECT * FROM mq_handlers LIMIT 0; ROLLBACK';
	for my $call ('SELECT * FROM mq_workers', 'SELECT * FROM mq_horizon', 'SELECT * FROM mq_health()', q{SELECT mq_pause('far')}, q{SELECT mq_resume('far')}, q{SELECT mq_commit('{}')},
		q{SELECT mq_keep_alive('{00000000-0000-0000-0000-000000000002}', '1 s')}, 'SELECT mq_reset_stats()',
		q{SELECT mq_checkpoint('00000000-0000-0000-0000-000000000002', '1 s', '{}', NULL, 1)}, q{SELECT mq_clear('{ready}')},
		q{SELECT mq_insert(ARRAY[(gen_random_uuid(), '0', 4, '1 s', 'sent', '', NULL, false, 'n', '{}', NULL)::mq_new_t])},
		q{SELECT mq_latest_message('ready', '')}, q{SELECT mq_uuid_exists('00000000-0000-0000-0000-000000000002')}, q{SELECT mq_unregister_handler('none')},
		q{SELECT mq_active_channels('{ready}', 1)}, $version eq '0.1.0' ? () : q{SELECT mq_why('00000000-0000-0000-0000-000000000002')}) {
		my ($rc, $out, $err) = $node->psql($db, "BEGIN; $call; ROLLBACK", extra_params => [ '-v', 'VERBOSITY=verbose' ]);
		ok($rc == 0 || $err =~ /55000: extension "mq" is of version/, "$version: it works, or is refused: $call") or diag($err);
	}
	holds($node, $db, 'SELECT count(*) FROM handled', 0, "$version: nothing is handled");
	my ($waiting) = pids($node, $db, $MqTest::WORKERS, 1);
	# What is prepared before the update comes with it. An update that fails leaves everything as it was.
	$node->safe_psql($db, q{
		CREATE TABLE sent (n bigserial, payload jsonb);
		CREATE FUNCTION note(m mq_message) RETURNS void LANGUAGE sql AS 'INSERT INTO sent (payload) VALUES (m.payload_json)';
		BEGIN;
		INSERT INTO mq_msgs (id, channel_name, channel_args, after_message_id, channel_key) VALUES ('00000000-0000-0000-0000-000000000007', 'sent', '', NULL, mq_channel_key('sent', ''));
		INSERT INTO mq_payloads (id, name, payload_json, channel_key) VALUES ('00000000-0000-0000-0000-000000000007', 'sent', '"prepared"', mq_channel_key('sent', ''));
		PREPARE TRANSACTION 'p'});
	my $messages = 'SELECT count(*), (SELECT count(*) FROM mq_payloads) FROM mq_msgs';
	my $before = $node->safe_psql($db, $messages);
	my @refused = $node->psql($db, q{SET lock_timeout = '1 s'; ALTER EXTENSION mq UPDATE}, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like($refused[2], qr/55P03/, "$version: an update waits for what is prepared");
	$node->safe_psql($db, q{COMMIT PREPARED 'p'; CREATE VIEW mine AS SELECT name FROM mq_payloads});
	@refused = $node->psql($db, 'ALTER EXTENSION mq UPDATE', extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like($refused[2], qr/2BP01: cannot drop table mq_payloads because other objects depend on it.*view mine depends on table mq_payloads/s, "$version: and leaves a view of others alone");
	$node->safe_psql($db, 'DROP VIEW mine');
	is($node->safe_psql($db, $messages), join('|', map { $_ + 1 } split /\|/, $before), "$version: an update that failed changes nothing");
	$node->safe_psql($db, 'ALTER EXTENSION mq UPDATE');
	$node->safe_psql($db, q{SELECT mq_register_handler('sent', 'note(mq_message)')});
	within(20, $node, $db, 'SELECT payload FROM sent', '"prepared"', "$version: what was prepared is handled");
	holds($node, $db, q{SELECT channel_name, reason, sqlstate, error FROM mq_dead WHERE id = '00000000-0000-0000-0000-000000000005'}, 'bare|discarded|02000|payload of message is missing',
		"$version: a message without payload is dead, as it would have been");
	holds($node, $db, q{SELECT length(payload_bytes), md5(payload_bytes) = md5(repeat(md5('x'), 40000)) FROM mq_payloads WHERE id = '00000000-0000-0000-0000-000000000002'}, '1280000|t',
		"$version: a large payload is as it was");
	$node->safe_psql($db, q{DELETE FROM mq_dead WHERE id = '00000000-0000-0000-0000-000000000005'});
	all_states_end($node, $db, "from $version");
	$session->query_safe(q{SELECT mq_send('sent', '1')});
	within(20, $node, $db, 'SELECT payload FROM sent ORDER BY n DESC LIMIT 1', 1, "$version: a session from before the update goes on");
	$session->quit;
	my @said = grep { /messages of database "$db" are left alone/ } split /\n/, slurp_file($node->logfile);
	is(scalar @said, 1, "$version: one line of the log says that the workers wait");
	like($said[0], qr/is of version \Q$version\E .* until ALTER EXTENSION mq UPDATE/, "$version: and for what");
}

$node->stop;
log_is_clean($node);
done_testing();
