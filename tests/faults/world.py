"""A run: a database under load, what is done to it meanwhile, how long it takes to drain, and what it holds then."""
import datetime
import itertools
import json
import os
import random
import sys
import time

import psycopg

import audit
import ledger
import load
from server import Failed, compiled, wait_until

HERE = os.path.dirname(os.path.abspath(__file__))
DRAIN = 30          # seconds, after the fault and the load have ended, in which nothing more is handled
PATIENCE = 15       # seconds, until what is left over is gone and mq_health() is content
USUAL_HEALTH = {'horizon', 'statistics'}


class World:
    """Owned by the main program. `server` is where the database is now; a fault may set it to another."""

    def __init__(self, server, name, seed, allowed=None, schema=(), patience=PATIENCE):
        self.server, self.database, self.seed = server, name, seed
        self.allowed, self.patience = allowed or audit.Allowed(calm=True), patience
        self.random = random.Random('fault %s %s' % (name, seed))
        self.directory = '%s/runs/%s' % (os.environ['WORK'], name)
        os.makedirs(self.directory)
        self.tidy_book = ledger.Ledger(self.directory + '/tidy.ledger')
        self.log_from, self.logs, self.load, self.trouble, self.drained_in, self.tx, self.numbers = server.log_size(), [], None, [], None, 0, itertools.count(1)
        server.sql('postgres', 'CREATE DATABASE %s' % name)
        with open(HERE + '/schema.sql') as file:
            self.sql(file.read())
        server.sql('postgres', "DO $$ BEGIN CREATE ROLE client; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
        for statement in schema:
            self.sql(statement)
        self.aim()

    def aim(self):
        """Tells the clients where the server is."""
        path = self.directory + '/target'
        with open(path + '.new', 'w') as file:
            file.write(self.server.conninfo(self.database))
        os.rename(path + '.new', path)

    def sql(self, query, *values):
        return self.server.sql(self.database, query, *values)

    def value(self, query, *values):
        return self.server.value(self.database, query, *values)

    def begin_load(self, **options):
        self.load = load.Load(self.directory, self.seed, self.numbers, **options)

    def send(self, messages, backoff='100 ms', delay='0'):
        """Sends messages of the fault's own, in one transaction, with their lines in the ledger. Returns their ids."""
        self.tx += 1
        with self.server.connect(self.database) as session:
            session.execute('BEGIN')
            for m in messages:
                self.tidy_book.write(tx=self.tx, ask='send', messages=[m])
                session.execute('SELECT mq_send(%s, %s, channel_args => %s, ordered => %s, retries => %s, retry_backoff => %s, delay => %s, id => %s)',
                                (m['channel'], json.dumps(m['payload']), m['args'], m['ordered'], m['retries'], backoff, delay, m['id']))
                self.tidy_book.write(tx=self.tx, told='send', ids=[m['id']])
            self.tidy_book.write(tx=self.tx, ask='commit')
            session.execute('COMMIT')
            self.tidy_book.write(tx=self.tx, end='committed')
        return [m['id'] for m in messages]

    # --- the end of a run -----------------------------------------------------------------------------

    def tidy(self):
        """What users leave behind that mq waits for: open prepared transactions, pauses, schedules, dead heads of channels."""
        for (gid,) in self.sql("SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND gid LIKE 'producer%'"):
            load.resolve(self.tidy_book, self.server.sessions[self.database], gid, True)
        self.sql("SELECT mq_resume(channel_name) FROM mq_paused")
        self.sql("SELECT mq_unschedule('tick')")
        self.tidy_book.write(tx=-1, ask='clear', auto=True)
        self.sql("SELECT mq_clear('{cleared}')")
        self.tidy_book.write(tx=-1, end='committed')

    def redrive_heads(self):
        """What a user does about dead messages for which their ordered channels wait."""
        dead = self.sql("SELECT m.id, d.reason FROM mq_msgs m JOIN mq_dead d USING (id) WHERE m.channel_name = 'block'")
        blocked = [str(row[0]) for row in dead if row[1] != 'prerequisite']
        # What waits for a dead message stays dead: the channel goes on without it.
        hopeless = [str(row[0]) for row in dead if row[1] == 'prerequisite']
        if hopeless:
            self.tx += 1
            self.tidy_book.write(tx=self.tx, ask='delete', of=hopeless, auto=True)
            self.sql('SELECT mq_delete(%s::uuid[])', hopeless)
            self.tidy_book.write(tx=self.tx, end='committed')
        if blocked:
            self.tx += 1
            self.sql('INSERT INTO mended SELECT unnest(%s::uuid[]) ON CONFLICT DO NOTHING', blocked)
            self.tidy_book.write(tx=self.tx, ask='redrive', of=blocked, auto=True)
            self.sql('SELECT mq_redrive(%s::uuid[], retries => 3)', blocked)
            self.tidy_book.write(tx=self.tx, end='committed')

    def compiled(self, name, text):
        """The path of a library of C functions for the server, made of this source."""
        return compiled(self.directory, name, text)

    def sends(self):
        """Of how many sends the clients have been told."""
        return sum(line.get('told') == 'send' for line in ledger.read(self.directory))

    def work_on(self, sends, most=30):
        """Lets the load go on until its clients have been told of so many sends, or for `most` seconds."""
        end = time.monotonic() + most
        while self.sends() < sends and time.monotonic() < end:
            time.sleep(0.2)

    def drain(self, seconds=DRAIN):
        """Ends the producers; the consumers go on until nothing is left. Waits for no longer than `seconds` after the queue was
        last shorter than ever: a busy machine may take its time, a queue that stands still may not."""
        begun = time.monotonic()
        if self.load:
            self.load.stop(['producer', 'operator', 'insistent'])
        wait_until(lambda: self.tidy() or True, 20, 'what was left open is ended')

        left = None  # the least number of messages so far

        def shorter():
            nonlocal left
            self.redrive_heads()
            before, left = left, min(self.value('SELECT count(*) FROM mq_msgs'), sys.maxsize if left is None else left)
            return left == 0 or before is None or left < before
        try:
            while left != 0:
                wait_until(shorter, seconds, 'the queue drains', 0.1)
            self.drained_in = time.monotonic() - begun
        except Failed as error:
            why = self.sql('SELECT channel_name, mq_why(id) FROM mq_msgs ORDER BY seq LIMIT 3')
            self.trouble.append(('liveness', '%d messages are left after %g s: %s %s' % (self.value('SELECT count(*) FROM mq_msgs'), seconds, error, why)))
            self.trouble += [('liveness', str(row)) for row in self.sql("SELECT pid, backend_type, application_name, state, wait_event_type, wait_event, query FROM pg_stat_activity WHERE datname = current_database() AND (backend_type LIKE 'mq%' OR application_name = 'mq handler')")]
        if self.load:
            self.load.stop()

    def collect(self):
        """All that the auditor compares."""
        def rows(query):
            with self.server.connect(self.database) as session:
                cursor = session.execute(query)
                names = [column.name for column in cursor.description]
                return [{name: plain(value) for name, value in zip(names, row)} for row in cursor.fetchall()]
        # A worker settles what it has begun, and its totals with it.
        left = []
        try:
            wait_until(lambda: not self.leftovers(), self.patience, 'nothing is left over', 0.2)
        except Failed:
            left = self.leftovers()
        health = []
        try:
            wait_until(lambda: not self.unhealthy(), self.patience, 'mq_health() is content', 0.3)
        except Failed:
            health = self.unhealthy()
        trouble = []
        if os.path.exists(self.directory + '/trouble'):
            with open(self.directory + '/trouble') as file:
                trouble = file.read().splitlines()
        return {
            'effects': rows('SELECT *, pg_xact_commit_timestamp(xmin) AS committed FROM effects'),
            'pending': rows('SELECT id, channel_name FROM mq_msgs'),
            'dead': rows('SELECT id, channel_name, attempts_made, reason, sqlstate, error FROM mq_dead'),
            'failures': rows('SELECT message_id, channel_name, attempt, sqlstate, error FROM mq_failures'),
            'done': rows('SELECT id, result, attempts FROM mq_done'),
            'stats': rows('SELECT channel_name, handled, failed, died, running FROM mq_stats'),
            'left_over': left, 'health': health, 'trouble': trouble, 'index': self.broken_indexes()}

    def leftovers(self):
        return [row[0] for row in self.sql(r"""
            SELECT 'messages: ' || count(*) FROM mq_msgs HAVING count(*) > 0
            UNION ALL SELECT 'payloads: ' || count(*) FROM mq_payloads HAVING count(*) > 0
            UNION ALL SELECT 'notes of headless channels: ' || count(*) FROM mq_headless HAVING count(*) > 0
            UNION ALL SELECT 'prerequisites: ' || count(*) FROM mq_prerequisites HAVING count(*) > 0
            UNION ALL SELECT 'rechecks: ' || count(*) FROM mq_rechecks HAVING count(*) > 0
            UNION ALL SELECT 'notes of cancelled messages: ' || count(*) FROM mq_cancelled HAVING count(*) > 0
            UNION ALL SELECT 'running in mq_stats: ' || sum(running) FROM mq_stats HAVING sum(running) > 0
            UNION ALL SELECT 'running of a limit: ' || sum(running) FROM mq_limits HAVING sum(running) > 0
            UNION ALL SELECT 'open sends of a limit: ' || sum(sending) FROM mq_limits HAVING sum(sending) > 0
            UNION ALL SELECT 'prepared transactions: ' || count(*) FROM pg_prepared_xacts WHERE database = current_database() HAVING count(*) > 0
            UNION ALL SELECT 'locks of a worker: ' || count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
              WHERE a.backend_type = 'mq worker' AND a.datname = current_database() AND a.state = 'idle' AND l.locktype = 'advisory' HAVING count(*) > 0
            UNION ALL SELECT 'calls of handlers: ' || count(*) FROM pg_stat_activity
              WHERE application_name = 'mq handler' AND state = 'active' AND datname = current_database() HAVING count(*) > 0""")]

    def unhealthy(self):
        return [row for row in self.sql('SELECT "check", detail FROM mq_health() WHERE NOT ok') if row[0] not in USUAL_HEALTH | self.allowed.health]

    def broken_indexes(self):
        broken = []
        for oid, name in self.sql("""
                SELECT i.indexrelid, i.indexrelid::regclass::text FROM pg_extension e JOIN pg_depend d ON d.refobjid = e.oid AND d.deptype = 'e' AND d.classid = 'pg_class'::regclass
                  JOIN pg_index i ON i.indrelid = d.objid JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam WHERE e.extname = 'mq' AND amname = 'btree'"""):
            try:
                self.sql('SELECT bt_index_check(%s::oid, true)', oid)
            except psycopg.Error as error:
                broken.append('%s: %s' % (name, error))
        return broken

    def audit(self):
        """Findings and figures of a run that has drained, or not."""
        final = self.collect()
        log = [line for server, start in self.logs + [(self.server, self.log_from)] for line in server.log_since(start)]
        lines = ledger.read(self.directory)
        with open(self.directory + '/final.json', 'w') as file:
            json.dump(final, file)
        findings, figures = audit.audit(lines, final, log, self.allowed)
        findings = self.trouble + findings
        figures['other'] += len(self.trouble)
        figures['seconds to drain'] = self.drained_in
        return findings, figures

    def end(self):
        if self.load:
            self.load.stop(seconds=2)
        try:
            self.server.forget(self.database)
            self.server.sql('postgres', 'DROP DATABASE IF EXISTS %s WITH (FORCE)' % self.database)
        except (psycopg.Error, OSError, Failed):
            pass


def plain(value):
    """As JSON has it; moments as seconds."""
    if isinstance(value, datetime.datetime):
        return value.timestamp()
    return value if isinstance(value, (int, float, str, bool, dict, list, type(None))) else str(value)
