// Prerequisites: messages that wait until others have been handled (`after` of mq_send).
//
// The row of a message that waits is due at infinity, and due_at says when it will be due. It has a row
// in mq_prerequisites for each message that it waits for.
//
//   sent      Sender (queue/sender.cpp) writes the message, then calls wait_for()
//   ends      Removal and settle call ended(). If the message was handled, deleted or cleared, its rows
//             are removed, and dependents without a further row become due. If it is dead, so are they
//   races     Nobody waits for anybody, and no row is everybody's. A transaction does its part, then
//             takes a dirty look at the others' parts. What it cannot tell, since a transaction in
//             progress is at it, it notes in mq_rechecks (docs/internals/prerequisites.md)
//   rechecks  A claim begins with recheck(). In a database that is not enabled it leaves them alone
//   by hand   sweep() finds rows whose messages somebody has removed by hand
//
// The state of this process is what ended in this transaction while ended() was at work. All functions
// need an OwnerScope and an SPI connection.
#pragma once

#include <cstddef>
#include <span>
#include <unordered_set>
#include <vector>

#include "queue/prerequisite_rows.hpp"

namespace mq::prerequisites {

// SQLSTATE of a dead letter whose prerequisite is dead. The server uses no class MQ.
inline constexpr const char* kPrerequisiteIsDead = "MQ002";

enum class End { kHandled, kDead };

// What is pending of these messages, and what is dead. Of one id a pending message counts.
struct States {
  std::unordered_set<Uuid, UuidHash> pending, dead;
};
States states_of(std::span<const Uuid> messages);

// Messages with these ids are to be sent, and wait for others. Ends messages that still wait for earlier
// messages with the ids: else they could wait for one another.
void reuse(const std::vector<Uuid>& messages);
// This transaction has written messages that wait for others, which were pending or dead. Adds the
// rows, and moves those that wait for a dead one to the dead letters.
void wait_for(std::span<const Prerequisite> pending, std::span<const Prerequisite> dead);

// Whether ended() has anything to do. Costs a look at the size of a table.
inline bool any() {
  return has_prerequisites();
}
// This transaction has removed messages, or moved them to the dead letters. Call it behind that.
// `waited`: some of them may have waited for others themselves. Throws 55P03 as removals do.
void ended(const std::vector<Uuid>& messages, End how, bool waited);

// For the beginning of a claim: looks at some of the noted pairs again. True: some are left, since
// transactions are in progress.
bool recheck();

// Looks at up to `most` rows, and goes on from there at the next call. True: it has removed some, or
// released or moved messages.
bool sweep(std::size_t most);
// Makes messages due that wait and have no row in mq_prerequisites. True: it made some due.
bool release_without_rows(std::span<const Uuid> messages);

}  // namespace mq::prerequisites
