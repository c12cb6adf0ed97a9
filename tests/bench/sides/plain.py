"""Tables with no queue about them: the floor."""
import time

import measure
from sides import NOOP, Side

# One table with the payload in the row, a key, and an index to find what is due.
TABLE = """CREATE TABLE messages (id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, channel text NOT NULL,
             due timestamptz NOT NULL DEFAULT now(), payload jsonb);
           CREATE INDEX messages_due ON messages (channel, due, id)"""

DRAIN = """CREATE PROCEDURE %s(batch int, INOUT total bigint DEFAULT 0) LANGUAGE plpgsql AS $$
  DECLARE message record; handled int;
  BEGIN
    FOR c IN 1 .. 10 LOOP
      LOOP
        handled := 0;
        FOR message IN DELETE FROM messages WHERE id IN
            (SELECT id FROM messages WHERE channel = 'burn' || c AND due <= now() ORDER BY due, id LIMIT batch FOR UPDATE SKIP LOCKED)
            RETURNING payload LOOP
          %s
          handled := handled + 1;
        END LOOP;
        EXIT WHEN handled = 0;
        total := total + handled;
        COMMIT;
      END LOOP;
    END LOOP;
  END $$"""


class Plain(Side):
    label, database = 'plain statements', 'plain'

    def open(self):
        self.server.create(self.database)
        for sql in (NOOP, TABLE, 'CREATE TABLE effects (n int)', DRAIN % ('drain', 'PERFORM noop(message.payload);'),
                    DRAIN % ('drain_inserting', "INSERT INTO effects VALUES ((message.payload ->> 'n')::int);")):
            self.session.query(sql)

    def fill(self, n, settle=True):
        self.session.query("INSERT INTO messages (channel, payload) SELECT 'burn' || c, jsonb_build_object('n', i) "
                           'FROM generate_series(1, 10) c, generate_series(1, %d) i' % (n // 10))
        if settle:
            self.settle()

    def burn(self, n, batch=500, procedure='drain'):
        start = time.monotonic()
        handled = int(self.session.value('CALL %s(%d)' % (procedure, batch)))
        took = time.monotonic() - start
        measure.expect(handled == n, 'plain statements handled %d of %d' % (handled, n))
        return took
