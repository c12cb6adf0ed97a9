#include "queue/lease.hpp"

#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/plain_table.hpp"
#include "pg/refused_rows.hpp"
#include "pg/statement.hpp"
#include "queue/claimed_rows.hpp"

namespace mq {

namespace {

// Writes the leases straight into the table. Returns for each whether it did.
std::vector<char> write_leases(const std::vector<NewLease>& leases, std::int64_t token) {
  const Oid table = Extension::msgs();
  const AttrNumber* numbers = attribute_numbers(table);
  std::vector<char> written(leases.size(), 0);
  if (has_new_file(table)) return written;
  std::vector<Datum> backoffs;
  backoffs.reserve(leases.size());
  for (const NewLease& lease : leases)
    backoffs.push_back(lease.retry_backoff ? interval_datum(*lease.retry_backoff) : Datum{0});
  guard::call([&] {
    RowUpdater updater;
    if (!updater.open(table, msgs_columns(numbers))) return;
    for (std::size_t i = 0; i < leases.size(); ++i) {
      const NewLease& lease = leases[i];
      if (row_state(updater.relation(), numbers, *lease.message, updater.old()) != RowState::kThere) continue;
      written[i] = updater.update(item_of(*lease.message), true, [&](Datum* values, bool* nulls) {
        const auto value = [&](ClaimColumn column) -> Datum& { return values[numbers[column] - 1]; };
        value(kAttemptAt) = TimestampTzGetDatum(lease.until);
        if (lease.retry_backoff) value(kRetryBackoff) = backoffs[i];
        value(kAttemptsLeft) = Int32GetDatum(DatumGetInt32(value(kAttemptsLeft)) - 1);
        value(kAttempts) = Int32GetDatum(DatumGetInt32(value(kAttempts)) + 1);
        value(kLeaseToken) = Int64GetDatum(token);
        nulls[numbers[kLeaseToken] - 1] = false;
      });
    }
    updater.close();
  });
  return written;
}

}  // namespace

void lease(const std::vector<NewLease>& leases, std::int64_t token) {
  static Statement update(
      "UPDATE $S.mq_msgs m SET attempt_at = l.lease_end, retry_backoff = COALESCE(l.backoff, m.retry_backoff),"
      "       attempts = m.attempts - 1, attempt = m.attempt + 1, lease = $4"
      "  FROM unnest($1, $2, $3) AS l (id, lease_end, backoff) WHERE m.id = l.id",
      {UUIDARRAYOID, TIMESTAMPTZARRAYOID, INTERVALARRAYOID, INT8OID});
  if (leases.empty()) return;
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

}  // namespace mq
