"""pg-boss, fetching and completing batches of 500."""
import measure
from sides import ARRIVE, NOOP
from sides.node import NodeSide


class PgBoss(NodeSide):
    label, database, program = 'pg-boss', 'pgboss', 'pgboss.js'

    def open(self):
        self.server.create(self.database)
        for sql in (NOOP, *ARRIVE):
            self.session.query(sql)
        self.start()

    def fill(self, n, settle=True):
        self.tell('fill', n)
        if settle:
            self.settle()

    def pending(self):
        return int(self.session.value("SELECT count(*) FROM pgboss.job WHERE state < 'completed'"))

    def burn(self, n, kind='sql'):
        took = self.tell('burn', n, kind) / 1000
        measure.expect(self.pending() == 0, 'pg-boss has jobs left')
        self.session.query("DELETE FROM pgboss.job WHERE state = 'completed'")
        return took
