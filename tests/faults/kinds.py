"""What the kinds of faults share. A kind is a function of a Run with the decorator `kind`:

    @kind(3, 'workers terminated and cancelled', charges={'57014'})
    def workers_told(run):
        world = run.world()          # a database under load
        …                            # the fault
        world.drain()                # the end of the load

It may raise Skip, where something that it needs is missing. What it finds itself it gives to run.found."""
import audit
from world import World

KINDS = {}
# Kinds that take longest, and so begin first.
LONG = {2, 4, 8, 9, 10, 13, 14, 19}
# What a client sees whose server goes away under it.
LOST = {None, '57P01', '57P02', '57P03', '08006', '08001', '08003'}
# Lines of the log that tell of a crash, a stop or a start, and of nothing else.
CRASH_LINES = [r'was terminated by signal', r'terminating connection because of (crash|unexpected SIGQUIT)', r'terminating connection due to administrator command', r'the database system is (starting up|shutting down|in recovery mode|not yet accepting)',
               r'FATAL: .*(pre-existing shared memory|lock file)', r'exited with exit code 2', r'connection to client lost', r'FATAL: .*terminating',
               r'could not (send|receive) data', r'unexpected EOF',
               # A database that was dropped since the last checkpoint.
               r'startup WARNING: .*(could not open directory "base/|useless files may be left behind)']
# The same where a standby takes over.
MOVED_LINES = CRASH_LINES + [r'promot', r'replication', r'canceling (the )?wait for synchronous', r'could not (connect|receive)']


def calls(lines):
    """How many calls of handlers these lines of a server's log name."""
    return sum('mq-call' in line for line in lines)


class Skip(Exception):
    pass


class Kind:
    def __init__(self, number, title, name, body, allowed):
        self.number, self.title, self.name, self.body, self.allowed = number, title, name, body, allowed


def kind(number, title, **allowed):
    def add(body):
        KINDS[number] = Kind(number, '%d %s' % (number, title), 'kind%d' % number, body, audit.Allowed(**allowed))
        return body
    return add


class Run:
    """One repetition of a kind: its databases, and the servers that it has made for itself."""

    def __init__(self, common, name, seed, kind_of, progress, quick):
        self.common, self.name, self.seed, self.kind, self.progress, self.quick = common, name, seed, kind_of, progress, quick
        self.worlds, self.servers, self.found, self.undo = [], [], [], []

    def world(self, server=None, load=True, schema=(), **options):
        """A database under load, in the common server or this one. Its drain() ends the load; the auditor looks at it afterwards."""
        world = World(server or self.common.get(), '%s%s' % (self.name, '_%d' % len(self.worlds) if self.worlds else ''), self.seed, self.kind.allowed, schema)
        self.worlds.append(world)
        if load:
            world.begin_load(**({'producers': 3} if self.quick else {}) | options)
        return world

    def own(self, server):
        self.servers.append(server)
        return server

    def expect(self, is_so, text):
        if not is_so:
            self.found.append(('fault', text))

    def end(self):
        for world in self.worlds:
            world.end()
        for step in reversed(self.undo):
            step()
        for server in self.servers:
            try:
                server.stop('immediate', check=False)
            except Exception as error:      # it may never have started
                self.progress('%s: %s' % (server.name, error))
