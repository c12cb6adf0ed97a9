"""How long single messages take: W6, W11, W19."""
import threading
import time

import measure
from measure import Result, expect, percentile, say, wait_until
from workloads import workload


def by_turns(sides, count, gap):
    """Sends messages numbered from 1, one each so many seconds, to each of the sides ({label: (session, statement)}) by
    turns. Returns {label: {number: (begun, returned)}} by the clock."""
    times, start, sent = {label: {} for label in sides}, time.monotonic(), 0
    for n in range(1, count + 1):
        for label in list(sides) if n % 2 else list(sides)[::-1]:
            session, statement = sides[label]
            sent += 1
            time.sleep(max(0, start + sent * gap - time.monotonic()))
            begun = time.time()
            session.run(statement, n)
            times[label][n] = begun, time.time()
    return times


def paced(session, statement, count, gap):
    """Sends messages numbered from 1, one each so many seconds. Returns {number: (begun, returned)} by the clock."""
    return by_turns({'': (session, statement)}, count, gap)['']


def arrivals(side, count, seconds=60):
    """{number: when its handler ran}, when all have arrived, each once."""
    wait_until(lambda: int(side.session.value('SELECT count(*) FROM arrivals')) >= count, seconds, 'all messages arrive', 0.05)
    rows = side.session.query('SELECT n, extract(epoch FROM at) FROM arrivals')
    found = {int(n): float(at) for n, at in rows}
    expect(len(rows) == count == len(found), '%s: %d arrivals of %d messages' % (side.label, len(rows), count))
    return found


def waits(times, arrived):
    """Milliseconds from the return of the commit to the handler."""
    return [(arrived[n] - times[n][1]) * 1000 for n in times]


SEND = {'mq': "SELECT mq_send('latency1', jsonb_build_object('n', $1::int))",
        'graphile-worker': "SELECT graphile_worker.add_job('burn', json_build_object('n', $1::int))"}


@workload('W6', 'single messages, 50 a second, one idle worker', 140, 'base', 'npm')
def single(bench):
    count = bench.size(400, 50)
    result = Result('W6', single.title, {'messages': count})
    medians, tails, totals = {}, {}, {}

    def measure_round(sides, statement):
        # What is compared with itself gets its messages by turns, so that both meet the same moments of the machine.
        sessions = {}
        for side in sides:
            side.session.query('TRUNCATE arrivals')
            sessions[side.label] = side.server.connect(side.database, 'sender'), statement
        times = by_turns(sessions, count, 0.02 / len(sides))
        for side in sides:
            sessions[side.label][0].close()
            arrived, sent = arrivals(side, count), times[side.label]
            found = waits(sent, arrived)
            medians.setdefault(side.label, []).append(percentile(found, 0.5))
            tails.setdefault(side.label, []).append(percentile(found, 0.99))
            totals.setdefault(side.label, []).append(percentile([(arrived[n] - sent[n][0]) * 1000 for n in sent], 0.5))
            say('  %s %.3f ms, and %.3f ms from the start of the sending' % (side.label, medians[side.label][-1], totals[side.label][-1]))
    groups = [(bench.there(bench.mq, bench.before), SEND['mq'])]
    for side in groups[0][0]:
        side.register('arrive(jsonb)', 1, 'latency')
    if bench.graphile:
        bench.graphile.tell('serve', 'arrive')
        groups.append(([bench.graphile], SEND['graphile-worker']))
    time.sleep(1)
    try:
        for turn in range(bench.rounds):
            for group in groups if turn % 2 == 0 else groups[::-1]:
                measure_round(*group)
    finally:
        if bench.graphile:
            bench.graphile.tell('stop')
        for side in groups[0][0]:
            side.unregister(1, 'latency')
    result.figure("from the return of the sender's commit to the handler, median", 'ms', medians['mq'], most=0.3)
    result.figure('the same, 99th percentile', 'ms', tails['mq'], most=2)
    # A handler may run before the sender hears of its commit, which no ratio can say.
    floored = {label: [max(value, 0.01) for value in values] for label, values in medians.items()}
    for label in medians:
        if label != 'mq':
            result.compare('median, beside ' + label, 'ms', floored, 'mq', label, 5 if label == 'graphile-worker' else None, 'less')
            result.compare('median from the start of the sending, beside ' + label, 'ms', totals, 'mq', label, better='less')
    result.table('Milliseconds to the handler (medians of the rounds)',
                 ['', 'from the return of the commit, p50', 'the same, p99', 'from the start of the sending, p50'],
                 [[label] + ['%.3f' % measure.median(kind[label]) for kind in (medians, tails, totals)] for label in medians])
    return result


# Slow enough that one session, which shares the machine's cores, can send as much as the worker handles.
READ = """
    CREATE OR REPLACE FUNCTION read(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
      BEGIN
        FOR i IN 1 .. 12 LOOP
          PERFORM (payload ->> 'n')::int;
        END LOOP;
      END $$"""


@workload('W11', 'one tenant with 1,000,000 ready, another sends one message each second', 330)
def tenants(bench):
    backlog, seconds, gap = bench.size(1000000, 50000), bench.size(60, 6), bench.size(1.0, 0.2)
    mq = bench.mq
    mq.session.query(READ)
    result = Result('W11', tenants.title, {'ready': backlog, 'seconds of a round': seconds, 'seconds between messages': gap,
                                                'backend_flush_after': '256kB'})
    mq.session.query('TRUNCATE arrivals')
    bench.server.set(backend_flush_after='256kB')
    bench.server.keep_wal_files(bench.size(8192, 256))
    big = "SELECT count(*) FROM mq_send_many('tenant1', ARRAY(SELECT jsonb_build_object('n', i) FROM generate_series(1, %d) i), channel_args => 'big')"
    mq.session.query(big % backlog)
    mq.settle()
    seen = {}
    base, sent, before = mq.handled_by_workers(seen), [backlog], mq.totals()
    stop, least = threading.Event(), [backlog]
    feeding = mq.server.connect('mq', 'feeder')

    def feed():
        while not stop.is_set():
            left = sent[0] - (mq.handled_by_workers(seen) - base)
            least[0] = min(least[0], left)
            if left < backlog:
                feeding.query(big % 20000)
                sent[0] += 20000
            else:
                time.sleep(0.01)
    feeder = threading.Thread(target=feed, daemon=True)
    mq.session.query("SELECT mq_register_handler('tenant1', 'read(jsonb)'), mq_register_handler('tenant1', 'arrive(jsonb)', message_name => 'note')")
    feeder.start()
    began = time.monotonic()
    each = int(seconds / gap)
    count = each * bench.rounds
    sender = mq.server.connect('mq', 'sender')
    times = paced(sender, "SELECT mq_send('tenant1', jsonb_build_object('n', $1::int), 'note', channel_args => 'small')", count, gap)
    found = waits(times, arrivals(mq, count))  # in the order of the sending
    rate = (mq.handled_by_workers(seen) - base) / (time.monotonic() - began)
    stop.set()
    feeder.join()
    for connection in (sender, feeding):
        connection.close()
    wait_until(lambda: mq.totals()[0] - before[0] >= sent[0] + count, 300, 'the backlog is handled', 0.2)
    mq.check(before, sent[0] + count)
    mq.session.query("SELECT mq_unregister_handler('tenant1'), mq_unregister_handler('tenant1', 'note')")
    bench.server.set(min_wal_size=None, backend_flush_after=None)
    result.sizes['least that was ready'] = least[0]
    by_round = [found[i * each:(i + 1) * each] for i in range(bench.rounds)]
    result.figure('wait of the second tenant, 99th percentile', 'ms', [percentile(part, 0.99) for part in by_round], most=50)
    result.figure('the same, median', 'ms', [percentile(part, 0.5) for part in by_round])
    result.figure('the same, 99th percentile of all rounds together', 'ms', [percentile(found, 0.99)])
    result.figure("handled of the first tenant's", '/s', [rate])
    return result


@workload('W19', 'head of line: a slow channel and a fast one of the same role', 250)
def head_of_line(bench):
    count, sleeps = bench.size(160, 40), bench.size(10, 3)
    mq = bench.mq
    result = Result('W19', head_of_line.title, {'fast messages': count, 'a second': 20, 'seconds of a slow call': sleeps})
    mq.session.query("""
        CREATE OR REPLACE FUNCTION slow(payload jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(%d); END';
        CREATE OR REPLACE FUNCTION fast(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
          BEGIN
            INSERT INTO arrivals VALUES ((payload ->> 'n')::int, clock_timestamp());
            PERFORM pg_sleep(0.001);
          END $$""" % sleeps)
    mq.session.query("SELECT mq_register_handler('fast', 'fast(jsonb)'), mq_register_handler('slow', 'slow(jsonb)')")

    def empty():
        return mq.session.value('SELECT NOT EXISTS (SELECT FROM mq_msgs)') == 't'

    def tail(slow):
        mq.session.query('TRUNCATE arrivals')
        mq.session.query("SELECT mq_send('slow') FROM generate_series(1, %d)" % slow)
        sender = mq.server.connect('mq', 'sender')
        found = waits(times := paced(sender, "SELECT mq_send('fast', jsonb_build_object('n', $1::int))", count, 0.05),
                      arrivals(mq, count, 120))
        sender.close()
        expect(len(times) == count, 'all were sent')
        wait_until(empty, 120, 'the slow calls end', 0.1)
        return percentile(found, 0.99)
    try:
        for workers in (4, 2):
            bench.server.set(mq__max_workers=workers)
            label = '%d slow calls' % (workers - 1) if workers > 2 else '1 slow call'
            rates = measure.alternate(bench.rounds, {label: lambda: tail(workers - 1), 'none': lambda: tail(0)}, '{:.2f} ms')
            result.figure('wait of the fast channel beside %s under mq.max_workers = %d, 99th percentile' % (label, workers), 'ms',
                          rates[label], most=50)
            result.figure('the same without slow calls', 'ms', rates['none'])
        for workers in (4, 2):
            bench.server.set(mq__max_workers=workers)
            mq.session.query("SELECT mq_send('slow') FROM generate_series(1, %d)" % (4 * (workers // 2)))
            time.sleep(1)
            mq.session.query("SELECT mq_send('fast', '{\"n\": 0}')")
            time.sleep(sleeps / 4)
            said = mq.session.query('SELECT "check", detail FROM mq_health() WHERE NOT ok')
            result.figure('mq_health() names an obstacle while slow calls take all %d workers' % workers, '', [min(1, len(said))], exactly=1)
            for check, detail in said:
                say('  mq_health(): %s: %s' % (check, detail))
            if said:
                result.remark('With as many slow calls as workers (%d) `mq_health()` says, under `%s`: %s' % (workers, *said[0]))
            wait_until(empty, 120, 'the slow calls end', 0.1)
    finally:
        bench.server.set(mq__max_workers=None)
        mq.session.query("SELECT mq_unregister_handler('fast'), mq_unregister_handler('slow')")
    return result
