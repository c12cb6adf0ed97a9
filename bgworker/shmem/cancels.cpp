#include "shmem/cancels.hpp"

#include <csignal>

#include "shmem/layout.hpp"

extern "C" {
#include "miscadmin.h"
#include "storage/proc.h"
}

namespace mq::shared {

namespace {

VirtualTransactionId mine_now() {
  VirtualTransactionId id;
  GET_VXID_FROM_PGPROC(id, *MyProc);
  return id;
}

bool is_mine(const OpenCancel& cancel) {
  const VirtualTransactionId id = mine_now();
  return VirtualTransactionIdEquals(cancel.canceller, id);
}

// Under the lock.
void close(OpenCancel& cancel) {
  cancel = OpenCancel{};
  pg_atomic_fetch_sub_u32(&state->open_cancels_used, 1);
}

}  // namespace

Opened open_cancel(const RunningMessage& message) {
  Opened opened{Opened::kUnknown, -1, {}};
  SetInvalidVirtualTransactionId(opened.other);
  if (!available()) return opened;
  Guard guard(LW_EXCLUSIVE);
  OpenCancel* free = nullptr;
  for (OpenCancel& cancel : state->open_cancels) {
    if (cancel.database == InvalidOid && free == nullptr) free = &cancel;
    if (cancel.database != MyDatabaseId || cancel.message != message.id || cancel.seq != message.seq || is_mine(cancel))
      continue;
    opened.result = Opened::kOther;
    opened.other = cancel.canceller;
    return opened;
  }
  opened.result = free != nullptr ? Opened::kOpened : Opened::kFull;
  if (free == nullptr) return opened;
  *free = {MyDatabaseId, message.id, message.seq, message.token, mine_now()};
  opened.number = static_cast<int>(free - state->open_cancels);
  pg_atomic_fetch_add_u32(&state->open_cancels_used, 1);  // a memory barrier, see callers.hpp
  return opened;
}

void close_cancel(int number) {
  Guard guard(LW_EXCLUSIVE);
  close(state->open_cancels[number]);
}

bool any_open_cancel() {
  return available() && pg_atomic_read_u32(&state->open_cancels_used) > 0;
}

VirtualTransactionId canceller_of(const Uuid& id, std::int64_t seq) {
  VirtualTransactionId canceller;
  SetInvalidVirtualTransactionId(canceller);
  if (!any_open_cancel()) return canceller;
  Guard guard(LW_SHARED);
  for (const OpenCancel& cancel : state->open_cancels)
    if (cancel.database == MyDatabaseId && cancel.message == id && cancel.seq == seq && !is_mine(cancel))
      canceller = cancel.canceller;
  return canceller;
}

namespace {

// Under the lock. A batch handler's call may be for any of the messages, so its process looks itself.
void interrupt_callers(std::span<const RunningMessage> messages) {
  for (Caller& caller : state->callers) {
    if (caller.database != MyDatabaseId || !*const_cast<volatile bool*>(&caller.in_call)) continue;
    const bool concerned =
        caller.messages > 1 || std::any_of(messages.begin(), messages.end(),
                                           [&](const RunningMessage& message) { return message.id == caller.message; });
    if (!concerned) continue;
    *const_cast<volatile std::uint32_t*>(&caller.sent) = caller.sent + 1;
    pg_memory_barrier();
    (void)kill(caller.pid, SIGINT);
  }
}

void interrupt_leased(std::span<const RunningMessage> messages) {
  for (Lease& lease : used_leases()) {
    if (lease.token == 0 || lease.database != MyDatabaseId || lease.cancelled) continue;
    const bool concerned = std::any_of(messages.begin(), messages.end(),
                                       [&](const RunningMessage& message) { return message.token == lease.token; });
    if (!concerned) continue;
    lease.cancelled_at = GetCurrentTimestamp();
    *const_cast<volatile bool*>(&lease.cancelled) = true;
    pg_memory_barrier();
    for (Caller& caller : state->callers)  // a session in mq_run
      if (caller.database == MyDatabaseId && caller.pid == lease.backend)
        *const_cast<volatile std::uint32_t*>(&caller.sent) = caller.sent + 1;
    if (lease_session_exists(lease)) (void)kill(lease.backend, SIGINT);
    // Its worker ends the session if the handler goes on.
    if (lease.slot >= 0 && state->worker_slots[lease.slot].worker != nullptr)
      SetLatch(&state->worker_slots[lease.slot].worker->procLatch);
  }
}

}  // namespace

void cancelled(std::span<const RunningMessage> messages, std::span<const int> open) {
  if (!available() || (messages.empty() && open.empty())) return;
  Guard guard(LW_EXCLUSIVE);
  std::uint64_t count = pg_atomic_read_u64(&state->cancelled_count);
  for (const RunningMessage& message : messages) {
    state->cancelled[count++ % kCancelled] = {MyDatabaseId, message.id, message.seq};
    pg_write_barrier();
    pg_atomic_write_u64(&state->cancelled_count, count);
  }
  for (const int number : open) close(state->open_cancels[number]);
  pg_memory_barrier();
  interrupt_callers(messages);
  interrupt_leased(messages);
}

std::uint64_t cancelled_count() {
  return available() ? pg_atomic_read_u64(&state->cancelled_count) : 0;
}

bool is_cancelled(std::uint64_t from, std::uint64_t to, const Uuid& id, std::int64_t seq) {
  pg_read_barrier();
  for (std::uint64_t i = to - from > kCancelled ? to - kCancelled : from; i < to; ++i) {
    const CancelledMessage& message = state->cancelled[i % kCancelled];
    if (message.seq == seq && message.database == MyDatabaseId && message.message == id) return true;
  }
  return false;
}

std::vector<CancelledCall> cancelled_calls() {
  std::vector<CancelledCall> calls;
  if (!available()) return calls;
  Guard guard(LW_SHARED);
  for (std::size_t i = 0; i < kCallers; ++i) {
    const Caller& caller = state->callers[i];
    const TimestampTz at = caller.cancelled_at;
    if (caller.database == MyDatabaseId && caller.in_call && at != 0)
      calls.push_back({caller.pid, i < kWorkerSlots ? "" : caller.channel_name, at});
  }
  for (const Lease& lease : used_leases())
    if (lease.token != 0 && lease.database == MyDatabaseId && lease.cancelled && lease_session_exists(lease))
      calls.push_back({lease.backend, lease.channel_name, lease.cancelled_at});
  return calls;
}

bool lease_was_cancelled(int number) {
  return *const_cast<volatile bool*>(&state->leases[number].cancelled);
}

}  // namespace mq::shared
