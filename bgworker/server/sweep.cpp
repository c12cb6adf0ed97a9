#include "sweep.hpp"

#include <algorithm>
#include <vector>

#include "../claim.hpp"
#include "extension.hpp"
#include "ledger.hpp"
#include "link.hpp"
#include "row_locks.hpp"
#include "settings.h"
#include "settle.hpp"
#include "shared.hpp"
#include "skip_scan.hpp"
#include "tally.hpp"
#include "unhandled.hpp"

namespace mq {

namespace {

constexpr std::size_t kStep = 500;  // rows that a step looks at, of each kind

constexpr std::size_t kSingles = 20;         // messages that are settled each for itself in one transaction
constexpr Micros kPutOffFor = 60 * kSecond;  // a message that cannot be settled

void settle_under_savepoint(Transaction& transaction, const Settlement& settlement) {
  transaction.set_savepoint();
  try {
    SqlSettler().settle(settlement);
  } catch (const Error&) {
    transaction.rollback_to_savepoint();
    throw;
  }
  transaction.release_savepoint();
}

// One that cannot be buried must not stop the others: it is put off.
void bury_single(Transaction& transaction, const Claimed& message, Micros now) {
  const Batch batch{message};
  Settlement settlement;
  dispose(batch, now, settlement);
  try {
    settle_under_savepoint(transaction, settlement);
  } catch (const Error& error) {
    Settlement later;
    later.snoozes.push_back({&message, now + kPutOffFor});
    settle_under_savepoint(transaction, later);
    shared::note_unsettled(message.id, message.channel_name, error.message, now + kPutOffFor);
  }
}

bool bury(Transaction& transaction, const Batch& batch, Micros now) {
  if (batch.empty()) return false;
  Settlement settlement;
  dispose(batch, now, settlement);
  try {
    settle_under_savepoint(transaction, settlement);
  } catch (const Error& error) {
    if (row_locks::was_held(error)) return true;  // the next step leaves alone what others hold
    for (std::size_t i = 0; i < std::min(kSingles, batch.size()); ++i) bury_single(transaction, batch[i], now);
  }
  return true;
}

bool bury_spent(Transaction& transaction, SqlClaimSource& source, Micros now) {
  Batch batch;
  source.spent(now, static_cast<int>(kStep), batch);
  return bury(transaction, batch, now);
}

// A message that blocks its channel has a dead letter; if somebody deleted that, the channel goes on.
bool unblock() {
  static Statement abandoned(
      "SELECT m.id FROM $S.mq_msgs m WHERE m.attempts <= 0 AND m.attempt_at IS NULL"
      "   AND NOT EXISTS (SELECT 1 FROM $S.mq_dead d WHERE d.id = m.id)"
      " LIMIT $1 FOR UPDATE SKIP LOCKED",
      {INT8OID});
  const Rows rows = abandoned.run({Int64GetDatum(kStep)});
  std::vector<Uuid> ids;
  for (std::size_t i = 0; i < rows.size(); ++i) ids.push_back(uuid_of(rows.get(i, 1)));
  remove_messages(ids);
  return !ids.empty();
}

void remove_orphan_payloads() {
  static Uuid from;  // where the step before ended
  static Statement remove(
      "DELETE FROM $S.mq_payloads o WHERE o.ctid = ANY (ARRAY("
      "  SELECT p.ctid FROM $S.mq_payloads p WHERE p.id = ANY ($1)"
      "     AND NOT EXISTS (SELECT 1 FROM $S.mq_msgs m WHERE m.id = p.id AND (m.attempts > 0 OR m.attempt_at IS NOT "
      "NULL))"
      "   FOR UPDATE SKIP LOCKED))",
      {UUIDARRAYOID});
  ArrayParam ids(UUIDOID);
  for (const Uuid& id : payloads(from, kStep)) ids.add(uuid_datum(id));
  remove.run({ids.datum()});
}

// True: there is more of it.
bool forget_old() {
  static Statement dead(
      "DELETE FROM $S.mq_dead WHERE ctid = ANY (ARRAY(SELECT d.ctid FROM $S.mq_dead d"
      "   WHERE d.died_at < pg_catalog.clock_timestamp() - $1"
      "     AND NOT EXISTS (SELECT 1 FROM $S.mq_msgs m WHERE m.id = d.id AND m.attempt_at IS NULL)"
      "   ORDER BY d.died_at LIMIT $2 FOR UPDATE SKIP LOCKED)) RETURNING channel_name",
      {INTERVALOID, INT8OID});
  static Statement failures(
      "DELETE FROM $S.mq_failures WHERE ctid = ANY (ARRAY(SELECT f.ctid FROM $S.mq_failures f"
      "   WHERE f.failed_at < pg_catalog.clock_timestamp() - $1 ORDER BY f.failed_at LIMIT $2 FOR UPDATE SKIP LOCKED))",
      {INTERVALOID, INT8OID});
  const auto keep = [](int minutes) { return interval_datum(Micros{minutes} * 60 * kSecond); };
  bool more = false;
  if (mq_dead_retention >= 0) {
    const Rows gone = dead.run({keep(mq_dead_retention), Int64GetDatum(kStep)});
    ledger::RowChanges changes(Extension::dead());
    for (std::size_t i = 0; i < gone.size(); ++i) changes.add(text_view(gone.get(i, 1)), -1);
    more = gone.size() == kStep;
  }
  if (mq_failure_retention >= 0)
    more = failures.run({keep(mq_failure_retention), Int64GetDatum(kStep)}).size() == kStep || more;
  return more;
}

}  // namespace

namespace {

// Looks at the channels of these messages, which are the first of theirs. True: some were no heads, and are now.
bool repair(const std::vector<ChainPlace>& first) {
  static Statement find(
      "SELECT f.channel_key, f.channel_name, f.channel_args, f.place"
      "  FROM unnest($1, $2) AS c (key, place) CROSS JOIN LATERAL ("
      "       SELECT m.* FROM $S.mq_msgs m WHERE m.channel_key = c.key AND m.place = c.place"
      "          AND m.after_message_id <> '00000000-0000-0000-0000-000000000000') f",
      {INT8ARRAYOID, INT8ARRAYOID});
  ArrayParam keys(INT8OID), places(INT8OID);
  for (const ChainPlace& place : first) {
    keys.add(Int64GetDatum(place.channel_key));
    places.add(Int64GetDatum(place.place));
  }
  const Rows rows = find.run({keys.datum(), places.datum()});
  std::vector<LooseChannel> headless;
  for (std::size_t i = 0; i < rows.size(); ++i)
    headless.push_back({DatumGetInt64(rows.get(i, 1)), std::string(text_view(rows.get(i, 2))),
                        std::string(text_view(rows.get(i, 3))), DatumGetInt64(rows.get(i, 4)) - 1});
  return link_channels(headless).size() < headless.size();
}

}  // namespace

bool repair_heads() {
  static ChainPlace from;  // where the step before ended
  const bool at_the_start = from.channel_key == ChainPlace().channel_key;
  std::vector<ChainPlace> first = first_messages(from, kStep);
  if (!at_the_start && from.channel_key == ChainPlace().channel_key) {
    const std::vector<ChainPlace> more = first_messages(from, kStep - first.size());
    first.insert(first.end(), more.begin(), more.end());
  }
  return repair(first);
}

bool follow_clock(const std::vector<std::string>& channel_names, Micros now) {
  // Who sends without a delay writes the same moment into both.
#define SENT_LATER "m.attempt_at = m.created_at AND m.attempt = 0 AND m.lease IS NULL AND m.commit_interval IS NULL"
#define HEAD "(m.after_message_id IS NULL OR m.after_message_id = '00000000-0000-0000-0000-000000000000')"
  static Statement find(
      "SELECT m.id FROM unnest($1) AS n (name) CROSS JOIN LATERAL (SELECT * FROM $S.mq_msgs m"
      "   WHERE m.channel_name = n.name AND m.attempt_at > $2 AND " HEAD
      "   ORDER BY m.attempt_at, m.place LIMIT $3) AS m WHERE " SENT_LATER,
      {TEXTARRAYOID, TIMESTAMPTZOID, INT8OID});
  static Statement make_due(
      "UPDATE $S.mq_msgs m SET attempt_at = $2 FROM ("
      "   SELECT m.id FROM $S.mq_msgs m WHERE m.id = ANY ($1) AND m.attempt_at > $2 AND " SENT_LATER
      "   ORDER BY m.id FOR NO KEY UPDATE SKIP LOCKED) AS l"
      " WHERE m.id = l.id RETURNING m.channel_name, m.place",
      {UUIDARRAYOID, TIMESTAMPTZOID});
  constexpr int kHeads = 100;
  ArrayParam names(TEXTOID), ids(UUIDOID);
  for (const std::string& name : channel_names) names.add(text_datum(name));
  // A second is left for clocks that are adjusted all the time.
  const Rows found = find.run({names.datum(), TimestampTzGetDatum(now + kSecond), Int64GetDatum(kHeads)});
  if (found.empty()) return false;
  for (std::size_t i = 0; i < found.size(); ++i) ids.add(found.get(i, 1));
  const Rows due = make_due.run({ids.datum(), TimestampTzGetDatum(now)});
  for (std::size_t i = 0; i < due.size(); ++i) {
    const std::string_view channel_name = text_view(due.get(i, 1));
    ledger::wake(channel_name);
    ledger::due(channel_name, {now, DatumGetInt64(due.get(i, 2))});
  }
  return !due.empty();
}

bool bury_expired(Transaction& transaction, SqlClaimSource& source, Micros now) {
  const OwnerScope scope;
  Batch batch;
  source.expired(now, static_cast<int>(kStep), batch);
  return bury(transaction, batch, now);
}

bool sweep(Transaction& transaction, SqlClaimSource& source, Micros now) {
  const OwnerScope scope;
  bool ready = bury_expired(transaction, source, now);
  ready = bury_spent(transaction, source, now) || ready;
  {
    const row_locks::Removal removal;
    ready = unblock() || ready;
  }
  ready = repair_heads() || ready;
  ready = follow_clock(source.channel_names(), now) || ready;
  ready = wake_unhandled(now) || ready;
  remove_orphan_payloads();
  ready = forget_old() || ready;
  tally::fold();
  return ready;
}

}  // namespace mq
