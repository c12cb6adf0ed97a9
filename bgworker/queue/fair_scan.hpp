// Fair scan: the entries of mq_msgs_fair of one channel name, channel by channel, with as little as
// possible of those below the name's low-water mark. skip_scan.cpp and due_scan.cpp use it for the fair
// sample. The state is one scan of this process. For bodies of guard::call().
#pragma once

#include <cstdint>
#include <limits>

#include "pg/index_scan.hpp"
#include "shmem/low_water_marks.hpp"

extern "C" {
#include "utils/fmgroids.h"
}

namespace mq {

// Reads (attempt_at, seq) from columns n and n + 1. False: attempt_at is NULL.
inline bool position_of(const EntryScan& scan, int n, Position& position) {
  bool null = false;
  position.attempt_at = DatumGetTimestampTz(scan.column(n, null));
  if (null) return false;
  position.seq = DatumGetInt64(scan.column(n + 1, null));
  return true;
}

class FairScan {
 public:
  enum Next { kEntry, kChannel, kEnd };  // what to look at next

  void open(Oid table, Oid index, Datum channel_name, Position mark) {
    static constexpr RegProcedure kCompare[] = {F_BTINT8CMP, F_TIMESTAMPTZ_CMP, F_BTINT8CMP};
    mark_ = mark;
    read_ = 0;
    scan_.open(table, index, kCompare, 3, 2, channel_name);
  }

  // Calls look(channel_key, position), which returns Next, for entries at or above the mark. Keys
  // ascend from `start`, then from the least key. Ends, too, once it has read too many entries.
  template <class F>
  void walk(std::int64_t start, F&& look) {
    if (walk(start, kGreatest, look) && start != kLeast) walk(kLeast, start, look);
  }

  // Reads the row of the entry that look() was called for. False: it is not visible.
  bool read(TupleTableSlot* slot) { return scan_.read(slot); }

  void close() { scan_.close(); }

 private:
  static constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min();
  static constexpr std::int64_t kGreatest = std::numeric_limits<std::int64_t>::max();
  static constexpr int kInARow = 40;      // entries of a channel that are read before a new descent
  static constexpr int kMostRead = 4000;  // entries that a walk reads; a descent counts as kInARow

  // Keys in [from, below). False: it is over.
  template <class F>
  bool walk(std::int64_t from, std::int64_t below, F&& look) {
    std::int64_t current = 0;
    int in_a_row = -1;   // entries of the current channel since the descent; -1: no channel yet
    bool above = false;  // the current channel's entries have come to the mark
    Next next = kEntry;  // kChannel: the current channel is done
    descend(from);
    while (read_ < kMostRead && scan_.next()) {
      bool null = false;
      const std::int64_t key = DatumGetInt64(scan_.column(2, null));
      if (key >= below) return true;
      ++read_;
      if (in_a_row < 0 || key != current) {
        current = key;
        in_a_row = 0;
        above = false;
        next = kEntry;
      }
      Position position{};
      if (next == kEntry && position_of(scan_, 3, position) && position >= mark_) {
        above = true;
        next = look(key, position);
        if (next == kEnd) return false;
      }
      // Between the mark and what is looked for every entry has to be looked at.
      if (++in_a_row < kInARow || (above && next == kEntry)) continue;
      descend(next == kChannel ? key + 1 : key);
      read_ += kInARow;
      in_a_row = 0;
    }
    return read_ < kMostRead;
  }

  void descend(std::int64_t key) {
    const Datum position[] = {Int64GetDatum(key), TimestampTzGetDatum(mark_.attempt_at), Int64GetDatum(mark_.seq)};
    scan_.descend(position);
  }

  EntryScan scan_;
  Position mark_;
  int read_;
};

}  // namespace mq
