// NameFilter: a set of channel names in 64 bytes. It may take a name for a member that is none, never the
// other way round (a Bloom filter with one hash function). Plain values without state or lock.
#pragma once

#include <array>
#include <cstdint>

namespace mq {

class NameFilter {
 public:
  // `key`: channel_key() of the name and no arguments.
  void add(std::int64_t key) { words_[word(key)] |= bit(key); }
  bool may_have(std::int64_t key) const { return (words_[word(key)] & bit(key)) != 0; }

 private:
  static constexpr std::size_t kWords = 8;
  static std::size_t word(std::int64_t key) { return static_cast<std::uint64_t>(key) / 64 % kWords; }
  static std::uint64_t bit(std::int64_t key) { return std::uint64_t{1} << (static_cast<std::uint64_t>(key) % 64); }

  std::array<std::uint64_t, kWords> words_{};
};

}  // namespace mq
