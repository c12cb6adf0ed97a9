"""What `make test-failover` and `make test ONLY=failover` run: see suite.sh.

Two nodes that Patroni looks after (cluster.py) are under the load of the suite faults (../faults/load.py). The primary is killed
three times, at another moment each, and comes back through pg_rewind. Then the nodes change places as planned. Each round has a
database of its own, which is drained and audited (../faults/audit.py) when both nodes are there again. In a last round replication
is asynchronous and late: the auditor must find what that loses.

    failover.py [--seed 7] [--document docs/reliability.md]"""
import argparse
import os
import random
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(HERE + '/../faults')

import psycopg                                      # noqa: E402
import audit                                        # noqa: E402
import ledger                                       # noqa: E402
import tables                                       # noqa: E402
from cluster import Cluster, Etcd, Node             # noqa: E402
from console import progress, say                   # noqa: E402
from kinds import LOST, MOVED_LINES, calls          # noqa: E402
from server import Failed, wait_until               # noqa: E402
from world import World                             # noqa: E402

FIGURES = ['acknowledged', 'in doubt', 'effects', 'dead', 'lost', 'doubled', 'out of order', 'other']
SECONDS = ['promoted', 'handled', 'sent', 'rejoined']
PATIENCE = 240      # seconds for each step of Patroni's: pg_rewind alone takes a minute where the disk is busy
CHARGES, ERRORS = {'57P01'}, LOST | {'25006'}
# What Patroni, the processes of replication and their sessions leave in a server's log.
PATRONI_LINES = [r'could not (start WAL streaming|connect to the primary|find)', r'FATAL: .*(streaming|replication|recovery|walreceiver|requested (timeline|starting point))',
                 r'terminating walreceiver', r'new timeline', r'removing future two-phase state file']


class Round:
    """One database, from the beginning of the load to the audit. Times are those of time.time(): nobody sets the clock here."""

    def __init__(self, cluster, name, seed):
        self.cluster, self.random, self.found = cluster, random.Random('failover %s %s' % (seed, name)), []
        self.primary, self.standby = wait_until(cluster.places, PATIENCE, 'one node is the primary, and the other streams from it')
        self.world = World(cluster, name, seed, audit.Allowed(charges=CHARGES, errors=ERRORS, log=MOVED_LINES + PATRONI_LINES))
        self.seconds = dict.fromkeys(SECONDS)

    def expect(self, is_so, text):
        if not is_so:
            self.found.append(('failover', text))

    def load(self, least):
        """Begins it, and lets it go on until so many sends were acknowledged, and some moment longer."""
        at = self.standby.log_size()
        self.world.begin_load(producers=3, others=['operator', 'consumer', 'consumer', 'poller', 'insistent', 'insistent'])
        self.world.work_on(least)
        time.sleep(self.random.random() * 2)
        self.expect(not calls(self.standby.log_since(at)) and not self.standby.workers(self.world.database), 'no handler runs on the standby')

    def move(self, how):
        """Takes the primary away by `how`. Waits until the other node takes its place, handles and answers."""
        at, begun = self.standby.log_size(), time.time()
        how()
        self.primary.forget()
        chosen = wait_until(lambda: self.standby.moment(at, 'selected new timeline ID'), PATIENCE, 'the standby is promoted')
        promoted = wait_until(lambda: self.standby.moment(at, 'is ready to accept connections'), PATIENCE, 'it lets sessions in that write')
        # The old primary had ended before.
        handled = wait_until(lambda: self.standby.value(self.world.database, "SELECT extract(epoch FROM min(pg_xact_commit_timestamp(xmin)))::float8 FROM effects"
                             " WHERE what = 'handled' AND pg_xact_commit_timestamp(xmin) > to_timestamp(%s)", chosen), PATIENCE, 'the new primary handles messages')
        sent = wait_until(lambda: self.first_sent(chosen), PATIENCE, 'a client sends to it')
        self.seconds |= {'promoted': promoted - begun, 'handled': handled - begun, 'sent': sent - begun}
        self.primary, self.standby = self.standby, self.primary
        progress('%s: %s is promoted after %.1f s, handles after %.1f s' % (self.world.database, self.primary.name, promoted - begun, handled - begun))
        return begun

    def first_sent(self, since):
        behind = time.time() - time.monotonic()
        return min((line['t'] + behind for line in ledger.read(self.world.directory) if line.get('end') == 'committed' and line['t'] + behind > since), default=None)

    def rejoin(self, begun, rewinds):
        """Waits until the old primary is a synchronous standby of the new one; through pg_rewind, or not."""
        # Patroni and pg_rewind are not what is under test: most of the load ends when the new primary has taken some of it.
        self.world.work_on(self.world.sends() + 100)
        self.world.load.stop(['producer'])
        wait_until(lambda: self.cluster.is_synchronous(self.primary, self.standby), PATIENCE, '%s is a synchronous standby' % self.standby.name, 0.2)
        self.seconds['rejoined'] = time.time() - begun
        self.expect(self.standby.patroni_says(self.patroni_at, 'pg_rewind exit code=0') == rewinds, 'pg_rewind has%s run on %s' % ('' if rewinds else ' not', self.standby.name))
        timelines = self.primary.state()['timeline'], self.standby.value('postgres', 'SELECT received_tli FROM pg_stat_wal_receiver')
        self.expect(timelines[0] == timelines[1], 'both are on one timeline, not %s' % (timelines,))

    def kill(self, least):
        """The primary's machine is gone, as far as a process can tell, and comes back."""
        self.load(least)
        self.killed()

    def killed(self, meanwhile=lambda: None):
        self.move(self.primary.kill)
        self.patroni_at = self.standby.patroni_log_size()
        meanwhile()
        back = time.time()
        self.standby.start()
        self.rejoin(back, rewinds=True)

    def kill_ahead(self, least):
        """The same without synchronous replication, and the standby has been cut off for so many sends."""
        self.cluster.configure(synchronous_mode=False, maximum_lag_on_failover=1 << 28)
        wait_until(lambda: self.primary.value('postgres', 'SHOW synchronous_standby_names') == '', PATIENCE, 'no commit waits for the standby')
        self.load(least)
        self.primary.sql('postgres', 'ALTER ROLE replicator NOLOGIN')
        self.primary.sql('postgres', 'SELECT pg_terminate_backend(pid) FROM pg_stat_replication')
        self.world.work_on(2 * least)

        def again():
            self.primary.sql('postgres', 'ALTER ROLE replicator LOGIN')
            self.cluster.configure(synchronous_mode=True, maximum_lag_on_failover=None)
        self.killed(again)

    def switch_over(self, least):
        self.load(least)
        self.patroni_at = self.primary.patroni_log_size()
        begun = self.move(lambda: self.cluster.switch_over(self.standby))
        self.rejoin(begun, rewinds=False)

    def audit(self):
        self.world.drain()
        self.expect(not self.standby.workers(self.world.database), 'no worker is on the standby')
        findings, figures = self.world.audit()
        figures['in doubt'] = sum(one.end == 'unknown' for one in ledger.transactions(ledger.read(self.world.directory)))
        figures['other'] += len(self.found)
        return self.found + findings, figures

    def row(self, title, figures):
        return [title] + ['%d' % figures[name] for name in FIGURES] + ['' if self.seconds[name] is None else '%.1f' % self.seconds[name] for name in SECONDS]


class Suite:
    def __init__(self, options):
        self.options, self.rows, self.failed = options, [], 0
        self.etcd = Etcd()
        self.nodes = [Node(name, self.etcd) for name in ('one', 'other')]
        self.cluster = Cluster(self.nodes)

    def end(self, good, name, findings=()):
        say('%s - %s' % ('ok' if good else 'not ok', name))
        self.failed += not good
        for rule, text in list(findings)[:20]:
            say('#   %s: %s' % (rule, text))
        if len(findings) > 20:
            say('#   and %d more: %s' % (len(findings) - 20, sorted({rule for rule, _ in findings})))

    def begin(self):
        self.etcd.start()
        wait_until(self.etcd.ready, 30, 'etcd answers')
        self.nodes[0].start()
        wait_until(self.nodes[0].is_primary, PATIENCE, 'the first node is the primary')
        self.nodes[1].start()
        wait_until(self.cluster.places, PATIENCE, 'the second node is a synchronous standby', 0.2)
        progress('both nodes are there')

    def round(self, title, name, body, judge):
        """Whether the round came to its end, so that there can be another."""
        begun, one, findings = time.monotonic(), None, []
        try:
            one = Round(self.cluster, name, self.options.seed)
            body(one)
            findings, figures = one.audit()
            self.rows.append(one.row(title, figures))
            judge(title, findings, figures, time.monotonic() - begun)
            return True
        except (Failed, psycopg.Error, OSError) as error:
            lines = [('failover', line) for line in ['%s: %s' % (type(error).__name__, error)] + traceback.format_exc().splitlines()[-19:]]
            self.end(False, title, (one.found if one else []) + lines)
            return False
        finally:
            if one:
                one.world.end()

    def is_clean(self, title, findings, figures, seconds):
        self.end(not findings, '%s: %d messages acknowledged, nothing lost or twice, in order (%.0f s)' % (title, figures['acknowledged'], seconds), findings)

    def must_lose(self, title, findings, figures, seconds):
        self.end(figures['lost'] > 0, '%s: the auditor finds that %d messages are lost (%.0f s)' % (title, figures['lost'], seconds), () if figures['lost'] else findings)

    def run(self):
        self.begin()
        for title, body, judge in (('killed at first', lambda one: one.kill(150), self.is_clean), ('killed again', lambda one: one.kill(400), self.is_clean),
                                   ('killed a third time', lambda one: one.kill(800), self.is_clean), ('switched over', lambda one: one.switch_over(300), self.is_clean),
                                   ('killed, the standby cut off', lambda one: one.kill_ahead(200), self.must_lose)):
            if not self.round(title, title.replace(' ', '_').replace(',', ''), body, judge):
                return

    def stop(self):
        for node in self.nodes:
            node.stop()
        self.etcd.stop(10)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument('--seed', type=int, default=random.SystemRandom().randrange(1000000))
    arguments.add_argument('--document', default='')
    options = arguments.parse_args()
    say('# seed %d' % options.seed)
    suite = Suite(options)
    try:
        suite.run()
    except (Failed, psycopg.Error, OSError) as error:
        suite.end(False, 'the cluster starts', [('failover', '%s: %s' % (type(error).__name__, error))])
    finally:
        suite.stop()
    lines = tables.lines_of(['the primary is'] + FIGURES + ['%s, s' % name for name in SECONDS], suite.rows)
    say('\n' + '\n'.join(lines) + '\n')
    if options.document and not suite.failed:
        tables.put(options.document, 'failover', lines)
    return 1 if suite.failed else 0


if __name__ == '__main__':
    sys.exit(main())
