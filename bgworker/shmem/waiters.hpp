// Waiters: the sessions that wait in mq_wait or mq_call for messages to end, so that a commit that ends
// messages wakes those that wait for them, and nobody else. api/waiting.cpp has a Waiter for each call that
// waits; the commit actions and the utility hook wake.
//
// A table in shared memory, hashed by the id of the message, with a lock of its own, waiters_lock. A
// waiter waits for one message at a time. The number of waiters of a database is an atomic: where it is
// 0 a commit does nothing more.
//
//   1. The waiter names the message, then looks at it with a new snapshot, then sleeps. So a commit
//      either finds it in the table, or is seen by its look.
//   2. A commit that has ended the message wakes it.
//   3. A woken waiter looks. If other messages that it waits for are pending, it names one of those.
#pragma once

#include <cstdint>
#include <span>

#include "pg/types.hpp"

namespace mq::shared {

class Waiter {
 public:
  Waiter() = default;
  // Leaves the table.
  ~Waiter();
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;

  // Waits for this message from now on, and for no other. False: there is no shared memory or no room in
  // it, or this process has another Waiter; the caller polls.
  bool watch(const Uuid& message);
  // Before a look: wake-ups that come from here on are for a later look.
  void begin_look();
  // After a look that has found the message pending. False: it was woken since begin_look(), and looks
  // again at once.
  bool may_sleep();

 private:
  bool entered_ = false;
};

// Whether any session waits for messages of this database; cheap.
bool any_waiters();
// These messages have ended, as this process has committed.
void wake_waiters(std::span<const Uuid> messages);
// Any message may have ended, or the extension is gone. Wakes all waiters of the database.
void wake_all_waiters();

}  // namespace mq::shared
