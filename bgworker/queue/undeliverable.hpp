// Undeliverable: which claimed messages cannot be handed to a handler, and what becomes of them.
// Pure functions; all that claim call them.
#pragma once

#include "queue/settlement.hpp"

namespace mq {

// SQLSTATE and error of a dead letter whose last lease, of an outside consumer, ran out. The server uses no
// class MQ, but a handler or consumer may give any SQLSTATE.
inline constexpr const char* kLeaseRanOut = "MQ001";
inline constexpr const char* kLeaseRanOutText = "lease of the last attempt ran out";

bool is_deliverable(const Claimed& message, Micros now);
// Settles what cannot be delivered. Two-phase messages that were not committed in time are removed.
// A message whose leased call is gone is due again, without its charge, if it has not expired. The
// others become dead letters.
void settle_undeliverable(const Batch& undeliverable, Micros now, Settlement& settlement);
void dead_letter_expired(const Claimed& message, Settlement& settlement);

}  // namespace mq
