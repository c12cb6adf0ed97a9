// Limit table: what is in use of the limits of channels and channel names, by key; for one lock. Pure;
// channel_use.cpp keeps tables of these in shared memory. Zeroed memory is an empty table. Where all entries are in
// use there is none for another key.
#pragma once

#include <array>
#include <cstdint>

#include "shmem/rate.hpp"

namespace mq {

struct LimitState {
  RateState rate;
  Micros waiting;        // when messages were put off last since too many run; 0: none wait
  std::int32_t running;  // messages that transactions in progress are about to handle, or have
  bool asked;            // somebody is to look whether one of those may be handled
};

class LimitTable {
 public:
  static constexpr int kEntries = 2048;
  // What was put off longer ago has come back by itself, or its channel name has no such limit any more.
  static constexpr Micros kWaits = 7200 * kSecond;

  // The key's state. nullptr: it has none, as after a long rest.
  const LimitState* find(std::uint64_t key) const;
  LimitState* find(std::uint64_t key);
  // The key's state, a new one if it has none. nullptr: there is no room.
  LimitState* find_or_add(std::uint64_t key, Micros now);
  int used() const { return used_; }

 private:
  static constexpr int kSteps = 64;  // entries that a search for one to use again looks at
  static_assert((kEntries & (kEntries - 1)) == 0);

  struct Entry {
    std::uint64_t key;
    LimitState state;
    std::uint16_t next;  // of its bucket: the number of an entry, from 1; 0: none
  };

  static std::size_t bucket_of(std::uint64_t key) { return (key >> 16) % kEntries; }
  static bool is_idle(const LimitState& state, Micros now);
  Entry* reuse(Micros now);

  std::array<Entry, kEntries> entries_;
  std::array<std::uint16_t, kEntries> buckets_;  // the number of the first entry, from 1; 0: none
  int used_;                                     // entries that were ever in use
  int hand_;                                     // where the next search for one to use again begins
};

}  // namespace mq
