"""What sessions wait for when there are many of them: see docs/scaling.md."""
import collections
import threading
import time

from measure import Result, cpu_seconds
from servers import pgbench_result
from workloads import workload

WAITS = """SELECT COALESCE(wait_event_type || ': ' || wait_event, 'running') FROM pg_stat_activity
           WHERE (backend_type = 'mq worker' OR application_name = 'pgbench') AND state IS DISTINCT FROM 'idle'
             AND datname = 'mq'"""


def sampled(bench, body):
    """Runs the body. Returns its result, and {what a session did: share of the samples}, one every 5 ms."""
    seen, over = collections.Counter(), threading.Event()

    def look():
        session = bench.server.connect('postgres', 'sampler')
        while not over.wait(0.005):
            seen.update(row[0] for row in session.query(WAITS))
        session.close()
    looker = threading.Thread(target=look, daemon=True)
    looker.start()
    try:
        found = body()
    finally:
        over.set()
        looker.join()
    all_of_them = sum(seen.values()) or 1
    return found, {what: count / all_of_them for what, count in seen.items()}


def told(shares, most=6):
    return ', '.join('%s %.1f %%' % (what, share * 100) for what, share in
                     sorted(shares.items(), key=lambda item: -item[1])[:most] if share >= 0.0005)


@workload('scaling', 'what many workers and many senders wait for', 200)
def scaling(bench):
    n, seconds = bench.size(400000, 20000), bench.size(10, 1)
    result = Result('scaling', scaling.title, {'messages': n, 'seconds of sending': seconds})
    rows = []
    try:
        for workers in (1, 2, 4, 8):
            bench.server.set(mq__max_workers=workers)
            cpu = []
            bench.mq.fill(n)
            took, shares = sampled(bench, lambda: bench.mq.burn(n, cpu=cpu))
            rows.append([workers, format(round(n / took), ','), '%.2f' % (cpu[0] / n * 1e6), told(shares)])
    finally:
        bench.server.set(mq__max_workers=None)
    result.table('Workers that handle messages of ten channels', ['workers', 'handled/s', 'CPU of a message, µs', 'what they do'], rows)

    rows = []
    for clients in (1, 8, 32, 64):
        bench.mq.clear()

        def send():
            process = bench.server.pgbench('mq', "SELECT mq_send('many', jsonb_build_object('n', 1));\n", clients, seconds=seconds)
            time.sleep(seconds * 0.8)
            used = [cpu_seconds(pid) or 0 for pid in bench.server.backend_pids('pgbench')]
            return pgbench_result(process), sum(used)
        ((rate, count), used), shares = sampled(bench, send)
        rows.append([clients, format(round(rate), ','), '%.1f' % (used / (count * 0.8) * 1e6), told(shares)])
    bench.mq.clear()
    result.table('Clients that send one message a transaction', ['clients', 'sent/s', 'CPU of a message, µs', 'what they do'], rows)
    return result
