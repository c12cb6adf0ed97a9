# What takes long after the calls of handlers, at COMMIT and while dead letters are written, does not keep other
# messages waiting while there is a worker slot that somebody does not need; mq_workers, mq_health() and mq_why() name it.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('outside_calls', 'mq.max_workers' => 2);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
sub detail { return q{SELECT detail FROM mq_health() WHERE "check" = 'batches end' AND NOT ok} }
sub handled { my ($name) = @_; return "SELECT count(*) FROM handled WHERE name = '$name'" }

sql('CREATE EXTENSION mq; CREATE ROLE alice LOGIN');
handled_table($node, $db);
sql(q{
	GRANT ALL ON handled TO alice; GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO alice;
	SELECT mq_grant('alice', 'consume');
	CREATE TABLE checked (n int);
	CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NEW; END $$;
	CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON checked DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold();
	CREATE TRIGGER hold AFTER INSERT ON mq_dead FOR EACH ROW EXECUTE FUNCTION hold();
	CREATE FUNCTION check_it(payload jsonb) RETURNS void LANGUAGE sql AS 'INSERT INTO checked VALUES (1)';
	CREATE FUNCTION fail(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
	SELECT mq_register_handler('check', 'check_it(jsonb)', timeout => '2 s'), mq_register_handler('fail', 'fail(jsonb)'),
	       mq_register_handler('c', 'handle(mq_message)'), mq_register_handler('hers', 'handle(mq_message)', run_as => 'alice')});
within(20, $node, $db, q{SELECT count(DISTINCT role) FROM mq_worker_slots() WHERE state = 'waiting'}, 2, 'each of two roles has a worker');

my $holder = $node->background_psql($db);
for my $case (['check', 'committing', qr/^workers take long with what follows the calls of handlers: worker \d+ commits since .* what handlers of check did; time limits do not hold for that/],
	['fail', 'settling', qr/: worker \d+ settles since .* what handlers of fail did; /]) {
	my ($channel, $state, $expected) = @$case;
	$holder->query_safe('SELECT pg_advisory_lock(1)');
	my $id = sql("SELECT mq_send('$channel', retries => 0)");
	within(20, $node, $db, q{SELECT state, channel_name FROM mq_workers WHERE channel_name IS NOT NULL}, "$state|$channel", "$state: mq_workers says so");
	within(20, $node, $db, detail(), $expected, '... and mq_health()');
	within(20, $node, $db, "SELECT mq_why('$id')", qr/^is being handled by worker \d+ since /, '... and mq_why()');
	for my $round (1, 2) {
		for my $other ('c', 'hers') {
			sql("SELECT mq_send('$other', name => '$other $state $round')");
			within(20, $node, $db, handled("$other $state $round"), 1, "... the other place is for whoever has something to do: $other, round $round");
		}
	}
	$holder->query_safe('SELECT pg_advisory_unlock_all()');
	within(20, $node, $db, detail(), '', '... until it is over');
}
within(20, $node, $db, 'SELECT (SELECT count(*) FROM checked), (SELECT count(*) FROM mq_dead), (SELECT count(*) FROM mq_msgs)', '1|1|0', 'all has come to its end');

# It can be cancelled.
$holder->query_safe('SELECT pg_advisory_lock(1)');
sql(q{SELECT mq_send('check', retries => 0)});
within(20, $node, $db, q{SELECT count(pg_cancel_backend(pid)) FROM mq_workers WHERE state = 'committing'}, 1, 'a commit is cancelled');
$holder->query_safe('SELECT pg_advisory_unlock_all()');
within(30, $node, $db, 'SELECT (SELECT count(*) FROM checked), (SELECT count(*) FROM mq_dead), (SELECT count(*) FROM mq_msgs)', '2|1|0', '... and tried again, uncharged');
$holder->quit;

$node->stop;
done_testing();
