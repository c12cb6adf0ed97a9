#include "shmem/rate.hpp"

#include <algorithm>
#include <climits>

namespace mq {

namespace {

constexpr Nanos kTolerated = Rate::kTolerance * kNanos;
// Messages come back at multiples of this, so that many share a wake-up; up to so much earlier than kAhead.
constexpr Micros kGrid = Rate::kTolerance / 4;
constexpr Micros kLookAfter = 2 * kSecond;
constexpr Nanos kFar = INT64_MAX / 2;  // the last slot: some 146 years on

// The slot that is so many intervals behind another.
Nanos behind(Nanos slot, std::int64_t slots, Nanos interval) {
  if (slots > 0 && interval > (kFar - slot) / slots) return kFar;
  return slot + slots * interval;
}

}  // namespace

// Rounded up, so that never more calls begin.
Rate Rate::of(int calls, Micros per) {
  constexpr Nanos kLongest = Nanos{36500} * 86400 * kSecond * kNanos;
  const Nanos span = per > kLongest / kNanos ? kLongest : std::max<Micros>(per, 1) * kNanos;
  const Nanos count = std::max(calls, 1);
  return {std::max<Nanos>(1, span / count + (span % count != 0 ? 1 : 0))};
}

bool Rate::is_too_far(const RateState& state, Micros now) const {
  return state.next > behind(now * kNanos + kTolerated, 1, interval);
}

void Rate::tighten(RateState& state, Micros now) const {
  state.next = std::min(state.next, behind(now * kNanos + kTolerated, 1, interval));
}

Micros Rate::ready_at(const RateState& state) const {
  return (state.next + kNanos - 1) / kNanos - kAhead;
}

int Rate::ready(const RateState& state, Micros now) const {
  if (now < ready_at(state)) return 0;
  const Nanos next = std::max(state.next, now * kNanos);
  const Nanos calls = (now * kNanos + kTolerated - next) / interval + 1;
  return static_cast<int>(std::clamp<Nanos>(calls, 1, INT_MAX));
}

int Rate::take(RateState& state, Micros now, int calls) const {
  const Nanos next = std::max(state.next, now * kNanos);
  const Nanos ahead = now * kNanos + kTolerated - next;
  if (calls <= 0 || ahead < 0) return 0;
  const Nanos taken = std::min<Nanos>(calls, ahead / interval + 1);
  state.next = behind(next, taken, interval);
  return static_cast<int>(taken);
}

bool Rate::may_begin(const RateState& state, Micros now, int before, bool waited) const {
  if (!waited && state.free - kAhead * kNanos > now * kNanos) return false;
  const Nanos next = std::max(state.next, now * kNanos);
  return behind(next, before, interval) <= now * kNanos + kTolerated;
}

Micros Rate::put_off(RateState& state, Micros now, int before) const {
  const Nanos next = std::max(state.next, now * kNanos);
  const Nanos slot = std::max(state.free, behind(next, before, interval));
  state.free = behind(slot, 1, interval);
  const Micros ahead = slot / kNanos - kAhead;
  return std::max(ahead - ahead % kGrid, now + 1);
}

void Rate::free_behind(RateState& state, Micros last) const {
  // The slot of a message is up to this much behind the time at which it comes back.
  const Nanos slot = last == 0 ? 0 : behind((last + kAhead + kGrid) * kNanos, 1, interval);
  state.free = std::min(state.free, slot);
}

bool Rate::is_worth_a_look(const RateState& state, Micros now) const {
  return state.free > behind((now + kLookAfter) * kNanos, 2, interval);
}

}  // namespace mq
