# Flaws of the original in two-phase messages, values, cost and rights: the same statements go wrong on the original
# schema (ONLY=original shows that) and right on the extension. Cost is counted, never timed.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqFlaw;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

# Preloaded, so that it is known whether anybody polls; without workers, who would handle.
my $node = flaw_node('original_values', 'mq.max_workers' => 0);
$node->safe_psql('postgres', 'CREATE ROLE producer; CREATE ROLE consumer');

# What the server says of a statement, in place of its SQLSTATE.
sub said {
	my ($sql) = @_;
	session('a')->query(q{CREATE FUNCTION said(sql text) RETURNS text LANGUAGE plpgsql AS $f$
		BEGIN EXECUTE sql; RETURN 'accepted'; EXCEPTION WHEN OTHERS THEN RETURN SQLERRM; END $f$});
	return session('a')->query("SELECT said(\$s\$$sql\$s\$)");
}

# Whether a session that listens hears of what another does.
sub heard {
	my ($sql) = @_;
	session('listener')->query('LISTEN mq_c');
	session('a')->query($sql);
	return session('listener')->query('SELECT 1') =~ /notification "mq_c"/ ? 'heard' : 'not heard';
}

# --- two-phase messages -------------------------------------------------------------------------

flaw 19, 'mq_commit wakes listeners', sub {
	session('b')->query(poll());
	session('a')->query(insert('x', commit_interval => '1 h'));
	return heard('SELECT mq_commit(ARRAY[' . id('x') . '])');
}, 'not heard', 'heard';

for my $put_off (q{mq_checkpoint(%s, '5 min', NULL, NULL, NULL)}, q{mq_keep_alive(ARRAY[%s], '5 min')}) {
	flaw 21, "committed after $put_off", sub {
		session('a')->query(insert('x', commit_interval => '10 s'));
		session('a')->query('SELECT ' . sprintf($put_off, id('x')));
		session('a')->query('SELECT mq_commit(ARRAY[' . id('x') . '])');
		return session('a')->query('SELECT attempt_at <= now() FROM mq_msgs WHERE id = ' . id('x')) eq 't' ? 'due' : 'late';
	}, $put_off =~ /checkpoint/ ? 'late' : 'due', 'due';
}

flaw 22, 'a commit interval of a month from the end of one', sub {
	session('a')->query('BEGIN');
	my $delay = session('a')->query(q{SELECT date_trunc('year', now()) + '1 year 30 days 12:00' - now()});
	session('a')->query(insert('x', delay => $delay, commit_interval => '1 month'));
	session('a')->query('COMMIT; SELECT mq_commit(ARRAY[' . id('x') . '])');
	return session('a')->query(q{SELECT to_char(attempt_at, 'DD Mon') FROM mq_msgs WHERE id = } . id('x'));
}, '28 Jan', '31 Jan';
flaw 22, 'a negative commit interval', sub {
	return session('a')->query(insert('x', commit_interval => '-1 s')) || 'sent';
}, 'sent', 'error 22023';
flaw 22, 'a negative delay or backoff', sub {
	return join ', ', map { session('a')->query($_) || 'sent' } insert('x', delay => '-1 day'), insert('y', backoff => '-1 s');
}, 'sent, sent', 'error 22023, error 22023';

flaw 23, 'an uncommitted message whose time is over, and a consumer that does nothing about it', sub {
	session('a')->query(insert('x', commit_interval => '0.05 s'));
	session('a')->query('SELECT pg_sleep(0.1)');
	my $polled = session('b')->query(q{SELECT count(id) FROM mq_poll(ARRAY['c'])});
	return "$polled delivered, " . session('a')->query('SELECT count(*) FROM mq_msgs WHERE id = ' . id('x')) . ' left';
}, '1 delivered, 1 left', '0 delivered, 0 left';

# --- values -------------------------------------------------------------------------------------

flaw 24, 'a NULL delay', sub {
	my $result = session('a')->query(append('x', delay => 'NULL')) || 'sent';
	session('a')->query(append('y'));
	return "$result, delivered: " . drain();
}, 'sent, delivered: ', 'error 22004, delivered: y';
flaw 24, 'a NULL name', sub { return said(insert('x', name => 'NULL')) },
  'null value in column "name" of relation "mq_payloads" violates not-null constraint', 'name of message 1 must not be NULL';
flaw 24, 'NULL retries', sub { return said(insert('x', retries => 'NULL')) },
  'null value in column "attempts" of relation "mq_msgs" violates not-null constraint', 'retries of message 1 must not be NULL';

flaw 25, 'batch_size NULL', sub {
	session('a')->query(insert('x y z'));
	return session('a')->query(q{SELECT count(*) FROM mq_poll(ARRAY['c'], NULL)});
}, '3', 'error 22004';
flaw 25, 'batch_size -1', sub { return said(q{SELECT * FROM mq_poll(ARRAY['c'], -1)}) },
  'LIMIT must not be negative', 'invalid batch_size: "-1"';
flaw 25, 'retries 2147483647', sub { return said(insert('x', retries => '2147483647')) },
  'integer out of range', 'invalid retries of message 1: "2147483647"';
flaw 25, 'retries -1', sub {
	session('a')->query(insert('x', retries => '-1', backoff => '0'));
	return scalar(grep { $_ eq 'x' } map { session('a')->query(poll()) } 1 .. 20) . ' times';
}, '20 times', '0 times';

flaw 26, 'a channel name of 61 bytes', sub {
	session('a')->query(insert('x', channel => 'c' x 61));
	return 'delivered: ' . session('a')->query(poll(1, 'c' x 61));
}, 'delivered: ', 'delivered: x';

flaw 27, 'JSON that jsonb does not take', sub {
	return said(insert('x', json => '"\u0000"'));
}, 'unsupported Unicode escape sequence', 'invalid payload_json of message 1: not acceptable as jsonb';

flaw 28, 'a send in a transaction that is prepared', sub {
	session('a')->query('BEGIN;' . insert('x'));
	my $result = session('a')->query(q{PREPARE TRANSACTION 'p'}) || 'prepared';
	session('a')->query($result eq 'prepared' ? q{COMMIT PREPARED 'p'} : 'ROLLBACK');
	return "$result, delivered: " . drain();
}, 'error 0A000, delivered: ', 'prepared, delivered: x';

# --- cost ---------------------------------------------------------------------------------------

# Pages that a statement touches; it is rolled back.
sub pages {
	my ($sql) = @_;
	session('a')->query('BEGIN');
	session('a')->query($sql);  # plans and catalogs
	session('a')->query('ROLLBACK; BEGIN');
	my $plan = session('a')->query("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) $sql");
	session('a')->query('ROLLBACK');
	$plan =~ /"Shared Hit Blocks": (\d+),\s+"Shared Read Blocks": (\d+)/ or die $plan;
	return $1 + $2;
}

# How much a count of the server's grows by a statement; it is rolled back. (The counts of a transaction begin with what
# the session has not reported yet.)
sub counted {
	my ($count, $sql) = @_;
	session('a')->query('BEGIN');
	my $before = session('a')->query($count);
	session('a')->query($sql);
	my $after = session('a')->query($count);
	session('a')->query('ROLLBACK');
	return $after - $before;
}

# Rows and index entries of both tables that a statement reads.
sub rows_read {
	my ($sql) = @_;
	return counted(q{SELECT COALESCE(sum(pg_stat_get_xact_tuples_returned(c.oid)), 0) FROM pg_class c
		WHERE c.relname ~ '^mq_(msgs|payloads)' AND c.relkind IN ('r', 'i')}, $sql);
}

# More messages of the channel c.
sub fill {
	my ($count, %o) = @_;
	session('a')->query(sprintf q{SELECT mq_insert(array_agg((gen_random_uuid(), '%s', %d, '0.001 s', 'c', '', NULL, %s, 'x', NULL, NULL)::mq_new_t))
		FROM generate_series(1, %d)}, $o{delay} // '0', $o{retries} // 4, $o{ordered} ? 'true' : 'false', $count);
	return unless $o{dead};
	session('a')->query('SELECT count(*) FROM mq_poll(NULL, 100000); SELECT pg_sleep(0.05)') for 1, 2;
}

# Whether a cost grows with the number of messages.
sub growth {
	my ($cost, %o) = @_;
	fill(100, %o);
	session('a')->query('VACUUM ANALYZE mq_msgs; VACUUM ANALYZE mq_payloads');
	my $few = $cost->();
	fill(9_900, %o);
	session('a')->query('VACUUM ANALYZE mq_msgs; VACUUM ANALYZE mq_payloads');
	my $many = $cost->();
	note("$kind: $few, then $many");
	return $many > 3 * $few + 10 ? 'grows' : 'stays';
}
my $poll = sub { rows_read(q{SELECT * FROM mq_poll(ARRAY['c'], 10)}) };
my $delete = sub {
	my $head = session('a')->query(q{SELECT id FROM mq_msgs WHERE channel_name = 'c' AND after_message_id = '00000000-0000-0000-0000-000000000000'});
	return pages("SELECT mq_delete(ARRAY['$head'::uuid])");
};
my $delete_all = sub {
	my $ids = session('a')->query(q{SELECT array_agg(id) FROM mq_msgs WHERE channel_name = 'c'});
	return pages("SELECT mq_delete('$ids')") / ($ids =~ tr/,// + 1);
};

flaw 29, 'a poll of 10 beside 100 and 10,000 ready messages', sub { growth($poll) }, 'grows', 'stays';
flaw 29, 'a poll beside messages that are not due', sub { growth($poll, delay => '1 h') }, 'grows', 'stays';
flaw 29, 'a poll beside dead messages', sub { growth($poll, retries => 0, dead => 1) }, 'grows', 'stays';
flaw 29, 'a poll that was planned when there was nothing, per message', sub {
	session('a')->query('VACUUM ANALYZE mq_msgs; VACUUM ANALYZE mq_payloads');
	session('a')->query(poll()) for 1 .. 10;
	fill(1000);
	my $read = rows_read(q{SELECT * FROM mq_poll(ARRAY['c'], 1000)});
	note("$kind: $read for 1000");
	return $read > 20_000 ? 'more than 20 rows' : 'at most 20 rows';
}, 'more than 20 rows', 'at most 20 rows';
flaw 30, 'the head of an ordered channel is deleted', sub { growth($delete, ordered => 1) }, 'grows', 'stays';
# A thousand do for what would be quadratic.
flaw 30, 'a channel is deleted, per message', sub {
	fill(100, ordered => 1);
	my $few = $delete_all->();
	fill(900, ordered => 1);
	my $many = $delete_all->();
	note("$kind: $few pages a message, then $many");
	return $many > 3 * $few ? 'grows' : 'stays';
}, 'grows', 'stays';
# With a later fix of its authors this grew as well.
flaw 30, 'one is appended', sub { growth(sub { pages(append('x')) }, ordered => 1) }, 'stays', 'stays';

# The session that listens to something else, in a transaction, keeps what is sent in the server's queue.
flaw 31, 'NOTIFY, which commits wait in line for, though nobody listens', sub {
	session('holder')->query($_) for 'LISTEN elsewhere', 'BEGIN', 'SELECT 1';
	session('a')->query('DO $$ BEGIN FOR i IN 1 .. 1000 LOOP PERFORM mq_insert(ARRAY[(gen_random_uuid(), \'0\', 4, \'1 s\', \'c\', \'\', NULL, false, \'n\', \'{}\', NULL)::mq_new_t]); COMMIT; END LOOP; END $$');
	my $used = session('a')->query('SELECT pg_notification_queue_usage() > 0');
	session('holder')->query($_) for 'COMMIT', 'UNLISTEN *';
	return $used eq 't' ? 'sent' : 'not sent';
}, 'sent', 'not sent';

# Rows of mq_msgs that a statement updated, and how many of them without touching the indexes.
sub updates {
	my ($sql) = @_;
	my ($all, $hot) = map { counted(qq{SELECT COALESCE(pg_stat_get_xact_tuples_$_('mq_msgs'::regclass), 0)}, $sql) } 'updated', 'hot_updated';
	return "$all updated, $hot HOT";
}
flaw 32, '100 messages are handled', sub {
	fill(100);
	session('a')->query(q{CREATE FUNCTION handle(jsonb) RETURNS void LANGUAGE sql AS ''; SELECT mq_register_handler('c', 'handle(jsonb)')}) if $kind eq 'extension';
	return updates($kind eq 'extension' ? 'CALL mq_run()' : q{SELECT mq_delete(array_agg(id)) FROM mq_poll(NULL, 100)});
}, '100 updated, 0 HOT', '0 updated, 0 HOT';

# --- rights and search_path -----------------------------------------------------------------------

# With the least that lets it do its work: in the original, rights on the tables.
sub may {
	my ($role, $original, $right) = @_;
	session('a')->query('GRANT USAGE ON SCHEMA public TO PUBLIC');
	session('a')->query($kind eq 'original' ? join(';', map { "GRANT $_ TO $role" } split /; */, $original) : "SELECT mq_grant('$role', '$right')");
	session($role)->query("SET ROLE $role");
	return session($role);
}
my @producer = ('producer', 'SELECT, INSERT ON mq_msgs; INSERT ON mq_payloads', 'produce');
my @consumer = ('consumer', 'SELECT, UPDATE, DELETE ON mq_msgs; SELECT, DELETE ON mq_payloads', 'consume');

flaw 34, 'a producer reads what is pending', sub {
	my $producer = may(@producer);
	my $sent = $producer->query(insert('x')) || 'sent';
	return "$sent, reads: " . $producer->query('SELECT count(*) FROM mq_msgs WHERE id = ' . id('x'));
}, 'sent, reads: 1', 'sent, reads: error 42501';
flaw 34, 'a consumer deletes from the table', sub {
	my $consumer = may(@consumer);
	session('a')->query(insert('x'));
	my $polled = $consumer->query(poll());
	my $result = $consumer->query('DELETE FROM mq_msgs WHERE id = ' . id('x')) || 'deleted';
	return "polls: $polled, $result";
}, 'polls: x, deleted', 'polls: x, error 42501';
flaw 35, 'an empty search_path', sub {
	(my $insert = insert('x')) =~ s/(mq_insert|mq_new_t)/public.$1/g;
	session('b')->query(q{SET search_path = ''});
	return session('b')->query($insert) || 'sent';
}, 'error 42P01', 'sent';
flaw 35, 'a temporary table named mq_msgs', sub {
	session('b')->query('CREATE TEMP TABLE mq_msgs (LIKE mq_msgs INCLUDING ALL)');
	session('b')->query(insert('x'));
	return 'delivered: ' . drain();
}, 'delivered: ', 'delivered: x';

flaw 36, 'a consumer of one channel puts a message into the channel of another\'s workers', sub {
	my $consumer = may(@consumer);
	session('a')->query(insert('x', channel => 'mine'));
	$consumer->query(q{UPDATE mq_msgs SET channel_name = 'theirs' WHERE channel_name = 'mine'});
	my $sent = $consumer->query(insert('y', channel => 'theirs')) || 'sent';
	return "theirs: " . session('a')->query(poll(10, 'theirs'));
}, 'theirs: x', 'theirs: ';

$node->stop;
log_is_clean($node, qr/there is no transaction in progress/, qr/skipping "mq_payloads" --- cannot vacuum non-tables/);    # a view
done_testing();
