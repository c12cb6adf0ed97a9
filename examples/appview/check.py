#!/usr/bin/env python3
"""check.py EVENTS.JSONL: compares the index with a replay of all events, in order, in this program.

Prints a line for each table and ends with status 1 if one is not what the replay gives."""
import json, re, sys
import psycopg

POST, LIKE, FOLLOW, PROFILE = "app.bsky.feed.post", "app.bsky.feed.like", "app.bsky.graph.follow", "app.bsky.actor.profile"
handles, states, records = {}, {}, {}


def row(collection, did, rkey, record):
    """The row that a record has in its table; None if it lacks what it must have."""
    if collection == POST and isinstance(record.get("text"), str):
        if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", record["createdAt"]):
            return did, rkey, record["text"], record["createdAt"], record.get("reply", {}).get("parent", {}).get("uri")
    elif collection == LIKE and record.get("subject", {}).get("uri", "").startswith("at://"):
        return did, rkey, record["subject"]["uri"]
    elif collection == FOLLOW and record.get("subject", "").startswith("did:"):
        return did, rkey, record["subject"]
    elif collection == PROFILE and isinstance(record.get("displayName", ""), str):
        return did, record.get("displayName"), record.get("description")


for event in map(json.loads, open(sys.argv[1])):
    did = event["did"]
    states.setdefault(did, "active")
    if event["kind"] == "identity":
        handles[did] = event["identity"]["handle"]
    elif event["kind"] == "account":
        states[did] = event["account"].get("status", "active")
        if states[did] == "deleted":
            for key in [key for key in records if key[0] == did]:
                del records[key]
    else:
        commit = event["commit"]
        key = did, commit["collection"], commit["rkey"]
        if commit["operation"] == "delete":
            records.pop(key, None)
        else:
            records[key] = commit["record"]

expected = {name: {made for (did, collection, rkey), record in records.items()
                   if collection == wanted and (made := row(collection, did, rkey, record))}
            for name, wanted in (("posts", POST), ("likes", LIKE), ("follows", FOLLOW), ("profiles", PROFILE))}
expected["repos"] = {(did, handles.get(did), state) for did, state in states.items()}
expected["records"] = set(records)
queries = {
    "posts": "SELECT did, rkey, body, to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), parent FROM posts",
    "likes": "SELECT did, rkey, subject FROM likes", "follows": "SELECT did, rkey, subject FROM follows",
    "profiles": "SELECT did, display_name, description FROM profiles", "repos": "SELECT did, handle, status FROM repos",
    "records": "SELECT did, collection, rkey FROM records WHERE cid IS NOT NULL"}
bad = 0
with psycopg.connect("") as db:
    for name, rows in expected.items():
        index = db.execute(queries[name]).fetchall()
        wrong = set(index) ^ rows
        bad += len(wrong) + len(index) - len(set(index))
        print(f"{name}: {len(index)} in the index, {len(rows)} by the replay, " + (f"{len(wrong)} differ, such as {min(wrong, key=str)}" if wrong else "equal"))
sys.exit(bad != 0)
