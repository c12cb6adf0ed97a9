// The key of a channel: one 64-bit number in place of two texts, for indexes, advisory locks and
// tables in memory. Pure functions without state.
#pragma once

#include <cstdint>
#include <string_view>

namespace mq {

// XXH3 (64 bits, seed 0) of: the length of the name in bytes as a little-endian 32-bit number, the
// name, the arguments. Frozen, since it is stored. Two channels may share a key, so a lookup
// compares the texts too.
std::int64_t channel_key(std::string_view channel_name, std::string_view channel_args);

// A hash for tables in memory, which differs with each seed.
std::uint64_t seeded_key(std::string_view text, std::uint64_t seed);

}  // namespace mq
