#!/usr/bin/env python3
"""A consumer of mq in Python, with psycopg 3. See README.md."""
import os, signal, sys, threading, time
import psycopg

CHANNEL = os.environ.get("MQ_CHANNEL", "thumbnails")
LEASE = 30  # seconds; it is renewed while the work goes on
stopping = threading.Event()


class LeaseLost(Exception):
    """Somebody else has the message by now."""


def connect():
    # libpq's environment variables say where to. Without prepared statements, as poolers want it.
    return psycopg.connect("", autocommit=True, prepare_threshold=None)


def work(db, message):
    """What is to be done. What it writes commits together with mq_ack."""
    db.execute("INSERT INTO thumbnails (image, made_by) VALUES (%s, 'python')", [message["image"]])


def renew(id, lease, done):
    with connect() as db:
        while not done.wait(LEASE / 2):
            db.execute("SELECT mq_extend(ARRAY[%s::uuid], %s, make_interval(secs => %s))", [id, lease, LEASE])


def handle(db, id, lease, message):
    done = threading.Event()
    renewal = threading.Thread(target=renew, args=(id, lease, done))
    renewal.start()
    try:
        with db.transaction():
            work(db, message)
            if not db.execute("SELECT mq_ack(ARRAY[%s::uuid], %s)", [id, lease]).fetchall():
                raise LeaseLost(id)
    except LeaseLost:
        print("lease lost:", id, file=sys.stderr)
    except Exception as error:
        state = getattr(error, "sqlstate", None)
        db.execute("SELECT mq_nack(ARRAY[%s::uuid], %s, %s, %s)", [id, lease, repr(error), state])
    finally:
        done.set()
        renewal.join()


def consume():
    with connect() as db:
        while not stopping.is_set():
            for row in db.execute("SELECT id, lease, payload_json FROM mq_receive(ARRAY[%s], 1,"
                                  " make_interval(secs => %s), '5 s')", [CHANNEL, LEASE]).fetchall():
                handle(db, *row)


for end in (signal.SIGTERM, signal.SIGINT):  # the message in hand is finished
    signal.signal(end, lambda *_: stopping.set())
while not stopping.is_set():
    try:
        consume()
    except psycopg.OperationalError as error:  # the server restarts, say
        print(error, file=sys.stderr)
        time.sleep(1)
