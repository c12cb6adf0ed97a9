"""The schema that mq replaces, from the file that ORIGINAL names, driven by a loop inside the database: polls, calls the
handler, deletes, and commits each batch. Each of its polls reads all that is ready, so large batches suit it best."""
import time

import measure
from sides import NOOP, Side

DRAIN = """CREATE PROCEDURE drain(batch int, INOUT total bigint DEFAULT 0) LANGUAGE plpgsql AS $$
  DECLARE message record; handled uuid[];
  BEGIN
    LOOP
      handled := ARRAY[]::uuid[];
      FOR message IN SELECT * FROM mq_poll(NULL, batch) LOOP
        EXIT WHEN message.id IS NULL;
        PERFORM noop(message.payload_json::jsonb);
        handled := handled || message.id;
      END LOOP;
      EXIT WHEN handled = ARRAY[]::uuid[];
      PERFORM mq_delete(handled);
      total := total + cardinality(handled);
      COMMIT;
    END LOOP;
  END $$"""

ROW = """(uuid_generate_v4(), '0', 4, '1 hour', %s, %s, NULL, %s, 'burn', jsonb_build_object('n', i)::text, NULL)::mq_new_t"""


class Original(Side):
    label, database = 'original schema', 'original'

    def __init__(self, server, file):
        self.file = file
        super().__init__(server)

    def open(self):
        self.server.create(self.database)
        self.server.psql(self.database, self.file)
        self.session.query(NOOP)
        self.session.query(DRAIN)

    def fill(self, n, channels=10, args=None, ordered=False, settle=True):
        # An ordered array is inserted by id, whose last one must be the newest: a call for each message is not needed,
        # since the order within one array does not matter here.
        if args is None:
            row, groups = ROW % ("'burn' || c", "''", ordered), channels
        else:
            row, groups = ROW % ("'burn1'", 'c::text', ordered), args
        self.session.query('SELECT count(mq_insert(ARRAY(SELECT %s FROM generate_series(1, %d) i))) FROM generate_series(1, %d) c'
                           % (row, n // groups, groups))
        if settle:
            self.settle()

    def burn(self, n, batch=10000):
        start = time.monotonic()
        handled = int(self.session.value('CALL drain(%d)' % batch))
        took = time.monotonic() - start
        measure.expect(handled == n, 'the original handled %d of %d' % (handled, n))
        left = int(self.session.value('SELECT count(*) FROM mq_payloads'))
        measure.expect(left == 0, 'the original has %d messages left' % left)
        return took

    def clear(self):
        """A DELETE of many messages looks for what refers to each, which takes minutes. The nil row stays."""
        nil = "id = '00000000-0000-0000-0000-000000000000'"
        self.session.query('CREATE TEMP TABLE kept AS SELECT * FROM mq_msgs WHERE %s; TRUNCATE mq_msgs, mq_payloads CASCADE; '
                           'INSERT INTO mq_msgs SELECT * FROM kept; DROP TABLE kept' % nil)
