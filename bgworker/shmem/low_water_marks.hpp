// Low-water marks: where the scan for the due messages of a channel name may begin. This is one set
// of marks, without a lock. queue/low_water.cpp keeps tables of sets in shared memory, and locks
// the set around each call.
//
// Index entries of messages that are gone stay at the front of an index for as long as any
// transaction can see them. A mark says that no message is left below a position, so scans start
// there. A mark that is too low costs time. A mark that is too high hides messages. To prevent
// that:
//   raise   A claim raises a mark only to the first message that it found left, and only if nothing
//           below that was lowered since it took its ticket.
//   lower   A session that makes a message due lowers the mark once its transaction is committed,
//           before it wakes a worker.
//   check   Now and then a session searches from the very beginning, for messages that come without
//           `lower`: by COMMIT PREPARED of another session, or written by hand. A long search is
//           made in steps, each of which begins where the last one ended.
//
// A set has room for kWays names; the entry that was used longest ago gives way. A name without a
// mark is scanned from the beginning. Zeroed memory is an empty set.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "pg/types.hpp"

namespace mq {

// Where a message stands among the due ones of its channel name. `seq` is its sequence number.
struct Position {
  Micros attempt_at;
  std::int64_t seq;

  friend bool operator==(const Position& a, const Position& b) = default;
  friend auto operator<=>(const Position& a, const Position& b) = default;
};

class LowWaterMarks {
 public:
  static constexpr Position kBeginning{INT64_MIN, INT64_MIN};  // before every message
  static constexpr Micros kCheckShare = 50;                    // checks take at most 1/50 of the time

  using Ticket = std::uint64_t;

  struct Look {
    std::optional<Position> mark;
    Ticket ticket = 0;
    bool raise = false;  // so many were taken that a search for a higher position is worth it
  };
  Look look(std::uint64_t key) const;

  // So many messages were taken from the front.
  void taken(std::uint64_t key, int messages);
  // No message was left below `position` in a search that began at the mark, after the ticket was
  // taken. Claim C raises while sender S lowers; the set's lock orders look(), lower() and raise():
  //   C  look(): the ticket is the count of lowerings
  //   C  searches for the first message that is left
  //   S  commits, then calls lower(): the count grows
  //   C  raise(): has no effect if `position` is above that of S's message
  void raise(std::uint64_t key, Ticket ticket, Position position, Micros now);
  // Where the caller is to search from, if there is a mark and it is time for a search from the
  // beginning: that, or where the last step of one has ended. No other session begins the same
  // search; the same step may be made twice, which does no harm. `interval`: µs between two
  // searches. After a costly one it is longer, so that searches never take more than a small share
  // of the time. There is no pause between two steps: the caller sees to that.
  std::optional<Position> begin_check(std::uint64_t key, Micros now, Micros interval);
  // The check took `took` µs and found `first` as the first message that is left. Returns whether
  // the mark was above it; then it is lowered.
  bool end_check(std::uint64_t key, Micros took, Position first);
  // A step of the check has come to `reached`, and found no message that is left below that. Returns
  // whether the search goes on there; it ends at the mark.
  bool end_step(std::uint64_t key, Micros took, Position reached);
  // A message is due at `position`.
  void lower(std::uint64_t key, Position position);

 private:
  static constexpr int kWays = 8;
  static constexpr int kRaiseAfter = 32;
  static constexpr Micros kCheap = kSecond / 1000;  // so much of each check does not count
  static constexpr std::uint64_t kBucket = 256;

  struct Entry {
    std::uint64_t key;
    std::uint64_t used;  // the number of the last use; 0: free
    bool marked;
    Position mark;
    int taken;  // messages, since the mark was raised; at most kRaiseAfter
    Micros checked_at;
    Micros check_took;
    Position checked;  // how far the search has come that is under way; kBeginning: none is
  };
  // The lowest position of up to kBucket lowerings in a row, the first of which has number `first`.
  struct Bucket {
    std::uint64_t first;
    Position lowest;
  };

  Entry* find(std::uint64_t key);
  const Entry* find(std::uint64_t key) const { return const_cast<LowWaterMarks*>(this)->find(key); }
  Entry& find_or_add(std::uint64_t key);
  bool lowered_since(Ticket ticket, Position below) const;

  std::array<Entry, kWays> entries_;
  std::uint64_t uses_;
  std::uint64_t lowered_;          // lowerings of any name of the set so far; a ticket is a copy
  std::array<Bucket, 2> buckets_;  // of the latest lowerings, the newest first
};

}  // namespace mq
