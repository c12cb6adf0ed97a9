# Where the library is not preloaded a rate and max_running_per_args cannot be kept: messages of such channels are left alone, with
# a warning, and hold up no others; mq_health() says so.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('limits_not_preloaded', shared_preload_libraries => '');
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
sub warns {
	my ($query, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($rc, $out, $err) = $node->psql($db, $query);
	is($out, $expected, $what);
	is(() = $err =~ /WARNING:  messages of channel "\w+" are left alone, since its limits cannot be kept/g, 1, '... with a warning');
}
sql(q{
	CREATE EXTENSION mq;
	CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE sql AS '';
	SELECT mq_register_handler(c, 'handle(mq_message)') FROM unnest('{free, rated, keyed, few}'::text[]) c;
	SELECT mq_limit('rated', rate => 5), mq_limit('keyed', rate => 5, rate_per_args => true), mq_limit('few', max_running_per_args => 1);
	SELECT mq_send(c, channel_args => 'k') FROM unnest('{free, rated, keyed, few}'::text[]) c, generate_series(1, 3)});
warns('CALL mq_run()', 3, 'mq_run handles others');
for my $channel ('rated', 'keyed', 'few') {
	warns("CALL mq_run('{$channel}')", 0, "mq_run leaves $channel alone");
	warns("SELECT count(*) FROM mq_receive('{$channel}', 10)", 0, '... and so does mq_receive');
}
is(sql(q{SELECT ready, next_at FROM mq_limits WHERE channel_name = 'rated'}), '|', 'mq_limits does not know what may begin');
is(sql(q{SELECT throttled FROM mq_stats WHERE channel_name = 'rated'}), 3, 'mq_stats tells that they wait');
like(sql(q{SELECT ok, detail FROM mq_health() WHERE "check" = 'limits kept'}), qr/^f\|messages are left alone, .* in: few, keyed, rated; add mq to shared_preload_libraries/, 'mq_health() says why');
sql(q{SELECT mq_unlimit(channel_name) FROM mq_limits});
is(sql('CALL mq_run()'), 9, 'without the limits they are handled');
is(sql(q{SELECT ok FROM mq_health() WHERE "check" = 'limits kept'}), 't', 'and mq_health() is content');
$node->stop;
done_testing();
