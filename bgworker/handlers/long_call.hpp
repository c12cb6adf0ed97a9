// Long calls: a timer (the server's timeouts) over a worker's batch. It costs nothing for each
// message. The host of a worker (worker/process.cpp) sets it; FmgrCaller has a Call for each call
// of a transactional handler, also in mq_run, which has no timer.
//
// 1. kBusyLong after the batch began, the timer marks the worker's slot and wakes the launcher:
//    other workers of the pool should handle what else is due.
// 2. In a batch of several messages the timer then looks every kTick. A call that has lasted
//    kPatience, with other messages claimed with its own, is cancelled. It counts as stopped, not
//    as failed, and runs again exclusively.
//
// The state is of this process only, and shared with its timer's signal handler.
#pragma once

#include "pg/types.hpp"

namespace mq::long_call {

inline constexpr int kBusyLong = 20;  // milliseconds, as are the others
inline constexpr int kTick = 50;
inline constexpr int kPatience = 100;

// For a worker.
void begin_batch(bool several);  // `several`: the batch has more than one message
void end_batch();                // the batch is settled
void disarm();                   // before a wait: the timer must not end it

// A call of a handler. `yields`: other messages are claimed with its own and wait behind it.
class Call {
 public:
  explicit Call(bool yields);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // The handler has returned: withdraws a cancel of the timer that it has not received.
  static void returned();
  // Whether the call has received a cancel of the timer. Withdraws one that it has not received.
  static bool was_stopped();
  // Whether the call waited for a lock when the timer cancelled it.
  static bool waited_for_lock();
};

}  // namespace mq::long_call
