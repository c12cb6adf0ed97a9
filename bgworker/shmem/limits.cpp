#include "shmem/limits.hpp"

#include <algorithm>
#include <cstring>

#include "pg/settings.h"
#include "shmem/layout.hpp"

extern "C" {
#include "mb/pg_wchar.h"
}

namespace mq::shared {

namespace {

Throttled* find_throttle(std::int64_t name_key) {
  auto* end = state->throttled + kThrottles;
  auto* found = std::find_if(state->throttled, end,
                             [&](const Throttled& t) { return t.database == MyDatabaseId && t.name_key == name_key; });
  return found == end ? nullptr : found;
}

}  // namespace

void copy_cut(char* to, std::size_t size, std::string_view text) {
  std::size_t bytes = text.size();
  if (bytes >= size)
    bytes = static_cast<std::size_t>(pg_mbcliplen(text.data(), static_cast<int>(bytes), static_cast<int>(size) - 1));
  memcpy(to, text.data(), bytes);
  to[bytes] = 0;
}

// Reads without the lock, since workers ask before each claim.
bool any_limits() {
  return available() && *const_cast<volatile int*>(&state->throttles) != 0;
}

std::optional<Limits> limits_of(std::int64_t name_key) {
  Guard guard(LW_EXCLUSIVE);
  Throttled* throttled = find_throttle(name_key);
  if (throttled == nullptr) return std::nullopt;
  throttled->limits.grow(GetCurrentTimestamp(), mq_max_workers);
  if (!throttled->limits.is_off()) return Limits{throttled->limits.workers, throttled->limits.batch};
  throttled->database = InvalidOid;
  --state->throttles;
  return std::nullopt;
}

void note_conflict(std::int64_t name_key, Micros batch_began, int messages) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  Throttled* throttled = find_throttle(name_key);
  if (throttled == nullptr) {
    auto* end = state->throttled + kThrottles;
    throttled = std::find_if(state->throttled, end, [](const Throttled& t) { return t.database == InvalidOid; });
    if (throttled == end) return;
    *throttled = {MyDatabaseId, name_key, {}};
    ++state->throttles;
  }
  throttled->limits.conflict(batch_began, GetCurrentTimestamp(), messages);
}

// limits_of() ends a limit whose time has come. For a channel name without a handler no worker
// calls that, so its limit ends here.
void forget_limits(const std::vector<Oid>& existing) {
  constexpr Micros kNobodyAsked = 600 * kSecond;
  const TimestampTz now = GetCurrentTimestamp();
  for (Throttled& throttled : state->throttled) {
    if (throttled.database == InvalidOid) continue;
    if (std::find(existing.begin(), existing.end(), throttled.database) != existing.end() &&
        now - throttled.limits.grows_at < kNobodyAsked)
      continue;
    throttled.database = InvalidOid;
    --state->throttles;
  }
}

bool others_wait_for_locks() {
  if (!available()) return false;
  Guard guard(LW_SHARED);
  const std::span<WorkerSlot> worker_slots = used_slots();
  return std::any_of(worker_slots.begin(), worker_slots.end(), [](const WorkerSlot& slot) {
    return slot.database == MyDatabaseId && slot.worker != nullptr && slot.worker != MyProc &&
           *const_cast<LOCK* volatile*>(&slot.worker->waitLock) != nullptr;
  });
}

}  // namespace mq::shared
