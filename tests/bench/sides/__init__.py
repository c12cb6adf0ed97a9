"""What is measured: mq, its release before, the peers, and plain tables.

A side has a label, fill(n) that sends messages in bulk and leaves the tables vacuumed and the WAL checkpointed, and
burn(n) that handles them all, fails if one was lost or doubled, and returns the seconds it took.
"""

NOOP = "CREATE FUNCTION noop(payload jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN END'"

# What a message tells of itself when it is handled. Unlogged: this must not add to the WAL that is measured.
ARRIVE = ['CREATE UNLOGGED TABLE arrivals (n int, at timestamptz, sent timestamptz)',
          """CREATE FUNCTION arrive(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
             BEGIN
               INSERT INTO arrivals VALUES ((payload ->> 'n')::int, clock_timestamp(), (payload ->> 'at')::timestamptz);
             END $$"""]


class Side:
    label = database = None

    def __init__(self, server):
        self.server = server
        self.open()

    def close(self):
        """Ends what it has started beside its sessions."""

    @property
    def session(self):
        return self.server.session(self.database)

    def settle(self):
        """Nothing of the filling is left to the run: neither hint bits, nor statistics, nor dirty pages."""
        self.session.query('VACUUM ANALYZE')
        self.session.query('CHECKPOINT')

    def rate(self, n, **options):
        """Messages handled per second, of n that it sends first."""
        self.fill(n, **{k: options.pop(k) for k in ('channels', 'args', 'ordered') if k in options})
        return n / self.burn(n, **options)
