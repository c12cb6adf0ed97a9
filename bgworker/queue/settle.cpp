#include "queue/settle.hpp"

#include <algorithm>
#include <iterator>
#include <set>

#include "pg/crash_point.hpp"
#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/kept.hpp"
#include "pg/plain_table.hpp"
#include "pg/refused_rows.hpp"
#include "pg/row_locks.hpp"
#include "pg/sequences.hpp"
#include "pg/statement.hpp"
#include "queue/cancel_notes.hpp"
#include "queue/commit_actions.hpp"
#include "queue/done.hpp"
#include "queue/handler_of.hpp"
#include "queue/limits.hpp"
#include "queue/prerequisites.hpp"
#include "queue/removal.hpp"
#include "queue/retries.hpp"
#include "queue/running.hpp"
#include "shmem/channel_key.hpp"
#include "stats/totals.hpp"

namespace mq {

namespace {

Param text_or_null(const std::string& text) {
  return text.empty() ? Param() : Param(text_datum(text));
}

// After an UPDATE of the messages: handlers have removed the others; throws 27000 if one is there.
void expect_updated(const ClaimedRows& rows, std::size_t updated) {
  if (updated < rows.size && may_refuse(Extension::msgs()) && count_there(rows) > updated)
    throw refused("mq_msgs", "being changed");
}

// Parameters for the columns of an error; NULL for a field that it has not.
struct ErrorColumns {
  ArrayParam sqlstate{TEXTOID}, message{TEXTOID}, detail{TEXTOID}, hint{TEXTOID}, context{TEXTOID};

  void add(const Error& error) {
    sqlstate.add(text_or_null(error.sqlstate));
    message.add(text_or_null(kept(error.message)));
    detail.add(text_or_null(kept(error.detail)));
    hint.add(text_or_null(kept(error.hint)));
    context.add(text_or_null(kept(error.context)));
  }
};

// Removes the failures that were kept only until the next attempt failed (keeps_failure): the last
// one of each message, if it is of the attempt before this one and no crash.
void remove_superseded(const std::vector<Failure>& failures) {
  static Statement remove(
      "DELETE FROM $S.mq_failures WHERE ctid = ANY (ARRAY("
      "  SELECT l.ctid FROM unnest($1, $2) AS r (id, attempt) CROSS JOIN LATERAL ("
      "    SELECT f.failure_no, f.attempt FROM $S.mq_failures f WHERE f.message_id = r.id"
      "     ORDER BY f.failure_no + 0 DESC LIMIT 1) AS last"
      "    JOIN $S.mq_failures l ON l.failure_no = last.failure_no AND l.attempt = r.attempt AND l.crash IS NULL"
      "   FOR UPDATE OF l SKIP LOCKED))",
      {UUIDARRAYOID, INT4ARRAYOID});
  ArrayParam ids(UUIDOID), attempts(INT4OID);
  bool any = false;
  for (const Failure& failure : failures) {
    const int before = failure.message->attempts;
    if (keeps_failure(before)) continue;
    ids.add(uuid_datum(failure.message->id));
    attempts.add(Int32GetDatum(before));
    any = true;
  }
  if (any) remove.run({ids.datum(), attempts.datum()});
}

Param duration_of(const Failure& failure) {
  return failure.duration ? Param(interval_datum(*failure.duration)) : Param();
}

// Writes the failures straight into mq_failures; false: a statement has to.
bool record_straight(const std::vector<Failure>& failures) {
  static constexpr TableColumn kColumns[] = {
      {"failure_no", INT8OID},    {"message_id", UUIDOID},   {"attempt", INT4OID},      {"failed_at", TIMESTAMPTZOID},
      {"channel_name", TEXTOID},  {"channel_args", TEXTOID}, {"name", TEXTOID, true},   {"duration", INTERVALOID, true},
      {"sqlstate", TEXTOID},      {"error", TEXTOID},        {"detail", TEXTOID, true}, {"hint", TEXTOID, true},
      {"context", TEXTOID, true}, {"channel_key", INT8OID},  {"crash", BOOLOID, true}};
  std::vector<Param> values;
  values.reserve(std::size(kColumns) * failures.size());
  for (const Failure& failure : failures) {
    const Claimed& message = *failure.message;
    const Error& error = failure.error;
    values.insert(values.end(),
                  {Param(Int64GetDatum(sequences::next_failure())), Param(uuid_datum(message.id)),
                   Param(Int32GetDatum(message.attempts + 1)), Param(TimestampTzGetDatum(GetCurrentTimestamp())),
                   Param(text_datum(message.channel_name)), Param(text_datum(message.channel_args)),
                   Param(text_datum(message.name)), duration_of(failure), Param(text_datum(kept(error.sqlstate))),
                   Param(text_datum(kept(error.message))), text_or_null(kept(error.detail)),
                   text_or_null(kept(error.hint)), text_or_null(kept(error.context)),
                   Param(Int64GetDatum(message.channel_key)), failure.crash ? Param(BoolGetDatum(true)) : Param()});
  }
  return insert_rows(Extension::get().relation("mq_failures"), kColumns, values);
}

Rows record_by_statement(const std::vector<Failure>& failures) {
  static Statement insert(
      "INSERT INTO $S.mq_failures (message_id, attempt, failed_at, channel_name, channel_args, name, duration,"
      "  sqlstate, error, detail, hint, context, channel_key, crash)"
      " SELECT f.id, f.attempt, pg_catalog.clock_timestamp(), f.channel, f.args, f.name, f.duration, f.sqlstate,"
      "        COALESCE(f.error, ''), f.detail, f.hint, f.context, f.key, NULLIF(f.crash, false)"
      "   FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
      "     AS f (id, attempt, channel, args, name, duration, sqlstate, error, detail, hint, context, key, crash)",
      {UUIDARRAYOID, INT4ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INTERVALARRAYOID, TEXTARRAYOID,
       TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INT8ARRAYOID, BOOLARRAYOID});
  ArrayParam ids(UUIDOID), attempts(INT4OID), channels(TEXTOID), args(TEXTOID), names(TEXTOID), durations(INTERVALOID),
      keys(INT8OID), crashes(BOOLOID);
  ErrorColumns errors;
  for (const Failure& failure : failures) {
    const Claimed& message = *failure.message;
    ids.add(uuid_datum(message.id));
    attempts.add(Int32GetDatum(message.attempts + 1));
    channels.add(text_datum(message.channel_name));
    args.add(text_datum(message.channel_args));
    names.add(text_datum(message.name));
    durations.add(duration_of(failure));
    keys.add(Int64GetDatum(message.channel_key));
    crashes.add(BoolGetDatum(failure.crash));
    errors.add(failure.error);
  }
  return insert.run({ids.datum(), attempts.datum(), channels.datum(), args.datum(), names.datum(), durations.datum(),
                     errors.sqlstate.datum(), errors.message.datum(), errors.detail.datum(), errors.hint.datum(),
                     errors.context.datum(), keys.datum(), crashes.datum()});
}

void record(const std::vector<Failure>& failures) {
  row_locks::lock_to_write("mq_failures");
  remove_superseded(failures);
  sequences::insert(sequences::Numbered::kFailures,
                    [&] { return record_straight(failures) ? Rows() : record_by_statement(failures); });
}

void retry(const std::vector<Retry>& retries) {
  static Statement update(
      "UPDATE $S.mq_msgs m SET attempt_at = r.attempt_at, retry_backoff = r.backoff, attempts = m.attempts - r.charged,"
      "       attempt = m.attempt + r.charged, lease = NULL, fair = true, throttled_at = NULL"
      "  FROM unnest($1, $2, $3, $4, $5, $6) AS r (id, seq, key, attempt_at, backoff, charged) WHERE " IS_CLAIMED,
      {UUIDARRAYOID, INT8ARRAYOID, INT8ARRAYOID, TIMESTAMPTZARRAYOID, INTERVALARRAYOID, INT4ARRAYOID});
  for (const Retry& r : retries)
    commit_actions::due(r.message->channel_name, r.message->priority, {r.attempt_at, r.message->seq});
  const std::vector<char> written = write_retries(retries);
  ClaimedRows rows;
  ArrayParam times(TIMESTAMPTZOID), backoffs(INTERVALOID), charged(INT4OID);
  std::vector<const Claimed*> others;
  for (std::size_t i = 0; i < retries.size(); ++i) {
    if (written[i] != 0) continue;
    const Retry& r = retries[i];
    others.push_back(r.message);
    rows.add(*r.message);
    times.add(TimestampTzGetDatum(r.attempt_at));
    backoffs.add(interval_datum(r.retry_backoff));
    charged.add(Int32GetDatum(to_charge(*r.message)));
  }
  if (others.empty()) return;
  lock_claimed(others);
  const Rows updated = update.run(
      {rows.ids.datum(), rows.numbers.datum(), rows.keys.datum(), times.datum(), backoffs.datum(), charged.datum()});
  expect_updated(rows, updated.size());
}

void snooze(const std::vector<Snooze>& snoozes) {
  static Statement update(
      "UPDATE $S.mq_msgs m SET attempt_at = r.attempt_at, attempts = m.attempts + r.back, attempt = m.attempt - r.back,"
      "       lease = NULL, fair = true, throttled_at = NULL"
      "  FROM unnest($1, $2, $3, $4, $5) AS r (id, seq, key, attempt_at, back) WHERE " IS_CLAIMED,
      {UUIDARRAYOID, INT8ARRAYOID, INT8ARRAYOID, TIMESTAMPTZARRAYOID, INT4ARRAYOID});
  ClaimedRows rows;
  ArrayParam times(TIMESTAMPTZOID), back(INT4OID);
  for (const Snooze& s : snoozes) {
    rows.add(*s.message);
    times.add(TimestampTzGetDatum(s.attempt_at));
    commit_actions::due(s.message->channel_name, s.message->priority, {s.attempt_at, s.message->seq});
    back.add(Int32GetDatum(1 - to_charge(*s.message)));
  }
  const Rows updated =
      update.run({rows.ids.datum(), rows.numbers.datum(), rows.keys.datum(), times.datum(), back.datum()});
  expect_updated(rows, updated.size());
}

// Makes messages that no handler takes due at infinity, where no claim looks; see unhandled.hpp.
void put_aside(const std::vector<const Claimed*>& messages) {
  static Statement update(
      "UPDATE $S.mq_msgs m SET attempt_at = 'infinity', lease = NULL, throttled_at = NULL"
      "  FROM unnest($1, $2, $3) AS r (id, seq, key) WHERE " IS_CLAIMED,
      {UUIDARRAYOID, INT8ARRAYOID, INT8ARRAYOID});
  ClaimedRows rows;
  for (const Claimed* message : messages) rows.add(*message);
  expect_updated(rows, update.run({rows.ids.datum(), rows.numbers.datum(), rows.keys.datum()}).size());
}

// How many attempts the death adds to those that were made. The lease of a worker's call has charged one that a
// cancel interrupts. A message that is only claimed, or has an open cancel, is held as well.
int charge_of(const DeadLetter& dead_letter) {
  const Claimed& message = *dead_letter.message;
  if (dead_letter.charged) return to_charge(message);
  return dead_letter.reason == cancel_notes::kReason && (message.lease != 0 || (message.held && message.token > 0)) ? -1
                                                                                                                    : 0;
}

// Adds to `blocking` those with block_as_registered whose handlers have on_dead => 'block'.
void add_blocking(const std::vector<DeadLetter>& dead_letters, std::set<Uuid>& blocking) {
  static Statement select("SELECT m.id FROM unnest($1, $2, $3) AS r (id, seq, key) JOIN $S.mq_msgs m ON " IS_CLAIMED
                          " WHERE " HANDLER_OF("h.on_dead", "m.channel_name", "m.message_name") " = 'block'",
                          {UUIDARRAYOID, INT8ARRAYOID, INT8ARRAYOID});
  ClaimedRows claimed;
  for (const DeadLetter& dead_letter : dead_letters) {
    if (!dead_letter.block_as_registered || !dead_letter.message->ordered) continue;
    claimed.add(*dead_letter.message);
  }
  if (claimed.size == 0) return;
  const Rows rows = select.run({claimed.ids.datum(), claimed.numbers.datum(), claimed.keys.datum()});
  for (std::size_t i = 0; i < rows.size(); ++i) blocking.insert(uuid_of(rows.get(i, 1)));
}

// A message that blocks its ordered channel keeps its row, without headers and payload and never due
// (attempt_at is NULL). The others are added to `removed`, for the caller to remove.
void dead_letter(const std::vector<DeadLetter>& dead_letters, std::vector<const Claimed*>& removed) {
  // `failure_no + 0`: finds the failures by the message and sorts them; else all might be walked.
  static Statement insert(
      "INSERT INTO $S.mq_dead (id, created_at, died_at, channel_name, channel_args, name, payload_json,"
      "  payload_bytes, ordered, attempts_made, reason, sqlstate, error, detail, hint, context, retry_backoff, "
      "channel_key,"
      "  dedup_key, keep, priority, headers, after)"
      " SELECT m.id, m.created_at, pg_catalog.clock_timestamp(), m.channel_name, m.channel_args, m.message_name,"
      "        m.message_json, m.message_bytes, m.after_message_id IS NOT NULL, m.attempt + r.charged, r.reason,"
      "        COALESCE(r.sqlstate, f.sqlstate), COALESCE(r.error, f.error), COALESCE(r.detail, f.detail),"
      "        COALESCE(r.hint, f.hint), COALESCE(r.context, f.context), m.retry_backoff, m.channel_key,"
      "        m.dedup_key, m.keep, m.priority, m.headers,"
      "        CASE WHEN m.due_at IS NOT NULL THEN ARRAY(SELECT q.prerequisite FROM $S.mq_prerequisites q"
      "                                                   WHERE q.dependent = m.id ORDER BY q.prerequisite) END"
      "   FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
      "          AS r (id, seq, key, charged, reason, sqlstate, error, detail, hint, context)"
      "   JOIN $S.mq_msgs m ON " IS_CLAIMED
      "   LEFT JOIN LATERAL (SELECT * FROM $S.mq_failures l WHERE l.message_id = r.id AND r.error IS NULL"
      "                       ORDER BY l.failure_no + 0 DESC LIMIT 1) f ON true",
      {UUIDARRAYOID, INT8ARRAYOID, INT8ARRAYOID, INT4ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
       TEXTARRAYOID, TEXTARRAYOID});
  static Statement block(
      "UPDATE $S.mq_msgs m SET attempt_at = NULL, attempts = 0, attempt = m.attempt + r.charged,"
      "       lease = NULL, dedup_key = NULL, expires_at = NULL, due_at = NULL, throttled_at = NULL, keep = NULL, "
      "headers = NULL,"
      "       message_json = NULL, message_bytes = NULL"
      "  FROM unnest($1, $2, $3, $4) AS r (id, seq, key, charged) WHERE " IS_CLAIMED,
      {UUIDARRAYOID, INT8ARRAYOID, INT8ARRAYOID, INT4ARRAYOID});
  ClaimedRows rows, blocked;
  ArrayParam charged(INT4OID), reasons(TEXTOID), blocked_charged(INT4OID);
  ErrorColumns errors;
  std::set<Uuid> blocking;
  add_blocking(dead_letters, blocking);
  for (const DeadLetter& dead_letter : dead_letters) {
    rows.add(*dead_letter.message);
    charged.add(Int32GetDatum(charge_of(dead_letter)));
    reasons.add(text_datum(dead_letter.reason));
    errors.add(dead_letter.error ? *dead_letter.error : Error("", ""));
    if ((dead_letter.block && dead_letter.message->ordered) || blocking.contains(dead_letter.message->id)) {
      blocked.add(*dead_letter.message);
      blocked_charged.add(Int32GetDatum(dead_letter.charged ? to_charge(*dead_letter.message) : 0));
    } else {
      removed.push_back(dead_letter.message);
    }
  }
  row_locks::lock_to_write("mq_dead");
  cancel_notes::remove(dead_letters);
  const Rows inserted = sequences::insert(sequences::Numbered::kDead, [&] {
    return insert.run({rows.ids.datum(), rows.numbers.datum(), rows.keys.datum(), charged.datum(), reasons.datum(),
                       errors.sqlstate.datum(), errors.message.datum(), errors.detail.datum(), errors.hint.datum(),
                       errors.context.datum()});
  });
  if (inserted.size() == dead_letters.size()) {
    commit_actions::RowChanges changes(Extension::dead());
    for (const DeadLetter& dead_letter : dead_letters) changes.add(dead_letter.message->channel_name, 1);
  } else {
    if (may_refuse(Extension::dead()) && count_there(rows) > inserted.size()) throw refused("mq_dead", "being added");
    commit_actions::changed_by_hand(Extension::dead());  // a handler has removed its message
  }
  if (blocked.size == 0) return;
  row_locks::Removal::run([&] {
    expect_updated(
        blocked,
        block.run({blocked.ids.datum(), blocked.numbers.datum(), blocked.keys.datum(), blocked_charged.datum()})
            .size());
  });
}

// The messages whose rows statements change, or copy to mq_dead; retry() sees to its own.
std::vector<const Claimed*> kept_or_copied(const Settlement& settlement) {
  std::vector<const Claimed*> messages = settlement.unhandled;
  for (const Snooze& s : settlement.snoozes) messages.push_back(s.message);
  for (const DeadLetter& d : settlement.dead_letters) messages.push_back(d.message);
  return messages;
}

// Whoever waits for the dead messages is woken; messages that wait for them die, too.
void note_dead(const std::vector<DeadLetter>& dead_letters) {
  std::vector<Uuid> ids;
  for (const DeadLetter& dead_letter : dead_letters) ids.push_back(dead_letter.message->id);
  commit_actions::ended(ids);
  if (prerequisites::any()) prerequisites::ended(ids, prerequisites::End::kDead, true);
}

// What ran with a lease does not any more. What ran in this transaction counts to its end.
void note_ended(const Settlement& settlement) {
  const auto ended = [](const Claimed* message) {
    if (message->token != 0 || message->outside)
      running::ended(message->channel_name, message->channel_args, message->channel_key);
  };
  for (const Claimed* message : settlement.removed) ended(message);
  for (const Claimed* message : settlement.unhandled) ended(message);
  for (const Retry& r : settlement.retries) ended(r.message);
  for (const Snooze& s : settlement.snoozes) ended(s.message);
  for (const DeadLetter& d : settlement.dead_letters) ended(d.message);
}

stats::ByChannel totals_of(const Settlement& settlement) {
  stats::ByChannel result;
  auto last = result.end();
  const auto at = [&](const Claimed* message) -> stats::Totals& {
    if (last == result.end() || last->first != message->channel_name) {
      last = result.find(message->channel_name);
      if (last == result.end()) last = result.emplace(message->channel_name, stats::Totals()).first;
    }
    return last->second;
  };
  for (const Handling& h : settlement.handled) {
    stats::Totals& totals = at(h.message);
    ++totals.handled;
    totals.handle_times.add(h.took);
    totals.wait_times.add(h.waited);
  }
  for (const Consumption& c : settlement.consumed) ++at(c.message).handled;
  for (const Failure& failure : settlement.failures) ++at(failure.message).failed;
  for (const DeadLetter& dead_letter : settlement.dead_letters) ++at(dead_letter.message).died;
  return result;
}

}  // namespace

void settle(const Settlement& wanted) {
  const OwnerScope scope;
  const std::optional<Settlement> heeded = cancel_notes::heed(wanted);
  const Settlement& settlement = heeded ? *heeded : wanted;
  const row_locks::Removal removal;
  std::vector<const Claimed*> dead_lettered;
  lock_claimed(kept_or_copied(settlement));
  MQ_CRASH_POINT(settle_begins);
  if (!settlement.failures.empty()) record(settlement.failures);
  MQ_CRASH_POINT_IF(!settlement.failures.empty(), settle_recorded);
  if (!settlement.retries.empty()) retry(settlement.retries);
  MQ_CRASH_POINT_IF(!settlement.retries.empty(), settle_retried);
  if (!settlement.unhandled.empty()) put_aside(settlement.unhandled);
  if (!settlement.snoozes.empty()) snooze(settlement.snoozes);
  MQ_CRASH_POINT_IF(!settlement.snoozes.empty(), settle_snoozed);
  if (!settlement.dead_letters.empty()) dead_letter(settlement.dead_letters, dead_lettered);
  MQ_CRASH_POINT_IF(!settlement.dead_letters.empty(), settle_dead);
  remove_dead_lettered(dead_lettered);
  MQ_CRASH_POINT_IF(!dead_lettered.empty(), settle_dead_removed);
  if (!settlement.dead_letters.empty()) note_dead(settlement.dead_letters);
  keep_handled(settlement.handled);
  keep_consumed(settlement.consumed);
  MQ_CRASH_POINT_IF(!settlement.handled.empty(), settle_kept);
  remove_claimed(settlement.removed);
  MQ_CRASH_POINT_IF(!settlement.removed.empty(), settle_removed);
  if (any_limits()) note_ended(settlement);
  stats::append(totals_of(settlement));
  MQ_CRASH_POINT(settle_counted);
}

}  // namespace mq
