// Put off: gives claimed messages that a limit holds back another time. rates.cpp and running.cpp use it. No state.
// Attempts are not charged, and throttled_at keeps when the message was due before.
#pragma once

#include <string_view>
#include <vector>

#include "queue/message.hpp"

namespace mq {

struct PutOff {
  const Claimed* message;
  Micros until;
};

// Needs an OwnerScope and an SPI connection. Returns how many it has put off: not one that another session has got
// meanwhile.
std::size_t put_off(const std::vector<PutOff>& all);

// Makes messages of the channel name due that were put off. Needs the same.
void release_put_off(std::string_view channel_name);

// Does so for names that have no such limit any more: a batch that was in progress when that was taken away has put
// its messages off all the same. For the sweep. Whether there were some. Needs the same.
bool sweep_put_off();

}  // namespace mq
