"""Defects that are planted by triggers on mq's own tables, each of which the auditor must find: what it finds nothing in proves
nothing before."""

import itertools

MESSAGES = 'mq_msgs'
numbers = itertools.count(1)


def trigger(table, when, body, condition=None):
    name = 'planted_%d' % next(numbers)
    return ["CREATE FUNCTION %s() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN %s END $$" % (name, body),
            'CREATE TRIGGER %s %s ON %s FOR EACH ROW %s EXECUTE FUNCTION %s()' % (name, when, table, 'WHEN (%s)' % condition if condition else '', name)]


# name: (the rule under which it must be found, what that finding says, what plants it)
DEFECTS = {
    'loses a message': ('lost', 'of', trigger(
        MESSAGES, 'BEFORE INSERT', 'IF random() < 0.05 THEN RETURN NULL; END IF; RETURN NEW;')),
    'handles a message twice': ('doubled', 'took effect 2 times', trigger(
        MESSAGES, 'AFTER DELETE', """IF (SELECT count(*) FROM public.effects WHERE id = OLD.id AND what = 'handled') = 1 THEN
          PERFORM public.mq_send(OLD.channel_name, OLD.message_json, channel_args => OLD.channel_args, id => OLD.id); END IF; RETURN NULL;""",
        "OLD.channel_name = 'plain'")),
    'lets a message overtake': ('out of order', 'before', trigger(
        MESSAGES, 'BEFORE INSERT', "NEW.attempt_at := NEW.attempt_at + interval '1 s'; NEW.after_message_id := NULL; RETURN NEW;",
        "NEW.channel_name IN ('plain', 'batch') AND NEW.after_message_id IS NOT NULL AND random() < 0.2")),
    'forgets a failed attempt': ('attempts', 'was handled on attempt', trigger(
        'mq_failures', 'BEFORE INSERT', 'RETURN NULL;')),
    'charges an attempt twice': ('attempts', 'was handled on attempt', trigger(
        MESSAGES, 'BEFORE UPDATE', 'NEW.attempt := NEW.attempt + 1; NEW.attempts := NEW.attempts - 1; RETURN NEW;',
        "NEW.attempt > OLD.attempt AND NEW.channel_name IN ('plain', 'batch', 'kept')")),
    'loses a dead letter': ('lost', 'of', trigger(
        'mq_dead', 'AFTER INSERT', 'DELETE FROM public.mq_dead WHERE dead_no = NEW.dead_no; RETURN NULL;')),
    'writes two dead letters': ('dead letters', 'has 2', trigger(
        'mq_dead', 'BEFORE INSERT', """IF pg_trigger_depth() = 1 THEN
          INSERT INTO public.mq_dead (id, created_at, died_at, channel_name, channel_args, name, ordered, attempts_made, reason, retry_backoff, channel_key)
          VALUES (NEW.id, NEW.created_at, NEW.died_at, NEW.channel_name, NEW.channel_args, NEW.name, NEW.ordered, NEW.attempts_made, NEW.reason, NEW.retry_backoff, NEW.channel_key);
          END IF; RETURN NEW;""")),
    'gives one message to two consumers': ('leases', 'lease', trigger(
        MESSAGES, 'BEFORE UPDATE', "NEW.attempt_at := now() - interval '1 s'; RETURN NEW;",
        "NEW.lease < 0 AND OLD.lease IS DISTINCT FROM NEW.lease AND random() < 0.5")),
    'loses statistics': ('statistics', 'mq_stats knows', trigger(
        'mq_stats_deltas', 'BEFORE INSERT', 'IF random() < 0.3 THEN RETURN NULL; END IF; RETURN NEW;')),
    'loses history': ('history', 'in mq_done 0 times', trigger(
        'mq_done', 'AFTER INSERT', 'DELETE FROM public.mq_done WHERE done_no = NEW.done_no; RETURN NULL;', 'random() < 0.2')),
    'gives a message another payload': ('payload', "'key': -1", trigger(
        MESSAGES, 'BEFORE INSERT', "NEW.message_json := '{\"key\": -1}'; RETURN NEW;", "NEW.channel_name = 'plain' AND random() < 0.1")),
    'forgets a message until later': ('liveness', 'is scheduled for', trigger(
        MESSAGES, 'BEFORE INSERT', "NEW.attempt_at := NEW.attempt_at + interval '1 hour'; RETURN NEW;", 'random() < 0.02')),
    'runs what was cancelled': ('cancelled', "'reason': 'discarded'", trigger(
        'mq_dead', 'BEFORE INSERT', "NEW.reason := 'discarded'; RETURN NEW;", "NEW.reason = 'cancelled'")),
    'leaves something over': ('left over', 'payloads', trigger(
        MESSAGES, 'AFTER DELETE', """INSERT INTO public.mq_msgs (id, attempt_at, channel_name, channel_args, after_message_id, channel_key, message_name)
          VALUES (gen_random_uuid(), 'infinity', 'nobody', '', NULL, 1, 'orphan'); RETURN NULL;""", "random() < 0.1 AND OLD.channel_name <> 'nobody'")),
}

# Those that may be planted together, since each is found under a rule of its own.
TOGETHER = [['loses a message', 'charges an attempt twice', 'loses history', 'gives a message another payload'],
            ['handles a message twice', 'writes two dead letters', 'loses statistics', 'leaves something over'],
            ['lets a message overtake', 'gives one message to two consumers', 'runs what was cancelled'],
            ['forgets a failed attempt', 'forgets a message until later', 'loses a dead letter']]
assert sorted(sum(TOGETHER, [])) == sorted(DEFECTS)
