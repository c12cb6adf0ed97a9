"""The fault 9: a clock that is set forward and back, at work and across restarts."""
import mmap
import os
import struct
import subprocess
import time

from kinds import CRASH_LINES, LOST, kind
from kinds_processes import message
from server import Failed, Server, wait_until

HERE = os.path.dirname(os.path.abspath(__file__))
HOUR = 3600

SCHEMA = (
    # What is kept is kept beyond all hours to come.
    "SELECT mq_register_handler('kept', 'work(mq_message)', max_backoff => '200 ms', keep => '1 day'), mq_register_handler('calls', 'work(mq_message)', keep => '1 day')",
    # pg_sleep() goes by the clock: it would last until the time at which it was to end is there again.
    "CREATE OR REPLACE FUNCTION rest(seconds float8) RETURNS void LANGUAGE sql AS $$ SELECT count(*) FROM generate_series(1, (seconds * 2000000)::int) $$",
    # With a gate it waits while somebody has the lock.
    """CREATE FUNCTION late(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
       BEGIN
         IF m.payload_json ? 'gate' THEN PERFORM pg_advisory_xact_lock_shared(9); END IF;
         PERFORM work(m);
       END $$""",
    # No max_backoff: its retries come after an hour.
    "SELECT mq_register_handler('all news', 'late(mq_message)')",
    "SELECT mq_schedule('hourly', '1 hour', 'ticks', '{}', time_zone => 'UTC', catch_up => 'all')")


class Clock:
    """What the server has for the time of day: the machine's, and so many seconds."""

    def __init__(self, name):
        path = '%s/runs/%s.clock' % (os.environ['WORK'], name)
        library = path + '.so'
        subprocess.run(['cc', '-O1', '-shared', '-fPIC', '-o', library, HERE + '/clock.c'], check=True)
        with open(path, 'w+b') as file:
            file.write(struct.pack('=q', 0))
            file.flush()
            self.map = mmap.mmap(file.fileno(), 8)
        os.chmod(path, 0o644)
        os.chmod(library, 0o755)
        self.environment = {'LD_PRELOAD': library, 'MQ_TEST_CLOCK': path}

    def set(self, hours):
        self.map[:] = struct.pack('=q', int(hours * HOUR * 1000000))


class Watch:
    """What the fault itself has sent, and looks for: to channels from which no operator cancels or deletes."""

    def __init__(self, run, world):
        self.run, self.world = run, world

    def handled(self, ids):
        return self.world.value("SELECT count(DISTINCT id) FROM effects WHERE what = 'handled' AND id = ANY (%s::uuid[])", ids)

    def all_handled(self, ids, what, seconds=20):
        try:
            wait_until(lambda: self.handled(ids) == len(ids), seconds, what)
        except Failed as error:
            why = self.world.sql('SELECT id, channel_name, lease, mq_why(id) FROM mq_msgs WHERE id = ANY (%s::uuid[])', ids)
            raise Failed('%s: %s' % (error, [[str(value) for value in row] for row in why]))

    def none_handled(self, ids, what):
        self.run.expect(self.handled(ids) == 0, what)

    def goes_on(self, when):
        """What is sent now is handled now, in order; workers that end are replaced."""
        some = lambda: [message('some news', {'key': 9}, ordered, args='clock') for ordered in (False, True, True, False, True)] + [message('travel', {'key': 9}, args='clock')]
        self.all_handled(self.world.send(some()), 'what is sent %s is handled' % when)
        workers = self.world.server.workers(self.world.database)
        for pid in workers:
            self.world.sql('SELECT pg_terminate_backend(%s)', pid)
        wait_until(lambda: set(self.world.server.workers(self.world.database)) - set(workers), 10, 'a worker is there again %s' % when)
        self.all_handled(self.world.send(some()), 'the next worker handles what is sent %s' % when)

    def later(self):
        """What waits for an hour: a delay, a retry. The ids."""
        ids = self.world.send([message('some news', {'key': 9}, ordered, args='later') for ordered in (False, True)], delay='1 hour')
        ids += self.world.send([message('all news', {'key': 9, 'fail': 1}, args='later')], backoff='1 hour')
        wait_until(lambda: self.world.value('SELECT count(*) FROM mq_failures WHERE message_id = %s', ids[-1]), 20, 'the first attempt of a message fails')
        return ids

    def hours_sent(self):
        return self.world.sql("SELECT count(*), count(DISTINCT headers -> 'schedule' ->> 'at') FROM effects WHERE headers -> 'schedule' ->> 'name' = 'hourly'")[0]

    def receive(self, lease):
        """What a consumer gets of the channel `desk`, as (id, token)."""
        return [(str(row[0]), row[1]) for row in self.world.sql("SELECT id, lease FROM mq_receive('{desk}', 1, %s)", lease)]

    def acknowledged(self, got):
        return [str(row[0]) for row in self.world.sql('SELECT mq_ack(%s::uuid[], %s)', [got[0][0]], got[0][1])] == [got[0][0]]


@kind(9, 'a clock set forward and back, at work and across restarts', clock=False, channels={'desk'}, charges={'57P01', '57P02'}, errors=LOST, log=CRASH_LINES, health={'clock'})
def clock_set(run):
    clock = Clock(run.name)
    server = run.own(Server(run.name, environment=clock.environment)).create()
    server.start()
    world = run.world(server, schema=SCHEMA)
    watch = Watch(run, world)

    def to(hours):
        clock.set(hours)
        here = server.value('postgres', 'SELECT extract(epoch FROM clock_timestamp())::float8') - time.time()
        run.expect(abs(here - hours * HOUR) < 60, 'the server has the time that is set: %g s, not %g h' % (here, hours))

    # Two hours forward: what was to come within them comes now, and leases have run out.
    first = watch.later()
    world.sql("SELECT mq_send('desk')")
    lost = watch.receive('1 hour')
    time.sleep(0.5)
    watch.none_handled(first, 'what is to come in an hour waits')
    run.expect(watch.hours_sent() == (0, 0), 'a schedule of every hour waits')
    run.expect(not watch.receive('1 hour'), 'nobody else gets what a consumer has leased')
    gate = server.connect(world.database)
    gate.execute('SELECT pg_advisory_lock(9)')
    gated = world.send([message('all news', {'key': 9, 'gate': 1}, args='gate')])
    wait_until(lambda: world.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"), 10, 'a call runs')
    to(2)
    time.sleep(1)
    run.expect(not world.value('SELECT count(*) FROM mq_failures WHERE message_id = ANY (%s::uuid[])', gated), 'the time limit of a call that runs is not cut short')
    gate.close()
    watch.all_handled(gated, 'a call goes on when the clock is set forward')
    watch.all_handled(first, 'what was to come in an hour is handled when the clock is set forward')
    wait_until(lambda: watch.hours_sent() == (2, 2), 20, 'the schedule has sent each time that was passed')
    kept = wait_until(lambda: watch.receive('10 minutes'), 10, 'a lease that the clock has passed has run out')
    run.expect(lost and not watch.acknowledged(lost), 'who had it before cannot acknowledge it any more')
    watch.goes_on('after the clock was set forward')
    second = watch.later()
    # And back, as a clock is that was wrong.
    to(0)
    watch.goes_on('after the clock was set back')
    run.expect(not watch.receive('1 minute'), 'a lease holds when the clock is set back')
    run.expect(watch.acknowledged(kept), 'and its consumer may acknowledge')
    wait_until(lambda: world.value("""SELECT detail FROM mq_health() WHERE "check" = 'clock' AND NOT ok"""), 10, 'mq_health() says that the clock was set back')
    time.sleep(0.5)
    # Across a stop and a crash.
    server.stop('fast')
    clock.set(-0.5)
    server.start()
    to(-0.5)
    watch.goes_on('after a restart with the clock set back')
    watch.none_handled(second, 'what is scheduled waits for its time')
    run.expect(watch.hours_sent() == (2, 2), 'no time of a schedule is repeated: %s' % (watch.hours_sent(),))
    server.stop('immediate')
    clock.set(4)
    server.start()
    to(4)
    # It stays there: no message waits any more.
    watch.all_handled(second, 'what was scheduled is handled when its time is there')
    watch.goes_on('after a restart with the clock set forward')
    wait_until(lambda: watch.hours_sent() == (4, 4), 20, 'each hour was sent once')
    world.sql("SELECT mq_unschedule('hourly')")
    world.drain()
