// Sweep: what time and people leave behind, cleared in bounded steps by idle workers, by mq_run, and (the
// repair) by mq_poll before it says that there is nothing.
#pragma once

#include <string>
#include <vector>

#include "../message.hpp"
#include "claim_source.hpp"

namespace mq {

// Messages that were due when they were sent, and are not since the clock was set back, are due again: up to a hundred
// heads of each of the channel names. What was scheduled, tried or leased waits for its time. True: there were some.
// Needs an OwnerScope and an SPI connection.
bool follow_clock(const std::vector<std::string>& channel_names, Micros now);

// Expired messages, two-phase ones that nobody committed, last attempts whose lease ran out, retention, orphan
// payloads, messages that a handler takes by now, and the repair. Within the current transaction and SPI connection, as
// all here, and not in an OwnerScope: triggers that are deferred run. Throws only what ends a statement (class 57).
Host::Swept sweep(Transaction& transaction, SqlClaimSource& source, Micros now);

// A step of the first of these alone. True: there were some.
bool bury_expired(Transaction& transaction, SqlClaimSource& source, Micros now);

// People delete from mq_msgs by hand. The first message of each ordered channel must be its head: looks at the
// next few hundred channels, after those of the call before, and puts right what it finds.
bool repair_heads();

}  // namespace mq
