#include "shmem/consumers.hpp"

#include "shmem/layout.hpp"

namespace mq::shared {

namespace {

Audience& audience() {
  return state->audiences[MyDatabaseId % kAudiences];
}

}  // namespace

void add_listener() {
  pg_atomic_fetch_add_u32(&audience().listeners, 1);
}

void remove_listener() {
  pg_atomic_fetch_sub_u32(&audience().listeners, 1);
}

// Sender S skips its NOTIFY only if no session listens; listener L polls after its LISTEN:
//   S  begin_unnotified_commit(): counts itself in unnotified_commits, then reads `listeners`
//   L  add_listener(): counts itself in `listeners`, then polls and reads unnotified_commits
// Atomic additions are memory barriers, so at least one of the two sees the other.
bool begin_unnotified_commit() {
  if (!available()) return false;
  pg_atomic_fetch_add_u32(&audience().unnotified_commits, 1);
  if (pg_atomic_read_u32(&audience().listeners) == 0) return true;
  end_unnotified_commit();
  return false;
}

void end_unnotified_commit() {
  pg_atomic_fetch_sub_u32(&audience().unnotified_commits, 1);
}

bool unnotified_commit_under_way() {
  if (!available()) return false;
  pg_memory_barrier();
  return pg_atomic_read_u32(&audience().unnotified_commits) > 0;
}

void note_poll() {
  if (available()) pg_atomic_write_u64(&audience().polled_at, static_cast<uint64>(GetCurrentTimestamp()));
}

bool has_consumers() {
  if (!available()) return false;
  const auto polled = static_cast<TimestampTz>(pg_atomic_read_u64(&audience().polled_at));
  return pg_atomic_read_u32(&audience().listeners) > 0 || pg_atomic_read_u32(&audience().receivers) > 0 ||
         (polled != 0 && GetCurrentTimestamp() - polled < kConsumersGone);
}

}  // namespace mq::shared
