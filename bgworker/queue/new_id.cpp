#include "queue/new_id.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "pg/error.hpp"
#include "pg/postgres.hpp"
#include "queue/uuid.hpp"

namespace mq {

namespace {

// Random bytes, which are cheaper by the hundred.
template <std::size_t n>
std::array<std::uint8_t, n> random_bytes() {
  static std::array<std::uint8_t, 512> store;
  static std::size_t left = 0;
  if (left < n) {
    if (!pg_strong_random(store.data(), store.size())) throw Error("XX000", "could not generate random values");
    left = store.size();
  }
  std::array<std::uint8_t, n> bytes;
  left -= n;
  std::copy_n(store.begin() + static_cast<std::ptrdiff_t>(left), n, bytes.begin());
  return bytes;
}

}  // namespace

// Ascends within a millisecond, so that the index of ids grows at its end.
Uuid new_id() {
  constexpr std::int64_t kEpoch = (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * std::int64_t{SECS_PER_DAY} * 1000;
  static std::int64_t last_millisecond = 0;
  static Uuid last;
  const std::int64_t now = GetCurrentTimestamp() / 1000 + kEpoch;
  if (now == last_millisecond) {
    std::uint32_t step = 0;
    memcpy(&step, random_bytes<sizeof step>().data(), sizeof step);
    if (const std::optional<Uuid> id = uuid_behind(last, step)) return last = *id;
  }
  last_millisecond = now;
  return last = uuid_v7(now, random_bytes<10>());
}

}  // namespace mq
