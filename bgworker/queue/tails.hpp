// Tails: the last message of each ordered channel that a send appends to. queue/sender.cpp calls it
// under the append locks (append_lock.hpp), which keep other transactions from appending. The state
// is the sender's ChannelTails.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "queue/message.hpp"

namespace mq {

struct Tail {
  Uuid id;
  bool exists = false;  // false: the channel is empty
  std::int64_t seq = 0;
};

// The channels of one call, each with the same index in all the vectors.
struct ChannelTails {
  std::vector<std::int64_t> keys;
  std::vector<std::string_view> names, args;
  std::vector<std::uint64_t> mark_keys;  // keys of the channels' low-water marks
  std::vector<Tail> tails;
  // No message of the channel is left with a sequence number below; kFirstSeq: unknown.
  std::vector<std::int64_t> starts;
  std::unordered_multimap<std::int64_t, std::size_t> by_key;  // key -> index

  // The index of the channel. The views must outlive this.
  std::size_t find_or_add(std::int64_t key, std::string_view name, std::string_view arguments);
};

// Fills in `tails` and `starts`. Needs the append locks, an OwnerScope and an SPI connection.
void find_tails(ChannelTails& channels);

// Above READ COMMITTED, throws 40001 if the transaction's snapshot does not see a tail: it must not
// append behind what it cannot see.
void refuse_stale_snapshot(const ChannelTails& channels);

}  // namespace mq
