# Trouble that stays: results that cannot be written, servers that stop, connections that are needed by others.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('trouble', 'mq.max_workers' => 2);
my $db = 'postgres';
sub sql { return $node->safe_psql($db, shift) }
sql('CREATE EXTENSION mq');
handled_table($node, $db);
sql(q{CREATE FUNCTION fail(jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'on purpose'; END $$});

# A dead letter that is refused stops nothing but its own message.
sql(q{ALTER TABLE mq_dead ADD CONSTRAINT no_bad CHECK (channel_name NOT LIKE 'bad%');
      SELECT mq_register_handler('bad', 'fail(jsonb)'), mq_register_handler('bad leased', 'fail(jsonb)', mode => 'leased'),
             mq_register_handler('good', 'handle(mq_message)'), mq_register_handler('good leased', 'handle(mq_message)', mode => 'leased');
      SELECT mq_pause(c) FROM unnest('{bad,bad leased,good,good leased}'::text[]) c});
sql(q{SELECT mq_send(c, '{}', retries => 0) FROM generate_series(1, 5), unnest('{bad,good,bad leased,good leased}'::text[]) c;
      SELECT mq_send('bad', '{}', expires => '0.5 s'), mq_send('no handler', '{}', expires => '0.5 s')});
sql(q{BEGIN; SELECT mq_resume(c) FROM unnest('{bad,bad leased,good,good leased}'::text[]) c; COMMIT});
within(30, $node, $db, q{SELECT count(*) FILTER (WHERE name = 'good'), count(*) FILTER (WHERE name = 'good leased') FROM handled}, '5|5',
	'others are handled while dead letters are refused');
within(30, $node, $db, q{SELECT count(*) FROM mq_dead WHERE channel_name = 'no handler'}, 1, 'what has expired is dead-lettered beside one that cannot be');
within(30, $node, $db, q{SELECT detail FROM mq_health() WHERE "check" = 'messages settled' AND NOT ok}, qr/ of bad.*no_bad/, 'mq_health() names the message and what is in the way');
for my $round (1 .. 20) {
	sql(q{SELECT mq_send('good', '{}'), mq_send('good leased', '{}') FROM generate_series(1, 5)});
}
within(30, $node, $db, q{SELECT count(*) FROM handled}, 210, 'senders are served meanwhile');
holds($node, $db, q{SELECT count(*) FROM mq_msgs WHERE channel_name LIKE 'bad%'}, 11, 'nothing is lost');
my @lines = grep { /mq worker: / } split /\n/, slurp_file($node->logfile);
cmp_ok(scalar @lines, '>', 0, 'the log tells of it');
cmp_ok(scalar @lines, '<=', 8, 'once for each process and kind: ' . scalar @lines . ' lines');
sql(q{ALTER TABLE mq_dead DROP CONSTRAINT no_bad});
sql(q{UPDATE mq_msgs SET attempt_at = now() WHERE channel_name LIKE 'bad%'; SELECT mq_pause('good'), mq_resume('good')});
within(90, $node, $db, q{SELECT count(*) FROM mq_dead WHERE channel_name LIKE 'bad%'}, 11, 'they die when they can');
holds($node, $db, q{SELECT ok FROM mq_health() WHERE "check" = 'messages settled'}, 't', 'and mq_health() is content');

# Removal that is refused is trouble of all: the worker rests, whoever wakes it.
sql(q{CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING ERRCODE = '53100', MESSAGE = 'no space, says the test'; END $$;
      CREATE TRIGGER refuse BEFORE DELETE OR UPDATE ON mq_msgs FOR EACH STATEMENT EXECUTE FUNCTION refuse()});
sql(q{SELECT mq_send('good', '{}', 'late') FROM generate_series(1, 3)});
for my $round (1 .. 50) {
	sql(q{SELECT mq_send('good', '{}', 'late')});
}
@lines = grep { /no space, says the test/ && /mq worker/ } split /\n/, slurp_file($node->logfile);
cmp_ok(scalar @lines, '<=', 4, 'senders that go on do not fill the log: ' . scalar @lines . ' lines');
sql(q{DROP TRIGGER refuse ON mq_msgs});
within(60, $node, $db, q{SELECT count(*) FROM handled WHERE name = 'late'}, 53, 'all are handled when it is over');

# A smart shutdown comes to its end while there is a backlog, leased and transactional. What runs is let finish.
sql(q{SELECT mq_register_handler('long', 'handle_slowly(mq_message)', mode => 'leased'), mq_register_handler('busy', 'handle_slowly(mq_message)')});
sql(q{SELECT mq_send('long', '{"seconds": 1.5}', 'long') FROM generate_series(1, 500);
      SELECT mq_send('busy', '{"seconds": 0.05}', 'busy') FROM generate_series(1, 5000)});
within(20, $node, $db, q{SELECT count(*) > 0 FROM mq_msgs WHERE lease > 0}, 't', 'leased calls run');
$node->command_ok([ 'pg_ctl', '-D', $node->data_dir, '-m', 'smart', '-t', '60', '-w', 'stop' ], 'a smart shutdown ends with a backlog');
$node->_update_pid(0);
$node->start;
holds($node, $db, q{SELECT count(*) FROM mq_failures WHERE channel_name = 'long'}, 0, 'what ran was let finish');
sql(q{SELECT mq_clear('{long,busy}')});
$node->stop;

# Leased sessions leave room for others, whatever the role of their handlers.
my $small = mq_node('small', max_connections => 20, max_wal_senders => 0, 'mq.max_workers' => 2);
$small->safe_psql($db, 'CREATE EXTENSION mq; CREATE ROLE ordinary LOGIN');
handled_table($small, $db);
$small->safe_psql($db, q{SELECT mq_register_handler('long', 'handle_slowly(mq_message)', mode => 'leased');
	SELECT mq_send('long', '{"seconds": 3}') FROM generate_series(1, 40)});
within(30, $small, $db, q{SELECT detail FROM mq_health() WHERE "check" = 'leased connections' AND NOT ok}, qr/max_connections = 20/,
	'mq_health() says that there is no room for more sessions');
within(20, $small, $db, q{SELECT count(*) > 2 FROM pg_stat_activity WHERE application_name = 'mq handler'}, 't', 'several sessions run');
my @sessions;
for my $who ('postgres', 'ordinary') {
	push @sessions, $small->background_psql($db, extra_params => [ '-U', $who eq 'postgres' ? $ENV{PGUSER} // getpwuid($<) : $who ]) for 1 .. 2;
}
is(scalar(grep { $_->query_safe('SELECT 1') eq '1' } @sessions), 4, 'a superuser and an ordinary user can log in, and others after them');
$_->quit for @sessions;
within(60, $small, $db, 'SELECT count(*) FROM handled', 40, 'all are handled');
holds($small, $db, 'SELECT max(attempt), (SELECT count(*) FROM mq_failures) FROM handled', '1|0', 'nobody is charged for want of a connection');
within(20, $small, $db, q{SELECT ok FROM mq_health() WHERE "check" = 'leased connections'}, 't', 'mq_health() is content when nothing waits for a session');
log_is_clean($small, qr/no connection for leased handlers: no room/);
$small->stop;

done_testing();
