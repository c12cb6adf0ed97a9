# Handlers that get into each other's way: deadlocks between batches, what calls of one transaction share, and errors
# that come only at COMMIT.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('conflicts', 'mq.max_workers' => 8);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
sql('CREATE EXTENSION mq');

# Transfers between few accounts: two batches that lock the same rows in different orders stop each other.
my $messages = 2000;
sql(q{CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
      INSERT INTO accounts SELECT n, 1000 FROM generate_series(1, 30) n;
      CREATE FUNCTION transfer(t jsonb) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  UPDATE accounts SET balance = balance - 1 WHERE id = (t ->> 'from')::int;
	  UPDATE accounts SET balance = balance + 1 WHERE id = (t ->> 'to')::int;
	END $$;
      SELECT mq_register_handler('transfers', 'transfer(jsonb)'), mq_pause('transfers')});
sql(qq{SELECT count(mq_send('transfers', jsonb_build_object('from', 1 + n * 7 % 30, 'to', 1 + (n * 11 + 5) % 30)))
	FROM generate_series(1, $messages) n});
sql(q{SELECT mq_resume('transfers')});
within(60, $node, $db, 'SELECT count(*) FROM mq_msgs', 0, 'transfers by eight workers come to their end');
holds($node, $db, 'SELECT sum(balance), count(*) FROM accounts', '30000|30', 'nothing is lost or done twice');
holds($node, $db, qq{SELECT sum(abs(a.balance - e.balance)) FROM accounts a JOIN (
	SELECT i AS id, 1000 - (SELECT count(*) FROM generate_series(1, $messages) n WHERE 1 + n * 7 % 30 = i)
	            + (SELECT count(*) FROM generate_series(1, $messages) n WHERE 1 + (n * 11 + 5) % 30 = i) AS balance
	  FROM generate_series(1, 30) i) e USING (id)}, 0, 'each account has what it should');
holds($node, $db, 'SELECT (SELECT count(*) FROM mq_failures), (SELECT count(*) FROM mq_dead)', '0|0', 'no attempt is charged');
my $deadlocks = sql(q{SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()});
cmp_ok($deadlocks, '<=', $messages / 100, "few deadlocks: $deadlocks");

# What is unique by now() or the transaction's id collides among calls that share a transaction.
sql(q{CREATE TABLE moments (at timestamptz DEFAULT now() UNIQUE);
      CREATE TABLE transactions (id xid8 DEFAULT pg_current_xact_id() UNIQUE);
      CREATE FUNCTION note_moment(jsonb) RETURNS void LANGUAGE sql AS 'INSERT INTO moments DEFAULT VALUES';
      CREATE FUNCTION note_transaction(jsonb) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  INSERT INTO transactions DEFAULT VALUES;
	EXCEPTION WHEN unique_violation THEN RAISE EXCEPTION 'not the first';  -- an error that tells nothing
	END $$;
      SELECT mq_register_handler('moments', 'note_moment(jsonb)'), mq_register_handler('transactions', 'note_transaction(jsonb)'),
             mq_pause('moments'), mq_pause('transactions')});
sql(q{SELECT mq_send(c, '{}', retries => 3, retry_backoff => '0.1 s') FROM generate_series(1, 100), unnest('{moments,transactions}'::text[]) c});
sql(q{BEGIN; SELECT mq_resume('moments'), mq_resume('transactions'); COMMIT});
within(60, $node, $db, 'SELECT (SELECT count(*) FROM moments), (SELECT count(*) FROM transactions)', '100|100', 'what is unique by now() or the transaction is done');
holds($node, $db, 'SELECT count(*) FROM mq_dead', 0, 'none has died of its company');
cmp_ok(sql(q{SELECT max(attempt) FROM mq_failures WHERE channel_name = 'transactions'}), '<=', 2, 'at most two attempts were made in company');

# An error at COMMIT, alone and in company: the messages that are well are handled, the others charged once an attempt.
# (That one which somebody else has by then is not charged: 082_worker.)
sql(q{CREATE TABLE late (n int);
      CREATE FUNCTION fail_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'too late'; END $$;
      CREATE CONSTRAINT TRIGGER late AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.n % 10 = 0) EXECUTE FUNCTION fail_late();
      CREATE FUNCTION write_late(n jsonb) RETURNS void LANGUAGE sql AS 'INSERT INTO late VALUES (n::int)';
      SELECT mq_register_handler('late', 'write_late(jsonb)'), mq_pause('late')});
sql(q{SELECT mq_send('late', to_jsonb(n), retries => 2, retry_backoff => '0') FROM generate_series(1, 100) n; SELECT mq_resume('late')});
within(60, $node, $db, q{SELECT count(*), count(DISTINCT n) FROM late}, '90|90', 'the others of the batch are handled, once');
within(60, $node, $db, q{SELECT count(*), min(attempts_made), max(attempts_made) FROM mq_dead WHERE channel_name = 'late'}, '10|3|3', 'those that fail at COMMIT die of it');
holds($node, $db, q{SELECT count(*), count(DISTINCT (message_id, attempt)) FROM mq_failures WHERE channel_name = 'late'}, '30|30', 'each attempt is charged once');
log_is_clean($node, qr/deadlock detected/);

done_testing();
