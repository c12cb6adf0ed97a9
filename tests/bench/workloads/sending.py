"""Sending: W7, W20."""
import time

from measure import Result, alternate, expect
from servers import pgbench_result
from workloads import workload

NEXT_ID = "lpad(to_hex(nextval('twin_ids')), 32, '0')::uuid"  # ascends, as mq's own ids do
RANDOM_ID = 'gen_random_uuid()'
PAYLOADS = "ARRAY(SELECT jsonb_build_object('n', i) FROM generate_series(1, %d) i)"


def twin(mq, id=NEXT_ID, payload="jsonb_build_object('n', i)"):
    """Makes a table with the columns, defaults and indexes of mq_msgs, for plain INSERTs of the same rows with these ids.
    Returns a statement with %s for where its rows come from, whose number is i."""
    mq.session.query('DROP TABLE IF EXISTS twin; DROP SEQUENCE IF EXISTS twin_ids')
    mq.session.query('CREATE TABLE twin (LIKE mq_msgs INCLUDING ALL); CREATE SEQUENCE twin_ids CACHE 100')
    mq.session.query("SELECT mq_send('plain', '{\"n\": 1}')")
    expressions = {'id': id, 'created_at': 'now()', 'attempt_at': 'now()', 'seq': "nextval('mq_msgs_seq')",
                   'message_json': payload}
    columns = [row[0] for row in mq.session.query(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'mq_msgs'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum")]
    values = [expressions.get(column) or mq.session.value(
        "SELECT COALESCE(quote_literal(%s), 'NULL') || '::' || pg_typeof(%s) FROM mq_msgs" % (column, column)) for column in columns]
    mq.clear()
    return 'INSERT INTO twin SELECT %s FROM %%s' % ', '.join(values)


def timed(session, sql, n, counted=None):
    """Rows a second of one statement. counted: a query that says how many there are."""
    start = time.monotonic()
    session.query(sql)
    took = time.monotonic() - start
    if counted:
        found = int(session.value(counted))
        expect(found == n, 'sent %d of %d' % (found, n))
    return n / took


@workload('W7', 'sending', 300, 'base', 'original')
def sending(bench):
    mq, n, turns = bench.mq, bench.size(100000, 10000), bench.rounds * bench.size(4, 1)
    # Short turns, and many: what one side flushes to the disk, the next one may have to wait for.
    result = Result('W7', sending.title, {'messages of bulk sending': n, 'turns of single sending, a second each': turns})
    # mq_insert takes ids from its caller, and payloads as text.
    insert_given = twin(mq, RANDOM_ID, "jsonb_build_object('n', i)::text::jsonb")
    insert = twin(mq)

    def reset():
        mq.session.query('TRUNCATE twin; SELECT mq_clear_all()')
        mq.settle()

    def singles(clients, script, table):
        reset()
        rate, count = pgbench_result(bench.server.pgbench('mq', script, clients, seconds=1))
        expect(int(mq.session.value('SELECT count(*) FROM ' + table)) == count, 'all that was sent is there')
        return rate
    send = "SELECT mq_send('plain', jsonb_build_object('n', 1));\n"

    def before(clients):
        bench.before.clear()
        rate, count = pgbench_result(bench.before.server.pgbench(bench.before.database, send, clients, seconds=1))
        expect(bench.before.pending() == count, 'all that was sent is there')
        return rate
    for clients in (1, 8, 32):
        sides = {'mq_send': lambda: singles(clients, send, 'mq_msgs'),
                 'plain INSERT': lambda: singles(clients, insert % '(SELECT 1 AS i) one' + ';\n', 'twin')}
        if bench.before:
            sides[bench.before.label] = lambda: before(clients)
        rates = alternate(turns, sides)
        text = 'mq_send, one a transaction, %d client%s' % (clients, 's' if clients > 1 else '')
        result.compare(text + ', beside plain INSERTs of the same row', '/s', rates, 'mq_send', 'plain INSERT', 0.85)
        if bench.before:
            result.compare('%s, beside %s' % (text, bench.before.label), '/s', rates, 'mq_send', bench.before.label)

    def bulk(sql, table):
        reset()
        return timed(mq.session, sql, n, 'SELECT count(*) FROM ' + table)
    row = "(gen_random_uuid(), '0', 24, '1 s', 'plain', '', NULL, false, 'plain', jsonb_build_object('n', i)::text, NULL)::mq_new_t"
    sides = {
        'mq_send_many': lambda: bulk("SELECT count(*) FROM mq_send_many('plain', %s)" % PAYLOADS % n, 'mq_msgs'),
        'mq_insert': lambda: bulk('SELECT mq_insert(ARRAY(SELECT %s FROM generate_series(1, %d) i))' % (row, n), 'mq_msgs'),
        'plain INSERT': lambda: bulk(insert % 'generate_series(1, %d) i' % n, 'twin'),
        'plain INSERT of given ids': lambda: bulk(insert_given % 'generate_series(1, %d) i' % n, 'twin')}
    if bench.original:
        def original():
            bench.original.clear()
            bench.original.settle()
            return timed(bench.original.session, 'SELECT mq_insert(ARRAY(SELECT %s FROM generate_series(1, %d) i))' % (row, n), n,
                         'SELECT count(*) FROM mq_payloads')
        sides['original schema'] = original
    rates = alternate(bench.rounds, sides)
    result.compare('mq_send_many, beside plain INSERTs of the same rows', '/s', rates, 'mq_send_many', 'plain INSERT', 0.6)
    result.compare('mq_insert, beside plain INSERTs of the same rows', '/s', rates, 'mq_insert', 'plain INSERT of given ids', 0.6)
    if bench.original:
        result.compare("mq_insert, beside the original's", '/s', rates, 'mq_insert', 'original schema')
        bench.original.clear()
        bench.original.settle()
    reset()
    if bench.before:
        bench.before.clear()
    mq.session.query('DROP TABLE twin; DROP SEQUENCE twin_ids')
    return result


@workload('W20', 'bulk sending: mq_send_many of 100,000', 60, 'base')
def many(bench):
    n = bench.size(100000, 10000)
    result = Result('W20', many.title, {'messages': n})

    def send(side, ordered):
        side.clear()
        options = ', ordered => true' if ordered else ''
        return timed(side.session, "SELECT count(*) FROM mq_send_many('bulk', %s%s)" % (PAYLOADS % n, options), n,
                     'SELECT count(*) FROM mq_msgs')

    def plain():
        bench.plain.session.query('TRUNCATE messages')
        bench.plain.settle()
        return timed(bench.plain.session, "INSERT INTO messages (channel, payload) SELECT 'bulk', jsonb_build_object('n', i) "
                     'FROM generate_series(1, %d) i' % n, n, 'SELECT count(*) FROM messages')
    sides = {'unordered': lambda: send(bench.mq, False), 'ordered': lambda: send(bench.mq, True), 'plain INSERT': plain}
    if bench.before:
        sides[bench.before.label + ', unordered'] = lambda: send(bench.before, False)
        sides[bench.before.label + ', ordered'] = lambda: send(bench.before, True)
    rates = alternate(bench.rounds, sides)
    for kind in ('unordered', 'ordered'):
        result.compare('%s, beside INSERT into a table with a key and one index' % kind, '/s', rates, kind, 'plain INSERT', 0.6)
        if bench.before:
            result.compare('%s, beside %s' % (kind, bench.before.label), '/s', rates, kind, '%s, %s' % (bench.before.label, kind), 1.5)
    for side in bench.there(bench.mq, bench.before):
        side.clear()
    bench.plain.session.query('TRUNCATE messages')
    return result
