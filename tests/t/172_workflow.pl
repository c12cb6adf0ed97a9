# The workflow for public forges is valid, asks for what there is, and tests the versions that `make test-versions` tests.
# No forge runs it here.
use strict;
use warnings;
use FindBin;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

my $root = "$FindBin::RealBin/../..";
my ($output, $error) = ('', '');
IPC::Run::run([ '/usr/bin/env', 'PATH=/usr/bin:/bin', 'python3', '-c', 'import json, sys, yaml; print(json.dumps(yaml.load(sys.stdin, yaml.BaseLoader)))' ],
	'<', "$root/.github/workflows/ci.yml", '>', \$output, '2>', \$error);
plan skip_all => 'python3-yaml is not installed' if $error =~ /No module named '?yaml|python3: No such file/;
is($error, '', 'the file is YAML');
my $workflow = decode_json($output);
is_deeply([ sort keys %{ $workflow->{on} } ], [qw(pull_request push workflow_dispatch)], 'it is run for pushes and pull requests');
is_deeply([ keys %{ $workflow->{jobs} } ], ['test'], 'it has one job');
my $job = $workflow->{jobs}{test};

# --- the matrix -----------------------------------------------------------------------------------

my ($releases) = slurp_file("$root/tests/run/versions.sh") =~ /^declare -A RELEASES=\((.*)\)$/m;
my %release = ($releases // '') =~ /\[(\d+)\]=(\w+)/g;
cmp_ok(scalar keys %release, '>=', 3, 'make test-versions knows versions');
is_deeply({ map { $_->{postgresql} => $_->{debian} } @{ $job->{strategy}{matrix}{include} } }, \%release, 'the matrix is that of make test-versions');
is($job->{container}{image}, 'debian:${{ matrix.debian }}', 'its releases are what the job runs on');

# --- the steps ------------------------------------------------------------------------------------

my $makefile = slurp_file("$root/Makefile");
my @expressions = join("\n", $job->{name}, map { values %$_ } @{ $job->{steps} }) =~ /\$\{\{ *(.*?) *\}\}/g;
is_deeply([ grep { !/^matrix\.(postgresql|debian)$/ } @expressions ], [], 'expressions name what the matrix has');
my $tested = 0;
for my $step (@{ $job->{steps} }) {
	ok($step->{name}, 'a step has a name') or next;
	is(!!$step->{run}, !$step->{uses}, "'$step->{name}' runs a command or uses an action");
	my $run = $step->{run} // next;
	$run =~ s/\$\{\{ *matrix\.postgresql *\}\}/15/g;
	command_ok([ 'bash', '-n', '-c', $run ], "'$step->{name}' is a shell's command");
	for my $target ($run =~ /(?:^|&& *|; *)make((?: +[\w-]+)+)/mg) {
		like($makefile, qr/^\Q$_\E:/m, "make has the target $_"), $tested += $_ eq 'test' for split ' ', $target;
	}
}
is($tested, 1, 'one step runs the tests');
done_testing();
