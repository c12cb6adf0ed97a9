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

// The same; then only those of `messages` are left that stay (not 0, by index). `all` may point into them.
std::size_t put_off(const std::vector<PutOff>& all, const std::vector<char>& stays, Batch& messages);

// Makes messages of the channel name due that were put off, and wakes who handles them. Needs the same.
void release_put_off(std::string_view channel_name);
// Up to so many of one channel, those first that would come back first; wakes nobody. Returns how many. Needs the same.
std::size_t release_put_off(std::string_view channel_name, std::int64_t channel_key, int limit);

// Does so for names that have no such limit any more: a batch that was in progress when that was taken away has put
// its messages off all the same. For the sweep. Needs the same.
void sweep_put_off();

}  // namespace mq
