#include "queue/status.hpp"

#include "pg/error.hpp"
#include "pg/extension.hpp"
#include "pg/format.hpp"
#include "pg/guard.hpp"
#include "pg/row_lockers.hpp"
#include "queue/claimed_rows.hpp"
#include "queue/current_call.hpp"
#include "queue/uuid.hpp"
#include "shmem/callers.hpp"
#include "shmem/leased_calls.hpp"
#include "shmem/progress.hpp"
#include "shmem/row_claims.hpp"
#include "shmem/shared.hpp"

extern "C" {
#include "access/xact.h"
#include "miscadmin.h"
#include "utils/jsonb.h"
}

namespace mq {

namespace {

// The columns of the query below.
struct Column {
  enum {
    kId = 1,
    // Of mq_msgs, NULL: it is not pending.
    kAttemptAt,
    kLeft,
    kMade,
    kTwoPhase,
    kWaitsUntil,
    kLease,
    kLocation,
    kTouched,
    kNoted,
    kLastError,
    // Of mq_dead; NULL: it is not dead.
    kReason,
    kDeadMade,
    kSqlstate,
    kError,
    kDetail,
    kHint,
    // Of mq_done; NULL: it is not there.
    kDoneMade,
    kDoneDue,
    kResult,
  };
};

// Reads one row of the query.
class Row {
 public:
  Row(const Rows& rows, std::size_t at) : rows_(rows), at_(at) {}
  bool has(int column) const { return !rows_.is_null(at_, column); }
  Datum get(int column) const { return rows_.get(at_, column); }
  Param param(int column) const { return has(column) ? Param(get(column)) : Param(); }
  std::int32_t number(int column) const { return DatumGetInt32(get(column)); }

 private:
  const Rows& rows_;
  const std::size_t at_;
};

// Whether a worker or an mq_run has the message, with or without a lock on its row.
bool is_handled(const Row& row, const Uuid& id) {
  if (is_of_the_call(id) || shared::is_claimed_by_other(location_of(row.get(Column::kLocation)))) return true;
  if (!DatumGetBool(row.get(Column::kTouched))) return false;
  const Lockers lockers = lockers_of(Extension::msgs(), row.get(Column::kLocation));
  for (int i = 0; i < lockers.count; ++i)
    if (shared::holder(lockers.lockers[i].pid, lockers.lockers[i].transaction) != shared::Holder::kStranger)
      return true;
  return false;
}

void add_progress(MessageStatus& status, std::int64_t lease) {
  const auto progress = shared::progress_of(MyDatabaseId, status.id, lease);
  if (!progress) return;
  status.fraction = progress->fraction;
  status.note = progress->note;
}

// Of a message in mq_msgs that is not dead.
void set_pending(const Row& row, Micros now, MessageStatus& status) {
  const std::int32_t made = row.number(Column::kMade), left = row.number(Column::kLeft);
  const Micros due = DatumGetTimestampTz(row.get(Column::kAttemptAt));
  const std::int64_t lease = row.has(Column::kLease) ? DatumGetInt64(row.get(Column::kLease)) : 0;
  status.attempt = made;
  status.attempts_left = left;
  status.error = row.param(Column::kLastError);
  if (row.has(Column::kNoted)) {
    status.state = MessageState::kCancelled;
    status.attempts_left = std::nullopt;
    status.error = row.param(Column::kNoted);
    status.sqlstate = text_datum("57014");
    status.reason = "cancelled";
    return;
  }
  // A lease has charged its attempt.
  const bool leased = row.has(Column::kLease) && due > now;
  if (leased && (lease <= 0 || !shared::available() || shared::lease_has_call(lease))) {
    status.state = MessageState::kRunning;
    add_progress(status, lease);
    return;
  }
  if (DatumGetBool(row.get(Column::kTwoPhase))) {
    status.state = MessageState::kUncommitted;
    return;
  }
  if (row.has(Column::kWaitsUntil)) {
    status.state = MessageState::kWaiting;
    status.due_at = row.param(Column::kWaitsUntil);
    return;
  }
  if (is_handled(row, status.id)) {
    status.state = MessageState::kRunning;
    status.attempt = made + 1;
    status.attempts_left = left - 1;
    add_progress(status, 0);
    return;
  }
  if (TIMESTAMP_IS_NOEND(due)) {  // no handler takes its name
    status.state = MessageState::kReady;
    return;
  }
  status.due_at = row.param(Column::kAttemptAt);
  status.state = due <= now ? MessageState::kReady : made > 0 ? MessageState::kRetrying : MessageState::kScheduled;
}

void set_dead(const Row& row, MessageStatus& status) {
  const std::string_view reason = text_view(row.get(Column::kReason));
  status.state = reason == "cancelled" ? MessageState::kCancelled : MessageState::kDead;
  status.reason = guard::call([&] { return pnstrdup(reason.data(), reason.size()); });
  status.attempt = row.number(Column::kDeadMade);
  status.sqlstate = row.param(Column::kSqlstate);
  status.error = row.has(Column::kError) ? row.param(Column::kError)
                                         : Param(text_datum(mq::format("dead, with the reason {}", reason)));
  status.detail = row.param(Column::kDetail);
  status.hint = row.param(Column::kHint);
}

void set_done(const Row& row, MessageStatus& status) {
  status.state = MessageState::kDone;
  status.attempt = row.number(Column::kDoneMade);
  status.due_at = row.param(Column::kDoneDue);
  if (!row.has(Column::kResult)) return;
  const Datum result = row.get(Column::kResult);
  status.result = guard::call([&] { return PointerGetDatum(PG_DETOAST_DATUM(result)); });
}

}  // namespace

const char* name_of(MessageState state) {
  switch (state) {
    case MessageState::kWaiting:
      return "waiting";
    case MessageState::kScheduled:
      return "scheduled";
    case MessageState::kReady:
      return "ready";
    case MessageState::kRunning:
      return "running";
    case MessageState::kRetrying:
      return "retrying";
    case MessageState::kUncommitted:
      return "uncommitted";
    case MessageState::kDone:
      return "done";
    case MessageState::kDead:
      return "dead";
    case MessageState::kCancelled:
      return "cancelled";
    default:
      return "unknown";
  }
}

std::vector<MessageStatus> statuses_of(std::span<const Uuid> ids) {
  // Of a message that is pending again, or that was handled after it had died, what came last counts. `+ 0`:
  // finds them by the id and sorts them; else all might be walked.
  static Statement select(
      "SELECT i.id, m.attempt_at, m.attempts, m.attempt, m.two_phase, m.due_at, m.lease, m.ctid, m.touched,"
      "       c.error, f.error, e.reason, e.attempts_made, e.sqlstate, e.error, e.detail, e.hint,"
      "       r.attempts, r.due_at, r.result"
      "  FROM unnest($1) WITH ORDINALITY AS i (id, at)"
      "  LEFT JOIN LATERAL (SELECT m.attempt_at, m.attempts, m.attempt, m.commit_interval IS NOT NULL AS two_phase,"
      "                            m.due_at, m.lease, m.ctid, m.xmax <> '0' AS touched, m.seq, m.created_at"
      "                       FROM $S.mq_msgs m WHERE m.id = i.id AND m.attempt_at IS NOT NULL LIMIT 1) AS m ON true"
      "  LEFT JOIN LATERAL (SELECT c.error FROM $S.mq_cancelled c WHERE c.message_id = i.id AND c.seq = m.seq"
      "                      LIMIT 1) AS c ON m.seq IS NOT NULL"
      "  LEFT JOIN LATERAL (SELECT f.error FROM $S.mq_failures f WHERE f.message_id = i.id AND m.attempt > 0"
      "                        AND (m.created_at IS NULL OR f.failed_at >= m.created_at)"
      "                      ORDER BY f.failure_no + 0 DESC LIMIT 1) AS f ON m.seq IS NOT NULL"
      "  LEFT JOIN LATERAL (SELECT d.* FROM $S.mq_dead d WHERE d.id = i.id AND m.seq IS NULL"
      "                      ORDER BY d.dead_no + 0 DESC LIMIT 1) AS d ON true"
      "  LEFT JOIN LATERAL (SELECT r.* FROM $S.mq_done r WHERE r.id = i.id AND m.seq IS NULL"
      "                        AND (d.died_at IS NULL OR r.finished_at >= d.died_at)"
      "                      ORDER BY r.done_no + 0 DESC LIMIT 1) AS r ON true"
      "  LEFT JOIN LATERAL (SELECT d.reason, d.attempts_made, d.sqlstate, d.error, d.detail, d.hint"
      "                      WHERE d.id IS NOT NULL AND r.id IS NULL) AS e ON true"
      " ORDER BY i.at",
      {UUIDARRAYOID});
  if (!Extension::get().is_updated()) throw Extension::get().needs_update();
  const Rows rows = select.run({uuid_array(ids)});
  const Micros now = GetCurrentTimestamp();
  std::vector<MessageStatus> statuses(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Row row(rows, i);
    MessageStatus& status = statuses[i];
    status.id = uuid_of(row.get(Column::kId));
    if (row.has(Column::kAttemptAt))
      set_pending(row, now, status);
    else if (row.has(Column::kReason))
      set_dead(row, status);
    else if (row.has(Column::kDoneMade))
      set_done(row, status);
  }
  return statuses;
}

std::vector<char> are_pending(std::span<const Uuid> ids) {
  static Statement select(
      "SELECT i.at::int4, m.xmin, m.lease, EXISTS (SELECT 1 FROM $S.mq_cancelled c"
      "                                             WHERE c.message_id = i.id AND c.seq = m.seq)"
      "  FROM unnest($1) WITH ORDINALITY AS i (id, at)"
      " CROSS JOIN LATERAL (SELECT m.xmin, m.lease, m.seq FROM $S.mq_msgs m"
      "                      WHERE m.id = i.id AND m.attempt_at IS NOT NULL LIMIT 1) AS m",
      {UUIDARRAYOID});
  if (!Extension::get().is_updated()) throw Extension::get().needs_update();
  const Rows rows = select.run({uuid_array(ids)});
  std::vector<char> pending(ids.size(), 0);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Uuid& id = ids[static_cast<std::size_t>(DatumGetInt32(rows.get(i, 1))) - 1];
    if (DatumGetBool(rows.get(i, 4))) continue;
    if (TransactionIdIsCurrentTransactionId(DatumGetTransactionId(rows.get(i, 2))))
      throw Error("55000", mq::format("message {} was sent or changed in this transaction", uuid_text(id)),
                  "Nobody handles it before the transaction commits, so the wait would not end.",
                  "Wait for it in a transaction of its own.");
    if (!rows.is_null(i, 3) && DatumGetInt64(rows.get(i, 3)) > 0 &&
        shared::is_handled_here(DatumGetInt64(rows.get(i, 3))))
      throw Error("55000", mq::format("message {} is handled by the call that waits for it", uuid_text(id)),
                  "It ends with the call, so the wait would not end.");
    pending[static_cast<std::size_t>(&id - ids.data())] = 1;
  }
  return pending;
}

}  // namespace mq
