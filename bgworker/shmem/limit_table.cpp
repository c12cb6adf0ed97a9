#include "shmem/limit_table.hpp"

#include <algorithm>

namespace mq {

const LimitState* LimitTable::find(std::uint64_t key) const {
  for (std::uint16_t i = buckets_[bucket_of(key)]; i != 0; i = entries_[i - 1U].next)
    if (entries_[i - 1U].key == key) return &entries_[i - 1U].state;
  return nullptr;
}

LimitState* LimitTable::find(std::uint64_t key) {
  return const_cast<LimitState*>(static_cast<const LimitTable*>(this)->find(key));
}

LimitState* LimitTable::find_or_add(std::uint64_t key, Micros now) {
  if (LimitState* found = find(key)) return found;
  Entry* entry = used_ < kEntries ? &entries_[static_cast<std::size_t>(used_++)] : reuse(now);
  if (entry == nullptr) return nullptr;
  std::uint16_t& first = buckets_[bucket_of(key)];
  *entry = {key, {}, first};
  first = static_cast<std::uint16_t>(entry - entries_.data() + 1);
  return &entry->state;
}

bool LimitTable::is_idle(const LimitState& state, Micros now) {
  return std::max(state.rate.next, state.rate.free) <= now * kNanos && state.running == 0 &&
         (state.waiting == 0 || state.waiting < now - kWaits) && !state.asked;
}

// An entry that tells nothing any more is taken out of its bucket.
LimitTable::Entry* LimitTable::reuse(Micros now) {
  for (int i = 0; i < kSteps; ++i) {
    Entry& entry = entries_[static_cast<std::size_t>(hand_)];
    const auto number = static_cast<std::uint16_t>(hand_ + 1);
    hand_ = (hand_ + 1) % kEntries;
    if (!is_idle(entry.state, now)) continue;
    std::uint16_t* link = &buckets_[bucket_of(entry.key)];
    while (*link != number) link = &entries_[*link - 1U].next;
    *link = entry.next;
    return &entry;
  }
  return nullptr;
}

}  // namespace mq
