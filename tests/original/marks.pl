# Flaw 33 of the original: while somebody holds a snapshot its polls read more and more. t/011_low_water_marks.pl shows that those
# of the extension do not.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../t/lib";
use MqReads;
use MqSession;
use MqTest;
use Test::More;

my $node = mq_node('original_marks', shared_preload_libraries => '');
original_schema($node, 'original');
$node->safe_psql('original', q{
	CREATE PROCEDURE flow(messages int) LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM mq_insert(array_agg((uuid_generate_v4(), '0', 4, '1 hour', 'c', '', NULL, false, 'flow', 'null', NULL)::mq_new_t))
	    FROM generate_series(1, messages);
	  COMMIT;
	  FOR i IN 1 .. 4 LOOP
	    PERFORM mq_delete(array_agg(id)) FROM mq_poll(ARRAY['c'], messages / 4);
	    COMMIT;
	  END LOOP;
	END $$});
my $holder = hold_snapshot($node, 'original');
my $session = MqSession->new($node, 'original');
cmp_ok(growth_of_reads($session, 'CALL flow(400)'), '>', 1.5, 'polls beside a held snapshot read more and more');
$_->quit for $holder, $session;
$node->stop;
done_testing();
