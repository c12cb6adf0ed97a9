// Policy: what becomes of a message whose attempt failed.
#pragma once

#include "ports.hpp"

namespace mq {

// Adds the failed attempt to the settlement: recorded, and tried again after its backoff or buried. What expires
// before its retry comes up for its burial then.
// `handler` may be nullptr: no handler matched the name.
void settle_failure(const Failure& failure, const Handler* handler, Micros now, double dice, Settlement& settlement);

// Whether mq_failures keeps the failure of an attempt for good: of the first ones, and of those at powers of two.
// Others are kept until the next attempt fails.
bool keeps_failure(int attempt);

inline constexpr int kMostConflicts = 10;  // 40001 and 40P01 in a row before an attempt is charged

// Whether calls in one transaction may have caused it for each other: what is unique by now() or the transaction's id,
// objects that end with the transaction, and the like.
bool may_come_of_company(const Error& error);

inline constexpr int kMostCrashes = 2;  // of the server that are proven to be a message's, then it is dead

// Adds an attempt that never came to an end. `crashes` were before it.
void settle_casualty(const Claimed& message, const Casualty& casualty, int crashes, const Handler* handler, Micros now,
                     double dice, Settlement& settlement);

// Adds what a handler wished for its message.
void settle_wish(const Claimed& message, const Wish& wish, bool block_on_dead, Micros now, Settlement& settlement);

}  // namespace mq
