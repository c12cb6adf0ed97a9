"""What a message writes and touches: W15, W18."""
import time

from measure import Result, alternate, median
from workloads import workload


def buffers(side):
    """Buffers touched in the side's database so far, all statistics being in."""
    time.sleep(2.5)
    side.session.query('SELECT pg_stat_force_next_flush()')
    side.session.query('SELECT pg_stat_clear_snapshot()')
    return int(side.server.session('postgres').value(
        "SELECT blks_hit + blks_read FROM pg_stat_database WHERE datname = '%s'" % side.database))


def cost(side, n, touched=True):
    """Per message: bytes of WAL sent, bytes of WAL handled, buffers touched while it was handled."""
    side.session.query('CHECKPOINT')
    at_first = side.server.wal()
    side.fill(n, settle=False)
    sent = side.server.wal() - at_first
    side.settle()
    before = buffers(side) if touched else 0
    start = side.server.wal()
    side.burn(n)
    handled = side.server.wal() - start
    return sent / n, handled / n, (buffers(side) - before) / n if touched else 0


@workload('W15', 'WAL and buffers touched for a message handled', 260, 'base', 'pgq', 'original')
def touched(bench):
    n = bench.size(100000, 10000)
    result = Result('W15', touched.title, {'messages': n, 'full_page_writes': 'off', 'autovacuum': 'off'})
    found = {}
    sides = bench.there(bench.mq, bench.before, bench.original, bench.pgq, bench.plain)
    with quiet(sides):
        def measured(side):
            found.setdefault(side.label, []).append(cost(side, n))
            return found[side.label][-1][1]
        wal = alternate(bench.rounds, {side.label: lambda side=side: measured(side) for side in sides}, '{:.0f} bytes')
    pages = {label: [values[2] for values in found[label]] for label in found}
    for label in wal:
        if label == 'mq':
            continue
        target = 2.0 if label == 'original schema' else None
        if min(wal[label]) > 1:
            result.compare('bytes of WAL for a message handled, beside ' + label, 'bytes', wal, 'mq', label, target, 'less')
        result.compare('buffers touched for a message handled, beside ' + label, '', pages, 'mq', label, target, 'less')
    result.table('For a message handled (medians)', ['', 'bytes of WAL', 'buffers'],
                 [[label, '%.0f' % median(wal[label]), '%.1f' % median(pages[label])] for label in wal])
    return result


@workload('W18', 'bytes of WAL for a message, sent and handled', 100, 'base', 'pgq')
def written(bench):
    n = bench.size(200000, 20000)
    result = Result('W18', written.title, {'messages': n, 'autovacuum': 'off'})
    rows, totals = [], {}
    for images in ('off', 'on'):
        sides = bench.there(bench.mq, bench.before, bench.pgq, bench.plain)
        with quiet(sides, images):
            found = {side.label: [] for side in sides}

            def measured(side):
                found[side.label].append(cost(side, n, touched=False))
                return sum(found[side.label][-1])
            totals[images] = alternate(1 if bench.quick or images == 'on' else 3,
                                       {side.label: lambda side=side: measured(side) for side in sides}, '{:.0f} bytes')
        for label in found:
            rows.append([label, 'without' if images == 'off' else 'with, after a checkpoint'] + [
                '%.0f' % median([values[i] for values in found[label]]) for i in (0, 1)] + ['%.0f' % median(totals[images][label])])
    result.figure('sent and handled, without full-page images', 'bytes', totals['off']['mq'], most=400)
    result.figure('sent and handled, with full-page images after a checkpoint', 'bytes', totals['on']['mq'])
    if bench.before:
        result.compare('without full-page images, beside ' + bench.before.label, 'bytes', totals['off'], 'mq', bench.before.label,
                       better='less')
    result.table('Bytes of WAL for a message (medians)', ['', 'full-page images', 'sent', 'handled', 'together'], rows)
    return result


class quiet:
    """While it lasts the servers of the sides write no full-page images and vacuum nothing by themselves."""

    def __init__(self, sides, images='off'):
        self.servers, self.images = {side.server for side in sides}, images

    def __enter__(self):
        for server in self.servers:
            server.set(full_page_writes=self.images, autovacuum='off')

    def __exit__(self, *_):
        for server in self.servers:
            server.set(full_page_writes=None, autovacuum=None)
