// max_pending: a send that would make more messages of a channel name pending fails before it writes.
//
// The Sender (api/sender.cpp) reserves room for its messages. The state is in the row counts
// (stats/row_counts.hpp); the commit actions note what this transaction has reserved, and give it back at its
// end, or at the end of a subtransaction that is rolled back.
//
//   preloaded     row counts have the sum of the name. A sender compares and reserves under their lock, so the
//                 messages of all transactions count, whether they have committed or not
//   no sum        a sender counts the rows, one session at a time, and leaves the sum there. Where it may not be
//                 kept (another count is under way in the server), it reserves first and then counts
//   no preload    an advisory lock to the end of the transaction lets one at a time send to the name, and
//                 count its rows
//
// No more than max_pending rows are ever visible. A send may fail for the sake of messages whose transactions
// are rolled back later.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace mq::pending_limit {

// Reserves room for `rows` messages that this transaction is about to write. Throws 53400 if there is none. Needs
// an OwnerScope and an SPI connection.
void reserve(std::string_view channel_name, std::int64_t rows);
// Some of these were not written after all, in the same subtransaction.
void give_back(std::string_view channel_name, std::int64_t rows);

// How many more messages the name may have; none: it has no such limit. Needs the same.
std::optional<std::int64_t> room(std::string_view channel_name);

// For mq_limits.
struct Use {
  std::int64_t pending;  // as this transaction sees them
  std::int64_t sending;  // room that other transactions have reserved
};
Use use_of(std::string_view channel_name);

}  // namespace mq::pending_limit
