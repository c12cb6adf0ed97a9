#include "queue/retries.hpp"

#include "pg/statement.hpp"
#include "queue/claimed_rows.hpp"

namespace mq {

int to_charge(const Claimed& message) {
  return message.lease == 0 ? 1 : 0;
}

std::vector<char> write_retries(const std::vector<Retry>& retries) {
  std::vector<const Claimed*> messages;
  std::vector<Datum> backoffs;
  for (const Retry& retry : retries) {
    messages.push_back(retry.message);
    backoffs.push_back(interval_datum(retry.retry_backoff));
  }
  return update_claimed(messages, [&](std::size_t i, NewVersion& version) {
    const int charge = to_charge(*messages[i]);
    version.set(kAttemptAt, TimestampTzGetDatum(retries[i].attempt_at));
    version.set(kRetryBackoff, backoffs[i]);
    version.add(kAttemptsLeft, -charge);
    version.add(kAttempts, charge);
    version.set(kFair, BoolGetDatum(true));
    version.set_null(kLeaseToken);
    version.set_null(kThrottledAt);
  });
}

}  // namespace mq
