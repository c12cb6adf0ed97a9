// What workers know of channels and messages that make trouble: channels whose handlers conflict, and messages that
// cannot be settled.

#include <algorithm>
#include <cstring>

#include "settings.h"
#include "shared_state.hpp"

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
  const auto bytes =
      static_cast<std::size_t>(pg_mbcliplen(text.data(), static_cast<int>(text.size()), static_cast<int>(size) - 1));
  memcpy(to, text.data(), bytes);
  to[bytes] = 0;
}

// Without the lock: asked before each claim.
bool any_limits() {
  return available() && *const_cast<volatile int*>(&state->throttles) != 0;
}

std::optional<Host::Limits> limits_of(std::int64_t name_key) {
  Guard guard(LW_EXCLUSIVE);
  Throttled* throttled = find_throttle(name_key);
  if (throttled == nullptr) return std::nullopt;
  throttled->limits.grow(GetCurrentTimestamp(), mq_max_workers);
  if (!throttled->limits.is_off()) return Host::Limits{throttled->limits.workers, throttled->limits.batch};
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

// A limit whose time has come ends when a worker asks for it. Of a channel that has no handler any more nobody does.
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
  const std::span<Seat> seats = used_seats();
  return std::any_of(seats.begin(), seats.end(), [](const Seat& seat) {
    return seat.database == MyDatabaseId && seat.worker != nullptr && seat.worker != MyProc &&
           *const_cast<LOCK* volatile*>(&seat.worker->waitLock) != nullptr;
  });
}

void note_unsettled(const Uuid& message, std::string_view channel_name, std::string_view error, Micros until) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  auto* end = state->unsettled + kUnsettled;
  auto* entry = std::find_if(state->unsettled, end,
                             [&](const Unsettled& u) { return u.database == MyDatabaseId && u.message == message; });
  if (entry == end) {
    entry = std::min_element(state->unsettled, end, [](const Unsettled& a, const Unsettled& b) {
      return (OidIsValid(a.database) ? a.until : 0) < (OidIsValid(b.database) ? b.until : 0);
    });
    *entry = Unsettled{};
    entry->database = MyDatabaseId;
    entry->message = message;
  }
  entry->until = until;
  ++entry->times;
  copy_cut(entry->channel_name, kChannelBytes, channel_name);
  copy_cut(entry->error, kRefusalBytes, error);
}

std::vector<UnsettledMessage> unsettled() {
  std::vector<UnsettledMessage> result;
  if (!available()) return result;
  result.reserve(kUnsettled);
  Guard guard(LW_SHARED);
  for (const Unsettled& u : state->unsettled)
    if (u.database == MyDatabaseId) result.push_back({u.message, u.channel_name, u.error, u.until, u.times});
  return result;
}

}  // namespace mq::shared
