#include "worker/channel_slots.hpp"

#include "pg/locks.hpp"
#include "shmem/channel_key.hpp"

namespace mq {

bool ChannelSlots::take(std::string_view channel_name, int most) {
  const std::int64_t key = channel_key(channel_name, {});
  for (int i = 0; i < most; ++i) {
    if (!locks::try_channel_slot(key, i)) continue;
    taken_.insert_or_assign(std::string(channel_name), i);
    return true;
  }
  return false;
}

void ChannelSlots::release(std::string_view channel_name) {
  const auto slot = taken_.find(channel_name);
  if (slot == taken_.end()) return;
  locks::release_channel_slot(channel_key(channel_name, {}), slot->second);
  taken_.erase(slot);
}

}  // namespace mq
