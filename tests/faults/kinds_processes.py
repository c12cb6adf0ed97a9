"""Faults of processes: 1 killed and stopped, 2 C handlers that crash, 3 workers told to go, 11 a stop while commits wait, 18 somebody
else's crash while long calls run."""
import os
import signal
import time
import uuid

from kinds import CRASH_LINES, LOST, kind
from server import signal_pid, wait_until

CRASHER = r"""
#include "postgres.h"
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/memutils.h"
PG_MODULE_MAGIC;
PG_FUNCTION_INFO_V1(crash);
Datum crash(PG_FUNCTION_ARGS)
{
	int how = PG_GETARG_INT32(0);
	if (how == 1) *(volatile int *) 8 = 1;
	if (how == 2) abort();
	if (how == 3)
	{
		/* Nobody can interrupt this. */
		HOLD_INTERRUPTS();
		for (int i = 0; i < 300; i++) usleep(10000);
		RESUME_INTERRUPTS();
	}
	if (how == 4)
	{
		struct rlimit before, narrow;
		getrlimit(RLIMIT_AS, &before);
		narrow = before;
		narrow.rlim_cur = (rlim_t) 1 << 30;
		setrlimit(RLIMIT_AS, &narrow);
		PG_TRY();
		{
			for (;;) MemoryContextAllocHuge(CurrentMemoryContext, 16 << 20);
		}
		PG_FINALLY();
		{
			setrlimit(RLIMIT_AS, &before);
		}
		PG_END_TRY();
	}
	PG_RETURN_VOID();
}
"""


def message(channel, payload, ordered=False, retries=3, args=''):
    return {'id': str(uuid.uuid4()), 'channel': channel, 'args': args, 'ordered': ordered, 'retries': retries, 'payload': payload}


@kind(1, 'processes and servers killed and stopped', charges={'57P02', '57P01'}, reasons={'crashed'}, errors=LOST, log=CRASH_LINES)
def killed(run):
    world = run.world()
    server = world.server
    faults = ['worker', 'producer', 'frozen', 'postmaster', 'immediate', 'fast']
    for fault in faults if run.quick else faults * 3:
        time.sleep(0.3 + world.random.random() * 1.2)
        if fault == 'worker':
            pids = server.workers(world.database)
            if pids:
                signal_pid(world.random.choice(pids), signal.SIGKILL)
                server.ready()
        elif fault == 'producer':
            world.load.kill(world.random)
            world.load.kill(world.random)
        elif fault == 'frozen':
            # It stands still with what it has claimed, and goes on.
            pids = server.workers(world.database)
            if pids:
                signal_pid(pids[0], signal.SIGSTOP)
                time.sleep(1)
                signal_pid(pids[0], signal.SIGCONT)
        elif fault == 'postmaster':
            server.kill()
            server.start()
            server.ready()
        else:
            server.stop(fault)
            server.start()
            server.ready()
    world.drain()


@kind(2, 'C handlers that crash, hang and leak', charges={'57P02', '57P01', '57014', '53200'}, reasons={'crashed', 'exhausted'}, errors=LOST, channels={'crash'},
      log=CRASH_LINES + [r'out of memory', r'canceling statement'])
def crashing(run):
    world = run.world()
    module = world.compiled('crash', CRASHER)
    for statement in ("CREATE FUNCTION crash(int) RETURNS void LANGUAGE c STRICT AS '%s', 'crash'" % module,
                      """CREATE FUNCTION work_or_crash(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
                         BEGIN
                           IF m.payload_json ? 'crash' THEN PERFORM crash((m.payload_json ->> 'crash')::int); END IF;
                           PERFORM leave(m, 'handled', clock_timestamp());
                         END $$""",
                      "SELECT mq_register_handler('crash', 'work_or_crash(mq_message)', timeout => '1 second')"):
        world.sql(statement)
    bad = {how: message('crash', {'crash': how}, retries=1 if how in (3, 4) else 5) for how in (1, 2, 3, 4)}
    good = [message('crash', {'good': n}) for n in range(20)]
    for pair in (1, 2), (3, 4):
        world.send(good[pair[0] * 5 - 5:pair[1] * 5] + [bad[how] for how in pair])
        for how in pair:
            key = bad[how]['id']
            wait_until(lambda: world.value('SELECT count(*) FROM mq_msgs WHERE id = %s', key) == 0, 120, 'message %d ends' % how)
            reason, attempts = world.sql('SELECT (SELECT reason FROM mq_dead WHERE id = %s), (SELECT count(*) FROM mq_failures WHERE message_id = %s)', key, key)[0]
            expected = ('crashed', 2) if how in (1, 2) else ('exhausted', 2)
            run.expect((reason, attempts) == expected, 'a handler that crashes, hangs or leaks (%d): %s after %d failures' % (how, reason, attempts))
    handled = lambda: world.value('SELECT count(DISTINCT id) FROM effects WHERE id = ANY (%s::uuid[])', [one['id'] for one in good]) == len(good)
    wait_until(handled, 20, 'the others of its batch are handled')
    run.expect(world.value("SELECT count(*) FROM effects WHERE channel = 'crash'") == len(good), 'each of the others of its batch is handled once')
    world.drain()


@kind(3, 'workers terminated and cancelled', charges={'57014', '57P01'}, errors={'57014'}, log=[r'canceling statement due to user request'])
def told(run):
    world = run.world()
    for turn in range(8 if run.quick else 24):
        time.sleep(world.random.random() * 0.5)
        pids = world.server.workers(world.database)
        what = 'pg_cancel_backend' if turn % 2 else 'pg_terminate_backend'
        for pid in pids:
            world.sql('SELECT %s(%%s)' % what, pid)
        if what == 'pg_terminate_backend' and pids:
            wait_until(lambda: set(world.server.workers(world.database)) - set(pids), 5, 'a worker is back within 5 s')
    world.drain()


@kind(11, 'a fast stop while commits wait for a standby that is not there', charges={'57P01'}, errors=LOST, log=CRASH_LINES + [r'canceling (the )?wait for synchronous replication'])
def nobody_satisfies(run):
    world = run.world()
    server = world.server
    for _ in range(1 if run.quick else 3):
        time.sleep(1)
        server.sql('postgres', "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        server.sql('postgres', 'SELECT pg_reload_conf()')
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        wait_until(lambda: server.value('postgres', waits) > 3, 10, 'commits wait')
        server.stop('fast', seconds=20)
        os.unlink(server.data + '/postgresql.auto.conf')
        server.start()
        server.ready()
    world.drain()


@kind(18, "somebody else's crash and stop under long calls", charges={'57P01'}, errors=LOST, log=CRASH_LINES)
def not_their_own(run):
    schema = ("""CREATE FUNCTION linger(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
                 DECLARE began timestamptz := clock_timestamp();
                 BEGIN
                   PERFORM pg_sleep(2.5);
                   PERFORM leave(m, 'handled', began);
                 END $$""",
              "SELECT mq_register_handler('travel', 'linger(mq_message)', 'long', mode => 'leased')")
    world = run.world(schema=schema)
    server, sent = world.server, []
    for fault in ('crash', 'fast', 'immediate') if run.quick else ('crash', 'fast', 'immediate', 'crash', 'crash', 'immediate'):
        batch = [str(uuid.uuid4()) for _ in range(4)]
        for one in batch:
            world.tx += 1
            spec = {'id': one, 'channel': 'travel', 'args': 'long', 'ordered': False, 'retries': 0, 'payload': {'key': -1}}
            world.tidy_book.write(tx=world.tx, ask='send', messages=[spec], auto=True)
            world.sql("SELECT mq_send('travel', '{\"key\": -1}', 'long', channel_args => 'long', retries => 0, id => %s)", one)
            world.tidy_book.write(tx=world.tx, told='send', ids=[one], end='committed')
        sent += batch
        wait_until(lambda: world.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND application_name = 'mq handler'"), 20, 'long calls are in flight')
        if fault == 'crash':
            # A session that has nothing to do with mq.
            with server.connect('postgres') as other:
                signal_pid(other.info.backend_pid, signal.SIGKILL)
                time.sleep(0.5)
        else:
            server.stop(fault)
            server.start()
        server.ready()
        world.aim()
    world.drain(60)
    died = world.value('SELECT count(*) FROM mq_dead WHERE id = ANY (%s::uuid[])', sent)
    failed = world.value('SELECT count(*) FROM mq_failures WHERE message_id = ANY (%s::uuid[])', sent)
    run.expect((died, failed) == (0, 0), 'of long calls with a single attempt %d are dead, and %d were charged' % (died, failed))
