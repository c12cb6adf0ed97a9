"""The steps of a run: how one is drawn, what statement it is, and what the model says of it.

Each step is a function of (run, session, arguments) that raises Skip if the step would wait for another session, or makes
no sense. Its first part looks, then comes the statement, then what has to be so. Arguments are plain values, so a step can
be repeated; messages are named, and their ids made of the names.
"""
from dataclasses import replace

from contract import (CHANNELS, DAY, HANDLERS, HOUR, INFINITE, MINUTE, NEVER, POLL_CEILING, PREREQUISITE, Frame, Message, Mismatch,
                      earliest, latest, plus, span, uuid_of)

STEPS = {}  # name: (weight, draw, do)


class Skip(Exception):
    """The step cannot be done now."""


def step(weight):
    """Registers do_NAME; draw_NAME(random, run) draws its arguments."""
    def add(do):
        name = do.__name__.removeprefix("do_")
        STEPS[name] = (weight, globals().get("draw_" + name, lambda random, run: {}), do)
        return do
    return add


def demand(condition, what):
    if not condition:
        raise Mismatch(what)


def interval(micros):
    return f"{micros // 1000} milliseconds"


def free(run, session, *keys):
    if not all(run.world.is_free(key, session) for key in keys):
        raise Skip


def named(session, names):
    return [m for m in (session.message(name) for name in names) if m is not None]


def free_messages(run, session, messages):
    free(run, session, *(("message", m.name) for m in messages))


# --- transactions ---------------------------------------------------------------------------------

@step(8)
def do_begin(run, session):
    if session.in_transaction:
        raise Skip
    run.sql(session, "BEGIN")
    session.now = span(run.sql(session, "SELECT (extract(epoch FROM now()) * 1000000)::bigint")[0][0])
    session.frames = [Frame()]


@step(3)
def do_savepoint(run, session):
    if not run.in_transaction(session) or len(session.frames) > 4:
        raise Skip
    run.sql(session, f"SAVEPOINT s{len(session.frames)}")
    session.frames.append(Frame())


@step(2)
def do_rollback_to(run, session):
    if len(session.frames) < 2:
        raise Skip
    run.sql(session, f"ROLLBACK TO s{len(session.frames) - 1}")
    session.frames[-1] = Frame()


@step(1)
def do_release(run, session):
    if len(session.frames) < 2:
        raise Skip
    run.sql(session, f"RELEASE s{len(session.frames) - 1}")
    top = session.frames.pop()
    session.frames[-1].facts.update(top.facts)
    session.frames[-1].locks |= top.locks
    session.frames[-1].perhaps |= top.perhaps
    session.frames[-1].leases += top.leases


def draw_end(random, run):
    return {"commit": random.random() < 0.7}


@step(7)
def do_end(run, session, commit):
    if not run.in_transaction(session):
        raise Skip
    run.sql(session, "COMMIT" if commit else "ROLLBACK")
    # A lease of a transaction that took more than a tenth of it begins anew at the commit.
    now = (run.begun, run.world.now())
    for name, leased_at, length, token in (lease for frame in session.frames for lease in frame.leases):
        m = session.message(name)
        if m and m.token == token and now[0] - leased_at[1] > length // 10 and m.at[0] < now[0] + length:
            session.put(replace(m, at=plus(now, span(length))))
    (run.world.commit if commit else run.world.rollback)(session)


# --- sending --------------------------------------------------------------------------------------

def draw_message(random, run, name):
    ordered = random.random() < 0.5
    message = {"name": name, "channel": random.choice(CHANNELS), "args": random.choice(("", "a")), "ordered": ordered,
               "delay": random.choice((0, 0, 0, 5 * MINUTE, HOUR)), "retries": random.choice((0, 1, 2, 3)),
               "backoff": random.choice((0, 5 * MINUTE, 20 * MINUTE, 2 * DAY)), "payload": draw_payload(random)}
    if message["backoff"] == 0:
        message["retries"] = min(message["retries"], 2)
    if random.random() < 0.15:
        message["two_phase"] = random.choice((10 * MINUTE, 2 * HOUR))
    return message


def draw_payload(random):
    return {"do": random.choice(("ok", "ok", "ok", "fail", "once", "snooze", "discard"))}


def draw_options(random, message):
    if random.random() < 0.15:
        message["expires"] = random.choice((30 * MINUTE, 3 * HOUR))
    if not message["ordered"] and random.random() < 0.3:
        message["priority"] = random.choice((-5, 3, 1000))


def sent(run, session, m, now):
    """The message as it is when it was sent."""
    expires = plus(now, span(m["expires"])) if m.get("expires") else NEVER
    at = plus(now, span(m["delay"]))
    at = plus(at, span(m["two_phase"])) if m.get("two_phase") else earliest(at, expires)
    due = None
    pending = [p for p in m.get("after", ()) if session.is_pending(p)]
    dead = [p for p in m.get("after", ()) if session.is_dead(p)]
    if pending or dead:
        at, due = span(INFINITE), at
        for p in pending + dead:
            session.set(("edge", m["name"], p), True)
    message = Message(name=m["name"], channel=m["channel"], args=m["args"], ordered=m["ordered"],
                      order=run.world.next_order(), at=at, left=m["retries"] + 1, backoff=m["backoff"],
                      two_phase=span(m["two_phase"]) if m.get("two_phase") else None, dedup=m.get("dedup"),
                      expires=expires, priority=m.get("priority", 0), payload=m["payload"], due=due)
    session.put(message)
    if message.ordered:
        session.lock(("append", message.queue))
    if message.dedup is not None:
        session.lock(("dedup", *message.queue, message.dedup))
    if dead:
        session.dies_with(message)
    return message


def may_send(run, session, messages):
    for m in messages:
        queue = (m["channel"], m["args"])
        if m["ordered"]:
            free(run, session, ("append", queue))
        # An id that another transaction uses would have to be waited for.
        free(run, session, ("message", m["name"]), ("dead", m["name"]))
        if session.message(m["name"]) is not None or session.get(("dead", m["name"])) is not None:
            raise Skip


def draw_send(random, run):
    message = draw_message(random, run, run.new_name())
    draw_options(random, message)
    if random.random() < 0.2:
        message["dedup"] = random.choice(("k", "l"))
    if random.random() < 0.3 and not message.get("two_phase") and not message.get("expires"):
        message["after"] = draw_prerequisites(random, run)
    return {"message": message}


def draw_prerequisites(random, run):
    """Mostly messages that are there; some that are dead; now and then one that is gone, or never was."""
    names = [m.name for m in run.all_messages()]
    dead = [key[1] for key in run.world.facts if key[0] == "dead"]
    names = random.sample(names, min(len(names), random.randint(1, 3)))
    if dead and random.random() < 0.15:
        names.append(random.choice(dead))
    if random.random() < 0.1:
        names.append("gone")
    return list(dict.fromkeys(names))


@step(14)
def do_send(run, session, message):
    m = message
    queue = (m["channel"], m["args"])
    may_send(run, session, [m])
    held = None
    if m.get("dedup"):
        free(run, session, ("dedup", *queue, m["dedup"]))
        held = holder(session, queue, m["dedup"])
        if held:
            free_messages(run, session, [held])
    rows = run.sql(session, """SELECT mq_send(%s, %s, channel_args => %s, ordered => %s, delay => %s, retries => %s,
        retry_backoff => %s, commit_interval => %s, id => %s, dedup_key => %s, expires => %s, priority => %s,
        after => %s)""",
        m["channel"], run.json(m["payload"]), m["args"], m["ordered"], interval(m["delay"]), m["retries"],
        interval(m["backoff"]), m.get("two_phase") and interval(m["two_phase"]), uuid_of(m["name"]), m.get("dedup"),
        m.get("expires") and interval(m["expires"]), m.get("priority", 0), [uuid_of(p) for p in m.get("after", ())] or None)
    now = run.settle_gone(session)
    held = m.get("dedup") and holder(session, queue, m["dedup"])
    if held:
        demand(rows[0][0] == uuid_of(held.name), f"mq_send: {held.name} is pending under the dedup_key")
        return
    demand(rows[0][0] == uuid_of(m["name"]), "mq_send returned another id")
    sent(run, session, m, session.now or now)


def holder(session, queue, dedup):
    return next((m for m in session.messages() if m.queue == queue and m.dedup == dedup), None)


def draw_insert(random, run):
    name = run.new_name()
    messages = [draw_message(random, run, f"{name}.{i}") for i in range(random.randint(1, 4))]
    if random.random() < 0.5:
        for m in messages:
            m.update(channel=messages[0]["channel"], args=messages[0]["args"], ordered=True)
    return {"messages": messages}


@step(8)
def do_insert(run, session, messages):
    may_send(run, session, messages)
    rows = ", ".join(["(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, NULL)::mq_new_t"] * len(messages))
    values = []
    for m in messages:
        values += [uuid_of(m["name"]), interval(m["delay"]), m["retries"], interval(m["backoff"]), m["channel"], m["args"],
                   m.get("two_phase") and interval(m["two_phase"]), m["ordered"], m["channel"], run.dumps(m["payload"])]
    run.sql(session, f"SELECT mq_insert(ARRAY[{rows}])", *values)
    now = run.settle_gone(session)
    for m in messages:
        sent(run, session, m, session.now or now)


def draw_some(random, run, most=3):
    names = [m.name for m in run.all_messages()] or ["none"]
    return {"names": random.sample(names, min(len(names), random.randint(1, most)))}


draw_confirm = draw_some


@step(6)
def do_confirm(run, session, names):
    """mq_commit of two-phase messages."""
    messages = named(session, names)
    free_messages(run, session, messages)
    rows = run.sql(session, "SELECT mq_commit(%s)", [uuid_of(name) for name in names])
    now = run.settle_gone(session)
    committed = [m for m in messages if m.two_phase is not None and m.at[0] > now[0]]
    demand(rows[0][0] == [uuid_of(m.name) for m in committed], f"mq_commit returned {run.names(rows[0][0])}")
    for m in committed:
        at = earliest((m.at[0] - m.two_phase[1], m.at[1] - m.two_phase[0]), m.expires)
        session.put(replace(m, at=at, two_phase=None))


# --- consuming ------------------------------------------------------------------------------------

def draw_poll(random, run):
    return {"channels": random.choice((None, *([c] for c in CHANNELS), list(CHANNELS))),
            "batch_size": random.choice((1, 1, 2, 5, 50))}


def claimed(run, session, channels, batch_size, ids, now, what):
    """The messages that a claim has returned, which has to be what it could and must find."""
    must, may = session.candidates(channels, now[0])
    by_id = {uuid_of(m.name): m for m in must + may}
    for id in ids:
        demand(id in by_id, f"{what} returned {run.name(id)}, which is not to be had")
    demand(len(set(ids)) == len(ids) <= batch_size, f"{what} returned {len(ids)} messages")
    # What it removes in passing counts as if it were returned.
    least = min(batch_size if not run.settled else 1, len(must))
    demand(len(ids) >= least, f"{what} returned {run.names(ids)}, and not as many as it could of {[m.name for m in must]}")
    found = [by_id[id] for id in ids]
    for m in must:
        worse = [f.name for f in found if f.channel == m.channel and f.priority < m.priority]
        demand(m in found or not worse or run.settled, f"{what} returned {worse}, and left {m.name}, which has priority")
    demand(found == sorted(found, key=lambda m: (-m.priority, m.at[0], m.order)), f"{what} returned them out of order")
    if not ids:
        for m in session.messages():
            hidden = m.ordered and session.in_queue(m.queue)[0].name != m.name
            if m.channel in channels and m.is_undeliverable(now[0]) and not hidden \
                    and run.world.is_free(("message", m.name), session):
                raise Mismatch(f"{what} left {m.name}, which cannot be delivered")
    return found


def before_claim(run, session, channels):
    """A claim of these channels may lock the first messages of channels that are noted as headless."""
    run.claims = bool(channels)
    for queue in run.headless(session):
        session.first_is_linked(queue)


def not_paused(session, channels):
    return [c for c in channels if session.get(("paused", c)) is None]


@step(9)
def do_poll(run, session, channels, batch_size):
    before_claim(run, session, channels)  # without names it looks at those of which there are messages
    rows = run.sql(session, "SELECT id, wait_time FROM mq_poll(%s, %s)", channels, batch_size)
    now = run.settle_gone(session)
    ids = [row[0] for row in rows if row[0] is not None]
    for m in claimed(run, session, channels or CHANNELS, batch_size, ids, now, "mq_poll"):
        session.put(replace(m, at=plus(now, span(m.backoff)), backoff=min(2 * m.backoff, max(m.backoff, POLL_CEILING)),
                            left=m.left - 1, made=m.made + 1, lease="poll", token=0))
        session.frames[-1].leases.append((m.name, now, m.backoff, 0))
    if not ids:
        demand(rows[0][1] is None or 0 < rows[0][1].total_seconds() <= 60, f"mq_poll: wait {rows[0][1]}")


def draw_receive(random, run):
    return {**draw_poll(random, run), "lease": random.choice((5 * MINUTE, HOUR))}


@step(9)
def do_receive(run, session, channels, batch_size, lease):
    asked, channels = channels, not_paused(session, channels or CHANNELS)
    before_claim(run, session, asked and channels)
    rows = run.sql(session, "SELECT id, lease, attempt, attempts_left FROM mq_receive(%s, %s, %s)", asked, batch_size,
                   interval(lease))
    now = run.settle_gone(session)
    found = claimed(run, session, channels, batch_size, [row[0] for row in rows], now, "mq_receive")
    for m, (_, token, attempt, left) in zip(found, rows):
        demand((attempt, left) == (m.made + 1, m.left - 1), f"mq_receive: {m.name} has attempt {attempt}, {left} left")
        demand(token == rows[0][1] and token not in run.tokens.values(), "mq_receive: one new token for all")
        session.put(replace(m, at=plus(now, span(lease)), left=m.left - 1, made=m.made + 1, lease="receive", token=token))
        session.frames[-1].leases.append((m.name, now, lease, token))
    there = {m.name for m in run.all_messages()}
    run.tokens = {name: token for name, token in run.tokens.items() if name in there}
    run.tokens.update((m.name, row[1]) for m, row in zip(found, rows))


def draw_received(random, run):
    """Messages that have, or had, one token; now and then another one."""
    names = list(run.tokens) or ["none"]
    first = random.choice(names)
    same = [name for name in names if run.tokens.get(name) == run.tokens.get(first)]
    names = same if random.random() < 0.9 else names
    return {"names": list(dict.fromkeys([first, *random.sample(names, min(len(names), random.randint(0, 2)))]))}


def received(run, session, names):
    """(The ids, the token, a function that says which of the messages a call with these must return.)"""
    messages = named(session, names)
    free_messages(run, session, messages)
    token = run.tokens.get(names[0], -1)
    return ([uuid_of(name) for name in names], token,
            lambda now: [m for m in named(session, names)
                         if m.lease == "receive" and m.token == token and m.is_leased(now[0])])


def expect(run, rows, messages, what):
    demand([row[0] for row in rows] == [uuid_of(m.name) for m in messages],
           f"{what} returned {run.names(row[0] for row in rows)} and not {[m.name for m in messages]}")


draw_ack = draw_received


@step(8)
def do_ack(run, session, names):
    ids, token, ours = received(run, session, names)
    rows = run.sql(session, "SELECT mq_ack(%s, %s)", ids, token)
    now = run.settle_gone(session)
    messages = ours(now)
    expect(run, rows, messages, "mq_ack")
    session.end_together(messages, session.remove)


def draw_nack(random, run):
    return {**draw_received(random, run), "retry_in": random.choice((None, 0, 10 * MINUTE)), "dead": random.random() < 0.15}


@step(5)
def do_nack(run, session, names, retry_in, dead):
    ids, token, ours = received(run, session, names)
    if dead:
        retry_in = None
    rows = run.sql(session, "SELECT mq_nack(%s, %s, 'told to', '0A001', %s, %s)", ids, token,
                   None if retry_in is None else interval(retry_in), dead)
    now = run.settle_gone(session)
    messages = ours(now)
    expect(run, rows, messages, "mq_nack")

    def refuse(m):
        if dead:
            session.set(("failed", m.name), (session.get(("failed", m.name)) or ()) + ((m.made, "0A001"),))
            session.dead_letter(m, "discarded", "0A001")
        else:
            session.fail(m, "0A001", now, True, retry_in)
    session.end_together(messages, refuse)


def draw_extend(random, run):
    return {**draw_received(random, run), "by": random.choice((MINUTE * 2, HOUR))}


@step(3)
def do_extend(run, session, names, by):
    ids, token, ours = received(run, session, names)
    rows = run.sql(session, "SELECT mq_extend(%s, %s, %s)", ids, token, interval(by))
    now = run.settle_gone(session)
    messages = ours(now)
    expect(run, rows, messages, "mq_extend")
    for m in messages:
        session.put(replace(m, at=latest(m.at, plus(now, span(by)))))


draw_delete = draw_some


@step(7)
def do_delete(run, session, names):
    messages = named(session, names)
    free_messages(run, session, messages)
    free(run, session, *(("dead", name) for name in names))
    run.sql(session, "SELECT mq_delete(%s)", [uuid_of(name) for name in names])
    run.see(session)
    session.end_together(messages, session.remove)
    for name in names:
        dead = session.get(("dead", name))
        if dead and dead.sqlstate == "MQ001" and name not in {m.name for m in messages}:
            session.set(("dead", name), None)
            session.lock(("dead", name))
    run.settle_gone(session)


def kept_alive(m, until):
    if m.blocked or m.at[0] >= until[0]:
        return m
    two_phase = m.two_phase and (m.two_phase[0] + until[0] - m.at[1], m.two_phase[1] + until[1] - m.at[0])
    return replace(m, at=until, two_phase=two_phase)


def draw_keep_alive(random, run):
    return {**draw_some(random, run), "duration": random.choice((0, 10 * MINUTE, 2 * HOUR))}


@step(4)
def do_keep_alive(run, session, names, duration):
    messages = named(session, names)
    free_messages(run, session, messages)
    run.sql(session, "SELECT mq_keep_alive(%s, %s)", [uuid_of(name) for name in names], interval(duration))
    now = run.settle_gone(session)
    for m in messages:
        kept = kept_alive(m, plus(now, span(duration)))
        if kept is not m:  # else it is not even locked
            session.put(kept)


def draw_checkpoint(random, run):
    return {**draw_some(random, run, 1), "duration": random.choice((0, 10 * MINUTE, 2 * HOUR)),
            "payload": draw_payload(random) if random.random() < 0.7 else None, "extra": random.choice((None, 0, 1))}


@step(4)
def do_checkpoint(run, session, names, duration, payload, extra):
    messages = named(session, names)
    free_messages(run, session, messages)
    # Without a backoff a message that is tried often waits all the same, but not for long: nothing could be foretold.
    if any(m.blocked or (m.backoff == 0 and extra) for m in messages):
        raise Skip
    run.sql(session, "SELECT mq_checkpoint(%s, %s, %s, NULL, %s)", uuid_of(names[0]), interval(duration),
            payload and run.dumps(payload), extra)
    now = run.settle_gone(session)
    for m in messages:
        m = kept_alive(m, plus(now, span(duration)))
        session.put(replace(m, left=m.left + (extra or 0), payload=payload or m.payload))


draw_cancel = draw_some


@step(3)
def do_cancel(run, session, names):
    messages = named(session, names)
    free_messages(run, session, messages)
    rows = run.sql(session, "SELECT mq_cancel(%s)", [uuid_of(name) for name in names])
    messages = [m for m in messages if not m.blocked and (m.two_phase is None or m.at[0] > run.world.now())]
    expect(run, rows, messages, "mq_cancel")
    run.see(session)
    session.end_together(messages, lambda m: session.dead_letter(m, "cancelled", "57014", block=False))
    run.settle_gone(session)


def draw_clear(random, run):
    return {"channel": random.choice(CHANNELS)}


@step(1)
def do_clear(run, session, channel):
    messages = [m for m in session.messages() if m.channel == channel]
    free_messages(run, session, messages)
    run.sql(session, "SELECT mq_clear(%s)", [channel])
    run.see(session)
    session.end_together(messages, session.remove)
    run.settle_gone(session)


# --- handlers and dead letters --------------------------------------------------------------------

def draw_pause(random, run):
    return {"channel": random.choice(CHANNELS), "pause": random.random() < 0.4}


@step(2)
def do_pause(run, session, channel, pause):
    """mq_pause or mq_resume."""
    if run.in_transaction(session):
        raise Skip
    rows = run.sql(session, f"SELECT mq_{'pause' if pause else 'resume'}(%s)", channel)
    demand(rows[0][0] == ((session.get(("paused", channel)) is None) == pause), "mq_pause or mq_resume: another result")
    session.set(("paused", channel), True if pause else None)


def draw_redrive(random, run):
    return {"channel": random.choice((None, *CHANNELS)), "retries": random.choice((0, 2))}


@step(2)
def do_redrive(run, session, channel, retries):
    numbers = run.dead_numbers(session)
    chosen = sorted((d for d in session.all("dead") if channel in (None, d.message.channel)),
                    key=lambda d: numbers[d.message.name])
    chosen = [d for d in chosen if not run.world.is_locked(("dead", d.message.name), session)]
    for d in chosen:
        m = d.message
        free(run, session, ("message", m.name))
        if m.ordered:
            free(run, session, ("append", m.queue))
        if m.dedup is not None:
            free(run, session, ("dedup", *m.queue, m.dedup))
            held = holder(session, m.queue, m.dedup)
            if held:
                free_messages(run, session, [held])
    steps = redrive_order(session, chosen)
    # One that returns to its place does so only where nothing of its channel's has to go before it: not for the model to say.
    if any(session.message(d.message.name) and any(session.is_pending(p) or session.is_dead(p) for p in d.after) for d in steps):
        raise Skip
    rows = run.sql(session, "SELECT mq_redrive(channel_name => %s, retries => %s)", channel, retries)
    now = session.now or run.settle_gone(session)
    run.settle_gone(session)
    count, sent = 0, set()
    # Those with a dedup_key, and those that block, go singly; the others together, in the order in which they died.
    for d in steps:
        m = d.message
        if m.dedup is not None and holder(session, m.queue, m.dedup) is not None:
            continue
        if any(session.is_dead(p) for p in d.after):
            continue
        sent.add(m.name)
        blocking = session.message(m.name)
        order = blocking.order if blocking else run.world.next_order()
        waits = [p for p in d.after if session.is_pending(p)]
        for p in waits:
            session.set(("edge", m.name, p), True)
        session.put(replace(m, order=order, at=span(INFINITE) if waits else now, left=retries + 1, made=0, lease=None,
                            token=None, two_phase=None, expires=NEVER, blocked=False, due=now if waits else None))
        session.set(("dead", m.name), None)
        session.lock(("dead", m.name))
        if m.ordered:
            session.lock(("append", m.queue))
        if m.dedup is not None:
            session.lock(("dedup", *m.queue, m.dedup))
        count += 1
    demand(rows[0][0] == count, f"mq_redrive returned {rows[0][0]} and not {count}")
    # Those that would die at once stay, and say so.
    for d in chosen:
        if d.message.name not in sent and any(session.get(("dead", p)) is not None for p in d.after):
            session.set(("dead", d.message.name), replace(d, reason="prerequisite", sqlstate=PREREQUISITE))
            session.lock(("dead", d.message.name))


def redrive_order(session, chosen):
    """Each behind those that it waits for; without those that wait for a dead message which is not sent again."""
    left, order = list(chosen), []
    dead = {p for d in chosen for p in d.after if session.is_dead(p)}
    while True:
        sent = {d.message.name for d in order}
        d = next((d for d in left if all(p not in dead or p in sent for p in d.after)), None)
        if d is None:
            return order
        left.remove(d)
        order.append(d)


def handle(run, session, m, now):
    """What the handler that the runner has made does to a message."""
    do = m.payload["do"]
    effects = session.get(("effects", m.name)) or ()
    attempt = m.made + 1
    if do == "fail" or (do == "once" and attempt == 1):
        session.fail(m, "P0001", now, False)
        return
    session.set(("effects", m.name), effects + (attempt,))
    if do == "snooze" and not effects:
        session.put(replace(m, at=earliest(plus(now, span(10 * MINUTE)), m.expires), lease=None, token=None))
    elif do == "discard":
        session.dead_letter(m, "discarded", None, made=attempt)
    else:
        session.remove(m)


@step(8)
def do_run(run, session):
    channels = not_paused(session, HANDLERS)
    before_claim(run, session, channels)
    # In a transaction block it keeps locked what it has claimed and given back: followers of a head that failed, say.
    for m in session.messages():
        if m.channel in HANDLERS and not run.world.is_locked(("message", m.name), session):
            session.lock_perhaps(("message", m.name))
    run.sql(session, "CALL mq_run()")
    now = run.settle_gone(session)
    left = set()  # what another session may have locked, and what was not handled therefore
    while True:
        must, may = session.candidates(channels, now[1])
        for m in may:
            if run.is_unchanged(m):
                left.add(m.name)
        due = [m for m in must + may if m.name not in left]
        if not due:
            break
        for m in due:
            handle(run, session, m, now)
    run.settle_gone(session, again=True)


# --- the world ------------------------------------------------------------------------------------

def draw_advance(random, run):
    return {"by": random.choice((2 * MINUTE, 10 * MINUTE, HOUR, DAY))}


@step(7)
def do_advance(run, session, by):
    run.advance(by)


@step(3)
def do_purge(run, session):
    """Deletes what has been, by hand, where nobody is at it."""
    if any(run.in_transaction(s) for s in run.world.sessions):
        raise Skip
    # A dead letter that its channel waits for is more than a record.
    run.sql(session, "DELETE FROM mq_dead d WHERE NOT EXISTS (SELECT FROM mq_msgs m WHERE m.id = d.id)")
    run.sql(session, "DELETE FROM mq_failures")
    run.sql(session, "DELETE FROM model_effects")
    for kind, *rest in list(run.world.facts):
        if kind in ("failed", "effects") or (kind == "dead" and session.message(rest[0]) is None):
            session.set((kind, *rest), None)
