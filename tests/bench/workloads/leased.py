"""W13: leased handlers that wait."""
import threading
import time

from measure import Result, alternate, expect, median, percentile, wait_until
from workloads import workload
from workloads.latency import SEND, arrivals, paced, waits


@workload('W13', '200 leased messages whose handler sleeps a second, 50 sessions, one worker', 80)
def leased(bench):
    n, pairs = bench.size(200, 100), {'beside': [], 'alone': []}
    mq = bench.mq
    result = Result('W13', leased.title, {'messages': n, 'mq.leased_sessions': 50, 'a transactional message each': '20 ms'})
    mq.session.query("""CREATE OR REPLACE FUNCTION sleep_and_tell(payload jsonb) RETURNS void LANGUAGE plpgsql AS
                        $$BEGIN PERFORM pg_sleep(COALESCE((payload ->> 'seconds')::int, 1)); INSERT INTO effects VALUES (1); END$$""")
    mq.session.query("SELECT mq_register_handler('leased', 'sleep_and_tell(jsonb)', mode => 'leased')")
    mq.register('arrive(jsonb)', 1, 'latency')

    def transactional(count, into):
        sender = mq.server.connect('mq', 'sender')
        into.extend(waits(paced(sender, SEND['mq'], count, 0.02), arrivals(mq, count)))
        sender.close()

    def run():
        mq.session.query('TRUNCATE effects, arrivals')
        before, found = mq.totals(), []
        beside = threading.Thread(target=transactional, args=(150, found))
        looking = mq.server.connect('mq', 'looking')
        begun = time.monotonic()
        mq.session.query("SELECT count(*) FROM mq_send_many('leased', array_fill('{}'::jsonb, ARRAY[%d]))" % n)
        # The session that all share is the other thread's until it ends.
        beside.start()
        wait_until(lambda: int(looking.value('SELECT count(*) FROM effects')) >= n, 60, 'all are handled', 0.02)
        wait_until(lambda: looking.value('SELECT NOT EXISTS (SELECT FROM mq_msgs)') == 't', 60, 'none is left', 0.02)
        took = time.monotonic() - begun
        beside.join()
        looking.close()
        expect(len(found) == 150, 'the transactional messages were handled')
        mq.check(before, n + 150)
        expect(mq.session.value('SELECT count(*) FROM effects') == str(n), 'each was handled once')
        pairs['beside'].append(percentile(found, 0.99))
        alone = []
        mq.session.query('TRUNCATE arrivals')
        transactional(150, alone)
        pairs['alone'].append(percentile(alone, 0.99))
        return took
    times = alternate(min(3, bench.rounds), {'leased': run}, '{:.2f} s')['leased']
    # A call that takes longer than the half of a lease.
    seconds, ends, before = bench.size(40, 17), set(), mq.totals()
    mq.session.query('TRUNCATE effects')
    mq.session.query("SELECT mq_send('leased', '{\"seconds\": %d}')" % seconds)

    def handled():
        ends.update(row[0] for row in mq.session.query("SELECT attempt_at FROM mq_msgs WHERE channel_name = 'leased' AND lease > 0"))
        return mq.session.value('SELECT count(*) FROM effects') == '1' and mq.pending() == 0
    wait_until(handled, seconds + 30, 'the long call ends', 0.2)
    mq.check(before, 1)
    expect(mq.session.value('SELECT count(*) FROM effects') == '1', 'the long message was handled once')
    mq.unregister(1, 'latency')
    mq.session.query("SELECT mq_unregister_handler('leased')")
    result.figure('from the sending to the last removal', 's', times, most=5)
    result.figure('renewals of the lease during a call of %d s' % seconds, '', [len(ends) - 1], least=1)
    result.figure('transactional messages meanwhile: from the commit to the handler, 99th percentile', 'ms', pairs['beside'])
    result.figure('the same without leased calls', 'ms', pairs['alone'])
    return result
