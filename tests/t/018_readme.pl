# README.md is true: each of its SQL examples runs as it stands, in order, and returns what it says; each function, table,
# view, type and setting of the extension has one.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('readme');
my $db = 'postgres';
my $readme = slurp_file("$FindBin::RealBin/../../README.md");
my @blocks = $readme =~ /^```sql\n(.*?)^```$/msg;
cmp_ok(scalar @blocks, '>', 5, 'README.md has examples');

# Statements end with a line that ends with a semicolon, or with one and a comment, outside of dollar quotes.
sub statements {
	my ($block) = @_;
	my (@statements, $statement);
	for my $line (split /\n/, $block) {
		$statement .= "$line\n";
		next if (() = $statement =~ /\$\$/g) % 2 || $line !~ /;\s*(--.*)?$/;
		push @statements, $statement;
		$statement = '';
	}
	die "no end of: $statement" if $statement;
	return @statements;
}

for my $statement (map { statements($_) } @blocks) {
	my ($sql, $expected) = $statement =~ /^(.*;)\s*-- => ([^\n]*)\n$/s ? ($1, $2) : ($statement, undef);
	# What workers do is there in a moment; what changes something is run once.
	my $patient = $sql =~ /^(?:SHOW|SELECT (?!.*\bmq_\w+\())/ && defined $expected;
	my ($seconds, $got) = ($patient ? 20 : 0, undef);
	my ($rc, $out, $err);
	my $end = time + $seconds;
	while (1) {
		($rc, $out, $err) = $node->psql($db, $sql, extra_params => [ '-F', ', ' ]);
		last if $rc != 0 || !$patient || $out eq $expected || time > $end;
		select(undef, undef, undef, 0.05);
	}
	my ($name) = $sql =~ /^(.*)/;
	is($err, '', "runs: $name") or next;
	is($out, $expected, "returns what README.md says: $name") if defined $expected;
}

# --- nothing is missing -----------------------------------------------------------------------

my $examples = join "\n", @blocks;
my ($internal) = $readme =~ /^(Internal, .*?)^$/ms;
my @members = split /\n/, $node->safe_psql($db, q{
	SELECT DISTINCT COALESCE(p.proname, c.relname, t.typname) FROM pg_depend d
	  JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'mq'
	  LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
	  LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
	  LEFT JOIN pg_type t ON d.classid = 'pg_type'::regclass AND t.oid = d.objid AND t.typname ~ '^mq_'
	 WHERE d.deptype = 'e' AND COALESCE(p.proname, c.relname, t.typname) IS NOT NULL
	UNION SELECT name FROM pg_settings WHERE name ~ '^mq\.'
	 ORDER BY 1});
cmp_ok(scalar @members, '>', 40, 'the extension has members');
for my $member (@members) {
	my $shown = $examples =~ /(?<![\w.])\Q$member\E(?!\w)/;
	ok($shown || $internal =~ /`\Q$member\E`/, "$member has an example, or is internal");
	ok($readme =~ /`[^`\n]*(?<![\w.])\Q$member\E(?!\w)/, "$member is described") if $shown;
}

# Each argument is named with its type where its function is described, or said to be another function's.
for (split /\n/, $node->safe_psql($db, q{
	SELECT p.proname || ' ' || a.name FROM pg_proc p, unnest(p.proargnames[1:p.pronargs]) AS a (name)
	 WHERE p.pronamespace = 'public'::regnamespace AND p.proname ~ '^mq_' AND a.name IS NOT NULL AND p.oid IN (SELECT objid FROM pg_depend WHERE deptype = 'e')})) {
	my ($function, $argument) = split / /;
	next if $internal =~ /`$function`/;
	my @described = grep { /^\| .*\b$function\(/ } split /\n/, $readme;
	ok((grep { /\b$function\([^)]*\b$argument \w/ || /\b$function\(.*…/ } @described) > 0, "the arguments of $function: $argument");
}

$node->stop;
log_is_clean($node);
done_testing();
