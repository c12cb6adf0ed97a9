// Swept: what a step or a round of the sweep (maintenance.hpp) returns. The worker's loop and
// mq_run read it. A value without state.
#pragma once

#include <optional>

#include "pg/error.hpp"

namespace mq {

struct Swept {
  bool more = false;             // messages may have become due, or there is more to sweep
  std::optional<Error> failure;  // the first error of a step; none: all steps succeeded
};

}  // namespace mq
