// Policy: what becomes of a message whose attempt failed, was aborted, or was snoozed or discarded.
//
// The worker's loop and mq_run (worker/loop.cpp), leased handlers (leased/) and mq_snooze and
// mq_discard of leased calls (api/outcome.cpp) call these. They are pure: they add to a settlement,
// and read no clock. `now` is the current time, `random` is in [0, 1).
#pragma once

#include "handlers/registry.hpp"
#include "queue/disposition.hpp"
#include "queue/settlement.hpp"
#include "shmem/aborted_call.hpp"

namespace mq {

// Adds the failed attempt: it is recorded, and the message is retried after its backoff, or
// dead-lettered if it has expired or has no attempt left. A message that expires before its retry
// is due when it expires, and dead-lettered then. `handler` nullptr: no handler takes the name.
// `retry_in`: the wait before the retry in place of the backoff.
void settle_failure(const Failure& failure, const Handler* handler, Micros now, double random, Settlement& settlement,
                    std::optional<Micros> retry_in = {});

// So many errors 40001 or 40P01 in a row charge a message no attempt.
inline constexpr int kMostConflicts = 10;

// Whether the error may come of calls sharing a transaction: they have the same now() and
// transaction id, which may have to be unique, objects that end with the transaction, and so on.
bool may_come_of_sharing(const Error& error);

// So many crashes of the server that are proven to be a message's make it a dead letter.
inline constexpr int kMostCrashes = 2;

// Adds the attempt of an aborted call. `crashes` are proven to be the message's before this one.
void settle_aborted_call(const Claimed& message, const AbortedCall& aborted_call, int crashes, const Handler* handler,
                         Micros now, double random, Settlement& settlement);

// Adds what the handler asked for. `block_on_dead`: a discarded message blocks its ordered channel.
void settle_disposition(const Claimed& message, const Disposition& disposition, bool block_on_dead, Micros now,
                        Settlement& settlement);

// How long a message is kept once the handler has handled it; none: not at all.
inline std::optional<Micros> keep_of(const Claimed& message, const Handler& handler) {
  return message.keep ? message.keep : handler.keep;
}

}  // namespace mq
