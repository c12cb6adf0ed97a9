#include "shmem/failing.hpp"

#include <algorithm>
#include <cstring>

#include "shmem/layout.hpp"

namespace mq::shared {

namespace {

constexpr Micros kInARow = 30 * kSecond;  // ends that are further apart start a new count

bool is_of_worker(Part part) {
  return part != Part::kProcess && part != Part::kLauncher;
}

// The key of this process's entry.
Failure key_of(Part part) {
  Failure key{};
  key.part = part;
  key.slot = is_of_worker(part) ? my_slot : -1;
  if (part == Part::kLauncher) return key;
  key.database = state->worker_slots[my_slot].database;
  key.role = state->worker_slots[my_slot].role;
  return key;
}

Failure* find(const Failure& key) {
  auto* end = state->failures + kFailures;
  auto* found = std::find_if(state->failures, end, [&](const Failure& f) {
    return f.times > 0 && f.part == key.part && f.slot == key.slot && f.database == key.database && f.role == key.role;
  });
  return found == end ? nullptr : found;
}

}  // namespace

void note_fails(Part part, std::string_view sqlstate, std::string_view text) {
  if (!available() || (my_slot < 0 && part != Part::kLauncher)) return;
  Guard guard(LW_EXCLUSIVE);
  const Failure key = key_of(part);
  Failure* failure = find(key);
  if (failure == nullptr) {
    failure = std::min_element(state->failures, state->failures + kFailures, [](const Failure& a, const Failure& b) {
      return (a.times > 0 ? a.last : 0) < (b.times > 0 ? b.last : 0);
    });
    *failure = key;
  }
  const TimestampTz now = GetCurrentTimestamp();
  if (part == Part::kProcess && now - failure->last > kInARow) failure->times = failure->served = 0;
  if (failure->times == 0) failure->since = now;
  ++failure->times;
  if (part == Part::kProcess && state->worker_slots[my_slot].served) ++failure->served;
  failure->last = now;
  copy_cut(failure->sqlstate, sizeof failure->sqlstate, sqlstate.substr(0, 5));
  copy_cut(failure->text, kFailureBytes, text);
}

void note_works(Part part) {
  if (!available() || (my_slot < 0 && part != Part::kLauncher)) return;
  Guard guard(LW_EXCLUSIVE);
  if (Failure* failure = find(key_of(part))) failure->times = 0;
}

void forget_failures_of(int slot) {
  for (Failure& failure : state->failures)
    if (failure.slot == slot) failure.times = 0;
}

void forget_failures_beyond_pools(Oid database) {
  for (Failure& failure : state->failures)
    if (failure.database == database && database != InvalidOid && find_pool(database, failure.role) == nullptr)
      failure.times = 0;
}

const Failure* last_end(Oid database, Oid role) {
  Failure key{};
  key.part = Part::kProcess;
  key.slot = -1;
  key.database = database;
  key.role = role;
  return find(key);
}

std::vector<Failing> failing() {
  std::vector<Failing> result;
  if (!available()) return result;
  result.reserve(kFailures);
  Guard guard(LW_SHARED);
  const TimestampTz now = GetCurrentTimestamp();
  for (const Failure& f : state->failures) {
    if (f.times == 0 || (f.database != MyDatabaseId && f.part != Part::kLauncher)) continue;
    // A single process that ended is no trouble, since another has come.
    if (f.part == Part::kProcess && (f.served < 2 || now - f.last > kInARow)) continue;
    const PGPROC* worker = f.slot >= 0 ? state->worker_slots[f.slot].worker : nullptr;
    result.push_back({worker != nullptr ? worker->pid : 0, f.role, f.part, f.since, f.last,
                      f.part == Part::kProcess ? f.served : f.times, f.sqlstate, f.text});
  }
  return result;
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
