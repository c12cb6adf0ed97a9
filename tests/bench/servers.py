"""The private servers of a run: one of the tree, and one of mq's release before when a workload asks for it."""
import os
import re
import subprocess
import time

import measure
import wire

SETTINGS = {'synchronous_commit': 'on', 'shared_buffers': '1GB', 'max_wal_size': '8GB', 'checkpoint_timeout': '1h',
            'mq.max_workers': '1', 'mq.leased_sessions': '50'}


class Server:
    """A cluster on a socket in the run's own directory. run.sh ends what is left of it, whatever happens here."""

    def __init__(self, name, bindir, port):
        self.name, self.bindir, self.port = name, bindir, port
        self.work = os.environ['WORK']
        self.directory = self.work + '/socket'
        self.data = '%s/data/%s' % (self.work, name)
        self.log = '%s/log/%s.log' % (self.work, name)
        self.connections = {}

    def _as_user(self, *command):
        environment = {'HOME': self.work + '/tmp', 'PATH': self.bindir + ':/usr/bin:/bin', 'LANG': 'C.UTF-8'}
        done = subprocess.run(os.environ.get('AS_USER', '').split() + list(command), env=environment, cwd='/',
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True)
        measure.expect(done.returncode == 0, '%s: %s' % (command[0], done.stdout))

    def start(self):
        measure.say('starting a private server: ' + self.name)
        self._as_user('initdb', '-D', self.data, '-U', 'postgres', '--auth=trust', '--no-sync', '--encoding=UTF8',
                      '--locale=C')
        lines = ["listen_addresses = ''", "unix_socket_directories = '%s'" % self.directory, 'port = %d' % self.port,
                 "shared_preload_libraries = 'mq'", 'max_worker_processes = 16', 'max_connections = 200']
        lines += ["%s = '%s'" % setting for setting in SETTINGS.items()]
        with open(self.data + '/postgresql.conf', 'a') as file:
            file.write('\n'.join(lines) + '\n')
        # pg_ctl's own descriptors must not be the server's.
        self._as_user('pg_ctl', '-D', self.data, '-l', self.log, '-w', '-t', '60', 'start')
        return self

    def stop(self):
        for connection in self.connections.values():
            connection.close()
        self._as_user('pg_ctl', '-D', self.data, '-w', '-t', '120', '-m', 'fast', 'stop')
        with open(self.log, errors='replace') as file:
            for line in file:
                measure.expect('was terminated by signal' not in line and 'PANIC:' not in line, 'the server crashed: ' + line)

    def connect(self, database, application='bench'):
        """A new session."""
        return wire.Connection(self.directory, self.port, database, application=application)

    def session(self, database):
        """The session that the main program shares for set-up and looking."""
        if database not in self.connections:
            self.connections[database] = self.connect(database)
        return self.connections[database]

    def create(self, database):
        self.session('postgres').query('CREATE DATABASE ' + database)
        return self.session(database)

    def drop(self, database):
        if database in self.connections:
            self.connections.pop(database).close()
        self.session('postgres').query('DROP DATABASE IF EXISTS %s WITH (FORCE)' % database)

    def set(self, **settings):
        """Changes settings of the server; None resets one. mq__max_workers stands for mq.max_workers."""
        session = self.session('postgres')
        for name, value in settings.items():
            name = name.replace('__', '.')
            session.query('ALTER SYSTEM RESET %s' % name if value is None else "ALTER SYSTEM SET %s = '%s'" % (name, value))
        session.query('SELECT pg_reload_conf()')
        time.sleep(0.3)

    def reset(self):
        """Undoes every set(), and forgets the shared sessions, which may be in the midst of something."""
        for connection in self.connections.values():
            connection.close()
        self.connections.clear()
        session = self.session('postgres')
        session.query('ALTER SYSTEM RESET ALL')
        session.query('SELECT pg_reload_conf()')
        time.sleep(0.3)

    def psql(self, database, file):
        """Runs a file of SQL."""
        done = subprocess.run([self.bindir + '/psql', '-X', '-q', '-h', self.directory, '-p', str(self.port), '-U',
                               'postgres', '-d', database, '-v', 'ON_ERROR_STOP=1', '-f', file],
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        measure.expect(done.returncode == 0, done.stderr)

    def pgbench(self, database, script, clients, transactions=None, seconds=None):
        """Starts pgbench with the script's text, prepared. Returns the process and the script's file."""
        path = '%s/tmp/%d.pgbench' % (self.work, time.monotonic_ns())
        with open(path, 'w') as file:
            file.write(script)
        length = ['-t', str(transactions)] if transactions else ['-T', str(seconds)]
        return subprocess.Popen([self.bindir + '/pgbench', '-n', '-M', 'prepared', '-h', self.directory, '-p',
                                 str(self.port), '-U', 'postgres', '-c', str(clients), '-j', str(min(clients, 2)), '-f', path]
                                + length + [database], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wal(self):
        """Bytes of WAL so far."""
        return int(self.session('postgres').value("SELECT pg_current_wal_insert_lsn() - '0/0'"))

    def keep_wal_files(self, megabytes):
        """Leaves so many WAL files for reuse, as a server has them after its first checkpoints under load. A server that
        has none makes each new one by writing 16 MB of zeros, for which all commits wait."""
        self.set(min_wal_size=SETTINGS['max_wal_size'])
        session = self.session('postgres')
        for _ in range(megabytes // 16):
            session.query("SELECT pg_logical_emit_message(true, 'bench', '')")
            session.query('SELECT pg_switch_wal()')
        session.query('CHECKPOINT')

    def worker_pids(self, database='mq'):
        return [int(row[0]) for row in self.session('postgres').query(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'mq worker' AND datname = '%s'" % database)]

    def backend_pids(self, application):
        return [int(row[0]) for row in self.session('postgres').query(
            "SELECT pid FROM pg_stat_activity WHERE application_name = '%s'" % application)]


def pgbench_result(process):
    """Waits for a pgbench; returns transactions per second, and how many there were."""
    out, err = process.communicate()
    measure.expect(process.returncode == 0 and 'aborted' not in err, 'pgbench: ' + err[-2000:])
    rate = re.search(r'^tps = ([0-9.]+)', out, re.M)
    count = re.search(r'^number of transactions actually processed: ([0-9]+)', out, re.M)
    measure.expect(rate and count, 'pgbench says no rate: ' + out)
    return float(rate.group(1)), int(count.group(1))
