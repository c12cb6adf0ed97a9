"""A program in JavaScript that obeys commands, one a line, and answers each with a number."""
import os
import subprocess

import measure
from sides import Side


class NodeSide(Side):
    program = None

    def start(self, application=''):
        environment = dict(os.environ, PGAPPNAME=application or self.label, PGHOST=self.server.directory, PGPORT=str(self.server.port), PGUSER='postgres',
                           PGDATABASE=self.database)
        self.process = subprocess.Popen(['node', os.path.join(os.path.dirname(__file__), self.program)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env=environment, cwd=os.environ['WORK'])

    def tell(self, *words):
        self.process.stdin.write(' '.join(str(word) for word in words) + '\n')
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        measure.expect(answer and not answer.startswith('error'), '%s: %s' % (self.label, answer or 'its program has ended'))
        return float(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait(20)

    def pids(self):
        """The program itself and its sessions, whose CPU is counted."""
        return [self.process.pid] + [int(row[0]) for row in self.server.session('postgres').query(
            "SELECT pid FROM pg_stat_activity WHERE datname = '%s' AND application_name NOT IN ('bench', 'pgbench', 'holder')" % self.database)]
