"""The private servers of a run. run.sh's work directory ends what is left of them, whatever happens here."""
import os
import signal
import subprocess
import time

import psycopg

SETTINGS = {'listen_addresses': '', 'shared_preload_libraries': 'mq', 'max_worker_processes': 24, 'max_connections': 80, 'max_prepared_transactions': 60,
            'mq.max_workers': 2, 'mq.poll_interval': '2s', 'log_line_prefix': '%m [%p] %b %q%d ', 'log_error_verbosity': 'terse', 'deadlock_timeout': '200ms',
            'track_commit_timestamp': 'on', 'restart_after_crash': 'on', 'fsync': 'off', 'max_wal_size': '1GB', 'shared_buffers': '64MB', 'wal_level': 'logical',
            'client_min_messages': 'error', 'log_min_messages': 'warning', 'autovacuum_naptime': '5s', 'mq.leased_sessions': 6}


class Failed(Exception):
    """The fault could not be made, or the server did not do what it must."""


def expect(is_so, text):
    if not is_so:
        raise Failed(text)


def patience(seconds):
    """What a bound of so many seconds is on this machine now: longer by as much as its processors are asked for too often."""
    return seconds * min(10, max(1, os.getloadavg()[0] / (os.cpu_count() or 1)))


def wait_until(condition, seconds, what, pause=0.05):
    """The first true value of the condition, which may fail with errors of the server meanwhile. A busy machine has longer."""
    begun, last = time.monotonic(), ''
    while True:
        try:
            value = condition()
            if value:
                return value
        except (psycopg.Error, OSError) as error:
            last = str(error)
        waited = time.monotonic() - begun
        expect(waited < patience(seconds), 'waited %.0f s in vain, where %g s are the bound of an idle machine: %s %s' % (waited, seconds, what, last))
        time.sleep(pause)


class Server:
    """A cluster of its own on a unix socket. `environment` is added to that of its programs."""
    ports = iter(range(5501, 5600))

    def __init__(self, name, environment=(), data=None, **settings):
        self.name, self.port, self.environment = name, next(Server.ports), dict(environment)
        self.work, self.bin = os.environ['WORK'], os.environ['FAULTS_BIN']
        self.socket = self.work + '/socket'
        self.data, self.log = data or '%s/data/%s' % (self.work, name), '%s/log/%s.log' % (self.work, name)
        self.settings = dict(SETTINGS, **{key.replace('__', '.'): value for key, value in settings.items()})
        # options: what the sessions of a run itself need in a database whose own settings are hostile.
        self.sessions, self.options = {}, {}

    def run(self, *command, check=True, seconds=120, environment=()):
        """A program of the server's, as the unprivileged user."""
        env = {'HOME': self.work + '/tmp', 'PATH': self.bin + ':/usr/bin:/bin', 'LANG': 'C.UTF-8'}
        # The environment is that of the program alone: a library that is preloaded makes files as whoever loads it.
        settings = {**self.environment, **dict(environment)}
        prefix = os.environ.get('AS_USER', '').split() + (['env'] + ['%s=%s' % one for one in settings.items()] if settings else [])
        done = subprocess.run(prefix + list(command), env=env, cwd=self.work + '/tmp', stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              stdin=subprocess.DEVNULL, text=True, timeout=10 * seconds)
        expect(done.returncode == 0 or not check, '%s: %s' % (' '.join(command), done.stdout))
        return done.stdout

    def create(self):
        self.run('initdb', '-D', self.data, '-U', 'postgres', '--auth=trust', '--no-sync', '--encoding=UTF8', '--locale=C', environment={'LD_PRELOAD': ''})
        self.configure(unix_socket_directories=self.socket, port=self.port, **self.settings)
        return self

    def configure(self, **settings):
        """Adds settings, which count at the next start or reload()."""
        with open(self.data + '/postgresql.conf', 'a') as file:
            file.writelines("%s = '%s'\n" % (key.replace('__', '.'), value) for key, value in settings.items())

    def reload(self):
        self.run('pg_ctl', '-D', self.data, 'reload')

    def start(self, wait=True, check=True):
        # pg_ctl's own descriptors must not be the server's.
        return self.run('pg_ctl', '-D', self.data, '-l', self.log, '-w' if wait else '-W', '-t', '600', 'start', check=check)

    def stop(self, mode='fast', check=True, seconds=60):
        self.forget()
        return self.run('pg_ctl', '-D', self.data, '-w', '-t', '%d' % patience(seconds), '-m', mode, 'stop', check=check)

    def kill(self):
        """kill -9 of the postmaster, and then of what it leaves behind, which would keep the next one from starting."""
        self.forget()
        pid = self.postmaster()
        children = self.children(pid)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not os.path.exists('/proc/%d' % pid) or 'Z' == state_of(pid), 10, 'the postmaster ends')
        for child in children:
            signal_pid(child, signal.SIGQUIT)
        try:
            wait_until(lambda: not any(state_of(child) not in (None, 'Z') for child in children), 3, 'its children end')
        except Failed:
            for child in children:
                signal_pid(child, signal.SIGKILL)
        # A process that nobody has waited for yet would seem to be a server that runs.
        for file in (self.data + '/postmaster.pid', '%s/.s.PGSQL.%d.lock' % (self.socket, self.port)):
            if os.path.exists(file):
                os.unlink(file)

    def postmaster(self):
        with open(self.data + '/postmaster.pid') as file:
            return int(file.readline())

    def children(self, pid):
        try:
            with open('/proc/%d/task/%d/children' % (pid, pid)) as file:
                return [int(child) for child in file.read().split()]
        except OSError:
            return []

    def conninfo(self, database):
        return 'host=%s port=%d user=postgres dbname=%s%s' % (self.socket, self.port, database, " options='%s'" % self.options[database] if database in self.options else '')

    def connect(self, database, **options):
        return psycopg.connect(self.conninfo(database), autocommit=True, prepare_threshold=None, connect_timeout=60, **options)

    def sql(self, database, query, *values):
        """Rows of the query, in a session that is kept. Where that was lost, or is lost now, in a new one."""
        for last in (False, True):
            session = self.sessions.get(database)
            try:
                if session is None or session.closed or session.broken:
                    session = self.sessions[database] = self.connect(database, application_name='auditor')
                cursor = session.execute(query, values or None)
                return cursor.fetchall() if cursor.description else []
            except psycopg.OperationalError:
                if last or session is None or not (session.closed or session.broken):
                    raise
                self.ready()

    def value(self, database, query, *values):
        return self.sql(database, query, *values)[0][0]

    def forget(self, database=None):
        for name in [database] if database else list(self.sessions):
            if name in self.sessions:
                self.sessions.pop(name).close()

    def ready(self, seconds=60):
        wait_until(lambda: self.connect('postgres').close() is None, seconds, self.name + ' lets sessions in')

    def workers(self, database, kind='mq worker'):
        return [row[0] for row in self.sql('postgres', 'SELECT pid FROM pg_stat_activity WHERE backend_type = %s AND datname = %s', kind, database)]

    def clients(self, database, name='client'):
        return [row[0] for row in self.sql('postgres', 'SELECT pid FROM pg_stat_activity WHERE application_name = %s AND datname = %s', name, database)]

    def log_size(self):
        return os.path.getsize(self.log) if os.path.exists(self.log) else 0

    def log_since(self, offset):
        if not os.path.exists(self.log):
            return []
        with open(self.log, errors='replace') as file:
            file.seek(offset)
            return file.read().splitlines()


def state_of(pid):
    try:
        with open('/proc/%d/stat' % pid) as file:
            return file.read().rsplit(')', 1)[1].split()[0]
    except OSError:
        return None


def private_memory(pid):
    """The bytes that the process has for itself alone."""
    with open('/proc/%d/status' % pid) as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith('RssAnon:'))


def signal_pid(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def compiled(directory, name, text):
    """The path of a library of C functions for the server, made of this source in the directory."""
    source, module = '%s/%s.c' % (directory, name), '%s/%s.so' % (directory, name)
    with open(source, 'w') as file:
        file.write(text)
    include = subprocess.run([os.environ['PG_CONFIG'], '--includedir-server'], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    subprocess.run(['cc', '-shared', '-fPIC', '-w', '-I' + include, '-o', module, source], check=True)
    os.chmod(directory, 0o755)
    return module
