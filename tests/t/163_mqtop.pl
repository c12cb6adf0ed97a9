# tools/mqtop: a look, in a terminal and without one.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('mqtop', 'mq.max_workers' => 1);
my $db = 'postgres';
my $mqtop = "$FindBin::RealBin/../../tools/mqtop";
my @server = ('-h', $node->host, '-p', $node->port, '-d', $db);
sub sql { return $node->safe_psql($db, shift) }
sub mqtop {
	my ($out, $err) = ('', '');
	IPC::Run::run([ $mqtop, @_ ], '<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(120));
	return ($? >> 8, $out, $err);
}

# --- what cannot be ----------------------------------------------------------------------------------------------

for (
	[ [ '--every', 'soon' ], qr/^mqtop: --every soon: must be a number of seconds above 0\nusage:/ ],
	[ ['--every=0'], qr/^mqtop: --every 0: must be a number of seconds above 0\n/ ],
	[ ['--every'], qr/^mqtop: --every : must be a number of seconds above 0\n/ ],
	[ [ '--sort', 'size' ], qr/^mqtop: --sort size: must be one of handled failed ready/ ]) {
	my ($status, $out, $err) = mqtop(@{ $_->[0] });
	is($status, 2, "@{ $_->[0] }: status 2");
	like($err, $_->[1], '... and what is wrong');
	is($out, '', '... and nothing else');
}
my ($status, $out, $err) = mqtop(@server);
is($status, 1, 'without the extension: status 1');
is($err, "mqtop: the database has no extension mq\n", '... and why');
($status, $out, $err) = mqtop('-h', $node->host . '/none', $db);
is($status, 1, 'without a server: status 1');
like($err, qr/^mqtop: psql: error: connection to server.*failed/, '... and what psql says');
($status, $out, $err) = mqtop('--help');
like($out, qr/^What a queue does.*--every: seconds/s, '--help says what there is');

# --- a look --------------------------------------------------------------------------------------------------------

sql('CREATE EXTENSION mq');
($status, $out, $err) = mqtop('--every', '0.1', @server);
is("$status$err", '0', 'an empty queue has a look');
like($out, qr/^mq \S+   postgres   [\d:]{8}   ready 0   running 0   scheduled 0   dead 0/, '... with nothing in it');
sql(q{
	CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN PERFORM pg_advisory_xact_lock_shared(1); IF m.payload_json = '0' THEN RAISE 'no'; END IF; END $$;
	SELECT mq_register_handler('work', 'handle(mq_message)');
	SELECT count(mq_send('work', to_jsonb(n % 2), retries => 0)) FROM generate_series(1, 10) n;
	SELECT mq_pause('evil'), count(mq_send(E'a\x1b[2J\u009bname', delay => '1 hour')) FROM generate_series(1, 4)});
within(60, $node, $db, q{SELECT handled || ' ' || dead FROM mq_stats WHERE channel_name = 'work'}, '5 5', 'messages are handled and die');
my $gate = $node->background_psql($db, on_error_die => 1);
$gate->query_safe('SELECT pg_advisory_lock(1)');
my $id = sql(q{SELECT mq_send('work', '1', 'held')});
within(60, $node, $db, q{SELECT count(*) FROM mq_workers WHERE state = 'handling'}, 1, 'a worker has a call');
($status, $out, $err) = mqtop('--every', '0.2', '--sort', 'name', @server);
is("$status$err", '0', 'a look at a live queue');
like($out, qr/^work +0 +1 +0 +0 +5 +- +0\.0 +0\.0 +\S+[mu]?s +\S+s$/m, 'it shows each channel name');
like($out, qr/^\d+ +handling +work +$id +\d+s/m, '... and each worker with its message');
like($out, qr/^! channels not paused: paused: evil/m, '... and what mq_health() finds');
like($out, qr/^a\?\[2J\?name +0 +0 +4/m, 'a name cannot steer the terminal');
unlike($out, qr/\e/, '... and without a terminal nothing does');
cmp_ok(index($out, "\na?"), '<', index($out, "\nwork"), '--sort name sorts by name');
($status, $out, $err) = mqtop('--every', '0.2', '--sort', 'dead', @server);
cmp_ok(index($out, "\na?"), '>', index($out, "\nwork"), '--sort dead by dead messages');
$gate->query_safe('SELECT pg_advisory_unlock(1)');
my $sender = $node->background_psql($db, on_error_die => 1);
$sender->query_until(qr/sends/, "\\echo sends\n" . q{SELECT pg_sleep(1), count(mq_send('work', '1')) FROM generate_series(1, 100);} . "\n");
($status, $out, $err) = mqtop('--every', '4', @server);
like($out, qr/handled\/s [1-9]\d\.\d/, 'rates are those between two looks');
$sender->quit;
sql(q{CREATE ROLE watcher LOGIN; SELECT mq_grant('watcher', 'monitor')});
($status, $out, $err) = mqtop('--every', '0.2', '-U', 'watcher', @server);
is("$status$err", '0', 'the right monitor is enough');

# --- in a terminal -------------------------------------------------------------------------------------------------

SKIP: {
	my ($script) = grep { -x } map { "$_/script" } split /:/, $ENV{PATH};
	skip 'since there is no script(1)', 5 unless $script;
	my ($keys, $screen) = ('', '');
	my $run = IPC::Run::start([ $script, '-qefc', join(' ', $mqtop, '--every', '60', @server), '/dev/null' ], '<', \$keys, '>', \$screen, IPC::Run::timeout(120));
	$run->pump until $screen =~ /by handled   q ends/;
	like($screen, qr/\e\[\?1049h.*work/s, 'it has the screen for itself');
	$keys = 's';
	$run->pump until $screen =~ /by failed   q ends/;
	pass('s sorts by the next column, at once');
	sql(q{SELECT mq_send('new')});
	$keys = ' ';
	$run->pump until $screen =~ /^new /m || $screen =~ /\nnew /;
	pass('space looks at once');
	$keys = 'q';
	$run->finish;
	is($run->full_result(0), 0, 'q ends it');
	like($screen, qr/\e\[\?25h\e\[\?1049l/, '... and gives the screen back');
}
within(20, $node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'psql' AND query LIKE '%mq_stats%'}, 0, 'none of its sessions is left');

$gate->quit;
$node->stop;
log_is_clean($node);
done_testing();
