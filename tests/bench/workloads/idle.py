"""W12: what mq does while nothing is to be done."""
import time

import measure
from measure import Result
from workloads import workload


@workload('W12', 'idle, with future messages', 100)
def idle(bench):
    n, seconds = bench.size(1000000, 50000), bench.size(60, 10)
    mq = bench.mq
    result = Result('W12', idle.title, {'future messages': n, 'seconds': seconds, 'autovacuum': 'off'})
    bench.server.set(autovacuum='off')
    try:
        mq.fill(n, options=", delay => '1 day'")
        mq.register()
        postgres = bench.server.session('postgres')
        pids = [int(row[0]) for row in postgres.query("SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'mq%'")]
        # The background writer logs what runs once more, 15 s after the last checkpoint.
        time.sleep(18)
        wal, used = bench.server.wal(), [measure.cpu_seconds(pid) for pid in pids]
        time.sleep(seconds)
        wal = bench.server.wal() - wal
        used = sum((measure.cpu_seconds(pid) or 0) - (before or 0) for pid, before in zip(pids, used))
    finally:
        bench.server.set(autovacuum=None)
        mq.unregister()
    result.figure('WAL', 'bytes', [wal], exactly=0)
    result.figure('CPU of the launcher and the workers', '%', [used / seconds * 100], most=0.1)
    mq.clear()
    return result
