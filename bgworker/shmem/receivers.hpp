// Receivers: the sessions that wait in mq_receive, so that a commit wakes as many of them as it has
// messages, and no more. api/receiving.cpp has a Receiver for each call that waits; the commit
// actions and the utility hook wake.
//
// A table in shared memory with a lock of its own, receivers_lock. The number of receivers of a
// database is an atomic: where it is 0 a commit does nothing more.
//
//   1. The receiver enters the table, then looks for messages with a new snapshot, then sleeps. So
//      a commit either finds it in the table, or is seen by its look.
//   2. A commit wakes one receiver for each message that is due, of those that want the channel name
//      and have not been woken since their last look. One that has will look anyway.
//   3. A woken receiver looks. If it leaves without (it is cancelled, or its client is gone), the
//      wake-up goes to another.
//   4. Receivers with the same channel names are a group. One of them is its keeper: it alone has a
//      timer for what is due next, and looks each mq.poll_interval whatever happens. A commit of a
//      message that is due earlier wakes it. When it leaves, the role goes to another, which looks.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "pg/types.hpp"

namespace mq::shared {

class Receiver {
 public:
  // Enters the table. `names`: channel_key() of each channel name and no arguments; none: all names.
  // `batch_size`: how many messages one look takes at most. Needs shared memory.
  Receiver(const std::optional<std::vector<std::int64_t>>& names, int batch_size);
  // Leaves. Hands on what others rely on it for.
  ~Receiver();
  Receiver(const Receiver&) = delete;
  Receiver& operator=(const Receiver&) = delete;

  // False: there is no room, or this process has entered another one; the caller polls.
  bool entered() const { return entered_; }
  bool is_keeper() const;
  // Before a look: wake-ups that come from here on are for a later look.
  void begin_look();
  // After a look that has found nothing. `due`: when this receiver looks again by itself. False: it
  // was woken since begin_look(), and looks again at once.
  bool may_sleep(Micros due);
  bool is_alone() const;  // no other session of the database waits; cheap
  // The look has found messages, and more of these names are due: wakes another receiver for each.
  void leave_more(const std::vector<std::int64_t>& names);

 private:
  bool entered_ = false;
};

// Whether any session waits in mq_receive in this database; cheap.
bool any_receivers();
// `messages` of the channel name are due at `due`, as this process has committed: wakes receivers,
// or, where that is later than now, those that keep time.
void wake_receivers(std::int64_t name_key, Micros due, Micros now, std::int64_t messages);
// Anything may have changed: handlers, pauses, the extension. Wakes all receivers of the database.
void wake_all_receivers();

}  // namespace mq::shared
