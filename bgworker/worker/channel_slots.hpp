// Channel slots: how many workers have messages of a channel name at once (max_workers). Each has an
// advisory lock to the end of its transaction. Worker (loop.hpp) owns one; claim and release are in
// batch_claim.cpp.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace mq {

class ChannelSlots {
 public:
  // Takes one of the channel name's `most` slots until release() or the end of the transaction.
  // False: other workers have all of them.
  bool take(std::string_view channel_name, int most);
  // Releases the slot that was taken last for the channel name.
  void release(std::string_view channel_name);

 private:
  std::map<std::string, int, std::less<>> taken_;  // the slot taken last
};

}  // namespace mq
