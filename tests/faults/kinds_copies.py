"""Faults in which the database goes on elsewhere: 13 a standby that is promoted, 14 backups that are restored, 19 restores in pieces,
copies and subscribers."""
import os
import time
import uuid

from kinds import CRASH_LINES, LOST, MOVED_LINES, calls, kind
from server import Server, expect, wait_until


def rest(world):
    """Ends the load in the middle of the work, and the workers: what is pending stays so."""
    world.server.configure(mq__max_workers=0)
    world.server.reload()
    world.load.stop()
    world.load = None
    wait_until(lambda: not world.server.workers(world.database), 20, 'the workers leave')
    wait_until(lambda: not world.server.clients(world.database, 'mq handler'), 20, 'their sessions leave')
    # A prepared transaction does not come with a dump.
    wait_until(lambda: world.tidy() or True, 20, 'what was left open is ended')
    # However fast the workers were, something is pending.
    world.send([{'id': str(uuid.uuid4()), 'channel': 'plain', 'args': 'rest', 'ordered': n % 2 == 0, 'retries': 3, 'payload': {'key': n}} for n in range(50)])


def worked(run, seconds):
    """A server of the kind's own, which has worked for so long and rests now, and its world."""
    server = run.own(Server(run.name)).create()
    server.start()
    world = run.world(server)
    time.sleep(seconds)
    rest(world)
    return server, world


def work(world, consumers=True):
    world.server.configure(mq__max_workers=2)
    world.server.reload()
    if consumers:
        world.begin_load(producers=0, others=['consumer', 'consumer', 'poller'])


@kind(13, 'a standby promoted under load', charges={'57P01'}, errors=LOST, log=MOVED_LINES)
def promoted(run):
    primary = run.own(Server(run.name + '_a', hot_standby='on', max_wal_senders=5)).create()
    primary.start()
    world = run.world(primary)
    standby = run.own(Server(run.name + '_b'))
    primary.run('pg_basebackup', '-D', standby.data, '-h', primary.socket, '-p', str(primary.port), '-U', 'postgres', '-c', 'fast', '-R')
    standby.configure(port=standby.port, primary_conninfo='host=%s port=%d user=postgres application_name=standby' % (primary.socket, primary.port))
    # -R has written its own, without the name that synchronous_standby_names asks for.
    os.unlink(standby.data + '/postgresql.auto.conf')
    standby.start()
    primary.sql('postgres', "ALTER SYSTEM SET synchronous_standby_names = 'standby'")
    primary.sql('postgres', 'SELECT pg_reload_conf()')
    wait_until(lambda: primary.value('postgres', "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"), 20, 'the standby is synchronous')
    # What was acknowledged before is there as well.
    place = primary.value('postgres', 'SELECT pg_current_wal_lsn()::text')
    wait_until(lambda: standby.value('postgres', 'SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn', place), 20, 'the standby has all')
    time.sleep(3)
    run.expect(not calls(standby.log_since(0)) and not standby.workers(world.database), 'no handler runs on a standby')
    primary.kill()
    world.logs.append((primary, world.log_from))
    begun = time.monotonic()
    standby.run('pg_ctl', '-D', standby.data, '-w', 'promote')
    world.server, world.log_from = standby, 0
    world.aim()
    wait_until(lambda: calls(standby.log_since(0)), 10, 'handlers start after the promotion')
    run.progress('%.1f s from the promotion to the first call' % (time.monotonic() - begun))
    time.sleep(2)
    world.drain()


@kind(14, 'backups restored: pg_dump, pg_basebackup', errors=LOST, log=CRASH_LINES, clock=False)
def restored(run):
    server, world = worked(run, 3)
    # A dump, into another database. The first one goes.
    file, old = world.directory + '/dump.sql', world.database
    state = "SELECT (SELECT count(*) FROM mq_msgs), (SELECT count(*) FROM mq_dead), (SELECT count(*) FROM mq_handlers), (SELECT count(*) FROM mq_failures), (SELECT count(*) FROM effects)"
    before = world.sql(state)
    os.chmod(world.directory, 0o777)
    server.run('pg_dump', '-h', server.socket, '-p', str(server.port), '-U', 'postgres', '-f', file, old)
    server.forget(old)
    server.sql('postgres', 'DROP DATABASE %s WITH (FORCE)' % old)
    world.database = old + '_restored'
    server.sql('postgres', 'CREATE DATABASE %s' % world.database)
    server.run('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-h', server.socket, '-p', str(server.port), '-U', 'postgres', '-d', world.database, '-f', file)
    work(world, consumers=False)
    time.sleep(2)
    run.expect(world.sql(state) == before, 'what is restored waits: %s, not %s' % (world.sql(state), before))
    world.sql('SELECT mq_enable()')
    world.aim()
    world.begin_load()
    time.sleep(2)
    rest(world)
    # The whole cluster, which goes on as another server.
    before = world.sql(state)
    copy = run.own(Server(run.name + '_copy'))
    server.run('pg_basebackup', '-D', copy.data, '-h', server.socket, '-p', str(server.port), '-U', 'postgres', '-c', 'fast')
    server.stop()
    world.logs.append((server, world.log_from))
    copy.configure(port=copy.port)
    copy.start()
    world.server, world.log_from = copy, 0
    world.aim()
    run.expect(world.sql(state) == before, 'the cluster that is restored has %s, not %s' % (world.sql(state), before))
    work(world)
    world.drain()


@kind(19, 'a restore in pieces, a copy, a subscriber', errors=LOST, log=CRASH_LINES + [r'logical', r'replication', r'mq worker: .*canceling'], clock=False)
def pieces(run):
    server, world = worked(run, 2)
    old, new = world.database, world.database + '_pieces'
    handled = 'SELECT count(*) FROM effects'
    before = world.value(handled)
    os.chmod(world.directory, 0o777)
    where = ('-h', server.socket, '-p', str(server.port), '-U', 'postgres')
    for section in ('pre-data', 'data', 'post-data'):
        server.run('pg_dump', *where, '--section=' + section, '-f', '%s/%s.sql' % (world.directory, section), old)
    # The workers are back, in the databases that are copies; the source goes before.
    server.forget(old)
    server.sql('postgres', 'CREATE DATABASE %s_copy TEMPLATE %s' % (old, old))
    server.sql(old, 'CREATE PUBLICATION everything FOR ALL TABLES')
    subscriber = run.own(Server(run.name + '_subscriber')).create()
    subscriber.start()
    subscriber.sql('postgres', 'CREATE DATABASE %s' % old)
    subscriber.run('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-h', subscriber.socket, '-p', str(subscriber.port), '-U', 'postgres', '-d', old, '-f', world.directory + '/pre-data.sql')
    subscriber.run('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-h', subscriber.socket, '-p', str(subscriber.port), '-U', 'postgres', '-d', old, '-f', world.directory + '/post-data.sql')
    subscriber.sql(old, 'DROP PUBLICATION IF EXISTS everything')
    subscriber.sql(old, "CREATE SUBSCRIPTION sub CONNECTION '%s' PUBLICATION everything" % server.conninfo(old))
    wait_until(lambda: subscriber.value(old, 'SELECT count(*) FROM mq_msgs') == server.value(old, 'SELECT count(*) FROM mq_msgs'), 20, 'the subscriber has the messages')
    time.sleep(1.5)
    run.expect(not calls(subscriber.log_since(0)), 'a subscriber handles nothing')
    subscriber.sql(old, 'DROP SUBSCRIPTION sub')
    subscriber.stop()
    server.forget(old)
    server.sql('postgres', 'DROP DATABASE %s WITH (FORCE)' % old)
    world.database = new
    server.sql('postgres', 'CREATE DATABASE %s' % new)
    work(world, consumers=False)
    for section in ('pre-data', 'data', 'post-data'):
        server.run('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', *where, '-d', new, '-f', '%s/%s.sql' % (world.directory, section))
        time.sleep(1.5)
        if section != 'pre-data':
            run.expect(world.value(handled) == before, 'after the section %s nothing is handled' % section)
    run.expect(server.value(old + '_copy', handled) == before, 'a template copy handles nothing')
    world.sql('SELECT mq_enable()')
    world.aim()
    world.begin_load(producers=2)
    time.sleep(1)
    world.drain()
