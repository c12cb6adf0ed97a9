// Due scan: the due heads of one channel name and priority in the order of mq_msgs_due (of another
// priority than 0: mq_msgs_priority), and the runs behind heads
// in the order of mq_msgs_chain, each row locked as it is read. Claimer (claim.cpp) claims with
// it; head_links.cpp, due.cpp and low_water.cpp ask what is first. No state.
//
// It does what SELECT … ORDER BY … LIMIT … FOR UPDATE SKIP LOCKED does, straight
// through the index and the table: for a batch the executor costs more than the rows. Policies of
// row-level security would not be asked, so where there are any the caller runs the query.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "pg/postgres.hpp"
#include "queue/claimed_rows.hpp"
#include "queue/effort.hpp"
#include "shmem/low_water_marks.hpp"

namespace mq {

struct DueRows {
  std::span<const LockedRow> rows;  // in memory of the context that was current
  // The first message that the scan met, locked by others or not; none: no message is due.
  std::optional<Position> first;
};

// Up to `limit` heads of the channel name (text) and priority that are due at `now`, from a position
// on, or only those `behind` it. Passes over rows that other sessions have locked or claimed. `unlocked`: rows that
// need no lock are only claimed (shmem/row_claims.hpp). None: the table has policies, so a query has
// to ask. Needs an OwnerScope.
std::optional<DueRows> lock_due(Datum channel_name, int priority, Micros now, Position from, bool behind, int limit,
                                bool unlocked);

// The first message that is due of each channel of the name, from a position on, in the order of
// mq_msgs_fair: by channel_key from `start` on, then from the least one. Looks at up to `channels`, and
// ends with the effort, of which each message is a part. Passes over rows that other sessions have
// locked or claimed. None: as above. Needs an OwnerScope.
std::optional<std::span<const LockedRow>> lock_sample(Datum channel_name, std::int64_t start, Micros now, Position from,
                                                      int channels, Effort& effort);

// The first head of the channel name and priority from a position on, due or not, locked or not. kEnd
// (skip_scan.hpp): there is no such message. Needs an OwnerScope.
Position first_head(std::string_view channel_name, int priority, Position from);

// A search for what is behind a message in its ordered channel.
struct ChainSearch {
  std::int64_t channel_key, behind;  // `behind`: a sequence number
  Datum channel_name, channel_args;  // text
  Uuid head = {};                    // for lock_runs(): the message with that number
};

// The due messages behind each head, at most `limit` a head, up to the first that is not due, is
// locked by another session or was not appended behind the one before. None: as above.
std::optional<std::span<const LockedRow>> lock_runs(const std::vector<ChainSearch>& searches, Micros now, int limit);

struct FirstMessage {
  std::size_t search;  // its number in `searches`
  Uuid id;
  std::optional<Micros> attempt_at;  // none: it is dead and blocks its channel
  std::int64_t seq;
  bool head;
  ItemPointerData location;
};
// The first message behind each, locked or not; in the order of the searches. Needs an OwnerScope.
std::vector<FirstMessage> first_behind(const std::vector<ChainSearch>& searches);

}  // namespace mq
