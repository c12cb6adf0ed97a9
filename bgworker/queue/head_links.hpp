// Head links: keep the first message of every ordered channel its head.
//
// 1. A transaction that removes a head (settle.cpp), or appends behind a message that another one
//    is removing (commit_actions.cpp), makes the first message that is left the head.
// 2. If another session has locked that message, it may be removing it or may roll back. The
//    transaction does not wait: it notes the channel as headless in mq_headless.
// 3. A claim (claim.cpp) begins with noted channels, and forgets those that it could link.
//    In a database that is not enabled (enabled.hpp) it leaves them alone.
//
// maintenance.cpp calls it for heads that were deleted by hand. It keeps no state but mq_headless. All
// functions need an OwnerScope and an SPI connection.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "queue/message.hpp"

namespace mq {

inline constexpr std::int64_t kFromTheStart = std::numeric_limits<std::int64_t>::min();

struct HeadlessChannel {
  std::int64_t key;
  std::string name;
  std::string args;
  // No message is left up to this sequence number: spares the search the entries of removed ones.
  // kFromTheStart: the search begins at the channel's low-water mark.
  std::int64_t behind = kFromTheStart;
};

// A first message that is a head already must not be in the hands of a transaction that removes it without
// having seen what is behind it. kNow: nobody removes it now; whoever does later sees what is committed.
// kToCommit: nor until this transaction has ended, for what it appends itself. Only a transaction that is
// committing may ask for that: others that remove the head wait for it.
enum class Stays { kNow, kToCommit };

// Makes the first message of each channel its head, and wakes workers for those. Returns the channels
// whose first message another transaction has locked. Throws 27000 where a trigger, rule or policy
// keeps the row as it is.
std::vector<HeadlessChannel> link_channels(const std::vector<HeadlessChannel>& channels, Stays stays = Stays::kNow);

// The same, and notes the channels that it could not link, and wakes workers for those as well.
void link_or_note(const std::vector<HeadlessChannel>& channels, Stays stays = Stays::kNow);

// Notes channels as headless without trying to link them.
void note_headless(const std::vector<HeadlessChannel>& channels);

// For the beginning of a claim: links some of the noted channels, and forgets those that it linked. Returns whether it
// has left some. It wakes nobody for those: who is woken would leave them too, and wake others.
bool link_headless();

}  // namespace mq
