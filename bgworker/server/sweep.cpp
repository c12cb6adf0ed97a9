#include "sweep.hpp"

#include <algorithm>
#include <vector>

#include "../claim.hpp"
#include "extension.hpp"
#include "ledger.hpp"
#include "link.hpp"
#include "locks.hpp"
#include "row_locks.hpp"
#include "settings.h"
#include "settle.hpp"
#include "shared.hpp"
#include "skip_scan.hpp"
#include "tally.hpp"
#include "unhandled.hpp"

namespace mq {

namespace {

using Swept = Host::Swept;

constexpr std::size_t kStep = 500;  // rows that a step looks at, of each kind

constexpr std::size_t kSingles = 20;         // messages that are settled each for itself in one transaction
constexpr Micros kPutOffFor = 60 * kSecond;  // a message that cannot be settled

// Whoever waits for the sweep wants to end: that is not to be taken for what fails in a step.
void pass_on_cancel(const Error& error) {
  if (error.sqlstate.starts_with("57")) throw error;
}

// Constraints and triggers that are deferred are checked at its end.
template <class Body>
void under_savepoint(Transaction& transaction, Body&& body) {
  transaction.set_savepoint();
  try {
    body();
    transaction.check_deferred();
  } catch (const Error&) {
    transaction.rollback_to_savepoint();
    throw;
  }
  transaction.release_savepoint();
}

void settle_under_savepoint(Transaction& transaction, const Settlement& settlement) {
  under_savepoint(transaction, [&] { SqlSettler().settle(settlement); });
}

// One that cannot be buried must not stop the others: it is put off.
void bury_single(Transaction& transaction, const Claimed& message, Micros now) {
  const Batch batch{message};
  Settlement settlement;
  dispose(batch, now, settlement);
  try {
    settle_under_savepoint(transaction, settlement);
  } catch (const Error& error) {
    pass_on_cancel(error);
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
    pass_on_cancel(error);
    if (row_locks::was_held(error)) return true;  // the next step leaves alone what others hold
    for (std::size_t i = 0; i < std::min(kSingles, batch.size()); ++i) bury_single(transaction, batch[i], now);
  }
  return true;
}

bool bury_spent(Transaction& transaction, SqlClaimSource& source, Micros now) {
  Batch batch;
  {
    const OwnerScope scope;
    source.spent(now, static_cast<int>(kStep), batch);
  }
  return bury(transaction, batch, now);
}

// A message that blocks its channel has a dead letter; if somebody deleted that, the channel goes on.
bool unblock() {
  static Statement abandoned(
      "SELECT m.id FROM $S.mq_msgs m WHERE m.attempts <= 0 AND m.attempt_at IS NULL"
      "   AND NOT EXISTS (SELECT 1 FROM $S.mq_dead d WHERE d.id = m.id)"
      " LIMIT $1 FOR UPDATE SKIP LOCKED",
      {INT8OID});
  const OwnerScope scope;
  const row_locks::Removal removal;
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
  const OwnerScope scope;
  ArrayParam ids(UUIDOID);
  for (const Uuid& id : payloads(from, kStep)) ids.add(uuid_datum(id));
  remove.run({ids.datum()});
}

// What a table keeps for so long and no longer.
struct Retention {
  const char* table;
  Statement block;   // deletes the first rows behind a position; their channel names
  Statement find;    // when they were written, and their numbers
  Statement single;  // deletes the one of that number; its channel name
  // Where the step before ended: what could not be deleted must not keep the rest.
  struct Position {
    TimestampTz written;
    std::int64_t number;
  } from;
};
constexpr Retention::Position kFirst{DT_NOBEGIN, 0};

#define RETENTION(table, written, number, kept)                                                                      \
  {                                                                                                                  \
    table,                                                                                                         \
   {"DELETE FROM $S." table " WHERE ctid = ANY (ARRAY(SELECT r.ctid FROM " OLD(table, written, number, kept) ")) "     \
    "RETURNING channel_name", {INTERVALOID, INT8OID, TIMESTAMPTZOID, INT8OID}},                                   \
   {"SELECT r." written ", r." number " FROM " OLD(table, written, number, kept),                                 \
    {INTERVALOID, INT8OID, TIMESTAMPTZOID, INT8OID}},                                                             \
   {"DELETE FROM $S." table " WHERE " number " = $1 RETURNING channel_name", {INT8OID}},                          \
   kFirst \
  }
#define OLD(table, written, number, kept)                                                     \
  "$S." table " r WHERE r." written " < pg_catalog.clock_timestamp() - $1 AND r." written     \
  " >= $3"                                                                                    \
  "   AND (r." written ", r." number ") > ($3, $4)" kept " ORDER BY r." written ", r." number \
  " LIMIT $2 FOR UPDATE SKIP LOCKED"

Retention& dead_letters() {
  static Retention retention =
      RETENTION("mq_dead", "died_at", "dead_no",
                " AND NOT EXISTS (SELECT 1 FROM $S.mq_msgs m WHERE m.id = r.id AND m.attempt_at IS NULL)");
  return retention;
}

Retention& failures() {
  static Retention retention = RETENTION("mq_failures", "failed_at", "failure_no", "");
  return retention;
}

void count_forgotten(const Retention& retention, const Rows& rows) {
  if (&retention != &dead_letters()) return;
  ledger::RowChanges changes(Extension::dead());
  for (std::size_t i = 0; i < rows.size(); ++i) changes.add(text_view(rows.get(i, 1)), -1);
}

// One by one after that error: something refers to a row, or a trigger refuses.
Swept forget_singles(Transaction& transaction, Retention& retention, Datum age, const Error& of_all) {
  Swept swept;
  std::vector<Retention::Position> old;
  {
    const OwnerScope scope;
    const Rows rows = retention.find.run({age, Int64GetDatum(kSingles), TimestampTzGetDatum(retention.from.written),
                                          Int64GetDatum(retention.from.number)});
    for (std::size_t i = 0; i < rows.size(); ++i)
      old.push_back({DatumGetTimestampTz(rows.get(i, 1)), DatumGetInt64(rows.get(i, 2))});
  }
  if (old.empty()) swept.failure = of_all;  // it was no row
  for (const Retention::Position& row : old) try {
      under_savepoint(transaction, [&] {
        const OwnerScope scope;
        count_forgotten(retention, retention.single.run({Int64GetDatum(row.number)}));
      });
      swept.more = true;
    } catch (const Error& error) {
      pass_on_cancel(error);
      if (!swept.failure) swept.failure = error;
    }
  retention.from = old.size() < kSingles ? kFirst : old.back();
  return swept;
}

Swept forget_old(Transaction& transaction, Retention& retention, int minutes) {
  if (minutes < 0) return {};
  // Who has it locked (CREATE INDEX, say) is not waited for: nothing here is urgent.
  if (!locks::try_table(Extension::get().relation(retention.table), RowExclusiveLock)) return {};
  const Datum age = interval_datum(Micros{minutes} * 60 * kSecond);
  std::size_t gone = 0;
  try {
    under_savepoint(transaction, [&] {
      const OwnerScope scope;
      const Rows rows = retention.block.run({age, Int64GetDatum(kStep), TimestampTzGetDatum(retention.from.written),
                                             Int64GetDatum(retention.from.number)});
      gone = rows.size();
      count_forgotten(retention, rows);
    });
  } catch (const Error& error) {
    pass_on_cancel(error);
    return forget_singles(transaction, retention, age, error);
  }
  if (gone < kStep) retention.from = kFirst;
  return {gone == kStep, std::nullopt};
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
  const row_locks::ShortWaits short_waits;
  Batch batch;
  {
    const OwnerScope scope;
    source.expired(now, static_cast<int>(kStep), batch);
  }
  return bury(transaction, batch, now);
}

Swept sweep(Transaction& transaction, SqlClaimSource& source, Micros now) {
  Swept swept;
  // Each step for itself: what one user's constraint, trigger or lock does to one of them is not to stop the others.
  const auto failed = [&](const Error& error) {
    pass_on_cancel(error);
    if (!swept.failure) swept.failure = error;
  };
  const auto step = [&](auto&& body) {
    Swept done;
    try {
      under_savepoint(transaction, [&] { done = body(); });
    } catch (const Error& error) {
      failed(error);
      return;
    }
    swept.more = done.more || swept.more;
    if (done.failure) failed(*done.failure);
  };
  const auto more = [](bool is_more) { return Swept{is_more, std::nullopt}; };
  const row_locks::ShortWaits short_waits;
  step([&] { return more(bury_expired(transaction, source, now)); });
  step([&] { return more(bury_spent(transaction, source, now)); });
  step([&] { return more(unblock()); });
  step([&] {
    const OwnerScope scope;
    return more(repair_heads());
  });
  step([&] {
    const OwnerScope scope;
    return more(follow_clock(source.channel_names(), now));
  });
  step([&] {
    const OwnerScope scope;
    return more(wake_unhandled(now));
  });
  step([&] {
    remove_orphan_payloads();
    return Swept();
  });
  step([&] { return forget_old(transaction, dead_letters(), mq_dead_retention); });
  step([&] { return forget_old(transaction, failures(), mq_failure_retention); });
  step([&] {
    const OwnerScope scope;
    tally::fold();
    return Swept();
  });
  return swept;
}

}  // namespace mq
