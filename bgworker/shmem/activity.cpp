#include "shmem/activity.hpp"

#include <algorithm>
#include <array>

#include "shmem/channel_key.hpp"
#include "shmem/layout.hpp"

extern "C" {
#include "mb/pg_wchar.h"
}

namespace mq::shared {

// Takes no lock, since that would cost time for every message. Readers may see a mixture.
void note_call(std::string_view channel_name, const Uuid& message) {
  if (my_slot < 0) return;
  WorkerSlot& slot = mine();
  const auto bytes = static_cast<std::size_t>(
      pg_mbcliplen(channel_name.data(), static_cast<int>(channel_name.size()), kChannelBytes - 1));
  slot.since = GetCurrentTimestamp();
  memcpy(slot.channel_name, channel_name.data(), bytes);
  slot.channel_name[bytes] = 0;
  slot.message = message;
  slot.doing = Doing::kCall;
}

void note_returned() {
  if (my_slot >= 0) mine().doing = Doing::kBetween;
}

void note_settling(TimestampTz now) {
  if (my_slot < 0) return;
  mine().since = now;
  mine().doing = Doing::kSettling;
}

void note_committing() {
  if (my_slot >= 0) mine().doing = Doing::kCommitting;
}

void note_idle() {
  if (my_slot < 0) return;
  mine().doing = Doing::kBetween;
  mine().busy_long = false;
  mine().names_held = 0;
}

TimestampTz call_began() {
  return my_slot >= 0 ? mine().since : 0;
}

// Touches only the launcher's latch. If the launcher has gone, another process may wake for
// nothing.
void note_busy_long() {
  if (my_slot < 0 || mine().busy_long) return;
  mine().busy_long = true;
  wake_launcher_soon();
}

void note_handled(std::uint64_t messages) {
  if (my_slot >= 0) mine().handled += messages;
}

void note_batch(const std::vector<NamedMessages>& messages) {
  if (my_slot < 0) return;
  WorkerSlot& slot = mine();
  slot.gives_way = false;
  slot.channel_name[0] = 0;
  int names = 0;
  for (const NamedMessages& named : messages) {
    if (names == kNamesHeld) break;
    slot.held[names++] = {channel_key(named.channel_name, {}), named.messages};
  }
  slot.names_held = names;
}

std::map<std::int64_t, std::int64_t> held_by_workers() {
  std::map<std::int64_t, std::int64_t> result;
  if (!available()) return result;
  std::vector<std::array<Held, kNamesHeld>> held(kWorkerSlots);
  int names[kWorkerSlots];
  int worker_slots = 0;  // slots whose workers hold messages
  {
    Guard guard(LW_SHARED);
    for (const WorkerSlot& slot : used_slots()) {
      if (slot.database != MyDatabaseId || slot.worker == nullptr || slot.names_held == 0) continue;
      names[worker_slots] = slot.names_held;
      std::copy(slot.held, slot.held + names[worker_slots], held[worker_slots].begin());
      ++worker_slots;
    }
  }
  for (int i = 0; i < worker_slots; ++i)
    for (int k = 0; k < names[i]; ++k) result[held[i][k].name_key] += held[i][k].messages;
  return result;
}

std::vector<WorkerState> workers() {
  std::vector<WorkerState> result;
  if (!available()) return result;
  result.reserve(kWorkerSlots);
  Guard guard(LW_SHARED);
  for (const WorkerSlot& slot : used_slots())
    if (slot.database != InvalidOid && slot.worker != nullptr)
      result.push_back({slot.worker->pid, slot.database, slot.role, slot.waiting, !slot.draining, slot.doing,
                        slot.channel_name, slot.message, slot.since, slot.handled});
  return result;
}

std::vector<DrainingWorker> draining_workers() {
  std::vector<DrainingWorker> result;
  if (!available()) return result;
  result.reserve(kWorkerSlots);
  Guard guard(LW_SHARED);
  for (const WorkerSlot& slot : used_slots()) {
    if (slot.database == InvalidOid || slot.worker == nullptr || !slot.draining) continue;
    DrainingWorker draining{slot.worker->pid, slot.database, slot.role, 0, 0};
    for (const Lease& lease : used_leases()) {
      if (lease.token == 0 || lease.slot != &slot - state->worker_slots) continue;
      if (draining.calls++ == 0 || lease.since < draining.since) draining.since = lease.since;
    }
    if (draining.calls > 0) result.push_back(draining);
  }
  return result;
}

}  // namespace mq::shared
