// Limits: what mq_limit has set for channel names (the table mq_channel_limits).
//
// Senders ask before they write, claims before they take messages. Each process caches the table, and
// reads it again, with a latest snapshot, when it has changed. It learns of changes by invalidations, as
// of those of the registry. Where no channel has limits a look costs a comparison.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pg/types.hpp"

namespace mq {

struct ChannelLimits {
  std::optional<std::int64_t> max_pending;
  std::optional<int> max_running;
  std::optional<int> max_running_per_args;
  std::optional<int> rate;  // so many calls begin in each `per`
  Micros per = 0;
  bool rate_per_args = false;
};

// The limits of a channel name; nullptr: it has none. Valid until the next call. Needs a transaction; opens an SPI
// connection of its own where it has to read.
const ChannelLimits* limits_of(std::string_view channel_name);
// Whether any channel name has limits. Needs the same.
bool any_limits();
// The names of all channels that have limits. Needs the same.
std::vector<std::string> limited_names();

}  // namespace mq
