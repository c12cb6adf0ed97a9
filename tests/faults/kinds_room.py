"""Faults of room: 8 a disk that is full, 10 worker slots and connections that are used up."""
import os
import subprocess
import time

import psycopg
from kinds import CRASH_LINES, LOST, Skip, kind
from server import Failed, Server, expect, wait_until


def on_tmpfs(server, folder, megabytes):
    """Moves a folder of the cluster, which is stopped, to a small file system of its own."""
    path, aside = '%s/%s' % (server.data, folder), '%s/data/%s-%s' % (server.work, server.name, folder)
    owner = os.stat(path)
    os.rename(path, aside)
    os.mkdir(path, 0o700)
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=%dm,mode=0700,uid=%d,gid=%d' % (megabytes, owner.st_uid, owner.st_gid), 'tmpfs', path], stderr=subprocess.PIPE, text=True)
    if mounted.returncode != 0:
        raise Skip('a small file system cannot be mounted here: %s' % mounted.stderr.strip())
    subprocess.run(['cp', '-a', aside + '/.', path], check=True)
    return path


def fill(path):
    """Takes all the room that is left. Returns the file."""
    ballast = path + '/ballast'
    with open(ballast, 'ab', buffering=0) as file:
        size = 1 << 20
        while size >= 4096:
            try:
                file.write(b'\0' * size)
            except OSError:
                size //= 4
    return ballast


# A handler that cannot write fails, and is charged for it.
@kind(8, 'a disk that is full', charges={'53100'}, errors=LOST | {'53100', '58030', 'XX000'}, health={'messages settled', 'workers succeed'},
      log=CRASH_LINES + [r'No space left', r'could not (extend|write|create)', r'PANIC: .*(No space left|could not)', r'disk full', r'startup process'])
def disk_full(run):
    if os.geteuid() != 0:
        raise Skip('only root can mount a small file system')
    server = run.own(Server(run.name, max_wal_size='48MB', min_wal_size='32MB', wal_keep_size='0', track_commit_timestamp='on')).create()
    paths = []
    run.undo.append(lambda: [server.stop('immediate', check=False)] + [subprocess.run(['umount', '-l', path], check=False) for path in paths])
    paths.append(on_tmpfs(server, 'base', 120))
    paths.append(on_tmpfs(server, 'pg_wal', 140))
    server.start()
    world = run.world(server)
    time.sleep(1)
    for path in paths if run.quick else paths * 2:
        before = server.log_size()
        ballast = fill(path)
        for _ in range(10):
            time.sleep(0.2)
            try:
                fill(path)
            except OSError:
                pass
        lines = server.log_since(before)
        run.expect(len(lines) < 20000 and sum('mq worker:' in line for line in lines) < 100, 'the log tells of it again and again: %d lines' % len(lines))
        os.unlink(ballast)
        # Without room for WAL the server ends, and does not come back by itself.
        try:
            server.ready(8)
        except Failed:
            server.start(check=False)
            server.ready()
        time.sleep(1)
    world.drain(75)     # what could not be settled is put off for a minute


@kind(10, 'worker slots and connections used up', errors={'53300', None}, log=[r'too many clients', r'sorry, too many', r'remaining connection slots', r'max_worker_processes = \d+ leaves', r'FATAL: .*connection', r'WARNING: .*autovacuum worker (took too long|started without)'],
      health={'worker slots'})
def slots(run):
    # Two for launchers, two for workers.
    server = run.own(Server(run.name, max_worker_processes=4, max_connections=40)).create()
    server.start()
    world = run.world(server)
    others = ['%s_%d' % (run.name, n) for n in range(11, 15)]
    for name in others:
        server.sql('postgres', 'CREATE DATABASE %s' % name)
        server.sql(name, 'CREATE EXTENSION mq')
        server.sql(name, "CREATE FUNCTION f(jsonb) RETURNS void LANGUAGE sql AS ''")
        server.sql(name, "SELECT mq_register_handler('c', 'f(jsonb)'), mq_send('c')")
    short = """SELECT count(*) FROM mq_health() WHERE "check" = 'worker slots' AND NOT ok"""
    wait_until(lambda: world.value(short), 20, 'mq_health() says that worker slots are used up')
    for name in others:
        wait_until(lambda: server.value(name, 'SELECT count(*) FROM mq_msgs') == 0, 30, 'each database has its turn')
    for name in others:
        server.forget(name)
        server.sql('postgres', 'DROP DATABASE %s WITH (FORCE)' % name)
    wait_until(lambda: not world.value(short), 20, 'mq_health() says that there are enough again')
    handled = world.value('SELECT count(*) FROM effects')
    wait_until(lambda: world.value('SELECT count(*) FROM effects') > handled, 5, 'work is picked up within 5 s of room')
    # Connections.
    taken = []
    run.undo.append(lambda: [one.close() for one in taken])
    try:
        while True:
            taken.append(server.connect('postgres'))
    except psycopg.Error:
        pass
    expect(len(taken) > 5, 'connections can be used up')
    time.sleep(2)
    handled = world.value("SELECT count(*) FROM effects WHERE channel IN ('leased', 'travel')")
    for one in taken:
        one.close()
    taken.clear()
    wait_until(lambda: world.value("SELECT count(*) FROM effects WHERE channel IN ('leased', 'travel')") > handled, 5, 'leased calls begin within 5 s of room')
    world.drain()
