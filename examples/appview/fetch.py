#!/usr/bin/env python3
"""Brings what the hosts of repositories have of them: a consumer of appview_fetch. Run several."""
import json, os, signal, threading, urllib.error, urllib.parse, urllib.request
import psycopg
from psycopg.types.json import Jsonb

PAGE = 50
stopping = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopping.set())


def ask(host, method, **parameters):
    url = f"{host}/xrpc/{method}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)


def fetch(host, did):
    """All records of a repository, and a rev: the records have all that was committed up to it."""
    rev = ask(host, "com.atproto.sync.getLatestCommit", did=did)["rev"]
    about = ask(host, "com.atproto.repo.describeRepo", repo=did)
    records = []
    for collection in about["collections"]:
        page = {}
        while page is not None:
            answer = ask(host, "com.atproto.repo.listRecords", repo=did, collection=collection, limit=PAGE, **page)
            records += answer["records"]
            page = {"cursor": answer["cursor"]} if "cursor" in answer else None
    return rev, about["handle"], records


def handle(db, id, lease, host, did):
    try:
        rev, handle, records = fetch(host, did)
    except urllib.error.HTTPError as error:
        again, text = error.headers.get("Retry-After"), error.read().decode(errors="replace")
        # 400: the host does not have it. Anything else may pass.
        db.execute("SELECT mq_nack(ARRAY[%s::uuid], %s, %s, NULL, make_interval(secs => %s), %s)",
                   [id, lease, f"HTTP {error.code} {text}", float(again) if again else None, error.code == 400])
        return
    except (OSError, ValueError, KeyError) as error:
        db.execute("SELECT mq_nack(ARRAY[%s::uuid], %s, %s)", [id, lease, repr(error)])
        return
    with db.transaction():
        db.execute("INSERT INTO snapshots VALUES (%s, %s, %s, %s)"
                   " ON CONFLICT (did) DO UPDATE SET (rev, handle, records) = (excluded.rev, excluded.handle, excluded.records)",
                   [did, rev, handle, Jsonb(records)])
        result = [{"records": len(records), "rev": rev}]
        if not db.execute("SELECT mq_ack(ARRAY[%s::uuid], %s, %s)", [id, lease, Jsonb(result)]).fetchall():
            raise psycopg.Rollback  # the lease is over: somebody else fetches it


with psycopg.connect("", autocommit=True, prepare_threshold=None) as db:
    while not stopping.is_set():
        for message in db.execute("SELECT id, lease, channel_args, payload_json ->> 'did' FROM mq_receive("
                                  "'{appview_fetch}', 8, '2 minutes', '5 seconds')").fetchall():
            handle(db, *message)
