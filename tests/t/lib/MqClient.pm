# MqClient: plays the client of the original schema (tests/client), which `make client` builds and MQ_CLIENT names.
#
#   scenarios()                                       the names of all
#   without('ten_thousand')                           all but those named
#   live([ options, $node->connstr('db') ], names)    runs them; for each of them: good, what, checks
#   lives('who', [ ... ], names)                      a test for each: all of its checks are good
package MqClient;

use strict;
use warnings;

use Exporter 'import';
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(scenarios without live lives);

$ENV{MQ_CLIENT} or die 'MQ_CLIENT does not name the program that make client builds';

sub scenarios { return split /\n/, (run_command([ $ENV{MQ_CLIENT}, '--list' ]))[0] }

# All but those named.
sub without { my %not = map { $_ => 1 } @_; return grep { !$not{$_} } scenarios() }

# Runs scenarios; gives for each what it said.
sub live {
	my ($arguments, @scenarios) = @_;
	my ($out, $err) = ('', '');
	IPC::Run::run([ $ENV{MQ_CLIENT}, @$arguments, @scenarios ], '>', \$out, '2>', \$err, IPC::Run::timeout(300));
	diag($err) if $err ne '';
	my (%said, @checks);
	for my $line (split /\n/, $out) {
		if ($line =~ /^(not )?ok \d+ - (\w+): (.*)/) {
			$said{$2} = { good => !$1, what => $3, checks => [@checks] };
			@checks = ();
		} elsif ($line =~ /^    (not )?ok \d+ - (.*)/) {
			push @checks, { good => !$1, what => $2, more => '' };
		} elsif ($line =~ /^    # (.*)/ && @checks) {
			$checks[-1]{more} = $1;
		}
	}
	return \%said;
}

# A subtest for each scenario.
sub lives {
	my ($who, $arguments, @scenarios) = @_;
	my $said = live($arguments, @scenarios);
	for my $scenario (@scenarios) {
		my $report = $said->{$scenario};
		subtest "$who: $scenario" => sub {
			ok($report && @{ $report->{checks} }, 'it was played to its end');
			for my $check ($report ? @{ $report->{checks} } : ()) {
				ok($check->{good}, $check->{what}) or diag($check->{more});
			}
		};
	}
}

1;
