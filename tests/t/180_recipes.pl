# The recipes of docs/recipes whose work is done in the database: their statements return what they say, and what they promise holds
# with sessions beside each other and across a crash.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqDocuments;
use MqRecipes;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

# No recipe is without a test, and the list has all of them.
my $tests = join '', map { slurp_file($_) } glob("$ROOT/tests/t/18*.pl");
my $list = document('docs/recipes/README.md');
my @recipes = map { m{^docs/recipes/([\w-]+)\.md$} } grep { !m{/README\.md$} } documents();
for (@recipes) {
	ok($tests =~ /MqRecipes->new\(\$node, '\Q$_\E'/, "$_: a test runs it");
	ok($list =~ /\]\(\Q$_\E\.md\)/, "$_: the list has it");
}

my $node = mq_node('recipes', 'mq.poll_interval' => '1s', 'mq.max_workers' => 3);

# Psql in the background that plays a file; its end is waited for by the caller.
sub play {
	my ($r, $sql) = @_;
	return IPC::Run::start([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($r->db), '-f', '-' ], '<', \$sql, '>', \my $out, '2>', \my $err, IPC::Run::timeout(300));
}

# --- ledger ---------------------------------------------------------------------------------------

# Four sessions transfer between the same accounts, in both directions.
sub many_transfers {
	my ($r) = @_;
	$r->sql(q{
		SELECT demo_append(account, 1000, 'a start') FROM demo_accounts;
		CREATE TABLE payments (n int PRIMARY KEY, account text, amount numeric)});
	my @sessions = map {
		my $s = $_;
		play($r, join '', map {
			my ($from, $to) = (qw(ada bob cyd))[ ($s + $_) % 3, ($s + 2 * $_ + 1) % 3 ];
			$from eq $to ? '' : "BEGIN; INSERT INTO payments VALUES ($s * 1000 + $_, '$from', $_); SELECT count(*) FROM demo_transfer('$from', '$to', $_); COMMIT;\n"
		} 1 .. 60)
	} 0 .. 3;
	ok($_->finish, 'ledger: a session has made its transfers') for @sessions;
	$r->within(60, q{SELECT count(*) FROM mq_msgs}, 0, 'all bookings are applied');
	cmp_ok($r->sql('SELECT count(*) FROM payments'), '>', 100, 'ledger: of many transfers');
	$r->holds(q{SELECT count(*) FROM demo_entries WHERE note = 'transfer' AND amount < 0}, 1 + $r->sql('SELECT count(*) FROM payments'), '... each booked once');
	$r->holds(q{SELECT sum(balance) FROM demo_accounts}, 156 - 30 + 3000, '... nothing was made or lost');
	$r->sql('DROP TABLE payments');
}

# --- import ---------------------------------------------------------------------------------------

# An import that is held at its line 3200 while the server goes down.
sub import_crash {
	my ($r) = @_;
	$r->sql(q{
		DELETE FROM demo_prices; DELETE FROM demo_bad_lines; DELETE FROM demo_imports;
		CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
		  IF NEW.article = 'article 3200' THEN PERFORM pg_advisory_xact_lock(1); END IF;
		  RETURN NEW;
		END $$;
		CREATE TRIGGER hold BEFORE INSERT ON demo_prices FOR EACH ROW EXECUTE FUNCTION hold()});
	my $gate = $node->background_psql($r->db);
	$gate->query_safe('SELECT pg_advisory_lock(1)');
	my $id = $r->sql(q{SELECT mq_send('demo_import', '{"file": "prices.csv"}', retry_backoff => '100 ms')});
	$r->within(60, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'}, 1, 'the import is in the middle');
	$r->holds(q{SELECT round(progress::numeric, 2), note FROM mq_workers WHERE state = 'leased'}, '0.50|line 3001 of 6000', '... and says so');
	$r->holds("SELECT state, round(progress::numeric, 2) FROM mq_status('{$id}')", 'running|0.50', '... also by its id');
	$r->holds(q{SELECT count(*) FROM demo_prices}, 2997, '... its chunks are committed');
	$node->stop('immediate');
	eval { $gate->quit };
	$node->start;
	$r->within(60, q{SELECT lines, bad FROM demo_imports}, '6000|6', 'after a crash of the server it goes on to its end');
	$r->holds(q{SELECT count(*), count(DISTINCT article) FROM demo_prices}, '5994|5994', '... each line is there once');
	my $later = $r->sql(q{SELECT max(attempt) FROM demo_prices});
	$r->holds(qq{SELECT count(*) FROM demo_prices WHERE ctid IN (SELECT ctid FROM demo_prices WHERE split_part(article, ' ', 2)::int <= 3000)}, 2997, '... those before the checkpoint');
	$r->holds(q{SELECT count(*) FROM mq_failures}, 0, '... and no attempt is charged');
	note "the attempt after the crash is number $later";

	# An attempt that fails in the middle goes on behind its last chunk.
	$r->sql(q{
		DELETE FROM demo_prices; DELETE FROM demo_bad_lines; DELETE FROM demo_imports;
		CREATE OR REPLACE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
		  IF NEW.article = 'article 3200' AND NEW.attempt = 1 THEN RAISE 'the disk is full' USING ERRCODE = 'disk_full'; END IF;
		  RETURN NEW;
		END $$;
		SELECT mq_send('demo_import', '{"file": "prices.csv"}', retry_backoff => '100 ms')});
	$r->within(60, q{SELECT lines, bad FROM demo_imports}, '6000|6', 'an import that fails in the middle comes to its end');
	$r->holds(q{SELECT attempt, count(*) FROM demo_prices GROUP BY 1 ORDER BY 1}, "1|2997\n2|2997", '... its second attempt has begun where the first one had committed');
	$r->holds(q{SELECT attempt, sqlstate FROM mq_failures}, '1|53100', '... with its error');
	$r->sql(q{DROP TRIGGER hold ON demo_prices; DROP FUNCTION hold()});
}

# --- report ---------------------------------------------------------------------------------------

# The report waits for a part that is held; and the schedule makes each night's report once.
sub report_waits {
	my ($r) = @_;
	$r->sql(q{
		DELETE FROM demo_parts; DELETE FROM demo_reports; DELETE FROM mq_done; DELETE FROM demo_sales;
		INSERT INTO demo_sales SELECT (now() AT TIME ZONE 'UTC')::date - 1, region, 1 FROM unnest('{east,west}'::text[]) AS region});
	my $gate = $node->background_psql($r->db);
	$gate->query_safe(q{BEGIN; INSERT INTO demo_parts VALUES ((now() AT TIME ZONE 'UTC')::date - 1, 'west', 0)});
	$r->sql(q{UPDATE mq_timetable SET next_at = now() WHERE name = 'demo nightly report'});
	$r->within(60, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'}, 1, 'the schedule sends, and one of two parts takes long');
	$r->within(60, q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'demo_report' AND due_at IS NOT NULL}, 1, '... the report waits for the other');
	$r->holds(q{SELECT count(*) FROM demo_reports}, 0, '... and is not made');
	$gate->query_safe('ROLLBACK');
	$gate->quit;
	$r->within(60, q{SELECT regions, total, day = (now() AT TIME ZONE 'UTC')::date - 1 FROM demo_reports}, '2|2|t', 'then it is made, for the night before the time of the schedule');
	$r->holds(q{SELECT count(*) FROM mq_msgs}, 0, '... once, and nothing is left');
}

# --- moving ---------------------------------------------------------------------------------------

# Two old workers are at work while the rest is moved; two more sessions insert.
sub old_workers {
	my ($r) = @_;
	$r->{old} = [ map { play($r, 'DO $$ BEGIN WHILE demo_old_worker() LOOP COMMIT; PERFORM pg_sleep(0.001); END LOOP; END $$;') } 1 .. 2 ];
}

sub old_workers_end {
	my ($r) = @_;
	ok($_->finish, 'moving-jobs: an old worker has come to its end') for @{ $r->{old} };
	$r->holds(q{SELECT count(*), count(DISTINCT job) FROM demo_done}, '2002|2002', 'each job is done once, by an old worker or by mq');
	my %by = map { split /\|/ } split /\n/, $r->sql(q{SELECT by_whom, count(*) FROM demo_done GROUP BY 1});
	cmp_ok($by{mq}, '>', 10, "moving-jobs: mq did $by{mq} of them, the old workers " . ($by{'old worker'} // 0));
	# A job that an old worker has is passed over, and not lost.
	my $worker = $node->background_psql($r->db);
	$r->sql(q{ALTER TABLE demo_jobs DISABLE TRIGGER forward; INSERT INTO demo_jobs (kind, payload) VALUES ('held', '{}'), ('free', '{}'); ALTER TABLE demo_jobs ENABLE TRIGGER forward});
	$worker->query_safe(q{BEGIN; SELECT kind FROM demo_jobs WHERE kind = 'held' FOR UPDATE});
	$r->holds(q{SELECT demo_move(10)}, 1, 'a job that an old worker has is passed over');
	$worker->query_safe('ROLLBACK');
	$worker->quit;
	$r->holds(q{SELECT demo_move(10)}, 1, '... and moved when it is given back');
	$r->within(60, q{SELECT count(*) FROM demo_done WHERE kind IN ('held', 'free') AND by_whom = 'mq'}, 2, '... both are done');
}

# --- cron -----------------------------------------------------------------------------------------

sub cron_again {
	my ($r) = @_;
	$r->sql(q{INSERT INTO demo_sessions SELECT -n, now() - interval '1 day' FROM generate_series(1, 5) n; UPDATE mq_timetable SET next_at = now() - interval '3 days' WHERE name = 'demo clean up'});
	$r->within(60, q{SELECT count(*) FROM demo_steps WHERE removed = 5}, 1, 'after three nights that were missed one message is sent');
	$r->within(60, q{SELECT count(*) FROM mq_msgs}, 0, '... and handled');
	$r->holds(q{SELECT count(*) FROM demo_steps}, 4, '... and no other');
}

MqRecipes->new($node, 'ledger', after => { 'Try it' => \&many_transfers })->run;
MqRecipes->new($node, 'report', after => { 'Try it' => \&report_waits })->run;
MqRecipes->new($node, 'cron', after => { 'Trying it at once' => \&cron_again })->run;
MqRecipes->new($node, 'moving-jobs', before => { '4. New jobs' => \&old_workers }, after => { '5. The rest' => \&old_workers_end })->run;
MqRecipes->new($node, 'import', after => { 'Try it' => \&import_crash })->run;

$node->stop;
# A worker that waits for another's rows for too long on a busy machine begins its batch anew.
log_is_clean($node, qr/terminating connection because of crash|canceling statement due to lock timeout/);
done_testing();
