#include "shmem/leased_calls.hpp"

#include <csignal>
#include <cstring>

#include <algorithm>

#include "entries.h"
#include "pg/guard.hpp"
#include "pg/versions.hpp"
#include "shmem/aborted_calls.hpp"
#include "shmem/layout.hpp"

extern "C" {
#include "access/parallel.h"
#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
}

namespace mq::shared {

namespace {

HandledHere handled_in_process{0, false};  // token 0: no call; set by set_handled_here()

const PGPROC* find_process(int backend, Oid database, Oid role) {
  const PGPROC* process = BackendPidGetProc(backend);
  return process != nullptr && process->databaseId == database && process->roleId == role ? process : nullptr;
}

bool is_session(int backend, Oid database, Oid role) {
  const PGPROC* process = find_process(backend, database, role);
  return process != nullptr && server::is_session(*process);
}

bool is_alive(const Lease& lease) {
  return lease.token != 0 && (lease.slot >= 0 || find_process(lease.backend, lease.database, lease.role) != nullptr);
}

}  // namespace

bool lease_session_exists(const Lease& lease) {
  return is_session(lease.backend, lease.database, lease.role);
}

bool is_session_of_mine(int backend) {
  return my_slot >= 0 && is_session(backend, state->worker_slots[my_slot].database, state->worker_slots[my_slot].role);
}

Oid my_role() {
  return my_slot >= 0 ? state->worker_slots[my_slot].role : InvalidOid;
}

void note_exclusive(bool exclusive) {
  if (my_slot < 0) return;
  Guard guard(LW_EXCLUSIVE);
  state->worker_slots[my_slot].exclusive = exclusive;
}

namespace {

// Whether a worker of the pool wants its calls to run alone while a call of the pool runs, of any
// worker. Under the lock.
bool would_run_beside_exclusive() {
  const auto of_pool = [](Oid database, Oid role) { return database == MyDatabaseId && role == MyProc->roleId; };
  const std::span<WorkerSlot> worker_slots = used_slots();
  const bool wanted = std::any_of(worker_slots.begin(), worker_slots.end(), [&](const WorkerSlot& slot) {
    return slot.exclusive && slot.worker != nullptr && of_pool(slot.database, slot.role);
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
  if ((lease.most > 0 && on_channel >= lease.most) || would_run_beside_exclusive()) return -1;
  Lease* free = take_free(std::span<Lease>(state->leases), state->leases_used);
  if (free == nullptr) return -1;
  *free = Lease{};
  free->token = lease.token;
  free->database = MyDatabaseId;
  free->role = MyProc->roleId;
  free->slot = my_slot;
  free->backend = lease.backend;
  free->name_key = lease.name_key;
  free->block_on_dead = lease.block_on_dead;
  free->since = GetCurrentTimestamp();
  free->message = lease.message;
  free->function = lease.function;
  copy_cut(free->channel_name, kChannelBytes, lease.channel_name);
  return static_cast<int>(free - state->leases);
}

void leave_lease(int number) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  state->leases[number].token = 0;
  leases_freed();
}

void abort_lease(int number, const Uuid& message) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  const Lease& l = state->leases[number];
  add_aborted_call({l.database, 1, message, l.token, l.role}, AbortReason::kRunFailed);
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

bool lease_has_call(std::int64_t token) {
  return lease_is_alive(token) || lease_is_aborted(token);
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
    if (l.token != 0 && l.slot >= 0 && l.backend == MyProcPid && l.database == MyDatabaseId)
      return HandledHere{l.token, l.block_on_dead};
  return std::nullopt;
}

int own_lease() {
  if (!available() || handled_in_process.token == 0) return -1;
  Guard guard(LW_SHARED);
  for (const Lease& l : used_leases())
    if (l.token == handled_in_process.token && l.database == MyDatabaseId) return static_cast<int>(&l - state->leases);
  return -1;
}

bool lease_is_cancelled(int number) {
  return available() && *const_cast<volatile bool*>(&state->leases[number].cancelled);
}

bool is_handled_here(std::int64_t token) {
  const auto handled = handled_here();
  return handled && handled->token == token;
}

namespace {

// The leased call of this session. Under the lock.
Lease* lease_here() {
  for (Lease& l : used_leases())
    if (l.token != 0 && l.backend == MyProcPid && l.database == MyDatabaseId &&
        (l.slot >= 0 || l.token == handled_in_process.token))
      return &l;
  return nullptr;
}

// Another transaction that wants to cancel a message with the lease. Under the lock.
VirtualTransactionId canceller_of(std::int64_t token) {
  VirtualTransactionId mine, other;
  GET_VXID_FROM_PGPROC(mine, *MyProc);
  SetInvalidVirtualTransactionId(other);
  for (const OpenCancel& cancel : state->open_cancels)
    if (cancel.database == MyDatabaseId && cancel.token == token && !VirtualTransactionIdEquals(cancel.canceller, mine))
      other = cancel.canceller;
  return other;
}

}  // namespace

void leased_call_commits() {
  if (!available()) return;
  for (;;) {
    VirtualTransactionId canceller;
    bool cancelled = false;
    {
      Guard guard(LW_EXCLUSIVE);
      Lease* lease = lease_here();
      if (lease == nullptr || lease->ended) return;
      cancelled = lease->cancelled;
      canceller = canceller_of(lease->token);
      if (!cancelled && !VirtualTransactionIdIsValid(canceller)) {
        lease->ended = lease->function;
        lease->settling = GetTopTransactionIdIfAny();
        return;
      }
    }
    if (cancelled) throw Error("57014", "message was cancelled while its handler ran");
    guard::call([&] { (void)VirtualXactLock(canceller, true); });
  }
}

void leased_call_aborts() {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  if (Lease* lease = lease_here()) lease->ended = false;
}

LeasedCommit leased_commit(std::int64_t token) {
  if (!available()) return {};
  Guard guard(LW_SHARED);
  for (const Lease& l : used_leases())
    if (l.token == token && l.database == MyDatabaseId) return {l.backend, l.ended, l.settling};
  return {};
}

// Ends the sessions of this worker's calls, since no process would hear of their end. A lease stays
// alive until its session has ended, too.
void abandon_leases() {
  for (Lease& l : used_leases()) {
    if (l.token == 0 || l.slot != my_slot) continue;
    if (is_session(l.backend, l.database, l.role)) (void)kill(l.backend, SIGTERM);
    const auto number = static_cast<int>(&l - state->leases);
    // A handler that ends the worker which looks after it would do that again and again.
    if (l.backend == mq_ended_by && in_flight::leased(number).token == l.token)
      add_aborted_call(in_flight::leased(number), AbortReason::kFatal);
    in_flight::clear_leased(number);
    l.slot = -1;
  }
}

void note_connecting(int sessions) {
  if (my_slot >= 0) state->worker_slots[my_slot].connecting = sessions;
}

int connecting() {
  int result = 0;
  Guard guard(LW_SHARED);
  for (const WorkerSlot& slot : used_slots())
    if (slot.database != InvalidOid && &slot != &state->worker_slots[std::max(my_slot, 0)]) result += slot.connecting;
  return result;
}

void note_connection(const std::string& refusal) {
  if (my_slot < 0) return;
  Guard guard(LW_EXCLUSIVE);
  Pool* pool = find_pool(state->worker_slots[my_slot].database, state->worker_slots[my_slot].role);
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

namespace {

void session_commits(XactEvent event, void*) {
  if (event == XACT_EVENT_PRE_COMMIT) mq::guard::callback([] { mq::shared::leased_call_commits(); });
  if (event == XACT_EVENT_ABORT) mq::shared::leased_call_aborts();
}

}  // namespace

int mq_runs_leased = 0;

// Called by the hooks of mq.c when a statement begins, until mq_runs_leased is negative. In an
// ordinary session that is once, at its first statement. What a login trigger runs is no statement.
extern "C" void mq_note_leased_call(void) {
  using namespace mq::shared;
  constexpr int kRecords = kWorkerSlots + kLeases;
  static int number = -1;
  static std::int64_t token = 0;
  if (my_slot >= 0) mq_runs_leased = -1;  // a worker is no session of a leased call
  if (my_slot >= 0 || state == nullptr || MyProc == nullptr || debug_query_string == nullptr) return;
  if (mq_runs_leased > 0 && number >= 0 && state->leases[number].token == token) return;
  const int leader =
      IsParallelWorker() && MyProc->lockGroupLeader != nullptr ? MyProc->lockGroupLeader->pid : MyProcPid;
  int record = -1;
  number = -1;
  {
    Guard guard(LW_SHARED);
    for (std::size_t i = 0; i < state->leases_used; ++i) {
      const Lease& l = state->leases[i];
      if (l.token == 0 || l.slot < 0 || l.backend != leader || l.database != MyDatabaseId) continue;
      number = static_cast<int>(i);
      token = l.token;
      record = kWorkerSlots + number;
    }
    for (std::size_t i = 0; i < state->slots_used; ++i) {
      const PGPROC* worker = state->worker_slots[i].worker;
      if (leader != MyProcPid && worker != nullptr && worker->pid == leader) record = static_cast<int>(i);
    }
  }
  if (leader != MyProcPid) {
    mq_runs_leased = -1;
    if (record >= 0) mq::in_flight::open_parallel(record, kRecords);
    return;
  }
  if (mq_runs_leased == 0) {
    mq_runs_leased = -1;
    if (number >= 0)
      mq::guard::callback([] {
        mq::guard::call([] { RegisterXactCallback(session_commits, nullptr); });
        if (mq::in_flight::open_session(kWorkerSlots, kRecords)) mq_runs_leased = 1;
      });
  }
  if (mq_runs_leased > 0 && number >= 0) mq::in_flight::begin(number, token);
}
