#include "shmem/waiters.hpp"

#include <algorithm>

#include "pg/guard.hpp"
#include "shmem/layout.hpp"

extern "C" {
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/ipc.h"
}

namespace mq::shared {

namespace {

WaitingSession* mine_in_table = nullptr;  // of this process; set by Waiter

struct WaitersLock : LightweightLock {
  WaitersLock() : LightweightLock(state->waiters_lock, LW_EXCLUSIVE) {}
};

pg_atomic_uint32& count_of(Oid database) {
  return state->audiences[database % kAudiences].waiters;
}

// The seed is secret, so that no user can choose ids that fall into one bucket.
std::int32_t& bucket_of(const Uuid& message) {
  const std::uint64_t hash =
      hash_bytes_extended(message.bytes.data(), static_cast<int>(message.bytes.size()), state->mark_seed);
  return state->waiter_buckets[hash % kWaiterBuckets];
}

std::int32_t number_of(const WaitingSession& session) {
  return static_cast<std::int32_t>(&session - state->waiters) + 1;
}

// The functions up to wake() are called under the lock.

void link(WaitingSession& session) {
  std::int32_t& first = bucket_of(session.message);
  session.next = first;
  first = number_of(session);
}

void unlink(const WaitingSession& session) {
  std::int32_t* at = &bucket_of(session.message);
  while (*at != number_of(session)) at = &state->waiters[*at - 1].next;
  *at = session.next;
}

WaitingSession* take_entry() {
  if (state->waiter_free != 0) {
    WaitingSession& session = state->waiters[state->waiter_free - 1];
    state->waiter_free = session.next;
    return &session;
  }
  if (state->waiters_used == kWaiters) return nullptr;
  return &state->waiters[state->waiters_used++];
}

void wake(WaitingSession& session) {
  if (session.woken) return;
  session.woken = true;
  SetLatch(&session.process->procLatch);
}

void leave() {
  if (mine_in_table == nullptr) return;
  const WaitersLock lock;
  pg_atomic_fetch_sub_u32(&count_of(mine_in_table->database), 1);
  unlink(*mine_in_table);
  *mine_in_table = {};
  mine_in_table->next = state->waiter_free;
  state->waiter_free = number_of(*mine_in_table);
  mine_in_table = nullptr;
}

void process_ends(int, Datum) {
  leave();
}

}  // namespace

Waiter::~Waiter() {
  if (entered_) leave();
}

bool Waiter::watch(const Uuid& message) {
  static bool registered = false;
  if (!available() || (!entered_ && mine_in_table != nullptr)) return false;
  if (!registered) {
    guard::call([] { before_shmem_exit(process_ends, 0); });
    registered = true;
  }
  const WaitersLock lock;
  if (entered_) {
    unlink(*mine_in_table);
  } else {
    WaitingSession* session = take_entry();
    if (session == nullptr) return false;
    mine_in_table = session;
    entered_ = true;
    session->database = MyDatabaseId;
    session->process = MyProc;
    pg_atomic_fetch_add_u32(&count_of(MyDatabaseId), 1);
  }
  mine_in_table->message = message;
  mine_in_table->woken = false;
  link(*mine_in_table);
  return true;
}

void Waiter::begin_look() {
  if (!entered_) return;
  const WaitersLock lock;
  mine_in_table->woken = false;
}

bool Waiter::may_sleep() {
  const WaitersLock lock;
  return !mine_in_table->woken;
}

// A commit that is visible by now reads the number after that: see the head of the header.
bool any_waiters() {
  if (!available()) return false;
  pg_memory_barrier();
  return pg_atomic_read_u32(&count_of(MyDatabaseId)) > 0;
}

void wake_waiters(std::span<const Uuid> messages) {
  const WaitersLock lock;
  for (const Uuid& message : messages)
    for (std::int32_t at = bucket_of(message); at != 0; at = state->waiters[at - 1].next) {
      WaitingSession& session = state->waiters[at - 1];
      if (session.database == MyDatabaseId && session.message == message) wake(session);
    }
}

void wake_all_waiters() {
  if (!any_waiters()) return;
  const WaitersLock lock;
  for (std::size_t i = 0; i < state->waiters_used; ++i)
    if (state->waiters[i].database == MyDatabaseId) wake(state->waiters[i]);
}

}  // namespace mq::shared
