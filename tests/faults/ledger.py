"""The record of a run: what each client asked and was told, in files that no server writes.

Each client process has a file of its own, and appends a line of JSON for each thing before it asks and after it was told.
A line is written by one write(2), so a client that is killed leaves whole lines. Times are those of the monotonic clock,
which all processes of the machine share and nobody can set.

    {"t": 12.5, "tx": 7, "ask": "send", …}       a statement is about to be sent
    {"t": 12.6, "tx": 7, "told": "send", …}      it has returned
    {"t": 12.7, "tx": 7, "ask": "commit"}        COMMIT, or the statement that is a transaction of its own, is about to be sent
    {"t": 12.8, "tx": 7, "end": "committed"}     or "rolled back", "unknown" (the connection was lost meanwhile), "prepared"

A transaction without an end is unknown if its commit was asked for, and else rolled back."""
import glob
import json
import os
import time


class Ledger:
    """Owned by one process."""

    def __init__(self, path):
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, **fields):
        fields = {'t': time.monotonic(), **fields}
        os.write(self.file, (json.dumps(fields) + '\n').encode())
        return fields['t']


def read(directory):
    """All lines, in the order of their times; `client` is the name of the file."""
    lines = []
    for path in glob.glob(directory + '/*.ledger'):
        client = os.path.basename(path)
        with open(path) as file:
            lines += [dict(json.loads(line), client=client) for line in file if line.endswith('\n')]
    return sorted(lines, key=lambda line: line['t'])


class Transaction:
    """What the lines of one transaction say together."""

    def __init__(self):
        self.steps = []          # {'ask': line, 'told': line or None}
        self.commit_asked = None
        self.ended = None
        self.end = 'rolled back'

    def add(self, line):
        if 'told' in line and self.steps:
            self.steps[-1]['told'] = line
        if 'end' in line:
            self.end, self.ended = line['end'], line['t']
        elif line.get('ask') == 'commit':
            self.commit_asked = line['t']
            if self.ended is None:
                self.end = 'unknown'
        elif 'ask' in line:
            self.steps.append({'ask': line, 'told': None})
            if line.get('auto'):
                self.commit_asked, self.end = line['t'], 'unknown'


def transactions(lines):
    """In the order in which they began. A prepared transaction has the end that a later line gives to its gid."""
    found, gids = {}, {}
    for line in lines:
        if 'tx' not in line:
            continue
        transaction = found.setdefault((line['client'], line['tx']), Transaction())
        if 'gid' in line and 'resolve' not in line:
            gids[line['gid']] = transaction
        if 'resolve' in line:
            prepared = gids.get(line['gid'])
            if prepared:
                # Whoever ends it is told once; a second one, who finds nothing, says nothing about it.
                if line['resolve'] in ('committed', 'rolled back'):
                    prepared.end, prepared.ended = line['resolve'], line['t']
                elif prepared.end == 'prepared':
                    prepared.end = 'unknown'
        else:
            transaction.add(line)
    return list(found.values())
