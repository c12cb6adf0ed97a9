#include "counts.hpp"

#include <algorithm>

#include "entries.h"
#include "extension.hpp"
#include "fence.hpp"
#include "shared.hpp"

extern "C" {
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "port/atomics.h"
#include "storage/lwlock.h"
#include "storage/procarray.h"
#include "storage/shmem.h"
#include "utils/snapmgr.h"
}

namespace mq::counts {

namespace {

constexpr std::size_t kWays = 8;
constexpr std::size_t kSets = 1024;
constexpr std::size_t kXids = 1024;  // running transactions that a published snapshot can name
constexpr Micros kLookedLately = 600 * kSecond;
constexpr Micros kYoung = 60 * kSecond;
constexpr Micros kAgeToCost = 1000;
constexpr Micros kAbandoned = 600 * kSecond;  // a count that goes on for so long

struct Entry {
  Oid database;  // InvalidOid: free
  Oid relation;
  std::int64_t name_key;
  Known known;
  TimestampTz looked_at;
};

// The count that goes on; there is one at a time.
struct Running {
  int pid;  // 0: none
  TimestampTz started_at;
  Oid database;
  Oid relation;
  std::int64_t name_key;
  bool spoiled;       // the sum is forgotten already
  std::int64_t rows;  // of transactions that the snapshot does not see
  bool ordered;
  bool delayed;
  TransactionId xmin, xmax;
  std::uint32_t xids;
  TransactionId xid[kXids];
};

struct State {
  LWLock* lock;  // covers all of it
  // Whether there has been a count since the server started; set before its snapshot is made. So a transaction that
  // is over, and reads false then, is seen by every snapshot here.
  pg_atomic_uint32 in_use;
  Running running;
  Entry entries[kSets][kWays];
};

State* state = nullptr;  // set by mq_counts_startup in the postmaster, inherited

class Guard {
 public:
  explicit Guard(LWLockMode mode) { LWLockAcquire(state->lock, mode); }
  ~Guard() { LWLockRelease(state->lock); }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;
};

Entry* set_of(Oid relation, std::int64_t name_key) {
  const auto hash = (static_cast<std::uint64_t>(name_key) ^ relation ^ (std::uint64_t{MyDatabaseId} << 16)) *
                    UINT64_C(0x9e3779b97f4a7c15);
  return state->entries[hash >> 54];
}
static_assert(kSets == 1 << (64 - 54));

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

// Of a top-level transaction that is over.
bool published_snapshot_sees(TransactionId xid) {
  const Running& running = state->running;
  if (TransactionIdPrecedes(xid, running.xmin)) return true;
  if (!TransactionIdPrecedes(xid, running.xmax)) return false;
  const TransactionId* end = running.xid + running.xids;
  return std::find(running.xid, end, xid) == end;
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

std::vector<std::optional<Known>> find(Oid relation, const std::vector<std::int64_t>& name_keys, bool looks) {
  std::vector<std::optional<Known>> result(name_keys.size());
  if (!available()) return result;
  const TimestampTz now = GetCurrentTimestamp();
  Guard guard(LW_SHARED);
  for (std::size_t i = 0; i < name_keys.size(); ++i)
    if (Entry* entry = find_entry(relation, name_keys[i])) {
      if (looks) entry->looked_at = now;
      result[i] = entry->known;
    }
  return result;
}

Recount::Recount(Oid relation, std::int64_t name_key, bool publish)
    : relation_(relation), name_key_(name_key), started_(GetCurrentTimestamp()) {
  if (publish && available()) {
    Guard guard(LW_EXCLUSIVE);
    Running& running = state->running;
    pg_atomic_write_u32(&state->in_use, 1);
    pg_memory_barrier();
    // One that was ended in the middle of a count could not say so.
    const bool free = running.pid == 0 || running.pid == MyProcPid || BackendPidGetProc(running.pid) == nullptr ||
                      started_ - running.started_at > kAbandoned;
    Snapshot latest = free ? fence::call([] { return GetLatestSnapshot(); }) : nullptr;
    if (latest != nullptr && latest->xcnt <= kXids) {
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
      snapshot_ = latest;
      published_ = true;
    }
  }
  Snapshot made = snapshot_;
  snapshot_ = fence::call([&] { return RegisterSnapshot(made != nullptr ? made : GetLatestSnapshot()); });
}

Recount::~Recount() {
  // On the way out with an error the transaction's end takes it.
  if (std::uncaught_exceptions() == 0) UnregisterSnapshot(snapshot_);
  if (!published_) return;
  Guard guard(LW_EXCLUSIVE);
  if (state->running.pid == MyProcPid) state->running.pid = 0;
}

void Recount::finish(const Counted& counted) {
  if (!published_) return;
  const TimestampTz now = GetCurrentTimestamp();
  Guard guard(LW_EXCLUSIVE);
  Running& running = state->running;
  if (running.pid != MyProcPid || running.spoiled) return;
  Entry* entry = find_entry(relation_, name_key_);
  if (entry == nullptr) {
    Entry* set = set_of(relation_, name_key_);
    entry = std::min_element(set, set + kWays, [](const Entry& a, const Entry& b) {
      return (a.database == InvalidOid ? 0 : a.looked_at) < (b.database == InvalidOid ? 0 : b.looked_at);
    });
    *entry = {MyDatabaseId, relation_, name_key_, {}, now};
  }
  static_cast<Counted&>(entry->known) = counted;
  entry->known.rows += running.rows;
  entry->known.ordered = counted.ordered || running.ordered;
  if (running.delayed) ++entry->known.late;
  entry->known.counted_at = now;
  entry->known.took = now - started_;
  running.pid = 0;
}

bool is_stale(const Known& known, int times) {
  return GetCurrentTimestamp() - known.counted_at > times * std::max(kYoung, known.took * kAgeToCost);
}

bool any_stale(Oid relation) {
  if (!available()) return false;
  const TimestampTz now = GetCurrentTimestamp();
  Guard guard(LW_SHARED);
  for (const auto& set : state->entries)
    for (const Entry& entry : set)
      if (entry.database == MyDatabaseId && entry.relation == relation && now - entry.looked_at < kLookedLately &&
          is_stale(entry.known))
        return true;
  return false;
}

void apply(const Change& change) {
  if (!in_use()) return;
  Guard guard(LW_EXCLUSIVE);
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

void forget(Oid relation, std::int64_t name_key) {
  if (!in_use()) return;
  Guard guard(LW_EXCLUSIVE);
  if (Entry* entry = find_entry(relation, name_key)) entry->database = InvalidOid;
  if (is_running(relation, name_key)) state->running.spoiled = true;
}

}  // namespace mq::counts

extern "C" Size mq_counts_size(void) {
  return MAXALIGN(sizeof(mq::counts::State));
}

extern "C" void mq_counts_startup(void) {
  using mq::counts::state;
  bool found = false;
  LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
  state = static_cast<mq::counts::State*>(ShmemInitStruct("mq counts", mq_counts_size(), &found));
  if (!found) {
    memset(static_cast<void*>(state), 0, sizeof *state);
    state->lock = &GetNamedLWLockTranche("mq counts")->lock;
    pg_atomic_init_u32(&state->in_use, 0);
  }
  LWLockRelease(AddinShmemInitLock);
}

// Nobody knows any more what it owed: it may have sent, resumed, registered or created the extension.
extern "C" void mq_prepared_committed(void) {
  mq::counts::forget(InvalidOid);
  mq::Extension::look_again();
  if (mq::Extension::installed()) mq::shared::wake_or_announce(MyDatabaseId);
}
