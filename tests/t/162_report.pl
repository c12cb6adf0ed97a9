# tools/report.sql on a live queue: complete, nothing of a channel's name or an error is markup, and, where Chromium is
# there, how it looks in light and in dark.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use MqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = mq_node('report', 'mq.max_workers' => 1);
my $db = 'postgres';
my $report = "$FindBin::RealBin/../../tools/report.sql";
sub sql { return $node->safe_psql($db, shift) }
sub report {
	my ($file, @options) = @_;
	my ($out, $err) = ('', '');
	my $done = IPC::Run::run([ 'psql', '-X', '-q', '-d', $node->connstr($db), '-v', 'seconds=0.2', @options, '-f', $report ], '>', \$out, '2>', \$err);
	append_to_file($file, $out);
	return ($done, $out, $err);
}
my $tmp = PostgreSQL::Test::Utils::tempdir();

my ($done, $out, $err) = report("$tmp/none.html");
like($err, qr/the database has no extension mq/, 'without the extension it says so');

# --- an empty queue -----------------------------------------------------------------------------------------------

sql('CREATE EXTENSION mq');
($done, $out, $err) = report("$tmp/empty.html");
ok($done && $err eq '', 'an empty queue has a report') or diag $err;
like($out, qr{<h2>Health</h2>\s*<p class="\w+">[^<]*mq_health\(\)}, '... with its health');
like($out, qr/Nothing was handled meanwhile.*Nothing has been handled yet/s, '... and says where there is nothing to plot');
like($out, qr{</body></html>\s*$}, '... to its end');

# --- a live one ---------------------------------------------------------------------------------------------------

sql(q{
	CREATE FUNCTION handle(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN IF (m.payload_json #>> '{}')::int % 3 = 0 THEN RAISE 'no <i>luck</i> & "such"'; END IF; END $$;
	SELECT mq_register_handler('work', 'handle(mq_message)');
	SELECT mq_schedule('nightly <b>', '0 3 * * *', 'work');
	SELECT mq_limit('work', max_pending => 1234);
	SELECT count(mq_send('work', to_jsonb(n), retries => 1, retry_backoff => '1 ms')) FROM generate_series(1, 90) n;
	SELECT count(mq_send('<script>alert("1")</script> & a name that is long', '1')) FROM generate_series(1, 7) n;
	SELECT count(mq_send(repeat('消息', 20), '1')), mq_pause('paused'), mq_send('paused') FROM generate_series(1, 3) n});
within(60, $node, $db, q{SELECT handled || ' ' || dead FROM mq_stats WHERE channel_name = 'work'}, '60 30', 'some are handled, and some dead');
sql(q{SELECT count(mq_send('later', delay => '1 hour')) FROM generate_series(1, 5)});
my $holder = $node->background_psql($db, on_error_die => 1);
$holder->query_safe("SET application_name = 'holder'; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1; SELECT pg_current_xact_id()");
($done, $out, $err) = report("$tmp/live.html");
ok($done && $err eq '', 'a live queue has a report') or diag $err;
for (
	[ qr{Checks of mq_health\(\) that are not ok: [1-9]}, 'what is not well' ],
	[ qr{<text [^>]*>work</text>}, 'the channel names' ],
	[ qr{>1, paused, oldest|>1, paused}, 'a paused one' ],
	[ qr{<rect class="c" [^>]*><title>later: 5 scheduled}, 'the depth of each' ],
	[ qr{<rect class="e" [^>]*><title>work: 30 dead}, 'dead messages' ],
	[ qr{<title>work, wait: [0-9.]+, [0-9.]+, [0-9.]+ s</title>}, 'percentiles' ],
	[ qr{no &lt;i&gt;luck&lt;/i&gt; &amp; &quot;such&quot;</td>\s*<td align="right">60</td>\s*<td align="right">30</td>}, 'what fails most' ],
	[ qr{<td align="left">exhausted</td>}, 'why messages are dead' ],
	[ qr{holder}, 'who holds the horizon' ],
	[ qr{nightly &lt;b&gt;}, 'schedules' ],
	[ qr{<td align="right">1234</td>}, 'limits' ]) {
	like($out, $_->[0], "it shows $_->[1]");
}
unlike($out, qr/<script|<i>|nightly <b>/, 'names and errors are no markup');
unlike($out, qr{(?:src|href)=|url\(|\@import}, 'it needs nothing else');

# Rates are those of the time between the looks.
my $sender = $node->background_psql($db, on_error_die => 1);
$sender->query_until(qr/sends/, "\\echo sends\n" . q{SELECT pg_sleep(1), count(mq_send('work', to_jsonb(1))) FROM generate_series(1, 200);} . "\n");
($done, $out, $err) = report("$tmp/rates.html", '-v', 'seconds=4', '-v', 'top=1');
like($out, qr{Messages of each|Messages a second of each channel name.*>work</text>}s, 'what was handled between two looks is a rate');
$sender->quit;
like($out, qr{channel names, of which those with the most messages are shown}, 'top is how many names the plots have');

# Fewer rights.
sql(q{CREATE ROLE watcher LOGIN; SELECT mq_grant('watcher', 'monitor')});
($done, $out, $err) = report("$tmp/watcher.html", '-U', 'watcher');
ok($done && $err eq '', 'the right monitor is enough') or diag $err;
like($out, qr{may not read mq_failures.*may not read mq_dead.*</html>}s, '... but for what needs admin');

# --- how it looks -------------------------------------------------------------------------------------------------

SKIP: {
	my ($chromium) = grep { -x } map { "$_/chromium" } split /:/, $ENV{PATH};
	skip 'since Chromium is not there', 8 unless $chromium;
	# What the page is like is written into its body, which Chromium then prints.
	append_to_file("$tmp/live.html", <<'S');
<script>
const d = document.body.dataset, svgs = [...document.querySelectorAll('svg')];
d.back = getComputedStyle(document.body).backgroundColor;
d.ink = getComputedStyle(document.querySelector('svg text')).fill;
d.fits = svgs.every(s => [...s.querySelectorAll('text, rect')].every(t => { const b = t.getBBox(); return b.x >= 0 && b.x + b.width <= s.viewBox.baseVal.width && b.y + b.height <= s.viewBox.baseVal.height }));
d.wide = document.documentElement.scrollWidth > innerWidth;
d.plots = svgs.length;
</script>
S
	for ([ 'light', 1, 'rgb(255, 255, 255)', 'rgb(29, 35, 41)' ], [ 'dark', 0, 'rgb(20, 24, 28)', 'rgb(228, 232, 236)' ]) {
		my ($scheme, $number, $back, $ink) = @$_;
		my ($dom, $said) = ('', '');
		IPC::Run::run([ 'timeout', '120', $chromium, '--headless', '--no-sandbox', '--disable-gpu', "--user-data-dir=$tmp/$scheme", "--blink-settings=preferredColorScheme=$number",
			'--window-size=1100,900', '--dump-dom', "file://$tmp/live.html" ], '>', \$dom, '2>', \$said);
		my ($body) = $dom =~ /(<body[^>]*>)/;
		like($body // $said, qr/data-back="\Q$back\E" data-ink="\Q$ink\E"/, "in $scheme it has the colours of that");
		like($body // '', qr/data-fits="true"/, '... and the plots hold what is in them');
		like($body // '', qr/data-wide="false"/, '... and the page is no wider than its window');
		like($body // '', qr/data-plots="2"/, '... and there are those of which there is something') ;
	}
}

$holder->quit;
$node->stop;
log_is_clean($node);
done_testing();
