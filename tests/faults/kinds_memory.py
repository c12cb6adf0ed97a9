"""The fault 16: so many messages that what leaks a little of each shows."""

from kinds import kind
from server import expect, private_memory, wait_until

LIMIT = 4 << 20     # bytes by which a process may grow once it is warm; the allocator keeps some megabytes as it likes

LEAK = r"""
#include "postgres.h"
#include "fmgr.h"
#include "utils/memutils.h"
PG_MODULE_MAGIC;
PG_FUNCTION_INFO_V1(leak);
Datum leak(PG_FUNCTION_ARGS) { memset(MemoryContextAlloc(TopMemoryContext, 1000), 1, 1000); PG_RETURN_VOID(); }
"""

SCHEMA = (
    # Of a hundred messages one fails for good and one fails once.
    """CREATE FUNCTION briefly(m mq_message) RETURNS jsonb LANGUAGE plpgsql AS $$
       BEGIN
         IF m.payload_json -> 'n' = '1' OR m.payload_json -> 'n' = '2' AND m.attempt = 1 THEN RAISE EXCEPTION 'planned' USING ERRCODE = 'MQF01'; END IF;
         RETURN m.payload_json;
       END $$""",
    """CREATE FUNCTION together(messages mq_message[]) RETURNS void LANGUAGE plpgsql AS $$
       BEGIN
         IF random() < 0.05 THEN RAISE EXCEPTION 'planned' USING ERRCODE = 'MQF01'; END IF;
       END $$""",
    "SELECT mq_register_handler('many', 'briefly(mq_message)', max_backoff => '10 ms', keep => '1 second'), mq_register_handler('many together', 'together(mq_message[])', max_backoff => '10 ms'),"
    "       mq_register_handler('many leased', 'briefly(mq_message)', mode => 'leased', max_backoff => '10 ms')")


def processes(server, database):
    """(pid, what it is) of each process of mq, in the order of their starts."""
    return server.sql('postgres', "SELECT pid, CASE WHEN application_name = 'mq handler' THEN application_name ELSE backend_type END FROM pg_stat_activity"
                                  " WHERE backend_type = 'mq launcher' OR datname = %s AND (backend_type = 'mq worker' OR application_name = 'mq handler')"
                                  " ORDER BY backend_start", database)


def memory(server, database):
    """The bytes of its own that each process of mq has."""
    sizes = {}
    for pid, what in processes(server, database):
        try:
            sizes[pid, what] = private_memory(pid)
        except (OSError, StopIteration):    # it has ended
            pass
    return sizes


def growth(before, after):
    return {what: after[pid, what] - size for (pid, what), size in before.items() if (pid, what) in after}


def send_some(sql, channel, count, number, retries):
    """So many messages of the schema's to one of its channels, by its number."""
    sql("SELECT count(*) FROM mq_send_many(%s, ARRAY(SELECT jsonb_build_object('n', n %% 100) FROM generate_series(1, %s) n), channel_args => %s, ordered => %s,"
        " retries => %s, retry_backoff => '1 ms')", channel, count, 'c%d' % (number % 7), number % 2 == 0, retries)


def handle(world, count):
    """Sends so many messages, and waits until they are handled."""
    for channel, share, retries in ('many', 0.7, 1), ('many together', 0.2, 20), ('many leased', 0.1, 1):
        left = int(count * share)
        while left > 0:
            some, left = min(left, 5000), left - 5000
            send_some(world.sql, channel, some, left // 5000, retries)
            # The queue is never long, so batches are as large in each part as in the others.
            wait_until(lambda: world.value('SELECT count(*) FROM (SELECT FROM mq_msgs LIMIT 2000) m') < 2000, 120, 'messages are handled', 0.01)
    wait_until(lambda: world.value('SELECT count(*) FROM mq_msgs') == 0, 120, 'all messages are handled')


@kind(16, 'memory over many messages, with failing handlers among them', channels={'many', 'many together', 'many leased', 'leak'}, health={'handlers succeed'},
    # Vacuum locks a table whose end it cuts off.
    log=[r'mq worker: the table \w+ is locked by another session'])
def memory_flat(run):
    world = run.world(load=False, schema=SCHEMA)
    size = 20000 if run.quick else 400000
    handle(world, 20000)
    warm = memory(world.server, world.database)
    handle(world, size)
    grown = growth(warm, memory(world.server, world.database))
    text = ', '.join('%s by %d kB' % (what, bytes_ // 1024) for what, bytes_ in sorted(grown.items()))
    run.progress('over %d messages grew: %s' % (size, text))
    # A session of leased calls ends while it has nothing to do for long.
    run.expect({'mq worker', 'mq launcher'} | ({'mq handler'} if run.quick else set()) <= set(grown), 'a process of each kind is there before and after: %s' % text)
    run.expect(max(grown.values(), default=0) <= LIMIT, 'over %d messages grew: %s' % (size, text))
    # That a leak would be seen: a kilobyte of each message.
    module = world.compiled('leak', LEAK)
    for statement in ("CREATE FUNCTION leak() RETURNS void LANGUAGE c AS '%s', 'leak'" % module, "CREATE FUNCTION leaks(m jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN PERFORM leak(); END'",
                      "SELECT mq_register_handler('leak', 'leaks(jsonb)')"):
        world.sql(statement)
    warm = memory(world.server, world.database)
    world.sql("SELECT count(*) FROM mq_send_many('leak', array_fill('{}'::jsonb, ARRAY[20000]))")
    wait_until(lambda: world.value('SELECT count(*) FROM mq_msgs') == 0, 120, 'all messages are handled')
    expect(max(growth(warm, memory(world.server, world.database)).values(), default=0) > LIMIT, 'a handler that leaks is seen to grow')
    world.drain()
