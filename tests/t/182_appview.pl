# The AppView of examples/appview, as docs/recipes/appview.md describes it: the backfill of some hundred repositories beside the live
# stream. Each repository's events are handled in order and behind its sync job, hosts are not asked faster than their rate, sync jobs
# show their progress and keep a result, a feed that dies and a server that crashes lose and repeat nothing, the whole stream once more
# changes nothing, and the index is what a replay in order gives.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use JSON::PP;
use MqDocuments;
use MqRecipes;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# What the page shows is what runs.
my $page = document('docs/recipes/appview.md');
my $example = join "\n", map { slurp_file($_) } glob("$ROOT/examples/appview/*.sql");
sub words { return join ' ', split ' ', $_[0] }
my @blocks = blocks($page, 'sql appview');
cmp_ok(scalar @blocks, '>=', 4, 'the page shows parts of the example');
ok(index(words($example), words($_)) >= 0, 'the example has: ' . (/^(.*)/)[0]) for @blocks;

SKIP: {
	skip 'python3-psycopg is not installed', 1 unless python();

	my $node = mq_node('appview', 'mq.poll_interval' => '1s', 'mq.max_workers' => 3);
	my $r = MqRecipes->new($node, 'appview');
	my $dir = $r->dir;

	my $again = PostgreSQL::Test::Utils::tempdir();
	command_ok([ python(), "$ROOT/examples/appview/generate.py", $_ ], 'a network is made up') for $dir, $again;
	is(slurp_file("$again/$_"), slurp_file("$dir/$_"), "... the same each time: $_") for qw(events.jsonl hosts.json repos.jsonl cursor);
	my @events = map { decode_json($_) } split /\n/, slurp_file("$dir/events.jsonl");
	my $hosts = decode_json(slurp_file("$dir/hosts.json"));
	my ($cursor) = slurp_file("$dir/cursor") =~ /^(\d+)$/;
	my $live = grep { $_->{time_us} > $cursor } @events;
	my %kinds;
	++$kinds{ $_->{kind} . ' ' . ($_->{commit}{operation} // $_->{account}{status} // '') } for @events;
	cmp_ok($kinds{$_} // 0, '>', 2, "there are events: $_") for 'commit create', 'commit update', 'commit delete', 'identity ', 'account ', 'account deleted', 'account deactivated';
	my %dids = map { $_->{did} => 1 } @events;
	cmp_ok(scalar keys %dids, '>', 500, '... of more than 500 repositories');

	$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($r->db), '-f', "$ROOT/examples/appview/$_" ], "$_ is run") for 'schema.sql', 'handlers.sql';
	my $repos = slurp_file("$dir/repos.jsonl") =~ s/'/''/gr;
	$r->sql("CREATE TABLE line (line jsonb); INSERT INTO line SELECT l::jsonb FROM string_to_table('$repos', E'\\n') AS l WHERE l <> ''; " . slurp_file("$ROOT/examples/appview/begin.sql"));
	my $listed = $r->sql('SELECT count(*) FROM repos');
	cmp_ok($listed, '>', 200, "$listed repositories are known at first");
	cmp_ok($listed, '<', 400, '... and others are found in the stream');

	# A repository that has much at its host and in the stream: its sync job is held at its end.
	my %told;
	++$told{ $_->{did} } for grep { $_->{time_us} > $cursor } @events;
	my ($held) = sort { $told{$b} <=> $told{$a} } grep { $r->sql("SELECT count(*) FROM repos WHERE did = '$_'") } (sort { ($told{$b} // 0) <=> ($told{$a} // 0) } keys %$hosts)[ 0 .. 9 ];
	my $records = @{ $hosts->{$held}{records} };
	my $gate = $node->background_psql($r->db);
	$gate->query_safe("BEGIN; SELECT did FROM repos WHERE did = '$held' FOR UPDATE");

	my $begin = time;
	my ($pds, $port) = $r->start_server('pds.py', "$dir/hosts.json", "$dir/fetched.jsonl");
	my @fetchers = map { $r->start_example('fetch.py', [], http_proxy => "http://127.0.0.1:$port", no_proxy => '') } 1 .. 3;
	# A feed that dies is started again, while its last call still runs in the server.
	my $turn = $node->background_psql($r->db);
	$turn->query_safe("UPDATE cursors SET time_us = $cursor; BEGIN; SELECT time_us FROM cursors FOR UPDATE");
	my $calls = q{SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'SELECT ingest%'};
	my $feed = $r->start_example('feed.py', ["$dir/events.jsonl"]);
	$r->within(60, $calls, 1, 'the feed is at work');
	$r->slay($feed);
	$feed = $r->start_example('feed.py', ["$dir/events.jsonl"]);
	$r->within(60, $calls, 2, 'it has died, and another begins with the same events');
	$turn->query_safe('COMMIT');
	$turn->quit;

	my $sync = $r->sql("SELECT sync FROM repos WHERE did = '$held'");
	my $note = "record $records of $records";
	$r->within(60, "SELECT state, note, progress > 0.5 FROM mq_status('{$sync}')", "running|$note|t", 'a sync job shows how far it is');
	$r->within(60, "SELECT count(*) > 0 FROM mq_msgs WHERE channel_args = '$held' AND message_name <> 'sync'", 't', '... the stream has told of its repository');
	$r->within(60, q{SELECT count(*) > 100 FROM mq_done WHERE channel_name = 'appview' AND name = 'sync'}, 't', '... others are done meanwhile');

	$r->holds("SELECT count(*) FROM mq_done WHERE channel_args = '$held' AND channel_name = 'appview'", 0, 'what the stream tells waits behind the sync job of its repository');
	$gate->query_safe('COMMIT');
	$gate->quit;
	$r->ends($feed);
	$r->within(120, q{SELECT count(*) FROM mq_msgs}, 0, 'all is handled');

	$r->holds(q{SELECT count(*) FROM mq_done WHERE channel_name = 'appview' AND name <> 'sync'},
		$live - $r->sql(q{SELECT count(*) FROM mq_dead WHERE channel_name = 'appview' AND name <> 'sync'}), "each of $live events once, though the feed has died");
	$r->holds(q{SELECT count(*) FROM (SELECT (payload_json ->> 'time_us')::bigint - lag((payload_json ->> 'time_us')::bigint) OVER (PARTITION BY channel_args ORDER BY done_no) AS step
		FROM mq_done WHERE channel_name = 'appview' AND name <> 'sync') AS s WHERE step <= 0}, 0, 'each repository in the order of the stream');
	$r->holds(q{SELECT count(*) FROM mq_done s JOIN mq_done e USING (channel_name, channel_args) WHERE channel_name = 'appview' AND s.name = 'sync' AND e.name <> 'sync' AND e.done_no < s.done_no}, 0,
		'... and behind its sync job');
	my %result = map { split /\|/ } split /\n/, $r->sql(q{SELECT channel_args, result ->> 'records' FROM mq_done WHERE name = 'sync'});
	is_deeply(\%result, { map { $_ => scalar @{ $hosts->{$_}{records} } } keys %$hosts }, 'each sync job has kept how many records it found, which is what its host has');
	is(join(' ', sort map { $_->{result} } @{ decode_json($r->sql(q{SELECT json_agg(json_build_object('result', result ->> 'rev')) FROM mq_done WHERE name = 'sync'})) }),
		join(' ', sort map { $_->{rev} } values %$hosts), '... and at which rev');
	$r->holds(q{SELECT channel_name, message_name, reason, count(*) FROM (SELECT channel_name, name, reason FROM mq_dead WHERE name <> 'commit') d (channel_name, message_name, reason) GROUP BY 1, 2, 3 ORDER BY 1},
		"appview|sync|prerequisite|2\nappview_fetch|appview_fetch|discarded|2", 'what a host does not have is dead, and so is the sync job that waits for it');
	$r->holds(q{SELECT count(*) > 3, bool_and(reason = 'discarded' AND error ~ 'is malformed$') FROM mq_dead WHERE name = 'commit'}, 't|t', 'malformed records are dead letters');
	$r->holds(q{SELECT count(*), bool_and(error LIKE 'HTTP 503 %') FROM mq_failures WHERE channel_name = 'appview_fetch' AND error !~ 'RepoNotFound'}, '3|t', 'a host that was not available was asked again');

	# The rate of each host: of n calls at most one, and those of a tenth of a second, begin at once. That a machine is slow only adds to it.
	my %asked;
	push @{ $asked{ $_->{host} } }, $_->{at} for map { decode_json($_) } split /\n/, slurp_file("$dir/fetched.jsonl");
	is(scalar keys %asked, 8, 'eight hosts were asked');
	for my $host (sort keys %asked) {
		my $n = @{ $asked{$host} };
		cmp_ok((sort { $a <=> $b } @{ $asked{$host} })[-1] - $begin, '>=', ($n - 1 - 2) / 20, "$host was asked $n times, not faster than its rate");
	}

	my @check = (python(), "$ROOT/examples/appview/check.py", "$dir/events.jsonl");
	local @ENV{ 'PGHOST', 'PGPORT', 'PGDATABASE' } = ($node->host, $node->port, $r->db);
	command_ok(\@check, 'the index is what a replay in order gives');
	$r->sql(q{CREATE TABLE was AS SELECT * FROM posts ORDER BY did, rkey LIMIT 1; DELETE FROM posts USING was WHERE posts.did = was.did AND posts.rkey = was.rkey});
	command_fails(\@check, '... which the check would tell');
	$r->sql(q{INSERT INTO posts SELECT * FROM was});
	command_like([ 'psql', '-X', '-d', $node->connstr($r->db), '-f', "$ROOT/examples/appview/report.sql" ], qr/repositories \| events \| out of order.*\n.*\n +520 \| +\d+ \| +0\n/, 'the report is made');

	# All of it once more, with a crash of the server in the middle.
	$r->stop(@fetchers, $pds);
	$r->sql(q{CREATE TABLE before AS SELECT max(done_no) AS done_no FROM mq_done; SELECT mq_unlimit('appview'); UPDATE cursors SET time_us = 0});
	$feed = $r->start_example('feed.py', ["$dir/events.jsonl"]);
	$r->within(60, q{SELECT time_us > 0 FROM cursors}, 't', 'the whole stream is sent once more');
	$node->stop('immediate');
	$r->slay($feed);
	$node->start;
	$feed = $r->start_example('feed.py', ["$dir/events.jsonl"]);
	$r->ends($feed);
	$r->within(120, q{SELECT count(*) FROM mq_msgs}, 0, 'all is handled again');
	$r->holds(q{SELECT count(*) FROM mq_done d, before b WHERE d.done_no > b.done_no AND channel_name = 'appview'}, scalar @events, '... each event once, though the server has crashed');
	$r->holds(q{SELECT count(*) FROM mq_done d, before b WHERE d.done_no > b.done_no AND name = 'commit' AND result <> '"seen before"'}, 0, '... and no commit has changed anything');
	command_ok(\@check, 'the index is what it was');

	$node->stop;
	# A worker that waits for another's rows for too long on a busy machine begins its batch anew.
	log_is_clean($node, qr/terminating connection because of crash|canceling statement due to lock timeout/);
}
done_testing();
