// Wait paths: which pending messages a message waits for in the end, through `after` and through
// ordered channels. mq_redrive asks, lest it make messages wait for one another. No state.
//
// A message waits for those that mq_prerequisites names, and for those before it in its ordered channel.
// Whoever sends a message makes it wait for older ones only, so no cycle comes of that. mq_redrive can put a
// message before others that are pending already.
#pragma once

#include <span>

#include "pg/types.hpp"

namespace mq {

// Whether one of these pending messages is the message, or waits for it in the end. To be asked before the
// message itself waits for them. Locks the paths, to the end of the transaction: of two transactions that
// would make a cycle together one sees what the other did. Needs an OwnerScope and an SPI connection.
bool wait_for_message(std::span<const Uuid> messages, const Uuid& message);

}  // namespace mq
