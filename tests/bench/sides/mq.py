"""mq, of the tree or of its release before: what both have."""
import time

import measure
from sides import ARRIVE, NOOP, Side

HANDLERS = [
    NOOP,
    "CREATE FUNCTION noop_batch(messages mq_message[]) RETURNS void LANGUAGE plpgsql AS 'BEGIN END'",
    # One message in ten fails at its first attempt.
    """CREATE FUNCTION fail_once(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
       BEGIN
         IF message.attempt = 1 AND (message.payload_json ->> 'n')::int % 10 = 0 THEN RAISE 'first attempt'; END IF;
       END $$""",
    'CREATE TABLE effects (n int)',
    """CREATE FUNCTION insert_row(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
       BEGIN INSERT INTO effects VALUES ((payload ->> 'n')::int); END $$"""]


class Mq(Side):
    label, database = 'mq', 'mq'

    def open(self):
        self.server.create(self.database)
        for sql in ['CREATE EXTENSION mq'] + HANDLERS + ARRIVE:
            self.session.query(sql)
        self.watcher = self.server.connect(self.database, 'watcher')

    def fill(self, n, channels=10, args=None, ordered=False, name='burn', settle=True, options=''):
        """args=None: as many channel names. Otherwise one name with so many channel_args."""
        many = 'ARRAY(SELECT jsonb_build_object(\'n\', i) FROM generate_series(1, %d) i)'
        ordered = ', ordered => true' if ordered else ''
        if args is None:
            self.session.query("SELECT count(*) FROM generate_series(1, %d) c, mq_send_many('%s' || c, %s%s%s)"
                               % (channels, name, many % (n // channels), ordered, options))
        else:
            self.session.query("SELECT count(*) FROM generate_series(1, %d) c, mq_send_many('%s1', %s, channel_args => c::text%s%s)"
                               % (args, name, many % (n // args), ordered, options))
        if settle:
            self.settle()

    def register(self, handler='noop(jsonb)', channels=10, name='burn', options=''):
        self.session.query("SELECT mq_register_handler('%s' || c, '%s'%s) FROM generate_series(1, %d) c"
                           % (name, handler, options, channels))

    def unregister(self, channels=10, name='burn'):
        self.session.query("SELECT mq_unregister_handler('%s' || c) FROM generate_series(1, %d) c" % (name, channels))

    def totals(self):
        """Handled, failed and dead since the statistics began."""
        return [int(v) for v in self.session.query(
            'SELECT COALESCE(sum(handled), 0), COALESCE(sum(failed), 0), COALESCE(sum(died), 0) FROM mq_stats')[0]]

    def pending(self):
        return int(self.session.value('SELECT count(*) FROM mq_msgs'))

    def handled_by_workers(self, seen):
        """Adds what the workers of now have handled to {pid: handled}; returns the sum."""
        for pid, handled in self.watcher.query('SELECT pid, handled FROM mq_workers WHERE database = current_database()'):
            seen[pid] = max(seen.get(pid, 0), int(handled))
        return sum(seen.values())

    def burn(self, n, handler='noop(jsonb)', options='', failures=0, samples=None, name='burn', channels=10, seconds=600,
             cpu=None):
        """The clock runs from the registration of the handlers until the workers have handled n messages. samples, a
        list, gets (seconds, handled) every 5 ms; cpu, a list, the CPU seconds of the workers."""
        before, seen = self.totals(), {}
        base = self.handled_by_workers(seen)
        used = {pid: measure.cpu_seconds(pid) for pid in self.server.worker_pids()}
        looked = start = time.monotonic()
        self.register(handler, channels, name, options)
        while True:
            done = self.handled_by_workers(seen) - base
            now = time.monotonic()
            if samples is not None:
                samples.append((now - start, done))
            if done >= n:
                break
            # A worker that left meanwhile does not say any more what it had handled.
            if now - looked > 0.5:
                looked = now
                if self.watcher.value('SELECT NOT EXISTS (SELECT FROM mq_msgs)') == 't':
                    break
            measure.expect(now - start < seconds, 'only %d of %d messages were handled in %d s' % (done, n, seconds))
            time.sleep(0.005)
        took = time.monotonic() - start
        if cpu is not None:
            cpu.append(sum((measure.cpu_seconds(pid) or 0) - (used.get(pid) or 0) for pid in self.server.worker_pids()))
        self.check(before, n, failures)
        self.unregister(channels, name)
        return took

    def check(self, before, n, failures=0):
        """Each of n messages was handled once, and none is left or dead."""
        measure.wait_until(lambda: self.totals()[0] - before[0] >= n, 20, 'mq_stats has all %d handled' % n, 0.05)
        after = self.totals()
        grown = [b - a for a, b in zip(before, after)]
        measure.expect(grown == [n, failures, 0], '%s: handled, failed, died grew by %s instead of %s' % (self.label, grown, [n, failures, 0]))
        measure.expect(self.pending() == 0, self.label + ': messages are left')

    def clear(self):
        self.session.query('SELECT mq_clear_all()')
        self.settle()


class MqBefore(Mq):
    def open(self):
        super().open()
        self.label = 'mq ' + self.session.value("SELECT extversion FROM pg_extension WHERE extname = 'mq'")
