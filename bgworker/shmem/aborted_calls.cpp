#include "shmem/aborted_calls.hpp"

#include <algorithm>

#include "shmem/in_flight.hpp"
#include "shmem/layout.hpp"

extern "C" {
#include "storage/procarray.h"
}

namespace mq::shared {

void add_aborted_call(const in_flight::Record& record, AbortReason reason) {
  auto* end = state->aborted + kAbortedCalls;
  auto* free = std::find_if(state->aborted, end, [](const Aborted& l) { return l.record.database == InvalidOid; });
  if (free == end) return;
  *free = {record, reason, GetCurrentTimestamp(), 0};
  ++state->aborted_calls;
}

void forget_aborted_calls(const std::vector<Oid>& existing) {
  const TimestampTz now = GetCurrentTimestamp();
  for (Aborted& call : state->aborted) {
    if (call.record.database == InvalidOid) continue;
    if (std::find(existing.begin(), existing.end(), call.record.database) != existing.end() &&
        now - call.at < kAbortedKept)
      continue;
    call.record.database = InvalidOid;
    --state->aborted_calls;
  }
}

void note_aborted_call(AbortReason reason) {
  if (my_slot < 0 || in_flight::current().database == InvalidOid) return;
  Guard guard(LW_EXCLUSIVE);
  add_aborted_call(in_flight::current(), reason);
}

namespace {

bool is_mine_to_charge(const Aborted& call) {
  return call.record.database == MyDatabaseId && call.record.role == MyProc->roleId &&
         (call.charger == 0 || BackendPidGetProc(call.charger) == nullptr);
}

}  // namespace

// Workers ask before each batch. If there is no aborted call at all that takes no lock.
bool any_aborted_call() {
  if (!available() || *const_cast<volatile int*>(&state->aborted_calls) == 0) return false;
  Guard guard(LW_SHARED);
  return std::any_of(state->aborted, state->aborted + kAbortedCalls, is_mine_to_charge);
}

std::vector<AbortedCall> take_aborted_calls() {
  std::vector<AbortedCall> aborted_calls;
  if (!available()) return aborted_calls;
  aborted_calls.reserve(kAbortedCalls);
  Guard guard(LW_EXCLUSIVE);
  for (Aborted& call : state->aborted) {
    if (!is_mine_to_charge(call)) continue;
    call.charger = MyProcPid;
    const int signal = call.reason == AbortReason::kCrash ? call.record.end - in_flight::kSignal : 0;
    aborted_calls.push_back({call.record.message, call.record.messages, call.reason, call.record.token, signal,
                             static_cast<int>(&call - state->aborted)});
  }
  return aborted_calls;
}

void aborted_calls_settled(const std::vector<int>& numbers) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  for (const int number : numbers) {
    if (state->aborted[number].charger != MyProcPid || state->aborted[number].record.database == InvalidOid) continue;
    state->aborted[number].record.database = InvalidOid;
    --state->aborted_calls;
  }
  for (Aborted& call : state->aborted)
    if (call.charger == MyProcPid) call.charger = 0;
}

bool lease_is_aborted(std::int64_t token) {
  if (!available() || *const_cast<volatile int*>(&state->aborted_calls) == 0) return false;
  Guard guard(LW_SHARED);
  return std::any_of(state->aborted, state->aborted + kAbortedCalls, [&](const Aborted& call) {
    return call.record.token == token && call.record.database == MyDatabaseId;
  });
}

}  // namespace mq::shared
