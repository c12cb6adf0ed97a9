#include "stats/histogram.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

namespace mq {

namespace {

constexpr int kFineBits = 3;  // 2^3 steps to a power of two
constexpr int kFine = 1 << kFineBits;
constexpr int kMostBits = 42;  // durations from 2^42 µs (50 days) on go into the last step
constexpr int kSteps = (kMostBits - kFineBits + 1) * kFine;
// Of a step. What is stored may have been written by hand: the sum of all steps must not overflow.
constexpr std::int64_t kMostCount = std::int64_t{1} << 53;
static_assert(kMostCount <= INT64_MAX / kSteps);

std::int64_t bounded(std::int64_t count) {
  return std::clamp(count, -kMostCount, kMostCount);
}

__int128 bounded_sum(__int128 sum) {
  constexpr __int128 most = static_cast<__int128>(1) << 120;
  return std::clamp(sum, -most, most);
}

constexpr Micros kMost = Micros{1} << kMostBits;
constexpr int kLowBits = 62;  // of the sum in the first pair of the stored form

// Twice the middle of a step, which begins and ends with a whole µs.
std::int64_t twice_middle(int step) {
  return Histogram::least_of(step) + Histogram::least_of(step + 1) - 1;
}

}  // namespace

int Histogram::step_of(Micros duration) {
  if (duration < kFine) return static_cast<int>(std::max<Micros>(duration, 0));
  const auto value = static_cast<std::uint64_t>(duration);
  const int shift = std::bit_width(value) - 1 - kFineBits;
  const int step = (shift + 1) * kFine + static_cast<int>((value >> shift) & (kFine - 1));
  return std::min(step, kSteps - 1);
}

Micros Histogram::least_of(int step) {
  if (step < kFine) return step;
  const int shift = step / kFine - 1;
  return Micros{kFine + step % kFine} << shift;
}

void Histogram::add(Micros duration) {
  add(step_of(duration), 1);
  sum_ += std::clamp<Micros>(duration, 0, kMost);
}

void Histogram::add(int step, std::int64_t count) {
  if (last_hit_ < steps_.size() && steps_[last_hit_].step == step && count > 0 && steps_[last_hit_].count > 0) {
    steps_[last_hit_].count = bounded(steps_[last_hit_].count + count);
    return;
  }
  const auto at =
      std::lower_bound(steps_.begin(), steps_.end(), step, [](const Step& s, int wanted) { return s.step < wanted; });
  last_hit_ = static_cast<std::size_t>(at - steps_.begin());
  if (at == steps_.end() || at->step != step) {
    if (count != 0) steps_.insert(at, {step, count});
  } else if ((at->count = bounded(at->count + count)) == 0) {
    steps_.erase(at);
  }
}

void Histogram::merge(const Histogram& other, int sign) {
  for (const Step& s : other.steps_) add(s.step, sign * s.count);
  sum_ = bounded_sum(sum_ + sign * other.sum_);
}

std::vector<std::int64_t> Histogram::stored() const {
  std::vector<std::int64_t> result;
  result.reserve(steps_.size() * 2 + 4);
  if (!empty()) {
    const auto high = static_cast<std::int64_t>(sum_ >> kLowBits);
    result.push_back(kSum);
    result.push_back(static_cast<std::int64_t>(sum_ - (static_cast<__int128>(high) << kLowBits)));
    if (high != 0) {
      result.push_back(kSumHigh);
      result.push_back(high);
    }
  }
  for (const Step& s : steps_) {
    result.push_back(s.step);
    result.push_back(s.count);
  }
  return result;
}

void Histogram::merge_stored(std::span<const std::int64_t> stored, int sign) {
  bool has_sum = false;
  __int128 doubled = 0;  // twice the sum, if each duration is the middle of its step
  for (std::size_t i = 0; i + 1 < stored.size(); i += 2) {
    const std::int64_t value = stored[i + 1];
    if (stored[i] == kSum || stored[i] == kSumHigh) {
      sum_ = bounded_sum(sum_ + sign * (static_cast<__int128>(value) << (stored[i] == kSum ? 0 : kLowBits)));
      has_sum = true;
    } else if (stored[i] >= 0 && stored[i] < kSteps) {
      const int step = static_cast<int>(stored[i]);
      add(step, sign * bounded(value));
      doubled += static_cast<__int128>(bounded(value)) * twice_middle(step);
    }
  }
  if (!has_sum) sum_ = bounded_sum(sum_ + sign * (doubled / 2));
}

double Histogram::sum() const {
  return sum_ > 0 ? static_cast<double>(sum_) : 0;
}

std::int64_t Histogram::shorter_than(Micros bound) const {
  const int end = step_of(bound);
  std::int64_t result = 0;
  for (const Step& s : steps_)
    if (s.step < end) result += std::max<std::int64_t>(s.count, 0);
  return result;
}

std::int64_t Histogram::count() const {
  std::int64_t result = 0;
  for (const Step& s : steps_) result += std::max<std::int64_t>(s.count, 0);
  return result;
}

// Takes the durations of a step to be spread evenly over it.
std::optional<Micros> Histogram::quantile(double part) const {
  std::int64_t total = 0;
  for (const Step& s : steps_) total += std::max<std::int64_t>(s.count, 0);
  if (total == 0) return std::nullopt;
  const double wanted = part * static_cast<double>(total);
  std::int64_t before = 0;
  for (const Step& s : steps_) {
    if (s.count <= 0) continue;
    if (static_cast<double>(before + s.count) >= wanted) {
      const double inside = (wanted - static_cast<double>(before)) / static_cast<double>(s.count);
      const Micros width = least_of(s.step + 1) - least_of(s.step) - 1;
      return least_of(s.step) + std::llround(std::clamp(inside, 0.0, 1.0) * static_cast<double>(width));
    }
    before += s.count;
  }
  return least_of(steps_.back().step);
}

}  // namespace mq
