#include "shmem/databases.hpp"

#include <algorithm>
#include <array>
#include <span>
#include <utility>
#include <vector>

#include "pg/settings.h"
#include "shmem/layout.hpp"
#include "shmem/pool_state.hpp"

namespace mq::shared {

void launcher_attach() {
  Guard guard(LW_EXCLUSIVE);
  state->launcher = MyProc;
  state->launcher_pauses = false;
  // Frees the slots of processes that an earlier launcher asked for: this one does not know them.
  for (WorkerSlot& slot : used_slots())
    if (slot.database != InvalidOid && slot.worker == nullptr) slot.database = InvalidOid;
  slots_freed();
}

void launcher_detach() {
  Guard guard(LW_EXCLUSIVE);
  if (state->launcher == MyProc) state->launcher = nullptr;
}

int keep_databases(const std::vector<Oid>& served, const std::set<Oid>& without) {
  forget_asked(served);
  Guard guard(LW_EXCLUSIVE);
  const auto gone = [&](Oid id) {
    return id != InvalidOid && std::find(served.begin(), served.end(), id) == served.end();
  };
  for (Database& d : used_databases()) {
    if (!gone(d.id)) continue;
    wake_all_of(d.id);
    d.id = InvalidOid;
  }
  for (Pool& pool : used_pools())
    if (gone(pool.database)) pool.database = InvalidOid;
  databases_freed();
  pools_freed();
  forget_aborted_calls(served);
  forget_limits(served);
  state->databases_beyond = 0;
  for (const Oid id : served)
    if (!without.contains(id) && find_or_add_database(id) == nullptr) ++state->databases_beyond;
  return state->databases_beyond;
}

std::vector<Oid> forget_without_extension() {
  std::vector<Oid> forgotten;
  forgotten.reserve(state->databases.size());
  Guard guard(LW_EXCLUSIVE);
  for (Database& d : used_databases()) {
    if (d.id == InvalidOid || !d.known || d.installed || d.look) continue;
    const std::span<WorkerSlot> worker_slots = used_slots();
    const bool worker =
        std::any_of(worker_slots.begin(), worker_slots.end(), [&](const WorkerSlot& s) { return s.database == d.id; });
    if (worker || is_closed(d, GetCurrentTimestamp())) continue;
    forgotten.push_back(d.id);
    d.id = InvalidOid;
  }
  databases_freed();
  return forgotten;
}

bool take_no_room() {
  Guard guard(LW_EXCLUSIVE);
  return std::exchange(state->no_room, false);
}

std::vector<DatabaseState> databases() {
  std::vector<DatabaseState> result;
  result.reserve(state->databases.size());
  Guard guard(LW_SHARED);
  const TimestampTz now = GetCurrentTimestamp();
  for (const Database& d : used_databases())
    if (d.id != InvalidOid) result.push_back({d.id, d.look, d.installed, d.known, is_closed(d, now)});
  return result;
}

void want_probe(Oid database) {
  Guard guard(LW_EXCLUSIVE);
  add_pool(database, kProbe);
}

namespace {

const Database* database_of(Pool& pool) {
  const std::span<Database> used = used_databases();
  if (pool.database_at < used.size() && used[pool.database_at].id == pool.database) return &used[pool.database_at];
  const Database* d = find_database(pool.database);
  if (d != nullptr) pool.database_at = static_cast<std::size_t>(d - used.data());
  return d;
}

}  // namespace

std::vector<PoolState> pools() {
  std::vector<PoolState> result;
  result.reserve(state->pools.size());
  std::array<const WorkerSlot*, kWorkerSlots> taken;  // few as a rule, where pools may be many
  int count = 0;
  Guard guard(LW_SHARED);
  const TimestampTz now = GetCurrentTimestamp();
  for (const WorkerSlot& slot : used_slots())
    if (slot.database != InvalidOid && !slot.renew) taken[count++] = &slot;
  for (Pool& pool : used_pools()) {
    if (pool.database == InvalidOid) continue;
    int workers = 0;
    int draining = 0;
    int sitting = 0;
    int stuck = 0;
    for (const WorkerSlot* slot : std::span(taken.data(), count)) {
      if (slot->database != pool.database || slot->role != pool.role) continue;
      if (slot->draining) {
        if (!slot->gives_up) ++draining;
        continue;
      }
      ++workers;
      if (!slot->busy_long) continue;
      ++sitting;
      if (slot->doing != Doing::kBetween && now - slot->since >= kLongCall) ++stuck;
    }
    const Database* d = database_of(pool);
    TimestampTz due = d != nullptr && d->wakes == pool.seen && !pool.backlog ? pool.due : 0;
    // So far ahead it is wrong: the clock was set back, or mq.poll_interval was lowered.
    if (due - now > longest_rest(static_cast<int>(used_pools().size()))) due = 0;
    if (now < pool.not_before && pool.not_before - now <= kLastFruitless) due = std::max(due, pool.not_before);
    result.push_back({pool.database, pool.role, workers, pool.backlog, workers > 0 && sitting == workers,
                      pool.last_start, pool.failed_starts, due, workers > 0 && stuck == workers, draining});
  }
  return result;
}

void set_obstructed(Oid database, Oid role, bool obstructed) {
  Guard guard(LW_EXCLUSIVE);
  Pool* pool = find_pool(database, role);
  if (pool == nullptr || pool->obstructed == obstructed) return;
  pool->obstructed = obstructed;
  if (!obstructed) pool->last_start = 0;
}

void retry_failed_starts() {
  Guard guard(LW_EXCLUSIVE);
  for (Pool& pool : used_pools())
    if (pool.failed_starts > 0) pool.last_start = 0;
}

void set_database_slots(const std::vector<DatabaseSlots>& slots) {
  Guard guard(LW_EXCLUSIVE);
  for (const DatabaseSlots& p : slots) {
    Database* d = find_database(p.database);
    if (d == nullptr) continue;
    const bool begins = p.contended && !d->contended;
    d->contended = p.contended;
    d->tight = p.tight;
    d->needy = p.needy;
    d->database_slots_wanted = 0;
    if (begins) wake_all_of(p.database);
    if (p.wanted == 0) continue;
    const std::span<WorkerSlot> worker_slots = used_slots();
    const auto leaving = std::count_if(worker_slots.begin(), worker_slots.end(), [&](const WorkerSlot& slot) {
      return slot.database == p.database && slot.yields && has_database_slot(slot);
    });
    d->database_slots_wanted = std::max(0, p.wanted - static_cast<int>(leaving));
    if (d->database_slots_wanted == 0) continue;
    for (const WorkerSlot& slot : worker_slots)
      if (slot.database == p.database && slot.waiting) SetLatch(&slot.worker->procLatch);
  }
}

void launcher_looks() {
  state->launcher_pauses = true;
  state->launcher_asked = false;
  pg_memory_barrier();
}

bool launcher_was_asked() {
  state->launcher_pauses = false;
  pg_memory_barrier();
  return state->launcher_asked;
}

int most_workers() {
  return kWorkerSlots;
}

Reservation reserve_slot(Oid database, Oid role) {
  Guard guard(LW_EXCLUSIVE);
  WorkerSlot* slot = take_free(std::span<WorkerSlot>(state->worker_slots), state->slots_used);
  if (slot == nullptr) return {};
  *slot = WorkerSlot{};
  slot->database = database;
  slot->role = role;
  slot->reservation = ++state->reservations;
  Reservation reservation{static_cast<int>(slot - state->worker_slots), slot->reservation};
  if (Pool* pool = find_pool(database, role)) {
    reservation.last_start = std::exchange(pool->last_start, GetCurrentTimestamp());
    reservation.due = std::exchange(pool->due, 0);
  }
  return reservation;
}

namespace {

// Whether the reserved slot still waits for its worker. If a worker has come and left, the slot may
// have been reserved anew since.
bool waits_for(const Reservation& reservation) {
  const WorkerSlot& slot = state->worker_slots[reservation.slot];
  return slot.reservation == reservation.number && slot.database != InvalidOid && slot.worker == nullptr;
}

}  // namespace

bool give_database_slot(Oid database, Oid role) {
  Guard guard(LW_EXCLUSIVE);
  for (WorkerSlot& slot : used_slots()) {
    if (slot.database != database || slot.role != role || !slot.draining || slot.renew || slot.gives_up) continue;
    slot.draining = slot.yields = false;
    SetLatch(&slot.worker->procLatch);
    if (Pool* pool = find_pool(database, role)) {
      pool->last_start = GetCurrentTimestamp();
      pool->due = 0;
    }
    return true;
  }
  return false;
}

void release_slot(const Reservation& reservation) {
  Guard guard(LW_EXCLUSIVE);
  if (!waits_for(reservation)) return;
  WorkerSlot& slot = state->worker_slots[reservation.slot];
  if (Pool* pool = find_pool(slot.database, slot.role)) {
    pool->last_start = reservation.last_start;
    if (pool->due == 0) pool->due = reservation.due;
  }
  slot = WorkerSlot{};
  slots_freed();
}

void start_failed(const Reservation& reservation) {
  Guard guard(LW_EXCLUSIVE);
  if (!waits_for(reservation)) return;
  WorkerSlot& slot = state->worker_slots[reservation.slot];
  if (Pool* pool = find_pool(slot.database, slot.role)) ++pool->failed_starts;
  slot = WorkerSlot{};
  slots_freed();
}

bool is_reserved(const Reservation& reservation) {
  Guard guard(LW_SHARED);
  return waits_for(reservation);
}

void set_slots(const SlotState& slots, int wanted) {
  Guard guard(LW_EXCLUSIVE);
  const std::span<WorkerSlot> worker_slots = used_slots();
  const auto leaving = static_cast<int>(
      std::count_if(worker_slots.begin(), worker_slots.end(), [](const WorkerSlot& slot) { return slot.gives_up; }));
  state->slots = {slots.out_of_slots, slots.out_of_worker_slots, slots.waiting, state->slots.pools_beyond};
  const std::span<Pool> pools = used_pools();
  if (pools.size() < state->pools.size() ||
      std::any_of(pools.begin(), pools.end(), [](const Pool& pool) { return is_free(pool); }))
    state->slots.pools_beyond = false;
  state->short_of_slots = slots.waiting > 0;
  state->slots_wanted = std::max(0, wanted - leaving);
  if (state->slots_wanted == 0) return;
  for (const WorkerSlot& slot : used_slots())
    if (slot.waiting) SetLatch(&slot.worker->procLatch);
}

bool take_look_around() {
  Guard guard(LW_EXCLUSIVE);
  return std::exchange(state->look_around, false);
}

ServiceState service() {
  if (!available()) return {};
  Guard guard(LW_SHARED);
  ServiceState result{};
  result.launcher = state->launcher != nullptr;
  result.served = find_database(MyDatabaseId) != nullptr;
  result.slots = state->slots;
  result.out_of_slots = result.slots.out_of_slots || result.slots.out_of_worker_slots;
  result.beyond = !result.served && state->databases_beyond > 0;
  for (const Pool& pool : used_pools())
    if (pool.database == MyDatabaseId && pool.failed_starts > result.failed_starts) {
      result.failing_role = pool.role;
      result.failed_starts = pool.failed_starts;
    }
  return result;
}

std::vector<FailingPool> failing_pools() {
  std::vector<FailingPool> result;
  if (!available()) return result;
  result.reserve(state->pools.size());
  Guard guard(LW_SHARED);
  for (const Pool& pool : used_pools())
    if (pool.database == MyDatabaseId && pool.failed_starts > 0) {
      const Failure* end = last_end(MyDatabaseId, pool.role);
      result.push_back({pool.role, pool.failed_starts, end != nullptr ? end->text : ""});
    }
  return result;
}

}  // namespace mq::shared
