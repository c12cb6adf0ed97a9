// PoolState: what the launcher reads of a pool of workers in shared memory (shared::pools()), and
// decides by (worker/pool.hpp). Plain values without state or lock.
#pragma once

#include <cstdint>

#include "pg/types.hpp"

namespace mq {

using RoleId = std::uint32_t;
using DatabaseId = std::uint32_t;
inline constexpr RoleId kProbe = 0;  // in place of a role: the pool of the probe worker

struct PoolState {
  DatabaseId database;
  RoleId role;
  int workers = 0;         // that count towards mq.max_workers, with those that are being started
  bool backlog = false;    // a worker of it found more than its batch took
  bool busy_long = false;  // each of its workers has had its batch for long
  Micros last_start = 0;
  int failed_starts = 0;  // in a row: workers that ended before they could serve
  Micros due = 0;         // when something is due next, as its last free worker knew; 0: unknown
  bool stuck = false;     // each of its workers has been in one call for long
  int draining = 0;       // workers without a database slot, which look after their leased calls
};

// When a pool may need a slot again whose worker has found nothing to do, for the `fruitless`th
// time in a row: 0.1, 0.2, 0.4, then 0.8 s after `now`. All pools of a database together get at
// most five such starts a second, but none is put off by more than kLastFruitless for that. `next`
// belongs to the database: the earliest time of its next such start, which the call moves on.
inline constexpr Micros kLastFruitless = 10 * kSecond;
Micros after_fruitless(int fruitless, Micros now, Micros& next);

}  // namespace mq
