"""A connection to PostgreSQL over its unix socket: as much of the frontend protocol as the benchmark needs.

The standard library has no driver, and a psql between the clock and the server would be in every figure. Values are
text in both directions; None is NULL. Errors of the server are raised as SqlError and leave the connection usable.
"""
import socket
import struct


class SqlError(Exception):
    def __init__(self, fields):
        super().__init__('%s: %s' % (fields.get('C', '?????'), fields.get('M', '')))
        self.sqlstate = fields.get('C')


class Connection:
    """One session. Not to be shared between threads."""

    def __init__(self, directory, port, database, user='postgres', application='bench'):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect('%s/.s.PGSQL.%d' % (directory, port))
        self.stream = self.socket.makefile('rb', buffering=65536)
        self.prepared = {}
        pairs = ('user', user, 'database', database, 'application_name', application)
        body = struct.pack('!i', 196608) + b''.join(p.encode() + b'\0' for p in pairs) + b'\0'
        self.socket.sendall(struct.pack('!i', len(body) + 4) + body)
        self._read_until_ready()
        self.pid = int(self.value('SELECT pg_backend_pid()'))

    def query(self, sql):
        """Runs one or more statements in a simple query; returns the rows of the last that had any."""
        self._send(b'Q', sql.encode() + b'\0')
        return self._read_until_ready()

    def value(self, sql):
        """The first column of the first row, or None."""
        rows = self.query(sql)
        return rows[0][0] if rows else None

    def run(self, sql, *values):
        """A statement with parameters, prepared at its first use; one round trip after that."""
        name = self.prepared.get(sql)
        message = b''
        if name is None:
            name = self.prepared[sql] = b's%d' % len(self.prepared)
            message = self._message(b'P', name + b'\0' + sql.encode() + b'\0\0\0')
        bind = [b'\0' + name + b'\0\0\0', struct.pack('!h', len(values))]
        for value in values:
            if value is None:
                bind.append(struct.pack('!i', -1))
            else:
                text = str(value).encode()
                bind.append(struct.pack('!i', len(text)) + text)
        bind.append(b'\0\0')
        message += self._message(b'B', b''.join(bind)) + self._message(b'E', b'\0\0\0\0\0') + self._message(b'S', b'')
        self.socket.sendall(message)
        return self._read_until_ready()

    def close(self):
        try:
            self._send(b'X', b'')
        except OSError:
            pass
        self.stream.close()
        self.socket.close()

    @staticmethod
    def _message(kind, body):
        return kind + struct.pack('!i', len(body) + 4) + body

    def _send(self, kind, body):
        self.socket.sendall(self._message(kind, body))

    def _read(self, size):
        data = self.stream.read(size)
        if len(data) < size:
            raise ConnectionError('the server closed the connection')
        return data

    def _read_until_ready(self):
        rows, error = [], None
        while True:
            kind, size = struct.unpack('!ci', self._read(5))
            body = self._read(size - 4)
            if kind == b'D':
                rows.append(self._row(body))
            elif kind == b'T':
                rows = []
            elif kind == b'E':
                error = error or SqlError({f[:1].decode(): f[1:].decode('utf-8', 'replace')
                                           for f in body.split(b'\0') if f})
            elif kind == b'R' and body[:4] != b'\0\0\0\0':
                raise ConnectionError('the server asks for a password')
            elif kind == b'Z':
                if error:
                    raise error
                return rows

    @staticmethod
    def _row(body):
        count, at, row = struct.unpack_from('!h', body)[0], 2, []
        for _ in range(count):
            size = struct.unpack_from('!i', body, at)[0]
            at += 4
            if size < 0:
                row.append(None)
            else:
                row.append(body[at:at + size].decode())
                at += size
        return row
