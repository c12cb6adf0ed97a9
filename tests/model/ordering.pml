/*
 * The race of docs/internals/ordering.md: A appends behind the tail of an ordered channel, while D1 removes its head and D2
 * the message behind that. Each of them commits or rolls back. Then the first message that is left has to be the head, or
 * become it by the next claim.
 *
 * Messages are numbered by their position; 0 and 1 are there at the beginning, 2 is what A appends. A lock stands for
 * what a transaction has done to a row: it ends with the transaction. A snapshot is taken with each statement, so finding
 * a row and locking it are two steps.
 *
 * Each of these makes it wrong, and must be found:
 * variants: NO_LOOK NO_NOTE_OF_REMOVER FORGETS_LOCKED HEAD_BY_SNAPSHOT
 *   NO_LOOK              A does not look at the tail before its COMMIT, as the first version did
 *   NO_NOTE_OF_REMOVER   only A notes, by a flag at its own message: the version before mq_headless
 *   FORGETS_LOCKED       a claim forgets a note although it could not lock the message
 *   HEAD_BY_SNAPSHOT     D asks its old snapshot whether it removes the head, not the row that it has waited for
 */
#define N 3
#define NOBODY 0
#define A 1
#define D1 2
#define D2 3
#define CLAIM 4

bool there[N];          /* committed */
bool head[N];           /* committed */
bool removed[N];        /* by the holder of the lock */
bool made_head[N];      /* by the holder of the lock */
byte holder[N];         /* who has the row locked */
bool shared_by_a[N];    /* FOR KEY SHARE, at A's COMMIT: a removal waits for that */
bool inserted;          /* message 2, by A, which is in progress */
bool inserted_head;
byte noted;             /* committed: the rows of mq_headless */
byte ended;             /* how many of A, D1 and D2 have ended */

/* The first message that `who` sees; N: there is none. */
inline find_first(who, f) {
  atomic {
    f = 0;
    do
    :: f == N -> break
    :: f < N && there[f] && !(removed[f] && holder[f] == who) -> break
    :: f == 2 && inserted && who == A -> break
    :: else -> f++
    od
  }
}

/* Makes message f the head, without waiting; else `failed`. */
inline link_or_fail(who, f, failed) {
  atomic {
    failed = false;
    if
    :: f == N
    :: f < N && f == 2 && inserted && who == A -> inserted_head = true
    :: f < N && !(f == 2 && inserted && who == A) && there[f] && (holder[f] == NOBODY || holder[f] == who) ->
       holder[f] = who; made_head[f] = true
    :: else -> failed = true
    fi
  }
}

inline finish(who, commits, notes) {
  d_step {
    i = 0;
    do
    :: i < N ->
       if
       :: holder[i] == who ->
          if
          :: commits && removed[i] -> there[i] = false; head[i] = false
          :: commits && !removed[i] && made_head[i] -> head[i] = true
          :: else
          fi;
          removed[i] = false; made_head[i] = false; holder[i] = NOBODY
       :: else
       fi;
       if
       :: who == A -> shared_by_a[i] = false
       :: else
       fi;
       i++
    :: else -> break
    od;
    if
    :: commits && notes -> noted++
    :: else
    fi;
    if
    :: who == A && commits && inserted -> there[2] = true; head[2] = inserted_head
    :: else
    fi;
    if
    :: who == A -> inserted = false
    :: else
    fi;
    ended++;
    i = 0
  }
}

proctype Appender() {
  byte i, f, tail;
  bool failed, notes, locked;
  /* INSERT: it sees what is committed. */
  atomic {
    if
    :: there[1] -> tail = 1
    :: !there[1] && there[0] -> tail = 0
    :: else -> tail = N
    fi;
    inserted = true; inserted_head = (tail == N)
  }
  if
  :: true -> finish(A, false, false); goto done      /* ROLLBACK */
  :: true
  fi;
#ifndef NO_LOOK
  if
  :: tail < N ->
     atomic {
       locked = there[tail] && holder[tail] == NOBODY;
       shared_by_a[tail] = locked
     }
     if
     :: !locked ->
        find_first(A, f);
        link_or_fail(A, f, failed);
        notes = failed
     :: else
     fi
  :: else
  fi;
#endif
  finish(A, true, notes);
done: skip
}

proctype Remover(byte who; byte mine) {
  byte i, f;
  bool failed, notes, was_head, seen_head;
  seen_head = head[mine];
  /* DELETE waits for whoever has the row, and for A's COMMIT. */
  atomic {
    (holder[mine] == NOBODY && !shared_by_a[mine]) ->
    holder[mine] = who; removed[mine] = true;
#ifdef HEAD_BY_SNAPSHOT
    was_head = seen_head
#else
    was_head = head[mine]
#endif
  }
  if
  :: was_head ->
     find_first(who, f);
     link_or_fail(who, f, failed);
#ifndef NO_NOTE_OF_REMOVER
     notes = failed
#endif
  :: else
  fi;
  if
  :: true -> finish(who, true, notes)
  :: true -> finish(who, false, false)
  fi
}

/* Claims begin with the note. They may come at any time; one comes at the end. */
proctype Claimer() {
  byte i, f, times, notes;
  bool failed, last;
  do
  :: times < 2 || ended == 3 ->
     atomic { last = (ended == 3); notes = noted }
     times++;
     if
     :: notes > 0 ->
        find_first(CLAIM, f);
        atomic {
          link_or_fail(CLAIM, f, failed);
          if
#ifndef FORGETS_LOCKED
          :: failed
#endif
          :: else -> noted = noted - notes      /* those that it has seen */
          fi;
          if
          :: f < N && !failed -> head[f] = true; made_head[f] = false; holder[f] = NOBODY
          :: else
          fi
        }
     :: else
     fi;
     /* What it delivers is the first. */
     atomic {
       i = 0;
       do
       :: i < N ->
          if
          :: there[i] && head[i] -> assert((i < 1 || !there[0]) && (i < 2 || !there[1])); break
          :: else -> i++
          fi
       :: else -> break
       od
     }
     if
     :: last ->
        find_first(CLAIM, f);
        assert(f == N || head[f]);
        break
     :: else
     fi
  :: else -> (ended == 3)
  od
}

init {
  atomic {
    there[0] = true; head[0] = true; there[1] = true;
    run Appender(); run Remover(D1, 0); run Remover(D2, 1); run Claimer()
  }
}
