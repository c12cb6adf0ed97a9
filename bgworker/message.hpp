// A claimed message, as the core sees it: enough to order, dispatch and settle it. The payload stays in the
// server's tuple; `row` finds it again.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string_view>
#include <vector>

namespace mq {

// Durations, and instants since 2000-01-01 UTC as the server counts them, in microseconds.
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

// Where a message stands among the due ones of its channel name.
struct Position {
  Micros attempt_at;
  std::int64_t place;

  friend bool operator==(const Position& a, const Position& b) = default;
  friend auto operator<=>(const Position& a, const Position& b) = default;
};

// The views live as long as the batch that the message was claimed in.
struct Claimed {
  Uuid id;
  std::int64_t channel_key = 0;
  std::int64_t place = 0;
  Micros attempt_at = 0;
  Micros retry_backoff = 0;
  Micros expires_at = kNever;  // not to be handled then or later
  std::string_view channel_name;
  std::string_view channel_args;
  std::string_view name;
  int attempts = 0;  // made before this one
  int attempts_left = 0;
  bool ordered = false;
  bool uncommitted = false;  // two-phase, and nobody said mq_commit in time
  bool has_payload = true;
  bool outside = false;    // leased to a consumer outside the server, or was
  bool held = false;       // its lease is over, but the call that it was leased to goes on
  bool orphan = false;     // whoever it was leased to is gone: it is as it was before, and to be given back
  std::int64_t lease = 0;  // not 0: the attempt was charged when it was leased, and is not charged again
  // Where the server layer finds the rest: in what the claim returned, and in the tables.
  std::size_t row = 0;
  std::uint64_t location = 0;
  std::uint64_t payload_location = 0;
};

using Batch = std::vector<Claimed>;

inline bool same_channel(const Claimed& a, const Claimed& b) {
  return a.channel_key == b.channel_key && a.channel_args == b.channel_args && a.channel_name == b.channel_name;
}

}  // namespace mq
