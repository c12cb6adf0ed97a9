// What fails for workers and the launcher, and is no handler's fault: the last error of each part of a worker's loop,
// of each pool whose workers end with one, and of the launcher. Written when something fails, and once when it works
// again.

#include <algorithm>
#include <cstring>

#include "shared_state.hpp"

namespace mq::shared {

namespace {

constexpr Micros kInARow = 30 * kSecond;  // ends of processes that are further apart are counted anew

bool is_of_worker(Part part) {
  return part != Part::kProcess && part != Part::kLauncher;
}

// Of this process.
Failure key_of(Part part) {
  Failure key{};
  key.part = part;
  key.seat = is_of_worker(part) ? my_seat : -1;
  if (part == Part::kLauncher) return key;
  key.database = state->seats[my_seat].database;
  key.role = state->seats[my_seat].role;
  return key;
}

Failure* find(const Failure& key) {
  auto* end = state->failures + kFailures;
  auto* found = std::find_if(state->failures, end, [&](const Failure& f) {
    return f.times > 0 && f.part == key.part && f.seat == key.seat && f.database == key.database && f.role == key.role;
  });
  return found == end ? nullptr : found;
}

}  // namespace

void note_fails(Part part, std::string_view sqlstate, std::string_view text) {
  if (!available() || (my_seat < 0 && part != Part::kLauncher)) return;
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
  if (part == Part::kProcess && state->seats[my_seat].served) ++failure->served;
  failure->last = now;
  copy_cut(failure->sqlstate, sizeof failure->sqlstate, sqlstate.substr(0, 5));
  copy_cut(failure->text, kFailureBytes, text);
}

void note_works(Part part) {
  if (!available() || (my_seat < 0 && part != Part::kLauncher)) return;
  Guard guard(LW_EXCLUSIVE);
  if (Failure* failure = find(key_of(part))) failure->times = 0;
}

void forget_failures_of(int seat) {
  for (Failure& failure : state->failures)
    if (failure.seat == seat) failure.times = 0;
}

void forget_failures_beyond_pools(Oid database) {
  for (Failure& failure : state->failures)
    if (failure.database == database && database != InvalidOid && find_pool(database, failure.role) == nullptr)
      failure.times = 0;
}

const Failure* last_end(Oid database, Oid role) {
  Failure key{};
  key.part = Part::kProcess;
  key.seat = -1;
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
    // One process that ended is no trouble: another has come.
    if (f.part == Part::kProcess && (f.served < 2 || now - f.last > kInARow)) continue;
    const PGPROC* worker = f.seat >= 0 ? state->seats[f.seat].worker : nullptr;
    result.push_back({worker != nullptr ? worker->pid : 0, f.role, f.part, f.since, f.last,
                      f.part == Part::kProcess ? f.served : f.times, f.sqlstate, f.text});
  }
  return result;
}

}  // namespace mq::shared
