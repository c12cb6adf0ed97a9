# Messages that expire within a batch: they are not handled, in whatever shape and order, dead in the batch's transaction, and
# stay so when the others of the batch run again. CALL mq_run() runs the batches.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('expiry_in_batches', 'mq.max_workers' => 0);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }

sql(q{
	CREATE EXTENSION mq;
	CREATE TABLE done (n bigserial, what text, batch xid8 DEFAULT pg_current_xact_id());
	CREATE TABLE deaths (batch xid8 DEFAULT pg_current_xact_id());
	CREATE FUNCTION note_death() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO public.deaths DEFAULT VALUES;
	  RETURN NULL;
	END $$;
	CREATE TRIGGER death AFTER INSERT ON mq_dead FOR EACH ROW EXECUTE FUNCTION note_death();
	CREATE TABLE given (n bigserial, messages text[]);
	CREATE FUNCTION act(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO done (what) VALUES (m.name);
	  IF m.payload_json ? 'sleeps' THEN PERFORM pg_sleep((m.payload_json ->> 'sleeps')::float8); END IF;
	  IF m.payload_json ? 'fails' THEN RAISE 'on purpose'; END IF;
	END $$;
	CREATE FUNCTION act_on_all(m mq_message[]) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE one mq_message;
	BEGIN
	  INSERT INTO given (messages) SELECT array_agg(name ORDER BY ordinality) FROM unnest(m) WITH ORDINALITY;
	  FOREACH one IN ARRAY m LOOP PERFORM act(one); END LOOP;
	END $$});

# Each case has a channel of its own, so that none finds what another has made a worker remember.
my ($case, $channel) = (0);
sub register {
	my ($what, $handler, @more) = @_;
	$channel = 'case ' . ++$case;
	note "$channel: $what";
	sql(q{TRUNCATE done, deaths, given; DELETE FROM mq_failures; DELETE FROM mq_dead; SELECT mq_clear_all()});
	sql("SELECT mq_register_handler(" . join(', ', "'$channel'", "'" . ($handler // 'act(mq_message)') . "'", @more) . ')');
}
# A statement that sends so many messages of that name.
sub send_some {
	my ($count, $name, $payload, @more) = @_;
	my $send = 'mq_send(' . join(', ', "'$channel'", "'" . ($payload // '{}') . "'", "'$name'", @more) . ')';
	return 'SELECT ' . join(', ', ($send) x $count) . ';';
}
# What is sent in one transaction, and handled at once.
sub handle { sql(join '', 'BEGIN;', @_, 'COMMIT; CALL mq_run()') }
sub is_now {
	my ($query, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return holds($node, $db, $query, $expected, $what);
}
my $times = q{SELECT string_agg(what || ' ' || count, ', ' ORDER BY what) FROM (SELECT what, count(*) FROM done GROUP BY 1) AS c};
my $dead = q{SELECT string_agg(concat_ws(' ', name, reason, attempts_made, sqlstate), ', ' ORDER BY dead_no) FROM mq_dead};

# 'slow' takes longer than what is short may wait, and less than the handlers of a batch may run together. A machine that is
# too busy to claim both in time, or to go on with the batch, makes the case again.
my $slow = '{"sleeps": 0.13}';
my $short = q{expires => '0.11 s'};
sub is_in_time {
	my ($make, $query, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	for (1 .. 20) {
		$make->();
		last if sql($query) eq $expected;
		note 'again';
	}
	return is_now($query, $expected, $what);
}
my $in_batches = q{SELECT string_agg(what, ' | ' ORDER BY n) FROM (SELECT min(n) AS n, string_agg(what, ' ' ORDER BY n) AS what
	FROM done GROUP BY batch) AS b};
is_in_time(sub {
	register('a message expires while it waits for its turn');
	handle(send_some(1, 'slow', $slow), send_some(1, 'short', '{}', $short),
		send_some(1, 'long', '{}', q{expires => '1 h'}), send_some(1, 'last'));
}, "SELECT ($in_batches), ($dead)", 'slow long last|short expired 0', 'what expires while it waits for its turn is not handled');
is_now(q{SELECT d.batch = h.batch FROM deaths d, done h WHERE h.what = 'slow'}, 't',
	'... and dies in the transaction of its batch');

for my $on_dead ('skip', 'block') {
	is_in_time(sub {
		register("an ordered message expires in a batch, $on_dead", undef, "on_dead => '$on_dead'");
		handle(send_some(1, 'slow', $slow, 'ordered => true'), send_some(1, 'short', '{}', 'ordered => true', $short),
			send_some(1, 'behind', '{}', 'ordered => true'), send_some(1, 'beside'));
	}, "SELECT ($in_batches), ($dead)", ($on_dead eq 'skip' ? 'slow beside | behind' : 'slow beside') . '|short expired 0',
		"nothing runs in the same batch behind an ordered message that has expired, $on_dead");
	sql('SELECT mq_clear_all()');
}

is_in_time(sub {
	register('a message of a batch handler expires while it runs', 'act_on_all(mq_message[])');
	handle(send_some(1, 'slow', $slow), send_some(1, 'short', '{}', $short));
}, "SELECT ($in_batches), ($dead)", 'slow short|', 'what expires while it runs is handled, in a batch as well');

is_in_time(sub {
	register('a batch handler and what has expired', 'act_on_all(mq_message[])', q{message_name => 'in batches'});
	sql("SELECT mq_register_handler('$channel', 'act(mq_message)', 'slow')");
	handle(send_some(1, 'slow', $slow), send_some(1, 'in batches'), send_some(1, 'in batches', '{}', $short),
		send_some(2, 'in batches'));
}, "SELECT (SELECT string_agg(messages::text, ' ' ORDER BY n) FROM given), ($in_batches), ($dead)",
	'{"in batches"} {"in batches","in batches"}|slow in batches in batches in batches|in batches expired 0',
	'a batch handler is given neither what has expired nor a gap, all in one transaction');

is_in_time(sub {
	register('others run again');
	handle(send_some(1, 'slow', $slow), send_some(1, 'short', '{}', $short), send_some(1, 'good'),
		send_some(1, 'bad', '{"fails": true}', 'retries => 0'), send_some(1, 'good'));
}, "SELECT ($times), ($dead)", 'good 2, slow 1|short expired 0, bad exhausted 1 P0001',
	'what has expired stays so when others of its batch run again');
is_in_time(sub {
	register('a message runs in vain');
	handle(send_some(1, 'short', $slow, $short), send_some(1, 'bad', '{"fails": true}', 'retries => 0'));
}, "SELECT ($times), ($dead)", '|short expired 0, bad exhausted 1 P0001',
	'what ran in vain and has expired since does not run again');

$node->stop;
log_is_clean($node);
done_testing();
