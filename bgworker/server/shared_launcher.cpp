// The launcher's side of shared memory.

#include <algorithm>
#include <utility>
#include <vector>

#include "shared_state.hpp"

namespace mq::shared {

void launcher_attach() {
  Guard guard(LW_EXCLUSIVE);
  state->launcher = MyProc;
  // A launcher that was restarted knows nothing of the processes that the one before asked for.
  for (Seat& seat : state->seats)
    if (seat.database != InvalidOid && seat.worker == nullptr) seat.database = InvalidOid;
}

void launcher_detach() {
  Guard guard(LW_EXCLUSIVE);
  if (state->launcher == MyProc) state->launcher = nullptr;
}

void forget_databases_but(const std::vector<Oid>& existing) {
  Guard guard(LW_EXCLUSIVE);
  const auto gone = [&](Oid id) {
    return id != InvalidOid && std::find(existing.begin(), existing.end(), id) == existing.end();
  };
  for (Database& d : state->databases) {
    if (!gone(d.id)) continue;
    wake_all_of(d.id);
    d.id = InvalidOid;
  }
  for (Pool& pool : state->pools)
    if (gone(pool.database)) pool.database = InvalidOid;
  forget_lost(existing);
  for (const Oid id : existing) find_or_add_database(id);
}

std::vector<DatabaseState> databases() {
  std::vector<DatabaseState> result;
  result.reserve(kDatabases);
  Guard guard(LW_SHARED);
  const TimestampTz now = GetCurrentTimestamp();
  for (const Database& d : state->databases)
    if (d.id != InvalidOid)
      result.push_back({d.id, d.look, d.installed, d.known, d.closed_until != 0 && now < d.closed_until});
  return result;
}

void want_caretaker(Oid database) {
  Guard guard(LW_EXCLUSIVE);
  add_pool(database, kCaretaker);
}

std::vector<PoolState> pools() {
  std::vector<PoolState> result;
  result.reserve(kPools);
  Guard guard(LW_SHARED);
  for (const Pool& pool : state->pools) {
    if (pool.database == InvalidOid) continue;
    int workers = 0;
    int sitting = 0;
    for (const Seat& seat : state->seats) {
      if (seat.database != pool.database || seat.role != pool.role || seat.renew) continue;
      ++workers;
      if (seat.sits) ++sitting;
    }
    result.push_back({pool.database, pool.role, workers, pool.backlog, workers > 0 && sitting == workers,
                      pool.last_start, pool.failed_starts});
  }
  return result;
}

int workers_of(Oid database) {
  Guard guard(LW_SHARED);
  return static_cast<int>(
      std::count_if(state->seats, state->seats + kSeats, [&](const Seat& seat) { return seat.database == database; }));
}

void set_contended(Oid database, bool contended) {
  Guard guard(LW_EXCLUSIVE);
  Database* d = find_database(database);
  if (d == nullptr || d->contended == contended) return;
  d->contended = contended;
  if (contended) wake_all_of(database);
}

int reserve_seat(Oid database, Oid role) {
  Guard guard(LW_EXCLUSIVE);
  for (int i = 0; i < kSeats; ++i) {
    Seat& seat = state->seats[i];
    if (seat.database != InvalidOid) continue;
    seat = Seat{};
    seat.database = database;
    seat.role = role;
    if (Pool* pool = find_pool(database, role)) pool->last_start = GetCurrentTimestamp();
    return i;
  }
  return -1;
}

void release_seat(int seat) {
  Guard guard(LW_EXCLUSIVE);
  state->seats[seat].database = InvalidOid;
}

void start_failed(int seat) {
  Guard guard(LW_EXCLUSIVE);
  Seat& s = state->seats[seat];
  if (s.database == InvalidOid || s.worker != nullptr) return;
  if (Pool* pool = find_pool(s.database, s.role)) ++pool->failed_starts;
  s.database = InvalidOid;
}

bool seat_is_taken(int seat) {
  Guard guard(LW_SHARED);
  return state->seats[seat].worker != nullptr;
}

void set_out_of_slots(bool out) {
  Guard guard(LW_EXCLUSIVE);
  state->out_of_slots = out;
}

}  // namespace mq::shared
