"""W21: sending and handling at once."""
import threading
import time

import measure
from measure import Result, expect, median, say
from servers import pgbench_result
from workloads import workload
from workloads.horizon import hold

CONSUME = """CREATE OR REPLACE PROCEDURE consume() LANGUAGE plpgsql AS $$
  DECLARE batch bigint; event record;
  BEGIN
    LOOP
      PERFORM pgq.ticker('burn');
      COMMIT;
      batch := pgq.next_batch('burn', 'bench');
      IF batch IS NULL THEN
        COMMIT;
        PERFORM pg_sleep(0.005);
      ELSE
        FOR event IN SELECT ev_data FROM pgq.get_batch_events(batch) LOOP
          PERFORM arrive(event.ev_data::jsonb);
        END LOOP;
        PERFORM pgq.finish_batch(batch);
        COMMIT;
      END IF;
    END LOOP;
  END $$"""


class Flow:
    """A side that handles while 8 clients send to it. begin() starts its consumer, end() stops it."""
    script = None

    def __init__(self, side):
        self.side, self.label = side, side.label

    def begin(self):
        pass

    def send(self, seconds):
        """Starts the clients; returns a function that waits for them and tells how many they sent."""
        process = self.side.server.pgbench(self.side.database, self.script, 8, seconds=seconds)
        return lambda: pgbench_result(process)[1]


class MqFlow(Flow):
    script = "SELECT mq_send('flow1', jsonb_build_object('at', clock_timestamp()));\n"

    def begin(self):
        self.side.register('arrive(jsonb)', 1, 'flow')

    def pids(self):
        return self.side.server.worker_pids()

    def pending(self):
        return self.side.pending()

    def end(self):
        self.side.unregister(1, 'flow')


class PgQFlow(Flow):
    script = "SELECT pgq.insert_event('burn', 'flow', jsonb_build_object('at', clock_timestamp())::text);\n"

    def begin(self):
        self.side.renew()
        self.side.session.query(CONSUME)
        self.consumer = self.side.server.connect('pgq', 'consumer')
        self.thread = threading.Thread(target=self.consume, daemon=True)
        self.thread.start()

    def consume(self):
        try:
            self.consumer.query('CALL consume()')
        except Exception:  # it is ended by end()
            pass

    def pids(self):
        return [self.consumer.pid]

    def pending(self):
        return None

    def end(self):
        self.side.session.query('SELECT pg_terminate_backend(%d)' % self.consumer.pid)
        self.thread.join(10)


class GraphileFlow(Flow):
    script = "SELECT graphile_worker.add_job('burn', json_build_object('at', clock_timestamp()));\n"

    def begin(self):
        self.side.tell('serve', 'arrive', 'local')

    def pids(self):
        return self.side.pids()

    def pending(self):
        return self.side.pending()

    def end(self):
        self.side.tell('stop')
        self.side.session.query('DELETE FROM graphile_worker._private_jobs')


class PgBossFlow(Flow):
    """Its clients are loops of one program in JavaScript of their own."""

    def begin(self):
        self.side.tell('serve', 'arrive')

    def send(self, seconds):
        sender = type(self.side)
        other = sender.__new__(sender)
        other.server = self.side.server
        # Under the name of the benchmark's own sessions, so that its CPU is not that of the handling.
        other.start('bench')
        done = []
        thread = threading.Thread(target=lambda: done.append(other.tell('flood', 8, seconds)), daemon=True)
        thread.start()

        def wait():
            thread.join(seconds + 60)
            other.close()
            return int(done[0])
        return wait

    def pids(self):
        return self.side.pids()

    def pending(self):
        return self.side.pending()

    def end(self):
        self.side.tell('stop')
        self.side.session.query('DELETE FROM pgboss.job')


def read_in_turn(server, database, seconds, stop):
    """Three readers, each with a snapshot for two thirds of the time, staggered by a ninth of it."""
    def read(at):
        if not stop.wait(at):
            holder = hold(server, database)
            stop.wait(seconds * 2 / 3)
            holder.close()
    threads = [threading.Thread(target=read, args=(seconds * i / 9,), daemon=True) for i in range(3)]
    for thread in threads:
        thread.start()
    return threads


def flow(side, seconds, readers):
    """Runs a side; returns its figures and its curves."""
    server, session, name = side.side.server, side.side.session, side.side.database
    postgres = server.session('postgres')
    session.query('TRUNCATE arrivals')
    side.side.settle()
    side.begin()
    time.sleep(1)

    def commits():
        postgres.query('SELECT pg_stat_clear_snapshot()')
        return int(postgres.value("SELECT xact_commit FROM pg_stat_database WHERE datname = '%s'" % name))
    pids = side.pids()
    used, wal, committed = {pid: measure.cpu_seconds(pid) for pid in pids}, server.wal(), commits()
    stop, dead = threading.Event(), []
    begun, start = float(session.value('SELECT extract(epoch FROM clock_timestamp())')), time.monotonic()
    threads = read_in_turn(server, name, seconds, stop) if readers else []
    wait = side.send(seconds)
    while time.monotonic() - start < seconds:
        dead.append((time.monotonic() - start, int(session.value(
            "SELECT COALESCE(sum(n_dead_tup), 0)::bigint FROM pg_stat_user_tables WHERE relname <> 'arrivals'"))))
        time.sleep(bench_pause(seconds))
    sent = wait()
    handled_in_time = int(session.value('SELECT count(*) FROM arrivals'))
    wal = server.wal() - wal
    # A peer opens sessions as it needs them.
    used = sum((measure.cpu_seconds(pid) or used.get(pid) or 0) - (used.get(pid) or 0) for pid in set(pids) | set(side.pids()))
    committed = commits() - committed - sent
    stop.set()
    for thread in threads:
        thread.join(20)
    # A peer that cannot keep up is not waited for: what it has left is its backlog.
    end = time.monotonic() + (120 if side.label == 'mq' else 10)
    while time.monotonic() < end and int(session.value('SELECT count(*) FROM arrivals')) < sent:
        time.sleep(0.2)
    side_pending = side.pending()
    side.end()
    arrived = int(session.value('SELECT count(*) FROM arrivals'))
    expect(arrived <= sent, '%s handled %d of %d messages' % (side.label, arrived, sent))
    if side.label == 'mq':
        expect(arrived == sent and side_pending == 0, 'mq handled %d of %d' % (arrived, sent))
    percentiles = session.query("""
        SELECT percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM at - sent) * 1000) FROM arrivals
         WHERE at < to_timestamp(%f)""" % (begun + seconds))[0][0]
    p50, p95, p99 = (float(value) for value in percentiles.strip('{}').split(','))
    curves = session.query("""
        SELECT floor(extract(epoch FROM at) - %f), count(*), percentile_cont(0.5) WITHIN GROUP (ORDER BY wait), percentile_cont(0.99) WITHIN GROUP (ORDER BY wait)
          FROM (SELECT at, extract(epoch FROM at - sent) * 1000 AS wait FROM arrivals) a GROUP BY 1 ORDER BY 1""" % begun)
    sending = dict((int(second), int(count)) for second, count in session.query(
        'SELECT floor(extract(epoch FROM sent) - %f), count(*) FROM arrivals GROUP BY 1' % begun))
    depth, total = [], 0
    for second, count, _, _ in curves:
        total += sending.get(int(float(second)), 0) - int(count)
        depth.append((int(float(second)) + 1, max(0, total)))
    # What a peer has not handled at all is in its backlog too; it was sent throughout.
    lost = max(0, sent - arrived)
    depth = [(second, value + lost * min(1, second / seconds)) for second, value in depth if second <= seconds]
    return {'label': side.label, 'sent': sent / seconds, 'handled': handled_in_time / seconds, 'p50': p50, 'p95': p95, 'p99': p99,
            'wal': wal / max(1, handled_in_time), 'commits': committed / max(1, handled_in_time), 'cpu': used / max(1, handled_in_time) * 1e6,
            'depth': max([value for _, value in depth] or [0]), 'dead': max([value for _, value in dead] or [0]),
            'curves': {'rate': [(int(float(s)) + 1, int(c)) for s, c, _, _ in curves if float(s) < seconds],
                       'p50': [(int(float(s)) + 1, float(v)) for s, _, v, _ in curves if float(s) < seconds],
                       'p99': [(int(float(s)) + 1, float(v)) for s, _, _, v in curves if float(s) < seconds],
                       'depth': depth, 'dead': dead}}


def bench_pause(seconds):
    return 1.0 if seconds > 20 else 0.25


HEAD = ['', 'sent/s', 'handled/s', 'p50, ms', 'p95, ms', 'p99, ms', 'most that wait', 'WAL bytes', 'commits of handling', 'CPU of handling, µs',
        'most dead rows']


def row(found):
    return [found['label']] + ['{:,.0f}'.format(found[key]) for key in ('sent', 'handled')] + [
        '%.1f' % found[key] for key in ('p50', 'p95', 'p99')] + ['{:,.0f}'.format(found['depth']), '%.0f' % found['wal'],
        '%.3f' % found['commits'], '%.1f' % found['cpu'], '{:,.0f}'.format(found['dead'])]


@workload('W21', 'end to end: 8 clients send one message a transaction while one worker handles', 660, 'pgq', 'npm')
def end_to_end(bench):
    short, long = bench.size(60, 4), bench.size(180, 6)
    result = Result('W21', end_to_end.title, {'seconds': short, 'seconds with readers': long, 'seconds of a reader': long * 2 // 3,
                                              'seconds between readers': long // 9})
    flows = [MqFlow(bench.mq)]
    if bench.pgq:
        flows.append(PgQFlow(bench.pgq))
    slow = [GraphileFlow(bench.graphile)] if bench.graphile else []
    slow += [PgBossFlow(bench.pgboss)] if bench.pgboss else []
    for text, sides, seconds, readers in (('A minute without readers', flows + slow, short, False),
                                          ('With three staggered REPEATABLE READ readers', flows, long, True)):
        found = []
        for side in sides:
            say('  %s: %s, %d s' % (text, side.label, seconds))
            found.append(flow(side, seconds, readers))
        result.table(text + '; for a message handled', HEAD, [row(one) for one in found])
        mq, suffix = found[0], ' with readers' if readers else ''
        result.figure('handled by sent' + suffix, '×', [mq['handled'] / mq['sent']], least=0.99)
        result.figure('p99 from the send to the handler' + suffix, 'ms', [mq['p99']], most=20)
        late = [value for second, value in mq['curves']['depth'] if second > seconds / 2]
        early = [value for second, value in mq['curves']['depth'] if second <= seconds / 2]
        result.figure('queue depth: median of the second half less that of the first' + suffix, 'messages', [median(late) - median(early)],
                      most=max(20, mq['sent'] * 0.02))
        kind = 'readers' if readers else 'plain'
        names = {one['label']: one['curves'] for one in found}
        for curve, title, unit, log in (('rate', 'Messages handled per second', '/s', False), ('p99', 'From the send to the handler, 99th percentile', 'ms', True),
                                        ('depth', 'Messages that wait', 'messages', True), ('dead', 'Dead rows, as the server estimates', 'rows', True)):
            lines = {label: curves[curve] for label, curves in names.items()}
            if curve == 'p99':
                lines['mq, median'] = names['mq']['p50']
            result.plot('w21-%s-%s.svg' % (kind, curve), title + (',' + suffix if suffix else ''), 'seconds', unit, lines, log)
    bench.mq.clear()
    return result
