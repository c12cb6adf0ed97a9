# Results and history with workers: what leased handlers return comes from their own sessions, rows go when their time is over,
# and a crash of the server leaves a message either pending or in mq_done.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('history', 'mq.max_workers' => 2, 'mq.poll_interval' => '1s');
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }

sql('CREATE EXTENSION mq');
sql(q{CREATE FUNCTION square(payload jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb((payload::int) ^ 2) $$;
      CREATE FUNCTION squares(messages mq_message[]) RETURNS jsonb LANGUAGE sql AS $$
        SELECT jsonb_agg((messages[n]).payload_json::int ^ 2 ORDER BY n) FROM generate_subscripts(messages, 1) AS n $$;
      CREATE FUNCTION large(payload jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb(repeat('x', payload::int)) $$;
      CREATE PROCEDURE proceed(payload jsonb) LANGUAGE plpgsql AS 'BEGIN COMMIT; END';
      CREATE FUNCTION removes(message mq_message) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN PERFORM mq_delete(ARRAY[message.id]); RETURN '1'; END $$});

# --- leased handlers -----------------------------------------------------------------------------

sql(q{SELECT mq_register_handler('one', 'square(jsonb)', mode => 'leased', keep => '1 day'), mq_register_handler('many', 'squares(mq_message[])', mode => 'leased', batch_size => 7, keep => '1 day'),
             mq_register_handler('large', 'large(jsonb)', mode => 'leased'), mq_register_handler('proceed', 'proceed(jsonb)', mode => 'leased', keep => '1 day'),
             mq_register_handler('removes', 'removes(mq_message)', mode => 'leased', keep => '1 day')});
sql(q{SELECT count(*) FROM mq_send_many('one', (SELECT array_agg(to_jsonb(n)) FROM generate_series(1, 20) AS n))});
sql(q{SELECT count(*) FROM mq_send_many('many', (SELECT array_agg(to_jsonb(n)) FROM generate_series(1, 50) AS n))});
sql(q{SELECT mq_send('large', '300000', keep => '1 day'), mq_send('proceed', '1'), mq_send('removes', '1')});
within(60, $node, $db, 'SELECT count(*) FROM mq_done', 73, 'all are kept');
is(sql(q{SELECT count(*), bool_and(result::int = payload_json::int ^ 2) FROM mq_done WHERE channel_name IN ('one', 'many')}), '70|t', 'each has its own result');
is(sql(q{SELECT length(result #>> '{}') FROM mq_done WHERE channel_name = 'large'}), 300000, 'a large one is whole');
is(sql(q{SELECT string_agg(channel_name || ' ' || COALESCE(result::text, 'none'), ', ' ORDER BY channel_name) FROM mq_done WHERE channel_name IN ('proceed', 'removes')}),
	'proceed none, removes none', 'a procedure has no result, nor has a function that removes its message');
is(sql(q{SELECT bool_and(due_at <= started_at AND started_at <= finished_at AND run_by = current_user) FROM mq_done WHERE channel_name <> 'removes'}), 't', 'times and role');

# --- rows go when their time is over -------------------------------------------------------------

sub old_rows {
	my ($count, $run_by) = @_;
	sql(qq{INSERT INTO mq_done (id, channel_name, channel_args, name, ordered, priority, attempts, finished_at, run_by, keep_until, channel_key)
	       SELECT gen_random_uuid(), 'old', '', 'old', false, 0, 1, now(), $run_by, now() - interval '1 second', 0 FROM generate_series(1, $count) AS n});
}
my $old = q{SELECT count(*) FROM mq_done WHERE channel_name = 'old'};
old_rows(1700, q{'me'});
within(60, $node, $db, $old, 0, 'the sweep removes what is over');
is(sql('SELECT count(*) FROM mq_done'), 73, 'and nothing else');
sql(q{CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF OLD.run_by = 'bad' THEN RAISE 'no'; END IF; RETURN OLD; END $$;
      CREATE TRIGGER refuse BEFORE DELETE ON mq_done FOR EACH ROW EXECUTE FUNCTION refuse()});
old_rows(10, q{CASE n WHEN 3 THEN 'bad' ELSE 'good' END});
within(60, $node, $db, q{SELECT string_agg(run_by, ' ') FROM mq_done WHERE channel_name = 'old'}, 'bad', 'one that cannot be removed does not stop the others');
sql('DROP TRIGGER refuse ON mq_done');
within(60, $node, $db, $old, 0, 'and goes when it can');

# --- a crash, and many at once -------------------------------------------------------------------

sql(q{SELECT mq_register_handler('crash', 'square(jsonb)', keep => '1 day'); DELETE FROM mq_done});
sql(q{SELECT count(*) FROM mq_send_many('crash', (SELECT array_agg(to_jsonb(n)) FROM generate_series(1, 30000) AS n))});
within(60, $node, $db, 'SELECT count(*) > 1000 FROM mq_done', 't', 'some are done');
$node->stop('immediate');
$node->start;
within(120, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'after a crash the rest is handled');
is(sql(q{SELECT count(*), count(DISTINCT payload_json), bool_and(result::int = payload_json::int ^ 2) FROM mq_done}), '30000|30000|t', 'each message is in the history once');

done_testing();
