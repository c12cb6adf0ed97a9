"""PgQ with its batch consumer: one tick after all events were sent, so one batch has them all."""
import time

import measure
from sides import ARRIVE, NOOP, Side

DRAIN = """CREATE FUNCTION drain() RETURNS bigint LANGUAGE plpgsql AS $$
  DECLARE batch bigint; event record; total bigint := 0;
  BEGIN
    LOOP
      batch := pgq.next_batch('burn', 'bench');
      EXIT WHEN batch IS NULL;
      FOR event IN SELECT ev_data FROM pgq.get_batch_events(batch) LOOP
        PERFORM noop(event.ev_data::jsonb);
        total := total + 1;
      END LOOP;
      PERFORM pgq.finish_batch(batch);
    END LOOP;
    RETURN total;
  END $$"""


class PgQ(Side):
    label, database = 'PgQ', 'pgq'

    def open(self):
        self.server.create(self.database)
        for sql in ('CREATE EXTENSION pgq', NOOP, DRAIN, *ARRIVE):
            self.session.query(sql)
        self.exists = False

    def renew(self):
        """A new queue with empty tables, as after a rotation, and a consumer at its end."""
        if self.exists:
            self.session.query("SELECT pgq.drop_queue('burn', true)")
        self.session.query("SELECT pgq.create_queue('burn')")
        self.session.query("SELECT pgq.set_queue_config('burn', 'ticker_max_lag', '0'), pgq.set_queue_config('burn', 'ticker_idle_period', '0')")
        self.session.query("SELECT pgq.register_consumer('burn', 'bench')")
        self.exists = True

    def tick(self):
        self.session.query("SELECT pgq.force_tick('burn')")
        self.session.query("SELECT pgq.ticker('burn')")

    def fill(self, n, settle=True):
        self.renew()
        self.session.query("SELECT count(pgq.insert_event('burn', 'burn', jsonb_build_object('n', i)::text)) FROM generate_series(1, %d) i" % n)
        if settle:
            self.settle()
        self.tick()

    def burn(self, n):
        start = time.monotonic()
        handled = int(self.session.value('SELECT drain()'))
        took = time.monotonic() - start
        measure.expect(handled == n, 'PgQ handled %d of %d' % (handled, n))
        return took
