"""Layouts of the rows, beside each other: what W1, W4, W14, W17, W18 and W20 give with each."""
from measure import Result, alternate, median, say
from sides.mq import Mq
from workloads import workload
from workloads.outside import drain
from workloads.sending import PAYLOADS, timed
from workloads.wal import cost, quiet

# Each is a change of the layout that mq has: one row for a message, two index entries for one without channel_args.
CHANGES = {
    'a third index entry for each head': [
        'CREATE INDEX third ON mq_msgs (channel_name, channel_key, attempt_at, seq) '
        "WHERE after_message_id IS NULL OR after_message_id = '00000000-0000-0000-0000-000000000000'"],
    'payloads of more than a few bytes in a table of their own': [
        # The TOAST table is that table, with a key of its own. Without the target it gets what makes a row too long.
        'ALTER TABLE mq_msgs ALTER message_json SET STORAGE EXTERNAL',
        'ALTER TABLE mq_msgs SET (toast_tuple_target = 128)'],
}


class Layout(Mq):
    def __init__(self, server, label, number, changes):
        self.label, self.database, self.changes = label, 'layout%d' % number, changes
        super().__init__(server)

    def open(self):
        super().open()
        for sql in self.changes:
            self.session.query(sql)


@workload('layouts', 'layouts of the rows, beside each other', 420, 'base')
def layouts(bench):
    n, few = bench.size(100000, 5000), bench.size(10000, 1000)
    # Long enough for a table of its own; stored as it is.
    pad = "ARRAY(SELECT jsonb_build_object('n', i, 'text', repeat(md5(i::text), 8)) FROM generate_series(1, %d) i)"
    result = Result('layouts', layouts.title, {'messages': n, 'of W17': few, 'rounds of the bytes of WAL': 1})
    sides = [Layout(bench.server, 'one row, two index entries', 0, [])]
    for number, (label, changes) in enumerate(CHANGES.items(), 1):
        sides.append(Layout(bench.server, label, number, changes))
    if bench.before:
        sides.append(bench.before)

    def one_by_one(measured, shown='{:,.0f}/s'):
        return alternate(min(bench.rounds, 3), {side.label: lambda side=side: measured(side) for side in sides}, shown)

    def failing(side):
        side.session.query('TRUNCATE mq_failures')
        side.fill(n, options=", retry_backoff => '1 ms'")
        return n / side.burn(n, handler='fail_once(mq_message)', failures=n // 10)

    def outside(side):
        side.fill(few, args=1000 if few >= 1000 else 100, name='outside')
        return drain(side, few, 8, 10, True)[0]

    def sending(side, payloads):
        side.clear()
        rate = timed(side.session, "SELECT count(*) FROM mq_send_many('bulk', %s)" % payloads % n, n, 'SELECT count(*) FROM mq_msgs')
        side.clear()
        return rate

    def with_text(side):
        """W1 with payloads of some 280 bytes."""
        side.session.query("SELECT count(*) FROM generate_series(1, 10) c, mq_send_many('burn' || c, %s)" % pad % (n // 10))
        side.settle()
        return n / side.burn(n)
    columns = {
        'W1, /s': one_by_one(lambda side: side.rate(n)),
        'W1 with 280 bytes, /s': one_by_one(with_text),
        'W4 (100 messages a channel), /s': one_by_one(lambda side: side.rate(n, args=n // 100, ordered=True)),
        'W14, /s': one_by_one(failing),
        'W17 (1,000 channels), /s': one_by_one(outside),
        'W20, /s': one_by_one(lambda side: sending(side, PAYLOADS)),
        'W20 with 280 bytes, /s': one_by_one(lambda side: sending(side, pad)),
    }
    with quiet(sides):
        say('  W18')
        written = {side.label: cost(side, n, touched=False) for side in sides}
    rows = [[side.label] + [format(round(median(figures[side.label])), ',') for figures in columns.values()]
            + ['%.0f + %.0f' % written[side.label][:2]] for side in sides]
    result.table('Medians; two tables for a message, and two index entries in each, are what mq 0.1.0 has',
                 ['layout', *columns, 'W18, bytes sent + handled'], rows)
    for side in sides:
        if side is not bench.before:
            side.watcher.close()
            bench.server.drop(side.database)
    return result
