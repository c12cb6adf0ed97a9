// Insert: writes messages straight into the table and its indexes, many at a time, as COPY does: for
// a batch the executor costs more than the rows. Sender (sender.cpp) uses it. No state.
//
// Triggers, rules, policies and checks would not be asked, and columns that somebody has added to
// the table not be filled: where there is any of that the caller runs an INSERT.
#pragma once

#include <functional>

#include "queue/due_scan.hpp"

namespace mq {

// A row of mq_msgs, by ClaimColumn.
struct NewRow {
  Datum values[kAllColumns];
  bool nulls[kAllColumns];
};

// Inserts `count` rows in their order. `fill` writes row `i`; what it allocates in the current context
// lives until some rows later. False: the table is not as it was created, and nothing was written.
// Needs an OwnerScope. Throws 23505 if an id is in use.
bool insert_messages(std::size_t count, const std::function<void(std::size_t i, NewRow& row)>& fill);

}  // namespace mq
