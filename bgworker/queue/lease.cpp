#include "queue/lease.hpp"

#include <algorithm>

#include "pg/refused_rows.hpp"
#include "pg/sequences.hpp"
#include "pg/statement.hpp"
#include "queue/cancel_notes.hpp"
#include "queue/claimed_rows.hpp"
#include "queue/commit_actions.hpp"

namespace mq {

namespace {

// Writes the leases straight into the table. Returns for each whether it did.
std::vector<char> write_leases(const std::vector<NewLease>& leases, std::int64_t token) {
  std::vector<const Claimed*> messages;
  std::vector<Datum> backoffs;
  for (const NewLease& lease : leases) {
    messages.push_back(lease.message);
    backoffs.push_back(lease.retry_backoff ? interval_datum(*lease.retry_backoff) : Datum{0});
  }
  return update_claimed(messages, [&](std::size_t i, NewVersion& version) {
    version.set(kAttemptAt, TimestampTzGetDatum(leases[i].until));
    if (leases[i].retry_backoff) version.set(kRetryBackoff, backoffs[i]);
    version.add(kAttemptsLeft, -1);
    version.add(kAttempts, 1);
    version.set(kLeaseToken, Int64GetDatum(token));
    version.set_null(kThrottledAt);
  });
}

}  // namespace

void lease(const std::vector<NewLease>& leases, std::int64_t token) {
  static Statement update(
      "UPDATE $S.mq_msgs m SET attempt_at = l.lease_end, retry_backoff = COALESCE(l.backoff, m.retry_backoff),"
      "       attempts = m.attempts - 1, attempt = m.attempt + 1, lease = $4,"
      "       throttled_at = NULL"
      "  FROM unnest($1, $2, $3) AS l (id, lease_end, backoff) WHERE m.id = l.id",
      {UUIDARRAYOID, TIMESTAMPTZARRAYOID, INTERVALARRAYOID, INT8OID});
  if (leases.empty()) return;
  std::vector<const Claimed*> messages;
  for (const NewLease& lease : leases) messages.push_back(lease.message);
  cancel_notes::refuse_cancelled(messages);
  // Who waits for messages has to know when these will be due.
  if (token <= 0)
    for (const NewLease& lease : leases)
      commit_actions::due(lease.message->channel_name, lease.message->priority, {lease.until, lease.message->seq});
  const std::vector<char> written = write_leases(leases, token);
  ArrayParam ids(UUIDOID), ends(TIMESTAMPTZOID), backoffs(INTERVALOID);
  std::size_t others = 0;
  for (std::size_t i = 0; i < leases.size(); ++i) {
    if (written[i] != 0) continue;
    const NewLease& lease = leases[i];
    ids.add(uuid_datum(lease.message->id));
    ends.add(TimestampTzGetDatum(lease.until));
    backoffs.add(lease.retry_backoff ? Param(interval_datum(*lease.retry_backoff)) : Param());
    ++others;
  }
  // All are locked, so no other session has removed any.
  if (others > 0 && update.run({ids.datum(), ends.datum(), backoffs.datum(), Int64GetDatum(token)}).size() < others)
    throw refused("mq_msgs", "being changed");
}

std::int64_t new_receipt(const std::vector<Claimed>& messages) {
  for (;;) {
    const std::int64_t number = sequences::next_seq();
    const bool is_new = std::all_of(messages.begin(), messages.end(), [&](const Claimed& message) {
      return number > message.seq && number > message.token && number > -message.token;
    });
    if (is_new) return -number;
    sequences::mend_numbers(number);
  }
}

}  // namespace mq
