#include "worker/pool.hpp"

#include <algorithm>

namespace mq {

Micros restart_wait(int failed_starts) {
  if (failed_starts <= 0) return 0;
  return std::min(300 * kSecond, kSecond << std::min(failed_starts - 1, 9));
}

namespace {

bool rests(const PoolState& pool, Micros now) {
  return now >= pool.last_start && now - pool.last_start < restart_wait(pool.failed_starts);
}

}  // namespace

bool needs_database_slot(const PoolState& pool, Micros now) {
  if (pool.due > now || rests(pool, now)) return false;
  return pool.workers == 0 || (pool.stuck && pool.role != kProbe);
}

bool comes_first(const PoolState& a, const PoolState& b, Micros now) {
  const bool needs = needs_database_slot(a, now);
  if (needs != needs_database_slot(b, now)) return needs;
  if (!needs && a.workers != b.workers) return a.workers < b.workers;
  return a.last_start < b.last_start;
}

std::optional<std::size_t> pool_to_start(const std::vector<PoolState>& pools, DatabaseId database, int most_workers,
                                         Micros now, Starts starts) {
  int running = 0;
  std::optional<std::size_t> best;
  for (std::size_t i = 0; i < pools.size(); ++i) {
    const PoolState& pool = pools[i];
    if (pool.database != database) continue;
    running += pool.workers;
    const bool wanted = pool.workers == 0 || ((pool.backlog || pool.busy_long) && pool.role != kProbe);
    if (!wanted || rests(pool, now) || (starts == Starts::kDraining && pool.draining == 0)) continue;
    if (!best || comes_first(pool, pools[*best], now)) best = i;
  }
  return running < most_workers ? best : std::nullopt;
}

bool in_turns(const std::vector<PoolState>& pools, DatabaseId database, int most_workers, Micros now) {
  int in_database = 0;
  int running = 0;
  bool waits = false;
  for (const PoolState& pool : pools) {
    if (pool.database != database || (pool.workers == 0 && rests(pool, now))) continue;
    ++in_database;
    running += pool.workers;
    waits = waits || pool.workers == 0;
  }
  return in_database > most_workers || (waits && running >= most_workers);
}

bool contended(const std::vector<PoolState>& pools, DatabaseId database, int most_workers, Micros now) {
  return in_turns(pools, database, most_workers, now) || database_slots_wanted(pools, database, most_workers, now) > 0;
}

int database_slots_wanted(const std::vector<PoolState>& pools, DatabaseId database, int most_workers, Micros now) {
  int running = 0;
  int needed = 0;
  for (const PoolState& pool : pools)
    if (pool.database == database) running += pool.workers;
  for (const PoolState& pool : pools)
    if (pool.database == database && pool.workers < std::max(1, running) && needs_database_slot(pool, now)) ++needed;
  return std::max(0, needed - std::max(0, most_workers - running));
}

Waiting waiting(const std::vector<PoolState>& pools, DatabaseId database, int most_workers, Micros now) {
  Waiting result;
  int running = 0;
  for (const PoolState& pool : pools) {
    if (pool.database != database) continue;
    running += pool.workers;
    if (pool.workers > 0 || rests(pool, now)) continue;
    ++result.pools;
    if (pool.due <= now) ++result.busy;
  }
  const int room = std::max(0, most_workers - running);
  return {std::min(result.pools, room), std::min(result.busy, room)};
}

}  // namespace mq
