// Dedup: the message that is pending under a dedup_key.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "../message.hpp"

namespace mq {

struct DedupKey {
  std::int64_t channel_key;
  std::string_view channel_name, channel_args, key;
};

// The id of the message that has the key, as of now: scheduled, waiting for a retry, or in somebody's hands. One that
// will not be delivered any more is settled here and does not count: expired, or two-phase and not committed in
// time; only for the latter, if somebody has it locked, is there a wait. Throws 40001 where a REPEATABLE READ
// snapshot does not show the message. Needs an OwnerScope and an SPI connection.
// `free_own_key`: the message that the caller's own handler call handles loses the key and does not count either.
std::optional<Uuid> find_pending(const DedupKey& wanted, bool free_own_key);

}  // namespace mq
