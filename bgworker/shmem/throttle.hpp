// Throttle: how many workers may handle a channel name at once, and how many of its messages a
// batch may have, after its handlers have deadlocked with each other or failed to serialize. Pure;
// limits.cpp keeps the throttles in shared memory, under State::lock.
//
// Handlers that share a transaction hold their row locks for longer than they would alone, and two
// workers that do so stop each other. So after a conflict one worker has the channel for itself,
// with batches as large as before: that is as fast as one worker alone. If conflicts go on, they
// are with other sessions, and the batches shrink to one message. Both limits grow again step by
// step. A step comes later if the last one brought the conflicts back.
#pragma once

#include <cstdint>

#include "pg/types.hpp"

namespace mq {

inline constexpr Micros kFirstCalm = 5 * kSecond;  // without conflicts, before a limit grows
inline constexpr Micros kLongestCalm = 300 * kSecond;
inline constexpr int kUnthrottled = 1 << 30;  // no limit

// The limits of a channel name for a batch that begins now.
struct Limits {
  int workers;  // at once
  int batch;    // messages
};

struct Throttle {
  int workers = kUnthrottled;
  int batch = kUnthrottled;
  Micros calm = kFirstCalm;
  Micros grows_at = 0;    // when the next step is due; 0: no conflict yet
  Micros changed_at = 0;  // when a limit changed last

  // A call of a batch that began at `began` has conflicted; the batch had so many messages.
  void conflict(Micros began, Micros now, int messages);
  // Lets a limit grow by a step if it is time. `most_workers` is mq.max_workers.
  void grow(Micros now, int most_workers);
  bool is_off() const { return workers == kUnthrottled && batch == kUnthrottled; }
};

}  // namespace mq
