"""What `make test-faults` and `make test ONLY=faults` run: see run.sh.

First a run without a fault, and one for each planted defect (planted.py), which the auditor must find. Then the kinds of faults,
each under load: clients send, consume and look after the queue at random (load.py) and write down what they were told
(ledger.py); the fault happens several times meanwhile; then the load ends, the queue must drain, and the auditor (audit.py)
compares. A kind is a function with the decorator `kind`, in one of the modules kinds_*.py. Each prints a line `ok` or `not ok`;
a table closes the run.

Most of a run is waiting, so several go on side by side: each lane is a process with a server of its own, which takes one task
after the other.

    faults.py [--kinds 1,2,18] [--repeat 5] [--seed 7] [--only planted|calm|kinds] [--lanes 2] [--document docs/reliability.md]"""
import argparse
import ctypes
import importlib
import multiprocessing
import os
import queue
import random
import signal
import sys
import time
import traceback

import kinds
import planted
import psycopg
import tables
from console import progress, say
from server import Failed, Server
from world import World

COLUMNS = ['acknowledged', 'effects', 'dead', 'lost', 'doubled', 'out of order', 'other']


class Report:
    """What a task has found. A lane makes it, and the main program prints it."""

    def __init__(self):
        self.rows, self.ends, self.skipped = [], [], []

    def add(self, title, figures):
        self.rows.append((title, figures))

    def end(self, good, name, findings=(), note=''):
        self.ends.append((good, name, list(findings), note))


class Results:
    def __init__(self):
        self.rows, self.failed, self.skipped = {}, 0, []

    def take(self, report):
        for title, figures in report.rows:
            row = self.rows.setdefault(title, dict.fromkeys(COLUMNS, 0) | {'repetitions': 0, 'seconds to drain': 0.0})
            row['repetitions'] += 1
            for column in COLUMNS:
                row[column] += figures[column]
            row['seconds to drain'] = max(row['seconds to drain'], figures['seconds to drain'] or float('inf'))
        for good, name, findings, note in report.ends:
            say('%s - %s%s' % ('ok' if good else 'not ok', name, note))
            self.failed += not good
            for rule, text in findings[:12]:
                say('#   %s: %s' % (rule, text))
            if len(findings) > 12:
                say('#   and %d more: %s' % (len(findings) - 12, sorted({rule for rule, _ in findings})))
        self.skipped += report.skipped

    def table(self):
        head = ['fault', 'repetitions'] + COLUMNS + ['seconds to drain']
        number = lambda title: int(title.split()[0]) if title[0].isdigit() else 0
        lines = tables.lines_of(head, [[title] + [('%.1f' if column == 'seconds to drain' else '%s') % row[column] for column in head[1:]]
                                       for title, row in sorted(self.rows.items(), key=lambda item: number(item[0]))])
        return lines + ['| %s |%s' % (title, ' |' * (len(head) - 2) + ' %s |' % why) for title, why in sorted(self.skipped, key=lambda item: number(item[0]))]


class Common:
    """The server that most runs of a lane share. A fault that breaks it costs a new one."""

    def __init__(self, lane):
        self.server, self.lane, self.count = None, lane, 0

    def get(self):
        if self.server is None:
            self.count += 1
            self.server = Server('lane%d_%d' % (self.lane, self.count)).create()
            self.server.start()
        return self.server

    def check(self):
        try:
            if self.server:
                self.server.ready(10)
        except Failed:
            self.drop()

    def drop(self):
        if self.server:
            self.server.stop('immediate', check=False)
            self.server = None


# --- tasks: each a function of the lane's server, a report, the options, and what else it is given --------------------------


def calm(common, report, options):
    world = World(common.get(), 'calm', options.seed)
    try:
        world.begin_load()
        time.sleep(3)
        world.drain()
        findings, figures = world.audit()
        report.add('none', figures)
        report.end(not findings, 'without a fault all agrees (%d messages)' % figures['acknowledged'], findings)
    finally:
        world.end()


def plant(common, report, options, number, names):
    """These defects together, until each is found, or a few times: it is at random whether a short run meets it."""
    caught, findings = {}, []
    for attempt in range(6):
        world = World(common.get(), 'planted%d_%d' % (number, attempt), '%s %d' % (options.seed, attempt),
                      schema=[statement for name in names for statement in planted.DEFECTS[name][2]], patience=1)
        try:
            world.begin_load(producers=3, others=['operator', 'operator', 'consumer', 'consumer', 'poller'], pause=0.01)
            world.work_on(100 + 100 * attempt)
            world.drain(3)
            findings, _ = world.audit()
        finally:
            world.end()
        for name in names:
            expected, says, _ = planted.DEFECTS[name]
            for rule, text in findings:
                if rule == expected and says in text:
                    caught.setdefault(name, '%s (run %d)' % (text[:120], attempt + 1))
        if len(caught) == len(names):
            break
    for name in names:
        report.end(name in caught, 'the auditor finds a queue that %s%s' % (name, ': ' + caught[name] if name in caught else ''), () if name in caught else findings)


def run_kind(common, report, options, number):
    kind, repeat = kinds.KINDS[number], options.repeat
    found, skip, begun = [], None, time.monotonic()
    for repetition in range(repeat):
        context = kinds.Run(common, '%s_%d' % (kind.name, repetition), '%s %d' % (options.seed, repetition), kind, progress, repeat == 1)
        try:
            kind.body(context)
            for world in context.worlds:
                findings, figures = world.audit()
                report.add(kind.title, figures)
                found += findings
        except kinds.Skip as reason:
            skip = str(reason)
            break
        except (Failed, psycopg.Error, OSError) as error:
            found.append(('fault', '%s: %s' % (type(error).__name__, error)))
            for line in traceback.format_exc().splitlines()[-9:]:
                found.append(('fault', line))
        finally:
            context.end()
            common.check()
        found += context.found
        if repeat > 1:
            progress('%s: %d of %d, %d findings' % (kind.title, repetition + 1, repeat, len(found)))
    name = '%s (%.0f s)' % (kind.title, time.monotonic() - begun)
    if skip and not found:
        report.end(True, name, note=' # SKIP ' + skip)
        report.skipped.append((kind.title, 'skipped: ' + skip))
    else:
        report.end(not found, name, found)


# --- lanes --------------------------------------------------------------------------------------------------------------


def lane(number, options, tasks, reports):
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)      # it does not outlive the main program
    Server.ports = iter(range(5501 + 100 * number, 5600 + 100 * number))
    common = Common(number)
    for body, *arguments in iter(tasks.get, None):
        report = Report()
        try:
            body(common, report, options, *arguments)
        except Exception:       # a defect of the suite itself ends its task, and no other
            report.end(False, '%s %s' % (body.__name__, arguments), [('fault', line) for line in traceback.format_exc().splitlines()[-9:]])
            common.check()
        reports.put(report)
    common.drop()


def perform(tasks, options, results):
    """Has the lanes do the tasks, in about this order."""
    fork = multiprocessing.get_context('fork')
    to_do, reports = fork.SimpleQueue(), fork.Queue()
    lanes = [fork.Process(target=lane, args=(number, options, to_do, reports), daemon=True) for number in range(min(options.lanes, len(tasks)))]
    for one in lanes:
        one.start()
    for task in tasks + [None] * len(lanes):
        to_do.put(task)
    missing = len(tasks)
    while missing:
        try:
            results.take(reports.get(timeout=1))
            missing -= 1
        except queue.Empty:
            if not all(one.is_alive() for one in lanes if one.exitcode != 0):
                results.take(lost_lane(missing))
                break
    for one in lanes:
        one.join(60)


def lost_lane(missing):
    report = Report()
    report.end(False, 'a lane of the suite has ended with %d tasks to do' % missing)
    return report


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument('--kinds', default='')
    arguments.add_argument('--repeat', type=int, default=1)
    arguments.add_argument('--seed', type=int, default=random.SystemRandom().randrange(1000000))
    arguments.add_argument('--only', default='')
    arguments.add_argument('--lanes', type=int, default=min(4, max(2, os.cpu_count() or 1)))
    arguments.add_argument('--document', default='')
    options = arguments.parse_args()
    say('# seed %d' % options.seed)
    for directory in ('/data', '/log', '/runs', '/socket'):
        os.makedirs(os.environ['WORK'] + directory, exist_ok=True)
    tasks, results = [], Results()
    wanted = [int(number) for number in options.kinds.split(',')] if options.kinds else sorted(kinds.KINDS)
    if options.only in ('', 'calm') and not options.kinds:
        tasks.append((calm,))
    if options.only in ('', 'planted') and not options.kinds:
        groups = planted.TOGETHER if options.repeat == 1 else [[name] for name in planted.DEFECTS]
        tasks += [(plant, number, names) for number, names in enumerate(groups)]
    if options.only in ('', 'kinds') or options.kinds:
        # The long ones first: none of them is left to the end, when the other lanes have nothing to do.
        tasks += [(run_kind, number) for number in sorted(wanted, key=lambda number: number not in kinds.LONG)]
    perform(tasks, options, results)
    lines = results.table()
    say('\n' + '\n'.join(lines) + '\n')
    if options.document:
        tables.put(options.document, 'faults', lines)
    return 1 if results.failed else 0


for module in ('kinds_processes', 'kinds_handlers', 'kinds_database', 'kinds_room', 'kinds_clock', 'kinds_memory', 'kinds_copies'):
    importlib.import_module(module)
if __name__ == '__main__':
    sys.exit(main())
