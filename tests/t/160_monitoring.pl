# The files of monitoring/, with the programs that they are for: an exporter and Prometheus look at a server under load. The
# series move, the alerts are valid and one fires, the dashboard asks for series that there are, and the three exporters
# tell the same. Grafana and pgwatch are not run: of their files it is the queries that are tried.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use HTTP::Tiny;
use JSON::PP;
use MqTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $files = "$FindBin::RealBin/../../monitoring";
my %program;
for my $name (qw(prometheus promtool prometheus-sql-exporter prometheus-postgres-exporter)) {
	($program{$name}) = grep { -x } map { "$_/$name" } grep { length } $ENV{MQ_MONITORING} // '', split /:/, $ENV{PATH};
}
my @missing = grep { !$program{$_} } sort keys %program;
plan skip_all => "@missing not installed" if @missing;

my $dir = PostgreSQL::Test::Utils::tempdir();
my %running;    # name => IPC::Run harness
END { my $status = $?; eval { $_->kill_kill(grace => 10) } for values %running; $? = $status }

sub started {
	my ($name, @command) = @_;
	$running{$name} = IPC::Run::start(\@command, '<', \undef, '>', "$dir/$name.out", '2>', "$dir/$name.err");
}

# What the URL gives; undef: it does not answer with success.
sub fetched {
	my ($url) = @_;
	my $response = HTTP::Tiny->new(timeout => 10)->get($url);
	return $response->{success} ? $response->{content} : undef;
}

# What the body returns, as soon as that is true; or false after so many seconds.
sub until_true {
	my ($seconds, $body) = @_;
	my $end = time + $seconds;
	for (my $looks = 1;; ++$looks) {
		my $got = $body->();
		return $got if $got || (time > $end && $looks >= 5 * $seconds);
		usleep(100_000);
	}
}

sub told { my ($name) = @_; return "$name: " . slurp_file("$dir/$name.out") . slurp_file("$dir/$name.err") }

# --- the files ------------------------------------------------------------------------------------

sub promtool { my ($what, @arguments) = @_; command_ok([ $program{promtool}, @arguments ], $what) }
promtool('promtool accepts the alerts', 'check', 'rules', "$files/alerts.yml");
promtool('and the configuration, which names them', 'check', 'config', "$files/prometheus.yml");
promtool('each alert fires where it should, and not where all is well', 'test', 'rules', "$files/../tests/monitoring/alerts_test.yml");
my $alerts = slurp_file("$files/alerts.yml");
my $tested = slurp_file("$files/../tests/monitoring/alerts_test.yml");
my @alerts = $alerts =~ /- alert: (\w+)/g;
is(join(' ', grep { $tested !~ /alertname: $_\s+eval_time: \S+\s+exp_alerts/ } @alerts), '', 'there is no alert that is not tested so');

# --- a server under load --------------------------------------------------------------------------

my $db = 'app';
my $node = mq_node('monitoring');
$node->safe_psql('postgres', "CREATE DATABASE $db; CREATE ROLE mq_monitor LOGIN");
$node->safe_psql($db, q{
	CREATE SCHEMA queue; CREATE EXTENSION mq SCHEMA queue;
	GRANT USAGE ON SCHEMA queue TO mq_monitor;
	SET search_path = queue, public;
	CREATE FUNCTION handle(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
	  PERFORM pg_sleep(0.001);
	  IF message.name = 'fail' THEN RAISE 'no'; END IF;
	END $$;
	SELECT mq_grant('mq_monitor', 'monitor');
	SELECT mq_register_handler('mail', 'handle(mq_message)'), mq_register_handler('bills', 'handle(mq_message)');
	SELECT mq_limit('outside', max_pending => 5), mq_send('outside')});

sub queue { my ($sql) = @_; return $node->safe_psql($db, "SET search_path = queue, public; $sql") }

my $server = 'host=' . $node->host . '&port=' . $node->port . '&search_path=queue&sslmode=disable';
my %port = map { $_ => PostgreSQL::Test::Cluster::get_free_port() } qw(prometheus sql postgres);

# The file with changes, each of which finds something to change.
sub copied {
	my ($file, @changes) = @_;
	my $text = slurp_file("$files/$file");
	while (my ($from, $to) = splice @changes, 0, 2) {
		my $found = $text =~ s/$from/$to/g;
		ok($found, "$file has $from");
	}
	append_to_file("$dir/$file", $text);
	return "$dir/$file";
}

my $sql_file = copied('sql_exporter.yml', qr/interval: 15s/ => 'interval: 1s', qr/postgres:.*/ => "postgres://mq_monitor@/$db?$server");
$ENV{LOGLEVEL} = 'info';    # of the exporter
started('sql', $program{'prometheus-sql-exporter'}, '-config.file', $sql_file, '-web.listen-address', "127.0.0.1:$port{sql}");
copied('alerts.yml', qr/\bfor: \w+/ => 'for: 0s');
my $config = copied('prometheus.yml', qr/_interval: 15s/ => '_interval: 1s', qr/localhost:9237/ => "127.0.0.1:$port{sql}", qr/ - job_name: mq-postgres-exporter.*/s => '');
started('prometheus', $program{prometheus}, "--config.file=$config", "--web.listen-address=127.0.0.1:$port{prometheus}", "--storage.tsdb.path=$dir/tsdb", '--log.level=warn');

sub api {
	my ($path, %parameters) = @_;
	my $query = HTTP::Tiny->new->www_form_urlencode(\%parameters);
	my $content = fetched("http://127.0.0.1:$port{prometheus}/api/v1/$path?$query");
	return $content ? decode_json($content)->{data} : undef;
}

# The values of an expression by their labels; those that are the same in all series here left out.
sub values_of {
	my ($expression) = @_;
	my $data = api('query', query => $expression) or return {};
	return {
		map {
			my $metric = $_->{metric};
			join(' ', map { $metric->{$_} } grep { !/^(__name__|instance|job|host)$/ } sort keys %$metric) => $_->{value}[1]
		} @{ $data->{result} }
	};
}

sub comes {
	my ($expression, $what, $seconds) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return if ok(until_true($seconds // 60, sub { %{ values_of($expression) } }), "$what: $expression");
	my ($metric) = $expression =~ /(mq_\w+)/;
	diag(explain(values_of($metric)), told('sql'), told('prometheus'));
}

queue(q{SELECT count(*) FROM mq_send_many('mail', array_fill('{}'::jsonb, ARRAY[300]))});
comes('mq_handled_total{database="app",channel_name="mail"} == 300', 'what is handled shows');
queue(q{SELECT count(*) FROM mq_send_many('mail', array_fill('{}'::jsonb, ARRAY[200])); SELECT mq_send('mail', name => 'fail', retries => 0); SELECT mq_send('bills', delay => '1 hour')});
comes('mq_handled_total{database="app",channel_name="mail"} == 500', 'and moves on');
comes('increase(mq_handled_total{channel_name="mail"}[1m]) > 100', 'as a counter does');
comes($_, 'so do the others')
  for 'mq_failed_total{channel_name="mail"} == 1', 'mq_died_total{channel_name="mail"} == 1', 'mq_dead{channel_name="mail"} == 1', 'mq_scheduled{channel_name="bills"} == 1',
  'mq_max_pending{channel_name="outside"} == 5', 'mq_workers_running >= 1', 'mq_horizon_held_seconds >= 0', 'mq_health_ok{check="worker slots"} == 1';
comes('mq_handle_seconds_bucket{channel_name="mail",le="+Inf"} == 500', 'histograms show');
comes('mq_handle_seconds_count{channel_name="mail"} == 500 and mq_handle_seconds_sum{channel_name="mail"} > 0.4', 'with their sums');
comes('histogram_quantile(0.5, mq_handle_seconds_bucket{channel_name="mail"}) > 0.0005 < 0.2', 'and quantiles');
comes('mq_wait_seconds_count{channel_name="mail"} == 500 and ignoring (le) mq_wait_seconds_bucket{channel_name="mail",le="+Inf"} == 500', 'so do waits');

# --- alerts ---------------------------------------------------------------------------------------

sub firing {
	my ($name) = @_;
	my $data = api('alerts') or return 'no answer';
	return join ', ', sort map { $_->{labels}{check} // $_->{labels}{channel_name} // '' } grep { $_->{labels}{alertname} eq $name && $_->{state} eq 'firing' } @{ $data->{alerts} };
}
ok(until_true(60, sub { firing('MqMessagesDie') eq 'mail' }), 'an alert fires for the message that died') or diag(explain(api('alerts')));
is(firing('MqLimitReached'), '', 'none for limits');
queue(q{SELECT count(mq_send('outside')) FROM generate_series(1, 4)});
ok(until_true(60, sub { firing('MqLimitReached') eq 'limits reached' }), 'the limit of a channel is reached: the alert fires') or diag(explain(api('alerts')));
ok(until_true(60, sub { firing('MqLimitNear') eq 'outside' }), 'and the one that names the channel');
queue(q{SELECT mq_unlimit('outside')});
ok(until_true(60, sub { firing('MqLimitReached') eq '' }), 'it is over when the limit is gone');
set_and_reload($node, 'mq.max_workers' => 0);
ok(until_true(60, sub { firing('MqNoWorker') eq ', workers allowed' }), 'no worker: the alert fires') or diag(firing('MqNoWorker'));
set_and_reload($node, 'mq.max_workers' => 2);
ok(until_true(60, sub { firing('MqNoWorker') eq '' }), 'it is over when they may come again') or diag(firing('MqNoWorker'));
my $broken = join "\n", grep { /level=(warn|error)/ } split /\n/, told('prometheus');
is($broken, '', 'Prometheus evaluates all of them');

# --- the dashboard --------------------------------------------------------------------------------

queue(q{SELECT mq_limit('outside', max_pending => 50)});
comes('mq_max_pending == 50', 'there is a limit again');
my %series = map { $_ => 1 } grep { /^mq_/ } @{ api('label/__name__/values') };
my $dashboard = decode_json(slurp_file("$files/grafana.json"));
my (@asked, %ids);
for my $panel (@{ $dashboard->{panels} }) {
	++$ids{ $panel->{id} };
	push @asked, map { $_->{expr} } @{ $panel->{targets} };
}
is_deeply([ grep { $_ > 1 } values %ids ], [], 'each panel of the dashboard has a number of its own');
cmp_ok(scalar @asked, '>', 15, 'they ask for something');
for my $expression (@asked) {
	(my $query = $expression) =~ s/\$__rate_interval/1m/g;
	$query =~ s/\$(database|channel)/.*/g;
	ok(api('query', query => $query), "it is valid: $query");
}
my %named = map { $_ => 1 } map { /\b(mq_[a-z_]+)(?=[\[{\s)]|$)/g } @asked, $alerts =~ /expr: (.*?)\n\s+(?:for|labels):/gs;
is(join(' ', grep { !$series{$_} } sort keys %named), '', 'and alerts and dashboard name only series that there are');
is(join(' ', map { $_->{query}{query} =~ /\((mq_\w+)/ ? grep { !$series{$_} } $1 : () } grep { ref $_->{query} } @{ $dashboard->{templating}{list} }), '', 'as do its variables');

# --- the other exporters --------------------------------------------------------------------------

# The series by name, with labels and values, without types and comments.
sub exported {
	my ($text) = @_;
	my %exported;
	for (split /\n/, $text // '') {
		next unless /^(mq_\w+)\{(.*)\} (\S+)$/;
		my ($name, $labels, $value) = ($1, $2, $3);
		$labels = join ',', sort grep { !/^server=/ && $_ ne 'channel_name=""' } split /,(?=\w+=")/, $labels;
		$exported{$name}{$labels} = $value;
	}
	return \%exported;
}
{
	local $ENV{DATA_SOURCE_NAME} = "postgresql://mq_monitor@/$db?$server";
	started('postgres', $program{'prometheus-postgres-exporter'}, "--extend.query-path=$files/postgres_exporter.yml", "--web.listen-address=127.0.0.1:$port{postgres}",
		'--disable-default-metrics', '--disable-settings-metrics');
}
my $exported = {};
until_true(60, sub { $exported = exported(fetched("http://127.0.0.1:$port{postgres}/metrics")); %$exported });
is(join(' ', sort keys %$exported), join(' ', sort keys %series), 'postgres_exporter tells the same series') or diag(told('postgres'));
is($exported->{mq_handled_total}{'channel_name="mail",database="app"'}, 500, 'with the same values');
my @wanted = map { "$_->{metric}{le} $_->{value}[1]" } @{ api('query', query => 'sort(mq_handle_seconds_bucket{channel_name="mail"})')->{result} };
my %bucket = map { /le="([^"]+)"/ ? ($1 => $exported->{mq_handle_seconds_bucket}{$_}) : () } grep { /mail/ } keys %{ $exported->{mq_handle_seconds_bucket} };
is_deeply([ sort map { "$_ $bucket{$_}" } keys %bucket ], [ sort @wanted ], 'and the same buckets');

# pgwatch names a series as the metric and its column.
my $pgwatch = slurp_file("$files/pgwatch.yaml");
my %pgwatch;
while ($pgwatch =~ /^  (mq\w*):\n    description: .*\n    sqls:\n      15: \|\n((?: {8}.*\n)+)(?:    gauges: (.*)\n)?/gm) {
	my ($metric, $sql, $gauges) = ($1, $2, $3 // '');
	my $rows = $node->safe_psql($db, "SET ROLE mq_monitor; SET search_path = queue; SELECT json_agg(r) FROM ($sql) AS r");
	my $first = $rows ? decode_json($rows)->[0] : {};
	is(join(' ', grep { !defined $first->{$_} } keys %$first), '', "pgwatch's $metric has rows without NULL");
	for my $column (grep { !/^(?:tag_.*|epoch_ns)$/ } keys %$first) {
		$pgwatch{"${metric}_$column"} = 1;
		my $is_counter = $column =~ /_total$|bucket$|_count$|_sum$/;
		is($gauges =~ /\*|\b$column\b/ ? 'gauge' : 'counter', $is_counter ? 'counter' : 'gauge', "pgwatch's ${metric}_$column is of its kind");
	}
}
is(join(' ', sort keys %pgwatch), join(' ', sort keys %series), 'pgwatch tells the same series');
my ($preset) = $pgwatch =~ /^presets:\n(.*)/sm;
is(join(' ', sort $preset =~ /^      (mq\w*): \d+$/gm), join(' ', sort $pgwatch =~ /^  (mq\w*):\n    description: .*\n    sqls/gm), 'its preset has each metric');

for my $name (sort keys %running) {
	$running{$name}->kill_kill(grace => 10);
	delete $running{$name};
}
unlike(slurp_file("$dir/sql.out") . slurp_file("$dir/sql.err"), qr/"level":"error"|panic/, 'the exporter had no errors');
log_is_clean($node);
$node->stop;
done_testing();
