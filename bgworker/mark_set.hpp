// Low-water marks: where the scan for the due messages of a channel name may begin.
//
// Entries of messages that are gone stay at the front of an index for as long as any transaction can see them. A
// mark says that nothing is left below a position, so scans start there. Marks are hints: one that is too low costs
// time. One that is too high hides messages; that is prevented so:
//
//   raise   after looking for the first message that is left: only if nothing that was lowered since the ticket was
//           taken, before the look, is below the new position
//   lower   by whoever makes a message due, once its transaction is committed, before it wakes anybody
//   check   now and then somebody looks from the very beginning, for what comes without that: prepared transactions
//           that others commit, rows written by hand
//
// Memory is bounded: names are hashed into sets of a few places, and the one that was used longest ago gives way. A
// name without a mark is scanned from the beginning. An array of zeroed sets is an empty table; the caller locks.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "message.hpp"

namespace mq {

class MarkSet {
 public:
  using Ticket = std::uint64_t;

  struct Look {
    std::optional<Position> mark;
    Ticket ticket = 0;
    bool raise = false;  // so much was taken that looking for a higher position is worth it
  };
  Look look(std::uint64_t key) const;

  // Messages were taken from the front.
  void taken(std::uint64_t key, int messages);
  // Nothing was left below `position` when one looked, from the mark on, after the ticket was taken.
  void raise(std::uint64_t key, Ticket ticket, Position position, Micros now);
  // Whether there is a mark, and it is time to look from the beginning; if so, the caller is the one who does.
  // `interval`: time between two checks. After one that was costly it is longer, so that checks never take more than
  // a small share of the time.
  bool begin_check(std::uint64_t key, Micros now, Micros interval);
  // It took so long, and `first` is the first message that is left. True: the mark was above it.
  bool end_check(std::uint64_t key, Micros took, Position first);
  // A message is due at `position`.
  void lower(std::uint64_t key, Position position);

 private:
  static constexpr int kWays = 8;
  static constexpr int kRaiseAfter = 32;
  static constexpr Micros kCheckShare = 50;         // checks take at most 1/50 of the time
  static constexpr Micros kCheap = kSecond / 1000;  // unless they are cheap
  static constexpr std::uint64_t kBucket = 256;

  struct Entry {
    std::uint64_t key;
    std::uint64_t used;  // 0: free
    bool marked;
    Position mark;
    int taken;  // since it was raised
    Micros checked_at;
    Micros check_took;
  };
  // The lowest position of some lowerings in a row.
  struct Bucket {
    std::uint64_t first;
    Position lowest;
  };

  Entry* find(std::uint64_t key);
  const Entry* find(std::uint64_t key) const { return const_cast<MarkSet*>(this)->find(key); }
  Entry& find_or_add(std::uint64_t key);
  bool lowered_since(Ticket ticket, Position below) const;

  std::array<Entry, kWays> entries_;
  std::uint64_t uses_;
  std::uint64_t lowered_;          // lowerings of any name of the set: what a ticket is a copy of
  std::array<Bucket, 2> buckets_;  // of the latest lowerings
};

}  // namespace mq
