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
	  SELECT format('constraint %s on %s: %s', c.conname, r.oid::regclass, pg_get_constraintdef(c.oid)) FROM relations r JOIN pg_constraint c ON c.conrelid = r.oid
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

$node->stop;
log_is_clean($node);
done_testing();
