// Leases in shared memory: which session handles what, for the handler that says something of its message, for the
// limit of a channel, and to tell a lease that is alive from an orphan.

#include <csignal>
#include <cstring>

#include <algorithm>

#include "entries.h"
#include "shared_state.hpp"

extern "C" {
#include "access/parallel.h"
#include "mb/pg_wchar.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
}

namespace mq::shared {

namespace {

HandledHere handled_in_process{0, false};  // token 0: nothing; set by set_handled_here

const PGPROC* find_process(int backend, Oid database, Oid role) {
  const PGPROC* process = BackendPidGetProc(backend);
  return process != nullptr && process->databaseId == database && process->roleId == role ? process : nullptr;
}

bool is_session(int backend, Oid database, Oid role) {
  const PGPROC* process = find_process(backend, database, role);
#if PG_VERSION_NUM >= 180000
  return process != nullptr && process->isRegularBackend;
#else
  return process != nullptr && !process->isBackgroundWorker;
#endif
}

bool is_alive(const Lease& lease) {
  return lease.token != 0 && (lease.seat >= 0 || find_process(lease.backend, lease.database, lease.role) != nullptr);
}

}  // namespace

bool is_session_of_mine(int backend) {
  return my_seat >= 0 && is_session(backend, state->seats[my_seat].database, state->seats[my_seat].role);
}

Oid my_role() {
  return my_seat >= 0 ? state->seats[my_seat].role : InvalidOid;
}

void note_alone(bool alone) {
  if (my_seat < 0) return;
  Guard guard(LW_EXCLUSIVE);
  state->seats[my_seat].alone = alone;
}

namespace {

// Under the lock: a worker of the pool has its calls run alone, and one runs, whoever's.
bool would_be_company() {
  const auto of_pool = [](Oid database, Oid role) { return database == MyDatabaseId && role == MyProc->roleId; };
  const std::span<Seat> seats = used_seats();
  const bool wanted = std::any_of(seats.begin(), seats.end(), [&](const Seat& seat) {
    return seat.alone && seat.worker != nullptr && of_pool(seat.database, seat.role);
  });
  const std::span<Lease> leases = used_leases();
  return wanted && std::any_of(leases.begin(), leases.end(),
                               [&](const Lease& l) { return of_pool(l.database, l.role) && is_alive(l); });
}

}  // namespace

int enter_lease(const NewLease& lease) {
  if (!available()) return -1;
  Guard guard(LW_EXCLUSIVE);
  int on_channel = 0;
  for (Lease& l : used_leases()) {
    if (l.token != 0 && !is_alive(l)) l.token = 0;
    if (l.token != 0 && l.database == MyDatabaseId && l.name_key == lease.name_key) ++on_channel;
  }
  leases_freed();
  if ((lease.most > 0 && on_channel >= lease.most) || would_be_company()) return -1;
  Lease* free = take_free(std::span<Lease>(state->leases), state->leases_used);
  if (free == nullptr) return -1;
  *free = {lease.token,   MyDatabaseId,   MyProc->roleId,      my_seat,
           lease.backend, lease.name_key, lease.block_on_dead, GetCurrentTimestamp()};
  return static_cast<int>(free - state->leases);
}

void leave_lease(int number) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  state->leases[number].token = 0;
  leases_freed();
}

void lose_lease(int number, const Uuid& message) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  const Lease& l = state->leases[number];
  add_lost({l.database, 1, message, l.token, l.role}, Loss::kRunFailed);
  state->leases[number].token = 0;
  leases_freed();
}

int leases_on(std::int64_t name_key) {
  if (!available()) return 0;
  Guard guard(LW_SHARED);
  const std::span<Lease> leases = used_leases();
  return static_cast<int>(std::count_if(leases.begin(), leases.end(), [&](const Lease& l) {
    return l.database == MyDatabaseId && l.name_key == name_key && is_alive(l);
  }));
}

bool lease_is_alive(std::int64_t token) {
  if (!available()) return false;
  Guard guard(LW_SHARED);
  const std::span<Lease> leases = used_leases();
  return std::any_of(leases.begin(), leases.end(),
                     [&](const Lease& l) { return l.token == token && l.database == MyDatabaseId && is_alive(l); });
}

std::vector<LeasedCallState> leased_calls() {
  std::vector<LeasedCallState> result;
  if (!available()) return result;
  result.reserve(kLeases);
  Guard guard(LW_SHARED);
  for (const Lease& l : used_leases())
    if (l.database == MyDatabaseId && is_alive(l)) result.push_back({l.backend, l.role, l.token, l.since});
  return result;
}

void set_handled_here(const std::optional<HandledHere>& call) {
  handled_in_process = call.value_or(HandledHere{0, false});
}

std::optional<HandledHere> handled_here() {
  if (handled_in_process.token != 0) return handled_in_process;
  if (!available()) return std::nullopt;
  Guard guard(LW_SHARED);
  for (const Lease& l : used_leases())
    if (l.token != 0 && l.seat >= 0 && l.backend == MyProcPid && l.database == MyDatabaseId)
      return HandledHere{l.token, l.block_on_dead};
  return std::nullopt;
}

// A session whose worker ends has nobody who would hear of its end. Its lease is alive until it has ended, too.
void abandon_leases() {
  for (Lease& l : used_leases()) {
    if (l.token == 0 || l.seat != my_seat) continue;
    if (is_session(l.backend, l.database, l.role)) (void)kill(l.backend, SIGTERM);
    const auto number = static_cast<int>(&l - state->leases);
    // A handler that ends the worker which looks after it would do so for ever.
    if (l.backend == mq_ended_by && inflight::leased(number).token == l.token)
      add_lost(inflight::leased(number), Loss::kFatal);
    inflight::clear_leased(number);
    l.seat = -1;
  }
}

void note_connecting(int sessions) {
  if (my_seat >= 0) state->seats[my_seat].connecting = sessions;
}

int connecting() {
  int result = 0;
  Guard guard(LW_SHARED);
  for (const Seat& seat : used_seats())
    if (seat.database != InvalidOid && &seat != &state->seats[std::max(my_seat, 0)]) result += seat.connecting;
  return result;
}

void note_connection(const std::string& refusal) {
  if (my_seat < 0) return;
  Guard guard(LW_EXCLUSIVE);
  Pool* pool = find_pool(state->seats[my_seat].database, state->seats[my_seat].role);
  if (pool != nullptr) copy_cut(pool->refusal, kRefusalBytes, refusal);
}

std::vector<Refusal> refusals() {
  std::vector<Refusal> result;
  if (!available()) return result;
  result.reserve(state->pools.size());
  Guard guard(LW_SHARED);
  for (const Pool& pool : used_pools())
    if (pool.database == MyDatabaseId && pool.refusal[0] != 0) result.push_back({pool.role, pool.refusal});
  return result;
}

}  // namespace mq::shared

int mq_runs_leased = 0;

// In an ordinary session all of this happens once, at its first statement. What a login trigger runs is no statement.
extern "C" void mq_note_leased_call(void) {
  using namespace mq::shared;
  constexpr int kMarks = kSeats + kLeases;
  static int number = -1;
  static std::int64_t token = 0;
  if (my_seat >= 0) mq_runs_leased = -1;  // a worker
  if (my_seat >= 0 || state == nullptr || MyProc == nullptr || debug_query_string == nullptr) return;
  if (mq_runs_leased > 0 && number >= 0 && state->leases[number].token == token) return;
  const int leader =
      IsParallelWorker() && MyProc->lockGroupLeader != nullptr ? MyProc->lockGroupLeader->pid : MyProcPid;
  int mark = -1;
  number = -1;
  {
    Guard guard(LW_SHARED);
    for (std::size_t i = 0; i < state->leases_used; ++i) {
      const Lease& l = state->leases[i];
      if (l.token == 0 || l.seat < 0 || l.backend != leader || l.database != MyDatabaseId) continue;
      number = static_cast<int>(i);
      token = l.token;
      mark = kSeats + number;
    }
    for (std::size_t i = 0; i < state->seats_used; ++i) {
      const PGPROC* worker = state->seats[i].worker;
      if (leader != MyProcPid && worker != nullptr && worker->pid == leader) mark = static_cast<int>(i);
    }
  }
  if (leader != MyProcPid) {
    mq_runs_leased = -1;
    if (mark >= 0) mq::inflight::open_parallel(mark, kMarks);
    return;
  }
  if (mq_runs_leased == 0) mq_runs_leased = number >= 0 && mq::inflight::open_session(kSeats, kMarks) ? 1 : -1;
  if (mq_runs_leased > 0 && number >= 0) mq::inflight::begin(number, token);
}
