#!/usr/bin/env python3
"""How long a message takes from its sender's COMMIT until a session that waits in mq_receive has leased it, and until the row is
in its program, directly and through PgBouncer in transaction mode. The workload W22 calls this; on its own it measures a server that runs already:

    tests/bench/receive_latency.py --socket /var/run/postgresql --database postgres [--pooler DIR:PORT] [--messages 400]

The database must have the extension mq. The messages are of the channel receive_latency.
"""
import argparse
import multiprocessing
import sys
import time

import wire

GAP = 0.02  # seconds from one message to the next: the receiver waits again by then
# The clock is read in the server once the message is leased. The row is sent when the lease has been committed, and flushed.
RECEIVE = "SELECT payload_json, id, lease, extract(epoch FROM clock_timestamp()) FROM mq_receive('{receive_latency}', wait => '30 s')"


def receive(where, count, ready, out):
    """Puts {number: (when it was leased, when its row was there)}, or an error."""
    try:
        session, times = wire.Connection(*where, application='receiver'), {}
        ready.set()
        while len(times) < count:
            rows = session.query(RECEIVE)
            now = time.time()
            if not rows:
                raise TimeoutError('no message in 30 s')
            for number, message, lease, leased in rows:
                times[int(number)] = float(leased), now
                session.query("SELECT mq_ack('{%s}', %s)" % (message, lease))
        session.close()
        out.put(times)
    except Exception as error:  # told by the caller
        out.put(error)


def measure(where, sender_where, count, progress=None):
    """Milliseconds of each message: from the sending of its COMMIT to the row, from the return of that to the row, and from the
    return to the lease. `where` the receiver connects: (directory of the socket, port, database)."""
    ready, out = multiprocessing.Event(), multiprocessing.Queue()
    receiver = multiprocessing.Process(target=receive, args=(where, count, ready, out), daemon=True)
    receiver.start()
    try:
        if not ready.wait(30):
            raise TimeoutError('the receiver does not start')
        sender, sent = wire.Connection(*sender_where, application='sender'), {}
        time.sleep(0.5)
        begun = time.monotonic()
        for n in range(count):
            time.sleep(max(0, begun + n * GAP - time.monotonic()))
            sender.query("BEGIN; SELECT mq_send('receive_latency', '%d')" % n)
            commit = time.time()
            sender.query('COMMIT')
            sent[n] = commit, time.time()
            if progress and (n + 1) % 50 == 0:
                progress(n + 1)
        sender.close()
        times = out.get(timeout=60)
    finally:
        receiver.kill()
    if isinstance(times, Exception):
        raise times
    return [[(times[n][end] - sent[n][start]) * 1000 for n in range(count)] for start, end in ((0, 1), (1, 1), (1, 0))]


def percentile(values, part):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--socket', default='/var/run/postgresql', help="the directory of the server's socket")
    parser.add_argument('--port', type=int, default=5432)
    parser.add_argument('--database', default='postgres')
    parser.add_argument('--pooler', help='DIRECTORY:PORT of a PgBouncer that serves the same database')
    parser.add_argument('--messages', type=int, default=400)
    arguments = parser.parse_args()
    direct = (arguments.socket, arguments.port, arguments.database)
    ways = {'directly': direct}
    if arguments.pooler:
        directory, port = arguments.pooler.rsplit(':', 1)
        ways['through PgBouncer'] = (directory, int(port), arguments.database)
    for label, where in ways.items():
        terminal = sys.stderr.isatty()

        def progress(n):
            print('\r%s: %d of %d' % (label, n, arguments.messages), end='', file=sys.stderr, flush=True)
        to_row, from_return, to_lease = measure(where, direct, arguments.messages, progress if terminal else None)
        print('\r' * terminal + label + ': ' + '; '.join('%s median %.3f ms, p99 %.3f ms' % (what, percentile(values, 0.5), percentile(values, 0.99))
                                                         for what, values in (('from COMMIT to the row', to_row),
                                                                              ('from its return to the row', from_return),
                                                                              ('from its return to the lease', to_lease))))


if __name__ == '__main__':
    main()
