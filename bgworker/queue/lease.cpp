#include "queue/lease.hpp"

#include "pg/refused_rows.hpp"
#include "pg/statement.hpp"

namespace mq {

void lease(const std::vector<NewLease>& leases, std::int64_t token) {
  static Statement update(
      "UPDATE $S.mq_msgs m SET attempt_at = l.lease_end, retry_backoff = COALESCE(l.backoff, m.retry_backoff),"
      "       attempts = m.attempts - 1, attempt = m.attempt + 1, lease = $4"
      "  FROM unnest($1, $2, $3) AS l (id, lease_end, backoff) WHERE m.id = l.id",
      {UUIDARRAYOID, TIMESTAMPTZARRAYOID, INTERVALARRAYOID, INT8OID});
  if (leases.empty()) return;
  ArrayParam ids(UUIDOID, leases.size()), ends(TIMESTAMPTZOID, leases.size()), backoffs(INTERVALOID, leases.size());
  for (const NewLease& lease : leases) {
    ids.add(uuid_datum(lease.message->id));
    ends.add(TimestampTzGetDatum(lease.until));
    backoffs.add(lease.retry_backoff ? Param(interval_datum(*lease.retry_backoff)) : Param());
  }
  // All are locked, so no other session has removed any.
  if (update.run({ids.datum(), ends.datum(), backoffs.datum(), Int64GetDatum(token)}).size() < leases.size())
    throw refused("mq_msgs", "being changed");
}

}  // namespace mq
