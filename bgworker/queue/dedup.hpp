// Dedup: finds the message that is pending under a dedup_key.
//
// mq_send and mq_redrive call it before they insert. It owns no state: the unique index
// mq_msgs_dedup holds a channel to one row for a key (docs/internals/sending.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "queue/message.hpp"

namespace mq {

struct DedupKey {
  std::int64_t channel_key;
  std::string_view channel_name, channel_args, key;
};

// The id of the message that has the key at this moment: scheduled, waiting for a retry or being
// handled. A message that will never be delivered (expired, or two-phase and not committed in time)
// is settled here and does not count; if another session has locked it, an expired one counts, and
// a two-phase one is waited for. `free_own_key`: a message of the calling handler's call gives up
// the key and does not count. Throws 40001 where the snapshot of a REPEATABLE READ or SERIALIZABLE
// transaction does not show the message. Needs an OwnerScope and an SPI connection.
std::optional<Uuid> find_pending(const DedupKey& wanted, bool free_own_key);

}  // namespace mq
