"""graphile-worker with its local queue and batched completion."""
import os
import subprocess

import measure
from sides import ARRIVE, NOOP
from sides.node import NodeSide


class Graphile(NodeSide):
    label, database, program = 'graphile-worker', 'graphile', 'graphile.js'

    def open(self):
        self.server.create(self.database)
        done = subprocess.run([os.environ['BENCH_NPM'] + '/node_modules/.bin/graphile-worker', '--schema-only', '-c',
                               'postgres:///' + self.database],
                              env=dict(os.environ, PGHOST=self.server.directory, PGPORT=str(self.server.port), PGUSER='postgres'),
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        measure.expect(done.returncode == 0, 'graphile-worker --schema-only: ' + done.stdout)
        for sql in (NOOP, *ARRIVE):
            self.session.query(sql)
        self.start()

    def fill(self, n, settle=True):
        self.session.query("SELECT count(*) FROM graphile_worker.add_jobs(ARRAY(SELECT ROW('burn', json_build_object('n', i), "
                           "NULL, NULL, NULL, NULL, NULL, NULL)::graphile_worker.job_spec FROM generate_series(1, %d) i))" % n)
        if settle:
            self.settle()

    def pending(self):
        return int(self.session.value('SELECT count(*) FROM graphile_worker.jobs'))

    def burn(self, n, kind='sql'):
        took = self.tell('burn', n, kind) / 1000
        measure.expect(self.pending() == 0, 'graphile-worker has jobs left')
        return took
