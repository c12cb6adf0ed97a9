# Tables are changed by hand, that of messages also while a send or a settling waits for it: what was added counts.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use MqSession;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('changed_table', 'mq.max_workers' => 1);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
sql(q{CREATE EXTENSION mq; CREATE TABLE seen (what text);
	CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.seen VALUES (TG_OP); RETURN COALESCE(NEW, OLD); END $$});
my ($changer, $sender) = map { MqSession->new($node, $db) } 1 .. 2;

# Changes the table while the session waits for it, and returns what the session was given then.
sub meanwhile {
	my ($change, $statement) = @_;
	$changer->query("BEGIN; $change");
	$sender->start($statement);
	$node->poll_query_until($db, q{SELECT count(*) > 0 FROM pg_locks WHERE relation = 'mq_msgs'::regclass AND NOT granted}) or die 'nobody waits';
	$changer->query('COMMIT');
	return $sender->result;
}
my $send = q{SELECT count(mq_send('x', '1'))};
is($sender->query($send), 1, 'a session sends');
is(meanwhile('ALTER TABLE mq_msgs ADD note text', $send), 1, 'a column is added while it sends again');
is(meanwhile(q{ALTER TABLE mq_msgs ADD more int DEFAULT 7}, $send), 1, 'and one with a default');
holds($node, $db, 'SELECT count(*), count(more) FROM mq_msgs', '3|3', 'all is there, with the default');
is(meanwhile('ALTER TABLE mq_msgs DROP note, DROP more', $send), 1, 'both are dropped');
is(meanwhile('CREATE TRIGGER see BEFORE INSERT ON mq_msgs FOR EACH ROW EXECUTE FUNCTION see()', $send), 1, 'a trigger is made');
holds($node, $db, 'SELECT string_agg(what, $$ $$) FROM seen', 'INSERT', 'which sees what is sent');
sql('DROP TRIGGER see ON mq_msgs; TRUNCATE seen');
is(meanwhile('ALTER TABLE mq_msgs ALTER message_json SET NOT NULL', q{SELECT mq_send('x', NULL)}), 'error 23502', 'a column may not be NULL any more');
sql('ALTER TABLE mq_msgs ALTER message_json DROP NOT NULL; SELECT mq_clear_all()');
is($sender->query($send), 1, 'and may again');
sql('SELECT mq_clear_all()');

# A handler runs while somebody makes a table that refers to the messages, or a trigger.
sql(q{CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(1); END $$;
	SELECT mq_register_handler('c', 'handle(mq_message)')});
for my $case ([ 'a table that refers to it', 'CREATE TABLE refs (id uuid REFERENCES mq_msgs ON DELETE CASCADE); INSERT INTO refs SELECT id FROM mq_msgs' ],
	[ 'a trigger', 'CREATE TRIGGER see BEFORE DELETE ON mq_msgs FOR EACH ROW EXECUTE FUNCTION see()' ]) {
	my ($what, $change) = @$case;
	$changer->query('SELECT pg_advisory_lock(1)');
	sql(q{SELECT mq_send('c', '1')});
	$node->poll_query_until($db, q{SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}) or die 'no handler waits';
	$sender->query("BEGIN; $change");
	$changer->query('SELECT pg_advisory_unlock(1)');
	$node->poll_query_until($db, q{SELECT count(*) > 0 FROM pg_locks WHERE relation = 'mq_msgs'::regclass AND NOT granted}) or die 'nobody waits';
	$sender->query('COMMIT');
	within(20, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, "$what is made while a message is handled: it is removed");
}
holds($node, $db, 'SELECT count(*) FROM refs', 0, 'with what refers to it');
holds($node, $db, 'SELECT string_agg(what, $$ $$) FROM seen', 'DELETE', 'and the trigger sees it');
sql('DROP TABLE refs; DROP TRIGGER see ON mq_msgs');

# A table that inherits from it: a message is not taken for another one that has its place there.
sql(q{SELECT mq_pause('kept'), mq_pause('c'); CREATE TABLE child () INHERITS (mq_msgs);
	INSERT INTO child (id, channel_name, channel_args, channel_key, after_message_id, message_name, attempt_at) SELECT gen_random_uuid(), 'c', 'x', mq_channel_key('c', 'x'), NULL, 'child', now() FROM generate_series(1, 5);
	SELECT mq_send('kept') FROM generate_series(1, 20); SELECT mq_resume('c')});
sql(q{SELECT mq_send('c', '2') FROM generate_series(1, 20)});
within(20, $node, $db, q{SELECT count(*) FROM ONLY mq_msgs WHERE channel_name = 'c'}, 0, 'messages are handled beside a table that inherits');
holds($node, $db, q{SELECT count(*) FROM ONLY mq_msgs WHERE channel_name = 'kept'}, 20, 'and no other is removed');

# The tables that settling writes beside it.
sql(q{CREATE FUNCTION fail(m mq_message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'on purpose'; END $$;
	SELECT mq_register_handler('f', 'fail(mq_message)'), mq_pause('f')});
for my $table ('mq_failures', 'mq_stats_deltas') {
	my $fails = sub {
		my ($change, $query, $expected, $what) = @_;
		sql("$change; SELECT mq_reset_stats(); DELETE FROM mq_failures; DELETE FROM mq_dead; TRUNCATE seen;
		     SELECT mq_send('f', '1', retries => 0) FROM generate_series(1, 3); SELECT mq_resume('f')");
		within(20, $node, $db, 'SELECT count(*) FROM mq_dead', 3, "$table: messages fail: $what");
		holds($node, $db, $query, $expected, '... as they should');
		holds($node, $db, q{SELECT failed, died FROM mq_stats WHERE channel_name = 'f'}, '3|3', '... and are counted');
		sql(q{SELECT mq_pause('f')});
	};
	my $all = "SELECT count(*) FILTER (WHERE more = 7) = count(*), count(*) > 0 FROM $table WHERE channel_name = 'f'";
	$fails->("ALTER TABLE $table ADD note text", "SELECT count(*) > 0 FROM $table WHERE note IS NULL AND channel_name = 'f'", 't', 'a column was added');
	$fails->("ALTER TABLE $table DROP note, ADD more int DEFAULT 7", $all, 't|t', 'one with a default');
	$fails->("ALTER TABLE $table DROP more; CREATE TRIGGER see BEFORE INSERT ON $table FOR EACH ROW EXECUTE FUNCTION see()",
		q{SELECT count(*) > 0, max(what) FROM seen}, 't|INSERT', 'a trigger was made');
	$fails->("DROP TRIGGER see ON $table; CREATE SEQUENCE asked; ALTER TABLE $table ADD CONSTRAINT asked CHECK (nextval('asked') > 0) NOT VALID",
		q{SELECT is_called FROM asked}, 't', 'a check was added');
	$fails->("ALTER TABLE $table DROP CONSTRAINT asked; DROP SEQUENCE asked; CREATE INDEX added ON $table (channel_name)",
		"SET enable_seqscan = off; SELECT count(*) > 0 FROM $table WHERE channel_name = 'f'", 't', 'an index was added');
	sql('DROP INDEX added');
}
sql(q{SELECT mq_unregister_handler('f'), mq_resume('f')});

$_->quit for $changer, $sender;
$node->stop;
log_is_clean($node);
done_testing();
