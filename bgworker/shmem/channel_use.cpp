#include "shmem/channel_use.hpp"

#include <algorithm>

#include "shmem/layout.hpp"

extern "C" {
#include "miscadmin.h"
}

namespace mq::shared {

namespace {

constexpr Micros kNoRoomWait = kSecond;  // of messages of a channel that there is no room for
constexpr Micros kTold = 3600 * kSecond;

// The part of the table that has room for a key, locked while this lives.
class Part {
 public:
  Part(std::uint64_t key, LWLockMode mode)
      : table_(state->limit_tables[key % kLimitParts]), lock_(&state->limit_locks[key % kLimitParts].lock, mode) {}
  LimitTable* operator->() const { return &table_; }

 private:
  LimitTable& table_;
  const LightweightLock lock_;
};

void note_no_room(Micros now) {
  pg_atomic_write_u64(&state->limits_without_room, static_cast<std::uint64_t>(now));
}

}  // namespace

Readiness rate_readiness(std::uint64_t key, const Rate& rate, Micros now) {
  {
    const Part part(key, LW_SHARED);
    const LimitState* found = part->find(key);
    if (found != nullptr && !rate.is_too_far(found->rate, now))
      return {rate.ready(found->rate, now), rate.ready_at(found->rate)};
  }
  const Part part(key, LW_EXCLUSIVE);
  LimitState* found = part->find_or_add(key, now);
  if (found == nullptr) {
    note_no_room(now);
    return {0, now + kNoRoomWait};
  }
  rate.tighten(found->rate, now);
  return {rate.ready(found->rate, now), rate.ready_at(found->rate)};
}

int take_rate(std::uint64_t key, const Rate& rate, Micros now, int calls) {
  const Part part(key, LW_EXCLUSIVE);
  LimitState* found = part->find_or_add(key, now);
  if (found != nullptr) {
    rate.tighten(found->rate, now);
    return rate.take(found->rate, now, calls);
  }
  note_no_room(now);
  return 0;
}

Turn turn_of(std::uint64_t key, const Rate& rate, Micros now, const Asker& asker) {
  const Part part(key, LW_EXCLUSIVE);
  LimitState* found = part->find_or_add(key, now);
  if (found == nullptr) {
    note_no_room(now);
    return {now + kNoRoomWait};
  }
  rate.tighten(found->rate, now);
  if (rate.may_begin(found->rate, now, asker.before, asker.waited)) return {};
  if (!asker.wants_slot) return {now};
  const bool look = rate.is_worth_a_look(found->rate, now);
  return {rate.put_off(found->rate, now, asker.before), look};
}

void free_slots_behind(std::uint64_t key, const Rate& rate, Micros last) {
  const Part part(key, LW_EXCLUSIVE);
  if (LimitState* found = part->find(key)) rate.free_behind(found->rate, last);
}

std::optional<int> running(std::uint64_t key) {
  {
    const Part part(key, LW_SHARED);
    if (const LimitState* found = part->find(key)) return found->running;
  }
  const Micros now = GetCurrentTimestamp();
  const Part part(key, LW_EXCLUSIVE);
  const LimitState* found = part->find_or_add(key, now);
  if (found != nullptr) return found->running;
  note_no_room(now);
  return std::nullopt;
}

int add_running(std::uint64_t key, int messages, int most) {
  const Micros now = GetCurrentTimestamp();
  const Part part(key, LW_EXCLUSIVE);
  LimitState* found = part->find_or_add(key, now);
  if (found == nullptr) {
    note_no_room(now);
    return 0;
  }
  const int added = std::clamp(most - found->running, 0, messages);
  found->running += added;
  return added;
}

bool remove_running(std::uint64_t key, int messages) {
  const Part part(key, LW_EXCLUSIVE);
  LimitState* found = part->find(key);
  if (found == nullptr) return false;
  found->running = std::max(0, found->running - messages);
  return found->waiting != 0;
}

Micros set_waiting(std::uint64_t key, bool waiting) {
  const Micros now = GetCurrentTimestamp();
  const Part part(key, LW_EXCLUSIVE);
  LimitState* found = waiting ? part->find_or_add(key, now) : part->find(key);
  if (found == nullptr) {
    if (waiting) note_no_room(now);
    return 0;
  }
  found->waiting = waiting ? std::max(now, found->waiting + 1) : 0;
  return found->waiting;
}

void stop_waiting(std::uint64_t key, Micros since) {
  const Part part(key, LW_EXCLUSIVE);
  if (LimitState* found = part->find(key); found != nullptr && found->waiting == since) found->waiting = 0;
}

bool is_waiting(std::uint64_t key) {
  const Part part(key, LW_SHARED);
  const LimitState* found = part->find(key);
  return found != nullptr && found->waiting != 0;
}

bool ask_for(const AskedFor& channel) {
  const Micros now = GetCurrentTimestamp();
  {
    const Part part(channel.key, LW_EXCLUSIVE);
    LimitState* found = part->find_or_add(channel.key, now);
    if (found == nullptr) return false;
    if (found->asked) return true;
    found->asked = true;
  }
  {
    const LightweightLock lock(state->asked_lock, LW_EXCLUSIVE);
    if (state->asked_count < kAsked) {
      state->asked[state->asked_count++] = {MyDatabaseId, channel};
      return true;
    }
  }
  const Part part(channel.key, LW_EXCLUSIVE);
  if (LimitState* found = part->find(channel.key)) found->asked = false;
  return false;
}

bool any_asked_for() {
  return available() && *const_cast<const volatile int*>(&state->asked_count) > 0;
}

std::vector<AskedFor> take_asked_for(const std::vector<std::int64_t>& name_keys,
                                     const std::vector<std::int64_t>& limited, std::size_t most) {
  const auto is_wanted = [&](const AskedForHere& one) {
    return one.database == MyDatabaseId &&
           (std::binary_search(name_keys.begin(), name_keys.end(), one.channel.name_key) ||
            !std::binary_search(limited.begin(), limited.end(), one.channel.name_key));
  };
  std::vector<AskedFor> taken;
  {
    const LightweightLock lock(state->asked_lock, LW_SHARED);
    if (std::none_of(state->asked, state->asked + state->asked_count, is_wanted)) return taken;
  }
  taken.reserve(most);  // so that nothing is thrown under the lock
  {
    const LightweightLock lock(state->asked_lock, LW_EXCLUSIVE);
    int left = 0;
    for (int i = 0; i < state->asked_count; ++i) {
      const AskedForHere& one = state->asked[i];
      if (taken.size() < most && is_wanted(one))
        taken.push_back(one.channel);
      else
        state->asked[left++] = one;
    }
    state->asked_count = left;
  }
  // From here on it may be asked for again.
  for (const AskedFor& one : taken) {
    const Part part(one.key, LW_EXCLUSIVE);
    if (LimitState* found = part->find(one.key)) found->asked = false;
  }
  return taken;
}

void forget_asked(const std::vector<Oid>& existing) {
  constexpr int kAtOnce = 64;
  for (int count = kAtOnce; count == kAtOnce;) {
    std::uint64_t keys[kAtOnce];
    count = 0;
    {
      const LightweightLock lock(state->asked_lock, LW_EXCLUSIVE);
      int left = 0;
      for (int i = 0; i < state->asked_count; ++i) {
        const AskedForHere& one = state->asked[i];
        if (count < kAtOnce && std::find(existing.begin(), existing.end(), one.database) == existing.end())
          keys[count++] = one.channel.key;
        else
          state->asked[left++] = one;
      }
      state->asked_count = left;
    }
    for (int i = 0; i < count; ++i) {
      const Part part(keys[i], LW_EXCLUSIVE);
      if (LimitState* found = part->find(keys[i])) found->asked = false;
    }
  }
}

Micros limits_without_room() {
  if (!available()) return 0;
  const auto at = static_cast<Micros>(pg_atomic_read_u64(&state->limits_without_room));
  const Micros since = GetCurrentTimestamp() - at;
  return at != 0 && since >= 0 && since < kTold ? at : 0;
}

}  // namespace mq::shared
