# MqRecipes: runs the recipes of docs/recipes.
#
#   my $recipe = MqRecipes->new($node, 'outbox', before => { 'A heading' => sub { … } }, after => { … });
#   $recipe->run                        each of its SQL blocks, in order, in a database of its own, with the calls before and
#                                       after the blocks of a heading; then tests that it has left nothing behind
#   $recipe->db                         that database
#   $recipe->sql($query)                what the query gives there
#   $recipe->within($seconds, $query, $expected, $what)    a test, as MqTest's
#   $recipe->start('relay.py', %env)    runs the program that the recipe shows under that name (a block ```python relay.py), as an
#                                       outside consumer
#   $recipe->stop(@programs)            has them end: SIGTERM, and a test that they end well; ends(@programs): the test alone
#   $recipe->slay($program)             ends it in the middle of whatever it does
#   $recipe->start_server('smtp_sink.py', @arguments)      runs a program of tests/recipes or examples/appview, which tells its port;
#                                       the program and the port
#   $recipe->start_example('feed.py', [ @arguments ], %env)    runs a program of examples/appview
#   python()                            a Python that has psycopg; undef: there is none
package MqRecipes;

use strict;
use warnings;

use Exporter 'import';
use IPC::Run;
use MqDocuments;
use MqExamples;
use MqTest ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

our @EXPORT = qw(python);

sub works { return IPC::Run::run([ @_ ], '>', \my $out, '2>', \my $err) }

sub python {
	for my $python ('/usr/bin/python3', 'python3') {
		return $python if eval { works($python, '-c', 'import psycopg') };
	}
	return undef;
}

sub new {
	my ($class, $node, $name, %hooks) = @_;
	my $file = "docs/recipes/$name.md";
	my $db = 'recipe_' . $name =~ s/\W/_/gr;
	my $dir = $node->basedir . "/$name";
	mkdir $dir or die "$dir: $!";
	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->safe_psql($db, 'CREATE EXTENSION mq');
	return bless { node => $node, name => $name, file => $file, text => document($file), db => $db, dir => $dir, running => [], %hooks }, $class;
}

sub db { return $_[0]{db} }
sub sql { my ($self, $query) = @_; return $self->{node}->safe_psql($self->{db}, $query) }

sub within {
	my ($self, $seconds, $query, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return MqTest::within($seconds, $self->{node}, $self->{db}, $query, $expected, "$self->{name}: $what") || $self->tell;
}

sub holds {
	my ($self, $query, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($self->sql($query), $expected, "$self->{name}: $what") || $self->tell;
}

# What the programs have said, where something is wrong.
sub tell {
	my ($self) = @_;
	diag("$_->{name} said:\n${ $_->{log} }") for @{ $self->{running} };
	return 0;
}

# The text under each heading, in order, with its blocks.
sub parts {
	my ($text) = @_;
	my (@parts, $fenced);
	for my $line (split /^/, $text) {
		$fenced = !$fenced if $line =~ /^```/;
		if (!$fenced && $line =~ /^#+ (.*)$/) {
			push @parts, [ $1, '' ];
		} else {
			$parts[-1][1] .= $line;
		}
	}
	return @parts;
}

sub run {
	my ($self) = @_;
	my ($node, $db, $name) = @$self{qw(node db name)};
	my $before = all_there_is($node, $db);
	my %hooks = map { $_ => 1 } keys %{ $self->{before} // {} }, keys %{ $self->{after} // {} };
	my $examples = 0;
	for my $part (parts($self->{text})) {
		my ($heading, $text) = @$part;
		delete $hooks{$heading};
		$self->stop(@{ $self->{running} }) if $heading eq 'Cleaning up';
		$self->{before}{$heading}->($self) if $self->{before}{$heading};
		for my $block ($text =~ /^```(sql(?: other)?\n.*?)^```$/msg) {
			my ($where, $sql) = $block =~ /^sql( other)?\n(.*)$/s;
			for my $example (examples($sql)) {
				++$examples;
				try_example($node, $where ? $self->other : $db, $self->{file}, @$example) or $self->tell;
			}
		}
		$self->{after}{$heading}->($self) if $self->{after}{$heading};
	}
	is(join(', ', sort keys %hooks), '', "$name: has the headings that its test knows");
	cmp_ok($examples, '>', 5, "$name: has examples");
	my $after = all_there_is($node, $db);
	$after->{objects} = join "\n", grep { !/^database\|\Q$db\E_other$/ } split /\n/, $after->{objects};
	is($after->{$_}, $before->{$_}, "$name: as it was before: $_") for sort keys %$before;
	return;
}

# A second database, without the extension, for blocks ```sql other.
sub other {
	my ($self) = @_;
	my $other = "$self->{db}_other";
	$self->{node}->safe_psql('postgres', "CREATE DATABASE $other") unless $self->{other}++;
	return $other;
}

# The file that has the program of that name.
sub program {
	my ($self, $name) = @_;
	my ($block) = blocks($self->{text}, "python $name");
	die "$self->{file} has no program $name" unless $block;
	my $file = "$self->{dir}/$name";
	open my $out, '>', $file or die "$file: $!";
	print $out $block;
	close $out or die "$file: $!";
	return $file;
}

sub dir { return $_[0]{dir} }

sub begin {
	my ($self, $name, $command, %env) = @_;
	local @ENV{'PGHOST', 'PGPORT', 'PGDATABASE', 'PYTHONUNBUFFERED', 'PYTHONDONTWRITEBYTECODE'} =
	  ($self->{node}->host, $self->{node}->port, $self->{db}, 1, 1);
	local @ENV{ keys %env } = values %env;
	my $log = '';
	my $harness = IPC::Run::start($command, '<', '/dev/null', '>', \$log, '2>&1');
	my $program = { name => $name, harness => $harness, log => \$log };
	push @{ $self->{running} }, $program;
	return $program;
}

sub start {
	my ($self, $name, %env) = @_;
	return $self->begin($name, [ python(), $self->program($name) ], %env);
}

# A program of examples/appview.
sub start_example {
	my ($self, $name, $arguments, %env) = @_;
	return $self->begin($name, [ python(), "$ROOT/examples/appview/$name", @$arguments ], %env);
}

sub start_server {
	my ($self, $name, @arguments) = @_;
	my ($file) = grep { -e } "$ROOT/tests/recipes/$name", "$ROOT/examples/appview/$name";
	my $server = $self->begin($name, [ python(), $file, @arguments ], PYTHONPATH => $self->{dir});
	my $end = time + 60;
	while (${ $server->{log} } !~ /^port (\d+)$/m && $server->{harness}->pumpable && time < $end) {
		$server->{harness}->pump_nb;
		usleep(20_000);
	}
	my ($port) = ${ $server->{log} } =~ /^port (\d+)$/m or die "$name does not say its port: ${ $server->{log} }";
	return ($server, $port);
}

sub pid { my ($self, $program) = @_; return $program->{harness}{KIDS}[0]{PID} }

# Has programs end, all of them at once; they finish what they have in hand.
sub stop {
	my ($self, @programs) = @_;
	kill 'TERM', map { $self->pid($_) } @programs;
	return $self->ends(@programs);
}

# Programs end by themselves.
sub ends {
	my ($self, @programs) = @_;
	my $end = time + 120;
	for my $program (@programs) {
		my $harness = $program->{harness};
		while ($harness->pumpable && time < $end) { $harness->pump_nb; usleep(20_000) }
		$harness->signal('KILL') if $harness->pumpable;
		eval { $harness->finish };
		is(($harness->results)[0], 0, "$self->{name}: $program->{name} ends well") or diag(${ $program->{log} });
		$self->{running} = [ grep { $_ != $program } @{ $self->{running} } ];
	}
	return;
}

# Ends a program in the middle of whatever it does.
sub slay {
	my ($self, $program) = @_;
	eval { $program->{harness}->signal('KILL') };
	eval { $program->{harness}->finish };
	$self->{running} = [ grep { $_ != $program } @{ $self->{running} } ];
	return;
}

sub DESTROY {
	my ($self) = @_;
	$self->slay($_) for @{ $self->{running} };
	return;
}

1;
