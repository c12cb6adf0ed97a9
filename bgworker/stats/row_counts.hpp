// Row counts: how many rows of a table a channel name has, for names too large to count at each
// look. channel_counts.cpp counts and reads them; commit_actions.cpp applies and drops. The state
// is in shared memory under one lightweight lock (State::lock), but for an atomic flag. Without
// shared memory, and on a standby, nothing is kept.
//
// A look counts a name once and leaves the sum here. From then on each transaction adds its changes
// at commit; before the first count since the server started, a commit only reads the flag. The sum
// is exact: a transaction calls apply() only after it has become visible, and a count makes and
// publishes its snapshot in one critical section.
//
//   case 1   transaction   calls begin_commit(), becomes visible, calls apply()
//            counter       publishes its snapshot, which sees the transaction: its rows are counted
//            counter       finish(): does not keep the sum if the transaction still has to call apply()
//   case 2   counter       publishes its snapshot, counts
//            transaction   calls apply(): adds its change unless the published snapshot sees it
//            counter       finish(): adds such changes to the sum
//
// A sender to a channel name with max_pending (queue/pending_limit.cpp) reserves room before it writes: under the
// lock it compares the sum, with all that is reserved, with the limit, and adds its messages to what is reserved.
// The callback at its commit moves them from there to the sum under the lock; a rollback takes them away. So
// the sum and what is reserved are never more than the limit together, and visible rows never more than both.
//
// Changes past mq's functions (DELETE by hand, TRUNCATE) drop the sums of the table, COMMIT
// PREPARED those of the database. A look counts a stale sum again (channel_counts.cpp). Sums are in
// sets of kWays entries by a hash of database, table and name; a new sum replaces the one of its set
// that was looked at longest ago.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "pg/postgres.hpp"
#include "pg/types.hpp"

extern "C" {
#include "utils/snapshot.h"
}

namespace mq::row_counts {

struct Counted {
  std::int64_t rows = 0;
  // How the rows were divided at the time of the count.
  std::int64_t ready = 0;
  std::int64_t scheduled = 0;
  // Scheduled messages behind a due head. 0: there is none; otherwise there may be some.
  std::int64_t late = 0;
  bool ordered = false;  // there may be ordered messages behind others
};

struct Known : Counted {
  Micros counted_at = 0;
  Micros took = 0;  // µs that the count took
};

// Whether sums are kept: with the library preloaded, and not on a standby.
bool available();

// The sum of each channel name, if known.
std::vector<std::optional<Known>> find(Oid relation, const std::vector<std::int64_t>& name_keys);

// Lives while one channel name is counted. `publish`: the sum may be kept, as this transaction has
// changed no counted table, or has noted what it has: it has added `own` rows of the name, which finish()
// subtracts. The sum is not kept if another session counts, or over 1,023 transactions
// run. A count that an error ends (statement_timeout, say) leaves the sum that there is, which is
// not stale then for as long as if it had been counted.
class Recount {
 public:
  Recount(Oid relation, std::int64_t name_key, bool publish, std::int64_t own = 0);
  ~Recount();
  Recount(const Recount&) = delete;
  Recount& operator=(const Recount&) = delete;

  Snapshot snapshot() const { return snapshot_; }  // count under this one
  void finish(const Counted& counted);             // keeps the sum, if it may be kept
  bool published() const { return published_; }    // it may

 private:
  const Oid relation_;
  const std::int64_t name_key_;
  const std::int64_t own_;
  Snapshot snapshot_ = nullptr;
  bool published_ = false;
  Micros started_ = 0;
};

// Whether the sum's age is over 1,000 times what counting it took, and over a minute.
bool is_stale(const Known& known);

// The changes of a transaction to one channel name in one table.
struct Change {
  Oid relation;
  std::int64_t name_key;
  std::int64_t rows;          // inserted minus deleted
  bool ordered;               // ordered messages were inserted
  bool delayed;               // ordered messages with delays of their own were inserted
  std::int64_t reserved = 0;  // of the inserted rows
};
// What a transaction with changes calls before others see them, and when it has called apply() for each or
// has been rolled back.
void begin_commit();
void end_commit();
// For the commit callback of the transaction that made the change.
void apply(const Change& change);
// Drops the sums of a table of this database. InvalidOid: of all its tables.
void forget(Oid relation);

// What a transaction has done so far to a channel name in one table.
struct Own {
  std::int64_t rows = 0;  // inserted minus deleted
  std::int64_t reserved = 0;
};
enum class Room { kReserved, kFull, kUnknown };  // kUnknown: there is no sum
// Reserves room for `rows` more of a channel name that may have `most`.
Room reserve(Oid relation, std::int64_t name_key, std::int64_t rows, std::int64_t most, const Own& own);
// Reserves it in any case; returns what is reserved by all then.
std::int64_t reserve_unasked(std::int64_t name_key, std::int64_t rows);
void release(std::int64_t name_key, std::int64_t rows);
std::int64_t reserved(std::int64_t name_key);  // by all

}  // namespace mq::row_counts
