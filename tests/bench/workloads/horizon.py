"""Held snapshots: W9, W10."""
import threading
import time

from measure import Result, alternate, expect, median, say, wait_until
from workloads import duration, workload


def hold(server, database='mq'):
    """A session with a snapshot of now."""
    holder = server.connect(database, 'holder')
    holder.query('BEGIN ISOLATION LEVEL REPEATABLE READ')
    holder.query('SELECT count(*) FROM pg_class')
    return holder


def tenths(samples, n):
    """Messages a second in each tenth of the run, of [(seconds, handled)]."""
    marks, at = [0.0], 0
    previous = (0.0, 0)
    for seconds, done in samples:
        while at < 10 and done >= n * (at + 1) / 10:
            goal, span = n * (at + 1) / 10, done - previous[1]
            marks.append(previous[0] + (seconds - previous[0]) * ((goal - previous[1]) / span if span else 1))
            at += 1
        previous = seconds, done
    return [n / 10 / max(marks[i + 1] - marks[i], 1e-6) for i in range(len(marks) - 1)]


@workload('W9', 'W1 × 5 while another session holds a snapshot from before the start', 160)
def held(bench):
    n, rates = bench.size(1000000, 100000), {'held': [], 'free': []}
    curves = {}
    mq = bench.mq
    result = Result('W9', held.title, {'messages': n})

    def run(label):
        mq.fill(n)
        holder = hold(bench.server) if label == 'held' else None
        samples = []
        took = mq.burn(n, samples=samples)
        if holder:
            holder.close()
        rates[label].append(tenths(samples, n))
        curves['a snapshot is held' if holder else 'none is held'] = [(at, max(0, n - done)) for at, done in samples]
        return n / took
    whole = alternate(bench.rounds, {'held': lambda: run('held'), 'free': lambda: run('free')})
    result.compare('handled while a snapshot is held, beside none', '/s', whole, 'held', 'free', 0.9)
    parts = min(len(parts) for label in rates for parts in rates[label])
    by_tenth = {label: [median([run[i] for run in rates[label]]) for i in range(parts)] for label in rates}
    ratios = [median([a[i] / b[i] for a, b in zip(rates['held'], rates['free'])]) for i in range(parts)]
    result.figure('the least ratio of a tenth of the run', '×', [min(ratios)], least=0.9)
    result.table('By tenths of the run (medians)', ['tenth'] + [str(i + 1) for i in range(parts)],
                 [['held, /s'] + [format(round(v), ',') for v in by_tenth['held']],
                  ['free, /s'] + [format(round(v), ',') for v in by_tenth['free']],
                  ['ratio'] + ['%.2f' % v for v in ratios]])
    result.plot('w9-rate.svg', 'Messages handled per second, by tenths of the run', 'tenth of the run', '/s',
                {'a snapshot is held': list(enumerate(by_tenth['held'], 1)), 'none is held': list(enumerate(by_tenth['free'], 1))})
    result.plot('w9-backlog.svg', 'Messages that wait, in the last round', 'seconds', 'messages', curves)
    return result


@workload('W10', '20 minutes at half of the W1 rate with four REPEATABLE READ readers of a minute each', 1260)
def long(bench):
    seconds, held_for = bench.size(1200, 20), bench.size(60, 3)
    mq = bench.mq
    burn = bench.size(200000, 20000)
    rate = median([mq.rate(burn) for _ in range(bench.size(3, 1))]) / 2
    result = Result('W10', long.title, {'seconds': seconds, 'messages a second': round(rate), 'seconds of a reader': held_for})
    say('  %d messages a second for %s' % (rate, duration(seconds)))
    mq.register()
    seen, before = {}, mq.totals()
    base = mq.handled_by_workers(seen)
    start, stop, sent, probes, troubles = time.monotonic(), threading.Event(), [0], [0], []
    began = float(mq.session.value('SELECT extract(epoch FROM clock_timestamp())'))

    def send():
        session, turn = mq.server.connect('mq', 'sender'), 0
        try:
            while not stop.is_set():
                owed = int((time.monotonic() - start) * rate) - sent[0]
                if owed < rate * 0.02:
                    time.sleep(0.01)
                    continue
                owed = min(owed, int(rate * 0.2))
                session.query("SELECT count(*) FROM mq_send_many('burn%d', ARRAY(SELECT jsonb_build_object('n', i) FROM generate_series(1, %d) i))"
                              % (turn % 10 + 1, owed))
                sent[0] += owed
                turn += 1
        except Exception as error:  # told by the main thread
            troubles.append(error)
        session.close()

    def read(at):
        if not stop.wait(at):
            holder = hold(bench.server)
            stop.wait(held_for)
            holder.close()
    # Single messages of a channel of their own, which tell how long they took.
    mq.session.query('TRUNCATE arrivals')
    mq.register('arrive(jsonb)', 1, 'probe')

    def probe():
        session = mq.server.connect('mq', 'probe')
        while not stop.wait(0.1):
            session.query("SELECT mq_send('probe1', jsonb_build_object('at', clock_timestamp()))")
            probes[0] += 1
        session.close()
    threads = [threading.Thread(target=send, daemon=True), threading.Thread(target=probe, daemon=True)]
    # Spread over the run, so that each is seen to be got over.
    threads += [threading.Thread(target=read, args=(seconds * (0.1 + 0.2 * i),), daemon=True) for i in range(4)]
    for thread in threads:
        thread.start()
    backlog, table, indexes, dead, handled, told = [], [], [], [], [], start
    while time.monotonic() - start < seconds:
        expect(not troubles, 'sending failed: %s' % troubles)
        now = time.monotonic() - start
        done = mq.handled_by_workers(seen) - base
        waiting = sent[0] + probes[0] - done
        sizes = mq.session.query("SELECT pg_table_size('mq_msgs'), pg_indexes_size('mq_msgs'), pg_stat_get_dead_tuples('mq_msgs'::regclass)")[0]
        backlog.append((now, max(0, waiting)))
        handled.append((now, done))
        table.append((now, int(sizes[0]) / 1e6))
        indexes.append((now, int(sizes[1]) / 1e6))
        dead.append((now, int(sizes[2])))
        if time.monotonic() - told > seconds / 20:
            told = time.monotonic()
            say('  %d s: sent %s, backlog %s, table %.0f MB, indexes %.0f MB, dead rows %s'
                % (now, format(sent[0], ','), format(waiting, ','), table[-1][1], indexes[-1][1], format(dead[-1][1], ',')))
        time.sleep(bench.size(1.0, 0.1))
    stop.set()
    for thread in threads:
        thread.join(30)
    wait_until(lambda: mq.totals()[0] - before[0] >= sent[0] + probes[0], 300, 'the backlog is handled', 0.1)
    mq.check(before, sent[0] + probes[0])
    mq.unregister()
    mq.unregister(1, 'probe')
    result.figure('largest backlog, in seconds of sending', 's', [max(value for _, value in backlog) / rate], most=1)
    result.figure('sent by the rate that was wanted', '×', [sent[0] / (rate * seconds)])
    both = [(t, a + b) for (t, a), (_, b) in zip(table, indexes)]
    early, late = [v for t, v in both if t < seconds * 0.7], [v for t, v in both if t >= seconds * 0.7]
    result.figure('table and indexes: the largest of the last 30 % of the time by the largest before', '×', [max(late) / max(early)], most=1.1)
    span = max(1, seconds // 120)
    waited = [[float(value) for value in row] for row in mq.session.query("""
        SELECT s * %d, percentile_cont(0.5) WITHIN GROUP (ORDER BY ms), percentile_cont(0.99) WITHIN GROUP (ORDER BY ms)
          FROM (SELECT floor((extract(epoch FROM sent) - %f) / %d) AS s, extract(epoch FROM at - sent) * 1000 AS ms FROM arrivals) a
         GROUP BY 1 ORDER BY 1""" % (span, began, span))]
    result.figure('single messages of another channel meanwhile: from the send to the handler, 99th percentile', 'ms', [float(mq.session.value(
        'SELECT percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM at - sent) * 1000) FROM arrivals'))])
    result.plot('w10-rate.svg', 'Messages handled per second', 'seconds', '/s', {'mq': [
        (b[0], (b[1] - a[1]) / (b[0] - a[0])) for a, b in zip(handled, handled[1:]) if b[0] > a[0]]})
    result.plot('w10-latency.svg', 'From the send of a single message to its handler', 'seconds', 'ms', {
        'median': [(at, p50) for at, p50, _ in waited], '99th percentile': [(at, p99) for at, _, p99 in waited]}, True)
    result.plot('w10-backlog.svg', 'Messages that wait', 'seconds', 'messages', {'backlog': backlog})
    result.plot('w10-size.svg', 'Size of the table and its indexes', 'seconds', 'MB', {'table': table, 'indexes': indexes})
    result.plot('w10-dead.svg', 'Dead rows of the table, as the server estimates', 'seconds', 'rows', {'dead rows': dead})
    mq.clear()
    return result
