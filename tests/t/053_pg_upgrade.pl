# pg_upgrade with messages in every state: all of it is there afterwards, and is handled without anybody's call. Under it no
# process of mq runs. MQ_OLD_PG_CONFIG may name the pg_config of another server that has mq, to upgrade from.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use File::Basename qw(dirname);
use MqTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($program) = grep { -x } map { "$_/pg_upgrade" } split /:/, $ENV{PATH};
my $bin = dirname($program // BAIL_OUT('no pg_upgrade in the path'));
my $old_config = $ENV{MQ_OLD_PG_CONFIG};
my $old_bin = $old_config ? `$old_config --bindir` =~ s/\s//gr : $bin;

sub cluster {
	my ($name, @options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name, @options);
	$node->init(extra => [ '--locale=C', '--encoding=UTF8' ]);
	$node->append_conf('postgresql.conf', $_) for q{shared_preload_libraries = 'mq'}, q{max_worker_processes = 24},
	  q{mq.poll_interval = '100ms'}, q{mq.max_workers = 0}, q{log_line_prefix = '%m [%p] %b %q%d '};
	return $node;
}

my $old = cluster('old', $old_config ? (install_path => dirname($old_bin)) : ());
$old->start;
$old->safe_psql('postgres', 'CREATE DATABASE work');
$old->safe_psql('work', 'CREATE EXTENSION mq');
messages_in_every_state($old, 'work', '0.2.0');
$old->safe_psql('work', q{SELECT mq_limit('limited', 1, 2, 3, 4, '1 minute', true)});
# A copy that nobody has enabled; after the upgrade it is one still.
$old->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE work');
my $state = q{SELECT (SELECT string_agg(t::text, ' ' ORDER BY t::text) FROM %s t)};
my %before = map { $_ => $old->safe_psql('work', sprintf $state, $_) } qw(mq_msgs mq_payloads mq_dead mq_failures mq_paused mq_channel_limits);
my $seq = $old->safe_psql('work', 'SELECT last_value FROM mq_msgs_seq');
my $identifier = q{SELECT system_identifier FROM pg_control_system()};
my $was = $old->safe_psql('postgres', $identifier);
set_and_reload($old, 'mq.max_workers' => 1, 'mq.databases' => 'copy');
within(20, $old, 'copy', 'SELECT count(*) FROM mq_enabled', 0, 'a worker has seen that the copy is one');
$old->stop;

# --- binary upgrade mode --------------------------------------------------------------------------

$old->append_conf('postgresql.conf', $_) for q{mq.max_workers = 2}, q{mq.databases = '*'};
$old->command_ok([ "$old_bin/pg_ctl", '-w', '-D', $old->data_dir, '-l', $old->logfile, '-o', '-b', 'start' ], 'postgres -b starts');
$old->safe_psql('work', q{SELECT mq_send('far', delay => '1 day', id => '00000000-0000-0000-0000-000000000009')});
# Elsewhere the launcher is there before the first of these sessions has ended.
my @seen = map { $old->safe_psql('work', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'mq%'}) } 1 .. 20;
is("@seen", join(' ', (0) x 20), 'no process of mq runs in it');
$old->safe_psql('work', q{SELECT mq_delete('{00000000-0000-0000-0000-000000000009}')});
is($old->safe_psql('work', sprintf $state, $_), $before{$_}, "and leaves everything alone: $_") for sort keys %before;
$old->command_ok([ "$old_bin/pg_ctl", '-w', '-D', $old->data_dir, 'stop' ], 'it stops');

# --- pg_upgrade -----------------------------------------------------------------------------------

my $new = cluster('new');
my @upgrade = ($program, '--no-sync', '-d', $old->data_dir, '-D', $new->data_dir, '-b', $old_bin, '-B', $bin,
	'-s', $new->host, '-p', $old->port, '-P', $new->port);
chdir $PostgreSQL::Test::Utils::tmp_check;    # it writes there
command_ok(\@upgrade, 'pg_upgrade');
$new->start;
isnt($new->safe_psql('postgres', $identifier), $was, 'the server has another identifier');
is($new->safe_psql('work', sprintf $state, $_), $before{$_}, "all of it is there: $_") for sort keys %before;
is($new->safe_psql('work', 'SELECT last_value >= ' . $seq . ' FROM mq_msgs_seq'), 't', 'and sequence numbers go on');
holds($new, 'work', q{SELECT ok FROM mq_health() WHERE "check" = 'database enabled'}, 't', 'the database is enabled before any worker has come');
set_and_reload($new, 'mq.max_workers' => 2);
all_states_end($new, 'work', 'after pg_upgrade');
holds($new, 'work', "SELECT m.system_identifier = c.system_identifier AND m.extension_xmin = e.xmin FROM mq_enabled m, pg_control_system() c, pg_extension e WHERE extname = 'mq'",
	't', 'the mark is that of the new server');
holds($new, 'work', 'SELECT count(*) FROM mq_handlers h JOIN mq_enabled m ON m.id = h.enabled_id', 11, 'under which the handlers are registered');
holds($new, 'copy', q{SELECT ok FROM mq_health() WHERE "check" = 'database enabled'}, 'f', 'the copy waits as before');
holds($new, 'copy', 'SELECT count(*) FROM handled', 0, 'nothing was handled in it');
$new->stop;
log_is_clean($old);
log_is_clean($new);
done_testing();
