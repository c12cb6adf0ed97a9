"""What `make test-memory` runs: see run.sh.

Each phase does one thing very often and looks at the processes that do it, in equal parts of the work: the memory that each has
for itself, what its memory contexts hold, its open files, its locks. The first parts warm it up: caches and plans are made, the
allocator takes what it needs. After that nothing may grow, and the server's log may not tell of references to relations, plans,
snapshots and buffers that a transaction has left. Each phase prints a line `ok` or `not ok`.

    memory.py [--scale 1] [--phases messages,runs] [--document docs/reliability.md]"""
import argparse
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE + '/../faults', HERE + '/../bench']

import plot
import tables
from console import progress, say
from kinds_memory import LEAK, SCHEMA, processes, send_some
from server import Failed, Server, compiled, private_memory, state_of, wait_until

PARTS = 20
WARM = 5                # parts after which nothing may grow any more
RSS = 4 << 20           # bytes by which a process may grow; the allocator keeps some megabytes as it likes
CONTEXTS = 256 << 10    # bytes by which its memory contexts may grow
FILES = 4               # a relation that is opened once more, a log file


class Curves:
    """The samples of a phase: by process, (what has been done, what was measured)."""

    def __init__(self, name, title, unit):
        self.name, self.title, self.unit, self.samples = name, title, unit, {}

    def add(self, done, process, figures):
        self.samples.setdefault(process, []).append((done, figures))
        progress('%s: %s: %s: %s' % (self.name, '{:,}'.format(done), process, ', '.join(
            '%s %s' % (what, '{:,} kB'.format(value >> 10) if what in ('private', 'contexts') else value) for what, value in figures.items())))

    def growth(self, process, what):
        """From the greatest of the warm samples of the first half to the least of the last ones: what comes and goes does not count."""
        values = [figures[what] for _, figures in self.samples[process]]
        middle = max((len(values) + WARM) // 2, WARM + 1)
        return max(0, min(values[-3:]) - max(values[WARM:middle]))

    def findings(self, expected):
        found = ['%s was not measured' % process for process in sorted(expected - set(self.samples))]
        for process, samples in self.samples.items():
            if len(samples) < PARTS - 2:    # a process may come late
                found.append('%s was measured %d times of %d' % (process, len(samples), PARTS))
                continue
            # A session of leased calls ends when it has been idle.
            if process != 'session of leased calls' and len({figures['process'] for _, figures in samples[WARM:]}) > 1:
                found.append('%s was not one process: %s' % (process, [figures['process'] for _, figures in samples]))
            for what, limit in ('private', RSS), ('contexts', CONTEXTS), ('files', FILES), ('locks', 0), ('plans', 0):
                if what in samples[0][1] and self.growth(process, what) > limit:
                    found.append('%s: %s grew by %d: %s' % (process, what, self.growth(process, what), [figures[what] for _, figures in samples]))
        return found

    def rows(self):
        for process, samples in sorted(self.samples.items()):
            warm, last = samples[min(WARM, len(samples) - 1)][1], samples[-1][1]
            cells = ['%.1f to %.1f' % (warm[what] / 1048576, last[what] / 1048576) for what in ('private', 'contexts')]
            yield [self.title, process, *cells, '%d to %d' % (warm['files'], last['files']), str(last['locks'])]

    def svg(self):
        return plot.svg({'title': self.title, 'x': self.unit, 'y': 'MB of its own', 'log': False, 'lines': {
            process: [[done, figures['private'] / 1048576] for done, figures in samples] for process, samples in sorted(self.samples.items())}})


class Probe:
    def __init__(self, server):
        self.server = server

    def processes(self, database):
        """By what they are: the launcher, and of each other kind the process that has lived longest."""
        names = {'mq launcher': 'launcher', 'mq worker': 'worker', 'mq handler': 'session of leased calls'}
        return {names[what]: pid for pid, what in reversed(processes(self.server, database))}

    def figures(self, pid):
        return {'process': pid, 'private': private_memory(pid), 'contexts': self.contexts(pid), 'files': len(os.listdir('/proc/%d/fd' % pid)),
                'locks': self.server.value('postgres', "SELECT count(*) FROM pg_locks WHERE pid = %s AND locktype <> 'virtualxid'", pid)}

    def contexts(self, pid):
        """The process writes them into the log when it is asked to."""
        begin = self.server.log_size()
        self.server.sql('postgres', 'SELECT pg_log_backend_memory_contexts(%s)', pid)
        total = re.compile(r'\[%d\].*Grand total: (\d+) bytes' % pid)
        told = lambda: [match for match in map(total.search, self.server.log_since(begin)) if match]
        wait_until(lambda: told() or state_of(pid) is None, 30, 'process %d tells its memory contexts' % pid)
        if not told():
            raise ProcessLookupError('process %d has ended' % pid)
        return int(told()[0].group(1))


def pending(server, database):
    return server.value(database, 'SELECT count(*) FROM (SELECT FROM mq_msgs LIMIT 2000) m')


def drained(server, database):
    wait_until(lambda: server.value(database, 'SELECT count(*) FROM mq_msgs') == 0, 120, 'all messages are handled')


def watched(curves, probe, database, total, do):
    """Does the parts, do(from, to), and looks at all processes of the database after each."""
    for part in range(PARTS):
        do(total * part // PARTS, total * (part + 1) // PARTS)
        for what, pid in probe.processes(database).items():
            try:
                curves.add(total * (part + 1) // PARTS, what, probe.figures(pid))
            except OSError:     # it has ended
                pass


def database(server, name, *statements):
    server.sql('postgres', 'CREATE DATABASE %s' % name)
    for statement in ('CREATE EXTENSION mq', *statements):
        server.sql(name, statement)
    return name


def messages(server, probe, scale):
    """Messages of three modes. Of a hundred one fails for good, and one once."""
    curves, total = Curves('messages', 'messages handled, with failing ones among them', 'messages'), int(5_000_000 * scale)
    name = database(server, 'many', *SCHEMA)

    def send(begin, end):
        for chunk in range(begin, end, 5000):    # leased ones in each, lest their session ends meanwhile
            for channel, share, retries in ('many', 0.7, 1), ('many together', 0.28, 20), ('many leased', 0.02, 1):
                send_some(lambda *statement: server.sql(name, *statement), channel, int(min(end - chunk, 5000) * share), chunk // 5000, retries)
            wait_until(lambda: pending(server, name) < 2000, 120, 'messages are handled', 0.01)
        drained(server, name)
        server.sql(name, 'TRUNCATE mq_dead, mq_failures')
    watched(curves, probe, name, total, send)
    return curves, {'worker', 'session of leased calls', 'launcher'}


def runs(server, probe, scale):
    """CALL mq_run() in one session, each with messages of a transactional, a batch and a leased handler, one of which fails."""
    curves, total = Curves('runs', 'CALL mq_run() in one session', 'calls'), int(10_000 * scale)
    name = database(server, 'runs', *SCHEMA)
    server.sql('postgres', 'ALTER SYSTEM SET mq.max_workers = 0')
    server.reload()
    with server.connect(name) as session:
        pid = session.info.backend_pid
        for part in range(PARTS):
            for call in range(total // PARTS):
                session.execute("SELECT mq_send('many', jsonb_build_object('n', %s::int)), mq_send('many together'), mq_send(CASE WHEN %s THEN 'many leased' ELSE 'many' END, '{\"n\": 3}')",
                                (call % 100, call % 20 == 0))
                session.execute('CALL mq_run()')
            figures = probe.figures(pid)
            figures['plans'] = session.execute("SELECT count(*) FROM pg_backend_memory_contexts WHERE name LIKE 'CachedPlan%'").fetchone()[0]
            curves.add(total * (part + 1) // PARTS, 'session', figures)
            session.execute("DELETE FROM mq_msgs WHERE channel_name = 'many together'; TRUNCATE mq_dead, mq_failures")
    server.sql('postgres', 'ALTER SYSTEM RESET mq.max_workers')
    server.reload()
    return curves, {'session'}


def registrations(server, probe, scale):
    """Handlers registered again, each time another function in another mode, with messages between."""
    curves, total = Curves('registrations', 'registrations of a handler', 'registrations'), int(2_000 * scale)
    name = database(server, 'registrations', "CREATE FUNCTION one(jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN END'", "CREATE FUNCTION other(mq_message) RETURNS text LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'",
                    "CREATE FUNCTION together(mq_message[]) RETURNS void LANGUAGE plpgsql AS 'BEGIN END'")
    ways = "'one(jsonb)'", "'other(mq_message)', keep => '1 second'", "'together(mq_message[])'", "'one(jsonb)', mode => 'leased'"

    def register(begin, end):
        for number in range(begin, end):
            server.sql(name, "SELECT mq_register_handler('again', %s)" % ways[number % len(ways)])
            server.sql(name, "SELECT mq_send_many('again', '{1, 2}')")
            if number % 4 == 3:
                drained(server, name)
    watched(curves, probe, name, total, register)
    return curves, {'worker', 'launcher'}


def channels(server, probe, scale):
    """Messages over so many channel names with a handler each, and over as many channels of one name, ordered ones among them."""
    curves, count = Curves('channels', 'messages over 5,000 channel names, and as many channels of one', 'messages'), int(5_000 * scale)
    name = database(server, 'channels', "CREATE FUNCTION nothing(jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN END'", "SELECT mq_register_handler('one', 'nothing(jsonb)')",
                    "SELECT count(mq_register_handler('name ' || n, 'nothing(jsonb)')) FROM generate_series(1, %d) n" % count)

    def send(begin, end):
        for ordered in 'false', 'true':
            server.sql(name, "SELECT count(mq_send('name ' || n)), count(mq_send('one', channel_args => 'c' || n, ordered => %s)) FROM generate_series(1, %d) n" % (ordered, count))
            drained(server, name)
    watched(curves, probe, name, 4 * count * PARTS, send)
    return curves, {'worker', 'launcher'}


def databases(server, probe, scale):
    """Databases with the extension, in each of which messages are handled in each part; in the last part they are dropped."""
    curves, count = Curves('databases', 'messages in each of 300 databases in turn', 'messages'), int(300 * scale)
    name = database(server, 'origin', "CREATE FUNCTION nothing(jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN END'", "SELECT mq_register_handler('c', 'nothing(jsonb)')")
    server.forget(name)
    names = ['d%d' % number for number in range(count)]
    # A worker of the template's own would keep it from being copied.
    server.sql('postgres', 'ALTER DATABASE %s ALLOW_CONNECTIONS false' % name)
    server.sql('postgres', "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", name)
    for copy in names:
        server.sql('postgres', 'CREATE DATABASE %s TEMPLATE %s' % (copy, name))
        with server.connect(copy) as session:
            session.execute('SELECT mq_enable()')

    def send(begin, end):
        for copy in names:
            with server.connect(copy) as session:
                session.execute("SELECT mq_send_many('c', '{1, 2, 3}')")
        for copy in names:
            with server.connect(copy) as session:
                wait_until(lambda: session.execute('SELECT count(*) FROM mq_msgs').fetchone()[0] == 0, 300, 'the messages of %s are handled' % copy)
    watched(curves, probe, 'none of them', 3 * count * PARTS, send)
    for copy in names:
        server.sql('postgres', 'DROP DATABASE %s WITH (FORCE)' % copy)
    return curves, {'launcher'}


def leak(server, probe, scale):
    """A handler that leaks ten kilobytes a call, which must be seen."""
    curves = Curves('leak', 'messages of a handler that leaks', 'messages')
    name = database(server, 'leaks', "CREATE FUNCTION leak() RETURNS void LANGUAGE c AS '%s', 'leak'" % compiled(os.environ['WORK'] + '/data', 'leak', LEAK),
                    "CREATE FUNCTION leaks(m jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN PERFORM leak() FROM generate_series(1, 10); END'",
                    "SELECT mq_register_handler('c', 'leaks(jsonb)')")

    def send(begin, end):
        server.sql(name, "SELECT count(*) FROM mq_send_many('c', ARRAY(SELECT jsonb_build_object('n', n) FROM generate_series(%s::int, %s::int) n))", begin + 1, end)
        drained(server, name)
    watched(curves, probe, name, 100 * PARTS, send)
    if curves.growth('worker', 'private') <= RSS:
        raise Failed('a handler that leaks is not seen to grow: %s' % [figures['private'] for _, figures in curves.samples['worker']])
    return None, set()


PHASES = {phase.__name__: phase for phase in (messages, runs, registrations, channels, databases, leak)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--scale', type=float, default=1, help='of the work of each phase')
    parser.add_argument('--phases', default=','.join(PHASES))
    parser.add_argument('--document', help='to put the table into, with plots beside it')
    options = parser.parse_args()
    unknown = [name for name in options.phases.split(',') if name not in PHASES]
    if unknown or not 0.001 <= options.scale <= 100:
        parser.error('unknown phase %s: one of %s' % (unknown[0], ', '.join(PHASES)) if unknown else '--scale %g: from 0.001 to 100' % options.scale)
    failed, rows = 0, []
    for name in options.phases.split(','):
        server = Server(name, shared_buffers='256MB', autovacuum_naptime='1s', mq__max_workers=1).create()    # one does all
        server.start()
        try:
            curves, expected = PHASES[name](server, Probe(server), options.scale)
            found = curves.findings(expected) if curves else []
            found += ['the log: ' + line for line in server.log_since(0) if re.search('(reference|refcount) leak|PANIC|FATAL.*out of|not closed', line)][:5]
            rows += curves.rows() if curves else []
            if options.document and curves:
                with open('%s/reliability/%s.svg' % (os.path.dirname(options.document), name), 'w') as file:
                    file.write(curves.svg())
        except Failed as why:
            found = [str(why)]
        finally:
            server.stop('immediate', check=False)
        failed += bool(found)
        say('%s - %s' % ('not ok' if found else 'ok', 'a leak is seen' if name == 'leak' else name + ': what mq holds stays flat'))
        for finding in found:
            say('#   ' + finding)
    table = tables.lines_of(['what is done', 'process', 'MB of its own', 'MB in its memory contexts', 'open files', 'locks'], rows)
    say('\n'.join([''] + table))
    if options.document:
        tables.put(options.document, 'memory', table)
    sys.exit(failed > 0)


main()
