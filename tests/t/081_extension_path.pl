# An mq that is installed outside of the server's own directories: found by extension_control_path and
# dynamic_library_path, its launcher and workers as well.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use File::Copy;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('path');
my $db = 'postgres';
plan skip_all => 'extension_control_path is there from version 18 on' if $node->safe_psql($db, 'SHOW server_version_num') < 180000;

my $elsewhere = PostgreSQL::Test::Utils::tempdir();
my ($share, $lib) = map { $node->config_data($_) } '--sharedir', '--pkglibdir';
mkdir "$elsewhere/$_" for 'extension', 'lib';
for my $file (glob("$share/extension/mq.control $share/extension/mq--*.sql")) { copy($file, "$elsewhere/extension") or die "$file: $!" }
copy("$lib/mq.so", "$elsewhere/lib") or die "$lib/mq.so: $!";
chmod 0755, "$elsewhere/lib/mq.so";
# Told from the other by this.
my $control = slurp_file("$elsewhere/extension/mq.control");
$control =~ s/^comment = .*/comment = 'from elsewhere'/m;
open my $out, '>', "$elsewhere/extension/mq.control" or die $!;
print $out $control;
close $out;

$node->append_conf('postgresql.conf', "extension_control_path = '$elsewhere:\$system'\ndynamic_library_path = '$elsewhere/lib:\$libdir'");
$node->restart;
holds($node, $db, q{SELECT comment FROM pg_available_extensions WHERE name = 'mq'}, 'from elsewhere', 'the control file is found');
$node->safe_psql($db, 'CREATE EXTENSION mq');
handled_table($node, $db);
$node->safe_psql($db, q{SELECT mq_register_handler('c', 'handle(mq_message)'), mq_send('c', name => 'a')});
within(20, $node, $db, 'SELECT name FROM handled', 'a', 'its workers handle messages');
for my $kind ('mq launcher', 'mq worker') {
	my $pid = $node->safe_psql($db, "SELECT pid FROM pg_stat_activity WHERE backend_type = '$kind' LIMIT 1");
	my %libraries = map { $_ => 1 } slurp_file("/proc/$pid/maps") =~ m{(/\S*/mq\.so)}g;
	is_deeply([ keys %libraries ], ["$elsewhere/lib/mq.so"], "the $kind has loaded the library from there, and no other");
}
holds($node, $db, q{SELECT count(*) FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.deptype = 'e' JOIN pg_extension e ON e.oid = d.refobjid
	WHERE e.extname = 'mq' AND p.probin LIKE '%/%' AND p.probin NOT LIKE '$libdir/mq'}, 0, 'no function names a directory');

$node->stop;
log_is_clean($node);
done_testing();
