/*
 * The second race of docs/internals/prerequisites.md: S sends d after p, and R ends p. Each commits or rolls back. At the end
 * d is due if p is gone, and has its row if p is pending.
 *
 * variants: SENDER_LOOKS_FIRST ENDER_LOOKS_FIRST NO_NOTE
 *   SENDER_LOOKS_FIRST, ENDER_LOOKS_FIRST   looks at the other before it has done its own part
 *   NO_NOTE                                 neither of them notes what it cannot tell
 */
#define NOT 0
#define COMING 1      /* being inserted */
#define THERE 2
#define GOING 3       /* being removed */
#define GONE 4

byte p = THERE, row = NOT;
bool sent;            /* d is committed */
bool due;
bool noted;
byte ended;

proctype Sender() {
  byte seen;
  bool notes, waits;
  /* What is committed: without p, d is an ordinary message. */
  waits = (p == THERE || p == GOING);
  if
  :: waits ->
#ifdef SENDER_LOOKS_FIRST
     seen = p;
     row = COMING;
#else
     row = COMING;
     seen = p;
#endif
#ifndef NO_NOTE
     notes = (seen != THERE)
#else
     skip
#endif
  :: else
  fi;
  atomic {
    if
    :: true ->
       sent = true;
       if
       :: waits -> row = THERE; noted = noted || notes
       :: else -> due = true
       fi
    :: true -> row = NOT
    fi;
    ended++
  }
}

proctype Ender() {
  byte seen;
  bool notes, removes;
#ifdef ENDER_LOOKS_FIRST
  seen = row;
  p = GOING;
#else
  p = GOING;
  seen = row;
#endif
  if
  :: seen == THERE -> row = GOING; removes = true
  :: seen == COMING ->
#ifndef NO_NOTE
     notes = true
#else
     skip
#endif
  :: else
  fi;
  atomic {
    if
    :: true ->
       p = GONE;
       noted = noted || notes;
       if
       :: removes -> row = NOT; due = true
       :: else
       fi
    :: true ->
       p = THERE;
       if
       :: removes -> row = THERE
       :: else
       fi
    fi;
    ended++
  }
}

proctype Claimer() {
  byte times;
  bool last;
  do
  :: times < 2 || ended == 2 ->
     atomic {
       last = (ended == 2);
       times++;
       if
       :: noted && (p == GOING || row == COMING || row == GOING)     /* somebody is at it: the note stays */
       :: noted && p == THERE && row != COMING && row != GOING -> noted = false
       :: noted && p == GONE && row == THERE -> row = NOT; due = true; noted = false
       :: noted && p == GONE && row == NOT -> noted = false
       :: else
       fi;
       assert(!due || p == GONE)
     }
     if
     :: last -> assert(!sent || due == (p == GONE)); assert(!sent || due || row == THERE); break
     :: else
     fi
  :: else -> (ended == 2)
  od
}

init { atomic { run Sender(); run Ender(); run Claimer() } }
