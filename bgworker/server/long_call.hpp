// Long calls: a timer over a worker's batch, by the server's own timeouts. It costs nothing for each message.
//
// After kSits the worker's seat is marked and the launcher woken: others of the pool should be there for what else is
// due. From then on the timer looks again every kTick. A call that has lasted kPatience while others' messages are
// claimed with it is cancelled; that is no failure of its, and it runs again without company.
#pragma once

#include "../message.hpp"

namespace mq::long_call {

inline constexpr int kSits = 20;  // milliseconds, as are the others
inline constexpr int kTick = 50;
inline constexpr int kPatience = 100;

// For a worker: a batch begins, of one message or several; its handlers have returned, and all is settled; nothing is
// to disturb the wait that follows.
void begin_batch(bool several);
void end_batch();
void disarm();

// A call of a handler. `yields`: others' messages wait behind it.
class Call {
 public:
  explicit Call(bool yields);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // The handler has returned: a cancel that it has not heard of is not meant for what comes next.
  static void returned();
  // Whether it was cancelled for the sake of others, and has heard it.
  static bool was_stopped();
  // Whether it waited for a lock then.
  static bool waited_for_lock();
};

}  // namespace mq::long_call
