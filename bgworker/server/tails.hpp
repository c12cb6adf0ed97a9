// Tails: the last message of each ordered channel that is appended to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "../message.hpp"

namespace mq {

struct Tail {
  Uuid id;
  bool exists = false;
  std::int64_t place = 0;
};

// Places of channels in the arrays of a statement, and their tails.
struct ChannelTails {
  std::vector<std::int64_t> keys;
  std::vector<std::string_view> names, args;
  std::vector<std::uint64_t> mark_keys;
  std::vector<Tail> tails;
  std::vector<std::int64_t> starts;  // nothing is left of the channel below
  std::unordered_multimap<std::int64_t, std::size_t> by_key;

  std::size_t find_or_add(std::int64_t key, std::string_view name, std::string_view arguments);
};

// The tails as they are now. Needs the append locks of the channels, an OwnerScope and an SPI connection.
void find_tails(ChannelTails& channels);

// Under REPEATABLE READ a transaction must not append behind what it cannot see: 40001.
void refuse_stale_snapshot(const ChannelTails& channels);

}  // namespace mq
