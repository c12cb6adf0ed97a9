// Time-ordered ids, for messages that are sent without one. api/send.cpp calls it. Pure functions.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "pg/types.hpp"

namespace mq {

// A UUID of version 7 (RFC 9562): 48 bits of milliseconds since 1970, then 74 random bits. Version
// and variant replace the other 6 bits of `random`.
Uuid uuid_v7(std::int64_t unix_milliseconds, const std::array<std::uint8_t, 10>& random);

// The id of the same millisecond that is 1 + `step` behind it, as RFC 9562 has it (6.2, method 2), so
// that the ids of a batch ascend. None: there is none left in that millisecond.
std::optional<Uuid> uuid_behind(const Uuid& id, std::uint32_t step);

// As the server writes it.
std::string uuid_text(const Uuid& id);

}  // namespace mq
