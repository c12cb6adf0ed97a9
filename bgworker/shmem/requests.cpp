#include "shmem/requests.hpp"

#include <algorithm>

#include "shmem/databases.hpp"
#include "shmem/layout.hpp"

namespace mq::shared {

namespace {

void forget(Database& d) {
  d.handled_known = false;
  ++d.handled_forgotten;
}

}  // namespace

void announce_database(Oid database) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  if (Database* d = find_or_add_database(database)) {
    d->look = true;
    d->closed_until = 0;
    ++d->announcements;
    forget(*d);
    ++d->schedule_changes;
    d->schedule_at = 0;
    ++d->wakes;
  } else {
    state->no_room = state->look_around = true;
  }
  wake_all_of(database);
  wake_launcher();
}

void wake_workers(Oid database) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  Database* d = find_database(database);
  if (d == nullptr) return;
  ++d->wakes;
  Oid woken[kWorkerSlots];
  int count = 0;
  bool served = false;  // if so: a worker that is busy looks again before it waits
  for (WorkerSlot& slot : used_slots()) {
    served = served || slot.database == database;
    if (slot.database != database || !slot.waiting) continue;
    if (std::find(woken, woken + count, slot.role) != woken + count) continue;
    woken[count++] = slot.role;
    SetLatch(&slot.worker->procLatch);
  }
  if (d->contended || d->tight || !served || state->short_of_slots) wake_launcher_soon();
}

void wake_handlers(Oid database, std::span<const std::int64_t> names) {
  if (!available()) return;
  {
    Guard guard(LW_SHARED);
    const Database* d = find_database(database);
    if (d == nullptr) return;
    const auto may_be_handled = [&](std::int64_t key) { return d->handled.may_have(key); };
    if (d->handled_known && std::none_of(names.begin(), names.end(), may_be_handled)) return;
  }
  wake_workers(database);
}

void forget_handled(Oid database) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  if (Database* d = find_database(database)) forget(*d);
}

void wake_or_announce(Oid database) {
  if (!available()) return;
  bool known = false;
  {
    Guard guard(LW_SHARED);
    const Database* d = find_database(database);
    known = d != nullptr && d->installed;
  }
  known ? wake_workers(database) : announce_database(database);
}

void close_database(Oid database) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  if (Database* d = find_database(database)) d->closed_until = GetCurrentTimestamp() + kClosedFor;
  wake_all_of(database);
}

void open_database(Oid database) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  if (Database* d = find_database(database)) d->closed_until = 0;
  wake_launcher();
}

std::vector<int> processes_in(Oid database) {
  std::vector<int> result;
  if (!available()) return result;
  result.reserve(kWorkerSlots + kLeases);
  Guard guard(LW_SHARED);
  for (const WorkerSlot& slot : used_slots())
    if (slot.database == database && slot.worker != nullptr) result.push_back(slot.worker->pid);
  for (const Lease& lease : used_leases())
    if (lease.token != 0 && lease.slot >= 0 && lease.database == database) result.push_back(lease.backend);
  return result;
}

void ask_to_give_way(int worker) {
  Guard guard(LW_EXCLUSIVE);
  for (WorkerSlot& slot : used_slots()) {
    if (slot.database == InvalidOid || slot.worker == nullptr || slot.worker->pid != worker) continue;
    slot.gives_way = true;
    (void)kill(worker, SIGINT);
  }
}

void renew_workers(Oid database, Oid role) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  for (WorkerSlot& slot : used_slots()) {
    if (slot.database == InvalidOid || slot.worker == nullptr) continue;
    if ((database != InvalidOid && slot.database != database) || (role != InvalidOid && slot.role != role)) continue;
    slot.stale = true;
    SetLatch(&slot.worker->procLatch);
  }
}

void look_around() {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  state->look_around = true;
  wake_launcher();
}

}  // namespace mq::shared
