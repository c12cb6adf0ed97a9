// Stay locks: has messages stay until this transaction ends, by a lock FOR KEY SHARE that waits for
// nobody. commit_actions.cpp locks what it appended behind, head_links.cpp the heads of channels. No
// state.
//
// SELECT … FOR KEY SHARE SKIP LOCKED does wait: where a transaction in progress has written a new
// version of the row (mq_poll, say) and removed that, the server finds the row free for this lock, and
// then waits for the new version. Only with that one locked, too, the row would stay. So here a row
// with a new version in progress counts as locked by others.
#pragma once

#include <span>
#include <unordered_set>

#include "pg/postgres.hpp"
#include "pg/types.hpp"

namespace mq {

// A message and where its row is.
struct Located {
  Uuid id;
  ItemPointerData location;
};

// Locks those of the messages that no other transaction removes, or has changed and may remove. Whoever
// deletes one of them waits for the end of this transaction. `heads`: only those that are heads of their
// ordered channels. Needs an OwnerScope.
std::unordered_set<Uuid, UuidHash> lock_to_stay(std::span<const Located> messages, bool heads);

}  // namespace mq
