// Time-ordered ids.
#pragma once

#include <array>
#include <cstdint>

#include "message.hpp"

namespace mq {

// A uuid of version 7 (RFC 9562): milliseconds since 1970, then 74 random bits.
Uuid uuid_v7(std::int64_t unix_milliseconds, const std::array<std::uint8_t, 10>& random);

}  // namespace mq
