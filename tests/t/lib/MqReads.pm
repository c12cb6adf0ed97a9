# MqReads: what a statement reads of mq's indexes, counted by the server.
#
#   my $holder = hold_snapshot($node, 'db');         until $holder->quit
#   reads_of($session, 'CALL flow(400)')             how many index entries
#   growth_of_reads($session, 'CALL flow(400)')      above 1 if the statement reads more each time it is run
package MqReads;

use strict;
use warnings;

use Exporter 'import';
use List::Util qw(min);
use MqSession;
use Test::More;

our @EXPORT = qw(hold_snapshot reads_of growth_of_reads);

# A session that holds a snapshot of the database's messages until it quits.
sub hold_snapshot {
	my ($node, $database) = @_;
	my $holder = MqSession->new($node, $database);
	$holder->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM mq_msgs');
	return $holder;
}

# How many index entries this database's sessions have read.
sub read_so_far {
	my ($session) = @_;
	$session->query('SELECT pg_stat_force_next_flush()');
	return $session->query(q{SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname LIKE 'mq%'});
}

sub reads_of {
	my ($session, $sql) = @_;
	my $before = read_so_far($session);
	unlike($session->query($sql), qr/error/, 'nothing fails');
	return read_so_far($session) - $before;
}

# How many the statement reads, run twelve times: the least of the last five as a multiple of the least of the five before. The
# first two, which find less in their way than there will ever be, do not count; nor do those that search from the beginning once
# in a while, to check the marks, and more of them on a busy machine.
sub growth_of_reads {
	my ($session, $sql) = @_;
	my @reads;
	for (1 .. 12) {
		push @reads, reads_of($session, $sql);
	}
	note "reads: @reads";
	return min(@reads[7 .. 11]) / min(@reads[2 .. 6]);
}

1;
