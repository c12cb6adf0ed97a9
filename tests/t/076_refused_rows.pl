# Triggers and rules that keep rows of our tables as they are, or out: workers put the messages off and mq_health() says why, so
# nothing is handled again and again, and nothing is lost.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Cluster;
use Test::More;

my $node = mq_node('refused_rows', 'mq.max_workers' => 1, 'mq.poll_interval' => '100ms');
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
# Calls are counted though their transactions are rolled back.
sql(q{CREATE EXTENSION mq; CREATE SEQUENCE calls;
	CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
	CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM nextval('calls');
	  IF m.name = 'fail' THEN RAISE EXCEPTION 'on purpose'; END IF;
	END $$;
	SELECT mq_register_handler('c', 'handle(mq_message)'), mq_register_handler('leased', 'handle(mq_message)', mode => 'leased')});

# What the worker meets while there is such a trigger, or rule, and that all goes on without.
sub meets {
	my ($what, $table, $event, $messages, $said, $kind) = @_;
	$kind //= 'trigger';
	sql(q{ALTER SEQUENCE calls RESTART});
	sql($kind eq 'rule' ? "CREATE RULE keep AS ON $event TO $table DO INSTEAD NOTHING" : "CREATE TRIGGER keep BEFORE $event ON $table FOR EACH ROW EXECUTE FUNCTION keep()");
	sql($messages);
	within(30, $node, $db, q{SELECT string_agg(detail, ' ') FROM mq_health() WHERE NOT ok}, ref $said ? $said : qr/on $table keeps rows from being $said/,
		"$what: mq_health() names the table and what is in the way");
	cmp_ok(sql('SELECT last_value FROM calls'), '<', 20, "$what: handlers are not called again and again");
	holds($node, $db, q{SELECT count(*) FROM mq_msgs m JOIN mq_payloads USING (id)}, 2, "$what: nothing is lost");
	holds($node, $db, q{SELECT (SELECT count(*) FROM mq_dead), (SELECT count(*) FROM mq_failures)}, '0|0', "$what: nothing is charged");
	sql("DROP $kind keep ON $table");
	sql(q{UPDATE mq_msgs SET attempt_at = now(); SELECT mq_pause('c'), mq_resume('c')});
	within(60, $node, $db, q{SELECT count(*) FROM mq_msgs}, 0, "$what: they go on without the $kind");
	within(30, $node, $db, q{SELECT string_agg(detail, ' ') FROM mq_health() WHERE NOT ok}, '', "$what: and mq_health() is content");
	sql(q{DELETE FROM mq_dead; DELETE FROM mq_failures});
}
my $handled = q{SELECT mq_send('c', '{}') FROM generate_series(1, 2)};
my $fails = q{SELECT mq_send('c', '{}', 'fail', retries => 1, retry_backoff => '0.1 s') FROM generate_series(1, 2)};
meets('messages that cannot be removed', 'mq_msgs', 'DELETE', $handled, 'removed');
meets('ordered messages that cannot be removed', 'mq_msgs', 'DELETE', q{SELECT mq_send('c', '{}', ordered => true) FROM generate_series(1, 2)}, 'removed');
meets('messages that a rule keeps', 'mq_msgs', 'DELETE', $handled, qr/put off .*cannot perform DELETE RETURNING on relation "mq_msgs"/, 'rule');
meets('messages that cannot be changed', 'mq_msgs', 'UPDATE', $fails, 'changed');
meets('dead letters that cannot be written', 'mq_dead', 'INSERT', q{SELECT mq_send('c', '{}', 'fail', retries => 0) FROM generate_series(1, 2)}, 'added');
meets('a lease that cannot be written', 'mq_msgs', 'UPDATE', q{SELECT mq_send('leased', '{}') FROM generate_series(1, 2)}, 'changed');
meets('leased messages that cannot be removed', 'mq_msgs', 'DELETE', q{SELECT mq_send('leased', '{}') FROM generate_series(1, 2)}, 'removed');
meets('expired messages that cannot be removed', 'mq_msgs', 'DELETE',
	q{SELECT mq_send('nobody', '{}', expires => '1 ms', ordered => true) FROM generate_series(1, 2)}, 'removed');

$node->stop;
done_testing();
