// Unhandled messages: no handler of their channel takes their name. Settle sets their attempt_at to
// infinity, which no delay reaches, without charging an attempt. So no claim reads them again. This
// file makes them due when a handler takes their name, or their channel has no handler at all any
// more. Messages that wait for others (prerequisites.hpp) are at infinity, too; those that have nothing
// to wait for are released. Each step looks at a bounded number of messages.
//
// Each ServerHost (a worker or CALL mq_run) has an UnhandledScan for the channels of its registry.
// The sweep calls wake_unhandled() for all channels. The state is only this process's.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pg/types.hpp"

namespace mq {

class UnhandledScan {
 public:
  void start(std::vector<std::string> channel_names);
  // A registry was read. Starts with its channels if handlers were registered or unregistered since
  // the last one, or Registry::taken() differs: another role's registry, or rows written by hand.
  void read(std::vector<std::string> channel_names, std::string taken);
  // A step was rolled back: the next read() starts again.
  void forget() { generation_ = 0; }
  bool goes_on() const { return !channels_.empty(); }
  // Looks at up to 500 messages in up to 100 channels. Needs a transaction, an OwnerScope and an
  // SPI connection. True: it made some due.
  bool step(Micros now);

 private:
  std::uint64_t generation_ = 0;       // the handlers' generation when it started; 0: start again
  std::string taken_;                  // Registry::taken() when it started
  std::vector<std::string> channels_;  // channels still to look through, the last one first
  std::int64_t last_seq_ = INT64_MIN;  // sequence number up to which the last one was looked through
};

// A step() over all channels of the database in turn. It finds messages that a transaction set to
// infinity before it saw a new handler, and channels whose last handler was unregistered.
bool wake_unhandled(Micros now);

}  // namespace mq
