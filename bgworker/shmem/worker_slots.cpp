#include "shmem/worker_slots.hpp"

#include <algorithm>
#include <utility>

#include "pg/settings.h"
#include "shmem/in_flight.hpp"
#include "shmem/layout.hpp"
#include "shmem/pool_state.hpp"

namespace mq::shared {

namespace {

// Notes for the launcher that this worker is free, with nothing to do before `due`. Under the lock.
void note_free(std::uint64_t seen, TimestampTz due) {
  Pool* pool = find_pool(mine().database, mine().role);
  if (pool == nullptr) return;
  pool->seen = seen;
  pool->due = due;
}

}  // namespace

bool gave_way() {
  if (my_slot < 0) return false;
  Guard guard(LW_EXCLUSIVE);
  return std::exchange(mine().gives_way, false);
}

namespace {

// Whether this worker has leased calls that run. Under the lock.
bool has_leased_calls() {
  const std::span<Lease> leases = used_leases();
  return std::any_of(leases.begin(), leases.end(),
                     [](const Lease& lease) { return lease.token != 0 && lease.slot == my_slot; });
}

// Whether this worker, whose settings have changed, may leave or drain for that. While another
// worker of its pool drains for the same reason, it may only without leased calls. Under the lock.
bool can_renew() {
  const WorkerSlot& slot = mine();
  if (!slot.stale) return false;
  const std::span<WorkerSlot> worker_slots = used_slots();
  const bool others_leave = std::any_of(worker_slots.begin(), worker_slots.end(), [&](const WorkerSlot& other) {
    return other.renew && &other != &slot && other.database == slot.database && other.role == slot.role;
  });
  return !others_leave || (!has_leased_calls() && slot.connecting == 0);
}

}  // namespace

// Mostly without the lock, since workers ask for each batch.
bool should_renew() {
  if (my_slot < 0 || !*const_cast<volatile bool*>(&mine().stale)) return false;
  Guard guard(LW_SHARED);
  return can_renew();
}

void give_up_database_slot() {
  if (my_slot < 0) return;
  Guard guard(LW_EXCLUSIVE);
  mine().draining = true;
  mine().renew = can_renew();
  wake_launcher();
}

bool has_database_slot() {
  return my_slot >= 0 && !*const_cast<volatile bool*>(&mine().draining);
}

Assignment take_slot(const Reservation& reservation) {
  Guard guard(LW_EXCLUSIVE);
  // The launcher that reserved the slot may have gone, and a new one may have given it to another.
  WorkerSlot& s = state->worker_slots[reservation.slot];
  if (s.database == InvalidOid || s.worker != nullptr || s.reservation != reservation.number)
    return {InvalidOid, InvalidOid};
  const Database* d = find_database(s.database);
  if (d == nullptr || is_closed(*d, GetCurrentTimestamp())) {
    s = WorkerSlot{};
    slots_freed();
    return {InvalidOid, InvalidOid};
  }
  my_slot = reservation.slot;
  s.worker = MyProc;
  s.waiting = false;
  s.since = GetCurrentTimestamp();
  return {s.database, s.role};
}

void open_in_flight() {
  in_flight::open(my_slot, kWorkerSlots, kWorkerSlots + kLeases);
}

void leave_slot() {
  if (my_slot < 0) return;
  Guard guard(LW_EXCLUSIVE);
  if (Pool* pool = find_pool(mine().database, mine().role); pool != nullptr && !mine().served) ++pool->failed_starts;
  abandon_leases();
  forget_failures_of(my_slot);
  stop_firing(mine().database, my_slot);
  if (mine().renew)  // others of the pool wait for this, see can_renew()
    for (const WorkerSlot& slot : used_slots())
      if (slot.stale && !slot.renew && slot.worker != nullptr && slot.database == mine().database &&
          slot.role == mine().role)
        SetLatch(&slot.worker->procLatch);
  mine() = WorkerSlot{};
  slots_freed();
  my_slot = -1;
  wake_launcher();
}

void publish_pools(bool installed, const std::vector<Oid>& roles) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  Database* d = find_database(MyDatabaseId);
  if (d == nullptr) return;  // the database is not served any more
  d->known = true;
  d->installed = installed;
  d->look = false;
  for (Pool& pool : used_pools()) {
    if (pool.database != MyDatabaseId) continue;
    if (std::find(roles.begin(), roles.end(), pool.role) == roles.end()) pool.database = InvalidOid;
  }
  pools_freed();
  for (const Oid role : roles) add_pool(MyDatabaseId, role);
  forget_failures_beyond_pools(MyDatabaseId);
  wake_launcher();
}

void publish_handled(const std::optional<NameFilter>& names, std::uint64_t forgotten) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  Database* d = find_database(MyDatabaseId);
  if (d == nullptr || d->handled_forgotten != forgotten) return;
  d->handled_known = names.has_value();
  if (names) d->handled = *names;
}

void set_backlog(bool backlog) {
  if (my_slot < 0) return;
  Guard guard(LW_EXCLUSIVE);
  Pool* pool = find_pool(mine().database, mine().role);
  if (pool == nullptr || pool->backlog == backlog) return;
  pool->backlog = backlog;
  if (!backlog) return;
  wake_launcher_soon();
  for (WorkerSlot& slot : used_slots())  // an idle worker of the pool can help at once
    if (slot.database == mine().database && slot.role == mine().role && slot.waiting) SetLatch(&slot.worker->procLatch);
}

News news() {
  Guard guard(LW_SHARED);
  const Database* d = find_database(mine().database);
  return d != nullptr ? News{d->wakes, d->announcements, d->handled_forgotten} : News{0, 0, 0};
}

// Without the lock, since workers ask for each batch.
bool announced_since(std::uint64_t announcements) {
  if (my_slot < 0) return false;
  const Database* d = find_database(mine().database);
  return d != nullptr && *const_cast<const volatile std::uint64_t*>(&d->announcements) != announcements;
}

bool begin_wait(std::uint64_t seen, TimestampTz due) {
  Guard guard(LW_EXCLUSIVE);
  const Database* d = find_database(mine().database);
  if (d != nullptr && d->wakes != seen) return false;
  note_free(seen, due);
  if (!mine().waiting) mine().since = GetCurrentTimestamp();
  mine().waiting = true;
  mine().keeps_until = 0;
  return true;
}

void end_wait() {
  Guard guard(LW_EXCLUSIVE);
  mine().waiting = false;
}

bool is_closed() {
  if (my_slot < 0) return false;
  Guard guard(LW_SHARED);
  const Database* d = find_database(mine().database);
  return d == nullptr || is_closed(*d, GetCurrentTimestamp());
}

bool must_leave() {
  if (my_slot < 0) return false;
  Guard guard(LW_SHARED);
  const Database* d = find_database(mine().database);
  if (can_renew() || d == nullptr || is_closed(*d, GetCurrentTimestamp())) return true;
  if (d->known && find_pool(mine().database, mine().role) == nullptr) return true;
  // mq.max_workers was lowered: the workers in the first slots stay.
  const auto before = std::count_if(state->worker_slots, &mine(), [](const WorkerSlot& slot) {
    return slot.database == mine().database && has_database_slot(slot);
  });
  return before >= mq_max_workers;
}

// Without the lock, since workers ask for each batch.
bool slots_are_wanted() {
  return *const_cast<volatile int*>(&state->slots_wanted) > 0;
}

Micros longest_rest(int waiting) {
  return std::max(Micros{mq_poll_interval} * 1000, waiting * kSecond);
}

Micros longest_rest() {
  return longest_rest(*const_cast<volatile int*>(&state->slots.waiting));
}

bool give_up_slot(TimestampTz due, std::uint64_t seen) {
  if (!slots_are_wanted()) return false;
  Guard guard(LW_EXCLUSIVE);
  // A worker with leased calls would wait for them, and keep the slot meanwhile.
  if (state->slots_wanted <= 0 || mine().gives_up || has_leased_calls()) return false;
  --state->slots_wanted;
  mine().gives_up = true;
  note_free(seen, due);
  return true;
}

Contention contention() {
  Guard guard(LW_SHARED);
  const Database* d = find_database(mine().database);
  if (d == nullptr || (OidIsValid(d->needy) && d->needy == mine().role)) return {false, false};
  return {d->contended, d->database_slots_wanted > 0};
}

void end_turn(TimestampTz due, std::uint64_t seen, bool fruitless) {
  Guard guard(LW_EXCLUSIVE);
  note_free(seen, due);
  Pool* pool = find_pool(mine().database, mine().role);
  if (pool != nullptr && !fruitless) pool->fruitless = 0;
}

bool yield_database_slot(TimestampTz due, std::uint64_t seen, bool fruitless) {
  Guard guard(LW_EXCLUSIVE);
  Database* d = find_database(mine().database);
  if (d == nullptr || d->database_slots_wanted <= 0 || d->wakes != seen || mine().connecting > 0) return false;
  --d->database_slots_wanted;
  mine().yields = true;
  note_free(seen, due);
  if (Pool* pool = find_pool(mine().database, mine().role)) {
    pool->fruitless = fruitless ? pool->fruitless + 1 : 0;
    pool->not_before = fruitless ? after_fruitless(pool->fruitless, GetCurrentTimestamp(), d->next_fruitless) : 0;
  }
  return true;
}

bool is_extra() {
  Guard guard(LW_SHARED);
  const std::span<WorkerSlot> worker_slots = used_slots();
  return std::any_of(worker_slots.begin(), worker_slots.end(), [](const WorkerSlot& slot) {
    return &slot != &mine() && slot.database == mine().database && slot.role == mine().role && slot.waiting;
  });
}

void started_well() {
  Guard guard(LW_EXCLUSIVE);
  mine().served = true;
  if (Pool* pool = find_pool(mine().database, mine().role)) pool->failed_starts = 0;
}

}  // namespace mq::shared
