# MqFlaw: cases that go wrong on the original schema and right on the extension. The suite 'original' runs them on the
# original schema (MQ_ORIGINAL names a copy), the suite 'tap' on the extension; $kind says which.
#
#   my $node = flaw_node('name', %settings);    a server with a template of the schema
#   flaw N, what it is, sub { how it shows }, what the original shows, what the extension must show;
#
# Each case runs in a new database. In it:
#   session('a')                        a session of that name (MqSession)
#   insert('x y', %options)             SQL that sends messages: their names, and what they have in common
#   append('x y', %options)             the same, ordered
#   poll(10, 'c'), remove('x y'), keep('x'), id('x')      more SQL
#   drain()                             names in the order of their delivery
package MqFlaw;

use strict;
use warnings;

use Exporter 'import';
use MqSession;
use MqTest;
use Test::More;

our @EXPORT = qw(flaw_node flaw $kind session id insert append poll remove keep drain);

our $kind = $ENV{MQ_ORIGINAL} ? 'original' : 'extension';

my ($node, %sessions);

sub flaw_node {
	my ($name, %settings) = @_;
	$node = mq_node($name, %settings);
	if ($kind eq 'original') {
		original_schema($node, 'template');
	} else {
		$node->safe_psql('postgres', 'CREATE DATABASE template');
		$node->safe_psql('template', 'CREATE EXTENSION mq');
	}
	return $node;
}

# A session of the case by its name.
sub session { my ($name) = @_; return $sessions{$name} //= MqSession->new($node, 'test') }

sub flaw {
	my ($number, $what, $case, $wrong, $right) = @_;
	$node->safe_psql('postgres', 'CREATE DATABASE test TEMPLATE template');
	$node->safe_psql('test', 'SELECT mq_enable()') if $kind eq 'extension';
	my $shown = $case->();
	$_->quit for values %sessions;
	%sessions = ();
	$node->safe_psql('postgres', 'DROP DATABASE test');
	is($shown, $kind eq 'original' ? $wrong : $right, "flaw $number, $what: $kind");
}

# The id is made of the name; 'a' is before 'b'.
sub id { my ($name) = @_; return "'" . (unpack('H2', $name) x 16) . "'::uuid" }
sub literal { my ($value) = @_; return defined $value && $value ne 'NULL' ? "'$value'" : 'NULL' }
sub insert {
	my ($names, %o) = @_;
	my @rows = map {
		sprintf q{(%s, %s, %s, '%s', '%s', '%s', %s, %s, %s, %s, NULL)::mq_new_t}, id($_), literal($o{delay} // '0'),
		  $o{retries} // 4, $o{backoff} // '1 h', $o{channel} // 'c', $o{args} // '', literal($o{commit_interval}),
		  $o{ordered} ? 'true' : 'false', exists $o{name} ? literal($o{name}) : "'$_'", literal($o{json})
	} split ' ', $names;
	return 'SELECT mq_insert(ARRAY[' . join(', ', @rows) . '])';
}
sub append { my ($names, %o) = @_; return insert($names, ordered => 1, %o) }
sub poll {
	my ($size, $channel) = @_;
	return sprintf q{SELECT name FROM mq_poll(ARRAY['%s'], %d) WHERE id IS NOT NULL}, $channel // 'c', $size // 10;
}
sub remove { return 'SELECT mq_delete(ARRAY[' . join(', ', map { id($_) } split ' ', $_[0]) . '])' }
sub keep { return sprintf q{SELECT mq_keep_alive(ARRAY[%s], '2 h')}, id($_[0]) }

# Each is removed before the next poll.
sub drain {
	my @names;
	while ((my $name = session('drain')->query(poll(1))) ne '') {
		push @names, $name;
		return join ' ', @names if $name =~ /error/ || @names > 20;
		session('drain')->query(remove($name));
	}
	return join ' ', @names;
}

1;
