// Pending: how many messages of each channel name are ready, scheduled and running. For mq_stats.
//
//   ready      due, and nothing in the way of handling it now
//   scheduled  to be handled later: not due, not committed by mq_commit yet, or behind such a one (or one that runs, or
//              is dead and blocks) in its ordered channel
//   running    leased to a consumer outside the server, or held by a worker in its current batch
//
// What is about to be removed by the sweep (expired, or without an attempt left) and what is dead counts as none of
// these.
//
// A small channel is counted by index, up to kSmall rows of a kind. Of a large one the number of all rows is known in
// shared memory (counts.hpp); then the smaller of ready and scheduled is counted, and the other is the rest. All that
// is exact. A look counts no more than kRoom rows of large channels for that; where both sides are larger than what is
// left of it, they share the rows as at the last count, which is then about a minute old, or a thousand times what it
// took.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "../message.hpp"

namespace mq::pending {

struct Channel {
  std::int64_t ready = 0;
  std::int64_t scheduled = 0;
  std::int64_t running = 0;
  std::optional<Micros> oldest_ready;  // since when it has been due
};

using ByChannel = std::map<std::string, Channel, std::less<>>;

// Within the current transaction, SPI connection and OwnerScope; so is the rest.
ByChannel count(Micros now);

// Dead letters by channel name.
std::map<std::string, std::int64_t, std::less<>> count_dead();

// Counts again what was counted long ago, as long as somebody looks; for about 100 ms.
void refresh(Micros now);

}  // namespace mq::pending
