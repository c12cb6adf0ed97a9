#include "shmem/low_water_marks.hpp"

#include <algorithm>

namespace mq {

LowWaterMarks::Entry* LowWaterMarks::find(std::uint64_t key) {
  auto* found = std::find_if(entries_.begin(), entries_.end(),
                             [&](const Entry& entry) { return entry.used != 0 && entry.key == key; });
  return found == entries_.end() ? nullptr : found;
}

LowWaterMarks::Entry& LowWaterMarks::find_or_add(std::uint64_t key) {
  Entry* entry = find(key);
  if (entry == nullptr) {
    entry = std::min_element(entries_.begin(), entries_.end(),
                             [](const Entry& a, const Entry& b) { return a.used < b.used; });
    *entry = Entry{};
    entry->key = key;
    entry->checked = kBeginning;
  }
  entry->used = ++uses_;
  return *entry;
}

LowWaterMarks::Look LowWaterMarks::look(std::uint64_t key) const {
  Look look;
  look.ticket = lowered_;
  const Entry* entry = find(key);
  if (entry == nullptr) return look;
  look.raise = entry->taken >= kRaiseAfter;
  if (entry->marked) look.mark = entry->mark;
  return look;
}

void LowWaterMarks::taken(std::uint64_t key, int messages) {
  Entry& entry = find_or_add(key);
  entry.taken = std::min(entry.taken + messages, kRaiseAfter);
}

void LowWaterMarks::raise(std::uint64_t key, Ticket ticket, Position position, Micros now) {
  Entry* entry = find(key);
  if (entry == nullptr || lowered_since(ticket, position)) return;
  entry->taken = 0;
  if (entry->marked && position <= entry->mark) return;
  if (!entry->marked) entry->checked_at = now;
  entry->marked = true;
  entry->mark = position;
}

std::optional<Position> LowWaterMarks::begin_check(std::uint64_t key, Micros now, Micros interval) {
  Entry* entry = find(key);
  if (entry == nullptr || !entry->marked) return std::nullopt;
  const Micros since = now - entry->checked_at;
  const Micros pause = std::max(interval, (entry->check_took - kCheap) * kCheckShare);
  if (entry->checked == kBeginning && since >= 0 && since < pause) return std::nullopt;
  entry->checked_at = now;
  return entry->checked;
}

bool LowWaterMarks::end_check(std::uint64_t key, Micros took, Position first) {
  Entry* entry = find(key);
  if (entry == nullptr) return false;
  entry->check_took = took;
  entry->checked = kBeginning;
  if (!entry->marked || entry->mark <= first) return false;
  lower(key, first);
  return true;
}

bool LowWaterMarks::end_step(std::uint64_t key, Micros took, Position reached) {
  Entry* entry = find(key);
  if (entry == nullptr) return false;
  entry->check_took = took;
  entry->checked = entry->marked && reached < entry->mark ? reached : kBeginning;
  return entry->checked != kBeginning;
}

void LowWaterMarks::lower(std::uint64_t key, Position position) {
  // Noted even if the name has no entry: it may get one before a search that is under way ends.
  if (lowered_ - buckets_[0].first >= kBucket || lowered_ == 0) {
    buckets_[1] = buckets_[0];
    buckets_[0] = {lowered_, position};
  }
  ++lowered_;
  buckets_[0].lowest = std::min(buckets_[0].lowest, position);
  Entry* entry = find(key);
  if (entry != nullptr && entry->marked) entry->mark = std::min(entry->mark, position);
}

// Whether a lowering below `below` may have come after the ticket. True if the ticket is older than
// the lowerings that the buckets remember.
bool LowWaterMarks::lowered_since(Ticket ticket, Position below) const {
  if (ticket == lowered_) return false;
  if (buckets_[0].lowest < below) return true;
  if (ticket >= buckets_[0].first) return false;
  return ticket < buckets_[1].first || buckets_[1].lowest < below;
}

}  // namespace mq
