# What docs/scaling.md promises of the schema, so that messages can be distributed over nodes by channel_key: each table of
# messages has the key, nothing is unique without it but what is listed here, and nothing is in the schema that Citus
# refuses. And each statement on mq_msgs that sends, claims or settles has the key, or is listed with what it goes by.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $node = mq_node('shards', 'mq.max_workers' => 0, shared_preload_libraries => 'mq, pg_stat_statements', 'pg_stat_statements.track' => 'all', compute_query_id => 'on');
$node->safe_psql($db, 'CREATE EXTENSION mq');

# --- the schema -----------------------------------------------------------------------------------

my $tables = q{(SELECT c.* FROM pg_class c JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
	  JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'mq' WHERE c.relkind IN ('r', 'p'))};
my $has_key = q{EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = t.oid AND a.attname = 'channel_key' AND a.attnotnull AND a.atttypid = 'bigint'::regtype AND a.attgenerated = '')};

holds($node, $db, "SELECT string_agg(relname, ' ' ORDER BY relname) FROM $tables t WHERE $has_key", 'mq_dead mq_done mq_failures mq_headless mq_msgs',
	'the tables of messages have the key, which is an ordinary column');
# Small, and the same for all nodes; or, the next three, rows about messages by their ids, empty as a rule; or of a node.
holds($node, $db, "SELECT string_agg(relname, ' ' ORDER BY relname) FROM $tables t WHERE NOT $has_key",
	join(' ', sort qw(mq_handlers mq_paused mq_channel_limits mq_subscribers mq_timetable), qw(mq_prerequisites mq_rechecks mq_cancelled), qw(mq_enabled mq_stats_deltas mq_stats_totals)),
	'and the others are those without messages, or with their ids alone');
holds($node, $db, qq{
	SELECT string_agg(i.indexrelid::regclass || ' (' || (SELECT string_agg(a.attname, ', ' ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = i.indexrelid) || ')', ', ' ORDER BY i.indexrelid::regclass::text)
	  FROM $tables t JOIN pg_index i ON i.indrelid = t.oid
	 WHERE $has_key AND (i.indisunique OR i.indisexclusion)
	   AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = i.indexrelid AND a.attname = 'channel_key')},
	'mq_dead_pkey (dead_no), mq_done_pkey (done_no), mq_failures_pkey (failure_no), mq_msgs_pkey (id)', 'nothing else is unique without the key');
holds($node, $db, "SELECT string_agg(t.relname, ' ') FROM $tables t JOIN pg_trigger g ON g.tgrelid = t.oid", 'mq_enabled', 'no table has a trigger, but the one that says what a node is');
holds($node, $db, "SELECT count(*) FROM $tables t JOIN pg_constraint c ON c.conrelid = t.oid WHERE c.contype IN ('f', 'x')", 0, '... or refers to another');
holds($node, $db, "SELECT count(*) FROM $tables t JOIN pg_attribute a ON a.attrelid = t.oid WHERE a.attgenerated <> '' AND a.attnum > 0", 0, '... or has a generated column');
holds($node, $db, "SELECT count(*) FROM $tables t WHERE t.relhasrules OR t.relrowsecurity OR t.relkind = 'p'", 0, '... or a rule, a policy or partitions');

# --- statements -----------------------------------------------------------------------------------

# Each way of a message, once straight through table and indexes, and once by the statements that stand in their place where
# the table has a trigger or a policy.
$node->safe_psql($db, q{
	CREATE EXTENSION pg_stat_statements;
	CREATE FUNCTION work(m mq_message) RETURNS void LANGUAGE plpgsql AS $$ BEGIN IF m.name = 'fail' THEN RAISE 'no'; END IF; END $$;
	SELECT mq_register_handler('c', 'work(mq_message)');
	CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN COALESCE(NEW, OLD); END'});
for my $statements ('', q{CREATE TRIGGER t BEFORE INSERT OR UPDATE OR DELETE ON mq_msgs FOR EACH ROW EXECUTE FUNCTION nothing(); ALTER TABLE mq_msgs ENABLE ROW LEVEL SECURITY;
	CREATE POLICY all_rows ON mq_msgs USING (true); ALTER TABLE mq_msgs FORCE ROW LEVEL SECURITY}) {
	$node->safe_psql($db, $statements) if $statements;
	$node->safe_psql($db, q{
		SELECT mq_send_many('c', '{1, 2, 3}'), mq_send('c', dedup_key => 'k');
		SELECT mq_send_many('c', '{1, 2, 3}', channel_args => 'o', ordered => true);
		SELECT mq_send_many('c', '{1, 2, 3}', channel_args => 'p', ordered => true);
		SELECT mq_send('c', priority => 5), mq_send('c', name => 'fail', retries => 0), mq_send('c', name => 'fail', ordered => true, retry_backoff => '1 hour');
		CALL mq_run(max_messages => 2);
		CALL mq_run();
		SELECT mq_redrive();
		CALL mq_run()});
	is($node->safe_psql($db, q{SELECT channel_name, count(*) FROM mq_msgs GROUP BY 1}), 'c|2', 'what is sent is handled, but what fails waits for its retry');
	$node->safe_psql($db, q{SELECT mq_clear('{c}'); DELETE FROM mq_dead});
}
my @statements = split /\x1e/, $node->safe_psql($db, q{SELECT string_agg(DISTINCT regexp_replace(query, '\s+', ' ', 'g'), E'\x1e') FROM pg_stat_statements
	WHERE query ~ '\.mq_msgs\y' AND query !~* '^\s*(CREATE|ALTER|GRANT)'});

# What a statement finds messages by: the columns of mq_msgs in its conditions.
sub conditions {
	my ($statement) = @_;
	my ($command, $found) = $statement =~ s/ RETURNING .*?(?=\)| *$)//r =~ /^(\w+).*?\.mq_msgs(.*)$/;
	my (@all, %seen);
	for ($found =~ /\bm\.(\w+ (?:=|<=|>=|<>|>|<|IS NOT NULL|IS NULL))/g) { push @all, $_ if !$seen{$_}++ }
	return "$command " . join(', ', @all);
}
sub has_key { $_[0] =~ /INSERT INTO \S*\.mq_msgs \([^)]*\bchannel_key\b/ || $_[0] =~ /\bm\.channel_key = / }
# What settling goes by: the rows that were claimed.
sub settles { $_[0] =~ /\bm\.id = r\.id AND m\.seq = r\.seq\b/ }

my $with = grep { has_key($_) } @statements;
cmp_ok($with, '>=', 8, 'with the key: sending, with and without a dedup_key, and what it asks; the tail of a channel; what follows a head; settling');
my @settling = grep { settles($_) } @statements;
for my $command ('DELETE FROM', 'UPDATE', 'INSERT INTO') {
	ok(scalar(grep { /^$command / } @settling), "settling is seen: $command");
}
is(join("\n", grep { !has_key($_) } @settling), '', '... and has the key');
my %without = map { conditions($_) => 1 } grep { !has_key($_) } @statements;
my $head = 'after_message_id IS NULL, after_message_id =';
my @known = (
	# A claim, by channel name from the low-water mark on: with the priority 0, and with others.
	"SELECT channel_name =, attempt_at <=, $head, priority =", "SELECT channel_name =, attempt_at <=, $head, priority =, priority <>",
	# mq_redrive, by id.
	'DELETE id =, attempt_at IS NULL', 'SELECT id =', 'SELECT id =, attempt_at IS NULL', 'SELECT id =, attempt_at IS NOT NULL',
	# mq_clear, by name.
	'WITH channel_name =, id =, after_message_id =',
	# The sweep, over all channels.
	'SELECT attempts <=, attempt_at IS NULL', 'SELECT commit_interval IS NOT NULL, attempts <=, attempt_at <=',
	'SELECT expires_at <=, commit_interval IS NULL, attempt_at <=, attempt_at =', 'SELECT lease >', 'WITH throttled_at IS NOT NULL, channel_name >',
	# The greatest sequence number.
	'SELECT ');
my %known = map { $_ => 1 } @known;
is(join("\n", grep { !$known{conditions($_)} } grep { !has_key($_) } @statements), '', 'without the key: only what is listed');
ok($without{$_}, "a statement is seen by what it goes by: $_") for @known[0, 1, 2, 3, 4];

log_is_clean($node);
$node->stop;
done_testing();
