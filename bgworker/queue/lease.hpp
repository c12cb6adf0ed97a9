// Lease: charges messages an attempt and gives them to a leased call or an outside consumer until a
// moment. The leased handlers (leased/lease_store.cpp), mq_poll (api/consuming.cpp) and mq_receive
// (api/receiving.cpp) use it. No state.
//
// The token in mq_msgs.lease tells whose lease it is: above 0 a leased call's, 0 one of mq_poll, below
// 0 one of mq_receive. But for 0 they come from mq_msgs_seq, so no two leases have the same.
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

// The caller has locked the messages. Needs an OwnerScope. Throws 27000 where a trigger, rule or policy keeps a row as
// it is.
void lease(const std::vector<NewLease>& leases, std::int64_t token);

// A new token for a lease of mq_receive on the messages. No lease that one of them has had has it,
// also if the sequence was set back meanwhile.
std::int64_t new_receipt(const std::vector<Claimed>& messages);

}  // namespace mq
