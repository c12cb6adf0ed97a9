"""The generator: client processes that do at random what docs/reference.md offers, and record it in a ledger each.

A client reads in the file `target` of its directory how to connect, each time that it does so: a fault may move the
server. All that it draws comes from its seed. It goes on over every error; SIGTERM ends it after its transaction."""
import ctypes
import json
import os
import random
import signal
import time
import uuid

import psycopg

import ledger

CHANNELS = ['plain'] * 6 + ['batch'] * 4 + ['kept'] * 2 + ['leased'] * 2 + ['travel', 'block', 'limited', 'cleared'] + ['outside'] * 2 + ['polled']
ARGS = ['c%d' % n for n in range(20)]
PRODUCERS, OTHERS = 8, ['operator', 'consumer', 'consumer', 'poller']


class Client:
    """One session after the other, by turns with its server."""

    def __init__(self, directory, name, seed, pause):
        self.directory, self.name, self.pause = directory, name, pause
        self.random = random.Random('%s %s' % (seed, name))
        self.ledger = ledger.Ledger('%s/%s.ledger' % (directory, name))
        self.connection, self.tx, self.stopped, self.errors, self.in_doubt = None, 0, False, 0, None
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def stop(self, *_):
        self.stopped = True

    def run(self):
        turn = {'p': self.produce, 'o': self.operate, 'c': self.consume, 'l': self.poll, 'i': self.insist}[{'poller': 'l'}.get(self.name.split('-')[0], self.name[0])]
        while not self.stopped:
            try:
                if self.connection is None:
                    with open(self.directory + '/target') as file:
                        self.connection = psycopg.connect(file.read() + ' connect_timeout=5 application_name=client', autocommit=True, prepare_threshold=None)
                turn()
            except psycopg.Error:
                if self.connection is None or self.connection.closed or self.connection.broken:
                    self.connection = None
                    time.sleep(0.1)
                elif self.connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                    self.execute('ROLLBACK', quiet=True)
            time.sleep(self.random.expovariate(1 / self.pause))

    def execute(self, query, *values, quiet=False):
        try:
            cursor = self.connection.execute(query, values or None)
            return cursor.fetchall() if cursor.description else cursor.statusmessage
        except psycopg.Error:
            if not quiet:
                raise

    def step(self, ask, query, *values, auto=False, told=lambda rows: {}, **fields):
        """A statement with its lines in the ledger."""
        self.ledger.write(tx=self.tx, ask=ask, **({'auto': True} if auto else {}), **fields)
        rows = self.execute(query, *values)
        self.ledger.write(tx=self.tx, told=ask, **told(rows))
        return rows

    def transaction(self, body, end='COMMIT', auto=False):
        """Runs the body in a transaction that ends so, or, if it is `auto`, that is its one statement. True if it committed."""
        self.tx += 1
        asked = auto
        try:
            if not auto:
                self.execute('BEGIN')
            body(auto)
            if end == 'COMMIT':
                if not auto:
                    self.ledger.write(tx=self.tx, ask='commit')
                    asked = True
                    if self.execute('COMMIT') != 'COMMIT':
                        raise psycopg.Error('rolled back')
                self.ledger.write(tx=self.tx, end='committed')
                return True
            if end == 'ROLLBACK':
                self.execute('ROLLBACK')
                self.ledger.write(tx=self.tx, end='rolled back')
                return False
            self.ledger.write(tx=self.tx, ask='commit', gid=end)
            asked = True
            self.execute("PREPARE TRANSACTION '%s'" % end)
            self.ledger.write(tx=self.tx, end='prepared')
        except psycopg.Error as error:
            lost = self.connection.closed or self.connection.broken
            self.ledger.write(tx=self.tx, end='unknown' if asked and lost else 'rolled back', sqlstate=error.sqlstate, error=str(error)[:200])
            raise
        # Prepared. Somebody else may end it, so that this session, or its end, changes nothing.
        time.sleep(self.random.random() * 0.2)
        resolve(self.ledger, self.connection, end, self.random.random() < 0.7)

    # --- producers ------------------------------------------------------------------------------------

    def message(self, channel=None):
        """A message as the ledger describes it."""
        pick = self.random.random
        channel = channel or self.random.choice(CHANNELS)
        retries = self.random.randint(2, 3)
        payload = {'key': self.random.getrandbits(32)}
        if channel in ('outside', 'polled'):
            retries = 20
        elif channel not in ('travel', 'cleared'):
            draw = pick()
            if draw < 0.10:
                payload['fail'] = self.random.choice([1, 1, 2, 99])
            elif draw < 0.13 and channel != 'leased':
                payload['snooze'] = True
            elif draw < 0.15:
                payload['discard'] = True
            elif draw < 0.17:
                payload['sleep'] = 0.05
            elif draw < 0.20:
                payload['progress'] = True
        if channel == 'outside' and pick() < 0.1:
            payload['fail'] = 1
        ordered = channel == 'block' or channel not in ('cleared', 'limited') and pick() < 0.5
        return {'id': str(uuid.UUID(int=self.random.getrandbits(128), version=4)), 'channel': channel, 'args': self.random.choice(ARGS), 'ordered': ordered,
                'retries': retries, 'payload': payload}

    def send(self, auto, undone=False):
        """One statement that sends."""
        pick, m = self.random.random, self.message()
        draw = pick()
        common = {'undone': undone} if undone else {}
        payload = json.dumps(m['payload'])
        ids = lambda rows: {'ids': [str(row[0]) for row in rows]}
        backoff = '1 s' if m['channel'] == 'polled' else '100 ms'
        if draw < 0.15:
            many = [dict(m, id=None, payload=dict(m['payload'], key=self.random.getrandbits(32))) for _ in range(self.random.randint(1, 8))]
            self.step('send', 'SELECT mq_send_many(%s, %s::jsonb[], channel_args => %s, ordered => %s, retries => %s, retry_backoff => %s)',
                      m['channel'], [json.dumps(one['payload']) for one in many], m['args'], m['ordered'], m['retries'], backoff, auto=auto, told=ids, messages=many, **common)
        elif draw < 0.25:
            many = [self.message(m['channel']) for _ in range(self.random.randint(1, 4))]
            self.step('send', 'SELECT mq_insert(ARRAY[%s])' % ', '.join(['(%s, %s, %s, %s, %s, %s, NULL, %s, %s, %s, NULL)::mq_new_t'] * len(many)),
                      *[value for one in many for value in (one['id'], '0', one['retries'], backoff, one['channel'], one['args'], one['ordered'], one['channel'], json.dumps(one['payload']))],
                      auto=auto, messages=many, **common)
        elif draw < 0.32:
            topic = self.random.choice(['news.eu.x', 'news.us'])
            payload = {'key': self.random.getrandbits(32)}
            to = [('all news', False)] + [('some news', True)] * (topic == 'news.eu.x')
            self.step('send', 'SELECT mq_publish(%s, %s, retries => 3, retry_backoff => %s)', topic, json.dumps(payload), backoff, auto=auto, told=ids,
                      messages=[{'id': None, 'channel': channel, 'args': '', 'ordered': ordered, 'retries': 3, 'payload': payload} for channel, ordered in to], **common)
        elif draw < 0.38 and not m['ordered']:
            m['dedup'] = 'key %d' % self.random.randrange(5)
            self.step('send', 'SELECT mq_send(%s, %s, channel_args => %s, retries => %s, retry_backoff => %s, dedup_key => %s, id => %s)', m['channel'], payload, m['args'],
                      m['retries'], backoff, m['dedup'], m['id'], auto=auto, told=ids, messages=[m], **common)
        else:
            m['delay'] = self.random.choice([0, 0, 0, 0, 0.3])
            if pick() < 0.05:
                m['expires'] = 0.2
            if pick() < 0.10:
                m['after'] = self.recent(self.random.randint(1, 3))
            elif pick() < 0.06 and 'expires' not in m:
                m['two_phase'] = 2
            interval = lambda name: '%g s' % m[name] if name in m else None
            self.step('send', 'SELECT mq_send(%s, %s, channel_args => %s, ordered => %s, delay => %s, retries => %s, retry_backoff => %s, commit_interval => %s, expires => %s,'
                      ' priority => %s, headers => %s, after => %s, id => %s)', m['channel'], payload, m['args'], m['ordered'], interval('delay'), m['retries'], backoff,
                      interval('two_phase'), interval('expires'), 0 if m['ordered'] else self.random.choice([0, 0, 5, -5]), '{"traceparent": "00-%s"}' % m['id'],
                      m.get('after'), m['id'], auto=auto, told=ids, messages=[m], **common)
            self.sent = (getattr(self, 'sent', []) + [m['id']])[-20:]
            if 'two_phase' in m and not undone:
                self.uncommitted = getattr(self, 'uncommitted', []) + [m['id']]

    def recent(self, count):
        known = getattr(self, 'sent', [])
        return self.random.sample(known, min(count, len(known))) or None

    def produce(self):
        draw = self.random.random()
        if draw < 0.04:
            return self.call()
        if draw < 0.08:
            return self.wait()
        if getattr(self, 'uncommitted', None):
            ids, self.uncommitted = self.uncommitted, []
            if self.random.random() < 0.8:
                return self.transaction(lambda auto: self.step('mq_commit', 'SELECT mq_commit(%s::uuid[])', ids, auto=auto, of=ids,
                                                               told=lambda rows: {'ids': [str(one) for one in rows[0][0]]}), auto=True)
        if draw < 0.20:
            return self.transaction(self.send, auto=True)

        def body(auto):
            for _ in range(self.random.randint(1, 4)):
                if self.random.random() < 0.08:
                    self.execute('SAVEPOINT s')
                    self.send(auto, undone=True)
                    self.execute('ROLLBACK TO s')
                else:
                    self.send(auto)
        end = self.random.random()
        self.transaction(body, 'ROLLBACK' if end < 0.08 else '%s %d' % (self.name, self.tx + 1) if end < 0.12 else 'COMMIT')

    def call(self):
        key = str(uuid.uuid4())
        payload = {'call': key, **({'fail': 99} if self.random.random() < 0.3 else {})}
        self.tx += 1
        self.ledger.write(tx=self.tx, ask='call', call=key, fails='fail' in payload)
        try:
            rows = self.execute("CALL mq_call('calls', %s, timeout => '20 s')", json.dumps(payload))
            self.ledger.write(tx=self.tx, told='call', result=rows[0][0], end='committed')
        except psycopg.Error as error:
            self.ledger.write(tx=self.tx, told='call', sqlstate=error.sqlstate, end='unknown')
            raise

    def wait(self):
        m = dict(self.message('kept'), ordered=False)
        if self.transaction(lambda auto: self.step('send', 'SELECT mq_send(%s, %s, channel_args => %s, retries => %s, retry_backoff => %s, id => %s)', m['channel'],
                                                   json.dumps(m['payload']), m['args'], m['retries'], '50 ms', m['id'], auto=auto, messages=[m]), auto=True):
            self.tx += 1
            self.step('wait', "SELECT state, result::text FROM mq_wait(%s::uuid[], '2 s')", [m['id']], of=m['id'], told=lambda rows: {'state': rows[0][0], 'result': rows[0][1]})

    def insist(self):
        """What a careful program does: where the answer to its COMMIT was lost it asks what has become of the message, and sends it
        again if the server knows of none. The server remembers those of this channel when they are done."""
        m = self.in_doubt = self.in_doubt or dict(self.message('kept'), ordered=False)

        def send(auto):
            state = self.execute('SELECT state FROM mq_status(ARRAY[%s::uuid])', m['id'])[0][0]
            query, values = 'SELECT %s', (m['id'],)
            if state == 'unknown':
                query = 'SELECT mq_send(%s, %s, channel_args => %s, retries => %s, retry_backoff => %s, dedup_key => %s, id => %s)'
                values = m['channel'], json.dumps(m['payload']), m['args'], m['retries'], '100 ms', m['id'], m['id']
            self.step('send', query, *values, auto=auto, told=lambda rows: {'ids': [str(row[0]) for row in rows]}, messages=[m])
        self.transaction(send)
        self.in_doubt = None

    # --- who looks after the queue --------------------------------------------------------------------

    def operate(self):
        some = "SELECT array(SELECT id FROM mq_msgs WHERE channel_name IN ('plain', 'kept', 'batch', 'leased') AND commit_interval IS NULL ORDER BY random() LIMIT 2)"
        draw = self.random.random()
        if draw < 0.15:
            ids = [str(one) for one in self.execute(some)[0][0]] + self.put_by()
            self.transaction(lambda auto: self.step('cancel', 'SELECT mq_cancel(%s::uuid[], %s)', ids, 'planned', of=ids, told=lambda rows: {'ids': [str(row[0]) for row in rows]}),
                             'ROLLBACK' if self.random.random() < 0.2 else 'COMMIT')
        elif draw < 0.22:
            ids = [str(one) for one in self.execute(some)[0][0]]
            self.transaction(lambda auto: self.step('delete', 'SELECT mq_delete(%s::uuid[])', ids, of=ids, auto=auto), auto=True)
        elif draw < 0.30:
            name = self.random.choice(['plain', 'batch', 'leased', 'outside'])
            self.execute('SELECT mq_pause(%s)', name)
            time.sleep(0.1)
            self.execute('SELECT mq_resume(%s)', name)
        elif draw < 0.40:
            rows = self.execute('SELECT id FROM mq_dead WHERE channel_name = ANY (%s) ORDER BY random() LIMIT 3', sorted(set(CHANNELS) - {'travel'}) + ['calls', 'all news', 'some news'])
            ids = [str(row[0]) for row in rows]

            def redrive(auto):
                self.execute('INSERT INTO mended SELECT unnest(%s::uuid[]) ON CONFLICT DO NOTHING', ids)
                self.step('redrive', 'SELECT mq_redrive(%s::uuid[], retries => 3)', ids, of=ids)
            self.transaction(redrive)
        elif draw < 0.46:
            self.transaction(lambda auto: self.step('clear', "SELECT mq_clear('{cleared}')", auto=auto), auto=True)
        elif draw < 0.54:
            self.execute('CALL mq_run(max_messages => 5)')
        elif draw < 0.62:
            self.execute("SELECT mq_register_handler('plain', 'work(mq_message)', max_backoff => '200 ms', batch_size => %s)", self.random.choice([None, 1, 50]))
        elif draw < 0.66:
            self.execute("SELECT mq_limit('limited', max_pending => 200, max_running => %s)", self.random.choice([1, 2]))
        elif draw < 0.72:
            if self.random.random() < 0.5:
                self.execute("SELECT mq_schedule('tick', '1 second', 'ticks', '{}', time_zone => 'UTC')")
            else:
                self.execute("SELECT mq_unschedule('tick')")
        elif draw < 0.76:
            self.execute("SELECT mq_grant('client', 'produce'), mq_revoke('client', 'produce')")
        else:
            for view in self.random.sample(['mq_stats', 'mq_workers', 'mq_horizon', 'mq_health()', 'mq_limits', 'mq_schedules', 'mq_subscriptions'], 2):
                self.execute('SELECT count(*) FROM ' + view)
            self.execute('SELECT mq_why(id) FROM mq_msgs LIMIT 1')
            self.execute('SELECT s.* FROM (SELECT array_agg(id) FROM (SELECT id FROM mq_msgs LIMIT 5) m) i (ids), mq_status(ids) s WHERE ids IS NOT NULL')

    def put_by(self):
        """Sends a message that is not due yet, so that a cancel finds at least one."""
        m = dict(self.message('plain'), ordered=False, delay=1)
        sent = self.transaction(lambda auto: self.step('send', "SELECT mq_send('plain', %s, channel_args => %s, delay => '1 s', retries => %s, retry_backoff => '100 ms', id => %s)",
                                                       json.dumps(m['payload']), m['args'], m['retries'], m['id'], auto=auto, messages=[m]), auto=True)
        return [m['id']] if sent else []

    # --- consumers outside ----------------------------------------------------------------------------

    def consume(self):
        seconds = self.random.choice([1, 3])
        got = []
        self.transaction(lambda auto: got.extend(self.step(
            'receive', "SELECT id, lease, attempt, payload_json FROM mq_receive('{outside}', %s, %s, '200 ms')", self.random.randint(1, 5), '%d s' % seconds, auto=auto,
            lease=seconds, told=lambda rows: {'got': [[str(row[0]), row[1], row[2]] for row in rows]})), auto=True)
        if not got or self.random.random() < 0.03:      # left alone, so that their lease runs out
            return
        token, ids = got[0][1], lambda rows: {'ids': [str(row[0]) for row in rows]}
        if self.random.random() < 0.1:
            self.transaction(lambda auto: self.step('extend', "SELECT mq_extend(%s::uuid[], %s, '3 s')", [str(row[0]) for row in got], token, auto=auto, told=ids), auto=True)
        bad = [str(row[0]) for row in got if (row[3] or {}).get('fail', 0) >= row[2]]
        good = [str(row[0]) for row in got if str(row[0]) not in bad]
        if bad:
            self.transaction(lambda auto: self.step('nack', "SELECT mq_nack(%s::uuid[], %s, 'planned', 'MQF01', '50 ms')", bad, token, auto=auto, of=bad, told=ids), auto=True)
        if good:
            self.transaction(lambda auto: self.step('ack', 'SELECT mq_ack(%s::uuid[], %s)', good, token, auto=auto, of=good, lease=token, told=ids),
                             'ROLLBACK' if self.random.random() < 0.05 else 'COMMIT')

    def poll(self):
        got = []
        self.transaction(lambda auto: got.extend(row for row in self.step(
            'poll', "SELECT id, extract(epoch FROM retry_backoff)::float8 FROM mq_poll('{polled}', 3)", auto=auto,
            told=lambda rows: {'got': [[str(row[0]), None, row[1]] for row in rows if row[0]]}) if row[0]), auto=True)
        ids = [str(row[0]) for row in got]
        if not ids or self.random.random() < 0.03:
            return
        if self.random.random() < 0.1:
            self.execute("SELECT mq_keep_alive(%s::uuid[], '2 s')", ids)
        if self.random.random() < 0.1:
            self.execute("SELECT mq_checkpoint(%s, '2 s', NULL, NULL, 1)", ids[0])
        self.transaction(lambda auto: self.step('delete', 'SELECT mq_delete(%s::uuid[])', ids, of=ids, auto=auto, polled=True), auto=True)


def resolve(book, connection, gid, commit):
    """Ends a prepared transaction, and writes what has become of it."""
    try:
        connection.execute(("COMMIT PREPARED '%s'" if commit else "ROLLBACK PREPARED '%s'") % gid)
        book.write(tx=0, resolve='committed' if commit else 'rolled back', gid=gid)
    except psycopg.Error as error:
        book.write(tx=0, resolve='unknown', gid=gid, sqlstate=error.sqlstate)
        raise


class Load:
    """The client processes of a run. kill() ends one as kill -9 does, and another takes its place."""

    def __init__(self, directory, seed, numbers, producers=PRODUCERS, others=OTHERS, pause=0.015):
        self.directory, self.seed, self.numbers, self.pause, self.pids = directory, seed, numbers, pause, {}
        for role in ['producer'] * producers + others:
            self.start(role)

    def start(self, role):
        # A name, and with it a seed and a ledger, is never used again.
        name = '%s-%d' % (role, next(self.numbers))
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)      # it does not outlive whoever started it
                Client(self.directory, name, self.seed, self.pause).run()
                status = 0
            except BaseException as error:
                with open(self.directory + '/trouble', 'a') as file:
                    file.write('%s: %r\n' % (name, error))
            os._exit(status)
        self.pids[pid] = role

    def kill(self, random_source):
        pid = random_source.choice([pid for pid, role in self.pids.items() if role == 'producer'])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.start(self.pids.pop(pid))

    def stop(self, roles=None, seconds=30):
        """Ends the clients of these roles, or all; those that do not hear in time as kill() does."""
        pids = [pid for pid, role in self.pids.items() if roles is None or role in roles]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + seconds
        while pids:
            for pid in list(pids):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    pids.remove(pid)
                    self.pids.pop(pid)
                elif time.monotonic() > end:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
