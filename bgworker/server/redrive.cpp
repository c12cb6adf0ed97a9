// mq_redrive: sends dead messages again.

#include <unordered_set>
#include <vector>

#include "../channel_key.hpp"
#include "../check.hpp"
#include "arguments.hpp"
#include "dedup.hpp"
#include "entries.h"
#include "extension.hpp"
#include "ledger.hpp"
#include "refused.hpp"
#include "send.hpp"
#include "session.hpp"
#include "settle.hpp"
#include "spi.hpp"

namespace mq {

namespace {

constexpr int kStep = 10000;  // letters that are looked at once
constexpr int kTries = 20;    // of a step, while others send messages under its ids

// Which letters; a null Param sets no condition.
struct Selection {
  Param ids, channel_name, died_after, died_before;
};

// Columns of the statements of take(), counted from 1.
enum { kId = 1, kBackoff, kChannel, kArgs, kOrdered, kName, kJson, kBytes, kDedupKey, kNumber, kBlocks };

// The next letters behind the number, in the order in which they died. Not those of messages that are pending.
Rows take(const Selection& which, std::int64_t behind) {
#define LETTERS                                                                                                \
  "SELECT d.id, d.retry_backoff, d.channel_name, d.channel_args, d.ordered, COALESCE(d.name, d.channel_name)," \
  "       d.payload_json, d.payload_bytes, d.dedup_key, d.dead_no,"                                            \
  "       EXISTS (SELECT 1 FROM $S.mq_msgs m WHERE m.id = d.id)"                                               \
  "  FROM $S.mq_dead d"                                                                                        \
  " WHERE ($1 IS NULL OR d.channel_name = $1) AND ($2 IS NULL OR d.died_at >= $2)"                             \
  "   AND ($3 IS NULL OR d.died_at < $3) AND d.dead_no > $4"                                                   \
  "   AND NOT EXISTS (SELECT 1 FROM $S.mq_msgs m WHERE m.id = d.id AND m.attempt_at IS NOT NULL)"
#define STEP " LIMIT $5 FOR UPDATE SKIP LOCKED"
  static Statement all(LETTERS " ORDER BY d.dead_no" STEP, {TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, INT8OID});
  // Sorted, lest the ids be looked for all along the index of the numbers.
  static Statement named(LETTERS " AND d.id = ANY ($6) ORDER BY d.dead_no + 0" STEP,
                         {TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, INT8OID, UUIDARRAYOID});
  std::vector<Param> params{which.channel_name, which.died_after, which.died_before, Int64GetDatum(behind),
                            Int64GetDatum(kStep)};
  if (which.ids.null) return all.run(params);
  params.push_back(which.ids);
  return named.run(params);
}

NewMessage message_of(const Rows& letters, std::size_t i, int retries) {
  const auto column = [&](int n) {
    Value value;
    value.datum = letters.get(i, n, value.null);
    return value;
  };
  NewMessage message;
  message.id = column(kId);
  message.delay = {interval_datum(0), false};
  message.retries = {Int32GetDatum(retries), false};
  message.retry_backoff = column(kBackoff);
  message.channel_name = column(kChannel);
  message.channel_args = column(kArgs);
  message.ordered = column(kOrdered);
  message.name = column(kName);
  message.payload_json = column(kJson);
  message.payload_bytes = column(kBytes);
  message.dedup_key = column(kDedupKey);
  return message;
}

// The message that its ordered channel waits for (on_dead => 'block') is sent again where it stands. False: it is gone.
bool send_in_place(const NewMessage& message) {
  static Statement send(
      "WITH back AS (UPDATE $S.mq_msgs m SET created_at = pg_catalog.now(), attempt_at = pg_catalog.now(), attempts = "
      "$2,"
      "               attempt = 0, retry_backoff = $3, lease = NULL, dedup_key = $8"
      "               WHERE m.id = $1 AND m.attempt_at IS NULL"
      "              RETURNING m.id, m.attempt_at, m.place, m.after_message_id, m.channel_key),"
      " payload AS (INSERT INTO $S.mq_payloads (id, name, payload_json, payload_bytes, channel_key)"
      "             SELECT b.id, $4, $5, $6, b.channel_key FROM back b"
      // The payload that settling left to the sweep, since somebody held it.
      "             ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name, payload_json = EXCLUDED.payload_json,"
      "               payload_bytes = EXCLUDED.payload_bytes, channel_key = EXCLUDED.channel_key)"
      " SELECT b.attempt_at, b.place, b.after_message_id = $7 FROM back b",
      {UUIDOID, INT4OID, INTERVALOID, TEXTOID, JSONBOID, BYTEAOID, UUIDOID, TEXTOID});
  static Statement still("SELECT 1 FROM $S.mq_msgs m WHERE m.id = $1 AND m.attempt_at IS NULL", {UUIDOID});
  const auto param = [](const Value& value) { return value.null ? Param() : Param(value.datum); };
  const Rows rows = send.run({message.id.datum, Int32GetDatum(DatumGetInt32(message.retries.datum) + 1),
                              message.retry_backoff.datum, message.name.datum, param(message.payload_json),
                              param(message.payload_bytes), uuid_datum(Uuid()), param(message.dedup_key)});
  if (rows.empty()) {
    if (may_refuse(Extension::msgs()) && !still.run({message.id.datum}).empty())
      throw refused("mq_msgs", "being changed");
    return false;
  }
  const std::string_view channel_name = text_view(message.channel_name.datum);
  ledger::wake(channel_name);
  if (DatumGetBool(rows.get(0, 3)))
    ledger::due(channel_name, {DatumGetTimestampTz(rows.get(0, 1)), DatumGetInt64(rows.get(0, 2))});
  return true;
}

bool is_taken(const NewMessage& message) {
  const std::string_view name = text_view(message.channel_name.datum);
  const std::string_view args = text_view(message.channel_args.datum);
  return find_pending({channel_key(name, args), name, args, text_view(message.dedup_key.datum)}, false).has_value();
}

// The letters of a step that are sent, in their order: those without a dedup_key together, the others alone, as each
// may turn out to be taken.
class Redrive {
 public:
  explicit Redrive(int retries) : retries_(retries) {}

  void add(const Rows& letters, std::size_t i) {
    const Uuid id = uuid_of(letters.get(i, kId));
    if (sent_.contains(id)) return;  // as of a message that is pending
    const NewMessage message = message_of(letters, i, retries_);
    const bool blocks = DatumGetBool(letters.get(i, kBlocks)) && DatumGetBool(letters.get(i, kOrdered));
    if (blocks || !message.dedup_key.null) send();
    if (!message.dedup_key.null && is_taken(message)) return;
    if (blocks && send_in_place(message)) {
      // Sent.
    } else if (!message.dedup_key.null) {
      remove_blocking({id});
      Sender one(Sender::Json::kJsonb, false);
      one.add(message);
      if (one.send_once() != id) return;
    } else {
      together_.push_back(message);
    }
    sent_.insert(id);
    removed_.add(letters.get(i, kNumber));
  }

  std::int64_t finish() {
    static Statement remove("DELETE FROM $S.mq_dead d WHERE d.dead_no = ANY ($1) RETURNING d.channel_name",
                            {INT8ARRAYOID});
    send();
    const Rows gone = remove.run({removed_.datum()});
    // All are locked. Those that stay would be sent again with the next call.
    if (gone.size() < sent_.size()) throw refused("mq_dead", "being removed");
    check_sent();
    ledger::RowChanges changes(Extension::dead());
    for (std::size_t i = 0; i < gone.size(); ++i) changes.add(text_view(gone.get(i, 1)), -1);
    return static_cast<std::int64_t>(sent_.size());
  }

 private:
  // The letters are gone: nothing may be missing from the messages.
  void check_sent() const {
    static Statement find(
        "SELECT pg_catalog.count(m.id), pg_catalog.count(p.id) FROM unnest($1) AS s (id)"
        "  LEFT JOIN $S.mq_msgs m ON m.id = s.id LEFT JOIN $S.mq_payloads p ON p.id = s.id",
        {UUIDARRAYOID});
    if (!may_refuse(Extension::msgs()) && !may_refuse(Extension::payloads())) return;
    ArrayParam ids(UUIDOID, sent_.size());
    for (const Uuid& id : sent_) ids.add(uuid_datum(id));
    const Rows found = find.run({ids.datum()});
    const auto count = static_cast<std::int64_t>(sent_.size());
    if (DatumGetInt64(found.get(0, 1)) < count) throw refused("mq_msgs", "being added");
    if (DatumGetInt64(found.get(0, 2)) < count) throw refused("mq_payloads", "being added");
  }

  void send() {
    if (together_.empty()) return;
    Sender sender(Sender::Json::kJsonb, false);
    for (const NewMessage& message : together_) sender.add(message);
    // What the dead messages left behind: the row that blocks a channel, and a payload that the sweep was to remove,
    // since somebody held it; whoever holds it now is waited for.
    remove_blocking(sender.ids());
    sender.send();
    together_.clear();
  }

  const int retries_;
  std::vector<NewMessage> together_;
  std::unordered_set<Uuid, UuidHash> sent_;
  ArrayParam removed_{INT8OID};
};

// Others have sent messages under ids of these letters: those stay, as if the messages had been pending before.
std::unordered_set<Uuid, UuidHash> pending_of(const Rows& letters) {
  static Statement pending("SELECT m.id FROM $S.mq_msgs m WHERE m.id = ANY ($1) AND m.attempt_at IS NOT NULL",
                           {UUIDARRAYOID});
  ArrayParam ids(UUIDOID, letters.size());
  for (std::size_t i = 0; i < letters.size(); ++i) ids.add(letters.get(i, kId));
  const Rows rows = pending.run({ids.datum()});
  std::unordered_set<Uuid, UuidHash> found;
  for (std::size_t i = 0; i < rows.size(); ++i) found.insert(uuid_of(rows.get(i, 1)));
  return found;
}

bool is_id_in_use(const Error& error) {
  return error.sqlstate == "23505" && (error.constraint == "mq_msgs_pkey" || error.constraint == "mq_payloads_pkey");
}

// Sends them; returns how many. Between the look at an id and its insert others may send a message under it, which the
// insert waits for. Then all is done again, in the letters' order, without it.
std::int64_t send_letters(const Rows& letters, int retries) {
  std::unordered_set<Uuid, UuidHash> pending;
  SavepointOnly session;
  for (int tries = 1;; ++tries) {
    session.set_savepoint();
    try {
      Redrive step(retries);
      for (std::size_t i = 0; i < letters.size(); ++i)
        if (!pending.contains(uuid_of(letters.get(i, kId)))) step.add(letters, i);
      const std::int64_t sent = step.finish();
      session.release_savepoint();
      return sent;
    } catch (const Error& error) {
      session.rollback_to_savepoint();
      if (tries == kTries || !is_id_in_use(error)) throw;
    }
    pending = pending_of(letters);
  }
}

// One step; false: there is no more. Its own connection, so that what it has read is freed.
bool redrive_step(const Selection& which, int retries, std::int64_t& behind, std::int64_t& sent) {
  const SpiConnection spi;
  const Rows letters = take(which, behind);
  if (letters.empty()) return false;
  sent += send_letters(letters, retries);
  if (letters.size() < kStep) return false;
  behind = DatumGetInt64(letters.get(letters.size() - 1, kNumber));
  return true;
}

}  // namespace

}  // namespace mq

extern "C" Datum mq_redrive_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
    mq::refuse_read_only("mq_redrive()");
    const int retries = mq::int_of(mq::argument(fcinfo, 2), "retries");
    mq::check::retries("retries", retries);
    const auto optional = [&](int n) { return PG_ARGISNULL(n) ? mq::Param() : mq::Param(PG_GETARG_DATUM(n)); };
    const mq::Selection which{optional(0), optional(1), optional(3), optional(4)};
    const mq::OwnerScope scope;
    std::int64_t behind = PG_INT64_MIN;
    std::int64_t sent = 0;
    while (mq::redrive_step(which, retries, behind, sent)) {
    }
    return Int64GetDatum(sent);
  });
}
