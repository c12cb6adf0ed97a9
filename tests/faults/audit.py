"""The auditor: compares what the clients were told (ledger.py), the calls that the server's log names, and what the database holds
when all has drained. It knows what must hold, and nothing of how mq works.

A message is `committed` (its sender was told so), `unknown` (its sender's connection was lost at COMMIT: it may be there or not),
or `rolled back`. What may happen to each is in audit(); each violation is a finding: (rule, text)."""
import collections
import re

import ledger

TRANSACTIONAL = {'plain', 'batch', 'kept', 'block', 'limited', 'all news', 'some news', 'ticks', 'calls'}
LEASED = {'leased', 'travel'}
HANDLED = TRANSACTIONAL | LEASED
KEPT = {'kept', 'calls'}
# What a client may be told in any run: limits, also of what can be prepared, conflicts, and the planned failure of a call.
CLIENT_ERRORS = {None, '53400', '40001', '40P01', 'MQF01', '57014', '0A000'}


class Allowed:
    """What a kind of fault may do beyond what always may be: SQLSTATEs that charge an attempt and that clients may see, lines of the
    log, reasons of deaths. `calm`: nothing at all is in the way, so leased handlers too take effect once. `clock`: it is left alone."""

    def __init__(self, charges=(), errors=(), log=(), reasons=(), calm=False, clock=True, channels=(), health=(), statistics=True):
        self.charges, self.errors, self.log, self.reasons = set(charges), set(errors), [re.compile(line) for line in log], set(reasons)
        self.calm, self.clock, self.channels, self.health, self.statistics = calm, clock, set(channels), set(health), statistics


class Message:
    def __init__(self, spec, end, lo, hi, sender=None, asked=0):
        self.spec, self.end, self.lo, self.hi, self.sender, self.asked = spec, end, lo, hi, sender, asked
        self.channel, self.args, self.ordered = spec['channel'], spec['args'], spec['ordered']
        self.uncommitted = 'two_phase' in spec          # until mq_commit says otherwise
        self.cancelled = self.redriven = self.deleted = 0    # 0: no, 1: perhaps, 2: certainly

    def gone_for_nothing(self):
        """It was never sent, as far as anybody may see."""
        return self.end == 'rolled back' or self.uncommitted is True

    def certain(self):
        return self.end == 'committed' and self.uncommitted is False


class Record:
    """What the ledger says of each message."""

    def __init__(self, lines):
        self.messages, self.nameless, self.clears, self.errors, self.calls, self.waits = {}, set(), 0, collections.Counter(), {}, []
        self.grants, self.releases, self.acks, self.deletes, self.refused = [], [], [], [], []
        self.redrives, self.redriven = collections.Counter(), set()
        transactions = ledger.transactions(lines)
        self.transactions = len(transactions)
        for line in lines:
            if 'sqlstate' in line and line.get('told') != 'call':
                self.errors[line['sqlstate']] += 1
        for one in transactions:
            first_told = {}
            for position, step in enumerate(one.steps):
                if step['ask']['ask'] == 'send':
                    self.sent(one, position, step, first_told)
        for one in transactions:
            for step in one.steps:
                self.done(one, step)

    def sent(self, one, position, step, first_told):
        ask, told = step['ask'], step['told']
        specs = ask['messages']
        ids = told['ids'] if told and 'ids' in told else [spec['id'] for spec in specs]
        end = 'rolled back' if ask.get('undone') else one.end
        if len(ids) != len(specs):
            self.errors['ids'] += 1
            return
        for index, (spec, known) in enumerate(zip(specs, ids)):
            if known is None:
                # The answer that would have named it did not come.
                if end != 'rolled back':
                    self.nameless.add(spec['payload']['key'])
                continue
            if spec['id'] not in (None, known):
                # A message with its dedup_key was pending.
                self.messages[spec['id']] = Message(spec, 'rolled back', (0,), (0,))
                continue
            if end == 'rolled back' and known in self.messages and self.messages[known].end == 'unknown':
                continue        # sent again, in vain: the first may be there all the same
            # The sender had the channel to itself from the answer on until the commit; of a statement that is a transaction of
            # its own it had it at some moment between asking and being told.
            channel = (spec['channel'], spec['args'])
            told_at = told['t'] if told else float('inf')
            if ask.get('auto'):
                lo, hi = (ask['t'], position, index), (told_at, position, index)
            else:
                # What is sent without an order, or taken back with a savepoint, keeps nobody else out.
                at = first_told.setdefault(channel, told_at) if spec['ordered'] and not ask.get('undone') else told_at
                lo = hi = (at, position, index)
            self.messages[known] = Message(dict(spec, id=known), end, lo, hi, one, ask['t'])

    def done(self, one, step):
        ask, told = step['ask'], step['told']
        kind, ids = ask['ask'], (told or {}).get('ids')
        weight = {'committed': 2, 'unknown': 1, 'prepared': 1}.get(one.end, 0)
        known = lambda of: [self.messages[key] for key in of or () if key in self.messages]
        if kind == 'call':
            self.calls[ask['call']] = dict(ask, **(told or {'sqlstate': 'lost'}))
        elif kind == 'wait' and told:
            self.waits.append((ask['of'], told['state'], told['result']))
        elif kind == 'mq_commit':
            for m in known(ask['of']):
                if weight == 2 and ids is not None:
                    m.uncommitted = m.spec['id'] not in ids
                elif weight:
                    m.uncommitted = None
        elif kind == 'cancel':
            for m in known(ask['of'] if ids is None else ids):
                m.cancelled = max(m.cancelled, weight)
        elif kind == 'redrive' and weight:
            self.redriven.update(ask['of'])
            # Those of calls, whose ids no client was told.
            self.redrives['calls'] += len(set(ask['of']) - set(self.messages))
            for m in known(ask['of']):
                m.redriven = 1      # perhaps: mq_redrive says how many, not which
                self.redrives[m.channel] += 1
        elif kind == 'clear' and weight:
            self.clears += 1
        elif kind == 'delete':
            for m in known(ask['of']):
                m.deleted = max(m.deleted, weight)
            if weight:
                self.deletes += [(key, ask['t'], one) for key in ask['of']]
                self.releases += [(key, ask['t'], ask['client']) for key in ask['of']]
        elif kind in ('receive', 'poll') and told and one.end == 'committed':
            self.grants += [(key, ask['t'], told['t'], ask['lease'] if kind == 'receive' else attempt, ask['client'], kind) for key, _, attempt in told['got']]
        elif kind in ('ack', 'nack'):
            self.releases += [(key, ask['t'], ask['client']) for key in ask['of']]
            if kind == 'ack' and weight:
                self.acks += [(key, ask['t'], weight if ids is not None else 1) for key in (ask['of'] if ids is None else ids)]
            if kind == 'ack' and told:
                self.refused += [(key, told['t'], ask['client']) for key in set(ask['of']) - set(ids)]


def audit(lines, final, log, allowed):
    """final: what world.py's collect() has read; log: the server's lines of the run. Returns the findings and a row of figures."""
    findings = []
    record = Record(lines)

    def found(rule, text, *values):
        findings.append((rule, text % values if values else text))

    by_id = lambda rows, key='id': grouped(rows, key)
    effects, dead, failures, pending, done = (by_id(final['effects']), by_id(final['dead']), by_id(final['failures'], 'message_id'), by_id(final['pending']), by_id(final['done']))
    calls = by_id([{'id': m.group(1), 'attempt': int(m.group(2)), 'channel': m.group(3)} for m in (re.search(r'mq-call (\S+) (\d+) (.*)$', line) for line in log) if m])
    acks = by_id([{'id': key, 'at': at, 'weight': weight} for key, at, weight in record.acks])
    first_grant = {}
    for key, _, told, _, _, _ in sorted(record.grants, key=lambda grant: grant[2]):
        first_grant.setdefault(key, told)
    deletes = by_id([{'id': key, 'at': at} for key, at, _ in record.deletes])

    for key, m in record.messages.items():
        if m.channel in allowed.channels:
            continue
        of = effects.get(key, [])
        handled = [effect for effect in of if effect['what'] == 'handled']
        letters, failed = dead.get(key, []), failures.get(key, [])
        settled = handled if m.channel in HANDLED else acks.get(key, []) if m.channel == 'outside' else deletes.get(key, []) if m.channel == 'polled' else []
        if m.gone_for_nothing():
            if of or letters or key in calls or key in pending or key in first_grant:
                found('rolled back', '%s of %s: it was not sent, but there is an effect, call, dead letter or row', key, m.channel)
            continue
        # --- nothing is lost, nothing happens twice
        may_vanish = m.deleted or m.channel == 'cleared' and record.clears
        if m.certain() and not (settled or letters or key in pending or may_vanish):
            found('lost', '%s of %s', key, m.channel)
        certain = [ack for ack in settled if ack.get('weight', 2) == 2]
        if len(certain) > 1 and (m.channel in TRANSACTIONAL or m.channel == 'outside' and not m.redriven or m.channel in LEASED and allowed.calm):
            found('doubled', '%s of %s took effect %d times', key, m.channel, len(certain))
        elif len({effect['attempt'] for effect in handled}) > m.spec['retries'] + 1:
            found('doubled', '%s of %s took effect in more attempts than it has', key, m.channel)
        if len(letters) > 1:
            found('dead letters', '%s of %s has %d', key, m.channel, len(letters))
        if handled and letters and m.channel in TRANSACTIONAL:
            found('dead letters', '%s of %s was handled and is dead', key, m.channel)
        if m.channel == 'cleared' and of:
            found('stranger', '%s of a channel that nobody handles took effect', key)
        for effect in of:
            payload = dict(effect['payload'] or {})    # none: it came of a dead letter that has lost it
            payload.pop('half', None)
            if payload != m.spec['payload']:
                found('payload', '%s of %s is %s, not %s', key, m.channel, payload, m.spec['payload'])
        # --- cancelled
        # While its handler runs it is still there to be deleted, and then leaves no dead letter.
        if m.cancelled == 2 and not m.redriven and (handled and m.channel in TRANSACTIONAL or (letters[0]['reason'] != 'cancelled' if letters else not m.deleted)):
            found('cancelled', '%s of %s: it was cancelled, but %s', key, m.channel, 'was handled' if handled else letters or 'left no dead letter')
        # --- attempts, failures, dead letters
        if m.channel in HANDLED:
            check_attempts(key, m, handled, letters, failed, calls.get(key, []), allowed, found)
        for letter in letters:
            reason, fail = letter['reason'], m.spec['payload'].get('fail', 0)
            expected = {'expired': 'expires' in m.spec, 'cancelled': m.cancelled, 'discarded': 'discard' in m.spec['payload'], 'prerequisite': m.spec.get('after'),
                        'exhausted': fail > m.spec['retries'] or m.channel in ('outside', 'polled') or any(f['sqlstate'] in allowed.charges for f in failed)}
            if not (expected.get(reason) or reason in allowed.reasons):
                found('dead letters', '%s of %s is dead without a reason: %s', key, m.channel, letter)
        # --- what waits for others
        for other in m.spec.get('after') or ():
            o = record.messages.get(other)
            theirs = [effect for effect in effects.get(other, []) if effect['what'] == 'handled']
            # What was not committed when it was sent counts as handled already.
            if o and not (o.sender is m.sender or o.sender and o.sender.ended and o.sender.ended < m.asked):
                continue
            if handled and o and o.certain() and o.channel in HANDLED and not (m.redriven or o.redriven or o.deleted or o.cancelled):
                if theirs and min(effect['n'] for effect in handled) < min(effect['n'] for effect in theirs):
                    found('prerequisite', '%s was handled before %s', key, other)
                elif not theirs and dead.get(other) and o.end == 'committed':
                    found('prerequisite', '%s was handled though %s is dead', key, other)
        # --- history
        if m.channel in KEPT and not m.deleted:
            rows = done.get(key, [])
            if len(rows) != len(handled):
                found('history', '%s: handled %d times, and in mq_done %d times', key, len(handled), len(rows))
            for row, effect in zip(rows, handled):
                if row['result'] != {'of': key} or row['attempts'] != effect['attempt']:
                    found('history', '%s: %s', key, row)

    strangers(record, effects, dead, done, found)
    order(record, final['effects'], allowed, found)
    order_outside(record, first_grant, acks, deletes, dead, found)
    holders(record, allowed, found)
    if allowed.statistics:
        statistics(record, final, effects, acks, found)
    for key, state, result in record.waits:
        handled = [effect for effect in effects.get(key, []) if effect['what'] == 'handled']
        if state == 'done' and not handled or state == 'dead' and not dead.get(key) and not record.messages[key].redriven:
            found('told', 'mq_wait says of %s: %s', key, state)
    for text in final['left_over']:
        found('left over', text)
    for text in final['index']:
        found('index', text)
    for check, detail in final['health']:
        if check not in allowed.health:
            found('health', '%s: %s', check, detail)
    for sqlstate, count in record.errors.items():
        if sqlstate not in CLIENT_ERRORS | allowed.errors:
            found('client', 'SQLSTATE %s, %d times', sqlstate, count)
    for text in final['trouble']:
        found('client', text)
    bad = re.compile(r'PANIC:|TRAP:|segfault|was terminated by|FATAL:|mq worker:|WARNING:|exited with exit code [^01]')
    usual = re.compile(r'terminating (background worker "mq (worker|launcher)"|connection|autovacuum process) due to administrator command|deadlock detected|connection to client lost|'
                       # So says a session that is terminated before it has told its client that it is there.
                       r'canceling authentication due to timeout|'
                       # Of another run on the same server, which has dropped its database meanwhile.
                       r'autovacuum worker FATAL:  database .*does not exist')
    for line in log:
        if bad.search(line) and not usual.search(line) and not any(pattern.search(line) for pattern in allowed.log):
            found('log', line.strip()[:200])
    count = lambda rule: sum(1 for kind, _ in findings if kind == rule)
    figures = {'acknowledged': sum(1 for m in record.messages.values() if m.certain()),
               'effects': sum(1 for effect in final['effects'] if effect['what'] == 'handled') + len({key for key, _, weight in record.acks if weight == 2}) + len({key for key in deletes if key in record.messages and record.messages[key].channel == 'polled'}),
               'dead': len(final['dead']), 'lost': count('lost'), 'doubled': count('doubled'), 'out of order': count('out of order'),
               'other': sum(1 for kind, _ in findings if kind not in ('lost', 'doubled', 'out of order'))}
    return findings, figures


def grouped(rows, key):
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    return dict(groups)


def check_attempts(key, m, handled, letters, failed, calls, allowed, found):
    """Each attempt that was charged has a row in mq_failures; and none was charged that did not fail."""
    most = m.spec['retries'] + 1
    fail = m.spec['payload'].get('fail', 0)
    planned = [row for row in failed if row['sqlstate'] == 'MQF01']
    unplanned = [row for row in failed if row['sqlstate'] != 'MQF01']
    for row in unplanned:
        if row['sqlstate'] not in allowed.charges:
            found('failures', '%s of %s is charged for %s: %s', key, m.channel, row['sqlstate'], row['error'])
    if planned and not fail:
        found('failures', '%s of %s has a planned failure that nobody planned', key, m.channel)
    if any(call['attempt'] > max(most, 4) for call in calls):
        found('attempts', '%s of %s was called for attempt %d', key, m.channel, max(call['attempt'] for call in calls))
    if m.redriven:
        return
    if m.channel not in LEASED or allowed.calm:
        for effect in handled:
            if effect['attempt'] != len(failed) + 1:
                found('attempts', '%s of %s was handled on attempt %d after %d failures', key, m.channel, effect['attempt'], len(failed))
            if not fail - len(unplanned) <= len(planned) <= fail:
                found('attempts', '%s of %s was to fail %d times, and failed %d times', key, m.channel, fail, len(planned))
    for letter in letters:
        if letter['reason'] == 'exhausted' and not letter['attempts_made'] == len(failed) == most:
            found('attempts', '%s of %s died after %d attempts and %d failures, of %d', key, m.channel, letter['attempts_made'], len(failed), most)
    if not handled and not letters and len(planned) > fail:
        found('attempts', '%s of %s failed %d times', key, m.channel, len(planned))


def strangers(record, effects, dead, done, found):
    """Effects of what nobody has sent; calls and schedules, whose ids no client was told."""
    of_call = collections.Counter()
    ticks = collections.Counter()
    for key, rows in effects.items():
        if key in record.messages:
            continue
        row = rows[0]
        if row['channel'] == 'ticks':
            ticks[row['headers']['schedule']['name'], row['headers']['schedule']['at']] += len(rows)
        elif row['channel'] == 'calls' and key in record.redriven:
            pass
        elif row['channel'] == 'calls':
            of_call[row['payload']['call']] += len(rows)
        elif row['payload'].get('key') in record.nameless:
            if row['channel'] not in LEASED and sum(1 for one in rows if one['what'] == 'handled') > 1:
                found('doubled', '%s of %s took effect more than once', key, row['channel'])
        else:
            found('stranger', '%s of %s took effect, and nobody has sent it', key, row['channel'])
    for (name, at), count in ticks.items():
        if count > 1:
            found('schedule', 'the time %s of %s was handled %d times', at, name, count)
    for key, call in record.calls.items():
        count, told = of_call.pop(key, 0), call.get('sqlstate', 'done')
        if count > 1 or told == 'done' and count != 1 or told in ('MQF01', '57014') and count or call['fails'] and count:
            found('told', 'a call took effect %d times, and its client was told: %s', count, told)
    for key in of_call:
        found('stranger', 'a call %s took effect, and nobody has made it', key)


def out_of_order(items):
    """items: (lo, hi, name), in the order of their effects. Yields each whose sender came certainly later than a later one's."""
    least = None
    for lo, hi, name in reversed(items):
        if least is not None and least[0] < lo:
            yield name, least[1]
        if least is None or hi < least[0]:
            least = (hi, name)


def order(record, effects, allowed, found):
    channels = collections.defaultdict(list)
    for effect in sorted(effects, key=lambda effect: effect['n']):
        m = record.messages.get(effect['id'])
        # Who deletes a message while its leased handler runs lets the next one go.
        let_go = m and m.channel in LEASED and m.deleted
        if m and m.ordered and effect['what'] == 'handled' and not m.redriven and not let_go and m.channel not in allowed.channels:
            channels[m.channel, m.args].append((m, effect))
    for channel, rows in channels.items():
        seen, items = set(), []
        for m, effect in rows:
            # A leased handler may take effect once more, behind others.
            if effect['id'] not in seen:
                seen.add(effect['id'])
                items.append((m.lo, m.hi, effect['id']))
        for later, earlier in out_of_order(items):
            found('out of order', '%s: %s took effect before %s, which was sent before it', channel, later, earlier)
        if allowed.clock:
            for (_, one), (_, other) in zip(rows, rows[1:]):
                if one['xid'] != other['xid'] and one['committed'] and other['began'] < one['committed']:
                    found('out of order', '%s: %s began before %s was settled', channel, other['id'], one['id'])


def order_outside(record, first_grant, acks, deletes, dead, found):
    """Of an ordered channel nobody is given a message before the one in front of it was taken away."""
    channels = collections.defaultdict(list)
    for key, m in record.messages.items():
        taken = acks if m.channel == 'outside' else deletes
        if m.channel in ('outside', 'polled') and m.ordered and m.certain() and not m.redriven and key in first_grant and key in taken and key not in dead:
            channels[m.channel, m.args].append((m, first_grant[key], min(one['at'] for one in taken[key]), key))
    for channel, rows in channels.items():
        for m, _, taken, key in rows:
            for other, given, _, other_key in rows:
                if m.hi < other.lo and given < taken:
                    found('out of order', '%s: %s was given away before %s was taken away', channel, other_key, key)


def holders(record, allowed, found):
    """No two clients have a message at once. What a lease may last at least is counted from before it was asked for."""
    if not allowed.clock:
        return
    released, refused = collections.defaultdict(list), collections.defaultdict(list)
    for key, at, client in record.releases:
        released[key, client].append(at)
    for key, at, client in record.refused:
        refused[key].append((at, client))
    for key, grants in grouped([dict(zip(('id', 'ask', 'told', 'lease', 'client', 'kind'), grant)) for grant in record.grants], 'id').items():
        m = record.messages.get(key)
        if m and (m.redriven or m.cancelled or m.channel == 'outside' and m.deleted):
            continue
        grants.sort(key=lambda grant: grant['told'])
        for a, b in zip(grants, grants[1:]):
            until = min([a['ask'] + (a['lease'] or 0)] + [at for at in released[key, a['client']] if at >= a['told']])
            if b['told'] < until and a['told'] < b['ask'] + (b['lease'] or 0):
                found('leases', '%s was given to %s while %s had it', key, b['client'], a['client'])
        for at, client in refused[key]:
            if any(grant['client'] == client and grant['told'] < at < grant['ask'] + (grant['lease'] or 0) for grant in grants):
                found('leases', '%s was taken from %s before its lease ran out', key, client)


def statistics(record, final, effects, acks, found):
    handled, died, failed, unsure = (collections.Counter() for _ in range(4))
    for rows in effects.values():
        handled[rows[0]['channel']] += any(row['what'] == 'handled' for row in rows)
    for row in final['dead']:
        died[row['channel_name']] += 1
    for row in final['failures']:
        failed[row['channel_name']] += 1
    dead = {row['id'] for row in final['dead']}
    for key, m in record.messages.items():
        # A leased call whose worker went down before it was settled has its effect, and its message may die afterwards.
        unsure[m.channel] += m.deleted > 0 or m.channel in LEASED and key in dead and key in effects
    for row in final['stats']:
        name = row['channel_name']
        if name not in HANDLED:
            continue
        if abs(row['handled'] - handled[name]) > unsure[name]:
            found('statistics', '%s: handled %d, of which mq_stats knows %d', name, handled[name], row['handled'])
        if not died[name] <= row['died'] <= died[name] + record.redrives[name]:
            found('statistics', '%s: %d are dead, and %d times somebody redrove; mq_stats knows of %d deaths', name, died[name], record.redrives[name], row['died'])
        if row['failed'] != failed[name]:
            found('statistics', '%s: %d failures, of which mq_stats knows %d', name, failed[name], row['failed'])
