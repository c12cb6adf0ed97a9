// Cancels: running messages that transactions want to cancel (open cancels), and those that were cancelled
// lately. mq_cancel (queue/cancel.cpp) writes both, settling and claims read them (queue/cancel_notes.cpp), and
// so does the signal handler of a process that runs a call (queue/cancel_watch.cpp).
//
// The lock covers the open cancels. How many there are is an atomic, so that nobody takes the lock
// while there are none. With `settling` (callers.hpp) they keep a message from being both handled and
// cancelled, as docs/internals/cancelling.md shows.
//
// What was cancelled goes into a ring, after the commit. An entry is written before the count that covers
// it. Readers take no lock: an entry that is overwritten meanwhile tells of a message that none has.
// Who looks too late to find a message there finds it by its row, or by its note in mq_cancelled.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "pg/postgres.hpp"
#include "pg/types.hpp"

extern "C" {
#include "storage/lock.h"
}

namespace mq::shared {

struct RunningMessage {
  Uuid id;
  std::int64_t seq;
  std::int64_t token;  // of its leased call; 0: none
};

// This transaction wants to cancel the message.
struct Opened {
  enum { kOpened, kOther, kFull, kUnknown } result;  // kUnknown: there is no shared memory
  int number;                                        // kOpened: of the entry
  VirtualTransactionId other;                        // kOther: the transaction that wants to cancel it already
};
Opened open_cancel(const RunningMessage& message);
void close_cancel(int number);

// Whether any transaction, this one as well, has an open cancel.
bool any_open_cancel();
// The other transaction that wants to cancel the message, or an invalid one.
VirtualTransactionId canceller_of(const Uuid& id, std::int64_t seq);

// After the commit: writes the messages to the ring and closes their cancels, at once for those that look
// under the lock. Then interrupts the calls that run for them.
void cancelled(std::span<const RunningMessage> messages, std::span<const int> open);

std::uint64_t cancelled_count();
// Whether the message is among those that were cancelled from number `from` up to `to`. A signal handler
// may call it.
bool is_cancelled(std::uint64_t from, std::uint64_t to, const Uuid& id, std::int64_t seq);

// A call of this database that goes on though mq_cancel has interrupted it.
struct CancelledCall {
  int pid;
  std::string channel_name;  // cut to fit; empty: of a worker, whose worker slot tells
  TimestampTz since;
};
std::vector<CancelledCall> cancelled_calls();

// Whether the leased call that this process runs itself (mq_run) is cancelled. A signal handler may call it.
bool lease_was_cancelled(int number);

}  // namespace mq::shared
