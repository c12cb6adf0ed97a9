#include "shmem/layout.hpp"

#include "entries.h"
#include "pg/settings.h"
#include "shmem/in_flight.hpp"
#include "shmem/shared.hpp"

extern "C" {
#include "storage/shmem.h"
}

namespace mq::shared {

State* state = nullptr;
int my_slot = -1;

bool available() {
  return state != nullptr;
}

}  // namespace mq::shared

namespace {

struct Layout {
  Size databases, pools, end;
};

Layout layout() {
  Layout at{};
  at.databases = MAXALIGN(sizeof(mq::shared::State));
  at.pools = at.databases + MAXALIGN(sizeof(mq::shared::Database) * static_cast<Size>(mq_max_databases));
  at.end = at.pools + MAXALIGN(sizeof(mq::shared::Pool) * static_cast<Size>(mq_max_databases + mq::shared::kMorePools));
  return at;
}

}  // namespace

extern "C" Size mq_shared_size(void) {
  return layout().end;
}

extern "C" int mq_shared_locks(void) {
  return 5 + mq::shared::kMarkLocks + mq::shared::kLimitParts;
}

// Runs in the postmaster, when it starts and after a crash.
extern "C" void mq_shared_startup(void) {
  using mq::shared::state;
  bool found = false;
  LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
  state = static_cast<mq::shared::State*>(ShmemInitStruct("mq", mq_shared_size(), &found));
  if (!found) {
    memset(static_cast<void*>(state), 0, mq_shared_size());
    char* base = reinterpret_cast<char*>(state);
    const auto databases = static_cast<std::size_t>(mq_max_databases);
    state->databases = {reinterpret_cast<mq::shared::Database*>(base + layout().databases), databases};
    state->pools = {reinterpret_cast<mq::shared::Pool*>(base + layout().pools), databases + mq::shared::kMorePools};
    LWLockPadded* locks = GetNamedLWLockTranche("mq");
    state->lock = &locks->lock;
    state->row_claims_lock = &locks[1].lock;
    state->receivers_lock = &locks[2].lock;
    state->waiters_lock = &locks[3].lock;
    state->asked_lock = &locks[4].lock;
    state->mark_locks = locks + 5;
    state->limit_locks = state->mark_locks + mq::shared::kMarkLocks;
    pg_atomic_init_u64(&state->limits_without_room, 0);
    for (mq::shared::Audience& audience : state->audiences) {
      pg_atomic_init_u32(&audience.listeners, 0);
      pg_atomic_init_u32(&audience.unnotified_commits, 0);
      pg_atomic_init_u64(&audience.polled_at, 0);
      pg_atomic_init_u32(&audience.receivers, 0);
      pg_atomic_init_u32(&audience.waiters, 0);
    }
    for (pg_atomic_uint64& name : state->keyed_names) pg_atomic_init_u64(&name, 0);
    pg_atomic_init_u32(&state->row_claims_used, 0);
    for (pg_atomic_uint64& count : state->row_claims_released) pg_atomic_init_u64(&count, 0);
    pg_atomic_init_u32(&state->open_cancels_used, 0);
    for (auto& writes : state->rare_writes) pg_atomic_init_u64(&writes, 0);
    pg_atomic_init_u64(&state->cancelled_count, 0);
    if (!pg_strong_random(&state->mark_seed, sizeof state->mark_seed)) state->mark_seed = GetCurrentTimestamp();
    static bool started = false;  // whether this postmaster has been here before
    for (const auto& [record, reason] :
         mq::in_flight::take_all(mq::shared::kWorkerSlots + mq::shared::kLeases, started))
      mq::shared::add_aborted_call(record, reason);
    started = true;
  }
  LWLockRelease(AddinShmemInitLock);
}
