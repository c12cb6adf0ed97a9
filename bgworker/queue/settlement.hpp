// Settlement: what is to happen to the messages of a batch.
//
// Workers and leased handlers fill it (handlers/policy.cpp), and settle_undeliverable() (claim.hpp)
// does; settle() carries it out (settle.hpp). It is data of this process; its pointers are into
// the batch, which must outlive it. Times are microseconds.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "pg/error.hpp"
#include "queue/message.hpp"

namespace mq {

struct Failure {
  const Claimed* message;
  Error error;
  std::optional<Micros> duration = 0;  // of the handler; none: unknown
  bool crash = false;                  // the attempt is proven to have crashed the server
};

// A failed message that is to be tried again. The attempt counts.
struct Retry {
  const Claimed* message;
  Micros attempt_at;
  Micros retry_backoff;  // of the row from then on, for the next failure
};

struct DeadLetter {
  const Claimed* message;
  std::string reason;          // 'expired', 'exhausted', 'discarded', 'crashed', 'cancelled'
  std::optional<Error> error;  // none: the message's last failure is taken from mq_failures
  // If ordered, its channel waits until the message is redriven or its dead letter is deleted.
  bool block = false;
  bool charged = true;               // the attempt that just ended counts
  bool block_as_registered = false;  // `block` is looked up in mq_handlers (on_dead)
};

// A message that is due again at `attempt_at`, without an attempt counted.
struct Snooze {
  const Claimed* message;
  Micros attempt_at;
};

// A message that was handled, for the statistics and for mq_done.
struct Handling {
  const Claimed* message;
  Micros waited;  // how long it was due before the call
  Micros took;    // the message's share of the call's duration
  // If it is kept (mq_done): for how long, when the call began and ended, and what it returned for the
  // message (jsonb; nullptr: nothing).
  std::optional<Micros> keep = std::nullopt;
  Micros started = 0;
  Micros ended = 0;
  const void* result = nullptr;
};

// A message that a consumer outside has handled, for the same. How long that took is unknown.
struct Consumption {
  const Claimed* message;
  std::optional<Micros> keep = std::nullopt;  // as in Handling, and so is the result
  const void* result = nullptr;
};

struct Settlement {
  std::vector<const Claimed*> removed;  // handled, or two-phase and not committed in time
  std::vector<Handling> handled;        // those of `removed` that the statistics count
  std::vector<Consumption> consumed;    // those that a consumer outside has handled
  std::vector<Retry> retries;
  std::vector<Snooze> snoozes;
  std::vector<DeadLetter> dead_letters;
  std::vector<Failure> failures;  // to be recorded in mq_failures
  // No handler takes their name: they wait, uncharged, until one is registered that does.
  std::vector<const Claimed*> unhandled;
};

// Whether mq_failures keeps the failure of this attempt (counted from 1) when the next one fails:
// the first five, and those at powers of two. The others give way to the failure after them.
bool keeps_failure(int attempt);

}  // namespace mq
