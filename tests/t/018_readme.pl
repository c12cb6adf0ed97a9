# README.md is true: each of its SQL examples runs as it stands, in order, and returns what it says; each function, table,
# view, type and setting of the extension has one. And it is harmless: somebody else's messages, handlers, roles and
# settings are the same before and after, and nothing is left of what the examples made.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use List::Util qw(any);
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('readme');
my $db = 'postgres';
my $readme = slurp_file("$FindBin::RealBin/../../README.md");
my @blocks = $readme =~ /^```sql\n(.*?)^```$/msg;
cmp_ok(scalar @blocks, '>', 5, 'README.md has examples');

# --- nothing that is somebody else's is touched ---------------------------------------------------

# What acts on everybody's messages has no example.
my @sweeping = ('mq_clear_all', 'mq_reset_stats');

# Why a statement should not be pasted into a database that others use; undef if it may.
sub harm {
	my ($sql) = @_;
	my $bare = $sql =~ s/--[^\n]*//gr;
	for my $function (@sweeping) {
		return "calls $function" if $bare =~ /\b$function\s*\(/i;
	}
	return 'truncates' if $bare =~ /\bTRUNCATE\b/i;
	return 'changes the server' if $bare =~ /\bALTER\s+(SYSTEM|DATABASE|EXTENSION)\b/i;
	return 'changes the session' if $bare =~ /^\s*SET\s+(?!LOCAL\b)/im;
	return 'deletes or updates whatever there is' if any { !/\bWHERE\b/i } $bare =~ /^\s*((?:DELETE\s+FROM|UPDATE)\b.*?);/gims;
	return 'drops with what depends on it' if $bare =~ /\bCASCADE\b/i;
	return undef;
}

is_deeply([ map { harm($_) // '-' } 'SELECT mq_clear_all();', 'TRUNCATE t;', "ALTER SYSTEM SET mq.notify = 'off';", "SET mq.notify = 'off';",
	'DELETE FROM mq_dead;', 'SELECT mq_reset_stats ();', 'DELETE FROM mq_dead WHERE id IS NULL;', "SET LOCAL mq.notify = 'off';" ],
	[ 'calls mq_clear_all', 'truncates', 'changes the server', 'changes the session', 'deletes or updates whatever there is',
	'calls mq_reset_stats', '-', '-' ], 'this test knows harmful examples');

# What somebody else has: messages of each kind, in channels with the names that one would choose, a dead letter, handlers,
# a paused channel, rights, settings, and totals.
my @theirs = qw(mail account reports files orders parcels travel app letters);

sub others_move_in {
	$node->safe_psql($db, q{
		CREATE TABLE orders (id uuid, total int);
		INSERT INTO orders VALUES (gen_random_uuid(), 1);
		CREATE FUNCTION take_orders(mq_message[]) RETURNS void LANGUAGE sql AS '';
		CREATE FUNCTION deliver(jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $$no$$; END';
		SELECT mq_register_handler('letters', 'deliver(jsonb)'), mq_register_handler('parcels', 'deliver(jsonb)'),
		       mq_register_handler('orders', 'take_orders(mq_message[])');
		SELECT mq_pause('parcels'), mq_pause('orders');
		SELECT mq_send('letters', retries => 0);
		CREATE ROLE app;
		SELECT mq_grant('app', 'produce'), mq_grant('app', 'consume');
		ALTER ROLE app SET mq.batch_size = 7});
	$node->safe_psql($db, "SELECT mq_send('$_', '{}', dedup_key => 'theirs'), mq_send('$_', ordered => true), mq_send('$_', delay => '1 day')")
	  for grep { $_ ne 'letters' } @theirs;
	$node->safe_psql($db, 'ALTER SYSTEM SET mq.max_workers = 3');
	$node->safe_psql($db, 'SELECT pg_reload_conf()');
	within(20, $node, $db, q{SELECT dead, died FROM mq_stats WHERE channel_name = 'letters'}, '1|1', 'others have a dead letter');
}

# All that there is besides the extension itself, in a form that compares. Totals are compared for the others' channels only: an
# example's stay.
sub all_there_is {
	my $theirs = join ', ', map { "'$_'" } @theirs;
	my %is = map { $_->[0] => $node->safe_psql($db, $_->[1]) } (
		map({ [ $_, "SELECT t::text FROM $_ AS t ORDER BY 1" ] } qw(mq_msgs mq_payloads mq_dead mq_failures mq_handlers mq_paused orders)),
		[ 'totals', "SELECT channel_name, handled, failed, died FROM mq_stats WHERE channel_name IN ($theirs) ORDER BY 1" ],
		[ 'settings', q{SELECT name, setting FROM pg_file_settings WHERE sourcefile ~ 'auto.conf$' ORDER BY 1} ],
		[ 'settings of roles', q{SELECT setrole::regrole, setdatabase, setconfig FROM pg_db_role_setting ORDER BY 1} ],
		[ 'roles', q{SELECT rolname FROM pg_roles ORDER BY 1} ],
		[ 'rights', q{SELECT proname, proacl::text FROM pg_proc WHERE proname ~ '^mq_' ORDER BY 1, pronargs} ],
		[ 'objects', q{
			SELECT 'relation', oid::regclass::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
			UNION SELECT 'function', oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
			UNION SELECT 'type', oid::regtype::text FROM pg_type WHERE typnamespace = 'public'::regnamespace
			UNION SELECT 'database', datname FROM pg_database ORDER BY 1, 2} ]);
	return \%is;
}

# --- each example runs --------------------------------------------------------------------------

# Statements end with a line that ends with a semicolon, or with one and a comment, outside of dollar quotes.
sub statements {
	my ($block) = @_;
	my (@statements, $statement);
	for my $line (split /\n/, $block) {
		$statement .= "$line\n";
		next if (() = $statement =~ /\$\$/g) % 2 || $statement =~ /^BEGIN;(?!.*^(COMMIT|ROLLBACK);)/ms || $line !~ /;\s*(--.*)?$/;
		push @statements, $statement;
		$statement = '';
	}
	die "no end of: $statement" if $statement;
	return @statements;
}

my $before;
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
	is(harm($sql), undef, "touches nothing but what the examples made: $name");
	next if $before || $sql !~ /^CREATE EXTENSION mq;/;
	others_move_in();
	$before = all_there_is();
}
my $after = all_there_is();
is($after->{$_}, $before->{$_}, "as it was before: $_") for sort keys %$before;

# --- settings -----------------------------------------------------------------------------------

my ($conf) = $readme =~ /^In `postgresql\.conf`, .*?^```\n(.*?)^```$/ms;
$node->append_conf('postgresql.conf', $conf);
my @lines = $conf =~ /^(mq\.\w+) = /mg;
cmp_ok(scalar @lines, '>', 5, 'README.md has an example of postgresql.conf');
holds($node, $db, 'SELECT error FROM pg_file_settings WHERE error IS NOT NULL', '', 'which the server accepts');
holds($node, $db, q{SELECT count(*) FROM pg_settings WHERE context = 'sighup' AND name IN (} . join(', ', map { "'$_'" } @lines) . ')',
	scalar @lines, 'and takes with a reload');

# --- nothing is missing -----------------------------------------------------------------------

my $examples = join "\n", @blocks, $conf;
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
	my $sweeping = any { $_ eq $member } @sweeping;
	ok($shown || $internal =~ /`\Q$member\E`/, "$member has an example, or is internal") unless $sweeping;
	ok($readme =~ /`[^`\n]*(?<![\w.])\Q$member\E(?!\w)/, "$member is described") if $shown || $sweeping;
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
