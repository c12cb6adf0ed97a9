# Names that change under registrations: of roles, of the extension's schema, of functions.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $node = mq_node('names');
$node->safe_psql($db, q{
	CREATE ROLE alice LOGIN;
	CREATE SCHEMA queue;
	CREATE EXTENSION mq SCHEMA queue;
	GRANT USAGE ON SCHEMA queue TO alice;
	ALTER DATABASE postgres SET search_path = public, queue});
handled_table($node, $db);
$node->safe_psql($db, q{
	CREATE FUNCTION handle_all(messages mq_message[]) RETURNS void LANGUAGE sql AS 'SELECT handle(m) FROM unnest(messages) AS m';
	CREATE FUNCTION "a.b(c)""d"(payload jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO handled (name, payload) VALUES ('quoted', payload) $$;
	CREATE FUNCTION handle_json(payload jsonb) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = public
	  AS $$ INSERT INTO handled (name, payload, role) VALUES ('json', payload, session_user) $$;
	GRANT INSERT ON handled TO alice;
	GRANT USAGE ON SEQUENCE handled_n_seq TO alice;
	SELECT mq_register_handler('hers', 'handle_json(jsonb)', run_as => 'alice'), mq_register_handler('one', 'handle(mq_message)'),
	       mq_register_handler('all', 'handle_all(mq_message[])'), mq_register_handler('long', 'handle(mq_message)', mode => 'leased'),
	       mq_register_handler('quoted', '"a.b(c)""d"(jsonb)')});
my $problems = q{SELECT string_agg("check" || ': ' || detail, '|' ORDER BY 1) FROM queue.mq_health() WHERE NOT ok AND "check" ~ '^handlers'};
my $send = sub { $node->safe_psql($db, qq{SELECT mq_send(c) FROM unnest('{$_[0]}'::text[]) AS c}) };
my $handled = sub { my ($expected, $what) = @_; within(20, $node, $db, q{SELECT count(*) FROM handled}, $expected, $what); $node->safe_psql($db, 'TRUNCATE handled') };
holds($node, $db, $problems, '', 'mq_health() has nothing to say');
$send->('hers,one,all,long,quoted');
$handled->(5, 'every handler is called');

# Roles.
$node->safe_psql($db, 'ALTER ROLE alice RENAME TO "the other alice"');
$send->('hers');
within(20, $node, $db, 'SELECT DISTINCT role FROM handled', 'the other alice', 'a renamed role is followed');
$node->safe_psql($db, 'TRUNCATE handled');
holds($node, $db, q{SELECT run_as FROM mq_handlers WHERE channel_name = 'hers'}, 'the other alice', 'and shown by its new name');
$node->safe_psql($db, q{SELECT mq_register_handler('hers', 'handle_json(jsonb)', run_as => '"the other alice"')});
$node->safe_psql($db, q{SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'the other alice';
	DROP OWNED BY "the other alice"; DROP ROLE "the other alice"; CREATE ROLE "the other alice" LOGIN; GRANT INSERT ON handled TO "the other alice"});
$send->('hers,one');
$handled->(1, 'the registration of a dropped role is left alone');
within(20, $node, $db, $problems, qr/^handlers' roles: gone, or without LOGIN: hers runs as the other alice; mq_register_handler/, 'and named by mq_health()');
holds($node, $db, q{SELECT count(*) FROM pg_stat_activity WHERE usename = 'the other alice'}, 0, 'a newcomer of its name inherits nothing');
$node->safe_psql($db, q{SELECT mq_register_handler('hers', 'handle_json(jsonb)', 'another', run_as => 'postgres'),
	mq_register_handler('hers', 'handle_json(jsonb)', run_as => 'postgres')});
$handled->(1, 'registering again, as another role, mends it');
holds($node, $db, $problems, '', 'mq_health() has nothing to say again');

# The extension's schema.
$node->safe_psql($db, 'ALTER SCHEMA queue RENAME TO "renamed queue"; ALTER DATABASE postgres SET search_path = public, "renamed queue"');
$problems =~ s/queue\./"renamed queue"./;
$send->('hers,one,all,long,quoted');
$handled->(5, q{handlers go on when the extension's schema is renamed});
holds($node, $db, $problems, '', 'mq_health() works, and has nothing to say');

# Functions and their schemas.
$node->safe_psql($db, q{CREATE SCHEMA app; CREATE FUNCTION app.f(payload jsonb) RETURNS void LANGUAGE sql
	  AS $$ INSERT INTO public.handled (name, payload) VALUES ('app', payload) $$;
	SELECT mq_register_handler('app', 'app.f(jsonb)');
	ALTER FUNCTION app.f RENAME TO g});
$send->('app,one');
$handled->(1, 'a function that was renamed is gone');
within(20, $node, $db, $problems, qr/^handlers' functions: gone: app app\.f\(pg_catalog\.jsonb\); .* or the same again if it or its schema was renamed$/, 'mq_health() names it');
$node->safe_psql($db, q{SELECT mq_register_handler('app', 'app.g(jsonb)')});
$handled->(1, 'registering again mends it');
$node->safe_psql($db, q{ALTER SCHEMA app RENAME TO "the app"});
$send->('app,one');
$handled->(1, 'a function whose schema was renamed is gone');
within(20, $node, $db, $problems, qr/^handlers' functions: gone: app app\.g/, 'mq_health() names it');
$node->safe_psql($db, q{SELECT mq_register_handler('app', '"the app".g(jsonb)')});
$handled->(1, 'registering again mends it');
holds($node, $db, q{SELECT count(*) FROM mq_failures}, 0, 'nothing failed');

$node->stop;
log_is_clean($node, qr/mq worker FATAL:  role with OID \d+ does not exist/);    # it was dropped while its worker started
done_testing();
