// Pool: decides which workers there should be. These are pure functions without state or lock. Only
// the launcher calls them, with the PoolStates that it has read from shared memory.
//
// A database with the extension has a pool for each role that handlers run as. A database without a
// handler, or one that the launcher knows nothing of, has the pool of the probe worker (kProbe).
//   1. Each pool keeps one worker.
//   2. A pool with handlers gets more workers under backlog, and while all its workers are in long
//      batches, since none of them waits for messages, timers and sweeps then.
//   3. A database has at most `most_workers` (mq.max_workers) workers. With more pools than that
//      the pools take turns, the one that has waited longest first.
//   4. A worker whose turn is over while its leased calls run stays as a draining worker, which 3
//      does not count. At its pool's next turn it goes on, and no other process is started.
// Below, a slot is one of these `most_workers`.
#pragma once

#include <optional>
#include <vector>

#include "shmem/pool_state.hpp"

namespace mq {

// How long a pool waits after so many failed starts in a row, in µs: 1, 2, 4 s ... 5 minutes.
Micros restart_wait(int failed_starts);

// Whether something may be due and no worker of the pool is free for it: the pool has none, or each
// has been in one call for long. False while the pool waits after a failed start.
bool needs_database_slot(const PoolState& pool, Micros now);

// Whether to start a worker for `a` before one for `b`. Pools that need a slot come first; of the
// others those with fewer workers; of equals the one that has waited longest since its last start.
bool comes_first(const PoolState& a, const PoolState& b, Micros now);

// The pool of `database` to start a worker for now, as an index into `pools`. None: nothing can or
// need be started. kDraining: the server has no room for another process, so only pools with a
// draining worker, which needs just a slot.
enum class Starts { kAll, kDraining };
std::optional<std::size_t> pool_to_start(const std::vector<PoolState>& pools, DatabaseId database, int most_workers,
                                         Micros now, Starts starts = Starts::kAll);

// Whether the pools of the database take turns: there are more pools than slots, or a pool has no
// worker while all slots are taken. A pool without a worker that waits after a failed start does
// not count: no worker makes room for it.
bool in_turns(const std::vector<PoolState>& pools, DatabaseId database, int most_workers, Micros now);

// Whether a worker that has had its turn should leave: the pools take turns, or more pools need a
// slot than slots are free.
bool contended(const std::vector<PoolState>& pools, DatabaseId database, int most_workers, Micros now);

// How many pools need a slot that another pool's worker may have, beyond the slots that are free. As
// many idle workers of the database should leave at once.
int database_slots_wanted(const std::vector<PoolState>& pools, DatabaseId database, int most_workers, Micros now);

// How many pools of the database have no worker though a slot is free for one. Each count is at
// most the number of free slots; pools that wait after a failed start are left out.
struct Waiting {
  int pools = 0;  // all of them
  int busy = 0;   // those with something due
};
Waiting waiting(const std::vector<PoolState>& pools, DatabaseId database, int most_workers, Micros now);

}  // namespace mq
