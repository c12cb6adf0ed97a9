// Disposition: a handler's mq_snooze or mq_discard of a message. api/outcome.cpp makes it,
// current_call.hpp keeps it during the call, handlers/policy.hpp makes a settlement of it.
#pragma once

#include <string>

#include "pg/types.hpp"

namespace mq {

struct Disposition {
  enum Kind { kSnooze, kDiscard } kind;
  Uuid id;
  Micros delay = 0;    // snooze: until the next attempt, microseconds
  std::string reason;  // discard: the dead letter's error message
};

}  // namespace mq
