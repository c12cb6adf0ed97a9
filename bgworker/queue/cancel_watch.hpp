// Cancel watch: whether a message of the call that runs in this process has been cancelled. FmgrCaller has one
// around each transactional call, LocalSession one around each leased call of mq_run.
//
// mq_cancel sends SIGINT, at its commit, to the processes whose calls may be concerned (shmem/cancels.hpp). The
// signal handler looks here whether this call is: only then it is cancelled, as by pg_cancel_backend. A
// signal that comes late, or for another message of a batch handler's process, does nothing. So none is
// taken for a user's cancel, nor hits what the worker does between its calls.
//
// The state is of this process only. The signal handler reads it, and sets hit().
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "queue/message.hpp"

namespace mq {

class CancelWatch {
 public:
  // A call with these messages has begun (shared::begin_call()). It is cancelled at once if one of them was since
  // begin_claim().
  explicit CancelWatch(std::span<const Claimed* const> messages);
  // A leased call has begun, by its number in shared memory.
  explicit CancelWatch(int leased_call);
  ~CancelWatch();
  CancelWatch(const CancelWatch&) = delete;
  CancelWatch& operator=(const CancelWatch&) = delete;

  // Whether the call is cancelled by now.
  static bool is_hit();
  // The same, at its end. From here on no signal is taken for it, and one that it has not received is
  // withdrawn.
  bool end();
  // The messages of the call that are.
  std::vector<Uuid> cancelled() const;

  // What is cancelled from now on concerns the messages that are claimed from now on.
  static void begin_claim();
  // Takes SIGINT for cancels from now on, and gives it back to the server.
  static void catch_signals();
  static void release_signals();

 private:
  const std::span<const Claimed* const> messages_;
};

}  // namespace mq
