// Pool: which workers there should be. The launcher's one decision, without the launcher.
//
// A database with the extension has a pool for each role that handlers run as; where there is no handler yet, or
// nothing is known, the pool of kCaretaker, which looks after the database and runs no handler. Each pool rests
// on one worker. Backlog brings more, up to the limit of the database, and so do long batches: while all workers of a
// pool sit in some, nobody of it waits for messages, timers and sweeps. When there are more pools than workers, they
// take turns, the one that waited longest first. A worker that has had its turn while leased calls of it run stays as
// their keeper, without a place, until its pool's next turn: then it goes on, and no other process is started.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "message.hpp"

namespace mq {

using RoleId = std::uint32_t;
using DatabaseId = std::uint32_t;
inline constexpr RoleId kCaretaker = 0;

struct PoolState {
  DatabaseId database;
  RoleId role;
  int workers = 0;
  bool backlog = false;  // a worker of it found more than its batch took
  bool sits = false;     // each of its workers has had its batch for long
  Micros last_start = 0;
  int failed_starts = 0;  // in a row: a worker that ended before it could serve
  Micros due = 0;         // when there is something to do next, as far as its last worker that was free knew
  bool stuck = false;     // each of its workers has been in one call for long
  int keepers = 0;        // workers that look after leased calls without a place: they go on when they are given one
};

// A pool whose workers keep failing is tried again after 1, 2, 4 seconds and so on, at last every 5 minutes.
Micros restart_wait(int failed_starts);

// When a pool may need a place again whose worker has found nothing to do, for the so-manyth time in a row: after 0.1,
// 0.2, 0.4, then 0.8 s, but in all pools of a database not more than five a second, as long as that is within
// kLastFruitless. `next` is the database's, when it has room for another.
inline constexpr Micros kLastFruitless = 10 * kSecond;
Micros after_fruitless(int fruitless, Micros now, Micros& next);

// Something is due, as far as anybody knows, and no worker of the pool is free for it.
bool needs_place(const PoolState& pool, Micros now);

// Whether a worker should rather be started for `a` than for `b`: first those that need a place, then those with fewest
// workers, of equals the one that waited longest.
bool comes_first(const PoolState& a, const PoolState& b, Micros now);

// The pool of `database` to start a worker for now, as an index into `pools`; none: all is as it should be.
// `kKeepers`: there is no room for processes, so only one that needs none.
enum class Starts { kAll, kKeepers };
std::optional<std::size_t> pool_to_start(const std::vector<PoolState>& pools, DatabaseId database, int most_workers,
                                         Micros now, Starts starts = Starts::kAll);

// More pools than workers, or one that waits for a place that a second worker of another took: they take turns. For a
// pool whose workers fail nobody makes room.
bool in_turns(const std::vector<PoolState>& pools, DatabaseId database, int most_workers, Micros now);

// Who has had a turn should make room: pools are in turns, or all workers of one are stuck while something is due.
bool contended(const std::vector<PoolState>& pools, DatabaseId database, int most_workers, Micros now);

// Pools of the database that need a place, beyond those that are free: as many workers that are idle should make room
// at once.
int places_wanted(const std::vector<PoolState>& pools, DatabaseId database, int most_workers, Micros now);

// Pools of the database that have no worker, though one could start; and those of them that have something to do.
struct Waiting {
  int pools = 0;
  int busy = 0;
};
Waiting waiting(const std::vector<PoolState>& pools, DatabaseId database, int most_workers, Micros now);

}  // namespace mq
