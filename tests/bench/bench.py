#!/usr/bin/env python3
"""The benchmark: runs workloads, keeps what they find as JSON, and makes docs/benchmarks.md of it. See run.sh."""
import argparse
import datetime
import functools
import json
import os
import platform
import re
import subprocess
import sys
import time
import traceback

import measure
import page
import servers
import sides.graphile
import sides.mq
import sides.original
import sides.pgboss
import sides.pgq
import sides.plain
import workloads
from measure import say

HERE = os.path.dirname(os.path.abspath(__file__))


class Bench:
    """The servers and sides of a run, each made when a workload first asks for it. A side that cannot be had is None."""

    def __init__(self):
        self.quick = bool(os.environ.get('QUICK'))
        self.rounds = int(os.environ.get('ROUNDS') or (1 if self.quick else 5))
        self.running = []

    def size(self, full, quick):
        return quick if self.quick else full

    def _server(self, name, bindir, port):
        server = servers.Server(name, bindir, port).start()
        self.running.append(server)
        return server

    @functools.cached_property
    def server(self):
        return self._server('tree', os.environ['BENCH_BIN'], 5432)

    @functools.cached_property
    def mq(self):
        return sides.mq.Mq(self.server)

    def renew_mq(self):
        """mq in a new database: quicker than to clear ten million messages."""
        if 'mq' in vars(self):
            self.mq.watcher.close()
            self.server.drop(self.mq.database)
            del self.mq

    @functools.cached_property
    def before(self):
        if not os.environ.get('BENCH_BASE_BIN'):
            return None
        return sides.mq.MqBefore(self._server('base', os.environ['BENCH_BASE_BIN'], 5433))

    @functools.cached_property
    def original(self):
        file = os.environ.get('BENCH_ORIGINAL')
        return sides.original.Original(self.server, file) if file else None

    @functools.cached_property
    def pgq(self):
        return sides.pgq.PgQ(self.server) if os.environ.get('BENCH_PGQ') else None

    @functools.cached_property
    def graphile(self):
        return sides.graphile.Graphile(self.server) if os.environ.get('BENCH_NPM') else None

    @functools.cached_property
    def pgboss(self):
        return sides.pgboss.PgBoss(self.server) if os.environ.get('BENCH_NPM') else None

    @functools.cached_property
    def plain(self):
        return sides.plain.Plain(self.server)

    def there(self, *sides):
        """Those of the sides that can be had."""
        return [side for side in sides if side is not None]

    def environment(self):
        """What the page says of the machine: nothing that names it."""
        session = self.server.session('postgres')
        with open('/proc/meminfo') as file:
            memory = int(re.search(r'MemTotal: *(\d+)', file.read()).group(1)) / 1048576
        cpu = 'unknown'
        with open('/proc/cpuinfo') as file:
            found = re.search(r'model name\s*: (.*)', file.read())
            cpu = found.group(1).strip() if found else cpu
        system = 'Linux'
        if os.path.exists('/etc/os-release'):
            with open('/etc/os-release') as file:
                system = re.search(r'PRETTY_NAME="?([^"\n]*)', file.read()).group(1)
        versions = {'PostgreSQL': session.value('SHOW server_version'), 'mq': os.environ.get('BENCH_VERSION', '?')}
        if os.environ.get('BENCH_BASE_BIN'):
            versions['mq before'] = os.environ.get('BENCH_BASE_VERSION', '?')
        if os.environ.get('BENCH_PGQ'):
            versions['PgQ'] = os.environ['BENCH_PGQ']
        if os.environ.get('BENCH_NPM'):
            versions['Node.js'] = subprocess.run(['node', '--version'], capture_output=True, text=True).stdout.strip().lstrip('v')
            for package in ('graphile-worker', 'pg-boss', 'pg'):
                with open('%s/node_modules/%s/package.json' % (os.environ['BENCH_NPM'], package)) as file:
                    versions[package] = json.load(file)['version']
        return {'system': system, 'kernel': platform.release().split('-')[0], 'cpu': cpu, 'cores': os.cpu_count(),
                'memory_gb': round(memory), 'versions': versions,
                'settings': dict(servers.SETTINGS)}

    def recover(self):
        """After a workload that failed: the next one finds neither its settings nor its messages."""
        for server in self.running:
            server.reset()
        self.renew_mq()

    def close(self):
        # What a cached property has made is kept under its name.
        for side in list(vars(self).values()):
            if isinstance(side, sides.Side):
                side.close()
        for server in self.running:
            server.stop()


def chosen():
    """The workloads that WORKLOAD and SKIP leave, in order."""
    names = os.environ.get('WORKLOAD', '').replace(',', ' ').split() or list(workloads.ALL)
    for name in names:
        if name not in workloads.ALL:
            sys.exit('There is no workload %s; there are %s.' % (name, ' '.join(workloads.ALL)))
    return [name for name in workloads.ALL if name in names and name not in os.environ.get('SKIP', '').replace(',', ' ').split()]


def run(bench, name, results):
    workload = workloads.ALL[name]
    say('%s: %s%s' % (name, workload.title, '' if bench.quick else ' (about %s)' % workloads.duration(workload.seconds)))
    begun = time.monotonic()
    result = workload.run(bench)
    found = result.as_dict()
    found.update(date=datetime.datetime.now(datetime.timezone.utc).strftime('%Y-%m-%d'), rounds=bench.rounds, quick=bench.quick,
                 seconds=round(time.monotonic() - begun), environment=bench.environment())
    os.makedirs(results, exist_ok=True)
    with open('%s/%s.json' % (results, name), 'w') as file:
        json.dump(found, file, indent=1)
        file.write('\n')
    say('%s took %d s' % (name, found['seconds']))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--needs', action='store_true', help='print what the chosen workloads need, and end')
    parser.add_argument('--page', action='store_true', help='make the page of the results that are there, and end')
    parser.add_argument('--results', default=HERE + '/results')
    parser.add_argument('--document', default=HERE + '/../../docs/benchmarks.md')
    arguments = parser.parse_args()
    if arguments.needs:
        print(' '.join(sorted({need for name in chosen() for need in workloads.ALL[name].needs})))
        return 0
    if arguments.page:
        page.write(arguments.results, HERE + '/notes', arguments.document)
        return 0
    # Whatever is left of this program and its children is found there, and ended, by run.sh.
    os.chdir(os.environ['WORK'])
    bench, failed = Bench(), []
    names = chosen()
    if not bench.quick:
        say('%d workloads, about %s' % (len(names), workloads.duration(sum(workloads.ALL[name].seconds for name in names))))
    for name in names:
        try:
            run(bench, name, arguments.results)
        except Exception:  # the next workload may still be measured
            traceback.print_exc()
            failed.append(name)
            bench.recover()
    bench.close()
    page.write(arguments.results, HERE + '/notes', arguments.document)
    say('written: ' + os.path.relpath(arguments.document, HERE + '/../..'))
    if failed:
        say('failed: ' + ' '.join(failed))
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
