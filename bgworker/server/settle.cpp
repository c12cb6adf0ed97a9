#include "settle.hpp"

#include <algorithm>
#include <set>

#include <fmt/core.h>

#include "../channel_key.hpp"
#include "../claim.hpp"
#include "../policy.hpp"
#include "extension.hpp"
#include "fence.hpp"
#include "kept.hpp"
#include "ledger.hpp"
#include "link.hpp"
#include "locks.hpp"
#include "refused.hpp"
#include "row_locks.hpp"
#include "sequences.hpp"
#include "spi.hpp"
#include "tally.hpp"

namespace mq {

namespace {

#define NIL_ID "'00000000-0000-0000-0000-000000000000'"

Param text_or_null(const std::string& text) {
  return text.empty() ? Param() : Param(text_datum(text));
}

// Messages as they were claimed. The id alone would not do: a handler may have deleted its message, or another of its
// batch, and sent a new one under that id. The new one has another place.
struct ClaimedRows {
  ArrayParam ids{UUIDOID}, places{INT8OID};
  std::size_t size = 0;

  void add(const Claimed& message) {
    ids.add(uuid_datum(message.id));
    places.add(Int64GetDatum(message.place));
    ++size;
  }
};

#define IS_CLAIMED "m.id = r.id AND m.place = r.place"

// How many of them are there.
std::size_t count_there(const ClaimedRows& rows) {
  static Statement count("SELECT 1 FROM unnest($1, $2) AS r (id, place) JOIN $S.mq_msgs m ON " IS_CLAIMED,
                         {UUIDARRAYOID, INT8ARRAYOID});
  return count.run({rows.ids.datum(), rows.places.datum()}).size();
}

// After an UPDATE of that many of them: the others have been removed by their handlers.
void expect_updated(const ClaimedRows& rows, std::size_t updated) {
  if (updated < rows.size && may_refuse(Extension::msgs()) && count_there(rows) > updated)
    throw refused("mq_msgs", "being changed");
}

// For columns that an error may not have.
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

// Removes the failures that were kept only until these: the last one of each message, if it is that of the attempt
// before.
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

// Before rows are added to a table that others may lock for long (CREATE INDEX, say): a worker does not wait for that.
// The messages that need it are put off, and the others go on.
void lock_to_write(const char* table) {
  if (!row_locks::never_waits()) return;
  if (locks::try_table(Extension::get().relation(table), RowExclusiveLock)) return;
  throw Error("55P03", fmt::format("the table {} is locked by another session, so no row can be added to it", table));
}

void record(const std::vector<Failure>& failures) {
  lock_to_write("mq_failures");
  remove_superseded(failures);
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
    durations.add(interval_datum(failure.duration));
    keys.add(Int64GetDatum(message.channel_key));
    crashes.add(BoolGetDatum(failure.crash));
    errors.add(failure.error);
  }
  sequences::insert(sequences::Numbered::kFailures, [&] {
    return insert.run({ids.datum(), attempts.datum(), channels.datum(), args.datum(), names.datum(), durations.datum(),
                       errors.sqlstate.datum(), errors.message.datum(), errors.detail.datum(), errors.hint.datum(),
                       errors.context.datum(), keys.datum(), crashes.datum()});
  });
}

// With a lease the attempt was charged already.
int to_charge(const Claimed& message) {
  return message.lease == 0 ? 1 : 0;
}

void retry(const std::vector<Retry>& retries) {
  static Statement update(
      "UPDATE $S.mq_msgs m SET attempt_at = r.attempt_at, retry_backoff = r.backoff, attempts = m.attempts - r.charged,"
      "       attempt = m.attempt + r.charged, lease = NULL"
      "  FROM unnest($1, $2, $3, $4, $5) AS r (id, place, attempt_at, backoff, charged) WHERE " IS_CLAIMED,
      {UUIDARRAYOID, INT8ARRAYOID, TIMESTAMPTZARRAYOID, INTERVALARRAYOID, INT4ARRAYOID});
  ClaimedRows rows;
  ArrayParam times(TIMESTAMPTZOID), backoffs(INTERVALOID), charged(INT4OID);
  for (const Retry& r : retries) {
    rows.add(*r.message);
    times.add(TimestampTzGetDatum(r.attempt_at));
    backoffs.add(interval_datum(r.retry_backoff));
    ledger::due(r.message->channel_name, {r.attempt_at, r.message->place});
    charged.add(Int32GetDatum(to_charge(*r.message)));
  }
  const Rows updated =
      update.run({rows.ids.datum(), rows.places.datum(), times.datum(), backoffs.datum(), charged.datum()});
  expect_updated(rows, updated.size());
}

void snooze(const std::vector<Snooze>& snoozes) {
  static Statement update(
      "UPDATE $S.mq_msgs m SET attempt_at = r.attempt_at, attempts = m.attempts + r.back, attempt = m.attempt - r.back,"
      "       lease = NULL"
      "  FROM unnest($1, $2, $3, $4) AS r (id, place, attempt_at, back) WHERE " IS_CLAIMED,
      {UUIDARRAYOID, INT8ARRAYOID, TIMESTAMPTZARRAYOID, INT4ARRAYOID});
  ClaimedRows rows;
  ArrayParam times(TIMESTAMPTZOID), back(INT4OID);
  for (const Snooze& s : snoozes) {
    rows.add(*s.message);
    times.add(TimestampTzGetDatum(s.attempt_at));
    ledger::due(s.message->channel_name, {s.attempt_at, s.message->place});
    back.add(Int32GetDatum(1 - to_charge(*s.message)));
  }
  const Rows updated = update.run({rows.ids.datum(), rows.places.datum(), times.datum(), back.datum()});
  expect_updated(rows, updated.size());
}

// Where no claim looks; see unhandled.hpp.
void put_aside(const std::vector<const Claimed*>& messages) {
  static Statement update(
      "UPDATE $S.mq_msgs m SET attempt_at = 'infinity', lease = NULL"
      "  FROM unnest($1, $2) AS r (id, place) WHERE " IS_CLAIMED,
      {UUIDARRAYOID, INT8ARRAYOID});
  ClaimedRows rows;
  for (const Claimed* message : messages) rows.add(*message);
  expect_updated(rows, update.run({rows.ids.datum(), rows.places.datum()}).size());
}

// Messages whose burial is to be followed as their handlers were registered: those whose channels wait.
void add_blocking(const std::vector<Burial>& burials, std::set<Uuid>& blocking) {
  static Statement select(
      "SELECT m.id FROM unnest($1, $2) AS r (id, place) JOIN $S.mq_msgs m ON " IS_CLAIMED
      " LEFT JOIN $S.mq_payloads p ON p.id = m.id"
      " CROSS JOIN LATERAL (SELECT h.on_dead FROM $S.mq_handlers h WHERE h.channel_name = m.channel_name"
      "    AND (h.message_name IS NULL OR h.message_name = p.name) ORDER BY h.message_name IS NULL LIMIT 1) h"
      " WHERE h.on_dead = 'block'",
      {UUIDARRAYOID, INT8ARRAYOID});
  ClaimedRows claimed;
  for (const Burial& burial : burials) {
    if (!burial.block_as_registered || !burial.message->ordered) continue;
    claimed.add(*burial.message);
  }
  if (claimed.size == 0) return;
  const Rows rows = select.run({claimed.ids.datum(), claimed.places.datum()});
  for (std::size_t i = 0; i < rows.size(); ++i) blocking.insert(uuid_of(rows.get(i, 1)));
}

// Payloads of that many messages. `all`: none of them is anybody else's; otherwise only those without a message go.
// What others hold is left to the sweep where that is asked for.
void remove_payloads(Datum ids, std::size_t messages, bool all) {
#define NO_MESSAGE "NOT EXISTS (SELECT 1 FROM $S.mq_msgs m WHERE m.id = p.id)"
#define FREE(condition)                                     \
  "DELETE FROM $S.mq_payloads p WHERE p.ctid = ANY (ARRAY(" \
  "  SELECT p.ctid FROM $S.mq_payloads p WHERE p.id = ANY ($1)" condition " FOR UPDATE SKIP LOCKED))"
  static Statement named("DELETE FROM $S.mq_payloads p WHERE p.id = ANY ($1)", {UUIDARRAYOID});
  static Statement orphans("DELETE FROM $S.mq_payloads p WHERE p.id = ANY ($1) AND " NO_MESSAGE, {UUIDARRAYOID});
  static Statement named_and_free(FREE(""), {UUIDARRAYOID});
  static Statement orphans_and_free(FREE(" AND " NO_MESSAGE), {UUIDARRAYOID});
  static Statement left("SELECT 1 FROM $S.mq_payloads p WHERE p.id = ANY ($1) AND " NO_MESSAGE, {UUIDARRAYOID});
  if (row_locks::Removal::skips()) {
    (all ? named_and_free : orphans_and_free).run({ids});
    return;
  }
  const Rows removed = (all ? named : orphans).run({ids});
  if (removed.size() < messages && may_refuse(Extension::payloads()) && !left.run({ids}).empty())
    throw refused("mq_payloads", "being removed");
}

// A blocked message leaves its row behind, without payload and never due: its ordered channel waits for it.
void bury(const std::vector<Burial>& burials, std::vector<const Claimed*>& removed) {
  // The last failure is found by the message and then sorted, not looked for from the end of all.
  static Statement insert(
      "INSERT INTO $S.mq_dead (id, created_at, died_at, channel_name, channel_args, name, payload_json,"
      "  payload_bytes, ordered, attempts_made, reason, sqlstate, error, detail, hint, context, retry_backoff, "
      "channel_key,"
      "  dedup_key)"
      " SELECT m.id, m.created_at, pg_catalog.clock_timestamp(), m.channel_name, m.channel_args, p.name,"
      "        p.payload_json, p.payload_bytes, m.after_message_id IS NOT NULL, m.attempt + r.charged, r.reason,"
      "        COALESCE(r.sqlstate, f.sqlstate), COALESCE(r.error, f.error), COALESCE(r.detail, f.detail),"
      "        COALESCE(r.hint, f.hint), COALESCE(r.context, f.context), m.retry_backoff, m.channel_key,"
      "        m.dedup_key"
      "   FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9)"
      "          AS r (id, place, charged, reason, sqlstate, error, detail, hint, context)"
      "   JOIN $S.mq_msgs m ON " IS_CLAIMED
      "   LEFT JOIN $S.mq_payloads p ON p.id = r.id"
      "   LEFT JOIN LATERAL (SELECT * FROM $S.mq_failures l WHERE l.message_id = r.id AND r.error IS NULL"
      "                       ORDER BY l.failure_no + 0 DESC LIMIT 1) f ON true",
      {UUIDARRAYOID, INT8ARRAYOID, INT4ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
       TEXTARRAYOID});
  static Statement block(
      "UPDATE $S.mq_msgs m SET attempt_at = NULL, attempts = 0, attempt = m.attempt + r.charged,"
      "             lease = NULL, dedup_key = NULL, expires_at = NULL"
      "             FROM unnest($1, $2, $3) AS r (id, place, charged) WHERE " IS_CLAIMED " RETURNING m.id",
      {UUIDARRAYOID, INT8ARRAYOID, INT4ARRAYOID});
  ClaimedRows rows, blocked;
  ArrayParam charged(INT4OID), reasons(TEXTOID), blocked_charged(INT4OID);
  ErrorColumns errors;
  std::set<Uuid> blocking;
  add_blocking(burials, blocking);
  for (const Burial& burial : burials) {
    rows.add(*burial.message);
    charged.add(Int32GetDatum(burial.charged ? to_charge(*burial.message) : 0));
    reasons.add(text_datum(burial.reason));
    errors.add(burial.error ? *burial.error : Error("", ""));
    if ((burial.block && burial.message->ordered) || blocking.contains(burial.message->id)) {
      blocked.add(*burial.message);
      blocked_charged.add(Int32GetDatum(burial.charged ? to_charge(*burial.message) : 0));
    } else {
      removed.push_back(burial.message);
    }
  }
  lock_to_write("mq_dead");
  const Rows inserted = sequences::insert(sequences::Numbered::kDead, [&] {
    return insert.run({rows.ids.datum(), rows.places.datum(), charged.datum(), reasons.datum(), errors.sqlstate.datum(),
                       errors.message.datum(), errors.detail.datum(), errors.hint.datum(), errors.context.datum()});
  });
  if (inserted.size() == burials.size()) {
    ledger::RowChanges changes(Extension::dead());
    for (const Burial& burial : burials) changes.add(burial.message->channel_name, 1);
  } else {
    if (may_refuse(Extension::dead()) && count_there(rows) > inserted.size()) throw refused("mq_dead", "being added");
    ledger::changed_by_hand(Extension::dead());  // a handler has removed its message
  }
  if (blocked.size == 0) return;
  row_locks::Removal::run([&] {
    const Rows updated = block.run({blocked.ids.datum(), blocked.places.datum(), blocked_charged.datum()});
    expect_updated(blocked, updated.size());
    ArrayParam ids(UUIDOID, updated.size());
    for (std::size_t i = 0; i < updated.size(); ++i) ids.add(updated.get(i, 1));
    remove_payloads(ids.datum(), updated.size(), true);
  });
}

}  // namespace

namespace {

// Of rows that were removed (channel_key, channel_name, channel_args, place, whether it was head, leased): the channels
// that lost their head get another. Its own statement: the one that removed it may have waited for an append to
// commit, and this one has to see that.
void link_behind(const Rows& removed) {
  std::vector<LooseChannel> channels;
  for (std::size_t i = 0; i < removed.size(); ++i) {
    bool null = false;
    if (!DatumGetBool(removed.get(i, 5, null)) || null) continue;
    channels.push_back({DatumGetInt64(removed.get(i, 1)), std::string(text_view(removed.get(i, 2))),
                        std::string(text_view(removed.get(i, 3))), DatumGetInt64(removed.get(i, 4))});
  }
  link_or_note(channels);
}

void count_removed(const Rows& removed) {
  ledger::RowChanges changes(Extension::msgs());
  for (std::size_t i = 0; i < removed.size(); ++i) changes.add(text_view(removed.get(i, 2)), -1);
}

// What an outside consumer had polled was handled by it.
void count_consumed(const Rows& removed) {
  tally::ByChannel totals;
  for (std::size_t i = 0; i < removed.size(); ++i)
    if (DatumGetBool(removed.get(i, 6))) ++totals[std::string(text_view(removed.get(i, 2)))].handled;
  tally::append(totals);
}

#define REMOVED                                                        \
  " RETURNING m.channel_key, m.channel_name, m.channel_args, m.place," \
  "   m.after_message_id = " NIL_ID ", m.lease IS NOT NULL, m.id"

Datum array_of(const std::vector<std::uint64_t>& locations) {
  std::vector<ItemPointerData> tids(locations.size());
  ArrayParam array(TIDOID, locations.size());
  for (std::size_t i = 0; i < locations.size(); ++i) {
    ItemPointerSet(&tids[i], static_cast<BlockNumber>(locations[i] >> 16),
                   static_cast<OffsetNumber>(locations[i] & 0xffff));
    array.add(PointerGetDatum(&tids[i]));
  }
  return array.datum();
}

// By what they are, wherever they are. What is not there any more their handlers have removed.
Rows remove_rows(const ClaimedRows& rows) {
  static Statement messages("DELETE FROM $S.mq_msgs m USING unnest($1, $2) AS r (id, place) WHERE " IS_CLAIMED REMOVED,
                            {UUIDARRAYOID, INT8ARRAYOID});
  return row_locks::Removal::run([&] {
    const Rows removed = messages.run({rows.ids.datum(), rows.places.datum()});
    const bool all = removed.size() == rows.size;
    if (!all && may_refuse(Extension::msgs()) && count_there(rows) > 0) throw refused("mq_msgs", "being removed");
    remove_payloads(rows.ids.datum(), rows.size, all);
    return removed;
  });
}

// By their ids alone, or those of them that block their channels.
Rows remove_rows(const std::vector<Uuid>& ids, bool blocking) {
#define NAMED "DELETE FROM $S.mq_msgs m WHERE m.id = ANY ($1)"
  static Statement any(NAMED REMOVED, {UUIDARRAYOID});
  static Statement blocked(NAMED " AND m.attempt_at IS NULL" REMOVED, {UUIDARRAYOID});
  static Statement left("SELECT 1 FROM $S.mq_msgs m WHERE m.id = ANY ($1) AND (m.attempt_at IS NULL OR NOT $2)",
                        {UUIDARRAYOID, BOOLOID});
  ArrayParam array(UUIDOID, ids.size());
  for (const Uuid& id : ids) array.add(uuid_datum(id));
  return row_locks::Removal::run([&] {
    const Rows removed = (blocking ? blocked : any).run({array.datum()});
    const bool all = removed.size() == ids.size();
    if (!all && may_refuse(Extension::msgs()) && !left.run({array.datum(), BoolGetDatum(blocking)}).empty())
      throw refused("mq_msgs", "being removed");
    remove_payloads(array.datum(), ids.size(), all);
    return removed;
  });
}

// Whether a handler has had the table written anew, so that no row is where it was.
bool has_new_file(Oid table) {
  return fence::call([&] {
    const Relation relation = RelationIdGetRelation(table);
    if (relation == nullptr) return false;
#if PG_VERSION_NUM >= 160000
    const bool found = relation->rd_firstRelfilelocatorSubid != InvalidSubTransactionId;
#else
    const bool found = relation->rd_firstRelfilenodeSubid != InvalidSubTransactionId;
#endif
    RelationClose(relation);
    return found;
  });
}

// The same as remove_messages for rows that this transaction has locked: found by where they are, without a
// descent of an index each; nothing else can take the place of a row that is locked, nor of a payload (HeldSnapshot).
// One that was changed since is elsewhere; then they go by what they are.
void remove_claimed(const std::vector<const Claimed*>& messages) {
  static Statement unordered("DELETE FROM $S.mq_msgs m WHERE m.ctid = ANY ($1)", {TIDARRAYOID});
  static Statement ordered("DELETE FROM $S.mq_msgs m WHERE m.ctid = ANY ($1)" REMOVED, {TIDARRAYOID});
  static Statement payloads("DELETE FROM $S.mq_payloads p WHERE p.ctid = ANY ($1)", {TIDARRAYOID});
  if (messages.empty()) return;
  std::vector<std::uint64_t> locations, payload_locations;
  locations.reserve(messages.size());
  payload_locations.reserve(messages.size());
  bool any_ordered = false;
  for (const Claimed* message : messages) {
    locations.push_back(message->location);
    any_ordered = any_ordered || message->ordered;
    if (message->has_payload) payload_locations.push_back(message->payload_location);
  }
  const bool skips = row_locks::Removal::skips();
  Rows removed;
  std::size_t payloads_removed = 0;
  if (!has_new_file(Extension::msgs()) && !has_new_file(Extension::payloads()))
    row_locks::Removal::run([&] {
      removed = (any_ordered ? ordered : unordered).run({array_of(locations)});
      // Where a message is missing its payload may be another's by now.
      if (!skips && removed.size() == messages.size())
        payloads_removed = payloads.run({array_of(payload_locations)}).size();
    });
  if (any_ordered) link_behind(removed);
  {
    ledger::RowChanges changes(Extension::msgs());
    for (const Claimed* message : messages) changes.add(message->channel_name, -1);
  }
  if (removed.size() == messages.size() && !skips && payloads_removed == payload_locations.size()) return;
  ClaimedRows rows;
  for (const Claimed* message : messages) rows.add(*message);
  const Rows others = remove_rows(rows);
  link_behind(others);
  // Others were removed by their handlers, and have been counted by that.
  if (removed.size() + others.size() != messages.size()) ledger::changed_by_hand(Extension::msgs());
}

void remove_buried(const std::vector<const Claimed*>& messages) {
  if (messages.empty()) return;
  ClaimedRows rows;
  for (const Claimed* message : messages) rows.add(*message);
  const Rows removed = remove_rows(rows);
  link_behind(removed);
  count_removed(removed);
}

}  // namespace

namespace {

// An outside consumer has handled its message after all: the last lease ran out while it did, and the message died of
// that. Of what died of anything else the letters stay.
void remove_letters(const std::vector<Uuid>& ids, const Rows& removed) {
  static Statement remove(
      "DELETE FROM $S.mq_dead d USING unnest($1) AS i (id)"
      " WHERE d.id = i.id AND d.sqlstate = $2 AND d.reason = 'exhausted'"
      "   AND NOT EXISTS (SELECT 1 FROM $S.mq_dead l WHERE l.id = d.id AND l.dead_no > d.dead_no)"
      " RETURNING d.channel_name",
      {UUIDARRAYOID, TEXTOID});
  if (removed.size() == ids.size()) return;
  std::set<Uuid> there;
  for (std::size_t i = 0; i < removed.size(); ++i) there.insert(uuid_of(removed.get(i, 7)));
  ArrayParam others(UUIDOID);
  for (const Uuid& id : ids)
    if (!there.contains(id)) others.add(uuid_datum(id));
  const Rows letters = remove.run({others.datum(), text_datum(kLeaseRanOut)});
  tally::ByChannel totals;
  ledger::RowChanges changes(Extension::dead());
  for (std::size_t i = 0; i < letters.size(); ++i) {
    const std::string_view channel_name = text_view(letters.get(i, 1));
    ++totals[std::string(channel_name)].handled;
    changes.add(channel_name, -1);
  }
  tally::append(totals);
}

}  // namespace

void remove_messages(const std::vector<Uuid>& ids, bool consumed) {
  if (ids.empty()) return;
  const Rows removed = remove_rows(ids, false);
  link_behind(removed);
  count_removed(removed);
  if (!consumed) return;
  count_consumed(removed);
  remove_letters(ids, removed);
}

void remove_blocking(const std::vector<Uuid>& ids) {
  if (ids.empty()) return;
  const Rows removed = remove_rows(ids, true);
  link_behind(removed);
  count_removed(removed);
}

void clear_messages(const Param& channel_names) {
  // Rows are locked in the order of their ids, as everywhere. Heads; and how many there were of each name.
  static Statement clear(
      "WITH doomed AS MATERIALIZED (SELECT m.id FROM $S.mq_msgs m WHERE $1 IS NULL OR m.channel_name = ANY ($1)"
      "                               ORDER BY m.id FOR UPDATE),"
      " gone AS (DELETE FROM $S.mq_msgs m USING doomed d WHERE m.id = d.id RETURNING m.*),"
      " payloads AS (DELETE FROM $S.mq_payloads p USING gone g WHERE p.id = g.id)"
      " SELECT m.channel_key, m.channel_name, m.channel_args, m.place, true FROM gone m"
      "  WHERE m.after_message_id = " NIL_ID
      " UNION ALL SELECT 0, m.channel_name, '', count(*), false FROM gone m GROUP BY m.channel_name"
      " UNION ALL SELECT 0, '', '', k.kept, NULL"
      "   FROM (SELECT (SELECT count(*) FROM doomed) - (SELECT count(*) FROM gone) AS kept) AS k WHERE k.kept > 0",
      {TEXTARRAYOID});
  const Rows rows = clear.run({channel_names});
  if (!rows.empty() && rows.is_null(rows.size() - 1, 5)) throw refused("mq_msgs", "being removed");
  link_behind(rows);
  ledger::RowChanges changes(Extension::msgs());
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (!DatumGetBool(rows.get(i, 5))) changes.add(text_view(rows.get(i, 2)), -DatumGetInt64(rows.get(i, 4)));
}

void SqlSettler::settle(const Settlement& settlement) {
  const OwnerScope scope;
  const row_locks::Removal removal;
  std::vector<const Claimed*> buried;
  if (!settlement.failures.empty()) record(settlement.failures);
  if (!settlement.retries.empty()) retry(settlement.retries);
  if (!settlement.unhandled.empty()) put_aside(settlement.unhandled);
  if (!settlement.snoozes.empty()) snooze(settlement.snoozes);
  if (!settlement.burials.empty()) bury(settlement.burials, buried);
  remove_buried(buried);
  remove_claimed(settlement.removed);
  tally::append(tally::of(settlement));
}

bool SqlSettler::was_held(const Error& error) {
  return row_locks::was_held(error);
}

}  // namespace mq
