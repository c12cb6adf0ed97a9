// Stats totals: how many messages of each channel name were handled, failed and died, and how long
// that took, since the last reset. settle.cpp appends, the sweep rolls up, api/stats.cpp reads and
// resets. The state is two tables. All functions need a transaction, an SPI connection and an
// OwnerScope.
//
// 1. A transaction appends stats deltas to mq_stats_deltas and waits for no other. So the totals are exact
//    after crashes and rollbacks.
// 2. A roll-up moves deltas into mq_stats_totals, as a rule one row a channel name. It uses SKIP LOCKED,
//    and leaves what others hold to the next.
// 3. A reset appends deltas that cancel the sum, so it does not wait for a roll-up either.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "stats/histogram.hpp"

namespace mq::stats {

struct Totals {
  std::int64_t handled = 0;  // messages
  std::int64_t failed = 0;   // attempts
  std::int64_t died = 0;     // messages
  Histogram handle_times;
  Histogram wait_times;

  void merge(const Totals& other, int sign = 1);  // sign -1: subtracts
  bool empty() const;
};

using ByChannel = std::map<std::string, Totals, std::less<>>;

void append(const ByChannel& totals);  // now and then also rolls up
ByChannel read();                      // the sums of both tables
void reset();                          // waits for another reset to commit
// Rolls up at most 10,000 deltas; none above READ COMMITTED, or if mq_stats_totals is locked.
void roll_up();

}  // namespace mq::stats
