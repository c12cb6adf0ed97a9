#!/usr/bin/env python3
"""How long a message takes from its sender's COMMIT to the row of a session that waits in mq_receive, directly and through
PgBouncer in transaction mode. The workload W22 calls this; on its own it measures a server that runs already:

    tests/bench/receive_latency.py --socket /var/run/postgresql --database postgres [--pooler DIR:PORT] [--messages 400]

The database must have the extension mq. The messages are of the channel receive_latency.
"""
import argparse
import multiprocessing
import sys
import time

import wire

GAP = 0.02  # seconds from one message to the next: the receiver waits again by then
RECEIVE = "SELECT payload_json, id, lease FROM mq_receive('{receive_latency}', wait => '30 s')"


def receive(where, count, ready, out):
    """Puts {number: when its row was there}, or an error."""
    try:
        session, times = wire.Connection(*where, application='receiver'), {}
        ready.set()
        while len(times) < count:
            rows = session.query(RECEIVE)
            now = time.time()
            if not rows:
                raise TimeoutError('no message in 30 s')
            for number, message, lease in rows:
                times[int(number)] = now
                session.query("SELECT mq_ack('{%s}', %s)" % (message, lease))
        session.close()
        out.put(times)
    except Exception as error:  # told by the caller
        out.put(error)


def measure(where, sender_where, count, progress=None):
    """Milliseconds of each message from the moment at which its COMMIT was sent, and from the one at which that returned.
    `where` the receiver connects: (directory of the socket, port, database)."""
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
    return ([(times[n] - sent[n][0]) * 1000 for n in range(count)], [(times[n] - sent[n][1]) * 1000 for n in range(count)])


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
        from_commit, from_return = measure(where, direct, arguments.messages, progress if terminal else None)
        print('%s%s: from COMMIT to the row median %.3f ms, p99 %.3f ms; from its return median %.3f ms, p99 %.3f ms' % (
            '\r' if terminal else '', label, percentile(from_commit, 0.5), percentile(from_commit, 0.99),
            percentile(from_return, 0.5), percentile(from_return, 0.99)))


if __name__ == '__main__':
    main()
