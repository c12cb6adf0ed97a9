// Types: values of the server's types in C++. No state.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

namespace mq {

// Microseconds: durations, and times since 2000-01-01 UTC, as the server counts them.
using Micros = std::int64_t;
inline constexpr Micros kSecond = 1'000'000;
inline constexpr Micros kNever = std::numeric_limits<Micros>::max();

struct Uuid {
  std::array<std::uint8_t, 16> bytes{};

  friend bool operator==(const Uuid& a, const Uuid& b) { return a.bytes == b.bytes; }
  friend auto operator<=>(const Uuid& a, const Uuid& b) { return a.bytes <=> b.bytes; }
};

struct UuidHash {
  std::size_t operator()(const Uuid& id) const {
    std::size_t tail = 0;  // of a version 7 uuid the last half is random
    std::memcpy(&tail, id.bytes.data() + 8, sizeof tail);
    return tail;
  }
};

}  // namespace mq
