"""The audit of a round: what the clients were told (clients.py) against what the database holds when all has drained.

A finding is a rule and a text."""
import collections
import re

from world import World

# A session that is killed at one of these has committed what it was at; at any other point it has not.
AFTER_COMMIT = {'commit_done', 'commit_counted', 'commit_lowered', 'commit_woken', 'running_ends', 'running_returned', 'receive_sleeps'}
OUTSIDE = {'outside', 'pairs'}      # the channels of consumers
BAD_LINE = re.compile(r'PANIC:|TRAP:|segfault|was terminated by|FATAL:|ERROR:|mq worker:|WARNING:|exited with exit code [^01]')
USUAL_LINE = re.compile(r'terminating (background worker "mq worker"|connection) due to administrator command|crash point|connection to client lost|'
                        r'the database system is (in recovery mode|starting up|not yet accepting connections)|terminating connection because of crash|ERROR:  planned')


class Database:
    """Reads the database of the rounds, and remembers the totals of the round before."""

    def __init__(self, server, name):
        self.server, self.name, self.allowed = server, name, collections.namedtuple('Allowed', 'health')(set())
        self.totals = self.read_totals()

    def sql(self, query, *values):
        return self.server.sql(self.name, query, *values)

    def read_totals(self):
        return {row[0]: row[1:] for row in self.sql('SELECT channel_name, handled, failed, died FROM mq_stats')}

    def left(self):
        return self.sql("SELECT count(*) FROM mq_msgs WHERE channel_name <> 'later'")[0][0]

    def unhealthy(self):
        """What workers have failed at is told for a while: the error of a crash point is no finding."""
        return [row for row in World.unhealthy(self) if not (row[0] == 'workers succeed' and 'crash point' in row[1])]

    leftovers, broken_indexes = World.leftovers, World.broken_indexes


def grouped(rows):
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row[0]].append(row[1:])
    return groups


class Audit:
    """`fired`: the points at which processes ended, and which; `ways`: how."""

    def __init__(self, database, load, fired, ways, log):
        self.database, self.load, self.fired, self.ways, self.log, self.findings = database, load, fired, ways, log, []
        keys = [message.key for message in load.messages]
        self.effects = grouped(database.sql('SELECT key, attempt, id::text, n FROM effects WHERE key = ANY (%s) ORDER BY n', keys))
        self.dead = grouped(database.sql("SELECT (payload_json ->> 'key')::int, reason, attempts_made FROM mq_dead WHERE (payload_json ->> 'key')::int = ANY (%s)", keys))
        self.done = grouped(database.sql("SELECT (payload_json ->> 'key')::int, result, id::text FROM mq_done WHERE (payload_json ->> 'key')::int = ANY (%s)", keys))
        self.failures = grouped(database.sql('SELECT message_id::text, sqlstate FROM mq_failures WHERE message_id = ANY (%s)', [message.id for message in load.messages]))
        self.later = {row[0] for row in database.sql("SELECT (message_json ->> 'key')::int FROM mq_msgs WHERE channel_name = 'later'")}

    def found(self, rule, text, *values):
        self.findings.append((rule, text % values))

    def has_committed(self, process):
        """Whether what a lost session was at has committed; None: nobody knows."""
        points = [point for point, one in self.fired if one == process]
        return points[0] in AFTER_COMMIT if points and 'kill' in self.ways else None

    def run(self):
        for message in self.load.messages:
            if message.end == 'unknown' and message.channel != 'ticks':
                message.end = {True: 'committed', False: 'rolled back', None: 'unknown'}[self.has_committed(message.lost_with)]
            self.check(message)
        self.order()
        self.statistics()
        for text in self.database.broken_indexes():
            self.found('index', '%s', text)
        for line in self.log:
            if BAD_LINE.search(line) and not USUAL_LINE.search(line) and not ('kill' in self.ways and 'was terminated by signal 9' in line):
                self.found('log', '%s', line.strip()[:200])
        if 'kill' in self.ways and sum('was terminated by signal 9' in line for line in self.log) != 1:
            self.found('log', 'the server did not crash once')
        return self.findings

    def check(self, m):
        of, letters, what = self.effects.get(m.key, []), self.dead.get(m.key, []), '%d of %s' % (m.key, m.channel)
        if m.channel == 'later':
            there = m.key in self.later
        elif m.channel in OUTSIDE:
            there = self.acknowledged(m, what)
        else:
            there = bool(of or letters)
        m.settled = there and m.channel != 'later'
        if there and m.end == 'rolled back':
            self.found('rolled back', '%s was not sent, but there is an effect, a dead letter or a row', what)
        if not there and m.end == 'committed':
            self.found('lost', '%s', what)
        if not there:
            return
        hopeless = m.fails > 3
        # At least once: a leased call whose worker or server went down is made again.
        if len(of) > (1 + len(self.fired) if m.channel == 'leased' else 1):
            self.found('doubled', '%s took effect %d times', what, len(of))
        if m.channel != 'ticks' and any(row[1] != m.id for row in of):
            self.found('doubled', '%s took effect with another id', what)
        if bool(letters) != hopeless or len(letters) > 1 or letters and (of or letters[0] != ('exhausted', 2)):
            self.found('dead letters', '%s has %s and %d effects', what, letters, len(of))
        self.attempts(m, of, hopeless, what)
        if [(row[0], row[1]) for row in self.done.get(m.key, [])] != ([({'of': m.id}, m.id)] if m.channel == 'kept' else []):
            self.found('history', '%s is in mq_done as %s', what, self.done.get(m.key))

    def acknowledged(self, m, what):
        """A lost acknowledgement counts if it has committed, or may have."""
        ends = [self.has_committed(process) for process in m.lost_acks]
        if m.acks + ends.count(True) > 1:
            self.found('doubled', '%s was acknowledged %d times', what, m.acks + ends.count(True))
        if not m.granted:
            return False
        if not m.acks and not any(end is not False for end in ends):
            self.found('lost', '%s was never acknowledged, and is gone', what)
        return True

    def attempts(self, m, of, hopeless, what):
        """A crash may charge an attempt to what its process had in hand; nothing else is charged that did not fail."""
        states = [row[0] for row in self.failures.get(m.id, [])]
        planned, crashes = states.count('MQF01'), states.count('57P02')
        if len(states) > planned + crashes or crashes > ('kill' in self.ways):
            self.found('failures', '%s has %s', what, states)
        # A crash takes the place of a planned failure of that attempt.
        most = m.refusals + m.lost_refusals if m.channel in OUTSIDE else 2 if hopeless else m.fails
        least = m.refusals if m.channel in OUTSIDE else most - crashes
        if not least <= planned <= most:
            self.found('attempts', '%s was to fail %d to %d times: %s', what, least, most, states)
        if of and m.channel not in ('leased', 'ticks') and of[0][0] != len(states) + 1:
            self.found('attempts', '%s was handled on attempt %d after %s', what, of[0][0], states)

    def order(self):
        """Each client sends one message of the ordered channel after the other."""
        for client in {message.client for message in self.load.messages}:
            sent = [message.key for message in self.load.messages if message.client == client and message.channel == 'chain' and message.key in self.effects]
            handled = sorted(sent, key=lambda key: self.effects[key][0][2])
            if sent != handled:
                self.found('out of order', 'sent %s, handled %s', sent, handled)

    def statistics(self):
        """The totals, and the counts of rows that mq keeps in shared memory."""
        before, now = self.database.totals, self.database.read_totals()
        for channel, totals in now.items():
            settled = [m for m in self.load.messages if m.channel == channel and m.settled]
            died = sum(m.key in self.dead for m in settled)
            failed = sum(len(self.failures.get(m.id, [])) for m in settled)
            grown = tuple(a - b for a, b in zip(totals, before.get(channel, (0, 0, 0))))
            if grown != (len(settled) - died, failed, died):
                self.found('statistics', '%s: mq_stats counts %s handled, failed and died, not %s', channel, grown, (len(settled) - died, failed, died))
        self.database.totals = now
        for channel, ready, scheduled, dead, later, letters in self.database.sql("""
                SELECT s.channel_name, ready, scheduled, dead, (SELECT count(*) FROM mq_msgs m WHERE m.channel_name = s.channel_name),
                       (SELECT count(*) FROM mq_dead d WHERE d.channel_name = s.channel_name) FROM mq_stats s"""):
            if (ready, scheduled, dead) != (0, later, letters):
                self.found('statistics', '%s: mq_stats counts %d ready, %d scheduled and %d dead messages; there are %d scheduled and %d dead', channel, ready, scheduled, dead, later, letters)
