// Histogram: how often durations of about a length occurred, from 1 µs to 50 days, and their sum. Each
// power of two has eight steps, so a quantile is within 12.5 % of the truth. Only steps that occurred
// are kept; most histograms have a handful.
//
// The stats totals (totals.hpp) and settle.cpp fill histograms, mq_stats and mq_histogram
// (api/stats.cpp) read them. They are values of the caller. They can be added and subtracted, for the
// roll-up and the reset.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "pg/types.hpp"

namespace mq {

class Histogram {
 public:
  void add(Micros duration);                         // a negative one counts as 0
  void merge(const Histogram& other, int sign = 1);  // sign -1: subtracts

  // The stored form: step, count, step, count, …; steps ascend. Before them stand the pairs kSum, sum, and
  // where that is not enough kSumHigh, sum / 2^62. merge_stored() ignores pairs with an unknown step, and
  // a last step without a count. A form of 0.1 has no sum: each of its durations counts as the middle of
  // its step.
  std::vector<std::int64_t> stored() const;
  void merge_stored(std::span<const std::int64_t> stored, int sign = 1);

  bool empty() const { return steps_.empty() && sum_ == 0; }
  // The duration that `part` of all durations do not exceed, 0 < part <= 1. None if nothing was
  // added.
  std::optional<Micros> quantile(double part) const;
  // The sum of all durations in µs, each counted as 2^42 µs at most; 0 if that is negative, as it may be while
  // a roll-up has not met what a reset subtracts.
  double sum() const;
  // How many durations were shorter than `bound`, which begins a step; and how many there were at all.
  std::int64_t shorter_than(Micros bound) const;
  std::int64_t count() const;

  // The step of a duration, and the least duration of a step. Step + 1 begins where the step ends.
  static int step_of(Micros duration);
  static Micros least_of(int step);

 private:
  // In place of a step in the stored form. The library of 0.1 ignores them.
  enum : std::int64_t { kSum = -1, kSumHigh = -2 };
  struct Step {
    int step;
    std::int64_t count;
  };
  void add(int step, std::int64_t count);

  std::vector<Step> steps_;   // ascending, without counts of 0; a negative count is possible
  std::size_t last_hit_ = 0;  // index of the step that was changed last; the next is often the same
  __int128 sum_ = 0;          // µs: 2^63 are the waits of two million messages for 50 days
};

}  // namespace mq
