/*
 * The first race of docs/internals/prerequisites.md: the message d waits for p0 and p1, and two transactions end them. Each
 * commits or rolls back. At the end d has to be due if both are gone, and must not be due before.
 *
 * variants: NO_DIRTY_LOOK LOOKS_FIRST NO_NOTE FORGETS_OPEN
 *   NO_DIRTY_LOOK   looks for other rows of d with a snapshot, which does not show what is being removed
 *   LOOKS_FIRST     looks before it has removed its own row
 *   NO_NOTE         does not note what it cannot tell
 *   FORGETS_OPEN    a claim forgets the note while the other transaction is in progress
 */
#define THERE 0
#define BEING_REMOVED 1
#define GONE 2

byte row[2] = THERE;       /* (d, p): what d waits for */
bool noted[2];             /* committed notes about the pair */
bool due;                  /* committed */
bool due_by[2];            /* by a transaction in progress, which has d locked */
byte ended;

proctype Ender(byte mine) {
  byte other = 1 - mine;
  byte seen;
  bool notes;
#ifdef LOOKS_FIRST
  seen = row[other];
  row[mine] = BEING_REMOVED;
#else
  row[mine] = BEING_REMOVED;
  seen = row[other];
#endif
#ifdef NO_DIRTY_LOOK
  if
  :: seen == BEING_REMOVED -> seen = THERE
  :: else
  fi;
#endif
  if
  :: seen == GONE -> due_by[mine] = true          /* nothing is left: d is due when this commits */
  :: seen == BEING_REMOVED ->
#ifndef NO_NOTE
     notes = true
#else
     skip
#endif
  :: seen == THERE                                /* who ends that one looks later */
  fi;
  atomic {
    if
    :: true ->
       row[mine] = GONE;
       noted[other] = noted[other] || notes;
       due = due || due_by[mine]
    :: true -> row[mine] = THERE
    fi;
    due_by[mine] = false;
    ended++
  }
}

/* A claim looks again at what is noted: the row that a note names, and whether another one is left. */
proctype Claimer() {
  byte times, i;
  bool last;
  do
  :: times < 2 || ended == 2 ->
     atomic {
       last = (ended == 2);
       times++;
       i = 0;
       do
       :: i < 2 ->
          if
          :: noted[i] && row[i] == BEING_REMOVED ->
#ifdef FORGETS_OPEN
             noted[i] = false
#else
             skip
#endif
          :: noted[i] && row[i] == THERE -> noted[i] = false
          :: noted[i] && row[i] == GONE && row[1 - i] == BEING_REMOVED -> skip
          :: noted[i] && row[i] == GONE && row[1 - i] == THERE -> noted[i] = false
          :: noted[i] && row[i] == GONE && row[1 - i] == GONE -> noted[i] = false; due = true
          :: else
          fi;
          i++
       :: else -> break
       od;
       assert(!due || (row[0] == GONE && row[1] == GONE))
     }
     if
     :: last -> assert(due == (row[0] == GONE && row[1] == GONE)); break
     :: else
     fi
  :: else -> (ended == 2)
  od
}

init { atomic { run Ender(0); run Ender(1); run Claimer() } }
