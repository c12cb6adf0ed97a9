"""W17: consumers outside of the server, which poll and delete."""
import multiprocessing
import threading
import time

import wire
from measure import Result, Wrong, alternate, expect
from workloads import workload


# Seconds after which a run of clients ends with what it has done: the original takes many minutes for some of these.
LIMIT = 8


def consume(where, database, channels, batch, out):
    """A client: polls batches and deletes them until nothing is left or the time is over. Puts the ids that it was given,
    how often the server undid one of its statements to end a deadlock, an error, and how long it took."""
    session, got, undone = wire.Connection(*where, database, application='consumer'), [], 0
    start = time.monotonic()
    poll = 'SELECT id FROM mq_poll($1::text[], %d)' % batch

    def patient(sql, *values):
        nonlocal undone
        while True:
            try:
                return session.run(sql, *values)
            except wire.SqlError as error:
                if error.sqlstate not in ('40P01', '40001'):
                    raise
                undone += 1
    try:
        while time.monotonic() < start + LIMIT:
            ids = [row[0] for row in patient(poll, channels) if row[0] is not None]
            if ids:
                patient('SELECT mq_delete($1::uuid[])', '{%s}' % ','.join(ids))
                got.extend(ids)
            elif session.run("SELECT NOT EXISTS (SELECT FROM mq_msgs WHERE channel_name LIKE 'outside%')")[0][0] == 't':
                break
            else:
                time.sleep(0.002)
    except Exception as error:  # told by the main program
        out.put((got, undone, repr(error), 0))
        return
    out.put((got, undone, None, time.monotonic() - start))


def floor(side, n):
    """Messages a second of one client that takes what no queue can do without: a row is changed in one transaction, and
    removed in another."""
    session = side.server.connect(side.database, 'floor')
    session.query('CREATE TABLE floor AS SELECT i AS id, false AS taken FROM generate_series(1, %d) i;'
                  'ALTER TABLE floor ADD PRIMARY KEY (id)' % n)
    session.query('VACUUM ANALYZE floor')
    start, done = time.monotonic(), 0
    while done < n and time.monotonic() < start + LIMIT:
        done += 1
        session.run('UPDATE floor SET taken = true WHERE id = $1::int RETURNING id', str(done))
        session.run('DELETE FROM floor WHERE id = $1::int', str(done))
    took = time.monotonic() - start
    session.query('DROP TABLE floor')
    session.close()
    return done / took


def drain(side, n, clients, batch, strict):
    """Messages a second that so many clients handle together, until all are or LIMIT seconds have passed. strict: nothing
    twice, no deadlock."""
    out = multiprocessing.Queue()
    where, channels = (side.server.directory, side.server.port), '{outside1}'
    processes = [multiprocessing.Process(target=consume, args=(where, side.database, channels, batch, out)) for _ in range(clients)]
    for process in processes:
        process.start()
    try:
        told = [out.get(timeout=300) for _ in processes]
    finally:
        for process in processes:
            process.join(1)
            if process.is_alive():
                process.terminate()
    got = [id for ids, *_ in told for id in ids]
    errors = [error for _, _, error, _ in told if error]
    expect(not errors, '%s: %s' % (side.label, errors))
    handled = len(set(got))
    left = int(side.session.value("SELECT count(*) FROM mq_msgs WHERE channel_name = 'outside1'"))
    twice, undone = len(got) - handled, sum(undone for _, undone, *_ in told)
    expect(handled + left == n, '%s: of %d messages %d were handled and %d are left' % (side.label, n, handled, left))
    if strict and (twice or undone):
        raise Wrong('%s: %d messages twice, %d deadlocks' % (side.label, twice, undone))
    if left:
        if strict:
            side.session.query("SELECT mq_clear('{outside1}')")
        else:
            side.clear()
    return handled / max(took for *_, took in told), twice, undone


@workload('W17', 'outside consumers: 8 clients that poll batches of 10 and delete them', 480, 'original')
def consumers(bench):
    mq, faults = bench.mq, []
    n = bench.size(20000, 2000)
    result = Result('W17', consumers.title, {'messages': n, 'most seconds of a run': LIMIT})

    def ours(n, channels, ordered, clients=8, batch=10):
        mq.fill(n, args=channels, ordered=ordered, name='outside')
        return drain(mq, n, clients, batch, True)[0]

    def original(n, channels, ordered, clients=8, batch=10):
        side = bench.original
        row = "(uuid_generate_v4(), '0', 24, '2 s', 'outside1', c::text, NULL, %s, 'outside', '{}', NULL)::mq_new_t" % ordered
        side.session.query('SELECT count(mq_insert(ARRAY(SELECT %s FROM generate_series(1, %d) i))) FROM generate_series(1, %d) c'
                           % (row, n // channels, channels))
        side.settle()
        rate, twice, undone = drain(side, n, clients, batch, False)
        faults.append((twice, undone))
        return rate
    cases = []
    for channels in (1, bench.size(1000, 100)):
        for ordered in (False, True):
            cases.append(('%s channel%s, %s' % (format(channels, ','), 's' if channels > 1 else '', 'ordered' if ordered else 'unordered'),
                          channels, ordered, 8, 10))
    cases.append(('1 channel, unordered, 1 client, batches of 1', 1, False, 1, 1))
    for text, *how in cases:
        sides = {'mq': lambda: ours(n, *how)}
        if bench.original:
            sides['original schema'] = lambda: original(n, *how)
        alone = how[2:] == [1, 1]
        if alone:
            sides['floor'] = lambda: floor(mq, n)
        rates = alternate(bench.rounds, sides)
        if alone:
            result.compare(text + ', beside an UPDATE and a DELETE of a row by its key', '/s', rates, 'mq', 'floor')
        if bench.original:
            result.compare(text + ', beside the original schema', '/s', rates, 'mq', 'original schema', 5)
        else:
            result.figure(text, '/s', rates['mq'])
    if faults:
        result.remark('The original gave %d messages twice, and %d of its statements were undone to end a deadlock; mq: none.'
                      % (sum(twice for twice, _ in faults), sum(undone for _, undone in faults)))

    # The same while the worker has other channels to handle.
    stop = threading.Event()

    def keep_busy():
        session = mq.server.connect('mq', 'feeder')
        while not stop.is_set():
            if int(session.value("SELECT count(*) FROM (SELECT FROM mq_msgs WHERE channel_name LIKE 'burn%' LIMIT 5000) m")) < 5000:
                session.query("SELECT count(*) FROM generate_series(1, 10) c, mq_send_many('burn' || c, array_fill('{}'::jsonb, ARRAY[2000]))")
            else:
                time.sleep(0.01)
        session.close()

    def busy():
        mq.fill(n, args=1, name='outside')
        mq.register()
        stop.clear()
        feeder = threading.Thread(target=keep_busy, daemon=True)
        feeder.start()
        try:
            return drain(mq, n, 8, 10, True)[0]
        finally:
            stop.set()
            feeder.join()
            while mq.pending():
                time.sleep(0.05)
            mq.unregister()
    rates = alternate(bench.rounds, {'workers busy': busy, 'workers idle': lambda: ours(n, 1, False)})
    result.compare('1 channel, unordered, while the worker handles other channels, beside the same while it is idle', '/s', rates,
                   'workers busy', 'workers idle')
    return result
