"""The clients of a round, a thread each: they send, receive, acknowledge and wait, and note what they were told.

A client repeats a step with new messages until it has succeeded. A connection that is lost during COMMIT, or a statement that is
a transaction of its own, leaves what was sent `unknown`, with the session that was lost."""
import threading
import time
import uuid

import psycopg
from psycopg.types.json import Jsonb
from server import Failed, expect, wait_until

STEP = 20       # seconds that a client tries a step for


class Message:
    """`end`: committed, rolled back or unknown; `lost_with`: the process whose session was lost while it was sent. `acks`: how often
    its acknowledgement was confirmed; `lost_acks`: the processes whose sessions were lost while it was acknowledged."""

    def __init__(self, key, client, channel, payload):
        self.key, self.client, self.channel, self.payload = key, client, channel, dict(payload, key=key)
        self.id, self.end, self.lost_with = str(uuid.uuid4()), 'rolled back', None
        self.acks, self.lost_acks, self.refusals, self.lost_refusals, self.granted = 0, [], 0, 0, False

    @property
    def fails(self):
        return self.payload.get('fail', 0)


class Client(threading.Thread):
    """Has one session, and opens another where it was lost. What goes wrong is in `trouble`."""

    def __init__(self, load, name):
        super().__init__(name=name, daemon=True)
        self.load, self.session, self.process, self.trouble = load, None, None, []

    def run(self):
        try:
            self.work()
        except (Failed, psycopg.Error, KeyError) as error:
            self.trouble.append(('client', '%s: %s' % (self.name, error)))
        finally:
            if self.session:
                self.session.close()

    def connected(self):
        if self.session is None or self.session.closed or self.session.broken:
            self.session = wait_until(lambda: self.load.server.connect(self.load.database, application_name=self.name), STEP, 'a session', 0.1)
            self.process = self.session.info.backend_pid
        return self.session

    def until(self, step, what):
        """Calls step(session) until it has returned something true."""
        end = time.monotonic() + STEP
        while True:
            session = self.connected()
            try:
                done = step(session)
                if done:
                    return done
            except psycopg.Error as error:
                self.told(error)
            time.sleep(0.01)
            expect(time.monotonic() < end, 'tried for %d s in vain: %s' % (STEP, what))

    def is_lost(self):
        return self.session.closed or self.session.broken

    def told(self, error):
        """An error that no crash point explains is a finding. A transaction that is left open ends here."""
        if error.sqlstate not in (None, '57P01', '57P02', '57P03') and not (error.sqlstate == '58030' and 'crash point' in str(error)):
            self.trouble.append(('client', '%s was told %s: %s' % (self.name, error.sqlstate, error)))
        if not self.is_lost() and self.session.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            try:
                self.session.execute('ROLLBACK')
            except psycopg.OperationalError:
                pass    # it is lost by now

    def committing(self, session, messages, statement, values=None):
        """A statement at whose end the messages are committed."""
        try:
            session.execute(statement, values)
            end = 'committed'
        except psycopg.Error:
            end = 'unknown' if self.is_lost() else 'rolled back'
            raise
        finally:
            for message in messages:
                message.end, message.lost_with = end, self.process if end == 'unknown' else None
        return True

    def new(self, channel, payloads=({},)):
        return [self.load.message(self, channel, payload) for payload in payloads]

    SEND = """SELECT mq_send(m.channel, m.payload, NULL, m.args, m.ordered, m.delay, m.retries, '10 ms', id => m.id, dedup_key => m.dedup_key)
                FROM (VALUES %s) AS m (channel, payload, args, ordered, delay, retries, id, dedup_key)"""

    def statement(self, messages, args='', ordered=False, delay='0', retries=24, dedup_key=None):
        row = '(%s::text, %s::jsonb, %s::text, %s::boolean, %s::interval, %s::int, %s::uuid, %s::text)'
        values = []
        for m in messages:
            values += [m.channel, Jsonb(m.payload), args, ordered, delay, retries, m.id, dedup_key and dedup_key % m.key]
        return self.SEND % ', '.join([row] * len(messages)), values

    def send(self, channel, payloads=({},), **options):
        """In a statement that is a transaction of its own. Returns the messages that were committed."""
        def step(session):
            messages = self.new(channel, payloads)
            return self.committing(session, messages, *self.statement(messages, **options)) and messages
        return self.until(step, 'send to ' + channel)

    def send_together(self, channel, payloads, **options):
        """A statement each, in one transaction."""
        def step(session):
            messages = self.new(channel, payloads)
            session.execute('BEGIN')
            for message in messages:
                session.execute(*self.statement([message], **options))
            return self.committing(session, messages, 'COMMIT')
        return self.until(step, 'send to ' + channel)

    def call(self, statement, *values):
        """A statement that may be repeated."""
        return self.until(lambda session: [tuple(row) for row in session.execute(statement, values or None)] or True, statement)


class Producer(Client):
    """Passes every point of sending, and gives the workers what passes theirs."""

    def work(self):
        chain = dict(args='a', ordered=True)
        self.call("SELECT mq_pause('chain'), mq_pause('held')")
        self.load.paused.set()
        self.send('chain', [{}] * 2, **chain)
        self.send_together('chain', [{}] * 3, **chain)
        self.send('chain', **chain)
        self.send('leased', [{}] * 2)
        self.send('plain', [{}] * 12)
        self.send('plain', [{'fail': 1}, {'snooze': 1}, {'fail': 2}])
        self.send('plain', [{'fail': 9}], retries=1)
        self.send('plain', dedup_key='once %d')
        self.send('kept', [{}] * 2)
        self.send('limited', [{}] * 3, args='x')
        self.send('outside', [{}, {'refuse': 1}, {}])
        self.send('pairs', [{}] * 2, args='x')
        self.send('paced', [{}] * 2)
        self.send('capped', [{}] * 5)
        self.send('later', delay='1 hour')
        self.roll_back()
        self.prepare(chain)
        self.schedule()
        self.call("SELECT mq_resume('chain')")
        # Not before the waiter sleeps, so that it does.
        self.until(lambda session: self.load.clients[-1].has_ended or session.execute(
            "SELECT FROM pg_stat_activity WHERE application_name = 'waiter' AND wait_event_type = 'Extension'").fetchall(), 'the waiter sleeps')
        self.call("SELECT mq_resume('held')")

    def roll_back(self):
        def step(session):
            messages = self.new('plain', [{}] * 2)
            session.execute('BEGIN')
            session.execute(*self.statement(messages))
            session.execute('ROLLBACK')
            return True
        self.until(step, 'roll back')

    def prepare(self, options):
        """A transaction that was prepared is committed, whatever happens between the two."""
        def is_prepared(session, gid):
            return session.execute('SELECT FROM pg_prepared_xacts WHERE gid = %s', (gid,)).fetchall() != []

        def step(session):
            messages = self.new('chain')
            gid = 'prepared %d' % messages[0].key
            session.execute('BEGIN')
            session.execute(*self.statement(messages, **options))
            try:
                session.execute("PREPARE TRANSACTION '%s'" % gid)
            except psycopg.Error:
                if not self.is_lost() or not self.until(lambda again: [is_prepared(again, gid)], 'look for ' + gid)[0]:
                    raise
            messages[0].end = 'committed'
            self.until(lambda again: not is_prepared(again, gid) or again.execute("COMMIT PREPARED '%s'" % gid), 'commit ' + gid)
            return True
        self.until(step, 'prepare')

    def schedule(self):
        """Has a worker send a message for a schedule that is due now."""
        def step(session):
            messages = self.new('ticks')
            session.execute('BEGIN')
            session.execute("SELECT mq_schedule('tick', '1 hour', 'ticks', %s)", (Jsonb(messages[0].payload),))
            session.execute('UPDATE mq_timetable SET next_at = clock_timestamp()')
            return self.committing(session, messages, 'COMMIT') and messages
        self.until(step, 'schedule')
        self.until(lambda session: session.execute('SELECT FROM mq_timetable WHERE next_at > now()').fetchall(), 'the schedule is sent')


class Second(Client):
    """Appends to the same ordered channel, and sends to another."""

    def work(self):
        for _ in range(3):
            self.send('chain', args='a', ordered=True)
            self.send('plain')


class Waiter(Client):
    """Waits for a message that it has sent."""
    has_ended = False

    def run(self):
        super().run()
        self.has_ended = True

    def work(self):
        expect(self.load.paused.wait(STEP), 'nothing was paused')
        message = self.send('held')[0]
        state = self.call("SELECT state FROM mq_wait(ARRAY[%s]::uuid[], '10 s')", message.id)[0][0]
        handled = self.call('SELECT count(*) FROM effects WHERE key = %s', message.key)[0][0]
        if state != 'unknown' or handled != 1:
            self.trouble.append(('told', 'mq_wait says %s of a message that took effect %d times' % (state, handled)))


class Consumer(Client):
    """Receives and acknowledges until it is told that all has been sent, and nothing is left."""

    def work(self):
        while not self.load.over.is_set():
            try:
                self.consume(self.connected())
            except psycopg.Error as error:
                self.told(error)

    def receive(self, session, channel, batch, wait):
        rows = session.execute("SELECT id, lease FROM mq_receive(ARRAY[%s], %s, '500 ms', %s)", (channel, batch, wait)).fetchall()
        messages = [self.load.by_id[str(row[0])] for row in rows]
        for message in messages:
            message.granted = True
        return messages, rows[0][1] if rows else None

    def consume(self, session):
        messages, lease = self.receive(session, 'outside', 2, '200 ms')
        refused = [message for message in messages if message.payload.get('refuse') and not message.refusals]
        accepted = [message.id for message in messages if message not in refused]
        if accepted:
            self.acknowledge(session, accepted, lease)
        for message in refused:
            self.refuse(session, message, lease)
        messages, lease = self.receive(session, 'pairs', 1, '0')
        if messages:
            # While one of them runs there is a slot, but the other may not run.
            more, other = self.receive(session, 'pairs', 1, '0')
            self.acknowledge(session, [messages[0].id], lease)
            if more:
                self.acknowledge(session, [more[0].id], other)

    def refuse(self, session, message, lease):
        try:
            message.refusals += len(session.execute("SELECT mq_nack(ARRAY[%s]::uuid[], %s, 'refused', 'MQF01', retry_in => '10 ms')", (message.id, lease)).fetchall())
        except psycopg.Error:
            message.lost_refusals += self.is_lost()
            raise

    def acknowledge(self, session, ids, lease):
        messages = [self.load.by_id[one] for one in ids]
        try:
            told = [str(row[0]) for row in session.execute('SELECT mq_ack(%s::uuid[], %s)', (ids, lease))]
        except psycopg.Error:
            if self.is_lost():
                for message in messages:
                    message.lost_acks.append(self.process)
            raise
        for message in messages:
            message.acks += message.id in told


class Load:
    """The messages of a round, and its clients."""

    def __init__(self, server, database, numbers):
        self.server, self.database, self.numbers = server, database, numbers
        self.messages, self.by_id, self.paused, self.over, self.lock = [], {}, threading.Event(), threading.Event(), threading.Lock()
        self.clients = [Consumer(self, 'consumer'), Producer(self, 'producer'), Second(self, 'second'), Waiter(self, 'waiter')]

    def message(self, client, channel, payload):
        with self.lock:
            message = Message(next(self.numbers), client.name, channel, payload)
            self.messages.append(message)
            self.by_id[message.id] = message
            return message

    def begin(self):
        for client in self.clients:
            client.start()

    def finish_sending(self, seconds):
        end = time.monotonic() + seconds
        for client in self.clients[1:]:
            client.join(max(0, end - time.monotonic()))
            expect(not client.is_alive(), '%s did not end in %d s' % (client.name, seconds))

    def end(self):
        self.over.set()
        for client in self.clients:
            client.join(STEP)
        return [one for client in self.clients for one in client.trouble] + [('client', client.name + ' did not end') for client in self.clients if client.is_alive()]
