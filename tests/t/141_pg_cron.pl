# pg_cron beside mq, as docs/guide/pg_cron.md has it: its statements run as they stand; jobs send and publish, and the workers of mq
# handle that; where the library of mq is not preloaded a job calls mq_run(). With too few processes of the server the job fails as
# the guide says, and mq goes on.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqDocuments;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my ($share, $lib) = map { my ($dir) = run_command([ 'pg_config', "--$_" ]); $dir } 'sharedir', 'pkglibdir';
plan skip_all => 'pg_cron is not installed (on Debian: postgresql-15-cron, or with the number of the server)'
  if !-e "$share/extension/pg_cron.control" || !-e "$lib/pg_cron.so";

my $guide = document('docs/guide/pg_cron.md');
my ($conf) = blocks($guide, 'ini pg_cron');
my ($create, @blocks) = blocks($guide, 'sql pg_cron');
my ($nightly, $minutely, $run, $remove) = @blocks;
is(scalar @blocks, 4, 'the guide has statements');
my %settings = $conf =~ /^(\S+) = '?(.*?)'?$/mg;
is(join(' ', sort keys %settings), 'cron.database_name cron.use_background_workers max_worker_processes shared_preload_libraries', '... and settings');

sub cron_node {
	my ($name, %more) = @_;
	my $node = mq_node($name, %settings, %more);
	$node->safe_psql('postgres', $create);
	$node->safe_psql('postgres', 'CREATE DATABASE shop; CREATE ROLE clerk LOGIN; GRANT USAGE ON SCHEMA cron TO clerk');
	$node->safe_psql('shop', q{
		CREATE EXTENSION mq;
		CREATE TABLE seen (topic text, payload jsonb, role text DEFAULT current_user);
		CREATE FUNCTION see(m mq_message) RETURNS void LANGUAGE sql AS $$ INSERT INTO seen (topic, payload) VALUES (m.headers ->> 'topic', m.payload_json) $$;
		SELECT mq_register_handler('reports', 'see(mq_message)'), mq_register_handler('clock', 'see(mq_message)');
		SELECT mq_subscribe('clock.*', 'clock');
		SELECT mq_grant('clerk', 'produce')});
	return $node;
}
my $details = q{SELECT j.jobname, d.status, d.return_message FROM cron.job_run_details d JOIN cron.job j USING (jobid)};

# Jobs by the minute, in background workers, beside the workers of mq.
my $node = cron_node('cron');
# Jobs without mq's library, over connections.
my $without = cron_node('without', shared_preload_libraries => 'pg_cron', 'cron.use_background_workers' => 'off', 'cron.host' => $node->host);

$node->safe_psql('postgres', $_) for $nightly, $minutely;
holds($node, 'postgres', 'SELECT jobname, schedule, database, active FROM cron.job ORDER BY jobid', "nightly report|0 3 * * *|shop|t\nevery minute|* * * * *|shop|t", 'the jobs are there');
# The nightly one by the minute, as another role.
$node->safe_psql('postgres', q{UPDATE cron.job SET schedule = '* * * * *', username = 'clerk' WHERE jobname = 'nightly report'});
$without->safe_psql('postgres', $run);
$without->safe_psql('shop', q{SELECT mq_send('reports', '{"of": "old"}')});

within(180, $node, 'shop', q{SELECT count(*) > 0 FROM seen WHERE payload ->> 'of' = 'yesterday'}, 't', 'what a job has sent is handled');
within(180, $node, 'shop', q{SELECT count(*) > 0 FROM seen WHERE topic = 'clock.minute'}, 't', 'what a job has published is handled');
within(60, $node, 'postgres', qq{SELECT DISTINCT status FROM ($details) d WHERE status NOT IN ('running', 'starting')}, 'succeeded', 'the jobs have succeeded');
within(180, $without, 'shop', q{SELECT count(*), min(payload ->> 'of') FROM seen}, '1|old', 'a job that calls mq_run() handles what there is');
within(60, $without, 'postgres', qq{SELECT DISTINCT status FROM ($details) d WHERE status NOT IN ('running', 'starting')}, 'succeeded', '... and has succeeded');
holds($without, 'shop', q{SELECT ok FROM mq_health() WHERE "check" = 'library preloaded'}, 'f', '... without a worker of mq');

$node->safe_psql('postgres', q{UPDATE cron.job SET username = current_user});
is($node->safe_psql('postgres', $remove =~ s/,\s*cron.unschedule\('run'\)//r), 't|t', 'the jobs are taken away');
is($without->safe_psql('postgres', q{SELECT cron.unschedule('run')}), 't', '... and the other');
$without->stop;

# --- too few processes ---------------------------------------------------------------------------

# One for pg_cron, one for mq's launcher, one for the server's launcher of logical replication, one for a worker.
$node->append_conf('postgresql.conf', 'max_worker_processes = 4');
$node->restart;
pids($node, 'shop', $MqTest::WORKERS, 1);
$node->safe_psql('postgres', q{SELECT cron.schedule_in_database('too many', '* * * * *', $$SELECT mq_send('reports', '{"of": "nothing"}')$$, 'shop')});
within(180, $node, 'postgres', qq{$details WHERE j.jobname = 'too many' AND d.status = 'failed' LIMIT 1},
	'too many|failed|could not start background process; more details may be available in the server log', 'without a process for it the run of a job has failed');
like(slurp_file($node->logfile), qr/out of background worker slots/, '... and the log says why');
$node->safe_psql('shop', q{SELECT mq_send('reports', '{"of": "by hand"}')});
within(60, $node, 'shop', q{SELECT count(*) FROM seen WHERE payload ->> 'of' = 'by hand'}, 1, '... and mq goes on');
holds($node, 'shop', q{SELECT count(*) FROM seen WHERE payload ->> 'of' = 'nothing'}, 0, '... without what the job would have sent');
# With more it runs.
$node->safe_psql('postgres', q{SELECT cron.unschedule('too many'), cron.schedule_in_database('at start', '@reboot', $$SELECT mq_send('reports', '{"of": "start"}')$$, 'shop')});
$node->append_conf('postgresql.conf', 'max_worker_processes = 6');
$node->restart;
within(120, $node, 'shop', q{SELECT count(*) FROM seen WHERE payload ->> 'of' = 'start'}, 1, 'with room for it a job runs');

# Too few for mq: its health says so.
$node->safe_psql('postgres', q{SELECT cron.unschedule('at start')});
$node->append_conf('postgresql.conf', 'max_worker_processes = 3');
$node->restart;
within(60, $node, 'shop', q{SELECT count(*) FROM mq_health() WHERE NOT ok AND "check" IN ('worker slots', 'launcher runs')}, 1, 'with too few processes for mq, mq_health() says so');

$node->stop;
log_is_clean($node, qr/out of background worker slots|pg_cron|FATAL: .*terminating background worker/);
done_testing();
