// Waiting for messages to end: the loop that mq_wait (waiting.cpp) and mq_call (call.cpp) share. The call
// owns it; its entry in shared memory (shmem/waiters.hpp) ends with it.
//
// It waits for the last message that is pending, and looks at others only when that has ended: messages that
// were sent together end about in the order in which they were sent. So a session is woken once for most waits,
// and needs room for one message in shared memory.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "pg/clock.hpp"
#include "pg/types.hpp"
#include "shmem/waiters.hpp"

namespace mq {

class Wait {
 public:
  // are_pending(), in a transaction or savepoint that is over when it returns: while a session sleeps, it holds
  // no lock and no snapshot of such a look.
  using Look = std::function<std::vector<char>(std::span<const Uuid>)>;

  Wait(Micros timeout, Look look) : look_(std::move(look)), end_(clock_.steady() + timeout) {}

  // Sleeps until none of the messages is pending; true. False: the time is up.
  bool until_ended(std::span<const Uuid> messages);
  bool is_over() { return clock_.steady() >= end_; }
  void extend(Micros by) { end_ = clock_.steady() + by; }

 private:
  bool drop_ended(std::vector<Uuid>& left, std::size_t at_once) const;

  const Look look_;
  ServerClock clock_;
  Micros end_;
  shared::Waiter waiter_;
};

}  // namespace mq
