#include "shmem/callers.hpp"

#include "pg/guard.hpp"
#include "shmem/layout.hpp"

extern "C" {
#include "miscadmin.h"
#include "storage/ipc.h"
}

namespace mq::shared {

namespace {

int my_caller = -1;  // the index of this process's entry; set by join_callers()

Caller& me() {
  return state->callers[my_caller];
}

void leave_at_exit(int, Datum) {
  leave_callers();
}

int free_run() {
  for (int i = kWorkerSlots; i < kCallers; ++i)
    if (state->callers[i].database == InvalidOid) return i;
  return -1;
}

}  // namespace

void join_callers(bool atomic) {
  static bool leaves_at_exit = false;
  if (!available() || my_caller >= 0) return;
  if (!leaves_at_exit && my_slot < 0) guard::call([] { before_shmem_exit(leave_at_exit, 0); });
  leaves_at_exit = true;
  Guard guard(LW_EXCLUSIVE);
  my_caller = my_slot >= 0 ? my_slot : free_run();
  if (my_caller < 0) return;
  me() = Caller{};
  me().database = MyDatabaseId;
  me().role = GetUserId();
  me().pid = MyProcPid;
  me().atomic = atomic;
}

void leave_callers() {
  if (my_caller < 0) return;
  Guard guard(LW_EXCLUSIVE);
  me() = Caller{};
  my_caller = -1;
}

void begin_call(std::string_view channel_name, const Uuid& first, int messages) {
  if (my_caller < 0) return;
  Caller& caller = me();
  caller.message = first;
  caller.messages = messages;
  caller.cancelled_at = 0;
  if (my_slot < 0) {
    caller.since = GetCurrentTimestamp();
    copy_cut(caller.channel_name, kChannelBytes, channel_name);
  }
  *const_cast<volatile bool*>(&caller.in_call) = true;
  pg_memory_barrier();
}

void end_call() {
  if (my_caller < 0) return;
  *const_cast<volatile bool*>(&me().in_call) = false;
  if (!me().told.any) return;
  Guard guard(LW_EXCLUSIVE);
  me().told = Told{};
}

bool calls_handlers() {
  return my_caller >= 0 && !me().atomic;
}

void note_settling_in(TransactionId transaction) {
  if (my_caller < 0) return;
  *const_cast<volatile TransactionId*>(&me().settling) = transaction;
  pg_memory_barrier();
}

Holder holder(int pid, TransactionId transaction) {
  if (!available() || pid == 0) return Holder::kStranger;
  pg_memory_barrier();
  Guard guard(LW_SHARED);
  for (const Caller& caller : state->callers) {
    if (caller.database != MyDatabaseId || caller.pid != pid) continue;
    if (caller.atomic) return Holder::kStranger;
    return *const_cast<const volatile TransactionId*>(&caller.settling) == transaction ? Holder::kSettles
                                                                                       : Holder::kCalls;
  }
  return Holder::kStranger;
}

void note_cancelled_call() {
  if (my_caller >= 0 && me().cancelled_at == 0) me().cancelled_at = GetCurrentTimestamp();
}

std::uint32_t signals_sent() {
  return my_caller >= 0 ? *const_cast<volatile std::uint32_t*>(&me().sent) : 0;
}

Told* told_of_my_call() {
  return my_caller >= 0 ? &me().told : nullptr;
}

}  // namespace mq::shared
