"""What mq promises, as plain values: messages, their states, and who may see and take them.

A World has the facts that are committed, and its sessions. A session in a transaction has frames of facts on top, one for
each savepoint: a fact is a key such as ("message", "m7") and a value, and None stands for a fact that is gone. Times are
microseconds since 1970 as (least, most): a bound for what mq may write, which the runner narrows to what it wrote.
"""
import time
import uuid
from dataclasses import dataclass, field, replace

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 3600 * SECOND
DAY = 24 * HOUR
NEVER = None

# Channel names: of each the settings of its handler. Nobody but consumers outside takes what has none.
HANDLERS = {"handled": {"block": False}, "blocking": {"block": True}}
CHANNELS = ("handled", "blocking", "outside")
MAX_BACKOFF = HOUR
POLL_CEILING = DAY
INFINITE = 1 << 62  # the due time of a message that waits for others
PREREQUISITE = "MQ002"  # the SQLSTATE of one that dies with what it waits for
# No step begins while a message is due, or expires, within so short a time of now.
MARGIN = 60 * SECOND


class Mismatch(Exception):
    """mq and the model disagree."""


def uuid_of(name):
    return uuid.uuid5(uuid.NAMESPACE_OID, "mq model " + name)


def span(least, most=None):
    return (least, least if most is None else most)


def plus(a, b):
    return (a[0] + b[0], a[1] + b[1])


def latest(a, b):
    return (max(a[0], b[0]), max(a[1], b[1]))


def earliest(a, b):
    return a if b is NEVER else (min(a[0], b[0]), min(a[1], b[1]))


@dataclass(frozen=True)
class Message:
    name: str
    channel: str
    args: str
    ordered: bool
    order: int  # of sends: that of sequence numbers
    at: tuple  # when it is due, or its lease ends
    left: int
    backoff: int
    made: int = 0
    two_phase: tuple = None  # the commit interval; None: it may be delivered
    lease: str = None  # None, "poll" or "receive"
    token: int = None
    dedup: str = None
    expires: tuple = NEVER
    priority: int = 0
    payload: dict = None
    blocked: bool = False  # dead, and its ordered channel waits for it
    due: tuple = None  # of a message that waits for others: when it is due once they have ended

    @property
    def queue(self):
        return (self.channel, self.args)

    @property
    def waits(self):
        return self.due is not None

    def is_leased(self, now):
        return self.lease is not None and self.at[0] > now

    def has_expired(self, now):
        return self.two_phase is None and self.expires is not NEVER and self.expires[0] <= now

    def is_undeliverable(self, now):
        """It is to be removed, or moved to the dead letters, by whoever finds it."""
        if self.blocked or self.at[0] > now:
            return False
        return self.two_phase is not None or self.left <= 0 or self.has_expired(now)


@dataclass(frozen=True)
class Dead:
    message: Message
    reason: str
    sqlstate: str
    made: int
    after: tuple = ()  # what it still waited for


@dataclass
class Frame:
    facts: dict = field(default_factory=dict)
    locks: set = field(default_factory=set)  # that the transaction has for certain
    perhaps: set = field(default_factory=set)  # that it may have
    leases: list = field(default_factory=list)  # (message, when, how long, token)


class Session:
    def __init__(self, world, number):
        self.world, self.number, self.frames, self.now = world, number, [], None
        self.together = set()  # messages that end in one statement

    @property
    def in_transaction(self):
        return bool(self.frames)

    def get(self, key):
        for frame in reversed(self.frames):
            if key in frame.facts:
                return frame.facts[key]
        return self.world.facts.get(key)

    def set(self, key, value):
        self.frames[-1].facts[key] = value

    def all(self, kind):
        facts = dict(self.world.facts)
        for frame in self.frames:
            facts.update(frame.facts)
        return [value for (fact_kind, *_), value in facts.items() if fact_kind == kind and value is not None]

    def keys(self, kind):
        facts = dict(self.world.facts)
        for frame in self.frames:
            facts.update(frame.facts)
        return [key for key, value in facts.items() if key[0] == kind and value is not None]

    def lock(self, *keys):
        self.frames[-1].locks.update(keys)

    def lock_perhaps(self, *keys):
        self.frames[-1].perhaps.update(keys)

    # --- messages -------------------------------------------------------------------------------

    def message(self, name):
        return self.get(("message", name))

    def messages(self):
        return sorted(self.all("message"), key=lambda m: m.order)

    def is_own(self, message):
        """Whether the transaction has sent it."""
        there = self.world.facts.get(("message", message.name))
        return there is None or there.order != message.order

    def put(self, message, perhaps=False):
        self.set(("message", message.name), message)
        (self.lock_perhaps if perhaps else self.lock)(("message", message.name))

    def in_queue(self, queue):
        return [m for m in self.messages() if m.ordered and m.queue == queue]

    def remove(self, message, died=False):
        """Takes the message away. The next one of its channel becomes the head, in the same transaction."""
        was_head = message.ordered and self.in_queue(message.queue)[0].name == message.name
        self.set(("message", message.name), None)
        self.lock(("message", message.name))
        if message.dedup is not None:
            self.lock(("dedup", *message.queue, message.dedup))
        if was_head:
            self.first_is_linked(message.queue)
        self.has_ended(message.name, died)

    def first_is_linked(self, queue):
        rest = self.in_queue(queue)
        if rest and not self.world.is_locked(("message", rest[0].name), self):
            self.lock_perhaps(("message", rest[0].name))

    def dead_letter(self, message, reason, sqlstate, block=None, made=None):
        if block is None:
            block = reason in ("expired", "discarded") or (reason == "exhausted" and sqlstate != "MQ001")
        made = message.made if made is None else made
        after = tuple(self.prerequisites(message.name))
        self.set(("dead", message.name), Dead(replace(message, made=made, due=None), reason, sqlstate, made, after))
        self.lock(("dead", message.name))
        if block and message.ordered and HANDLERS.get(message.channel, {}).get("block"):
            self.put(replace(message, blocked=True, left=0, made=made, lease=None, token=None, dedup=None, expires=NEVER,
                             payload=None, due=None))
            if message.dedup is not None:
                self.lock(("dedup", *message.queue, message.dedup))
            self.has_ended(message.name, True)
        else:
            self.remove(message, died=True)

    # --- what waits for others ------------------------------------------------------------------
    #
    # A fact ("edge", d, p) says that d waits for p. Transactions that end several of d's prerequisites do not see one
    # another: mq notes what none of them can tell, and a later claim looks again. So d may stay as it is for a while,
    # and the row says whether it does (World.rows); the runner asks for the note.

    def prerequisites(self, name):
        return sorted(p for _, d, p in self.keys("edge") if d == name)

    def is_pending(self, name):
        m = self.message(name)
        return m is not None and not m.blocked

    def is_dead(self, name):
        return self.get(("dead", name)) is not None and not self.is_pending(name)

    def still_waits(self, name):
        return any(self.is_pending(p) for p in self.prerequisites(name))

    def is_doomed(self, name):
        return any(self.is_dead(p) for p in self.prerequisites(name))

    def has_ended(self, name, died):
        for _, d, p in self.keys("edge"):
            if d == name:
                self.set(("edge", d, p), None)
        if name in self.together:
            return
        for _, d, p in sorted(self.keys("edge")):
            if p == name and d not in self.together:
                self.prerequisite_ended(d, p, died)

    def prerequisite_ended(self, d, p, died):
        m = self.message(d)
        row = self.world.rows.get(d)
        if m is None or not m.waits:
            self.set(("edge", d, p), None)
        elif row is not None and row["at"] == INFINITE:
            # For the other prerequisites, or somebody else is at them, or at d.
            if not died:
                self.set(("edge", d, p), None)
        elif died:
            self.dies_with(m)
        else:
            self.set(("edge", d, p), None)
            if not self.still_waits(d) and not self.is_doomed(d):
                self.release(m)

    def dies_with(self, m):
        self.dead_letter(m, "prerequisite", PREREQUISITE, block=HANDLERS.get(m.channel, {}).get("block", False))

    def release(self, m):
        """It waits for nothing any more."""
        for p in self.prerequisites(m.name):
            self.set(("edge", m.name, p), None)
        self.put(replace(m, at=earliest(latest(m.due, self.world.statement), m.expires), due=None))

    def end_together(self, messages, end):
        """end(message) for each; those that wait for others of them end all the same."""
        self.together = {m.name for m in messages}
        for m in messages:
            end(m)
        names, self.together = sorted(self.together), set()
        for name in names:
            if self.is_pending(name):  # it has failed, and comes again
                continue
            died = self.get(("dead", name)) is not None
            for _, d, p in sorted(self.keys("edge")):
                if p == name:
                    self.prerequisite_ended(d, p, died)

    def settle_undeliverable(self, message, now):
        failed = self.get(("failed", message.name))
        if message.two_phase is not None:
            self.remove(message)
        elif message.left > 0 or message.has_expired(now):
            self.dead_letter(message, "expired", failed[-1][1] if failed else None)
        else:
            self.dead_letter(message, "exhausted", "MQ001" if message.lease else failed[-1][1] if failed else None,
                             block=False)

    def fail(self, message, sqlstate, now, charged, retry_in=None):
        """An attempt has failed. `charged`: a lease has counted it already."""
        made, left = (message.made, message.left) if charged else (message.made + 1, message.left - 1)
        message = replace(message, made=made, left=left)
        self.set(("failed", message.name), (self.get(("failed", message.name)) or ()) + ((made, sqlstate),))
        if message.expires is not NEVER and message.expires[0] <= now[0]:
            self.dead_letter(message, "expired", sqlstate)
        elif left <= 0:
            self.dead_letter(message, "exhausted", sqlstate)
        else:
            backoff = min(message.backoff, MAX_BACKOFF)
            wait = span(backoff, backoff + backoff // 10) if retry_in is None else span(retry_in)
            self.put(replace(message, at=earliest(plus(now, wait), message.expires), lease=None, token=None,
                             backoff=min(2 * backoff, MAX_BACKOFF)))

    def candidates(self, channels, now):
        """What a claim by this session must find, and what it may find.

        What the transaction has itself appended behind a message that is gone by now becomes a head by its commit, or by
        a claim before it."""
        must, may = [], []
        heads = set()
        for m in self.messages():
            if m.channel not in channels:
                continue
            if m.ordered:
                if m.queue in heads:
                    continue
                heads.add(m.queue)
            if m.blocked or m.at[0] > now or m.is_undeliverable(now) or self.world.is_locked(("message", m.name), self):
                continue
            row = self.world.rows.get(m.name)
            unlinked = m.ordered and self.is_own(m) and row is not None and not row["is_head"]
            (may if unlinked or self.world.is_perhaps_locked(("message", m.name), self) else must).append(m)
        return must, may


class World:
    def __init__(self, sessions):
        self.facts = {}
        self.sessions = [Session(self, n) for n in range(sessions)]
        self.observer = Session(self, sessions)
        self.rows = {}  # that the last statement's session sees: by message
        self.statement = None  # when the last statement ran
        self.order = 0
        self.offset = 0  # by which the server's clock is ahead

    def next_order(self):
        self.order += 1
        return self.order

    def now(self):
        return time.time_ns() // 1000 + self.offset

    def is_locked(self, key, by_other_than):
        return any(key in f.locks for s in self.sessions if s is not by_other_than for f in s.frames)

    def is_perhaps_locked(self, key, by_other_than):
        return any(key in f.perhaps for s in self.sessions if s is not by_other_than for f in s.frames)

    def is_free(self, key, session):
        return not self.is_locked(key, session) and not self.is_perhaps_locked(key, session)

    def commit(self, session):
        for frame in session.frames:
            self.facts.update(frame.facts)
        self.facts = {key: value for key, value in self.facts.items() if value is not None}
        session.frames, session.now = [], None

    def rollback(self, session):
        session.frames, session.now = [], None

    def times(self):
        """All moments at which something changes by itself."""
        facts = [self.facts] + [f.facts for s in self.sessions for f in s.frames]
        for value in (v for f in facts for v in f.values() if isinstance(v, Message)):
            yield value.at
            if value.expires is not NEVER:
                yield value.expires
