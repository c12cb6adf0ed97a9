#include "shmem/throttle.hpp"

#include <algorithm>

namespace mq {

namespace {

constexpr int kShrink = 8;       // a conflict divides the batch by it, a step multiplies
constexpr int kLargest = 1'000;  // a batch limit that has come so far ends at the next step

}  // namespace

void Throttle::conflict(Micros began, Micros now, int messages) {
  const bool again = grows_at != 0;
  // Batches that began under the old limits conflict for a while. They only put the next step off.
  if (again && began < changed_at) {
    grows_at = now + calm;
    return;
  }
  if (workers > 1)
    workers = 1;
  else
    batch = std::max(1, std::min(batch, messages) / kShrink);
  if (again) calm = std::min(calm * 2, kLongestCalm);
  changed_at = now;
  grows_at = now + calm;
}

void Throttle::grow(Micros now, int most_workers) {
  if (is_off() || (now < grows_at && grows_at - now <= calm)) return;
  if (batch != kUnthrottled)
    batch = batch >= kLargest ? kUnthrottled : batch * kShrink;
  else if (++workers >= most_workers)
    workers = kUnthrottled;
  changed_at = now;
  grows_at = now + calm;
}

}  // namespace mq
