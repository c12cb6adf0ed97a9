# MqExamples: runs the SQL examples of documents, and says whether they leave everything else as it was.
#
#   harm($sql)                                    why a statement should not be pasted into a database that others use; undef if it may
#   all_there_is($node, 'db', channels => [ … ], tables => [ … ])    all that there is besides the extension itself, in a form that
#                                                 compares: totals of these channels, what is in these tables besides mq's
#   try_example($node, 'db', $where, $sql, $expected)    tests of one example: it is harmless, runs, and returns what it says
package MqExamples;

use strict;
use warnings;

use Exporter 'import';
use List::Util qw(any);
use Test::More;

our @EXPORT = qw(harm all_there_is try_example);

# What acts on everybody's messages has no example.
our @SWEEPING = ('mq_clear_all', 'mq_reset_stats');

sub harm {
	my ($sql) = @_;
	my $bare = $sql =~ s/--[^\n]*//gr;
	for my $function (@SWEEPING) {
		return "calls $function" if $bare =~ /\b$function\s*\(/i;
	}
	return 'truncates' if $bare =~ /\bTRUNCATE\b/i;
	return 'changes the server' if $bare =~ /\bALTER\s+(SYSTEM|DATABASE|EXTENSION)\b/i;
	return 'changes the session' if $bare =~ /^\s*SET\s+(?!LOCAL\b)/im;
	return 'deletes or updates whatever there is' if any { !/\bWHERE\b/i } $bare =~ /^\s*((?:DELETE\s+FROM|UPDATE)\b.*?);/gims;
	return 'drops with what depends on it' if $bare =~ /\bCASCADE\b/i;
	return undef;
}

# Totals are compared for the others' channels only: an example's stay.
sub all_there_is {
	my ($node, $db, %theirs) = @_;
	my $channels = join ', ', map { "'$_'" } '', @{ $theirs{channels} // [] };
	my %is = map { $_->[0] => $node->safe_psql($db, $_->[1]) } (
		map({ [ $_, "SELECT t::text FROM $_ AS t ORDER BY 1" ] } qw(mq_msgs mq_payloads mq_dead mq_failures mq_handlers mq_paused mq_channel_limits mq_timetable mq_subscribers), @{ $theirs{tables} // [] }),
		[ 'totals', "SELECT channel_name, handled, failed, died FROM mq_stats WHERE channel_name IN ($channels) ORDER BY 1" ],
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

# What only reads may be asked again and again.
my $reads = qr/(?:why|health|latest_message|uuid_exists|active_channels)\b/;

sub try_example {
	my ($node, $db, $document, $sql, $expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	# What workers do is there in a moment; what changes something is run once.
	my $patient = $sql =~ /^(?:SHOW|SELECT|TABLE|WITH) (?!.*\bmq_(?!$reads)\w+\()/s && defined $expected;
	my ($error) = ($expected // '') =~ /^ERROR (\w{5})$/;
	my $end = time + ($patient ? 20 : 0);
	my ($rc, $out, $err);
	while (1) {
		($rc, $out, $err) = $node->psql($db, $sql, extra_params => [ '-F', ', ', $error ? ('-v', 'VERBOSITY=sqlstate') : () ]);
		last if $rc != 0 || !$patient || $out eq $expected || time > $end;
		select(undef, undef, undef, 0.05);
	}
	my ($name) = $sql =~ /^(.*)/;
	is(harm($sql), undef, "$document: touches nothing but what the examples made: $name");
	return like($err, qr/ERROR:  $error$/, "$document: fails as it says: $name") if $error;
	is($err, '', "$document: runs: $name") or return;
	return is($out, $expected, "$document: returns what it says: $name") if defined $expected;
	return 1;
}

1;
