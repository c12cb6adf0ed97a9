// Cancel: mq_cancel moves pending messages to the dead letters, also those that are being handled.
// docs/internals/cancelling.md has the races. The open cancels of this transaction are this process's
// state; they end with it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "pg/types.hpp"

namespace mq {

// Cancels the messages with these ids, which are sorted. Returns those that it has cancelled, if this
// transaction commits. Waits for transactions that have locked one of them, but not for a call of a handler. Needs
// an OwnerScope and an SPI connection. Throws 53400 where more running messages are being cancelled than shared
// memory has room for.
std::vector<Uuid> cancel(const std::vector<Uuid>& ids, std::string_view why);

}  // namespace mq
