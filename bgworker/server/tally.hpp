// Tally: how much of each channel was handled, failed and died, and how long that took, since the last reset.
//
// A transaction appends what it adds to mq_tally and waits for nobody; so the totals are exact whatever crashes, and
// whoever rolls back. Rows there are folded into mq_totals, one a channel, by the sweep and now and then by whoever
// appends; folds lock with SKIP LOCKED, and what they cannot have they leave for the next. A reset appends what cancels
// the sum, so it need not wait for a fold either.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "../histogram.hpp"
#include "../ports.hpp"

namespace mq::tally {

struct Totals {
  std::int64_t handled = 0;
  std::int64_t failed = 0;
  std::int64_t died = 0;
  Histogram handle_times;
  Histogram wait_times;

  void merge(const Totals& other, int sign = 1);
  bool empty() const;
};

using ByChannel = std::map<std::string, Totals, std::less<>>;

// What a settlement adds.
ByChannel of(const Settlement& settlement);

// The rest runs within the current transaction, SPI connection and OwnerScope.
void append(const ByChannel& totals);
ByChannel read();
void reset();
// Folds a bounded number of rows.
void fold();

}  // namespace mq::tally
