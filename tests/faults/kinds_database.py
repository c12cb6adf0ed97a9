"""Faults of a database: 6 the extension and databases come and go, 7 tables are written anew, 12 prepared transactions, 15 what holds
the horizon."""
import time

import psycopg
from kinds import CRASH_LINES, LOST, kind
from kinds_processes import message
from server import patience, wait_until

# Work that makes more work for ever, in a database that nobody audits.
ECHO = ("CREATE EXTENSION mq", 'CREATE TABLE echoes (n bigserial)',
        """CREATE OR REPLACE FUNCTION echo(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
           BEGIN
             INSERT INTO echoes DEFAULT VALUES;
             PERFORM mq_send('echo', payload);
           END $$""",
        "SELECT mq_register_handler('echo', 'echo(jsonb)', batch_size => 20)", "SELECT count(*) FROM mq_send_many('echo', array_fill('{}'::jsonb, ARRAY[100]))")


def echoes(server, database):
    return server.value(database, 'SELECT count(*) FROM echoes')


def timed(run, server, database, statement, what, seconds=5):
    begun = time.monotonic()
    server.sql(database, statement)
    took = time.monotonic() - begun
    run.expect(took < patience(seconds), '%s took %.1f s' % (what, took))


@kind(6, 'extension and databases dropped, made and copied', errors=LOST, log=[r'terminating', r'canceling statement due to user request', r'mq worker: .*(does not exist|being dropped|concurrently)'])
def dropped(run):
    world = run.world()
    server, name = world.server, run.name + '_echo'
    for _ in range(1 if run.quick else 3):
        server.sql('postgres', 'CREATE DATABASE %s' % name)
        run.undo.append(lambda: [server.forget(one) or server.sql('postgres', 'DROP DATABASE IF EXISTS %s WITH (FORCE)' % one) for one in (name, name + '_copy', name + '_alike')])
        for statement in ECHO:
            server.sql(name, statement)
        wait_until(lambda: echoes(server, name) > 200, 10, 'the other database works')
        timed(run, server, name, 'DROP EXTENSION mq CASCADE', 'DROP EXTENSION under load')
        server.sql(name, 'TRUNCATE echoes')
        for statement in (ECHO[0],) + ECHO[2:]:
            server.sql(name, statement)
        wait_until(lambda: echoes(server, name) > 200, 10, 'it works again, with an extension made in the same session')
        timed(run, server, world.database, 'ALTER EXTENSION mq UPDATE', 'ALTER EXTENSION UPDATE under load')
        server.forget(name)
        timed(run, server, 'postgres', 'CREATE DATABASE %s_copy TEMPLATE %s' % (name, name), 'CREATE DATABASE ... TEMPLATE')
        before = echoes(server, name + '_copy')
        with server.connect(name) as session:
            session.execute('SELECT 1')
            timed(run, server, 'postgres', 'DROP DATABASE %s WITH (FORCE)' % name, 'DROP DATABASE ... FORCE')
        run.expect(echoes(server, name + '_copy') == before, 'a copy handles nothing')
        server.sql(name + '_copy', 'SELECT mq_enable()')
        wait_until(lambda: echoes(server, name + '_copy') > before + 100, 10, 'until it is enabled')
        server.forget(name + '_copy')
        timed(run, server, 'postgres', 'DROP DATABASE %s_copy' % name, 'DROP DATABASE')
        # Tables of the same names, without the extension.
        server.sql('postgres', 'CREATE DATABASE %s_alike' % name)
        server.sql(name + '_alike', "CREATE TABLE mq_msgs (id uuid); CREATE TABLE mq_handlers (channel_name text); INSERT INTO mq_msgs VALUES (gen_random_uuid())")
        time.sleep(1.5)
        run.expect(not server.workers(name + '_alike') and server.value(name + '_alike', 'SELECT count(*) FROM mq_msgs') == 1, 'a database with tables of the same names is left alone')
        server.forget(name + '_alike')
        server.sql('postgres', 'DROP DATABASE %s_alike' % name)
    world.drain()


@kind(7, 'tables written anew and truncated', errors={'55P03', '40001'}, log=[r'mq worker: .*(could not serialize|is locked by another session)'])
def written_anew(run):
    world = run.world()
    statements = ['VACUUM FULL mq_msgs', 'BEGIN; LOCK TABLE mq_msgs; REINDEX TABLE mq_msgs; COMMIT', 'CLUSTER mq_msgs USING mq_msgs_pkey', 'VACUUM FULL mq_dead, mq_failures, mq_done', 'REINDEX TABLE CONCURRENTLY mq_msgs',
                  'VACUUM (FREEZE, ANALYZE) mq_msgs', 'VACUUM FULL mq_stats_deltas, mq_stats_totals, mq_headless, mq_prerequisites', 'REINDEX TABLE mq_dead', 'VACUUM FULL pg_class, pg_attribute']
    for _ in range(1 if run.quick else 4):
        for statement in statements:
            time.sleep(0.1)
            begun = time.monotonic()
            for last in (False, False, False, True):
                try:
                    world.sql(statement)
                    break
                except psycopg.errors.DeadlockDetected:     # as with any transaction that has read the table and goes on to write
                    if last:
                        raise
            run.expect(time.monotonic() - begun < patience(10), '%s took %.1f s' % (statement, time.monotonic() - begun))
        # All that is pending goes.
        world.tx += 1
        with world.server.connect(world.database) as session:
            session.execute('BEGIN')
            session.execute('LOCK TABLE mq_msgs IN ACCESS EXCLUSIVE MODE')
            ids = [str(row[0]) for row in session.execute('SELECT id FROM mq_msgs').fetchall()]
            world.tidy_book.write(tx=world.tx, ask='delete', of=ids)
            session.execute('TRUNCATE TABLE mq_payloads')
            world.tidy_book.write(tx=world.tx, ask='commit')
            session.execute('COMMIT')
            world.tidy_book.write(tx=world.tx, end='committed')
    world.drain()


@kind(12, 'prepared transactions that send, across a restart', charges={'57P01'}, errors=LOST, log=CRASH_LINES)
def prepared(run):
    world = run.world()
    server = world.server
    for turn in range(1 if run.quick else 3):
        sent = {}
        for n in range(8):
            gid, world.tx = 'kept %s %d %d' % (world.database, turn, n), world.tx + 1
            sent[gid] = [message('block', {'key': n}, ordered, args='prepared %d' % n) for ordered in (False, True, True)]
            with server.connect(world.database) as session:
                session.execute('BEGIN')
                for one in sent[gid]:
                    world.tidy_book.write(tx=world.tx, ask='send', messages=[one])
                    session.execute('SELECT mq_send(%s, %s, channel_args => %s, ordered => %s, retries => 3, id => %s)',
                                    (one['channel'], '{"key": %d}' % n, one['args'], one['ordered'], one['id']))
                    world.tidy_book.write(tx=world.tx, told='send', ids=[one['id']])
                world.tidy_book.write(tx=world.tx, ask='commit', gid=gid)
                session.execute("PREPARE TRANSACTION '%s'" % gid)
                world.tidy_book.write(tx=world.tx, end='prepared')
        time.sleep(1)
        server.stop('fast' if turn % 2 == 0 else 'immediate')
        server.start()
        server.ready()
        ids = [one['id'] for messages in sent.values() for one in messages]
        seen = world.value('SELECT (SELECT count(*) FROM effects WHERE id = ANY (%s::uuid[])) + (SELECT count(*) FROM mq_msgs WHERE id = ANY (%s::uuid[]))', ids, ids)
        run.expect(seen == 0, '%d messages of prepared transactions are seen' % seen)
        for number, gid in enumerate(sent):
            commit = number % 3 != 0
            with server.connect(world.database) as session:
                session.execute(('COMMIT' if commit else 'ROLLBACK') + " PREPARED '%s'" % gid)
            world.tidy_book.write(tx=0, resolve='committed' if commit else 'rolled back', gid=gid)
            if commit:
                known = [one['id'] for one in sent[gid]]
                wait_until(lambda: world.value('SELECT count(*) FROM effects WHERE id = ANY (%s::uuid[])', known) == 3, 20, 'what COMMIT PREPARED sent is handled')
    world.drain()


@kind(15, 'a snapshot, a prepared transaction and a slot that hold the horizon')
def horizon(run):
    world = run.world()
    server, slot, gid = world.server, 'slot_' + run.name, 'forgotten ' + run.name
    # Before the others: its making waits for transactions that are open.
    world.sql("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
    release = [lambda: world.sql('SELECT pg_drop_replication_slot(%s)', slot)]
    try:
        holder = server.connect(world.database, application_name='holder')
        release.append(holder.close)
        holder.execute('BEGIN ISOLATION LEVEL REPEATABLE READ')
        holder.execute('SELECT count(*) FROM effects')
        with server.connect(world.database) as session:
            session.execute('BEGIN')
            session.execute('CREATE TABLE forgotten ()')
            session.execute("PREPARE TRANSACTION '%s'" % gid)
        release.append(lambda: world.sql("ROLLBACK PREPARED '%s'" % gid))
        time.sleep(3 if run.quick else 10)
        kinds = {row[0] for row in world.sql('SELECT kind FROM mq_horizon')}
        run.expect({'session', 'prepared transaction', 'replication slot'} <= kinds, 'mq_horizon names only %s' % kinds)
        world.drain()
    finally:
        for step in reversed(release):
            step()
