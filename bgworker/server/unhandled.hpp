// Messages whose name no handler of their channel takes. A claim that meets one puts it aside, uncharged (settle.cpp):
// attempt_at is infinity then, which no delay reaches, so no claim reads it again. Here they become due when a handler
// that takes them is registered, or when their channel has no handler at all any more. Each step looks at a bounded
// number of them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../message.hpp"
#include "../registry.hpp"

namespace mq {

class UnhandledScan {
 public:
  void start(std::vector<std::string> channel_names);
  // Starts with the channels of a registry that has just been read, if a handler was registered or unregistered since
  // the one before, or it takes other names: another role's, or rows that were written by hand.
  void read(const Registry& registry);
  // A step was rolled back: the next registry has it start again.
  void forget() { generation_ = 0; }
  bool goes_on() const { return !channels_.empty(); }
  // Within a transaction and an SPI connection. True: some became due.
  bool step(Micros now);

 private:
  std::uint64_t generation_ = 0;       // of the handlers, when it started
  std::string taken_;                  // channels and message names of the registry, as text
  std::vector<std::string> channels_;  // to be looked through, the last one first
  std::int64_t place_ = INT64_MIN;     // in that one: what comes before has been
};

// The same for all channels of the database, going round: what was put aside by a transaction that still knew the
// handlers of before, and channels whose last handler was unregistered. For the sweep.
bool wake_unhandled(Micros now);

}  // namespace mq
