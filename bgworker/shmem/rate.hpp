// Rate: how many calls may begin, so many in each interval (mq_limit). Virtual scheduling (GCRA, ITU-T I.371).
// Pure; channel_use.cpp keeps what it remembers in shared memory, under locks.
//
// Calls have slots, one each `interval`. A call may begin up to kTolerance before its slot, so that a worker
// that wakes late does not lose slots. So in each span of time of length w at most w / interval calls begin,
// and those of kTolerance, and one.
//
// With a rate per channel_args each message that cannot begin gets a slot of its own, behind those that are
// given away, and is put off to that. When it comes it asks again, since calls that were late may have taken
// its time.
#pragma once

#include <cstdint>

#include "pg/types.hpp"

namespace mq {

// Nanoseconds since the server's epoch: a rate may be more than one call a microsecond.
using Nanos = std::int64_t;
inline constexpr Nanos kNanos = 1000;  // of a microsecond

// What is remembered of one channel name, or of one channel. Zeroed memory: nothing.
struct RateState {
  Nanos next;  // the slot of the next call
  Nanos free;  // the first slot behind those that messages have been put off to; 0: none has
};

struct Rate {
  static constexpr Micros kTolerance = kSecond / 10;
  // A worker comes so much before the slot of the first call: it may be as late without losing one, and
  // several calls of a fast rate share a wake-up.
  static constexpr Micros kAhead = kTolerance / 2;

  Nanos interval;  // between two slots

  static Rate of(int calls, Micros per);

  // No call can have left a slot that is further ahead than this. It may be, after the clock was set back, or with
  // another rate: then the furthest that is possible takes its place. Before all of the others.
  bool is_too_far(const RateState& state, Micros now) const;
  void tighten(RateState& state, Micros now) const;
  // How many calls may begin now: none before ready_at().
  int ready(const RateState& state, Micros now) const;
  Micros ready_at(const RateState& state) const;
  // Begins up to so many calls, as many as may begin; returns how many.
  int take(RateState& state, Micros now, int calls) const;

  // For a rate per channel_args. Whether a message may begin now, of which `before` others begin first.
  // `waited`: it was put off, and has come back; others wait for those that have a slot.
  bool may_begin(const RateState& state, Micros now, int before, bool waited) const;
  // Gives a message a slot of its own; returns when it is to come back, after now. `before` as above.
  Micros put_off(RateState& state, Micros now, int before) const;
  // The last message that has a slot comes back at `last` (none has one: 0). Frees the slots behind it, which
  // messages had that are gone.
  void free_behind(RateState& state, Micros last) const;
  // Whether the slots that are given away go on for so long that it is worth looking whether the messages
  // are still there.
  bool is_worth_a_look(const RateState& state, Micros now) const;
};

}  // namespace mq
