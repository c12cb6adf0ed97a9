// ClaimSource over mq_msgs and mq_payloads: the statements behind a claim.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "../ports.hpp"
#include "spi.hpp"

namespace mq {

// What a claim returns for a message beyond what the core needs; see Claimed::row.
struct ClaimedRow {
  HeapTuple tuple;
  TupleDesc descriptor;
};

// Columns of the statements of a claim, counted from 1.
enum ClaimColumn {
  kId = 1,
  kChannelKey,
  kPlace,
  kAttemptAt,
  kRetryBackoff,
  kChannelName,
  kChannelArgs,
  kName,
  kAttempts,
  kAttemptsLeft,
  kOrdered,
  kUncommitted,
  kLocation,
  kPayloadLocation,
  kPayloadJson,
  kPayloadBytes,
  kExpiresAt,
  kCreatedAt,
  kLeaseToken,
};

class SqlClaimSource : public ClaimSource {
 public:
  void begin(std::span<const std::string_view> channel_names) override;
  void oldest(std::string_view channel_name, Micros now, std::optional<Position> after, int limit,
              Batch& batch) override;
  void fair(std::string_view channel_name, Micros now, std::int64_t start, int limit, Batch& batch) override;
  void runs(std::span<const Claimed> heads, Micros now, int limit, Batch& batch) override;
  void named(std::span<const Uuid> ids, Batch& batch, std::vector<int>& crashes) override;
  bool is_pending(const Uuid& id) override;
  void again(std::span<const Uuid> ids, Micros now, Batch& batch) override;
  bool is_due(std::string_view channel_name, Micros now) override;
  int due(std::string_view channel_name, Micros now, int limit) override;
  bool take_place(std::string_view channel_name, int most) override;
  void release_place(std::string_view channel_name) override;

  // Claims pass over what cannot be delivered, and draw fairly from no channel: while a dump is restored payloads may
  // still come, and nobody should bury.
  void leave_undeliverable() { undeliverable_left_ = true; }
  // Whether the claim that found nothing has overlooked something: a mark was too high.
  bool overlooked();
  // Locks the messages of a lease and appends them as they were before its attempt was charged. False: some of them are
  // locked by others.
  bool leased(std::int64_t token, Batch& batch);

  // Due messages of any channel that cannot be delivered: expired two-phase ones, and last attempts whose lease
  // has run out. For the sweep.
  void spent(Micros now, int limit, Batch& batch);
  // Messages of any channel that have expired, but for those that somebody handles. For the sweep.
  void expired(Micros now, int limit, Batch& batch);
  // When the next one of any channel has to be buried for that; the time of a lease's end if it has one.
  std::optional<Micros> next_expiry(Micros now);
  // Names of all channels with a head, and when the first of each is due. For mq_poll without names.
  std::vector<std::string> channel_names();
  std::optional<Micros> next_due(std::string_view channel_name);
  // Of those that are due after that moment.
  std::optional<Micros> next_due(std::string_view channel_name, Micros after);

  // Rows of the current batch; the tuples live as long as the SPI connection.
  const ClaimedRow& row(const Claimed& message) const { return rows_[message.row]; }

 private:
  void append(const Rows& rows, Batch& batch);

  std::vector<ClaimedRow> rows_;
  std::vector<std::string> names_;  // of the current claim
  bool undeliverable_left_ = false;
  std::map<std::string, int, std::less<>> places_;  // that were taken last, by channel name
};

}  // namespace mq
