# The client of the original schema on the original itself: it plays its whole life, t/020_client.pl's, but for what goes
# wrong there.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../t/lib";
use MqClient;
use MqTest;
use Test::More;

# What goes wrong on the original, by the numbers of docs/compatibility.md. All of it does so every time.
my %flaws = (
	checkpoint_of_last_attempt => '5',
	dead => '7',
	appends_at_once => '11',
	appends_in_a_transaction => '12',
	commit_wakes => '19',
	ten_thousand => '1, 3, 11 and 16');

my $node = mq_node('original_client', shared_preload_libraries => '', max_connections => 150);
original_schema($node, 'original');

# Some copies of the original have no mq_clear.
my @cannot = $node->safe_psql('original', q{SELECT to_regproc('mq_clear_all') IS NULL}) eq 't' ? ('clearing') : ();
# It has no mq_receive.
push @cannot, grep { /^receiv/ } scenarios();
lives('the original', [ $node->connstr('original') ], without(@cannot, keys %flaws));
# What never comes is not waited for long.
my $said = live([ '--limit', 2, $node->connstr('original') ], sort keys %flaws);
for my $scenario (sort keys %flaws) {
	my $report = $said->{$scenario};
	ok($report && @{ $report->{checks} } && !$report->{good}, "the original: $scenario goes wrong, flaw $flaws{$scenario}");
	note($_->{what} . ': ' . $_->{more}) for grep { !$_->{good} } @{ $report->{checks} };
}

$node->stop;
# A session that listens may be closed while it is being notified.
log_is_clean($node, qr/FATAL: .*connection to client lost/, qr/deadlock detected/);
done_testing();
