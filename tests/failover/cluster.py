"""A cluster of two nodes that Patroni looks after, with etcd, all on the loopback interface; and how its processes are started
and killed. What Patroni and etcd write is below log/ in the work directory of the run, which ends what is left of them."""
import datetime
import json
import os
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request

from server import SETTINGS, Failed, Server

HERE = os.path.dirname(os.path.abspath(__file__))
# The smallest that newer versions of Patroni accept. A primary that is gone is noticed after this.
TTL = 20
STAMP = re.compile(r'(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}) UTC ')


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def advice():
    """What docs/guide/operations.md says that one should set."""
    with open(HERE + '/../../docs/guide/operations.md') as file:
        return re.search(r'^```yaml\n(bootstrap:.*?)^```', file.read(), re.M | re.S).group(1)


class Process:
    """A program as the unprivileged user, in the work directory, with its output in log/NAME.log."""

    def __init__(self, name, *command):
        self.name, self.command, self.process = name, command, None
        self.log = '%s/log/%s.log' % (os.environ['WORK'], name)

    def start(self):
        work = os.environ['WORK']
        env = {'HOME': work + '/tmp', 'PATH': os.environ['FAULTS_BIN'] + ':/usr/bin:/bin', 'LANG': 'C.UTF-8', 'PYTHONPATH': os.environ.get('PATRONI_PYTHONPATH', ''),
               'PYTHONDONTWRITEBYTECODE': '1'}
        with open(self.log, 'a') as log:
            self.process = subprocess.Popen(os.environ.get('AS_USER', '').split() + list(self.command), env=env, cwd=work + '/tmp', stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, start_new_session=True)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self, seconds):
        """Whether it ends by itself in time."""
        if self.process is None or self.process.poll() is not None:
            return True
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        return True


class Etcd(Process):
    def __init__(self):
        self.port = free_port()
        here, peer = ('http://127.0.0.1:%d' % port for port in (self.port, free_port()))
        super().__init__('etcd', os.environ['ETCD'], '--name', 'one', '--data-dir', os.environ['WORK'] + '/data/etcd', '--listen-client-urls', here,
                         '--advertise-client-urls', here, '--listen-peer-urls', peer, '--initial-advertise-peer-urls', peer, '--initial-cluster', 'one=' + peer)

    def ready(self):
        with urllib.request.urlopen('http://127.0.0.1:%d/health' % self.port, timeout=2) as answer:
            return json.load(answer)['health'] == 'true'


class Node(Server):
    """A server that Patroni makes, starts and promotes."""

    def __init__(self, name, etcd):
        super().__init__(name)
        self.port, self.rest = free_port(), free_port()
        self.patroni_log = '%s/log/patroni-%s/patroni.log' % (self.work, name)
        self.config = '%s/data/%s.patroni' % (self.work, name)
        self.patroni = Process(name, os.environ['PATRONI'], self.config)
        here = '127.0.0.1:%d'
        parameters = {key: value for key, value in SETTINGS.items() if key not in ('listen_addresses', 'shared_preload_libraries')}
        config = {
            'scope': 'mq', 'name': name, 'log': {'level': 'INFO', 'dir': os.path.dirname(self.patroni_log)},
            'restapi': {'listen': here % self.rest, 'connect_address': here % self.rest},
            'etcd3': {'host': here % etcd.port},
            'bootstrap': {'dcs': {'ttl': TTL, 'loop_wait': 2, 'retry_timeout': 5, 'postgresql': {'parameters': dict(parameters, log_timezone='UTC')}},
                          'initdb': [{'encoding': 'UTF8'}, {'locale': 'C'}, {'auth': 'trust'}, 'no-sync']},
            'postgresql': {'listen': here % self.port, 'connect_address': here % self.port, 'data_dir': self.data, 'bin_dir': self.bin,
                           'pgpass': '%s/data/%s.pgpass' % (self.work, name), 'parameters': {'unix_socket_directories': self.socket},
                           'authentication': {'superuser': {'username': 'postgres'}, 'replication': {'username': 'replicator'}},
                           'pg_hba': ['local all all trust', 'host all all 127.0.0.1/32 trust', 'host replication replicator 127.0.0.1/32 trust']}}
        # Patroni reads the files of a directory in the order of their names, and the later ones prevail.
        os.mkdir(self.config)
        self.run('mkdir', os.path.dirname(self.patroni_log))
        for part, text in (('1.yml', advice()), ('2.yml', json.dumps(config, indent=1))):
            with open('%s/%s' % (self.config, part), 'w') as file:
                file.write(text)

    def start(self):
        self.patroni.start()

    def kill(self):
        """kill -9 of Patroni and of the server, at once: as if the machine were gone."""
        os.kill(self.patroni.process.pid, signal.SIGKILL)
        super().kill()
        self.patroni.process.wait()

    def stop(self, mode='fast', check=False, seconds=30):
        """Patroni stops its server with it. Where it does not, it is killed as the machine is."""
        self.forget()
        if self.patroni.stop(seconds):
            return
        try:
            super().kill()
        except (OSError, ValueError, Failed):
            pass

    def state(self):
        """What Patroni says of this node: state, role, timeline and more."""
        try:
            with urllib.request.urlopen('http://127.0.0.1:%d/patroni' % self.rest, timeout=2) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def is_primary(self):
        return self.state().get('role') in ('master', 'primary') and self.state().get('state') == 'running'

    def patroni_says(self, offset, text):
        """Whether Patroni's log has the text behind the offset."""
        with open(self.patroni_log, errors='replace') as file:
            file.seek(offset)
            return text in file.read()

    def patroni_log_size(self):
        return os.path.getsize(self.patroni_log) if os.path.exists(self.patroni_log) else 0

    def moment(self, offset, text):
        """The time, in seconds, of the first line of the server's log behind the offset that has the text; None."""
        for line in self.log_since(offset):
            stamp = STAMP.match(line)
            if stamp and text in line:
                return datetime.datetime.strptime(stamp.group(1) + '+0000', '%Y-%m-%d %H:%M:%S.%f%z').timestamp()
        return None


class Cluster(Server):
    """Both nodes, as clients see them: one connection string, which finds the primary."""

    def __init__(self, nodes):
        self.nodes, self.name, self.sessions, self.options = nodes, 'the cluster', {}, {}

    def conninfo(self, database):
        return 'host=%s port=%s user=postgres dbname=%s target_session_attrs=read-write' % (
            ','.join('127.0.0.1' for _ in self.nodes), ','.join(str(node.port) for node in self.nodes), database)

    def connect(self, database, **options):
        """For the suite itself: the standby has applied what such a session has committed."""
        return super().connect(database, options='-c synchronous_commit=remote_apply', **options)

    def log_size(self):
        return [node.log_size() for node in self.nodes]

    def log_since(self, offsets):
        return [line for node, offset in zip(self.nodes, offsets) for line in node.log_since(offset)]

    def places(self):
        """The primary, and the other node, if that is its synchronous standby; else nothing."""
        for primary, standby in (self.nodes, self.nodes[::-1]):
            if primary.is_primary() and self.is_synchronous(primary, standby):
                return primary, standby
        return None

    def is_synchronous(self, primary, standby):
        """Whether each commit waits for this standby."""
        return primary.value('postgres', "SELECT count(*) FROM pg_stat_replication WHERE application_name = %s AND state = 'streaming' AND sync_state = 'sync'", standby.name)

    def configure(self, **settings):
        """Patroni's settings of the cluster, which it keeps in etcd. None removes one."""
        node = next(node for node in self.nodes if node.patroni.process.poll() is None)
        request = urllib.request.Request('http://127.0.0.1:%d/config' % node.rest, json.dumps(settings).encode(), {'Content-Type': 'application/json'}, method='PATCH')
        urllib.request.urlopen(request, timeout=10).close()

    def switch_over(self, to):
        """What an operator does. Returns what patronictl says."""
        return self.nodes[0].run(os.environ['PATRONICTL'], '-c', self.nodes[0].config, 'switchover', 'mq', '--candidate', to.name, '--force',
                                 environment={'PYTHONPATH': os.environ.get('PATRONI_PYTHONPATH', '')})
