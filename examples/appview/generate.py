#!/usr/bin/env python3
"""generate.py DIRECTORY [EVENTS [REPOSITORIES]]: makes up a network, the same each time.

Writes into DIRECTORY
  events.jsonl  what a Jetstream tells of all repositories, in order: a line of JSON for each event
  cursor        the time_us at which somebody connects to the stream; events up to it are history
  repos.jsonl   the repositories: their host, and whether they are known before the stream tells of them
  hosts.json    what each repository's host (its PDS) has of it: some of them are ahead of the cursor
"""
import json, random, sys, datetime, pathlib

COLLECTIONS = ("app.bsky.feed.post", "app.bsky.feed.like", "app.bsky.graph.follow", "app.bsky.actor.profile")
BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
SORTABLE = "234567abcdefghijklmnopqrstuvwxyz"  # the base32 of TIDs, whose order is that of the letters

out = pathlib.Path(sys.argv[1])
EVENTS = int(sys.argv[2]) if len(sys.argv) > 2 else 6000
REPOSITORIES = int(sys.argv[3]) if len(sys.argv) > 3 else 520
HOSTS = 8
rng = random.Random(20260101)
now = 1767225600_000000  # microseconds since 1970: 2026-01-01
seq = 1000


def tid(us):
    """A TID: 13 letters that sort as the microsecond that they stand for."""
    value = us << 10 | rng.randrange(1024)
    return "".join(SORTABLE[value >> shift & 31] for shift in range(60, -1, -5))


def text(letters, alphabet=BASE32):
    return "".join(rng.choice(alphabet) for _ in range(letters))


def iso(us):
    return (datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=us)).isoformat(timespec="milliseconds") + "Z"


class Repository:
    def __init__(self, n):
        self.did = "did:plc:" + text(24)
        self.host = f"http://pds{n % HOSTS + 1}.example"
        self.handle = f"user{n}.example"
        self.rev = tid(now - 1_000_000)
        self.records = {}  # (collection, rkey): (cid, record)
        self.active = True
        self.over = False  # the account is deleted
        self.found = n >= 2  # its host knows it; the first two are only in the stream, and end there
        self.snapshot = None
        self.live = 0  # how many events the stream has of it behind the cursor


def event(repo, kind, body):
    global now
    now += 1
    events.append({"did": repo.did, "time_us": now, "kind": kind, kind: body})
    if cursor is not None:
        repo.live += 1


def identity(repo):
    global seq
    seq += 1
    event(repo, "identity", {"did": repo.did, "handle": repo.handle, "seq": seq, "time": iso(now)})


def account(repo, active, status=None):
    global seq
    seq += 1
    body = {"active": active, "did": repo.did, "seq": seq, "time": iso(now)}
    event(repo, "account", body if active else {**body, "status": status})


def some_post():
    repo = rng.choice([r for r in repos if any(c == COLLECTIONS[0] for c, _ in r.records)] or repos)
    posts = [rkey for c, rkey in repo.records if c == COLLECTIONS[0]] or [tid(now)]
    return {"cid": "bafyrei" + text(52), "uri": f"at://{repo.did}/{COLLECTIONS[0]}/{rng.choice(posts)}"}


def record(collection):
    """What a record says. One in a hundred lacks what it must have."""
    made = {"$type": collection, "createdAt": iso(now)}
    if rng.random() < 0.01:
        return made if collection != COLLECTIONS[3] else {**made, "displayName": 7}
    if collection == COLLECTIONS[0]:
        made |= {"text": " ".join(text(rng.randint(2, 9)) for _ in range(rng.randint(1, 12))), "langs": ["en"]}
        if rng.random() < 0.2:
            post = some_post()
            made["reply"] = {"parent": post, "root": post}
    elif collection == COLLECTIONS[1]:
        made["subject"] = some_post()
    elif collection == COLLECTIONS[2]:
        made["subject"] = rng.choice(repos).did
    elif collection == COLLECTIONS[3]:
        made |= {"displayName": text(8).title(), "description": text(20)}
    return made


def operate(repo, rev):
    """One operation of a commit."""
    commit = {"rev": rev}
    own = list(repo.records)
    if own and rng.random() < 0.18:
        collection, rkey = rng.choice(own)
        del repo.records[collection, rkey]
        commit |= {"operation": "delete", "collection": collection, "rkey": rkey}
    else:
        changed = [key for key in own if key[0] in (COLLECTIONS[0], COLLECTIONS[3])]
        if changed and rng.random() < 0.12:
            collection, rkey = rng.choice(changed)
        else:
            collection = rng.choices(COLLECTIONS + ("app.bsky.graph.block",), (50, 28, 12, 6, 2))[0]
            rkey = "self" if collection == COLLECTIONS[3] else tid(now)
        operation = "update" if (collection, rkey) in repo.records else "create"
        cid, value = "bafyrei" + text(52), record(collection)
        repo.records[collection, rkey] = cid, value
        commit |= {"operation": operation, "collection": collection, "rkey": rkey, "record": value, "cid": cid}
    event(repo, "commit", commit)
    return commit["collection"], commit["rkey"]


def commit(repo):
    repo.rev = rev = tid(now)
    touched = {operate(repo, rev)}
    while rng.random() < 0.08:  # a commit with several operations: an event for each, with one rev
        before = dict(repo.records), len(events), repo.live
        if (key := operate(repo, rev)) in touched:  # a path is in a commit once
            repo.records, repo.live = before[0], before[2]
            del events[before[1]:]
            return
        touched.add(key)


def snapshot(repo):
    if repo.found and repo.snapshot is None:
        repo.snapshot = {"host": repo.host, "handle": repo.handle, "rev": repo.rev, "records": [
            {"uri": f"at://{repo.did}/{collection}/{rkey}", "cid": cid, "value": value}
            for (collection, rkey), (cid, value) in repo.records.items()]}


events, cursor = [], None
repos = [Repository(n) for n in range(REPOSITORIES)]
ahead = set()
history = EVENTS // 3
for repo in repos[2:]:
    now += rng.randint(100, 5000)
    identity(repo)
while len(events) < EVENTS:
    now += rng.randint(1000, 50000)
    if cursor is None and len(events) >= history:
        cursor = now - 1
        ahead = set(rng.sample(range(2, REPOSITORIES), REPOSITORIES // 2))
        for n in set(range(REPOSITORIES)) - ahead:
            snapshot(repos[n])
    n = rng.randrange(REPOSITORIES) if rng.random() < 0.6 else (1 + int(rng.paretovariate(0.7))) % REPOSITORIES  # some are busy
    repo = repos[n]
    if repo.over or cursor is None and not repo.found:
        continue
    # Hosts that are ahead of the cursor have what the stream will tell later as well.
    if cursor is not None and n in ahead and repo.live >= 2:
        snapshot(repo)
    dice = rng.random()
    if dice < 0.03:
        repo.handle = f"user{n}-{text(4)}.example"
        identity(repo)
    elif dice < 0.05 and cursor is not None and repo.snapshot:
        repo.active = not repo.active
        account(repo, repo.active, "deactivated")
    elif dice < 0.056 and repo.snapshot and repo.live > 3 and n > 20:
        repo.over, repo.records = True, {}
        account(repo, False, "deleted")
    else:
        commit(repo)
for repo in repos:
    snapshot(repo)
for n in (0, 1):
    now += 1000
    account(repos[n], False, "deleted")

out.mkdir(parents=True, exist_ok=True)
(out / "events.jsonl").write_text("".join(json.dumps(e, separators=(",", ":")) + "\n" for e in events))
(out / "cursor").write_text(f"{cursor}\n")
(out / "repos.jsonl").write_text("".join(json.dumps({"did": r.did, "host": r.host, "listed": r.live == 0 or n % 2 == 0}) + "\n" for n, r in enumerate(repos)))
(out / "hosts.json").write_text(json.dumps({r.did: r.snapshot for r in repos if r.found}))
dids = {e["did"] for e in events}
print(f"{len(events)} events of {len(dids)} repositories, {sum(e['time_us'] > cursor for e in events)} of them behind the cursor")
