// Retries: makes failed messages due again, straight in the table. settle.cpp uses it. No state.
#pragma once

#include <vector>

#include "queue/settlement.hpp"

namespace mq {

// The number that settling adds to the attempts: 0 where the lease has charged this attempt already.
int to_charge(const Claimed& message);

// Makes each of the messages due again. Returns which it has; a statement has to see to the others: their
// rows are not as they were claimed, or triggers, rules or policies have to be asked. Needs an OwnerScope.
std::vector<char> write_retries(const std::vector<Retry>& retries);

}  // namespace mq
