#include "shmem/progress.hpp"

#include "shmem/layout.hpp"

extern "C" {
#include "miscadmin.h"
}

namespace mq::shared {

namespace {

void write(Told& told, const std::optional<float>& fraction, const std::optional<std::string_view>& note) {
  told.any = true;
  if (fraction) told.fraction = *fraction;
  told.has_fraction = told.has_fraction || fraction.has_value();
  if (note) copy_cut(told.note, sizeof told.note, *note);
  told.has_note = told.has_note || note.has_value();
}

bool is_same(const Told& told, const std::optional<float>& fraction, const std::optional<std::string_view>& note) {
  return (!fraction || (told.has_fraction && told.fraction == *fraction)) &&
         (!note || (told.has_note && told.note == *note));
}

Progress read(const Told& told) {
  Progress progress;
  if (told.has_fraction) progress.fraction = told.fraction;
  if (told.has_note) progress.note = told.note;
  return progress;
}

}  // namespace

// Only this process writes what its call has said, so that it may read it without the lock.
void note_progress(const std::optional<float>& fraction, const std::optional<std::string_view>& note,
                   std::int64_t token) {
  if (!available()) return;
  Told* told = token == 0 ? told_of_my_call() : nullptr;
  if (told != nullptr && is_same(*told, fraction, note)) return;
  Guard guard(LW_EXCLUSIVE);
  if (token != 0)
    for (Lease& lease : used_leases())
      if (lease.token == token && lease.database == MyDatabaseId) told = &lease.told;
  if (told != nullptr) write(*told, fraction, note);
}

std::optional<Progress> progress_of(Oid database, const Uuid& message, std::int64_t lease) {
  if (!available()) return std::nullopt;
  Guard guard(LW_SHARED);
  for (const Caller& caller : state->callers)
    if (caller.database == database && caller.in_call && caller.told.any && caller.message == message)
      return read(caller.told);
  for (const Lease& l : used_leases())
    if (l.token != 0 && l.database == database && l.told.any && (l.token == lease || l.message == message))
      return read(l.told);
  return std::nullopt;
}

std::vector<TellingCall> telling_calls() {
  std::vector<TellingCall> calls;
  if (!available()) return calls;
  Guard guard(LW_SHARED);
  for (std::size_t i = 0; i < kCallers; ++i) {
    const Caller& caller = state->callers[i];
    if (caller.database == InvalidOid || !caller.in_call || !caller.told.any) continue;
    const bool worker = i < kWorkerSlots;
    calls.push_back({worker ? TellingCall::kWorker : TellingCall::kRun, caller.pid, caller.database, caller.role,
                     caller.message, worker ? "" : caller.channel_name, caller.since, read(caller.told)});
  }
  for (const Lease& lease : used_leases())
    if (lease.token != 0 && lease.told.any)
      calls.push_back({TellingCall::kLeased, lease.backend, lease.database, lease.role, lease.message,
                       lease.channel_name, lease.since, read(lease.told)});
  return calls;
}

}  // namespace mq::shared
