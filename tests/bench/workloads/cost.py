"""What single operations cost however many messages there are: W8, W16."""
import time

from measure import Result, expect, median, say
from sides import NOOP
from workloads import duration, workload

# How long a statement takes inside the server; what it did is undone. Microseconds, the median of so many.
COST = """CREATE OR REPLACE FUNCTION cost(statement text, times int) RETURNS float8 LANGUAGE plpgsql AS $$
  DECLARE begun timestamptz; taken float8; all_taken float8[] := '{}';
  BEGIN
    FOR i IN 1 .. times LOOP
      BEGIN
        begun := clock_timestamp();
        EXECUTE statement;
        taken := extract(epoch FROM clock_timestamp() - begun) * 1e6;
        RAISE SQLSTATE 'UNDO1';
      EXCEPTION WHEN SQLSTATE 'UNDO1' THEN
        all_taken := all_taken || taken;
      END;
    END LOOP;
    RETURN (SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY t) FROM unnest(all_taken) AS t);
  END $$"""

PAYLOADS = "ARRAY(SELECT jsonb_build_object('n', i) FROM generate_series(1, %d) i)"


def grow(session, name, there, more, channels, ordered, delay):
    """Adds about so many messages to the channels, evenly; returns how many."""
    if more >= channels:
        each, step = more // channels, max(1, 500000 // (more // channels))
        for first in range(1, channels + 1, step):
            session.query("SELECT count(*) FROM generate_series(%d, %d) c, mq_send_many('%s', %s, channel_args => c::text, ordered => %s, delay => '%s')"
                          % (first, min(channels, first + step - 1), name, PAYLOADS % each, ordered, delay))
        return each * channels
    for first in range(there + 1, there + more + 1, 50000):
        session.query("SELECT mq_insert(ARRAY(SELECT (gen_random_uuid(), '%s', 24, '1 s', '%s', (1 + i %% %d)::text, NULL, %s, '%s', '{}', NULL)::mq_new_t "
                      'FROM generate_series(%d, %d) i))' % (delay, name, channels, ordered, name, first, min(there + more, first + 49999)))
    return more


OPERATIONS = [
    ('claim of 100', 'ready', "SELECT count(*) FROM mq_poll('{cost_any}', 100)"),
    ('a worker\'s claim, calls and removal of 100', 'ready', "CALL mq_run('{cost_any}', 100)"),
    ('idle poll', 'both', "SELECT count(*) FROM mq_poll('{cost_none}', 100)"),
    ('idle poll of what is due later', 'future', "SELECT count(*) FROM mq_poll('{cost_any}', 100)"),
    ('ordered append', 'both', "SELECT mq_send('cost_in_order', '{}', channel_args => '1', ordered => true)"),
    ('ordered delete', 'both', "SELECT mq_delete(ARRAY['%s'::uuid])")]


def filled(bench, size, channels, delay):
    """The session of a new database with about so many messages, half of them ordered, over as many channels each."""
    session = bench.server.create('cost_%d' % size)
    for sql in ('CREATE EXTENSION mq', NOOP, COST, "SELECT mq_register_handler('cost_any', 'noop(jsonb)')"):
        session.query(sql)
    # The channel that is measured has a successor for its head at every size.
    grow(session, 'cost_in_order', 0, 10, 1, 'true', delay)
    for name, ordered in (('cost_any', 'false'), ('cost_in_order', 'true')):
        grow(session, name, 0, (size - 10) // 2, channels, ordered, delay)
    session.query('VACUUM ANALYZE')
    return session


HEADS = "(after_message_id IS NULL OR after_message_id = '00000000-0000-0000-0000-000000000000')"
# Reads the table and the indexes that the operations use.
READ_ALL = ['SELECT count(message_name) FROM mq_msgs', 'SET enable_seqscan = off', 'SET enable_bitmapscan = off',
            'SELECT count(*) FROM (SELECT FROM mq_msgs ORDER BY id) AS m',
            'SELECT count(*) FROM (SELECT FROM mq_msgs WHERE after_message_id IS NOT NULL ORDER BY channel_key, seq) AS m',
            'SELECT count(*) FROM (SELECT FROM mq_msgs WHERE %s ORDER BY channel_name, attempt_at, seq) AS m' % HEADS,
            'SELECT count(*) FROM (SELECT FROM mq_msgs WHERE fair AND %s ORDER BY channel_name, channel_key, attempt_at, seq) AS m' % HEADS,
            'RESET enable_seqscan', 'RESET enable_bitmapscan']


def costs_of(bench, state, delay, channels, sizes, turns, times):
    """{operation: {size: its cost in each turn}}. All sizes are there at once and are measured by turns, so that what
    slows the machine down for a while slows all of them down."""
    sessions, statements, costs = {}, {}, {}
    for size in sizes:
        begun = time.monotonic()
        session = sessions[size] = filled(bench, size, channels, delay)
        head = session.value("SELECT id FROM mq_msgs WHERE channel_name = 'cost_in_order' AND channel_args = '1' "
                             "AND after_message_id = '00000000-0000-0000-0000-000000000000' LIMIT 1")
        expect(head is not None, 'the ordered channel has a head')
        statements[size] = [(text, statement % head if '%s' in statement else statement)
                            for text, when, statement in OPERATIONS if when in (state, 'both')]
        say('  %s, %s channels, %s messages: filled in %s' % (state, format(channels, ','), format(size, ','),
                                                              duration(time.monotonic() - begun)))
    session.query('CHECKPOINT')
    # When a process first touches a page of shared memory, the kernel maps it. That must not count: the larger the
    # tables, the more calls meet such pages. The largest comes first, since it takes the others' buffers.
    for size in reversed(sizes):
        for statement in READ_ALL:
            sessions[size].query(statement)
    for turn in range(turns):
        for size in sizes if turn % 2 == 0 else sizes[::-1]:
            for text, statement in statements[size]:
                sessions[size].value('SELECT cost($q$%s$q$, 2)' % statement)
                cost = float(sessions[size].value('SELECT cost($q$%s$q$, %d)' % (statement, times)))
                costs.setdefault(text, {}).setdefault(size, []).append(cost)
    for size in sizes:
        bench.server.drop('cost_%d' % size)
    return costs


@workload('W8', 'cost of single operations at 10,000 to 10,000,000 messages', 900)
def single(bench):
    sizes = bench.size([10000, 100000, 1000000, 10000000], [2000, 20000])
    widths, turns, times = bench.size([1, 1000, 100000], [1, 1000]), bench.size(15, 5), 7
    result = Result('W8', single.title, {'messages': sizes, 'channels': widths, 'turns': turns, 'measurements of each in a turn': times})
    bench.server.set(mq__max_workers='0', autovacuum='off')
    rows, worst = [], {}
    try:
        for state, delay in (('ready', '0'), ('future', '1 day')):
            for channels in widths:
                for text, found in costs_of(bench, state, delay, channels, sizes, turns, times).items():
                    ratio = max(median([cost / first for cost, first in zip(found[size], found[sizes[0]])]) for size in sizes)
                    worst.setdefault(text, []).append(ratio)
                    rows.append([text, state, format(channels, ',')] + ['%.0f' % median(found[size]) for size in sizes]
                                + ['%.2f' % ratio])
    finally:
        bench.server.set(mq__max_workers=None, autovacuum=None)
        for size in sizes:
            bench.server.drop('cost_%d' % size)
    for text, ratios in worst.items():
        result.figure('%s: dearest by what it costs at %s' % (text, format(sizes[0], ',')), '×', [max(ratios)], most=1.3)
    result.table('Microseconds inside the server (medians)', ['operation', 'messages are', 'channels'] + [format(size, ',') for size in sizes]
                 + ['dearest by first'], sorted(rows))
    return result


@workload('W16', 'SELECT * FROM mq_stats', 90)
def stats(bench):
    n, channels = bench.size(10000000, 100000), bench.size(1000, 100)
    result = Result('W16', stats.title, {'messages': n, 'channels': channels})
    bench.renew_mq()
    session = bench.mq.session
    step = max(1, 500000 // (n // channels))
    for first in range(1, channels + 1, step):
        session.query("SELECT count(*) FROM generate_series(%d, %d) c, mq_send_many('stats' || c, %s)"
                      % (first, min(channels, first + step - 1), PAYLOADS % (n // channels)))
    bench.mq.settle()
    say('  filled')

    def looked(session, view='mq_stats', least=channels):
        begun = time.monotonic()
        rows = session.query('SELECT * FROM ' + view)
        took = (time.monotonic() - begun) * 1000
        expect(len(rows) >= least, '%s has at least %d rows' % (view, least))
        return took
    result.figure('the first time after all were sent', 'ms', [looked(session)])
    result.figure('SELECT * FROM mq_stats after that, median of 11', 'ms', [median([looked(session) for _ in range(11)])], most=50)
    named = min(channels, int(session.value('SHOW mq.metrics_channels')))
    result.figure('SELECT * FROM mq_metrics, median of 11', 'ms', [median([looked(session, 'mq_metrics', named) for _ in range(11)])])
    result.figure('SELECT * FROM mq_histogram, median of 11', 'ms', [median([looked(session, 'mq_histogram', 0) for _ in range(11)])])
    other = bench.server.connect('mq', 'other')
    result.figure('the first time in another session', 'ms', [looked(other)])
    other.close()
    bench.renew_mq()
    return result
