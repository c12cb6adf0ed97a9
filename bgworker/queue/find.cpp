#include "queue/find.hpp"

#include <algorithm>
#include <unordered_set>

#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/statement.hpp"
#include "queue/cancel_notes.hpp"
#include "queue/cancel_watch.hpp"
#include "queue/claimed_rows.hpp"
#include "shmem/row_claims.hpp"

namespace mq {

namespace {

#define LOCKED "FOR $L OF m SKIP LOCKED"

// Drops the messages of leased calls that still run, and those that another worker has claimed: those
// settle them.
void drop_held(Batch& batch) {
  std::erase_if(batch,
                [](const Claimed& message) { return message.held || shared::is_claimed_by_other(message.location); });
}

// Those of the messages that no other worker has claimed: to lock others would make that worker's batch
// roll back.
Datum unclaimed(std::span<const Uuid> ids) {
  static Statement select("SELECT m.id, m.ctid FROM $S.mq_msgs m WHERE m.id = ANY ($1)", {UUIDARRAYOID});
  if (!shared::others_claim()) return uuid_array(ids);
  ArrayParam left(UUIDOID, ids.size());
  const Rows rows = select.run({uuid_array(ids)});
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (!shared::is_claimed_by_other(location_of(rows.get(i, 2)))) left.add(rows.get(i, 1));
  return left.datum();
}

}  // namespace

void find_named(std::span<const Uuid> ids, Batch& batch, std::vector<int>& crashes) {
  static Statement select("SELECT " CLAIMED_COLUMNS
                          ", (SELECT count(*)::int4 FROM $S.mq_failures f"
                          "   WHERE f.message_id = m.id AND f.crash)"
                          "  FROM $S.mq_msgs m WHERE m.id = ANY ($1) " LOCKED,
                          {UUIDARRAYOID});
  const OwnerScope scope;
  const Rows rows = select.run({unclaimed(ids)});
  Batch found;
  append(rows, found);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (shared::is_claimed_by_other(found[i].location)) continue;
    batch.push_back(found[i]);
    crashes.push_back(DatumGetInt32(rows.get(i, kFurther)));
  }
}

void find_due(std::span<const Uuid> ids, Micros now, Batch& batch) {
  static Statement select("SELECT " CLAIMED_COLUMNS
                          " FROM $S.mq_msgs m"
                          " WHERE m.id = ANY ($1) AND m.attempt_at <= $2"
                          " AND $H ORDER BY m.priority DESC, m.attempt_at, m.seq " LOCKED,
                          {UUIDARRAYOID, TIMESTAMPTZOID});
  const OwnerScope scope;
  CancelWatch::begin_claim();
  cancel_notes::begin_claim();
  append(select.run({unclaimed(ids), TimestampTzGetDatum(now)}), batch);
  drop_held(batch);
}

bool find_leased(std::int64_t token, Batch& batch) {
  static Statement select("SELECT " CLAIMED_COLUMNS " FROM $S.mq_msgs m WHERE m.lease = $1 AND m.lease > 0 " LOCKED,
                          {INT8OID});
  static Statement count(
      "SELECT pg_catalog.count(*) FROM $S.mq_msgs m WHERE m.lease = $1"
      " AND m.lease > 0",
      {INT8OID});
  const OwnerScope scope;
  const std::size_t before = batch.size();
  append(select.run({Int64GetDatum(token)}), batch);
  for (std::size_t i = before; i < batch.size(); ++i) {
    if (!batch[i].orphan) before_lease(batch[i], token);
    batch[i].held = batch[i].orphan = false;
  }
  const auto all = DatumGetInt64(count.run({Int64GetDatum(token)}).get(0, 1));
  return static_cast<std::int64_t>(batch.size() - before) == all;
}

Batch find_received(std::span<const Uuid> ids, std::int64_t token, bool to_remove) {
#define RECEIVED                                                              \
  "SELECT " CLAIMED_COLUMNS                                                   \
  " FROM $S.mq_msgs m WHERE m.id = ANY ($1) AND m.lease = $2 AND m.lease < 0" \
  " AND m.attempt_at > pg_catalog.clock_timestamp() ORDER BY m.id FOR "
  static Statement to_change(RECEIVED "NO KEY UPDATE OF m", {UUIDARRAYOID, INT8OID});
  static Statement to_delete(RECEIVED "UPDATE OF m", {UUIDARRAYOID, INT8OID});
  cancel_notes::begin_claim();
  Batch batch;
  append((to_remove ? to_delete : to_change).run({uuid_array(ids), Int64GetDatum(token)}), batch);
  // The lease may have run out while this waited for a session that has changed nothing.
  const Micros now = GetCurrentTimestamp();
  std::erase_if(batch, [&](const Claimed& message) {
    return message.attempt_at <= now || message.held || message.cancelled != nullptr;
  });
  for (Claimed& message : batch) {
    before_lease(message, token);
    message.orphan = false;
  }
  return batch;
}

void find_exhausted(Micros now, int limit, Batch& batch) {
  static Statement select("SELECT " CLAIMED_COLUMNS
                          " FROM $S.mq_msgs m"
                          " WHERE (m.commit_interval IS NOT NULL OR m.attempts <= 0) AND m.attempt_at <= $1"
                          " ORDER BY m.attempt_at LIMIT $2 " LOCKED,
                          {TIMESTAMPTZOID, INT8OID});
  const OwnerScope scope;
  append(select.run({TimestampTzGetDatum(now), Int64GetDatum(limit)}), batch);
  drop_held(batch);
}

void find_expired(Micros now, int limit, Batch& batch) {
  static Statement select("SELECT " CLAIMED_COLUMNS
                          " FROM $S.mq_msgs m"
                          " WHERE m.expires_at <= $1 AND m.commit_interval IS NULL"
                          "   AND (m.attempt_at <= $1 OR m.attempt_at = 'infinity')"
                          " ORDER BY m.expires_at LIMIT $2 " LOCKED,
                          {TIMESTAMPTZOID, INT8OID});
  const OwnerScope scope;
  append(select.run({TimestampTzGetDatum(now), Int64GetDatum(limit)}), batch);
  drop_held(batch);
}

void find_waiting(std::span<const Uuid> ids, Batch& batch) {
  static Statement select("SELECT " CLAIMED_COLUMNS
                          " FROM $S.mq_msgs m WHERE m.id = ANY ($1) AND m.due_at IS NOT NULL"
                          " ORDER BY m.id FOR UPDATE OF m SKIP LOCKED",
                          {UUIDARRAYOID});
  const OwnerScope scope;
  append(select.run({uuid_array(ids)}), batch);
}

namespace {

// `rows`: the ctids of rows.
void wait_for_holders(const Rows& rows) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const VirtualTransactionId holder = shared::claimed_by_other(location_of(rows.get(i, 1)));
    if (VirtualTransactionIdIsValid(holder)) guard::call([&] { (void)VirtualXactLock(holder, true); });
  }
}

}  // namespace

bool leave_held(Batch& undeliverable) {
  static Statement lock("SELECT m.id FROM $S.mq_msgs m WHERE m.id = ANY ($1) FOR UPDATE SKIP LOCKED", {UUIDARRAYOID});
  if (undeliverable.empty()) return false;
  std::vector<Uuid> ids;
  for (const Claimed& message : undeliverable) ids.push_back(message.id);
  const Rows rows = lock.run({uuid_array(ids)});
  std::unordered_set<Uuid, UuidHash> free;
  for (std::size_t i = 0; i < rows.size(); ++i) free.insert(uuid_of(rows.get(i, 1)));
  return std::erase_if(undeliverable, [&](const Claimed& message) { return !free.contains(message.id); }) > 0;
}

void wait_for_claims(const std::vector<Uuid>& ids) {
  static Statement select("SELECT m.ctid FROM $S.mq_msgs m WHERE m.id = ANY ($1)", {UUIDARRAYOID});
  if (!shared::others_claim()) return;
  wait_for_holders(select.run({uuid_array(ids)}));
}

void wait_for_claims_of(const Param& channel_names) {
  static Statement select(
      "SELECT m.ctid FROM $S.mq_msgs m WHERE m.ctid = ANY ($1) AND ($2 IS NULL OR m.channel_name = ANY ($2))",
      {TIDARRAYOID, TEXTARRAYOID});
  const std::vector<shared::ClaimOfOther> claims = shared::claims_of_others();
  if (claims.empty()) return;
  std::vector<ItemPointerData> rows(claims.size());
  ArrayParam array(TIDOID, claims.size());
  for (std::size_t i = 0; i < claims.size(); ++i) {
    rows[i] = item_of(claims[i].row);
    array.add(PointerGetDatum(&rows[i]));
  }
  wait_for_holders(select.run({array.datum(), channel_names}));
}

}  // namespace mq
