// A claimed message: enough to order, dispatch and settle it. claimed_rows.hpp makes them.
// Times are microseconds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pg/types.hpp"

namespace mq {

// The views live as long as the SPI connection that the message was claimed in. A claim copies thousands: the small
// members stand together, so that little is padding.
struct Claimed {
  Uuid id;
  std::int64_t channel_key = 0;
  std::int64_t seq = 0;
  Micros attempt_at = 0;
  Micros retry_backoff = 0;
  Micros expires_at = kNever;  // from then on it must not be handled; kNever: it does not expire
  std::string_view channel_name;
  std::string_view channel_args;
  std::string_view name;
  int attempts = 0;  // charged before this one
  int attempts_left = 0;
  bool ordered = false;
  bool uncommitted = false;  // two-phase; for what a claim finds, the time for mq_commit is over
  bool outside = false;      // leased to an outside consumer, also if the lease has run out
  // Leased to a call that still runs, or whose abort is about to be charged; or mq_cancel is about it.
  bool held = false;
  // Its leased call is gone; it is to be made due again. The attempts are as before its charge.
  bool orphan = false;
  bool locked = true;  // the row is; false: only claimed among workers (shmem/row_claims.hpp)
  std::int16_t priority = 0;
  std::int64_t token = 0;  // of the row's lease, also if it has run out; 0: none, or one of mq_poll
  // Why it is cancelled, if it is: it is not to be handled, but to be moved to the dead letters. It
  // lives as long as the transaction.
  const std::string* cancelled = nullptr;
  // Token of the leased call that has charged this attempt: settling does not charge it. 0: none.
  std::int64_t lease = 0;
  std::optional<Micros> created_at;
  // If ordered: the message that it was appended after; nil: it is the head.
  Uuid after;
  // As they are stored, perhaps compressed or out of line (varlena; jsonb, bytea, jsonb); nullptr: NULL.
  const void* payload_json = nullptr;
  const void* payload_bytes = nullptr;
  const void* headers = nullptr;
  std::optional<Micros> keep;  // how long it is kept once it is handled; none: as its handler's registration says
  std::optional<Micros> throttled_at;  // when it was due, before a limit put it off (rates.hpp)
  std::uint64_t location = 0;          // ctid in mq_msgs: block << 16 | offset

  // Since when it waits to be handled.
  Micros due() const { return throttled_at.value_or(attempt_at); }
};

using Batch = std::vector<Claimed>;

inline bool same_channel(const Claimed& a, const Claimed& b) {
  return a.channel_key == b.channel_key && a.channel_args == b.channel_args && a.channel_name == b.channel_name;
}

}  // namespace mq
