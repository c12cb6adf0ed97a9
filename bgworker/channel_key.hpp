// The key of a channel: one 64-bit number in place of two texts, for indexes, locks and shards.
#pragma once

#include <cstdint>
#include <string_view>

namespace mq {

// XXH3 (64 bits, seed 0) of: the length of the name in bytes as a little-endian 32-bit number, the name, the
// arguments. Frozen: it is stored. Two channels may share a key; whoever looks one up compares the texts too.
std::int64_t channel_key(std::string_view channel_name, std::string_view channel_args);

// For tables in memory: another with each seed.
std::uint64_t seeded_key(std::string_view text, std::uint64_t seed);

}  // namespace mq
