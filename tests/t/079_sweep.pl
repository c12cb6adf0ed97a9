# Each step of the sweep for itself: a dead letter or failure that something refers to, a trigger that refuses, or a table
# that somebody has locked keeps neither the rest of the sweep nor messages from going on, and is named.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use Test::More;

my $node = mq_node('sweep', 'mq.max_workers' => 1, 'mq.poll_interval' => '1s', 'mq.dead_retention' => '30 d', 'mq.failure_retention' => '30 d');
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }

sql('CREATE EXTENSION mq');
handled_table($node, $db);
sql(q{CREATE FUNCTION fail(mq_message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE unique_violation; END $$;
      SELECT mq_register_handler('c', 'handle(mq_message)'), mq_register_handler('fails', 'fail(mq_message)')});

# 700 of each that are old, more than a step removes, and 3 that are not.
sub old_rows {
	sql(q{TRUNCATE mq_dead, mq_failures CASCADE;
	      INSERT INTO mq_dead (id, created_at, died_at, channel_name, channel_args, ordered, attempts_made, reason, retry_backoff, channel_key)
	        SELECT gen_random_uuid(), t, t, 'old', '', false, 1, 'exhausted', '1 s', 1
	          FROM (SELECT now() - CASE WHEN i <= 700 THEN interval '40 d' + i % 7 * interval '1 h' ELSE '1 d' END AS t FROM generate_series(1, 703) i) x;
	      INSERT INTO mq_failures (message_id, attempt, failed_at, channel_name, channel_args, sqlstate, error, channel_key)
	        SELECT id, 1, died_at, channel_name, '', 'P0001', 'no', 1 FROM mq_dead});
}
# An ordered channel whose head was deleted by hand.
my $channels = 0;
sub headless {
	++$channels;
	sql(qq{SELECT mq_pause('c'); SELECT mq_send('c', channel_args => 'args$channels', name => '$channels/' || i, ordered => true) FROM generate_series(1, 2) i;
	       DELETE FROM mq_msgs WHERE channel_args = 'args$channels' AND after_message_id = '00000000-0000-0000-0000-000000000000'; SELECT mq_resume('c')});
	return $channels;
}
sub goes_on {
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $channel = headless();
	within(20, $node, $db, "SELECT count(*) FROM handled WHERE name = '$channel/2'", 1, "a channel without a head is repaired beside $what");
}
my $rows = q{SELECT (SELECT count(*) FROM mq_dead), (SELECT count(*) FROM mq_failures)};
my $succeed = q{SELECT detail FROM mq_health() WHERE "check" = 'workers succeed' AND NOT ok};

# Something refers to rows: checked at once, or at the end of the transaction.
for my $when ('', 'DEFERRABLE INITIALLY DEFERRED') {
	my $name = $when ? 'by a constraint that is deferred' : 'by a constraint';
	sql(qq{CREATE TABLE tickets (dead_no bigint REFERENCES mq_dead $when); CREATE TABLE notes (failure_no bigint REFERENCES mq_failures $when)});
	old_rows();
	sql(q{DELETE FROM tickets; INSERT INTO tickets SELECT min(dead_no) + i FROM mq_dead, generate_series(0, 30) i GROUP BY i;
	      INSERT INTO notes SELECT min(failure_no) + 5 FROM mq_failures});
	goes_on("rows that are referred to $name");
	within(40, $node, $db, $rows, '34|4', "what is old goes, but for what is referred to $name");
	within(20, $node, $db, $succeed, qr/the sweep|cannot look for what has expired.*violates foreign key constraint/, 'which mq_health() names');
	sql('DROP TABLE tickets, notes');
	within(30, $node, $db, $rows, '3|3', 'and goes when nothing refers to it');
	within(20, $node, $db, "SELECT count(*) FROM ($succeed) h", 0, 'and all is well');
}

# mq_run does the same, and warns.
set_and_reload($node, 'mq.max_workers' => 0);
within(10, $node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mq worker'}, 0, 'without workers');
old_rows();
sql(q{CREATE TABLE tickets (dead_no bigint REFERENCES mq_dead DEFERRABLE INITIALLY DEFERRED); INSERT INTO tickets SELECT min(dead_no) FROM mq_dead});
for my $call ('CALL mq_run()', 'BEGIN; SET CONSTRAINTS ALL IMMEDIATE; CALL mq_run(); COMMIT') {
	my $channel = headless();
	my ($rc, $out, $err) = $node->psql($db, $call);
	is($rc, 0, "$call succeeds beside a dead letter that is referred to");
	like($err, qr/WARNING:  mq has not removed or repaired all that is old or out of order: update or delete on table "mq_dead" violates foreign key constraint/, 'and warns');
	holds($node, $db, "SELECT count(*) FROM handled WHERE name = '$channel/2'", 1, 'a channel without a head is repaired by it');
	holds($node, $db, $rows, '4|3', 'and what is old has gone');
}
my ($rc, $out, $err) = $node->psql($db, q{CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(10); RETURN OLD; END $$;
	CREATE TRIGGER slow BEFORE DELETE ON mq_dead FOR EACH ROW EXECUTE FUNCTION slow(); SET statement_timeout = '300ms'; CALL mq_run()});
like($err, qr/ERROR:  canceling statement due to statement timeout/, 'a cancel in a step of the sweep ends mq_run');
sql('DROP TRIGGER slow ON mq_dead; DROP TABLE tickets');
set_and_reload($node, 'mq.max_workers' => 1);
within(20, $node, $db, $rows, '3|3', 'workers remove the rest');

# A trigger that refuses.
sql(q{CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF OLD.channel_name = 'old' AND OLD.dead_no % 100 = 0 THEN RAISE 'not this one'; END IF; RETURN OLD; END $$;
      CREATE TRIGGER refuse BEFORE DELETE ON mq_dead FOR EACH ROW EXECUTE FUNCTION refuse()});
old_rows();
my $kept = sql(q{SELECT count(*) FROM mq_dead WHERE dead_no % 100 = 0 AND died_at < now() - interval '30 d'});
goes_on('a trigger that refuses');
within(40, $node, $db, $rows, (3 + $kept) . '|3', 'what is old goes, but for what a trigger refuses');
within(20, $node, $db, $succeed, qr/not this one/, 'which mq_health() names');
sql('DROP TRIGGER refuse ON mq_dead');
within(20, $node, $db, $rows, '3|3', 'and goes when there is no trigger');

# Tables that are locked for long, as by CREATE INDEX in a transaction that is left open.
for my $table (qw(mq_dead mq_failures mq_stats_totals)) {
	my $holder = $node->background_psql($db);
	old_rows() if $table ne 'mq_stats_totals';
	$holder->query_safe("BEGIN; LOCK TABLE $table IN SHARE MODE");
	goes_on("a lock on $table");
	my $id = sql(q{SELECT mq_send('fails', retries => 0)});
	if ($table eq 'mq_stats_totals') {
		within(10, $node, $db, q{SELECT count(*) FROM mq_dead WHERE channel_name = 'fails'}, qr/^[1-9]/, "messages die beside a lock on $table");
	} else {
		within(20, $node, $db, "SELECT mq_why('$id')", qr/^is put off until .*, since its result could not be written/, "a message that needs $table is put off, which mq_why() says");
		like(sql(q{SELECT string_agg(detail, E'\n') FROM mq_health() WHERE NOT ok}), qr/table $table is locked by another session/, 'and mq_health()');
	}
	goes_on("a lock on $table, when messages fail, too");
	$holder->query_safe('COMMIT');
	$holder->quit;
	within(40, $node, $db, qq{SELECT count(*) FROM mq_dead WHERE id = '$id'}, 1, 'and it dies when the lock has gone');
	sql(q{DELETE FROM mq_dead WHERE channel_name = 'fails'; DELETE FROM mq_failures WHERE channel_name = 'fails'});
	within(20, $node, $db, $rows, '3|3', 'and what is old has gone');
}

# A role that is renamed while mq_handlers is locked: handlers go on, and get the name later.
sql(q{CREATE ROLE alice LOGIN; GRANT ALL ON handled, handled_n_seq TO alice; SELECT mq_register_handler('hers', 'handle(mq_message)', run_as => 'alice'), mq_send('hers', name => 'hers 1')});
within(20, $node, $db, q{SELECT count(*) FROM handled WHERE name = 'hers 1'}, 1, 'a handler of another role');
my $holder = $node->background_psql($db);
$holder->query_safe('BEGIN; LOCK TABLE mq_handlers IN SHARE MODE');
sql(q{ALTER ROLE alice RENAME TO alicia; SELECT mq_send('hers', name => 'hers 2'), mq_send('c', name => 'mine')});
within(20, $node, $db, q{SELECT count(*) FROM handled WHERE name IN ('hers 2', 'mine')}, 2, 'a role is renamed while mq_handlers is locked: messages are handled');
$holder->query_safe('COMMIT');
within(20, $node, $db, q{SELECT run_as FROM mq_handlers WHERE channel_name = 'hers'}, 'alicia', 'and mq_handlers has its name when the lock has gone');
$holder->quit;

$node->stop;
done_testing();
