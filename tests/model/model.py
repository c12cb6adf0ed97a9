#!/usr/bin/env python3
"""Plays random steps on a server with mq, and on a model of what mq promises; compares both after each step.

  model.py --steps 5000 --sessions 1 --seed 1 --clock FILE   the server is that of PGHOST, PGPORT and so on
  model.py --sabotage …                                      something changes a row behind mq's back: must fail

Covered, in one session and in several whose transactions are open side by side (with savepoints, commits and rollbacks):
mq_send, mq_insert (ordered and not, two-phase, delayed, with expiry, priority, dedup_key and after), mq_poll, mq_receive, mq_ack,
mq_nack, mq_extend, mq_delete, mq_commit, mq_keep_alive, mq_checkpoint, mq_cancel, mq_clear, mq_pause, mq_resume,
mq_redrive, CALL mq_run with handlers that succeed, fail, fail once, snooze and discard, channels that a dead message
blocks, and the clock. After each step the messages, dead letters, failures, effects and pauses are compared, as the
session that did it sees them and as others do: which messages, with which attempts, lease and due time, in which order;
that each ordered channel has a head, or is noted as headless; that each message that waits for others (`after`) waits for one
that is pending, or is noted to be looked at again; and that a claim returns what it may, and as much as it can.

A statement that the model takes for free may not wait for another session's transaction: it has LIMIT seconds. One that would
wait is left out.

Not covered: background workers, mq_cancel of a running call, leased handlers, batch handlers,
limits, schedules, topics, results that are kept, REPEATABLE READ, prepared transactions, crashes.

A failed run is shrunk: the program leaves out steps for as long as what is left still fails, and prints the rest.
The clock is libfaketime's: the server reads FILE, and the program writes how many seconds it is ahead.
"""
import argparse
import json
import os
import random
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psycopg
from psycopg.types.json import Jsonb

from contract import CHANNELS, HANDLERS, INFINITE, MARGIN, SECOND, Frame, Message, Mismatch, World, span, uuid_of
from steps import STEPS, Skip

SETUP = """
CREATE TABLE model_effects (n bigserial PRIMARY KEY, id uuid NOT NULL, attempt int NOT NULL);
CREATE FUNCTION model_handle(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO model_effects (id, attempt) VALUES (m.id, m.attempt);
  IF m.payload_json ->> 'do' = 'fail' OR (m.payload_json ->> 'do' = 'once' AND m.attempt = 1) THEN
    RAISE EXCEPTION 'told to fail';
  ELSIF m.payload_json ->> 'do' = 'snooze' AND (SELECT count(*) FROM model_effects e WHERE e.id = m.id) = 1 THEN
    PERFORM mq_snooze('10 minutes');
  ELSIF m.payload_json ->> 'do' = 'discard' THEN
    PERFORM mq_discard('told to discard');
  END IF;
END $$;
"""

LIMIT = 10  # seconds that a statement may take
MICROS = "(extract(epoch FROM {}) * 1000000)::bigint"
DUE = f"CASE WHEN attempt_at = 'infinity' THEN {INFINITE} ELSE {MICROS.format('attempt_at')} END"
ROWS = f"""SELECT jsonb_build_object(
  'message', (SELECT coalesce(jsonb_agg(jsonb_build_object('id', id, 'channel', channel_name, 'args', channel_args,
      'ordered', after_message_id IS NOT NULL, 'at', {DUE}, 'left', attempts, 'made', attempt,
      'backoff', {MICROS.format('retry_backoff')}, 'two_phase', {MICROS.format('commit_interval')}, 'lease', lease,
      'dedup', dedup_key, 'expires', {MICROS.format('expires_at')}, 'priority', priority, 'payload', message_json,
      'name', message_name, 'is_head', after_message_id = '00000000-0000-0000-0000-000000000000') ORDER BY seq), '[]')
      FROM mq_msgs),
  'dead', (SELECT coalesce(jsonb_object_agg(id, jsonb_build_object('channel', channel_name, 'args', channel_args,
      'reason', reason, 'sqlstate', sqlstate, 'made', attempts_made, 'ordered', ordered, 'payload', payload_json,
      'backoff', {MICROS.format('retry_backoff')}, 'dedup', dedup_key, 'priority', priority)), '{{}}') FROM mq_dead),
  'letters', (SELECT count(*) FROM mq_dead),
  'failed', (SELECT coalesce(jsonb_object_agg(message_id, list), '{{}}') FROM (SELECT message_id,
      jsonb_agg(jsonb_build_array(attempt, sqlstate) ORDER BY failure_no) AS list FROM mq_failures GROUP BY 1) AS f),
  'effects', (SELECT coalesce(jsonb_object_agg(id, list), '{{}}') FROM (SELECT id, jsonb_agg(attempt ORDER BY n) AS list
      FROM model_effects GROUP BY 1) AS f),
  'paused', (SELECT coalesce(jsonb_agg(channel_name ORDER BY channel_name), '[]') FROM mq_paused),
  'noted', (SELECT coalesce(jsonb_agg(DISTINCT dependent), '[]') FROM mq_rechecks),
  'headless', (SELECT coalesce(jsonb_agg(jsonb_build_array(channel_name, channel_args)), '[]') FROM mq_headless))"""


def demand(condition, what):
    if not condition:
        raise Mismatch(what)


class Run:
    """One run, from an empty queue on."""

    def __init__(self, connections, clock, offset):
        self.world = World(len(connections) - 1)
        self.connections, self.clock = connections, clock
        self.world.offset = offset
        self.tokens = {}  # that mq_receive gave out last: by message
        self.known = {}  # names by id
        self.serial = 0
        self.applied = 0
        self.own = set()  # sessions whose frames are those of a single statement
        self.begun = 0
        self.rows = None
        self.settled = 0  # by the last statement
        self.claims = False  # whether it looks again at what was noted
        for connection in connections:
            connection.execute("ROLLBACK" if connection.info.transaction_status != 0 else "SELECT")
        observer = connections[-1]
        for statement in ("SELECT mq_clear_all()", "DELETE FROM mq_dead", "DELETE FROM mq_failures", "DELETE FROM model_effects",
                          *(f"SELECT mq_resume('{channel}')" for channel in CHANNELS)):
            observer.execute(statement)

    # --- what steps use -------------------------------------------------------------------------

    dumps = staticmethod(json.dumps)
    json = staticmethod(Jsonb)

    def sql(self, session, statement, *values):
        self.begun = self.world.now()
        connection = self.connections[session.number]
        # The server's own timeouts do not go with a clock that is set.
        limit = threading.Timer(LIMIT, connection.cancel)
        limit.start()
        try:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise Mismatch(f"{statement}: {error.sqlstate}: {error}") from error
        finally:
            limit.cancel()

    def new_name(self):
        self.serial += 1
        return f"m{self.serial}"

    def name(self, id):
        return self.known.get(id, str(id))

    def names(self, ids):
        return [self.name(id) for id in ids]

    def all_messages(self):
        return [m for m in {m.name: m for s in self.world.sessions for m in s.messages()}.values()]

    def in_transaction(self, session):
        return session.in_transaction and session not in self.own

    def read(self, connection):
        rows = connection.execute(ROWS).fetchone()[0]
        for row in rows["message"]:
            row["id"] = self.known.get(row["id"], row["id"])
        rows["noted"] = {self.known.get(id, id) for id in rows["noted"]}
        for kind in ("dead", "failed", "effects"):
            rows[kind] = {self.known.get(id, id): value for id, value in rows[kind].items()}
        return rows

    def settle_gone(self, session, again=False):
        """Follows the statement in what it may have settled in passing. Returns the moments at which it may have run."""
        now = (self.begun, self.world.now())
        self.rows = self.rows if again else self.read(self.connections[session.number])
        self.world.rows, self.world.statement = {row["id"]: row for row in self.rows["message"]}, now
        left = {row["id"] for row in self.rows["message"] if row["at"] is not None}
        self.settled = 0
        self.settle_noted(session)
        for m in session.messages():
            if m.name not in left and m.is_undeliverable(now[0]) and not self.world.is_locked(("message", m.name), session):
                session.settle_undeliverable(m, now[0])
                self.settled += 1
        return now

    def see(self, session):
        """Reads what the session sees after its statement."""
        self.rows = self.read(self.connections[session.number])
        self.world.rows, self.world.statement = {row["id"]: row for row in self.rows["message"]}, (self.begun, self.world.now())

    def settle_noted(self, session):
        """A claim looks again at what was noted: who waits for nothing more is due, or dies."""
        for name in [m.name for m in session.messages()]:
            m, row = session.message(name), self.world.rows.get(name)
            if m is None or not m.waits or row is not None and row["at"] == INFINITE:
                continue
            if session.is_doomed(m.name) and m.name in self.rows["dead"]:
                session.dies_with(m)
            elif not session.still_waits(m.name) and not session.is_doomed(m.name):
                session.release(m)

    def is_unchanged(self, m):
        row = next((row for row in self.rows["message"] if row["id"] == m.name), None)
        return row is not None and row["made"] == m.made and row["at"] == m.at[0]

    def headless(self, session):
        return self.connections[session.number].execute("SELECT channel_name, channel_args FROM mq_headless").fetchall()

    def dead_numbers(self, session):
        rows = self.connections[session.number].execute("SELECT id, dead_no FROM mq_dead").fetchall()
        return {self.name(id): number for id, number in rows}

    def advance(self, by):
        self.world.offset += -(-by // SECOND) * SECOND
        temporary = self.clock.with_suffix(".new")
        temporary.write_text(f"+{self.world.offset // SECOND}\n")
        temporary.replace(self.clock)

    # --- a step ---------------------------------------------------------------------------------

    def do(self, name, number, arguments):
        """Does the step; False: it does not apply. Raises Mismatch."""
        session = self.world.sessions[number]
        self.leave_margin()
        single = not session.in_transaction and name != "begin"
        if single:
            session.frames, self.own = [Frame()], {session}
        for m in [arguments["message"]] if "message" in arguments else arguments.get("messages", []):
            self.known[str(uuid_of(m["name"]))] = self.known[uuid_of(m["name"])] = m["name"]
        order = self.world.order
        self.claims = False
        try:
            STEPS[name][2](self, session, **arguments)
        except Skip:
            if single:
                self.world.rollback(session)
            self.world.order = order
            return False
        finally:
            self.own = set()
        self.compare(session)
        if single:
            self.world.commit(session)
        noted = self.compare(None)
        if self.claims and not any(s.in_transaction for s in self.world.sessions):
            demand(not noted, f"{sorted(noted)} are noted still, though nobody is at them")
        self.applied += 1
        return True

    def leave_margin(self):
        while True:
            now = self.world.now()
            soon = [at[1] for at in self.world.times() if now < at[1] < now + MARGIN]
            if not soon:
                return
            self.advance(max(soon) - now + SECOND)

    def sabotage(self):
        self.connections[-1].execute("UPDATE mq_msgs SET attempts = attempts + 1 WHERE id = "
                                     "(SELECT id FROM mq_msgs LIMIT 1 FOR UPDATE SKIP LOCKED)")

    # --- comparing ------------------------------------------------------------------------------

    def compare(self, session):
        """The session's view; None: what is committed, as another session sees it."""
        rows = self.read(self.connections[session.number if session else -1])
        if session:
            get, put, everything = session.get, self.adopt(session), session.all
        else:
            facts = self.world.facts
            get, put = facts.get, facts.__setitem__
            everything = lambda kind: [value for key, value in facts.items() if key[0] == kind]
        who = f"session {session.number}" if session else "an observer"
        messages = sorted(everything("message"), key=lambda m: m.order)
        there, expected = [row["id"] for row in rows["message"]], [m.name for m in messages]
        demand(sorted(there) == sorted(expected), f"{who} finds messages {there} and not {expected}")
        demand(there == expected, f"{who} finds the order {there} and not {expected}")
        view = session or self.world.observer
        for m, row in zip(messages, rows["message"]):
            put(("message", m.name), self.compare_message(who, m, row))
            if m.waits and (view.is_doomed(m.name) or not view.still_waits(m.name)):
                demand(m.name in rows["noted"], f"{who} finds {m.name} waiting, though nobody is to look at it again")
        if session is None:
            self.compare_heads(rows)
        dead = everything("dead")
        demand(sorted(d.message.name for d in dead) == sorted(rows["dead"]) and rows["letters"] == len(dead),
               f"{who} finds dead {sorted(rows['dead'])} and not {sorted(d.message.name for d in dead)}")
        for d in dead:
            row, m = rows["dead"][d.message.name], d.message
            wanted = {"channel": m.channel, "args": m.args, "reason": d.reason, "sqlstate": d.sqlstate, "made": d.made,
                      "ordered": m.ordered, "payload": m.payload, "backoff": m.backoff, "dedup": m.dedup, "priority": m.priority}
            demand(row == wanted, f"{who} finds the dead letter {m.name} as {row} and not {wanted}")
        for name, failed in rows["failed"].items():
            wanted = get(("failed", name)) or ()
            demand([list(f) for f in wanted] == failed, f"{who} finds failures of {name} {failed} and not {wanted}")
        for name, effects in rows["effects"].items():
            wanted = get(("effects", name)) or ()
            demand(list(wanted) == effects, f"{who} finds effects of {name} {effects} and not {wanted}")
        for kind in ("failed", "effects"):
            self.compare_keys(session, kind, rows[kind], who)
        paused = sorted(c for c in CHANNELS if get(("paused", c)))
        demand(paused == rows["paused"], f"{who} finds {rows['paused']} paused and not {paused}")
        return rows["noted"]

    def compare_keys(self, session, kind, rows, who):
        names = {key[1] for facts in [self.world.facts, *(f.facts for f in session.frames)] for key in facts
                 if key[0] == kind and session.get(key)} if session else {k[1] for k in self.world.facts if k[0] == kind}
        demand(names == set(rows), f"{who} finds {kind} of {sorted(rows)} and not {sorted(names)}")

    def adopt(self, session):
        """Stores a value where the fact is stored."""
        def put(key, value):
            for facts in [f.facts for f in reversed(session.frames)] + [self.world.facts]:
                if key in facts:
                    facts[key] = value
                    return
        return put

    def compare_message(self, who, m, row):
        lease = None if m.lease is None else m.token
        wanted = {"channel": m.channel, "args": m.args, "name": m.channel, "ordered": m.ordered, "left": m.left, "made": m.made,
                  "backoff": m.backoff, "lease": lease, "dedup": m.dedup, "priority": m.priority, "payload": m.payload}
        found = {key: row[key] for key in wanted}
        demand(found == wanted, f"{who} finds {m.name} as {found} and not {wanted}")
        if m.blocked:
            demand(row["at"] is None, f"{who} finds {m.name} due, though it is dead and blocks its channel")
            return m
        changes = {}
        for key in ("at", "two_phase", "expires"):
            bounds = getattr(m, key)
            demand((row[key] is None) == (bounds is None) and (bounds is None or bounds[0] <= row[key] <= bounds[1]),
                   f"{who} finds {m.name} with {key} {row[key]} and not {bounds}")
            if bounds is not None:
                changes[key] = span(row[key])
        return replace(m, **changes)

    def compare_heads(self, rows):
        seen = set()
        noted = {tuple(queue) for queue in rows["headless"]}
        for row in rows["message"]:
            queue = (row["channel"], row["args"])
            if not row["ordered"]:
                continue
            if queue not in seen:
                demand(row["is_head"] or queue in noted, f"{row['id']} is the first of its channel, and not its head")
            else:
                demand(not row["is_head"], f"{row['id']} is a head, and not the first of its channel")
            seen.add(queue)


class Player:
    def __init__(self, sessions, clock, sabotages):
        self.clock, self.sabotages = clock, sabotages
        self.offset = 0
        self.connections = [psycopg.connect(autocommit=True) for _ in range(sessions + 1)]
        observer = self.connections[-1]
        if observer.execute("SELECT to_regclass('model_effects')").fetchone()[0] is None:
            observer.execute("CREATE EXTENSION IF NOT EXISTS mq")
            observer.execute(SETUP)
            for channel, options in HANDLERS.items():
                observer.execute("SELECT mq_register_handler(%s, 'model_handle(mq_message)', on_dead => %s)",
                                 [channel, "block" if options["block"] else "skip"])
        Run([observer], clock, 0).advance(0)
        moment = observer.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()[0]
        Run([observer], clock, 0).advance(1000 * SECOND)
        later = observer.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()[0]
        if not 999 < later - moment < 1500:
            sys.exit("the server's clock does not follow the file: is libfaketime loaded?")
        self.offset = 1000 * SECOND

    def play(self, steps):
        """Plays steps until one fails. Returns those that applied, and what was wrong (None: nothing)."""
        run = Run(self.connections, self.clock, self.offset)
        played = []
        try:
            for name, session, arguments in steps(run):
                played.append((name, session, arguments))
                if name == "sabotage":
                    run.sabotage()
                elif not run.do(name, session, arguments):
                    played.pop()
        except Mismatch as mismatch:
            return played, str(mismatch)
        finally:
            self.offset = run.world.offset
        return played, None

    def random_steps(self, count, seed):
        chance = random.Random(seed)
        names, weights = list(STEPS), [weight for weight, _, _ in STEPS.values()]

        def steps(run):
            drawn = 0
            while run.applied < count:
                name = chance.choices(names, weights)[0]
                # Not too many messages: mq_clear then has its turn.
                if len(run.all_messages()) > 60 and name in ("send", "insert"):
                    name = "clear"
                drawn += 1
                if self.sabotages and drawn == 100:
                    yield "sabotage", 0, {}
                yield name, chance.randrange(len(run.world.sessions)), STEPS[name][1](chance, run)
        return steps

    def fails(self, steps):
        return self.play(lambda run: iter(steps))

    def shrink(self, steps, seconds=60):
        """A shorter list of steps that fails, too: leaves out ever smaller pieces (delta debugging)."""
        end = time.monotonic() + seconds
        what = None
        size = len(steps) // 2
        while size >= 1 and time.monotonic() < end:
            at, shorter = 0, False
            while at < len(steps) and time.monotonic() < end:
                played, wrong = self.fails(steps[:at] + steps[at + size:])
                if wrong is not None:
                    steps, what, shorter = played, wrong, True
                else:
                    at += size
            if not shorter or size > 1:
                size //= 2
        return steps, what


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--clock", type=Path, required=True)
    parser.add_argument("--sabotage", action="store_true")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1_000_000)
    title = f"{given.steps} steps in {given.sessions} session{'s' if given.sessions > 1 else ''}, seed {seed}"
    player = Player(given.sessions, given.clock, given.sabotage)
    begun = time.monotonic()
    played, wrong = player.play(player.random_steps(given.steps, seed))
    if given.sabotage:
        shrunk, still = player.shrink(played) if wrong else ([], None)
        caught = wrong is not None and still is not None and len(shrunk) <= 5
        print(f"{'ok' if caught else 'not ok'} - a change behind mq's back is noticed, and shrunk to {len(shrunk)} steps of {len(played)}")
        return 0 if caught else 1
    if wrong is None:
        print(f"ok - {title}: {len(played)} applied, {time.monotonic() - begun:.0f} s")
        return 0
    name, session, arguments = played[-1]
    print(f"not ok - {title}: step {len(played)}: {wrong}", flush=True)
    print(f"# This was the step, of session {session}: {name} {json.dumps(arguments)}", flush=True)
    shrunk, still = player.shrink(played)
    print(f"# These {len(shrunk)} of {len(played)} steps fail as well: {still or wrong}")
    for name, session, arguments in shrunk:
        print(f"#   session {session}: {name} {json.dumps(arguments)}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
