// Counts: how many rows of a table a channel name has, for tables and channels that are too large to count at every
// look. Kept in shared memory; without that nothing is kept, and who looks counts.
//
// Who looks counts a large channel once and leaves the sum here; from then on every transaction adds, at its commit,
// what it inserted and deleted (see ledger.hpp). A transaction that others do not look for pays nothing but a glance.
//
//   exact    The sum is taken under a snapshot that is made, and published here, in one critical section. A transaction
//            calls here only after it has become visible. So one that called before is in the sum; one that calls while
//            the count goes on is in it if the published snapshot sees its id, and is added afterwards if not.
//   healing  What changes a table other than through our functions (a DELETE by hand, TRUNCATE, COMMIT PREPARED) has
//   the
//            sums of that table forgotten; whoever looks next counts again. Workers count again what is old.
//
// A sum is found by (database, table, key of the channel's name): a row of kWays places for each hash, where a new one
// takes the place of the one that was not looked at for longest.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "../message.hpp"
#include "postgres.hpp"

extern "C" {
#include "utils/snapshot.h"
}

namespace mq::counts {

struct Counted {
  std::int64_t rows = 0;
  // How the rows were divided at the time of the count; that changes with time, and is not kept up.
  std::int64_t ready = 0;
  std::int64_t scheduled = 0;
  std::int64_t late = 0;  // of the scheduled: behind a ready head, but later themselves; not 0: there may be such
  bool ordered = false;   // there may be ordered messages behind others
};

struct Known : Counted {
  Micros counted_at = 0;
  Micros took = 0;
};

bool available();

// What is known of each of these channel names. `looks`: somebody wants to see it.
std::vector<std::optional<Known>> find(Oid relation, const std::vector<std::int64_t>& name_keys, bool looks);

// Counting one channel name, in a scope. Where somebody else is at that, or changes of this transaction would be in
// the sum, nothing is published.
class Recount {
 public:
  Recount(Oid relation, std::int64_t name_key, bool publish);
  ~Recount();
  Recount(const Recount&) = delete;
  Recount& operator=(const Recount&) = delete;

  Snapshot snapshot() const { return snapshot_; }
  void finish(const Counted& counted);

 private:
  const Oid relation_;
  const std::int64_t name_key_;
  Snapshot snapshot_ = nullptr;
  bool published_ = false;
  Micros started_ = 0;
};

// Whether somebody has looked at sums of this table lately, and one is older than a thousand times what counting it
// took (at least a minute); so often by as much.
bool any_stale(Oid relation);
bool is_stale(const Known& known, int times = 1);

// At the commit of this process's transaction.
struct Change {
  Oid relation;
  std::int64_t name_key;
  std::int64_t rows;
  bool ordered;
  bool delayed;
};
void apply(const Change& change);
// Sums of a table of this database; InvalidOid: of all its tables.
void forget(Oid relation);
void forget(Oid relation, std::int64_t name_key);

}  // namespace mq::counts
