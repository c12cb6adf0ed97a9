// Throttle: how many workers may handle a channel at once, and how many messages to a transaction, after its handlers
// have deadlocked with each other or failed to serialize.
//
// Handlers that share a transaction hold each other's row locks for longer than they would alone, and two workers that
// do so stop each other. So after a conflict one worker has the channel for itself, with batches as large as ever: that
// is as fast as one worker alone. If conflicts go on, they are with others, and the batches shrink to one message. Both
// grow again step by step, each time later if the last step brought the conflicts back.
#pragma once

#include <cstdint>

#include "message.hpp"

namespace mq {

inline constexpr Micros kFirstCalm = 5 * kSecond;  // without conflicts, before a limit grows by a step
inline constexpr Micros kLongestCalm = 300 * kSecond;
inline constexpr int kUnthrottled = 1 << 30;

struct Throttle {
  int workers = kUnthrottled;
  int batch = kUnthrottled;
  Micros calm = kFirstCalm;
  Micros grows_at = 0;
  Micros changed_at = 0;

  // A call of a batch that began at `began` has conflicted; the batch had `messages`.
  void conflict(Micros began, Micros now, int messages);
  // Lets the limits grow if it is time; `most_workers` is the database's limit.
  void grow(Micros now, int most_workers);
  bool is_off() const { return workers == kUnthrottled && batch == kUnthrottled; }
};

}  // namespace mq
