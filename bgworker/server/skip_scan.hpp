// Skip scans: what stands in our indexes, without reading what is gone (entry_scan.hpp). All need a transaction.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "../message.hpp"

namespace mq {

// Keys of channels of the name with an entry in mq_msgs_fair at or above `mark`, dead or alive: from `start` on in
// ascending order, then from the least one on; at most `most`, and fewer if that takes too many steps.
std::vector<std::int64_t> fair_keys(std::string_view channel_name, Position mark, std::int64_t start, int most);

// Names of all channels with a head that is not below the name's mark.
std::vector<std::string> names_with_heads();

// Of `most` channel names from `from` on, those with an entry of a message that was put aside (unhandled.hpp), dead or
// alive. `from` is moved on behind them, and to the beginning at the end.
std::vector<std::string> names_with_unhandled(std::string& from, std::size_t most);

// The first message of each ordered channel, of those from `from` on, `most` at most and fewer if that takes too
// many steps. `from` is moved on behind them, and to the beginning at the end.
struct ChainPlace {
  std::int64_t channel_key = INT64_MIN;
  std::int64_t place = INT64_MIN;
};
std::vector<ChainPlace> first_messages(ChainPlace& from, std::size_t most);

// The same for the ids of payloads.
std::vector<Uuid> payloads(Uuid& from, std::size_t most);

}  // namespace mq
