// Consumer claim: the claim of mq_poll (api/consuming.cpp) and mq_receive (api/receiving.cpp). It is
// Claimer's, and settles and mends what stands in its way, since there may be no worker that does. The
// state is that of one call.
#pragma once

#include <functional>
#include <vector>

#include "queue/claim.hpp"

namespace mq {

class ConsumerClaim {
 public:
  explicit ConsumerClaim(Clock& clock) : clock_(clock), claimer_(clock) {}

  // Claims up to `limit` messages that can be delivered, heads only. `sources` is asked before each
  // try; if it asks whether something is due, it has the Claimer begin before. What is found and cannot be delivered is
  // settled; `thorough` is false: only if a message may be behind it. Where limits put messages off (Claim::put_off)
  // the caller is to commit, even if nothing else was found. Needs an OwnerScope and an SPI connection.
  Claim run(const std::function<std::vector<Source>(Claimer&)>& sources, int limit, bool thorough);
  // As Claimer has it, of the last claim.
  bool left_notes() const { return claimer_.left_notes(); }

 private:
  Clock& clock_;
  Claimer claimer_;
};

}  // namespace mq
