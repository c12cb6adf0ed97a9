#include "pool.hpp"

#include <algorithm>

namespace mq {

Micros restart_wait(int failed_starts) {
  if (failed_starts <= 0) return 0;
  return failed_starts >= 4 ? 5 * kSecond : kSecond << (failed_starts - 1);
}

std::optional<std::size_t> pool_to_start(const std::vector<PoolState>& pools, DatabaseId database, int most_workers,
                                         Micros now) {
  int running = 0;
  std::optional<std::size_t> best;
  for (std::size_t i = 0; i < pools.size(); ++i) {
    const PoolState& pool = pools[i];
    if (pool.database != database) continue;
    running += pool.workers;
    const bool wanted = pool.workers == 0 || ((pool.backlog || pool.sits) && pool.role != kCaretaker);
    const bool rests = now >= pool.last_start && now - pool.last_start < restart_wait(pool.failed_starts);
    if (!wanted || rests) continue;
    if (!best || pool.workers < pools[*best].workers ||
        (pool.workers == pools[*best].workers && pool.last_start < pools[*best].last_start))
      best = i;
  }
  return running < most_workers ? best : std::nullopt;
}

bool contended(const std::vector<PoolState>& pools, DatabaseId database, int most_workers) {
  int in_database = 0;
  int running = 0;
  bool waits = false;
  for (const PoolState& pool : pools) {
    if (pool.database != database) continue;
    ++in_database;
    running += pool.workers;
    waits = waits || pool.workers == 0;
  }
  return in_database > most_workers || (waits && running >= most_workers);
}

}  // namespace mq
