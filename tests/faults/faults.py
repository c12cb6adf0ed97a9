"""What `make test-faults` and `make test ONLY=faults` run: see run.sh.

First a run without a fault, and one for each planted defect (planted.py), which the auditor must find. Then the kinds of faults,
each under load: clients send, consume and look after the queue at random (load.py) and write down what they were told
(ledger.py); the fault happens several times meanwhile; then the load ends, the queue must drain, and the auditor (audit.py)
compares. A kind is a function with the decorator `kind`, in one of the modules kinds_*.py. Each prints a line `ok` or `not ok`;
a table closes the run.

    faults.py [--kinds 1,2,18] [--repeat 5] [--seed 7] [--only planted|calm|kinds] [--document docs/reliability.md]"""
import argparse
import importlib
import os
import random
import sys
import time
import traceback

import kinds
import planted
import psycopg
from server import Failed, Server
from world import World

COLUMNS = ['acknowledged', 'effects', 'dead', 'lost', 'doubled', 'out of order', 'other']
STARTED = time.monotonic()


def say(text):
    print(text, flush=True)


def progress(text):
    say('# [%4.0f s] %s' % (time.monotonic() - STARTED, text))


class Results:
    def __init__(self):
        self.rows, self.failed = {}, 0

    def add(self, title, figures):
        row = self.rows.setdefault(title, dict.fromkeys(COLUMNS, 0) | {'repetitions': 0, 'seconds to drain': 0.0})
        row['repetitions'] += 1
        for column in COLUMNS:
            row[column] += figures[column]
        row['seconds to drain'] = max(row['seconds to drain'], figures['seconds to drain'] or float('inf'))

    def end(self, good, name, findings=(), note=''):
        say('%s - %s%s' % ('ok' if good else 'not ok', name, note))
        self.failed += not good
        for rule, text in list(findings)[:12]:
            say('#   %s: %s' % (rule, text))
        if len(findings) > 12:
            say('#   and %d more: %s' % (len(findings) - 12, sorted({rule for rule, _ in findings})))

    def table(self, skipped):
        head = ['fault', 'repetitions'] + COLUMNS + ['seconds to drain']
        lines = ['| %s |' % ' | '.join(head), '|%s' % ('---|' * len(head))]
        for title, row in self.rows.items():
            lines.append('| %s |' % ' | '.join([title] + [('%.1f' if column == 'seconds to drain' else '%s') % row[column] for column in head[1:]]))
        return lines + ['| %s |%s' % (title, ' |' * (len(head) - 2) + ' %s |' % why) for title, why in skipped]


class Common:
    """The server that most runs share. A fault that breaks it costs a new one."""

    def __init__(self):
        self.server, self.count = None, 0

    def get(self):
        if self.server is None:
            self.count += 1
            self.server = Server('common%d' % self.count).create()
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


def calm(common, results, seed):
    world = World(common.get(), 'calm', seed)
    try:
        world.begin_load()
        time.sleep(4)
        world.drain()
        findings, figures = world.audit()
        results.add('none', figures)
        results.end(not findings, 'without a fault all agrees (%d messages)' % figures['acknowledged'], findings)
    finally:
        world.end()


def plant(common, results, seed, together):
    """Each defect, or those of a group together, until it is found, or a few times: it is at random whether a short run meets it."""
    for number, names in enumerate(planted.TOGETHER if together else [[name] for name in planted.DEFECTS]):
        caught, findings = {}, []
        for attempt in range(6):
            world = World(common.get(), 'planted%d_%d' % (number, attempt), '%s %d' % (seed, attempt),
                          schema=[statement for name in names for statement in planted.DEFECTS[name][2]], patience=1)
            try:
                world.begin_load(producers=3, others=['operator', 'operator', 'consumer', 'consumer', 'poller'], pause=0.01)
                time.sleep(1.5 + 1.5 * attempt)
                world.drain(3)
                findings, _ = world.audit()
            finally:
                world.end()
            for name in names:
                expected, says, _ = planted.DEFECTS[name]
                for rule, text in findings:
                    if rule == expected and says in text:
                        caught.setdefault(name, text)
            if len(caught) == len(names):
                break
        for name in names:
            results.end(name in caught, 'the auditor finds a queue that %s%s' % (name, ': ' + caught[name][:120] if name in caught else ''), () if name in caught else findings)


def run_kind(kind, common, results, seed, repeat):
    found, skip, begun = [], None, time.monotonic()
    for repetition in range(repeat):
        context = kinds.Run(common, '%s_%d' % (kind.name, repetition), '%s %d' % (seed, repetition), kind, progress, repeat == 1)
        try:
            kind.body(context)
            for world in context.worlds:
                findings, figures = world.audit()
                results.add(kind.title, figures)
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
        results.end(True, name, note=' # SKIP ' + skip)
        return (kind.title, 'skipped: ' + skip)
    results.end(not found, name, found)
    return None


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument('--kinds', default='')
    arguments.add_argument('--repeat', type=int, default=1)
    arguments.add_argument('--seed', type=int, default=random.SystemRandom().randrange(1000000))
    arguments.add_argument('--only', default='')
    arguments.add_argument('--document', default='')
    options = arguments.parse_args()
    say('# seed %d' % options.seed)
    for directory in ('/data', '/log', '/runs', '/socket'):
        os.makedirs(os.environ['WORK'] + directory, exist_ok=True)
    common, results, skipped = Common(), Results(), []
    wanted = [kinds.KINDS[int(number)] for number in options.kinds.split(',')] if options.kinds else [kind for number, kind in sorted(kinds.KINDS.items()) if number not in kinds.ON_DEMAND]
    if options.only in ('', 'calm') and not options.kinds:
        calm(common, results, options.seed)
    if options.only in ('', 'planted') and not options.kinds:
        plant(common, results, options.seed, options.repeat == 1)
    if options.only in ('', 'kinds') or options.kinds:
        for kind in wanted:
            why = run_kind(kind, common, results, options.seed, options.repeat)
            if why:
                skipped.append(why)
    common.drop()
    if not options.kinds:
        skipped += [(kinds.KINDS[number].title, 'only on demand') for number in kinds.ON_DEMAND]
    lines = results.table(skipped)
    say('\n' + '\n'.join(lines) + '\n')
    if options.document:
        document(options.document, lines)
    return 1 if results.failed else 0


def document(path, lines):
    """Puts the table between the marks of the document."""
    begin, end = '<!-- faults: begin -->', '<!-- faults: end -->'
    with open(path) as file:
        text = file.read()
    before, after = text.split(begin)[0], text.split(end)[1]
    with open(path, 'w') as file:
        file.write('%s%s\n\n%s\n\n%s%s' % (before, begin, '\n'.join(lines), end, after))


for module in ('kinds_processes', 'kinds_handlers', 'kinds_database', 'kinds_room', 'kinds_copies'):
    importlib.import_module(module)
if __name__ == '__main__':
    sys.exit(main())
