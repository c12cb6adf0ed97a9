#include "queue/maintenance.hpp"

#include <algorithm>
#include <vector>

#include "pg/extension.hpp"
#include "pg/locks.hpp"
#include "pg/row_locks.hpp"
#include "pg/settings.h"
#include "queue/cancel_notes.hpp"
#include "queue/claim.hpp"
#include "queue/commit_actions.hpp"
#include "queue/due.hpp"
#include "queue/enabled.hpp"
#include "queue/find.hpp"
#include "queue/head_links.hpp"
#include "queue/prerequisites.hpp"
#include "queue/put_off.hpp"
#include "queue/removal.hpp"
#include "queue/running.hpp"
#include "queue/settle.hpp"
#include "queue/skip_scan.hpp"
#include "queue/undeliverable.hpp"
#include "queue/unhandled.hpp"
#include "shmem/failing.hpp"
#include "stats/totals.hpp"

namespace mq {

namespace {

constexpr std::size_t kStep = 500;  // rows that a step looks at, of each kind

constexpr std::size_t kSingles = 20;         // rows that a failed step tries one by one
constexpr Micros kPutOffFor = 60 * kSecond;  // delay of a message that cannot be settled

// Throws an error of class 57 on: the user or the server ends the sweep, so no step has failed.
void pass_on_cancel(const Error& error) {
  if (error.sqlstate.starts_with("57")) throw error;
}

void settle_under_savepoint(Transaction& transaction, const Settlement& settlement) {
  under_savepoint(transaction, [&] { settle(settlement); });
}

void settle_undeliverable(Transaction& transaction, const Batch& batch, Micros now) {
  Settlement settlement;
  mq::settle_undeliverable(batch, now, settlement);
  settle_under_savepoint(transaction, settlement);
}

// Settles one message. If that fails, puts it off by kPutOffFor, so that it does not stop the
// others.
void dead_letter_single(Transaction& transaction, const Claimed& message, Micros now) {
  try {
    settle_undeliverable(transaction, {message}, now);
  } catch (const Error& error) {
    pass_on_cancel(error);
    Settlement later;
    later.snoozes.push_back({&message, now + kPutOffFor});
    settle_under_savepoint(transaction, later);
    shared::note_unsettled(message.id, message.channel_name, error.message, now + kPutOffFor);
  }
}

bool dead_letter(Transaction& transaction, const Batch& batch, Micros now) {
  if (batch.empty()) return false;
  try {
    settle_undeliverable(transaction, batch, now);
  } catch (const Error& error) {
    pass_on_cancel(error);
    if (row_locks::was_held(error)) return true;  // the next transaction avoids rows that others hold
    for (std::size_t i = 0; i < std::min(kSingles, batch.size()); ++i) dead_letter_single(transaction, batch[i], now);
  }
  return true;
}

bool dead_letter_exhausted(Transaction& transaction, Micros now) {
  Batch batch;
  {
    const OwnerScope scope;
    find_exhausted(now, static_cast<int>(kStep), batch);
  }
  return dead_letter(transaction, batch, now);
}

// A message that blocks its ordered channel stays in mq_msgs beside its dead letter. If the dead
// letter was deleted, this removes the message, so that the channel goes on.
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

// How the old rows of a table are removed. The deleting statements return the rows' channel names.
struct Retention {
  const char* table;
  Statement block;   // deletes the first old rows behind a position
  Statement find;    // reads when those rows were written, and their numbers
  Statement single;  // deletes the row with a number
  // Where the last step ended. The next one begins there, behind rows that could not be deleted.
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

Retention& history() {
  static Retention retention = RETENTION("mq_done", "keep_until", "done_no", "");
  return retention;
}

void count_forgotten(const Retention& retention, const Rows& rows) {
  if (&retention != &dead_letters()) return;
  commit_actions::RowChanges changes(Extension::dead());
  for (std::size_t i = 0; i < rows.size(); ++i) changes.add(text_view(rows.get(i, 1)), -1);
}

// Deletes up to kSingles old rows one by one, after the error `of_all`: perhaps a foreign key
// refers to one of them, or a trigger refuses.
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
  if (old.empty()) swept.failure = of_all;  // no row has caused it
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
  // Does not wait for a session that has locked the table (CREATE INDEX, say): this is not urgent.
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

// Takes the first messages of some ordered channels that are no heads, and makes them the head. True: it
// made some the head.
bool repair(const std::vector<ChainPosition>& first) {
  // A scan that was broken off within a channel goes on behind rows that nobody saw then. They may
  // have been committed since, and then the message is not the first.
  static Statement find(
      "SELECT f.channel_key, f.channel_name, f.channel_args, f.seq"
      "  FROM unnest($1, $2) AS c (key, seq) CROSS JOIN LATERAL ("
      "       SELECT m.* FROM $S.mq_msgs m WHERE m.channel_key = c.key AND m.seq = c.seq"
      "          AND m.after_message_id <> $N"
      "          AND NOT EXISTS (SELECT FROM $S.mq_msgs e WHERE e.channel_key = c.key AND e.seq < c.seq"
      "            AND e.after_message_id IS NOT NULL AND e.channel_name = m.channel_name"
      "            AND e.channel_args = m.channel_args)) f",
      {INT8ARRAYOID, INT8ARRAYOID});
  if (first.empty()) return false;
  ArrayParam keys(INT8OID), numbers(INT8OID);
  for (const ChainPosition& position : first) {
    keys.add(Int64GetDatum(position.channel_key));
    numbers.add(Int64GetDatum(position.seq));
  }
  const Rows rows = find.run({keys.datum(), numbers.datum()});
  if (rows.empty() || !enabled::still_here()) return false;
  std::vector<HeadlessChannel> headless;
  for (std::size_t i = 0; i < rows.size(); ++i)
    headless.push_back({DatumGetInt64(rows.get(i, 1)), std::string(text_view(rows.get(i, 2))),
                        std::string(text_view(rows.get(i, 3))), DatumGetInt64(rows.get(i, 4)) - 1});
  return link_channels(headless).size() < headless.size();
}

}  // namespace

bool repair_heads(Effort effort) {
  // Where the last call ended. A process begins anywhere: one that calls once would never come to the last.
  static ChainPosition from{static_cast<std::int64_t>((ServerClock().random() - 0.5) * 18446744073709549568.0),
                            INT64_MIN};
  const bool at_the_start = from.channel_key == ChainPosition().channel_key;
  std::vector<ChainPosition> first = first_no_heads(from, effort);
  if (!at_the_start && from.channel_key == ChainPosition().channel_key) {
    const std::vector<ChainPosition> more = first_no_heads(from, effort);
    first.insert(first.end(), more.begin(), more.end());
  }
  return repair(first);
}

bool follow_clock(const std::vector<std::string>& channel_names, Micros now) {
  // A send without a delay writes the same time into both columns.
#define SENT_LATER "m.attempt_at = m.created_at AND m.attempt = 0 AND m.lease IS NULL AND m.commit_interval IS NULL"
  static Statement find(
      "SELECT m.id FROM unnest($1) AS n (name) CROSS JOIN LATERAL (SELECT * FROM $S.mq_heads m"
      "   WHERE m.channel_name = n.name AND m.attempt_at > $2"
      " ORDER BY m.attempt_at, m.seq LIMIT $3) AS m WHERE " SENT_LATER,
      {TEXTARRAYOID, TIMESTAMPTZOID, INT8OID});
  static Statement make_due(
      "UPDATE $S.mq_msgs m SET attempt_at = $2 FROM ("
      "   SELECT m.id FROM $S.mq_msgs m WHERE m.id = ANY ($1) AND m.attempt_at > $2 AND " SENT_LATER
      "   ORDER BY m.id FOR NO KEY UPDATE SKIP LOCKED) AS l"
      " WHERE m.id = l.id RETURNING m.channel_name, m.seq, m.priority",
      {UUIDARRAYOID, TIMESTAMPTZOID});
  constexpr int kHeads = 100;
  ArrayParam names(TEXTOID), ids(UUIDOID);
  for (const std::string& name : channel_names) names.add(text_datum(name));
  // Tolerates 1 s, since some clocks are adjusted all the time.
  const Rows found = find.run({names.datum(), TimestampTzGetDatum(now + kSecond), Int64GetDatum(kHeads)});
  if (found.empty() || !enabled::still_here()) return false;
  for (std::size_t i = 0; i < found.size(); ++i) ids.add(found.get(i, 1));
  const Rows due = make_due.run({ids.datum(), TimestampTzGetDatum(now)});
  for (std::size_t i = 0; i < due.size(); ++i) {
    const std::string_view channel_name = text_view(due.get(i, 1));
    commit_actions::wake(channel_name);
    commit_actions::due(channel_name, DatumGetInt16(due.get(i, 3)), {now, DatumGetInt64(due.get(i, 2))});
  }
  return !due.empty();
}

namespace {

bool dead_letter_cancelled(Transaction& transaction, Micros now) {
  Batch batch;
  {
    const OwnerScope scope;
    cancel_notes::find(static_cast<int>(kStep), batch);
  }
  return dead_letter(transaction, batch, now);
}

}  // namespace

bool dead_letter_expired(Transaction& transaction, Micros now) {
  const row_locks::ShortWaits short_waits;
  const bool cancelled = dead_letter_cancelled(transaction, now);
  Batch batch;
  {
    const OwnerScope scope;
    find_expired(now, static_cast<int>(kStep), batch);
  }
  return dead_letter(transaction, batch, now) || cancelled;
}

Swept sweep(Transaction& transaction, Micros now) {
  Swept swept;
  // Each step has a savepoint: a user's constraint, trigger or lock may fail one step, not the
  // others.
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
  step([&] { return more(dead_letter_expired(transaction, now)); });
  step([&] { return more(dead_letter_exhausted(transaction, now)); });
  step([&] { return more(unblock()); });
  step([&] {
    const OwnerScope scope;
    return more(repair_heads(Effort(kStep)));
  });
  step([&] {
    const OwnerScope scope;
    return more(prerequisites::sweep(kStep));
  });
  step([&] {
    const OwnerScope scope;
    sweep_put_off();
    return Swept();
  });
  step([&] {
    const OwnerScope scope;
    return more(running::sweep());
  });
  step([&] {
    const OwnerScope scope;
    return more(follow_clock(channel_names(), now));
  });
  step([&] {
    const OwnerScope scope;
    return more(wake_unhandled(now));
  });
  step([&] { return forget_old(transaction, dead_letters(), mq_dead_retention); });
  step([&] { return forget_old(transaction, failures(), mq_failure_retention); });
  step([&] { return forget_old(transaction, history(), 0); });
  step([&] {
    const OwnerScope scope;
    stats::roll_up();
    return Swept();
  });
  return swept;
}

}  // namespace mq
