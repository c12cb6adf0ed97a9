"""Faults of handlers: 4 every way in which a call may end, 5 handlers and roles that go while calls run."""
import time

from kinds import kind
from kinds_processes import message
from server import wait_until

# What a handler does on its first attempt, or always; and what becomes of its message. `once` succeeds on its second attempt.
OUTCOMES = {
    'data exception': ("PERFORM 1 / (m.attempt - m.attempt)", 'dead 22012'),
    'constraint': ("INSERT INTO checked VALUES (-1)", 'dead 23514'),
    'raised': ("RAISE EXCEPTION 'no' USING ERRCODE = 'ZZ001'", 'dead ZZ001'),
    'internal error': ("RAISE EXCEPTION 'no' USING ERRCODE = 'XX000'", 'dead XX000'),
    'out of memory': ("RAISE EXCEPTION 'no' USING ERRCODE = '53200'", 'dead 53200'),
    'statement timeout': ("SET LOCAL statement_timeout = '10 ms'; RAISE EXCEPTION 'canceling statement due to statement timeout' USING ERRCODE = '57014'", 'dead 57014'),
    'time limit': ("PERFORM pg_sleep(20)", 'dead 57014'),
    'lock timeout': ("SET LOCAL lock_timeout = '10 ms'; PERFORM pg_advisory_xact_lock(77)", 'dead 55P03'),
    'serialization failure once': ("IF nextval('conflicts') < 4 THEN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END IF", 'handled 1'),
    'deadlock once': ("IF nextval('deadlocks') < 4 THEN RAISE EXCEPTION 'no' USING ERRCODE = '40P01'; END IF", 'handled 1'),
    'fails once': ("IF m.attempt = 1 THEN RAISE EXCEPTION 'once'; END IF", 'handled 2'),
    'catches every error': ("BEGIN PERFORM 1 / 0; EXCEPTION WHEN others THEN NULL; END", 'handled 1'),
    'COMMIT': ("COMMIT", 'dead 2D000'),
    'PREPARE TRANSACTION': ("EXECUTE 'PREPARE TRANSACTION ''x'''", 'dead 0A000'),
    'LISTEN': ("LISTEN something", 'dead 0A000'),
    'DROP EXTENSION': ("DROP EXTENSION mq CASCADE", 'dead'),
    'temporary table': ("CREATE TEMP TABLE leaked (n int)", 'handled 1'),
    'SET': ("SET work_mem = '77MB'; SET ROLE client; RESET ROLE; SET search_path = pg_temp, public; SET statement_timeout = '7 ms'; SET statement_timeout = 0", 'handled 1'),
    'session lock': ("PERFORM pg_advisory_lock(4711)", 'handled 1'),
    'deferred constraint': ("INSERT INTO deferred VALUES (1), (1)", 'dead 23505'),
    'FATAL': ("PERFORM pg_terminate_backend(pg_backend_pid())", 'dead'),
}


@kind(4, 'handlers that end in every way', channels={'outcomes', 'looks'}, health={'workers succeed', 'handlers succeed'}, log=[r'terminating connection', r'WARNING: .*no transaction in progress', r'terminating background worker', r'canceling statement'],
      charges=set())
def outcomes(run):
    branches = '\n'.join("WHEN '%s' THEN %s;" % (name, code) for name, (code, _) in OUTCOMES.items())
    schema = ('CREATE TABLE checked (n int CHECK (n > 0))', 'CREATE TABLE deferred (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)',
              'CREATE SEQUENCE conflicts', 'CREATE SEQUENCE deadlocks', 'CREATE TABLE leaks (what text)',
              """CREATE FUNCTION end_somehow(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
                 BEGIN
                   INSERT INTO leaks SELECT 'a setting' WHERE current_setting('work_mem') = '77MB' OR current_setting('search_path') LIKE '%%pg_temp%%';
                   INSERT INTO leaks SELECT 'a role' WHERE current_user <> 'postgres';
                   INSERT INTO leaks SELECT 'isolation' WHERE current_setting('transaction_isolation') <> 'read committed' OR current_setting('transaction_read_only') = 'on';
                   CASE m.payload_json ->> 'do'
                   %s
                   ELSE NULL;
                   END CASE;
                   PERFORM leave(m, 'handled', clock_timestamp());
                 END $$""".replace('%%', '%') .replace('%s', branches),
              """CREATE FUNCTION look(m mq_message) RETURNS void LANGUAGE plpgsql AS $$
                 BEGIN
                   INSERT INTO leaks SELECT 'a temporary table' WHERE to_regclass('pg_temp.leaked') IS NOT NULL;
                   INSERT INTO leaks SELECT 'a lock' FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND pid = pg_backend_pid();
                   INSERT INTO leaks SELECT 'LISTEN' FROM pg_listening_channels();
                   PERFORM leave(m, 'handled', clock_timestamp());
                 END $$""",
              "SELECT mq_register_handler('outcomes', 'end_somehow(mq_message)', max_backoff => '100 ms', timeout => '2 s')",
              # Another transaction than what has left something: the channel of its own has one message to a transaction.
              "SELECT mq_register_handler('looks', 'look(mq_message)', batch_size => 1)")
    world = run.world(schema=schema, load=False)
    server = world.server
    # What the run's own sessions have, and nobody else's.
    server.options[world.database] = r'-c default_transaction_isolation=read\\ committed -c default_transaction_read_only=off -c statement_timeout=0'
    world.aim()
    server.forget(world.database)
    for setting in ("default_transaction_isolation = 'serializable'", 'default_transaction_read_only = on', "statement_timeout = '1ms'"):
        server.sql('postgres', 'ALTER ROLE postgres IN DATABASE %s SET %s' % (world.database, setting))
    world.begin_load()
    blocker = server.connect(world.database)
    run.undo.append(blocker.close)
    blocker.execute('SELECT pg_advisory_lock(77)')
    for pid in server.workers(world.database):
        server.sql('postgres', 'SELECT pg_terminate_backend(%s)', pid)
    messages = {name: message('outcomes', {'do': name}, retries=1) for name in OUTCOMES}
    good = [message('outcomes', {'do': 'nothing', 'n': n}) for n in range(len(OUTCOMES))]
    names = list(messages)
    for start in range(0, len(names), 3):
        world.send([one for name, fine in zip(names[start:start + 3], good[start:start + 3]) for one in (fine, messages[name])], '50 ms')
        world.send([message('looks', {})])
    wait_until(lambda: world.value("SELECT count(*) FROM mq_msgs WHERE channel_name = 'outcomes'") == 0, 120, 'each of the messages ends')
    for name, one in messages.items():
        expected = OUTCOMES[name][1]
        got = world.value("""SELECT COALESCE((SELECT 'dead ' || sqlstate FROM mq_dead WHERE id = %s AND reason = 'exhausted' AND attempts_made = 2),
                                             (SELECT string_agg('handled ' || attempt, ' and ') FROM effects WHERE id = %s), 'nothing')""", one['id'], one['id'])
        run.expect(got.startswith(expected), '%s: %s, not %s' % (name, got, expected))
    fine = world.value('SELECT count(*) FROM effects WHERE id = ANY (%s::uuid[])', [one['id'] for one in good])
    run.expect(fine == len(good), 'of %d messages beside those %d took effect' % (len(good), fine))
    run.expect(world.value('SELECT count(*) FROM pg_extension WHERE extname = %s', 'mq') == 1, 'the extension is there')
    leaks = [row[0] for row in world.sql('SELECT DISTINCT what FROM leaks')]
    run.expect(not leaks, 'left behind for the next message: %s' % leaks)
    world.drain()


@kind(5, 'handlers and roles dropped and replaced in flight', errors=set(), health={'handlers succeed'}, log=[])
def dropped(run):
    schema = ("CREATE FUNCTION mine(m mq_message) RETURNS void LANGUAGE sql AS $$ SELECT leave(m, 'handled', clock_timestamp()) $$",
              "DO $$ BEGIN CREATE ROLE passing LOGIN SUPERUSER; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
              "SELECT mq_register_handler('all news', 'mine(mq_message)', max_backoff => '200 ms')",
              "SELECT mq_register_handler('some news', 'work(mq_message)', run_as => 'passing')")
    world = run.world(schema=schema)
    changes = [
        ('its function is dropped', 'all news', 'DROP FUNCTION mine(mq_message)', "handlers' functions",
         "CREATE FUNCTION mine(m mq_message) RETURNS void LANGUAGE sql AS $$ SELECT leave(m, 'handled', clock_timestamp()) $$"),
        ('its function gets another signature', 'all news', "DROP FUNCTION mine(mq_message); CREATE FUNCTION mine(n int) RETURNS void LANGUAGE sql AS ''", "handlers' functions",
         "CREATE FUNCTION mine(m mq_message) RETURNS void LANGUAGE sql AS $$ SELECT leave(m, 'handled', clock_timestamp()) $$"),
        ('its role is dropped', 'some news', 'DROP ROLE passing', "handlers' roles",
         "CREATE ROLE passing LOGIN SUPERUSER; SELECT mq_register_handler('some news', 'work(mq_message)', run_as => 'passing')"),
        ('its channel is unregistered', 'kept', "SELECT mq_unregister_handler('kept')", None,      # a consumer outside may take its messages
         "SELECT mq_register_handler('kept', 'work(mq_message)', max_backoff => '200 ms', keep => '1 hour')"),
    ]
    for what, channel, change, check, mend in changes:
        time.sleep(0.7)
        world.sql(change)
        named = lambda: world.value('SELECT count(*) FROM mq_health() WHERE "check" = %s AND NOT ok', check)
        if check:
            wait_until(named, 10, '%s: mq_health() says so under %s' % (what, check))
        time.sleep(0.5)
        dead = world.value("SELECT count(*) FROM mq_dead WHERE channel_name = %s AND reason <> 'discarded' AND reason <> 'cancelled' AND reason <> 'expired' AND sqlstate NOT IN ('MQF01', 'MQ002')", channel)
        run.expect(dead == 0, '%s: %d messages are dead' % (what, dead))
        world.sql(mend)
    world.drain()
