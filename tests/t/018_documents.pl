# The documents are true: each of their SQL examples runs as it stands, in order, and returns what it says; each function, argument,
# column and setting of the extension is in docs/reference.md, as the catalog has it; each link leads somewhere. And the examples
# are harmless: somebody else's messages, handlers, roles and settings are the same before and after, and nothing is left of what
# they made.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqDocuments;
use MqExamples;
use MqTest;
use Encode qw(decode);
use List::Util qw(any);
use PostgreSQL::Test::Utils;
use Test::More;

my @documents = documents();
my @tried = grep { m{^README\.md$|^docs/reference\.md$|^docs/guide/} } @documents;
cmp_ok(scalar(grep { m{^docs/guide/} } @tried), '>=', 10, 'there are guides');

# --- links and sizes ----------------------------------------------------------------------------

my %linked;
for my $from (@documents) {
	my $text = document($from);
	for my $link (links($text)) {
		my ($path, $anchor) = $link =~ /^([^#]*)(?:#(.*))?$/;
		my @to = $path eq '' ? split(m{/}, $from) : (split(m{/}, $from =~ s{[^/]*$}{}r), split(m{/}, $path));
		for (my $i = 0; $i < @to; ++$i) { splice(@to, --$i, 2), --$i if $to[$i] eq '..' }
		my $to = join '/', @to;
		ok(-e "$ROOT/$to", "$from: there is $link") or next;
		$linked{$to} = 1 if $to ne $from;
		ok((any { $_ eq $anchor } anchors(document($to))), "$from: it has the heading of $link") if defined $anchor;
	}
	my @long = grep { length > 250 } map { map { @$_ } @$_ } tables($text);
	is(join("\n", @long), '', "$from: no cell of a table is longer than 250 characters");
	my @wide = grep { length(decode('UTF-8', $_)) > 100 && !/^\|/ } split /\n/, $text;
	is(join("\n", @wide), '', "$from: no line is longer than 100 columns, but in tables") unless $from eq 'CHANGELOG.md';
}
ok($linked{$_}, "another document leads to $_") for grep { $_ ne 'README.md' } @documents;

# What is said to be a test, or to be called with make.
my $makefile = slurp_file("$ROOT/Makefile");
my $unit_tests = join '', map { slurp_file($_) } glob("$ROOT/tests/unit/*.cpp");
for my $from (grep { $_ ne 'CHANGELOG.md' } @documents) {
	my $text = document($from);
	my %where = (isolation => [ 'tests/isolation/specs', 'spec' ], sql => [ 'sql', 'sql' ], t => [ 'tests/t', 'pl' ]);
	for ($text =~ m{(?<![\w/.])((?:isolation|sql|t)/[\w-]+)(?![\w/.-])}g) {
		my ($kind, $name) = m{^(\w+)/(.*)$};
		ok(-e "$ROOT/$where{$kind}[0]/$name.$where{$kind}[1]", "$from: there is a test $kind/$name");
	}
	ok($unit_tests =~ /\bTEST\w*\($_\b/, "$from: there is a unit test $_") for $text =~ /\bunit ([A-Z]\w+)/g;
	ok(-e "$ROOT/$_", "$from: there is $_") for $text =~ m{`((?:bgworker|extension|sql|expected|tests|docs|debian|\.ci)/[\w./-]*)`}g;
	ok($makefile =~ /^##   make \Q$_\E /m, "$from: there is make $_") for map { /^make (?:[A-Z_]+=\S+ )*([a-z][\w-]*)/mg } blocks($text, 'sh');
}

# --- nothing that is somebody else's is touched ---------------------------------------------------

is_deeply([ map { harm($_) // '-' } 'SELECT mq_clear_all();', 'TRUNCATE t;', "ALTER SYSTEM SET mq.notify = 'off';", "SET mq.notify = 'off';",
	'DELETE FROM mq_dead;', 'SELECT mq_reset_stats ();', 'DELETE FROM mq_dead WHERE id IS NULL;', "SET LOCAL mq.notify = 'off';" ],
	[ 'calls mq_clear_all', 'truncates', 'changes the server', 'changes the session', 'deletes or updates whatever there is',
	'calls mq_reset_stats', '-', '-' ], 'this test knows harmful examples');

my $node = mq_node('documents');
$node->safe_psql('postgres', 'CREATE ROLE app; ALTER ROLE app SET mq.batch_size = 7');
$node->safe_psql('postgres', 'ALTER SYSTEM SET mq.max_workers = 3');
$node->reload;

# What somebody else has: messages of each kind, in channels with the names that one would choose, a dead letter, handlers,
# a paused channel, rights, settings, and totals.
my @theirs = qw(mail account reports files orders parcels travel app letters);
my @compared = (channels => \@theirs, tables => ['orders']);

sub others_move_in {
	my ($db) = @_;
	$node->safe_psql($db, q{
		CREATE TABLE orders (id uuid, total int);
		INSERT INTO orders VALUES (gen_random_uuid(), 1);
		CREATE FUNCTION take_orders(mq_message[]) RETURNS void LANGUAGE sql AS '';
		CREATE FUNCTION deliver(jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $$no$$; END';
		SELECT mq_register_handler('letters', 'deliver(jsonb)'), mq_register_handler('parcels', 'deliver(jsonb)'),
		       mq_register_handler('orders', 'take_orders(mq_message[])');
		SELECT mq_pause('parcels'), mq_pause('orders');
		SELECT mq_schedule('reports', '@yearly', 'parcels');
		SELECT mq_send('letters', retries => 0);
		SELECT mq_grant('app', 'produce'), mq_grant('app', 'consume')});
	$node->safe_psql($db, "SELECT mq_send('$_', '{}', dedup_key => 'theirs'), mq_send('$_', ordered => true), mq_send('$_', delay => '1 day')")
	  for grep { $_ ne 'letters' } @theirs;
	within(20, $node, $db, q{SELECT dead, died FROM mq_stats WHERE channel_name = 'letters'}, '1|1', 'others have a dead letter');
}

# --- each example runs --------------------------------------------------------------------------

for my $document (@tried) {
	my $db = 'try_' . lc($document) =~ s/\W/_/gr;
	my @blocks = blocks(document($document), 'sql');
	$node->safe_psql('postgres', "CREATE DATABASE $db");
	my $before;
	my $begin = sub { others_move_in($db); $before = all_there_is($node, $db, @compared); };
	if ($document ne 'README.md') {
		$node->safe_psql($db, 'CREATE EXTENSION mq');
		$begin->();
	}
	for my $example (map { examples($_) } @blocks) {
		try_example($node, $db, $document, @$example);
		$begin->() if !$before && $example->[0] =~ /^CREATE EXTENSION mq;/;
	}
	ok($before, "$document: others have moved in");
	my $after = all_there_is($node, $db, @compared);
	is($after->{$_}, $before->{$_}, "$document: as it was before: $_") for sort keys %$before;
	$node->safe_psql('postgres', "DROP DATABASE $db");
}
cmp_ok(scalar(map { examples($_) } blocks(document($_), 'sql')), '>', 1, "$_ has examples") for @tried;

# --- nothing is missing in the reference ----------------------------------------------------------

my $db = 'postgres';
$node->safe_psql($db, 'CREATE EXTENSION mq');
my $reference = document('docs/reference.md');
my $examples = join "\n", map { blocks($reference, $_) } 'sql', 'ini';
my ($internal) = $reference =~ /^(Internal, .*?)^$/ms;
my %section = sections($reference);
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
sub is_internal { return $internal =~ /`\Q$_[0]\E`/ }
for my $member (@members) {
	my $shown = $examples =~ /(?<![\w.])\Q$member\E(?!\w)/;
	my $sweeping = any { $_ eq $member } @MqExamples::SWEEPING;
	ok($shown || is_internal($member), "$member has an example, or is internal") unless $sweeping;
	next unless $shown || $sweeping;
	ok($member =~ /^mq\./ ? $section{Settings} =~ /^\| `\Q$member\E` /m : defined $section{$member}, "$member is described");
}
my %is_member = map { $_ => 1 } @members;
is(join(' ', grep { !$is_member{$_} } $internal =~ /`(\w+)`/g), '', 'what is said to be internal is there');

# The rows of the tables of a section whose first column has the title; a backquote or so is taken off.
sub rows_of {
	my ($name, $title) = @_;
	return map { my ($first, @rows) = @$_; $first->[0] eq $title ? map({ [ map { s/^`([^`]*)`$/$1/r } @$_ ] } @rows) : () } tables($section{$name} // '');
}

# Arguments with their types and defaults.
for (split /\n/, $node->safe_psql($db, q{
	SELECT p.oid::regprocedure, p.proname FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
	 WHERE p.pronamespace = 'public'::regnamespace AND p.proname ~ '^mq_' ORDER BY 1})) {
	my ($signature, $function) = split /\|/;
	next if is_internal($function);
	my @given = rows_of($function, 'parameter');
	my $is = $node->safe_psql($db, qq{
		SELECT string_agg(a.name || ' ' || format_type(a.type, NULL), ', ' ORDER BY a.n)
		  FROM pg_proc p, unnest(p.proargnames, p.proargtypes) WITH ORDINALITY AS a (name, type, n)
		 WHERE p.oid = '$signature'::regprocedure AND a.type IS NOT NULL});
	is(join(', ', map { "$_->[0] $_->[1]" } @given), $is, "the arguments of $function");
	for my $i (1 .. @given) {
		my (undef, $type, $default) = @{ $given[ $i - 1 ] };
		my $said = $default eq 'required' ? "'required'" : "($default)::$type";
		my $catalog = $node->safe_psql($db, "SELECT pg_get_function_arg_default('$signature'::regprocedure, $i)");
		$catalog = "'required'" if $catalog eq '';
		holds($node, $db, "SELECT ($said)::text IS NOT DISTINCT FROM ($catalog)::text", 't', "the default of $function: $given[$i - 1][0]");
	}
}

# Columns of tables, views and types, and of what functions return.
for (split /\n/, $node->safe_psql($db, q{
	SELECT c.relname, string_agg(a.attname || ' ' || format_type(a.atttypid, NULL), ', ' ORDER BY a.attnum)
	  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
	 WHERE c.relnamespace = 'public'::regnamespace AND c.relname ~ '^mq_' AND c.relkind IN ('r', 'v', 'c') GROUP BY 1
	UNION
	SELECT p.proname, string_agg(a.name || ' ' || format_type(a.type, NULL), ', ' ORDER BY a.n)
	  FROM pg_proc p, unnest(p.proargnames, p.proargmodes, p.proallargtypes) WITH ORDINALITY AS a (name, mode, type, n)
	 WHERE p.pronamespace = 'public'::regnamespace AND p.proname ~ '^mq_' AND a.mode = 't' GROUP BY 1 ORDER BY 1})) {
	my ($name, $columns) = split /\|/;
	next if is_internal($name);
	is(join(', ', map { "$_->[0] $_->[1]" } rows_of($name, 'column'), rows_of($name, 'attribute')), $columns, "the columns of $name");
}

# Settings, and examples of postgresql.conf and pg_hba.conf.
my %changed_by = (reload => 'sighup', restart => 'postmaster', superuser => 'superuser', session => 'user', nobody => 'internal');
for my $row (rows_of('Settings', 'setting')) {
	my ($name, $default, $range, $by) = map { s/`//gr } @$row;
	holds($node, $db, "SELECT context FROM pg_settings WHERE name = '$name'", $changed_by{$by}, "how $name is changed");
	holds($node, $db, qq{
		SELECT CASE WHEN unit IS NULL THEN COALESCE(NULLIF(boot_val, ''), 'empty') = '$default'
		            ELSE extract(epoch FROM boot_val::bigint * ('1 ' || CASE unit WHEN 'ms' THEN 'millisecond' ELSE 'minute' END)::interval) =
		                 extract(epoch FROM CASE WHEN unit IS NOT NULL THEN '$default' END::interval) END
		  FROM pg_settings WHERE name = '$name'}, 't', "the default of $name");
	next unless $range =~ /^(\d+) to (\d+)$/;
	holds($node, $db, "SELECT min_val, max_val FROM pg_settings WHERE name = '$name'", "$1|$2", "the range of $name");
}
for my $document (@documents) {
	for my $conf (blocks(document($document), 'ini')) {
		$node->append_conf('postgresql.conf', $conf);
		holds($node, $db, q{SELECT f.name, f.error FROM pg_file_settings f LEFT JOIN pg_settings s USING (name)
			WHERE f.error IS NOT NULL AND s.context IS DISTINCT FROM 'postmaster'}, '', "$document: the server accepts these settings");
		my $names = join ', ', map { "('$_')" } $conf =~ /^(\w[\w.]*) = /mg;
		holds($node, $db, "SELECT name FROM (VALUES $names) AS n (name) EXCEPT SELECT name FROM pg_settings", '', "$document: it has them");
	}
	for my $rules (blocks(document($document), 'pg_hba')) {
		$node->append_conf('pg_hba.conf', $rules);
		holds($node, $db, 'SELECT line_number, error FROM pg_hba_file_rules WHERE error IS NOT NULL', '', "$document: the server accepts these rules");
	}
}
my ($conf) = blocks($reference, 'ini');
my @lines = $conf =~ /^(mq\.\w+) = /mg;
cmp_ok(scalar @lines, '>', 5, 'the reference has an example of postgresql.conf');
holds($node, $db, q{SELECT count(*) FROM pg_settings WHERE context IN ('sighup', 'postmaster') AND name IN (} . join(', ', map { "'$_'" } @lines) . ')',
	scalar @lines, 'which belong there');

# Each right includes what is said.
for my $row (rows_of('Rights', 'right')) {
	my ($right, $includes) = @$row;
	next if $right eq 'admin';
	$node->safe_psql($db, "CREATE ROLE may_$right; SELECT mq_grant('may_$right', '$right')");
	my @may = grep { !is_internal($_) } split /\n/, $node->safe_psql($db, qq{
		SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname ~ '^mq_' AND has_function_privilege('may_$right', oid, 'EXECUTE')
		UNION SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname ~ '^mq_' AND relkind IN ('r', 'v') AND has_any_column_privilege('may_$right', oid, 'SELECT')});
	is(join(' ', sort($includes =~ /`(mq_\w+)`/g)), join(' ', sort @may), "what $right includes");
}

# Each check of mq_health() is explained.
my ($explained) = grep { $_->[0][0] eq 'check' } tables(document('docs/guide/troubleshooting.md'));
is(join("\n", sort map { $_->[0] =~ s/`//gr } @{$explained}[ 1 .. $#$explained ]),
	join("\n", sort split /\n/, $node->safe_psql($db, 'SELECT "check" FROM mq_health()')), 'each check of mq_health() is explained');

$node->restart;
holds($node, $db, 'SELECT setting FROM pg_settings WHERE name = $$mq.max_databases$$', '2000', 'the server starts with the settings of the documents');
$node->stop;
log_is_clean($node);
done_testing();
