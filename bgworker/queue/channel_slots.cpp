#include "queue/channel_slots.hpp"

#include <optional>

#include "pg/crash_point.hpp"
#include "pg/extension.hpp"
#include "pg/locks.hpp"
#include "pg/statement.hpp"
#include "shmem/channel_key.hpp"
#include "shmem/leased_calls.hpp"

namespace mq {

namespace {

// How many calls of mq_receive have messages of the channel name.
int receipts_on(std::string_view channel_name) {
  static Statement count(
      "SELECT pg_catalog.count(DISTINCT m.lease)::int4 FROM $S.mq_msgs m"
      " WHERE m.channel_name = $1 AND m.lease IS NOT NULL AND m.lease < 0 AND m.attempt_at > $2",
      {TEXTOID, TIMESTAMPTZOID});
  const OwnerScope scope;
  return DatumGetInt32(count.run({text_datum(channel_name), TimestampTzGetDatum(GetCurrentTimestamp())}).get(0, 1));
}

// Whether there is room for the caller, who has a slot, beside all others.
bool has_room(std::string_view channel_name, std::int64_t key, int of_all) {
  const int calls = shared::leases_on(key);
  if (calls + receipts_on(channel_name) == 0) return true;  // each of the others has a slot
  // In this order a slot that becomes a lease meanwhile counts at least once. It may count twice.
  for (const bool again : {false, true}) {
    const int slots = locks::taken_channel_slots(key, of_all);
    if (slots + calls + receipts_on(channel_name) < of_all) return true;
    if (again || slots == 0) break;
  }
  return false;
}

}  // namespace

bool ChannelSlots::take(std::string_view channel_name, int most, int of_all) {
  const std::int64_t key = channel_key(channel_name, {});
  std::optional<locks::SlotsLock> alone;
  if (of_all > 0) alone.emplace(key);
  for (int i = 0; i < most; ++i) {
    const locks::Slot slot = locks::try_channel_slot(key, i);
    if (slot == locks::Slot::kOfOther) continue;
    if (slot == locks::Slot::kOwn && several_) {
      locks::release_channel_slot(key, i);  // it is held as before
      continue;
    }
    MQ_CRASH_POINT(slot_locked);
    if (of_all > 0 && !has_room(channel_name, key, of_all)) {
      locks::release_channel_slot(key, i);
      return false;
    }
    taken_.insert_or_assign(std::string(channel_name), i);
    MQ_CRASH_POINT(slot_taken);
    return true;
  }
  return false;
}

void ChannelSlots::release(std::string_view channel_name) {
  const auto slot = taken_.find(channel_name);
  if (slot == taken_.end()) return;
  locks::release_channel_slot(channel_key(channel_name, {}), slot->second);
  taken_.erase(slot);
  MQ_CRASH_POINT(slot_released);
}

int left_for_leased_calls(std::string_view channel_name, int of_all) {
  const int slots = locks::taken_channel_slots(channel_key(channel_name, {}), of_all);
  return of_all - slots - receipts_on(channel_name);
}

int calls_on(std::string_view channel_name, int of_all) {
  const std::int64_t key = channel_key(channel_name, {});
  return locks::taken_channel_slots(key, of_all) + shared::leases_on(key) + receipts_on(channel_name);
}

}  // namespace mq
