/*
 * Why nobody waits in that race (docs/internals/ordering.md, invariant 3): two handlers, each of which removes the message of
 * its own channel and appends to the other one's. If an append waited for the transaction that removes the tail, both would
 * wait for ever.
 *
 * variants: WAITS
 *   WAITS   before its COMMIT an append waits until the tail is free, in place of noting the channel
 */
bool locked_by[2];    /* the tail of channel n, by handler n */
bool noted[2];

proctype Handler(byte own) {
  byte other = 1 - own;
  locked_by[own] = true;        /* claims its message, and removes it at the end */
  /* it appends to the other channel, and comes to its COMMIT */
#ifdef WAITS
  (!locked_by[other]);
#else
  if
  :: locked_by[other] -> noted[other] = true
  :: else
  fi;
#endif
  locked_by[own] = false
}

init { atomic { run Handler(0); run Handler(1) } }
