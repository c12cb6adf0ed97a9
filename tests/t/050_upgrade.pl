# ALTER EXTENSION mq UPDATE: the catalog of an upgraded database is that of a fresh one.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('upgrade');
plan skip_all => 'the script of 0.1.0 is not installed'
  if $node->safe_psql('postgres', q{SELECT count(*) FROM pg_available_extension_versions WHERE name = 'mq' AND version = '0.1.0'}) eq '0';

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
$node->safe_psql('postgres', 'CREATE DATABASE upgraded');
$node->safe_psql('fresh', 'CREATE EXTENSION mq');
$node->safe_psql('upgraded', q{CREATE EXTENSION mq VERSION '0.1.0'});
$node->safe_psql('upgraded', 'ALTER EXTENSION mq UPDATE');
my %lines = map { $_ => $node->safe_psql($_, $catalog) } qw(fresh upgraded);
cmp_ok(length $lines{fresh}, '>', 10_000, 'the catalog has something to compare');
is($lines{upgraded}, $lines{fresh}, 'from 0.1.0: the catalog is that of a fresh installation')
  or diag(diff_of(split_lines($lines{fresh}), split_lines($lines{upgraded})));

sub split_lines { my ($text) = @_; return [ split /\n/, $text ] }

sub diff_of {
	my ($fresh, $upgraded) = @_;
	my %fresh = map { $_ => 1 } @$fresh;
	my %upgraded = map { $_ => 1 } @$upgraded;
	return join "\n", (map { "fresh only: $_" } grep { !$upgraded{$_} } @$fresh), (map { "upgraded only: $_" } grep { !$fresh{$_} } @$upgraded);
}

# --- between the new library and ALTER EXTENSION UPDATE -------------------------------------------

$node->safe_psql('postgres', 'CREATE DATABASE between');
$node->safe_psql('between', q{CREATE EXTENSION mq VERSION '0.1.0'});
messages_in_every_state($node, 'between', '0.1.0');
within(20, $node, 'between', "SELECT count(*) FROM ($MqTest::WORKERS) w", 1, 'one worker waits for the update');
my $session = $node->background_psql('between');
$session->query_safe(q{SELECT mq_send('sent', '1', id => '00000000-0000-0000-0000-000000000005')});
is($node->safe_psql('between', q{SELECT id FROM mq_poll('{sent}')}), '00000000-0000-0000-0000-000000000005', 'what is sent is polled');
$node->safe_psql('between', q{SELECT mq_keep_alive('{00000000-0000-0000-0000-000000000005}', '1 h'); SELECT mq_delete('{00000000-0000-0000-0000-000000000005}')});
is($node->safe_psql('between', q{SELECT count(id) FROM mq_poll('{expiring}', 100)}), 0, 'what cannot be delivered is passed over');
$node->safe_psql('between', q{SELECT ready FROM mq_stats; SELECT detail FROM mq_health(); SELECT mq_pause('far'), mq_resume('far')});
for my $call ('CALL mq_run()', q{SELECT mq_register_handler('c', 'handle(mq_message)')}) {
	my ($rc, $out, $err) = $node->psql('between', $call, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like($err, qr/55000: extension "mq" is of version 0\.1\.0 in this database, its library of version 0\.1\.1.*HINT:.*ALTER EXTENSION mq UPDATE/s, "not before the update: $call");
}
holds($node, 'between', 'SELECT count(*) FROM handled', 0, 'nothing is handled');
my ($waiting) = pids($node, 'between', $MqTest::WORKERS, 1);
$node->safe_psql('between', 'ALTER EXTENSION mq UPDATE');
all_states_end($node, 'between', 'from 0.1.0');
$session->query_safe(q{SELECT mq_register_handler('sent', 'handle(mq_message)'); SELECT mq_send('sent', '1')});
within(20, $node, 'between', q{SELECT count(*) FROM handled WHERE name = 'sent'}, 1, 'a session from before the update goes on');
$session->quit;
my @said = grep { /messages of database "between" are left alone/ } split /\n/, slurp_file($node->logfile);
is(scalar @said, 1, 'one line of the log says that the workers wait');
like($said[0], qr/is of version 0\.1\.0 .* until ALTER EXTENSION mq UPDATE/, 'and for what');

$node->stop;
log_is_clean($node);
done_testing();
