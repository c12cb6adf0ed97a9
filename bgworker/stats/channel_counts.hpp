// Channel counts: how many messages of each channel name are ready, scheduled and running.
//
//   ready      due, and no other message is in its way
//   scheduled  not due, not committed by mq_commit yet, or behind such a message (or a running one,
//              or a dead one that blocks) in its ordered channel
//   running    leased, or in the current batch of a worker
//
// A dead message that blocks its channel counts as none of these, and neither does a head that the
// sweep is about to remove (expired, or without an attempt left).
//
// 1. A small channel name, up to kSmall rows of a kind, is counted by index. This is exact.
// 2. Of a large one the row counts (row_counts.hpp) have the number of rows. The smaller of ready
//    and scheduled is counted, and the other is the rest. This is exact, too.
// 3. A look counts about kRoom rows for that. If both kinds are larger than what is left of kRoom,
//    the rows are divided as at the last count, which is about a minute old, or a thousand times
//    what it took.
//
// mq_stats (api/stats.cpp) calls count() and count_dead(), max_pending (queue/pending_limit.cpp) the others. The file
// owns no state. All functions need a transaction, an SPI connection and an OwnerScope. Times are µs.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "pg/types.hpp"

namespace mq::channel_counts {

struct Channel {
  std::int64_t ready = 0;
  std::int64_t scheduled = 0;
  std::int64_t running = 0;
  std::optional<Micros> oldest_ready;  // when the oldest head became due; none: no message is ready
};

using ByChannel = std::map<std::string, Channel, std::less<>>;

// `cached`, here and below: row counts may be read and written, since this transaction has changed no
// rows. The counts of each channel name that has a head.
ByChannel count(Micros now, bool cached);

// All rows of a channel name, counted to `most` and no further.
std::int64_t count_rows(std::string_view name, std::int64_t most);
// Counts them, and leaves the sum in the row counts without the `own` rows that this transaction has added. False:
// it may not be kept there.
bool keep_count(std::string_view name, std::int64_t own);

// The number of dead letters of each channel name that has some.
std::map<std::string, std::int64_t, std::less<>> count_dead(bool cached);

}  // namespace mq::channel_counts
