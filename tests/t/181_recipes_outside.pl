# The recipes of docs/recipes whose work is done outside of the server: their statements return what they say, their programs run as
# they stand, and what they promise holds, with a second database, endpoints and a mail server on loopback that fail at first.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use JSON::PP;
use List::Util qw(max min uniq);
use MqRecipes;
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

plan skip_all => 'python3-psycopg is not installed' unless python();

my $node = mq_node('recipes', 'mq.poll_interval' => '1s');

# What a server of tests/recipes has written into its log.
sub lines { my ($file) = @_; return -e $file ? map { decode_json($_) } split /\n/, slurp_file($file) : () }

# --- outbox ---------------------------------------------------------------------------------------

# A relay whose lease runs out while the other database is slow, and one that dies with messages in hand.
sub outbox_again {
	my ($r) = @_;
	my $slow = $node->background_psql($r->other);
	$slow->query_safe('BEGIN; LOCK TABLE inbox IN SHARE MODE');
	$r->sql(q{INSERT INTO demo_orders (customer, total) VALUES ('cyd', 1)});
	my $late = q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'demo_outbox' AND lease < 0 AND attempt_at < clock_timestamp()};
	$r->within(60, $late, 1, 'the lease of a relay has run out while it waits for the other database');
	$slow->query_safe('COMMIT');
	within(60, $node, $r->other, q{SELECT copies FROM inbox WHERE customer = 'cyd'}, 2, 'outbox: the message has come twice, and was written once');
	$r->within(60, q{SELECT count(*) FROM mq_msgs}, 0, '... and is acknowledged by who has it last');

	$slow->query_safe('BEGIN; LOCK TABLE inbox IN SHARE MODE');
	$r->sql(q{INSERT INTO demo_orders (customer, total) VALUES ('dan', 1); UPDATE demo_orders SET state = 'paid' WHERE customer = 'dan'});
	$r->within(60, q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'demo_outbox' AND lease < 0}, 1, 'a relay has the first of two messages of a customer');
	$r->slay($r->{relay});
	$slow->query_safe('COMMIT');
	$slow->quit;
	within(60, $node, $r->other, q{SELECT count(*) FROM inbox WHERE customer = 'dan'}, 1, 'outbox: it has died behind its write, and has acknowledged nothing');
	$r->holds(q{SELECT count(*) FROM mq_msgs WHERE channel_name = 'demo_outbox'}, 2, '... both messages are there');
	$r->{relay} = $r->start('relay.py', INBOX => $node->connstr($r->other), MQ_LEASE => '2 seconds');
	within(60, $node, $r->other, q{SELECT string_agg(event ->> 'state', ' ' ORDER BY n) FROM inbox WHERE customer = 'dan'}, 'placed paid', 'outbox: another goes on, in order');
	holds($node, $r->other, q{SELECT string_agg(copies::text, ' ' ORDER BY n) FROM inbox WHERE customer = 'dan'}, '2 1', '... the first has come again, and was written once');
	$r->within(60, q{SELECT count(*) FROM mq_msgs}, 0, '... and nothing is left');
	$r->holds(q{SELECT count(*) FROM mq_dead}, 0, '... or dead');
	$node->safe_psql($r->other, q{DELETE FROM inbox WHERE customer IN ('cyd', 'dan')});
}

my $outbox = MqRecipes->new($node, 'outbox',
	before => { 'Try it' => sub { my ($r) = @_; $r->{relay} = $r->start('relay.py', INBOX => $node->connstr($r->other), MQ_LEASE => '2 seconds') } },
	after => { 'Try it' => \&outbox_again });
$outbox->run;

# --- webhooks -------------------------------------------------------------------------------------

# A slow endpoint does not hold up the others, and a redirect is not followed.
sub webhooks_slow {
	my ($r) = @_;
	my @again = $r->sql(q{SELECT id FROM mq_dead WHERE channel_name = 'demo_webhooks'});
	is(scalar(grep { $_ } @again), 0, 'webhooks: nothing is dead after mq_redrive');
	$r->sql(q{
		UPDATE demo_endpoints SET enabled = id = 'good';
		INSERT INTO demo_endpoints VALUES ('slow', 'http://slow.example/hooks', 'secret of slow'), ('moved', 'http://moved.example/hooks', 'secret of moved');
		SELECT count(*) FROM generate_series(1, 4) AS n, demo_notify('order.paid', jsonb_build_object('order', 100 + n))});
	my $calls = sub { my ($channel) = @_; return qq{SELECT count(*) FROM mq_done WHERE channel_name = 'demo_webhooks' AND channel_args = '$channel' AND payload_json #>> '{data,order}' > '100'} };
	$r->within(60, $calls->('good'), 4, 'while an endpoint does not answer the others are called');
	$r->holds($calls->('slow'), 0, '... and it has answered nothing');
	$r->within(60, q{SELECT count(*) FROM mq_failures WHERE channel_args = 'moved' AND error = 'HTTP 302'}, qr/^[4-9]|\d\d/, 'a redirect is a failure');
	append_to_file("$r->{log}.open", '');
	$r->within(60, $calls->('slow'), 4, 'when it answers, it is called for all');
	# A customer whose endpoint never works: dead at once, for the test.
	$r->sql(q{UPDATE demo_endpoints SET enabled = false WHERE id = 'moved'});
	$r->within(60, q{SELECT count(*) FROM mq_dead WHERE channel_args = 'moved' AND error = 'the endpoint is not enabled'}, 4, 'an endpoint that was disabled is not called again');

	my @calls = lines($r->{log});
	my @bad = grep { !$_->{good} || !$_->{theirs} || $_->{forged} || $_->{status} == 401 } @calls;
	is_deeply(\@bad, [], 'webhooks: each call, also each retry, had the signature of its endpoint, and a changed body has not');
	cmp_ok(scalar @calls, '>', 15, '... of many');
	my @flaky = grep { $_->{host} eq 'flaky' } @calls;
	is(join(' ', map { $_->{status} } @flaky), '500 500 200', '... an endpoint that fails twice was called until it had done it, and no more');
	is(scalar(uniq(map { $_->{id} } @flaky)), 1, '... with one id');
	my @busy = grep { $_->{host} eq 'busy' } @calls;
	is(scalar @busy, 2, '... a busy one twice');
	cmp_ok($busy[1]{at} - $busy[0]{at}, '>=', 0.95, '... the second time not before it had said');
	is(scalar(grep { $_->{path} eq '/elsewhere' } @calls), 0, '... and nobody was sent elsewhere');
	my %ok;
	++$ok{"$_->{host} $_->{id}"} for grep { $_->{status} == 200 } @calls;
	is(max(values %ok), 1, '... each has succeeded once');
}

my $webhooks = MqRecipes->new($node, 'webhooks',
	before => {
		'Try it' => sub {
			my ($r) = @_;
			$r->program('verify.py');
			$r->{log} = $r->dir . '/calls';
			my (undef, $port) = $r->start_server('webhook_receiver.py', $r->{log});
			$r->start('webhooks.py', http_proxy => "http://127.0.0.1:$port", no_proxy => '', WEBHOOK_TIMEOUT => 60) for 1 .. 3;
		}
	},
	after => { 'Try it' => \&webhooks_slow });
$webhooks->run;

# --- mail -----------------------------------------------------------------------------------------

sub mail_rate {
	my ($r) = @_;
	my @mails = lines($r->{log});
	is(scalar @mails, 10, 'mail: ten mails were sent');
	is(scalar(uniq(map { $_->{id} } @mails)), 10, '... each with an id of its own');
	my @big = grep { $_->{to} =~ /\@big\.example$/ } @mails;
	is(join(' ', sort map { $_->{to} } @big), join(' ', map { "user$_\@big.example" } 1 .. 8), '... to each recipient one');
	# Eight calls at two a second, of which one and those of a tenth of a second may begin at once. That a machine is slow only adds to it.
	cmp_ok(max(map { $_->{at} } @big) - $r->{begin}, '>=', (8 - 1.2) / 2, '... to one domain not faster than its rate');
	my ($small) = grep { $_->{to} eq 'eve@small.example' } @mails;
	cmp_ok($small->{at}, '<', max(map { $_->{at} } @big), '... and to another domain while those wait');
	is(join(' ', map { $_->{to} } grep { $_->{to} =~ /later|none/ } @mails), 'busy@later.example', '... who was busy got it by a retry, and who is not there nothing');
	is(join(' ', uniq(map { $_->{subject} } @mails)), 'News', '... as it was written');
}

my $mail = MqRecipes->new($node, 'mail',
	before => {
		'Try it' => sub {
			my ($r) = @_;
			$r->{log} = $r->dir . '/mails';
			my (undef, $port) = $r->start_server('smtp_sink.py', $r->{log});
			$r->start('mailer.py', SMTP_HOST => '127.0.0.1', SMTP_PORT => $port) for 1 .. 2;
			$r->{begin} = time;
		}
	},
	after => { 'Try it' => \&mail_rate });
$mail->run;

# --- request and reply ----------------------------------------------------------------------------

# Many requests at once, answered by two programs: each gets its own answer. A program that is gone answers nothing, and the request
# is cancelled in time.
sub many_requests {
	my ($r) = @_;
	$r->sql(q{CREATE TABLE asked AS SELECT id, n FROM mq_send_many('demo_area', ARRAY(SELECT jsonb_build_object('width', n, 'height', 2) FROM generate_series(1, 100) n), keep => '1 hour') WITH ORDINALITY AS s (id, n)});
	$r->holds(q{SELECT count(*) FROM asked a, mq_wait(ARRAY(SELECT id FROM asked), '60 seconds') w WHERE w.id = a.id AND w.state = 'done' AND w.result = jsonb_build_object('area', 2 * a.n)}, 100, 'each of a hundred requests has its own answer');
	$r->stop(@{ $r->{running} });
	my ($rc, $out, $err) = $node->psql($r->db, q{CALL mq_call('demo_area', '{"width": 1, "height": 1}', timeout => '200 milliseconds')}, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	like($err, qr/57014/, 'request-reply: where nobody answers, the call ends in time');
	$r->holds(q{SELECT count(*) FROM mq_msgs}, 0, '... and nothing is left of it');
	$r->sql('DROP TABLE asked');
}

my $request = MqRecipes->new($node, 'request-reply',
	before => { 'Answered by a program' => sub { my ($r) = @_; $r->start('answer.py') for 1 .. 2 } },
	after => { 'Many at once' => \&many_requests });
$request->run;

$node->stop;
log_is_clean($node);
done_testing();
