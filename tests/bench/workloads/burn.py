"""Burning down what was sent in bulk: W1 to W5, W14."""
from measure import Result, alternate
from workloads import workload


def noop_rates(bench, n, *sides):
    return alternate(bench.rounds, {side.label: lambda side=side: side.rate(n) for side in bench.there(*sides)})


@workload('W1', '200,000 unordered messages over 10 channels, one worker', 270, 'base', 'pgq', 'npm', 'original')
def one_worker(bench):
    n, slow = bench.size(200000, 20000), bench.size(20000, 2000)
    result = Result('W1', one_worker.title, {'messages': n, 'messages for the slower peers': slow})
    cpu = []
    sides = {side.label: lambda side=side: side.rate(n) for side in bench.there(bench.before, bench.pgq, bench.plain)}
    sides = {'mq': lambda: bench.mq.rate(n, cpu=cpu), **sides}
    if bench.original:
        sides['original schema'] = lambda: bench.original.rate(bench.size(n, slow))
    if bench.graphile:
        sides['graphile-worker, SQL handler'] = lambda: bench.graphile.rate(slow, kind='sql')
        sides['graphile-worker, JavaScript no-op'] = lambda: bench.graphile.rate(slow, kind='js')
    if bench.pgboss:
        sides['pg-boss, SQL handler'] = lambda: bench.pgboss.rate(slow, kind='sql')
        sides['pg-boss, JavaScript no-op'] = lambda: bench.pgboss.rate(slow, kind='js')
    rates = alternate(bench.rounds, sides)
    targets = {'PgQ': 1.0, 'original schema': 20, 'graphile-worker, SQL handler': 30}
    if bench.before:
        targets[bench.before.label] = 2.0
    for label in rates:
        if label != 'mq':
            result.compare('handled, beside ' + label, '/s', rates, 'mq', label, targets.get(label))
    result.figure("CPU of mq's worker for a message", 'µs', [used / n * 1e6 for used in cpu])
    return result


@workload('W2', 'the same with a handler of batches', 60, 'pgq')
def batches(bench):
    n = bench.size(200000, 20000)
    result = Result('W2', batches.title, {'messages': n, 'batch_size': 500})
    sides = {'mq': lambda: bench.mq.rate(n, handler='noop_batch(mq_message[])', options=', batch_size => 500')}
    sides['mq, a call for each message'] = lambda: bench.mq.rate(n)
    if bench.pgq:
        sides['PgQ'] = lambda: bench.pgq.rate(n)
    rates = alternate(bench.rounds, sides)
    if bench.pgq:
        result.compare('handled in batches of 500, beside PgQ', '/s', rates, 'mq', 'PgQ', 1.5)
    result.compare('beside a call for each message', '/s', rates, 'mq', 'mq, a call for each message')
    return result


@workload('W3', 'the same with two workers', 150)
def two_workers(bench):
    n = bench.size(1000000, 40000)
    result = Result('W3', two_workers.title, {'messages': n})

    def rate(workers, **settings):
        bench.server.set(mq__max_workers=workers, **settings)
        return bench.mq.rate(n)
    try:
        rates = alternate(bench.rounds, {'two workers': lambda: rate(2), 'one worker': lambda: rate(1)})
        off = alternate(bench.rounds, {'two workers': lambda: rate(2, synchronous_commit='off'),
                                       'one worker': lambda: rate(1, synchronous_commit='off')})
    finally:
        bench.server.set(mq__max_workers=None, synchronous_commit=None)
    result.compare('handled by two workers, beside one', '/s', rates, 'two workers', 'one worker', 1.7)
    result.compare('the same with synchronous_commit off', '/s', off, 'two workers', 'one worker')
    return result


@workload('W4', 'ordered messages', 150, 'base', 'original')
def ordered(bench):
    n = bench.size(100000, 10000)
    result = Result('W4', ordered.title, {'messages': n, 'unordered messages beside them': n})
    shapes = [('1 channel', 1), ('%s channels' % format(n // 100, ','), n // 100), ('%s channels' % format(n, ','), n)]
    sides = {'unordered': lambda: bench.mq.rate(n)}
    for text, channels in shapes:
        sides[text] = lambda channels=channels: bench.mq.rate(n, args=channels, ordered=True)
    if bench.before:
        for text, channels in shapes:
            sides['%s, %s' % (bench.before.label, text)] = lambda channels=channels: bench.before.rate(n, args=channels, ordered=True)
    few = bench.size(5000, 500)
    if bench.original:
        sides['original schema'] = lambda: bench.original.rate(few, args=few // 5, ordered=True, batch=500)
    rates = alternate(bench.rounds, sides)
    for text, channels in shapes:
        result.compare('%s of %s messages, beside as many unordered ones' % (text, format(n // channels, ',')), '/s', rates, text,
                       'unordered', 0.6)
    if bench.before:
        for text, channels in shapes:
            result.compare('%s, beside %s' % (text, bench.before.label), '/s', rates, text, '%s, %s' % (bench.before.label, text))
    if bench.original:
        result.compare('%s, beside the original schema with %s channels of 5' % (shapes[1][0], format(few // 5, ',')), '/s', rates,
                       shapes[1][0], 'original schema')
    return result


@workload('W5', 'W1 with a handler that inserts a row', 90, 'base')
def inserting(bench):
    n = bench.size(200000, 20000)
    result = Result('W5', inserting.title, {'messages': n, 'messages to a commit of the plain statements': 500})

    def effects(side, **options):
        side.session.query('TRUNCATE effects')
        rate = side.rate(n, **options)
        found = side.session.query('SELECT count(*), sum(n) FROM effects')[0]
        each = n // 10
        if found != [str(n), str(10 * each * (each + 1) // 2)]:
            raise AssertionError('%s: effects were lost or doubled: %s' % (side.label, found))
        return rate
    sides = {'mq': lambda: effects(bench.mq, handler='insert_row(jsonb)'),
             'plain statements': lambda: effects(bench.plain, procedure='drain_inserting')}
    if bench.before:
        sides[bench.before.label] = lambda: effects(bench.before, handler='insert_row(jsonb)')
    rates = alternate(bench.rounds, sides)
    result.compare('handled, beside the same deletes and inserts as plain statements in batches of 500', '/s', rates, 'mq',
                   'plain statements', 0.8)
    if bench.before:
        result.compare('beside ' + bench.before.label, '/s', rates, 'mq', bench.before.label)
    return result


@workload('W14', 'W1 where one message in ten fails once', 50)
def failing(bench):
    n = bench.size(200000, 20000)
    result = Result('W14', failing.title, {'messages': n, 'retry_backoff': '1 ms'})

    def rate():
        bench.mq.session.query('TRUNCATE mq_failures')
        bench.mq.fill(n, options=", retry_backoff => '1 ms'")
        # The payloads of each channel count from 1.
        return n / bench.mq.burn(n, handler='fail_once(mq_message)', failures=n // 10)
    rates = alternate(bench.rounds, {'one in ten fails once': rate, 'none fails': lambda: bench.mq.rate(n)})
    result.compare('handled, beside W1', '/s', rates, 'one in ten fails once', 'none fails', 0.5)
    return result
