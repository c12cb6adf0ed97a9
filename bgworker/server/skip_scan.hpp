// Skip scan: which channels stand in an index, without a look at their messages.
//
// A query that asks for the next channel reads, and looks up in the table, every entry of what is gone until it meets
// something that is left; while some transaction holds the horizon that is everything that was handled since. The
// entries themselves tell the channel, and whether they are below a mark; so this passes over them at a hundredth of
// the cost, and a long row of them it skips by a new descent.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "../message.hpp"

namespace mq {

// Keys of channels of the name with an entry in mq_msgs_fair at or above `mark`, dead or alive: from `start` on in
// ascending order, then from the least one on; at most `most`, and fewer if that takes too many steps.
std::vector<std::int64_t> fair_keys(std::string_view channel_name, Position mark, std::int64_t start, int most);

}  // namespace mq
