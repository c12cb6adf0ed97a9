#include "shmem/schedule_times.hpp"

#include <algorithm>

#include "shmem/layout.hpp"

namespace mq::shared {

namespace {

bool keeps_time_of(const WorkerSlot& slot, const Database& d) {
  return slot.database == d.id && slot.waiting && slot.keeps_until != 0 && slot.keeps_until <= d.schedule_at;
}

bool somebody_fires() {
  const Database* d = find_database(mine().database);
  return d != nullptr && *const_cast<const volatile int*>(&d->firing) != 0;
}

}  // namespace

void schedules_changed(Oid database) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  Database* d = find_database(database);
  if (d == nullptr) return;
  ++d->schedule_changes;
  d->schedule_at = 0;
}

TimestampTz next_schedule() {
  if (my_slot < 0) return DT_NOEND;
  const Database* d = find_database(mine().database);
  return d != nullptr ? *const_cast<const volatile TimestampTz*>(&d->schedule_at) : DT_NOEND;
}

Firing::Firing() {
  // Without the lock first: while one sends, all others ask for each batch.
  if (my_slot < 0 || somebody_fires()) return;
  Guard guard(LW_EXCLUSIVE);
  Database* d = find_database(mine().database);
  if (d == nullptr || d->firing != 0) return;
  d->firing = my_slot + 1;
  changes_ = d->schedule_changes;
  mine_ = true;
}

Firing::~Firing() {
  if (!mine_) return;
  Guard guard(LW_EXCLUSIVE);
  Database* d = find_database(mine().database);
  if (d == nullptr || d->firing != my_slot + 1) return;
  d->firing = 0;
  d->schedule_at = 0;
}

void Firing::done(TimestampTz next) {
  mine_ = false;
  Guard guard(LW_EXCLUSIVE);
  Database* d = find_database(mine().database);
  if (d == nullptr || d->firing != my_slot + 1) return;
  d->firing = 0;
  d->schedule_at = d->schedule_changes == changes_ ? next : 0;
}

TimestampTz keep_time() {
  if (next_schedule() == DT_NOEND) return DT_NOEND;
  Guard guard(LW_EXCLUSIVE);
  const Database* d = find_database(mine().database);
  if (d == nullptr || d->schedule_at == DT_NOEND || d->firing != 0) return DT_NOEND;
  const std::span<WorkerSlot> worker_slots = used_slots();
  const bool kept = std::any_of(worker_slots.begin(), worker_slots.end(),
                                [&](const WorkerSlot& slot) { return &slot != &mine() && keeps_time_of(slot, *d); });
  if (kept) return DT_NOEND;
  mine().keeps_until = d->schedule_at;
  return d->schedule_at;
}

void stop_firing(Oid database, int slot) {
  Database* d = find_database(database);
  if (d == nullptr || d->firing != slot + 1) return;
  d->firing = 0;
  d->schedule_at = 0;
}

void pass_time_on() {
  Guard guard(LW_SHARED);
  for (const Database& d : used_databases()) {
    if (d.id == InvalidOid || d.schedule_at == DT_NOEND || !d.installed) continue;
    const WorkerSlot* waits = nullptr;
    bool kept = d.firing != 0;
    for (const WorkerSlot& slot : used_slots()) {
      if (slot.database != d.id || slot.worker == nullptr || slot.draining) continue;
      if (slot.waiting && !keeps_time_of(slot, d))
        waits = &slot;
      else
        kept = kept || slot.waiting || !slot.busy_long;
    }
    if (!kept && waits != nullptr) SetLatch(&waits->worker->procLatch);
  }
}

}  // namespace mq::shared
