#include "queue/cancel_notes.hpp"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "pg/empty_table.hpp"
#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/row_locks.hpp"
#include "pg/statement.hpp"
#include "pg/versions.hpp"
#include "queue/claimed_rows.hpp"
#include "queue/removal.hpp"
#include "shmem/callers.hpp"
#include "shmem/cancels.hpp"
#include "shmem/rare_writes.hpp"

extern "C" {
#include "access/xact.h"
#include "storage/proc.h"
}

namespace mq::cancel_notes {

namespace {

constexpr int kMostRead = 10'000;

struct Note {
  std::int64_t seq;
  std::string why;
};

// By id; of the transaction `read_in`. A pointer, so that nothing is destroyed at exit.
using Notes = std::unordered_multimap<Uuid, Note, UuidHash>;
Notes* notes = nullptr;
LocalTransactionId read_in = InvalidLocalTransactionId;

// What is noted of the message; nullptr: nothing.
const std::string* find(const Notes& among, const Uuid& id, std::int64_t seq) {
  const auto [first, last] = among.equal_range(id);
  const auto found = std::find_if(first, last, [&](const auto& note) { return note.second.seq == seq; });
  return found == last ? nullptr : &found->second.why;
}

LocalTransactionId current() {
  return server::local_transaction(*MyProc);
}

// Who writes a note adds a block to mq_cancelled.
bool are_there() {
  static shared::SeenEmpty seen(shared::Rare::kCancelNotes);
  return !seen.is_empty([] { return has_no_block(Extension::get().relation("mq_cancelled")); });
}

// What is noted of these messages by now: by (id, seq), why.
Notes noted_of(const std::vector<const Claimed*>& messages) {
  static Statement select(
      "SELECT r.id, r.seq, c.error FROM unnest($1, $2) AS r (id, seq)"
      "  JOIN $S.mq_cancelled c ON c.message_id = r.id AND c.seq = r.seq",
      {UUIDARRAYOID, INT8ARRAYOID});
  Notes found;
  if (messages.empty() || !are_there()) return found;
  ClaimedRows rows;
  for (const Claimed* message : messages) rows.add(*message);
  const Rows noted = select.run({rows.ids.datum(), rows.numbers.datum()});
  for (std::size_t i = 0; i < noted.size(); ++i)
    found.emplace(uuid_of(noted.get(i, 1)),
                  Note{DatumGetInt64(noted.get(i, 2)), std::string(text_view(noted.get(i, 3)))});
  return found;
}

DeadLetter dead_letter_of(const Claimed& message, const std::string& why) {
  return {.message = &message, .reason = kReason, .error = Error(kSqlstate, why), .charged = false};
}

}  // namespace

void begin_claim() {
  static Statement select("SELECT c.message_id, c.seq, c.error FROM $S.mq_cancelled c LIMIT $1", {INT8OID});
  if (notes == nullptr) notes = new Notes();
  if (read_in != current()) notes->clear();  // else messages of this transaction may refer to them
  read_in = current();
  if (!are_there()) return;
  const Rows rows = select.run({Int64GetDatum(kMostRead)});
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Uuid id = uuid_of(rows.get(i, 1));
    const std::int64_t seq = DatumGetInt64(rows.get(i, 2));
    if (of(id, seq) == nullptr) notes->emplace(id, Note{seq, std::string(text_view(rows.get(i, 3)))});
  }
}

const std::string* of(const Uuid& id, std::int64_t seq) {
  if (notes == nullptr || notes->empty() || read_in != current()) return nullptr;
  return find(*notes, id, seq);
}

bool is_open(const Uuid& id, std::int64_t seq) {
  return shared::any_open_cancel() && VirtualTransactionIdIsValid(shared::canceller_of(id, seq));
}

std::unordered_set<Uuid, UuidHash> noted(const Batch& messages) {
  std::vector<const Claimed*> all;
  for (const Claimed& message : messages) all.push_back(&message);
  std::unordered_set<Uuid, UuidHash> ids;
  for (const auto& [id, note] : noted_of(all)) ids.insert(id);
  return ids;
}

void write(const Uuid& id, std::int64_t seq, std::string_view why) {
  static Statement insert("INSERT INTO $S.mq_cancelled (message_id, seq, error) VALUES ($1, $2, $3)",
                          {UUIDOID, INT8OID, TEXTOID});
  insert.run({uuid_datum(id), Int64GetDatum(seq), text_datum(why)});
  shared::rare_write(shared::Rare::kCancelNotes);
}

void remove(const std::vector<DeadLetter>& dead_letters) {
  static Statement forget(
      "DELETE FROM $S.mq_cancelled c USING unnest($1, $2) AS r (id, seq)"
      " WHERE c.message_id = r.id AND c.seq = r.seq",
      {UUIDARRAYOID, INT8ARRAYOID});
  ClaimedRows rows;
  for (const DeadLetter& dead_letter : dead_letters)
    if (dead_letter.reason == kReason) rows.add(*dead_letter.message);
  if (rows.size > 0 && are_there()) forget.run({rows.ids.datum(), rows.numbers.datum()});
}

void add_dead_letters(const std::vector<const Claimed*>& messages, Settlement& settlement) {
  const OwnerScope scope;
  const Notes noted = noted_of(messages);
  for (const Claimed* message : messages)
    if (const std::string* why = find(noted, message->id, message->seq))
      settlement.dead_letters.push_back(dead_letter_of(*message, *why));
}

namespace {

// Publishes that this transaction settles, then looks for open cancels of the messages.
//
//   this transaction   note_settling_in()                 | looks for open cancels
//   mq_cancel          opens its cancel                    | looks whether this transaction settles
//
// So at least one sees the other: this one is rolled back, or mq_cancel waits for it.
void settles() {
  shared::note_settling_in(guard::call([] { return GetTopTransactionId(); }));
}

void refuse_open(const std::vector<const Claimed*>& messages) {
  if (!shared::any_open_cancel() || !shared::calls_handlers()) return;
  for (const Claimed* message : messages)
    if (is_open(message->id, message->seq)) throw row_locks::lost();
}

}  // namespace

std::optional<Settlement> heed(const Settlement& settlement) {
  if (settlement.removed.empty() && settlement.dead_letters.empty() && settlement.retries.empty() &&
      settlement.snoozes.empty())
    return std::nullopt;
  settles();
  if (!shared::any_open_cancel() && !are_there()) return std::nullopt;
  std::vector<const Claimed*> messages = settlement.removed;
  for (const DeadLetter& d : settlement.dead_letters)
    if (d.reason != kReason) messages.push_back(d.message);
  for (const Retry& r : settlement.retries) messages.push_back(r.message);
  for (const Snooze& s : settlement.snoozes) messages.push_back(s.message);
  if (messages.empty()) return std::nullopt;
  refuse_open(messages);
  const Notes noted = noted_of(messages);
  if (noted.empty()) return std::nullopt;
  std::unordered_set<const Claimed*> handled;
  for (const Handling& h : settlement.handled) handled.insert(h.message);
  Settlement heeded = settlement;
  std::unordered_set<const Claimed*> gone;
  const auto cancel = [&](const Claimed* message, bool has_effects) {
    const std::string* why = find(noted, message->id, message->seq);
    if (why == nullptr) return false;
    // What a leased handler did is in a transaction of its own.
    if (has_effects && message->lease == 0) throw row_locks::lost();
    if (gone.insert(message).second) heeded.dead_letters.push_back(dead_letter_of(*message, *why));
    return true;
  };
  std::erase_if(heeded.removed, [&](const Claimed* m) { return cancel(m, handled.contains(m)); });
  std::erase_if(heeded.snoozes, [&](const Snooze& s) { return cancel(s.message, true); });
  std::erase_if(heeded.retries, [&](const Retry& r) { return cancel(r.message, false); });
  const std::vector<DeadLetter> others = std::move(heeded.dead_letters);
  heeded.dead_letters.clear();
  for (const DeadLetter& d : others)
    if (d.reason == kReason || !cancel(d.message, d.reason == "discarded")) heeded.dead_letters.push_back(d);
  std::erase_if(heeded.handled, [&](const Handling& h) { return gone.contains(h.message); });
  std::erase_if(heeded.consumed, [&](const Consumption& c) { return gone.contains(c.message); });
  std::erase_if(heeded.failures, [&](const Failure& f) { return gone.contains(f.message); });
  return heeded;
}

void refuse_cancelled(const std::vector<const Claimed*>& messages) {
  settles();
  refuse_open(messages);
  if (!noted_of(messages).empty()) throw row_locks::lost();
}

void find(int limit, Batch& batch) {
  static Statement stale(
      "DELETE FROM $S.mq_cancelled c WHERE c.ctid = ANY (ARRAY(SELECT n.ctid FROM $S.mq_cancelled n"
      "  WHERE NOT EXISTS (SELECT 1 FROM $S.mq_msgs m WHERE m.id = n.message_id AND m.seq = n.seq)"
      "  LIMIT $1 FOR UPDATE SKIP LOCKED))",
      {INT8OID});
  static Statement select("SELECT " CLAIMED_COLUMNS
                          " FROM $S.mq_msgs m"
                          " WHERE m.id = ANY (ARRAY(SELECT c.message_id FROM $S.mq_cancelled c LIMIT $1))"
                          " FOR UPDATE OF m SKIP LOCKED",
                          {INT8OID});
  if (has_no_block(Extension::get().relation("mq_cancelled"))) return;
  shared::rare_write(shared::Rare::kCancelNotes);  // they may have been written by hand, or by a subscription
  begin_claim();
  Batch found;
  append(select.run({Int64GetDatum(limit)}), found);
  for (const Claimed& message : found)
    if (message.cancelled != nullptr) batch.push_back(message);
  stale.run({Int64GetDatum(limit)});
}

}  // namespace mq::cancel_notes
