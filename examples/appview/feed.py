#!/usr/bin/env python3
"""feed.py FILE [CURSOR]: sends the events of a stream, in its order.

FILE has what a Jetstream sends, a line for each event; a WebSocket would be read in its place. The
feed begins behind CURSOR, or where it stopped: the cursor is kept in the transaction that sends, so
each event is sent once, however often the feed is stopped and started."""
import json, sys, time
import psycopg

BATCH = 100


def send(db, events):
    """Returns how often the queue was full."""
    waits = 0
    while True:
        try:
            db.execute("SELECT ingest('jetstream', %s::jsonb[])", [events])
            return waits
        except psycopg.errors.ConfigurationLimitExceeded:  # max_pending of the channel
            waits += 1
            time.sleep(0.05)


with psycopg.connect("", autocommit=True) as db:
    if len(sys.argv) > 2:
        db.execute("UPDATE cursors SET time_us = %s WHERE stream = 'jetstream'", [int(sys.argv[2])])
    cursor, = db.execute("SELECT time_us FROM cursors WHERE stream = 'jetstream'").fetchone()
    sent = waits = 0
    batch = []
    for line in open(sys.argv[1]):
        if json.loads(line)["time_us"] > cursor:
            batch.append(line)
            if len(batch) == BATCH:
                waits += send(db, batch)
                sent, batch = sent + len(batch), []
    if batch:
        waits += send(db, batch)
    print(f"{sent + len(batch)} events sent; the queue was full {waits} times")
