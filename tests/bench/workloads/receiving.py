"""W22: sessions that wait in mq_receive, directly and through a connection pooler."""
import os
import shutil
import subprocess
import time

import measure
import receive_latency
from measure import Result, percentile, say
from workloads import workload

POOLER_PORT = 6432


class Pooler:
    """A PgBouncer in transaction mode before the server, on the same directory of sockets."""

    def __init__(self, server, database):
        self.file = server.work + '/tmp/pgbouncer.ini'
        with open(self.file, 'w') as file:
            file.write('\n'.join([
                '[databases]', '%s = host=%s port=%d dbname=%s user=postgres pool_size=8' % (database, server.directory, server.port, database),
                '[pgbouncer]', 'listen_port = %d' % POOLER_PORT, 'unix_socket_dir = ' + server.directory, 'auth_type = any',
                'pool_mode = transaction', 'logfile = %s/tmp/pgbouncer.log' % server.work, '']))
        os.chmod(self.file, 0o644)
        self.process = subprocess.Popen(os.environ.get('AS_USER', '').split() + [shutil.which('pgbouncer', path='/usr/sbin:/usr/bin:/usr/local/sbin'), '-q', self.file],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        socket = '%s/.s.PGSQL.%d' % (server.directory, POOLER_PORT)
        measure.wait_until(lambda: os.path.exists(socket), 30, 'PgBouncer starts', 0.1)

    def close(self):
        self.process.terminate()
        self.process.wait(30)


@workload('W22', 'from a COMMIT to the row of a session that waits in mq_receive', 120)
def receiving(bench):
    count = bench.size(400, 50)
    mq = bench.mq
    result = Result('W22', receiving.title, {'messages of a round': count, 'seconds between messages': receive_latency.GAP})
    direct = (mq.server.directory, mq.server.port, mq.database)
    ways, pooler, found = {'directly': direct}, None, {}
    if shutil.which('pgbouncer', path='/usr/sbin:/usr/bin:/usr/local/sbin'):
        pooler = Pooler(mq.server, mq.database)
        ways['through PgBouncer'] = (mq.server.directory, POOLER_PORT, mq.database)
    else:
        say('pgbouncer is not installed: it is measured directly only')

    def measured(label):
        of_round = receive_latency.measure(ways[label], direct, count)
        found.setdefault(label, []).append([percentile(values, part) for values in of_round for part in (0.5, 0.99)])
        return found[label][-1][0]
    time.sleep(1)
    try:
        measure.alternate(bench.rounds, {label: lambda label=label: measured(label) for label in ways}, '{:.3f} ms')
    finally:
        if pooler:
            pooler.close()
    for label in ways:
        result.figure('from the return of COMMIT to the lease, %s, median' % label, 'ms', [values[4] for values in found[label]], most=1)
        result.figure('from the sending of COMMIT to the row, %s, median' % label, 'ms', [values[0] for values in found[label]])
        result.figure('the same, 99th percentile', 'ms', [values[1] for values in found[label]])
    result.table('Milliseconds to the row (medians of the rounds)',
                 ['', 'from the sending of COMMIT, p50', 'the same, p99', 'from its return, p50', 'the same, p99', 'from its return to the lease, p50', 'the same, p99'],
                 [[label] + ['%.3f' % measure.median([values[i] for values in found[label]]) for i in range(6)] for label in ways])
    return result
