// Policy: what becomes of a message whose attempt failed.
#pragma once

#include "ports.hpp"

namespace mq {

// Adds the failed attempt to the settlement: recorded, and tried again after its backoff or buried.
// `handler` may be nullptr: no handler matched the name.
void settle_failure(const Failure& failure, const Handler* handler, Micros now, double dice, Settlement& settlement);

}  // namespace mq
