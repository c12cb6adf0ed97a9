#include "stats/row_counts.hpp"

#include <algorithm>

#include "entries.h"
#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/lwlock.hpp"
#include "shmem/receivers.hpp"
#include "shmem/requests.hpp"
#include "shmem/schedule_times.hpp"
#include "shmem/waiters.hpp"

extern "C" {
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/shmem.h"
#include "utils/snapmgr.h"
}

namespace mq::row_counts {

namespace {

constexpr std::size_t kWays = 8;
constexpr std::size_t kSets = 1024;
constexpr std::size_t kReserved = 16384;
constexpr std::size_t kXids = 1024;           // running transactions that a published snapshot can name
constexpr Micros kYoung = 60 * kSecond;       // a younger sum is not stale
constexpr Micros kAgeToCost = 1000;           // nor is one younger than this many times its count took
constexpr Micros kAbandoned = 600 * kSecond;  // another session may take over a longer count

struct Entry {
  Oid database;  // InvalidOid: free
  Oid relation;
  std::int64_t name_key;
  Known known;
  TimestampTz looked_at;
};

// The count that is published. There is one at a time in the server.
struct Running {
  int pid;  // 0: none
  TimestampTz started_at;
  Oid database;
  Oid relation;
  std::int64_t name_key;
  bool spoiled;  // the sum must not be kept: forget() was called meanwhile
  // The sum of changes by transactions that the snapshot does not see, as in Change.
  std::int64_t rows;
  bool ordered;
  bool delayed;
  // The snapshot: transactions before xmin, and those before xmax but for xid[0 .. xids - 1].
  TransactionId xmin, xmax;
  std::uint32_t xids;
  TransactionId xid[kXids];
};

// A transaction that commits changes, from before others see them until it has called apply().
struct alignas(PG_CACHE_LINE_SIZE) Committing {
  pg_atomic_uint32 xid;  // InvalidTransactionId: none
};

struct alignas(PG_CACHE_LINE_SIZE) State {
  // Covers all but in_use. In shared mode a look may only write Entry::looked_at.
  LWLock* lock;
  // Whether a count has begun since the server started. A count sets it before it makes its
  // snapshot. So if a transaction that is over reads 0, the snapshot of every count sees it.
  pg_atomic_uint32 in_use;
  Running running;
  // By a hash of database and channel name: rows that transactions have reserved. Names that share one count
  // each other's: that refuses a send too early at worst.
  std::int64_t reserved[kReserved];
  Entry entries[kSets][kWays];
};

// Set by mq_counts_startup() in the postmaster; child processes inherit it.
State* state = nullptr;
Committing* committing = nullptr;  // MaxBackends of them, one a process

struct Guard : LightweightLock {
  explicit Guard(LWLockMode mode) : LightweightLock(state->lock, mode) {}
};

Entry* set_of(Oid relation, std::int64_t name_key) {
  const auto hash = (static_cast<std::uint64_t>(name_key) ^ relation ^ (std::uint64_t{MyDatabaseId} << 16)) *
                    UINT64_C(0x9e3779b97f4a7c15);
  return state->entries[hash >> 54];
}
static_assert(kSets == 1 << (64 - 54));

std::int64_t& reserved_of(std::int64_t name_key) {
  const auto hash =
      (static_cast<std::uint64_t>(name_key) ^ (std::uint64_t{MyDatabaseId} << 16)) * UINT64_C(0x9e3779b97f4a7c15);
  return state->reserved[hash >> 50];
}
static_assert(kReserved == 1 << (64 - 50));

Entry* find_entry(Oid relation, std::int64_t name_key) {
  Entry* set = set_of(relation, name_key);
  Entry* found = std::find_if(set, set + kWays, [&](const Entry& e) {
    return e.database == MyDatabaseId && e.relation == relation && e.name_key == name_key;
  });
  return found == set + kWays ? nullptr : found;
}

bool is_running(Oid relation, std::int64_t name_key) {
  const Running& running = state->running;
  return running.pid != 0 && running.database == MyDatabaseId && running.relation == relation &&
         running.name_key == name_key;
}

// Whether the published snapshot sees a top-level transaction that is over.
bool published_snapshot_sees(TransactionId xid) {
  const Running& running = state->running;
  if (TransactionIdPrecedes(xid, running.xmin)) return true;
  if (!TransactionIdPrecedes(xid, running.xmax)) return false;
  const TransactionId* end = running.xid + running.xids;
  return std::find(running.xid, end, xid) == end;
}

// Whether the published snapshot sees a transaction that has not called apply() yet.
bool published_snapshot_sees_committing() {
  for (int i = 0; i < MaxBackends; ++i) {
    const TransactionId xid = pg_atomic_read_u32(&committing[i].xid);
    if (TransactionIdIsValid(xid) && published_snapshot_sees(xid)) return true;
  }
  return false;
}

pg_atomic_uint32& own_committing() {
  return committing[MyProc - ProcGlobal->allProcs].xid;
}

bool in_use() {
  if (state == nullptr) return false;
  pg_memory_barrier();
  return pg_atomic_read_u32(&state->in_use) != 0;
}

}  // namespace

bool available() {
  return state != nullptr && !RecoveryInProgress();
}

std::vector<std::optional<Known>> find(Oid relation, const std::vector<std::int64_t>& name_keys) {
  std::vector<std::optional<Known>> result(name_keys.size());
  if (!available()) return result;
  const TimestampTz now = GetCurrentTimestamp();
  Guard guard(LW_SHARED);
  for (std::size_t i = 0; i < name_keys.size(); ++i)
    if (Entry* entry = find_entry(relation, name_keys[i])) {
      entry->looked_at = now;
      result[i] = entry->known;
    }
  return result;
}

Recount::Recount(Oid relation, std::int64_t name_key, bool publish, std::int64_t own)
    : relation_(relation), name_key_(name_key), own_(own), started_(GetCurrentTimestamp()) {
  if (publish && available()) {
    Guard guard(LW_EXCLUSIVE);
    Running& running = state->running;
    pg_atomic_write_u32(&state->in_use, 1);
    pg_memory_barrier();
    // A process that ended in the middle of a count may have left its entry.
    const bool free = running.pid == 0 || running.pid == MyProcPid || BackendPidGetProc(running.pid) == nullptr ||
                      started_ - running.started_at > kAbandoned;
    Snapshot latest = free ? guard::call([] { return GetLatestSnapshot(); }) : nullptr;
    if (latest != nullptr && latest->xcnt < kXids) {
      running = {};
      running.pid = MyProcPid;
      running.started_at = started_;
      running.database = MyDatabaseId;
      running.relation = relation;
      running.name_key = name_key;
      running.xmin = latest->xmin;
      running.xmax = latest->xmax;
      running.xids = latest->xcnt;
      std::copy(latest->xip, latest->xip + latest->xcnt, running.xid);
      // finish() subtracts what this transaction has changed, so that apply() adds it.
      if (const TransactionId own_xid = GetTopTransactionIdIfAny(); TransactionIdIsValid(own_xid))
        running.xid[running.xids++] = own_xid;
      snapshot_ = latest;
      published_ = true;
    }
  }
  Snapshot made = snapshot_;
  snapshot_ = guard::call([&] { return RegisterSnapshot(made != nullptr ? made : GetLatestSnapshot()); });
}

Recount::~Recount() {
  // After an error, the end of the transaction unregisters it.
  if (std::uncaught_exceptions() == 0) UnregisterSnapshot(snapshot_);
  if (!published_) return;
  const TimestampTz now = GetCurrentTimestamp();
  Guard guard(LW_EXCLUSIVE);
  if (state->running.pid != MyProcPid) return;
  state->running.pid = 0;
  if (Entry* entry = find_entry(relation_, name_key_)) {
    entry->known.counted_at = now;
    entry->known.took = now - started_;
  }
}

void Recount::finish(const Counted& counted) {
  if (!published_) return;
  const TimestampTz now = GetCurrentTimestamp();
  Guard guard(LW_EXCLUSIVE);
  Running& running = state->running;
  if (running.pid != MyProcPid || running.spoiled || published_snapshot_sees_committing()) return;
  Entry* entry = find_entry(relation_, name_key_);
  if (entry == nullptr) {
    Entry* set = set_of(relation_, name_key_);
    entry = std::min_element(set, set + kWays, [](const Entry& a, const Entry& b) {
      return (a.database == InvalidOid ? 0 : a.looked_at) < (b.database == InvalidOid ? 0 : b.looked_at);
    });
    *entry = {MyDatabaseId, relation_, name_key_, {}, now};
  }
  static_cast<Counted&>(entry->known) = counted;
  entry->known.rows += running.rows - own_;
  entry->known.ordered = counted.ordered || running.ordered;
  if (running.delayed) ++entry->known.late;
  entry->known.counted_at = now;
  entry->known.took = now - started_;
  running.pid = 0;
}

bool is_stale(const Known& known) {
  return GetCurrentTimestamp() - known.counted_at > std::max(kYoung, known.took * kAgeToCost);
}

void begin_commit() {
  if (state != nullptr) pg_atomic_write_u32(&own_committing(), GetTopTransactionIdIfAny());
}

void end_commit() {
  if (state != nullptr) pg_atomic_write_u32(&own_committing(), InvalidTransactionId);
}

void apply(const Change& change) {
  if (!in_use()) return;
  Guard guard(LW_EXCLUSIVE);
  if (change.reserved != 0) reserved_of(change.name_key) -= change.reserved;
  if (Entry* entry = find_entry(change.relation, change.name_key)) {
    entry->known.rows += change.rows;
    entry->known.ordered = entry->known.ordered || change.ordered;
    if (change.delayed) ++entry->known.late;
  }
  if (is_running(change.relation, change.name_key) && !published_snapshot_sees(GetTopTransactionIdIfAny())) {
    state->running.rows += change.rows;
    state->running.ordered = state->running.ordered || change.ordered;
    state->running.delayed = state->running.delayed || change.delayed;
  }
}

void forget(Oid relation) {
  if (!in_use()) return;
  Guard guard(LW_EXCLUSIVE);
  for (auto& set : state->entries)
    for (Entry& entry : set)
      if (entry.database == MyDatabaseId && (relation == InvalidOid || entry.relation == relation))
        entry.database = InvalidOid;
  Running& running = state->running;
  if (running.database == MyDatabaseId && (relation == InvalidOid || running.relation == relation))
    running.spoiled = true;
}

Room reserve(Oid relation, std::int64_t name_key, std::int64_t rows, std::int64_t most, const Own& own) {
  Guard guard(LW_EXCLUSIVE);
  pg_atomic_write_u32(&state->in_use, 1);
  const Entry* entry = find_entry(relation, name_key);
  if (entry == nullptr) return Room::kUnknown;
  std::int64_t& reserved = reserved_of(name_key);
  if (entry->known.rows + own.rows + reserved - own.reserved + rows > most) return Room::kFull;
  reserved += rows;
  return Room::kReserved;
}

std::int64_t reserve_unasked(std::int64_t name_key, std::int64_t rows) {
  Guard guard(LW_EXCLUSIVE);
  pg_atomic_write_u32(&state->in_use, 1);
  return reserved_of(name_key) += rows;
}

void release(std::int64_t name_key, std::int64_t rows) {
  Guard guard(LW_EXCLUSIVE);
  reserved_of(name_key) -= rows;
}

std::int64_t reserved(std::int64_t name_key) {
  if (!available()) return 0;
  Guard guard(LW_SHARED);
  return reserved_of(name_key);
}

}  // namespace mq::row_counts

extern "C" Size mq_counts_size(void) {
  using namespace mq::row_counts;
  return add_size(sizeof(State), mul_size(static_cast<Size>(MaxBackends), sizeof(Committing)));
}

extern "C" void mq_counts_startup(void) {
  using namespace mq::row_counts;
  bool found = false;
  LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
  state = static_cast<State*>(ShmemInitStruct("mq counts", mq_counts_size(), &found));
  committing = reinterpret_cast<Committing*>(state + 1);
  if (!found) {
    memset(static_cast<void*>(state), 0, mq_counts_size());
    state->lock = &GetNamedLWLockTranche("mq counts")->lock;
    pg_atomic_init_u32(&state->in_use, 0);
    for (int i = 0; i < MaxBackends; ++i) pg_atomic_init_u32(&committing[i].xid, InvalidTransactionId);
  }
  LWLockRelease(AddinShmemInitLock);
}

// The commit actions of a prepared transaction are lost. It may have sent messages, resumed a
// channel, registered a handler, ended messages, changed schedules or created the extension, so this does what
// any of these would need.
extern "C" void mq_prepared_committed(void) {
  mq::row_counts::forget(InvalidOid);
  mq::Extension::look_again();
  mq::shared::forget_handled(MyDatabaseId);
  mq::shared::schedules_changed(MyDatabaseId);
  if (mq::Extension::installed()) mq::shared::wake_or_announce(MyDatabaseId);
  mq::shared::wake_all_receivers();
  mq::shared::wake_all_waiters();
}
