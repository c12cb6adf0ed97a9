// Stale snapshot: a REPEATABLE READ or SERIALIZABLE transaction must not decide anything by a message
// that its snapshot does not show. Appends and deduplication ask. No state.
#pragma once

#include <span>

#include "pg/types.hpp"

namespace mq {

// Throws 40001 with this message if such a transaction does not see one of these messages of mq_msgs,
// which exist. Needs an OwnerScope and an SPI connection.
void refuse_stale_snapshot(std::span<const Uuid> messages, const char* message);

}  // namespace mq
