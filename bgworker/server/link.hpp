// Link: keeps the first message of every ordered channel its head.
//
// Whoever removes a head, or appends behind a message that is going, makes the first message that is left head, in
// the same transaction. Where that message is locked by somebody (who may be removing it, or may roll back), nobody
// waits: the channel is noted in mq_loose, and every claim looks there first, until the channel could be linked.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "../message.hpp"

namespace mq {

inline constexpr std::int64_t kFromTheStart = std::numeric_limits<std::int64_t>::min();

struct LooseChannel {
  std::int64_t key;
  std::string name;
  std::string args;
  // Nothing is left of the channel up to here: spares the scan of what was removed.
  std::int64_t behind = kFromTheStart;
};

// Makes the first message of each channel head if it is none, and wakes who waits for the channel. Returns those
// whose first message is locked by another transaction. Needs an OwnerScope and an SPI connection, as all here.
std::vector<LooseChannel> link_channels(const std::vector<LooseChannel>& channels);

// The same; what could not be linked is noted.
void link_or_note(const std::vector<LooseChannel>& channels);

// Notes channels without trying.
void note_loose(const std::vector<LooseChannel>& channels);

// Tries the channels that are noted, and forgets those that are linked now. For the beginning of a claim.
void link_noted();

}  // namespace mq
