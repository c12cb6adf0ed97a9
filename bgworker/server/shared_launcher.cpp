// The launcher's side of shared memory.

#include <algorithm>
#include <array>
#include <span>
#include <utility>
#include <vector>

#include "../pool.hpp"
#include "settings.h"
#include "shared_state.hpp"

namespace mq::shared {

void launcher_attach() {
  Guard guard(LW_EXCLUSIVE);
  state->launcher = MyProc;
  state->launcher_pauses = false;
  // A launcher that was restarted knows nothing of the processes that the one before asked for.
  for (Seat& seat : used_seats())
    if (seat.database != InvalidOid && seat.worker == nullptr) seat.database = InvalidOid;
  seats_freed();
}

void launcher_detach() {
  Guard guard(LW_EXCLUSIVE);
  if (state->launcher == MyProc) state->launcher = nullptr;
}

int keep_databases(const std::vector<Oid>& served, const std::set<Oid>& without) {
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
  forget_lost(served);
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
    const std::span<Seat> seats = used_seats();
    const bool worker = std::any_of(seats.begin(), seats.end(), [&](const Seat& s) { return s.database == d.id; });
    if (worker || (d.closed_until != 0 && GetCurrentTimestamp() < d.closed_until)) continue;
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
    if (d.id != InvalidOid)
      result.push_back({d.id, d.look, d.installed, d.known, d.closed_until != 0 && now < d.closed_until});
  return result;
}

void want_caretaker(Oid database) {
  Guard guard(LW_EXCLUSIVE);
  add_pool(database, kCaretaker);
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
  std::array<const Seat*, kSeats> taken;  // a few, as a rule, where pools may be many
  int count = 0;
  Guard guard(LW_SHARED);
  const TimestampTz now = GetCurrentTimestamp();
  for (const Seat& seat : used_seats())
    if (seat.database != InvalidOid && !seat.renew) taken[count++] = &seat;
  for (Pool& pool : used_pools()) {
    if (pool.database == InvalidOid) continue;
    int workers = 0;
    int keepers = 0;
    int sitting = 0;
    int stuck = 0;
    for (const Seat* seat : std::span(taken.data(), count)) {
      if (seat->database != pool.database || seat->role != pool.role) continue;
      if (seat->keeper) {
        if (!seat->gives_up) ++keepers;
        continue;
      }
      ++workers;
      if (!seat->sits) continue;
      ++sitting;
      if (seat->doing != Doing::kBetween && now - seat->since >= kLongCall) ++stuck;
    }
    const Database* d = database_of(pool);
    TimestampTz due = d != nullptr && d->wakes == pool.seen && !pool.backlog ? pool.due : 0;
    if (due - now > Micros{mq_poll_interval} * 1000) due = 0;  // the clock was set back, or the interval is another now
    if (now < pool.not_before && pool.not_before - now <= kLastFruitless) due = std::max(due, pool.not_before);
    result.push_back({pool.database, pool.role, workers, pool.backlog, workers > 0 && sitting == workers,
                      pool.last_start, pool.failed_starts, due, workers > 0 && stuck == workers, keepers});
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

void set_places(const std::vector<Places>& places) {
  Guard guard(LW_EXCLUSIVE);
  for (const Places& p : places) {
    Database* d = find_database(p.database);
    if (d == nullptr) continue;
    const bool begins = p.contended && !d->contended;
    d->contended = p.contended;
    d->tight = p.tight;
    d->needy = p.needy;
    d->places_wanted = 0;
    if (begins) wake_all_of(p.database);
    if (p.wanted == 0) continue;
    const std::span<Seat> seats = used_seats();
    const auto leaving = std::count_if(seats.begin(), seats.end(), [&](const Seat& seat) {
      return seat.database == p.database && seat.yields && has_place(seat);
    });
    d->places_wanted = std::max(0, p.wanted - static_cast<int>(leaving));
    if (d->places_wanted == 0) continue;
    for (const Seat& seat : seats)
      if (seat.database == p.database && seat.waiting) SetLatch(&seat.worker->procLatch);
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
  return kSeats;
}

Reservation reserve_seat(Oid database, Oid role) {
  Guard guard(LW_EXCLUSIVE);
  Seat* seat = take_free(std::span<Seat>(state->seats), state->seats_used);
  if (seat == nullptr) return {};
  *seat = Seat{};
  seat->database = database;
  seat->role = role;
  seat->reservation = ++state->reservations;
  if (Pool* pool = find_pool(database, role)) {
    pool->last_start = GetCurrentTimestamp();
    pool->due = 0;
  }
  return {static_cast<int>(seat - state->seats), seat->reservation};
}

namespace {

// A worker that has come, ended and left leaves a seat that may have been reserved anew since.
bool waits_for(const Reservation& reservation) {
  const Seat& seat = state->seats[reservation.seat];
  return seat.reservation == reservation.number && seat.database != InvalidOid && seat.worker == nullptr;
}

}  // namespace

bool give_place(Oid database, Oid role) {
  Guard guard(LW_EXCLUSIVE);
  for (Seat& seat : used_seats()) {
    if (seat.database != database || seat.role != role || !seat.keeper || seat.renew || seat.gives_up) continue;
    seat.keeper = seat.yields = false;
    SetLatch(&seat.worker->procLatch);
    if (Pool* pool = find_pool(database, role)) {
      pool->last_start = GetCurrentTimestamp();
      pool->due = 0;
    }
    return true;
  }
  return false;
}

void release_seat(const Reservation& reservation) {
  Guard guard(LW_EXCLUSIVE);
  if (!waits_for(reservation)) return;
  state->seats[reservation.seat] = Seat{};
  seats_freed();
}

void start_failed(const Reservation& reservation) {
  Guard guard(LW_EXCLUSIVE);
  if (!waits_for(reservation)) return;
  Seat& seat = state->seats[reservation.seat];
  if (Pool* pool = find_pool(seat.database, seat.role)) ++pool->failed_starts;
  seat = Seat{};
  seats_freed();
}

bool is_reserved(const Reservation& reservation) {
  Guard guard(LW_SHARED);
  return waits_for(reservation);
}

void set_slots(const SlotState& slots, int wanted) {
  Guard guard(LW_EXCLUSIVE);
  const std::span<Seat> seats = used_seats();
  const auto leaving =
      static_cast<int>(std::count_if(seats.begin(), seats.end(), [](const Seat& seat) { return seat.gives_up; }));
  state->slots = {slots.out_of_slots, slots.out_of_seats, slots.waiting, state->slots.pools_beyond};
  const std::span<Pool> pools = used_pools();
  if (pools.size() < state->pools.size() ||
      std::any_of(pools.begin(), pools.end(), [](const Pool& pool) { return is_free(pool); }))
    state->slots.pools_beyond = false;
  state->short_of_slots = slots.waiting > 0;
  state->slots_wanted = std::max(0, wanted - leaving);
  if (state->slots_wanted == 0) return;
  for (const Seat& seat : used_seats())
    if (seat.waiting) SetLatch(&seat.worker->procLatch);
}

}  // namespace mq::shared
