// Histogram: how often durations of about a length occurred, from a microsecond to a few weeks, eight steps to each
// power of two; so a quantile is within 12.5 % of the truth. Kept sparse: most have a handful of steps in use.
//
// Two histograms can be added and subtracted step by step, which is what a table that sums them needs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "message.hpp"

namespace mq {

class Histogram {
 public:
  void add(Micros duration);  // negative ones count as 0
  void merge(const Histogram& other, int sign = 1);

  // Stored form: step, count, step, count, …; steps ascending. What does not look like that is passed over.
  std::vector<std::int64_t> stored() const;
  void merge_stored(std::span<const std::int64_t> stored, int sign = 1);

  bool empty() const { return steps_.empty(); }
  // The duration that this part of all does not exceed, 0 < part <= 1; none of an empty one.
  std::optional<Micros> quantile(double part) const;

  // The step of a duration, and the least and the first too long duration of a step.
  static int step_of(Micros duration);
  static Micros least_of(int step);

 private:
  struct Step {
    int step;
    std::int64_t count;
  };
  void add(int step, std::int64_t count);

  std::vector<Step> steps_;   // ascending, without zeros
  std::size_t last_hit_ = 0;  // the next one is often the same
};

}  // namespace mq
