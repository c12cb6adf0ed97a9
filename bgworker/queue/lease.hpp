// Lease: charges messages an attempt and gives them to a leased call or an outside consumer until a
// moment. The leased handlers (leased/lease_store.cpp) and mq_poll (api/consuming.cpp) use it. No
// state.
#pragma once

#include <optional>
#include <vector>

#include "queue/message.hpp"

namespace mq {

struct NewLease {
  const Claimed* message;
  Micros until;
  std::optional<Micros> retry_backoff;  // of the row from then on; none: it stays
};

// The caller has locked the messages. `token`: of the leased call; 0: an outside consumer. Needs an
// OwnerScope. Throws 27000 where a trigger, rule or policy keeps a row as it is.
void lease(const std::vector<NewLease>& leases, std::int64_t token);

}  // namespace mq
