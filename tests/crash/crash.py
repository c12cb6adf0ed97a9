"""What the suite `crash` runs: a process of mq ends at each step, and what is left is audited.

    crash.py --release mq.so --armed mq.so [POINT...]     POINT: a crash point, or the beginning of its name

The points are those of bgworker/pg/crash_point.hpp, whose head says how one is armed. A round arms one for SIGKILL, or several
for SIGTERM or an error, plays the clients (clients.py), which pass all points, waits until each armed point has fired and nothing
is left in the queue, and audits (checks.py). A point that does not fire is a finding, so the list has none that nothing passes.
Where workers and clients pass a point, the first that the list names is killed there; both are if the point is given.

One round without a crash must find nothing, and one with each planted defect must find that. Rounds mostly wait, so several
servers play them."""
import argparse
import itertools
import os
import re
import subprocess
import sys
import threading
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(HERE + '/../faults')

import psycopg                                  # noqa: E402
from checks import Audit, Database              # noqa: E402
from clients import Load                        # noqa: E402
from planted import trigger                     # noqa: E402
from server import Failed, Server, expect, wait_until   # noqa: E402

HEADER = HERE + '/../../bgworker/pg/crash_point.hpp'
SENDING = 25        # seconds in which the clients have sent, whatever happens
DRAIN = 20          # seconds in which nothing is left of what they sent
TOGETHER = 6        # points that are armed in one round, where none of them brings the server down
SERVERS = 3
SETTINGS = {'mq.poll_interval': '1s', 'mq.max_databases': 10, 'shared_buffers': '16MB', 'wal_level': 'replica', 'max_connections': 60, 'log_error_verbosity': 'default'}

# Defects, planted by a trigger each, and the rule under which the audit must find it.
PLANTED = {
    'loses messages': ('lost', trigger('mq_msgs', 'BEFORE INSERT', 'RETURN NULL;', "NEW.channel_name = 'kept'")),
    'handles messages twice': ('doubled', trigger('mq_msgs', 'AFTER DELETE', "PERFORM public.mq_send('plain', OLD.message_json); RETURN NULL;", "OLD.channel_name = 'limited'")),
    'lets messages overtake': ('out of order', trigger(
        'mq_msgs', 'BEFORE INSERT', "NEW.attempt_at := NEW.attempt_at + interval '1 s'; NEW.after_message_id := NULL; RETURN NEW;",
        "NEW.channel_name = 'chain' AND (NEW.message_json ->> 'key')::int % 2 = 0")),
    'loses dead letters': ('lost', trigger('mq_dead', 'AFTER INSERT', 'DELETE FROM public.mq_dead WHERE dead_no = NEW.dead_no; RETURN NULL;')),
    'has another result': ('history', trigger('mq_done', 'BEFORE INSERT', "NEW.result := '{}'; RETURN NEW;")),
    'forgets failed attempts': ('attempts', trigger('mq_failures', 'BEFORE INSERT', 'RETURN NULL;')),
    'loses statistics': ('statistics', trigger('mq_stats_deltas', 'BEFORE INSERT', 'RETURN NULL;')),
    'forgets messages until later': ('left over', trigger('mq_msgs', 'BEFORE INSERT', "NEW.attempt_at := NEW.attempt_at + interval '1 hour'; RETURN NEW;",
                                                          "NEW.channel_name = 'paced'")),
}
printing = threading.Lock()


def say(*lines):
    with printing:
        print('\n'.join(lines), flush=True)


def points():
    """(point, the processes that pass it, the ways in which they end) of each point in the header."""
    with open(HEADER) as file:
        found = re.findall(r'^  X\((\w+), "([a-z ]+)", "([a-z ]+)"\)', file.read(), re.M)
    expect(len(found) > 50, 'no list of crash points in ' + HEADER)
    return [(point, processes.split(), ways.split()) for point, processes, ways in found]


class Host:
    """A server, and the rounds that it plays."""

    def __init__(self, number):
        self.failed, self.databases, self.keys = 0, 0, itertools.count(1)
        self.server = Server('crash%d' % number, **{key.replace('.', '__'): value for key, value in SETTINGS.items()}).create()
        self.server.start()
        self.fresh()

    def fresh(self):
        """A new database: the first, or after a round that has left something behind."""
        self.databases += 1
        name = 'crash%d' % self.databases
        self.server.sql('postgres', 'CREATE DATABASE ' + name)
        with open(HERE + '/schema.sql') as file:
            self.server.sql(name, file.read())
        self.server.sql('postgres', 'CHECKPOINT')       # so that the next recovery is short
        self.database = Database(self.server, name)

    def drop(self):
        self.disarm()
        self.server.ready()
        self.server.forget(self.database.name)
        self.server.sql('postgres', 'DROP DATABASE %s WITH (FORCE)' % self.database.name)

    # --- arming -----------------------------------------------------------------------------------------

    def path(self, suffix=''):
        return self.server.data + '/mq_crash_points' + suffix

    def disarm(self):
        for name in os.listdir(self.server.data):
            if name.startswith('mq_crash_points'):
                os.unlink(self.server.data + '/' + name)

    def arm(self, orders):
        """orders: (way, process, point)."""
        self.disarm()
        with open(self.path('.new'), 'w') as file:
            file.writelines('%s %s %s 1\n' % (point, way, process) for way, process, point in orders)
        os.chmod(self.path('.new'), 0o644)
        os.rename(self.path('.new'), self.path())

    def fired(self):
        """(point, process) of those that have fired."""
        if not os.path.exists(self.path('.fired')):
            return []
        with open(self.path('.fired')) as file:
            return [(point, int(process)) for point, process in (line.split() for line in file)]

    # --- rounds -----------------------------------------------------------------------------------------

    def play(self, orders, drain):
        """The findings of a round."""
        log = self.server.log_size()
        self.arm(orders)
        load = Load(self.server, self.database.name, self.keys)
        load.begin()
        findings = []
        try:
            load.finish_sending(SENDING)
            wait_until(lambda: self.database.left() == 0, drain, 'the queue drains')
        except Failed as error:
            findings.append(('left over', str(error)))
            findings += [('left over', str(row)) for row in self.database.sql('SELECT channel_name, mq_why(id) FROM mq_msgs ORDER BY seq LIMIT 3')]
        findings += load.end()
        fired = self.fired()
        self.disarm()
        findings += [('not reached', '%s by a %s' % (point, process)) for way, process, point in orders if point not in dict(fired)]
        findings += Audit(self.database, load, fired, {way for way, _, _ in orders}, self.server.log_since(log)).run()
        self.database.sql("SELECT mq_clear('{later}')")
        try:
            wait_until(lambda: not self.database.leftovers() and not self.database.unhealthy(), 5, 'nothing is left over', 0.02)
        except Failed:
            findings += [('left over', text) for text in self.database.leftovers()] + [('health', '%s: %s' % tuple(row)) for row in self.database.unhealthy()]
        return findings

    def round(self, name, orders, expected=None, defects=()):
        """expected: the rule under which something must be found; None: nothing may be."""
        begun = time.monotonic()
        try:
            for statement in defects:
                self.database.sql(statement)
            # What a defect keeps in the queue comes at no time.
            findings = self.play(orders, DRAIN if expected is None else DRAIN / 5)
        except (Failed, psycopg.Error, OSError):
            findings = [('round', line) for line in traceback.format_exc().splitlines()]
        good = any(rule == expected for rule, _ in findings) if expected else not findings
        self.failed += not good
        say('%s - %s (%.1f s)' % ('ok' if good else 'not ok', name, time.monotonic() - begun),
            *['#   %s: %s' % finding for finding in findings[:12] if not good])
        if findings:
            self.drop()
            self.fresh()


def only_armed(release, armed):
    """Whether crash points are in the one library and not in the other."""
    found = []
    for path in (release, armed):
        symbols = subprocess.run(['nm', path], stdout=subprocess.PIPE, check=True, text=True).stdout
        with open(path, 'rb') as file:
            found.append(('crash_point' in symbols, b'mq_crash_points' in file.read()))
    return found == [(False, False), (True, True)]


def rounds_of(chosen, all_processes):
    """The arguments of Host.round()."""
    for point, processes, ways in chosen:
        for process in processes if all_processes else processes[:1]:
            yield ('%s is killed at %s' % (process, point), [('kill', process, point)])
    for way in ('term', 'error'):
        orders = [(way, process, point) for point, processes, ways in chosen if way in ways for process in processes]
        # Neighbours are passed one after the other by one process: they are spread over the rounds.
        rounds = -(-len(orders) // TOGETHER)
        for start in range(rounds):
            some = orders[start::rounds]
            yield ('%s at %s' % ('SIGTERM' if way == 'term' else 'an error', ', '.join('%s (%s)' % (point, process) for _, process, point in some)), some)


def play(number, rounds, failed):
    """What a thread does: takes rounds from the list until it is empty."""
    try:
        host = Host(number)
        while rounds:
            host.round(*rounds.pop(0))
        failed.append(host.failed)
        host.server.stop('immediate', check=False)
    except Exception:
        say('not ok - server %d' % number, *traceback.format_exc().splitlines())
        failed.append(1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--release', required=True)
    parser.add_argument('--armed', required=True)
    parser.add_argument('points', nargs='*')
    options = parser.parse_args()
    chosen = [one for one in points() if not options.points or any(one[0].startswith(name) for name in options.points)]
    expect(chosen, 'no such point: ' + ' '.join(options.points))
    good = only_armed(options.release, options.armed)
    say('%s - the library of a release has nothing of crash points' % ('ok' if good else 'not ok'))
    rounds = [('without a crash the audit finds nothing', [])]
    if not options.points:
        rounds += [('the audit finds a queue that ' + name, [], rule, defects) for name, (rule, defects) in PLANTED.items()]
        rounds.append(('the audit finds a point that nothing passes', [('kill', 'any', 'nowhere')], 'not reached'))
    rounds += rounds_of(chosen, bool(options.points))
    failed = []
    threads = [threading.Thread(target=play, args=(number, rounds, failed)) for number in range(min(SERVERS, len(rounds)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return not good or sum(failed) > 0


if __name__ == '__main__':
    sys.exit(main())
