// Maintenance: the sweep, which clears and repairs in bounded steps.
//
// Workers and CALL mq_run call sweep() through ServerHost; workers call dead_letter_expired() more
// often. mq_poll calls follow_clock() and repair_heads() before it says that nothing is due. The
// state is only this process's: the positions at which the last steps ended.
//
// All functions run in the current transaction and SPI connection. Times are µs.
#pragma once

#include <string>
#include <vector>

#include "pg/transaction.hpp"
#include "queue/effort.hpp"
#include "queue/message.hpp"
#include "queue/swept.hpp"

namespace mq {

// Makes messages due again that were due when they were sent, and are not since the clock was set
// back. Looks at up to 100 heads of each channel name. Leaves alone messages that were scheduled,
// tried or leased. True: it made some due. Needs an OwnerScope.
bool follow_clock(const std::vector<std::string>& channel_names, Micros now);

// Makes one round: settles expired messages, two-phase messages not committed in time and messages
// whose last lease ran out; applies retention; makes messages
// due that a handler takes by now; repairs heads; rolls up stats deltas. Not in an OwnerScope,
// since it runs deferred triggers. A step that fails does not stop the others. Throws only class 57
// (cancel, shutdown).
Swept sweep(Transaction& transaction, Micros now);

// Settles up to 500 expired messages. True: there were some.
bool dead_letter_expired(Transaction& transaction, Micros now);

// Makes the first message of each ordered channel its head, where a user deleted the head by hand.
// Looks at as many channels as the effort goes, and goes on from there at the next call. True: it made
// some the head. Needs an OwnerScope.
bool repair_heads(Effort effort);

}  // namespace mq
