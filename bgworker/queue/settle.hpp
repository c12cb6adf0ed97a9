// Settle: carries out what is to become of messages: removes, retries, snoozes and dead-letters them.
// Nothing else does, but for removal.hpp.
//
// Workers, mq_run, mq_poll, leased handlers, mq_snooze, mq_discard, deduplication and the sweep use it.
// It owns no state: row locks hold the messages, and the commit actions get wake-ups, marks and row
// counts.
#pragma once

#include "queue/settlement.hpp"

namespace mq {

// Carries out the settlement. Each ordered channel whose head it removes gets its next head. Needs an
// SPI connection. Throws 27000 where a trigger, rule or policy keeps rows as they are, and, in a
// worker's own settling, 55P03 where other sessions have locked rows or a table. Where it was rows
// (row_locks::was_held()), no message is to be charged, and the next claims pass over those.
void settle(const Settlement& settlement);

}  // namespace mq
