// Skip scans: what mq's indexes hold, read from the index entries (index_scan.hpp) with as little
// as possible of the entries of rows that are gone.
//
// Claims, low-water marks, the sweep, mq_poll and mq_enable() call them, in a transaction. They keep no state:
// `from` is the caller's.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pg/types.hpp"
#include "queue/effort.hpp"
#include "shmem/low_water_marks.hpp"

namespace mq {

// For the fair sample by a query: keys of the name's channels that have an entry in mq_msgs_fair at or above
// `mark`, perhaps of a row that is gone. They ascend from `start`, then go on from the least key.
// Returns at most `most`, and fewer if the scan reads too many entries.
std::vector<std::int64_t> fair_keys(std::string_view channel_name, Position mark, std::int64_t start, int most);

// Searches for the first visible head of the channel name and priority from a position on, and reads
// up to `most` entries.
struct HeadSearch {
  bool ended;        // it has come to a visible head or, if there is none, to kEnd
  Position reached;  // below that there is none
  int read;          // entries
};
inline constexpr Position kEnd{INT64_MAX, INT64_MAX};  // behind every message
HeadSearch search_head(std::string_view channel_name, int priority, Position from, int most);

// Whether there are entries of another priority than 0, perhaps of rows that are gone.
bool any_prioritized();
inline constexpr int kAbovePriorities = INT16_MAX + 1;
// The greatest such priority of the channel name below another one of which something may be due.
std::optional<int> due_priority_below(std::string_view channel_name, int priority, Micros now);
// Such a priority of a channel name. No head of it is due before `earliest`; kNever: none ever is.
struct Level {
  int priority;
  Micros earliest;
};
// All of them, the greatest first.
std::vector<Level> levels_of(std::string_view channel_name);
// The names of all channels that have some.
std::vector<std::string> prioritized_names();

// The names of all channels with a visible head of priority 0 that is not below the name's low-water
// mark.
std::vector<std::string> names_with_heads();

// Looks at `most` channel names from `from` on. Returns those that have an entry at infinity
// (unhandled.hpp), perhaps of a row that is gone. Moves `from` behind the names it looked at; after
// the last name, to the beginning.
std::vector<std::string> names_with_unhandled(std::string& from, std::size_t most);

// Looks at the first visible message of each ordered channel from `from` on. Returns those that are no
// heads. Ends with the effort, of which each channel is a part, or once the scan has read too many
// entries. Moves `from` as above.
struct ChainPosition {
  std::int64_t channel_key = INT64_MIN;
  std::int64_t seq = INT64_MIN;
};
std::vector<ChainPosition> first_no_heads(ChainPosition& from, Effort& effort);

}  // namespace mq
