#include "claim_source.hpp"

#include "../channel_key.hpp"
#include "enabled.hpp"
#include "extension.hpp"
#include "fence.hpp"
#include "link.hpp"
#include "locks.hpp"
#include "marks.hpp"
#include "shared.hpp"
#include "skip_scan.hpp"

namespace mq {

namespace {

#define NIL_ID "'00000000-0000-0000-0000-000000000000'"

// A row that may be delivered first in its channel; the partial indexes have the same condition.
#define HEAD "(m.after_message_id IS NULL OR m.after_message_id = " NIL_ID ")"

// In the order of ClaimColumn.
#define COLUMNS                                                                                    \
  "m.id, m.channel_key, m.place, m.attempt_at, m.retry_backoff, m.channel_name, m.channel_args,"   \
  " p.name, m.attempt, m.attempts, m.after_message_id IS NOT NULL, m.commit_interval IS NOT NULL," \
  " m.ctid, p.ctid, p.payload_json, p.payload_bytes, m.expires_at, m.created_at, m.lease"

#define TABLES "$S.mq_msgs m LEFT JOIN $S.mq_payloads p ON p.id = m.id"
#define WITH_PAYLOAD "$S.mq_msgs m JOIN $S.mq_payloads p ON p.id = m.id"
#define LOCKED "FOR $L OF m SKIP LOCKED"

std::uint64_t location_of(Datum tid) {
  const auto* pointer = reinterpret_cast<ItemPointer>(DatumGetPointer(tid));
  return std::uint64_t{ItemPointerGetBlockNumberNoCheck(pointer)} << 16 | ItemPointerGetOffsetNumberNoCheck(pointer);
}

constexpr int kMostHeld = 1000;  // expired messages, leased or locked, that are looked at for the next moment
// What a call goes on with is not spent.
void drop_held(Batch& batch) {
  std::erase_if(batch, [](const Claimed& message) { return message.held; });
}

constexpr int kProbes = 4;  // channels that a fair draw looks at for each message it may take

}  // namespace

namespace {

// As it was before its attempt was charged.
void before_lease(Claimed& message, std::int64_t token) {
  message.orphan = true;
  message.lease = token;
  --message.attempts;
  ++message.attempts_left;
}

}  // namespace

void SqlClaimSource::append(const Rows& rows, Batch& batch) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    Claimed& message = batch.emplace_back();
    bool null = false;
    message.id = uuid_of(rows.get(i, kId));
    message.channel_key = DatumGetInt64(rows.get(i, kChannelKey));
    message.place = DatumGetInt64(rows.get(i, kPlace));
    message.attempt_at = DatumGetTimestampTz(rows.get(i, kAttemptAt));
    message.retry_backoff = micros_of_interval(rows.get(i, kRetryBackoff));
    message.channel_name = text_view(rows.get(i, kChannelName));
    message.channel_args = text_view(rows.get(i, kChannelArgs));
    message.attempts = DatumGetInt32(rows.get(i, kAttempts));
    message.attempts_left = DatumGetInt32(rows.get(i, kAttemptsLeft));
    message.ordered = DatumGetBool(rows.get(i, kOrdered));
    message.uncommitted = DatumGetBool(rows.get(i, kUncommitted));
    message.location = location_of(rows.get(i, kLocation));
    const Datum payload = rows.get(i, kPayloadLocation, null);
    message.has_payload = !null;
    if (!null) message.payload_location = location_of(payload);
    const Datum expires_at = rows.get(i, kExpiresAt, null);
    if (!null) message.expires_at = DatumGetTimestampTz(expires_at);
    const Datum lease = rows.get(i, kLeaseToken, null);
    message.outside = !null && DatumGetInt64(lease) == 0;
    if (const std::int64_t token = null ? 0 : DatumGetInt64(lease); token > 0 && shared::available()) {
      message.held = shared::lease_is_alive(token) || shared::lease_is_lost(token);
      if (!message.held) before_lease(message, token);
    }
    const Datum name = rows.get(i, kName, null);
    if (!null) message.name = text_view(name);
    message.row = rows_.size();
    rows_.push_back({rows.tuple(i), rows.descriptor()});
  }
}

void SqlClaimSource::begin(std::span<const std::string_view> channel_names) {
  rows_.clear();
  names_.assign(channel_names.begin(), channel_names.end());
  const OwnerScope scope;
  marks::raise(channel_names);
  if (enabled::here()) link_noted();
}

void SqlClaimSource::oldest(std::string_view channel_name, Micros now, std::optional<Position> after, int limit,
                            Batch& batch) {
  static Statement first("SELECT " COLUMNS " FROM " TABLES " WHERE m.channel_name = $1 AND m.attempt_at <= $2 AND " HEAD
                         "   AND (m.attempt_at, m.place) >= ($4, $5)"
                         " ORDER BY m.attempt_at, m.place LIMIT $3 " LOCKED,
                         {TEXTOID, TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, INT8OID});
  static Statement more("SELECT " COLUMNS " FROM " TABLES " WHERE m.channel_name = $1 AND m.attempt_at <= $2 AND " HEAD
                        "   AND (m.attempt_at, m.place) > ($4, $5)"
                        " ORDER BY m.attempt_at, m.place LIMIT $3 " LOCKED,
                        {TEXTOID, TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, INT8OID});
  static Statement deliverable(
      "SELECT " COLUMNS " FROM " WITH_PAYLOAD
      " WHERE m.channel_name = $1 AND m.attempt_at <= $2"
      "   AND m.attempts > 0 AND m.commit_interval IS NULL AND (m.expires_at IS NULL OR m.expires_at > $2)"
      "   AND " HEAD
      " AND (m.attempt_at, m.place) > ($4, $5)"
      " ORDER BY m.attempt_at, m.place LIMIT $3 " LOCKED,
      {TEXTOID, TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, INT8OID});
  const OwnerScope scope;
  const Datum name = text_datum(channel_name);
  const Position from = after ? *after : undeliverable_left_ ? marks::kNone : marks::start(channel_name);
  const Rows rows = (undeliverable_left_ ? deliverable
                     : after             ? more
                                         : first)
                        .run({name, TimestampTzGetDatum(now), Int64GetDatum(limit),
                              TimestampTzGetDatum(from.attempt_at), Int64GetDatum(from.place)});
  append(rows, batch);
  marks::taken(channel_name, static_cast<int>(rows.size()));
}

void SqlClaimSource::fair(std::string_view channel_name, Micros now, std::int64_t start, int limit, Batch& batch) {
  static Statement draw(
      "SELECT c.* FROM unnest($3) AS k (key) CROSS JOIN LATERAL ("
      "  SELECT " COLUMNS " FROM " TABLES
      "   WHERE m.channel_name = $1 AND m.channel_key = k.key AND m.attempt_at <= $2 AND " HEAD
      "     AND (m.attempt_at, m.place) >= ($5, $6)"
      "   ORDER BY m.attempt_at, m.place LIMIT 1 " LOCKED ") c LIMIT $4",
      {TEXTOID, TIMESTAMPTZOID, INT8ARRAYOID, INT8OID, TIMESTAMPTZOID, INT8OID});
  if (undeliverable_left_) return;
  const OwnerScope scope;
  const Position from = marks::start(channel_name);
  ArrayParam keys(INT8OID);
  for (const std::int64_t key : fair_keys(channel_name, from, start, limit * kProbes)) keys.add(Int64GetDatum(key));
  const Rows rows = draw.run({text_datum(channel_name), TimestampTzGetDatum(now), keys.datum(), Int64GetDatum(limit),
                              TimestampTzGetDatum(from.attempt_at), Int64GetDatum(from.place)});
  append(rows, batch);
  marks::taken(channel_name, static_cast<int>(rows.size()));
}

void SqlClaimSource::runs(std::span<const Claimed> heads, Micros now, int limit, Batch& batch) {
  static Statement run(
      "SELECT c.* FROM unnest($1, $2, $3, $4) WITH ORDINALITY AS h (key, name, args, place, n)"
      " CROSS JOIN LATERAL ("
      "  SELECT " COLUMNS ", m.after_message_id FROM " TABLES
      "   WHERE m.channel_key = h.key AND m.place > h.place AND m.after_message_id IS NOT NULL"
      "     AND m.channel_name = h.name AND m.channel_args = h.args"
      "   ORDER BY m.place LIMIT $6 " LOCKED
      ") c"
      " WHERE c.attempt_at <= $5",
      {INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INT8ARRAYOID, TIMESTAMPTZOID, INT8OID});
  constexpr int kAfter = kLeaseToken + 1;
  const OwnerScope scope;
  ArrayParam keys(INT8OID, heads.size());
  ArrayParam names(TEXTOID, heads.size());
  ArrayParam args(TEXTOID, heads.size());
  ArrayParam places(INT8OID, heads.size());
  for (const Claimed& head : heads) {
    keys.add(Int64GetDatum(head.channel_key));
    names.add(text_datum(head.channel_name));
    args.add(text_datum(head.channel_args));
    places.add(Int64GetDatum(head.place));
  }
  const Rows rows = run.run(
      {keys.datum(), names.datum(), args.datum(), places.datum(), TimestampTzGetDatum(now), Int64GetDatum(limit)});
  Batch found;
  append(rows, found);

  // A run ends where a message is missing from it: not due, or locked by somebody.
  const Claimed* previous = nullptr;
  auto head = heads.begin();
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (previous == nullptr || !same_channel(*previous, found[i])) {
      while (!same_channel(*head, found[i])) ++head;
      previous = &*head;
    }
    if (uuid_of(rows.get(i, kAfter)) != previous->id) continue;
    batch.push_back(found[i]);
    previous = &found[i];
  }
}

bool SqlClaimSource::overlooked() {
  const OwnerScope scope;
  const std::vector<std::string_view> names(names_.begin(), names_.end());
  return marks::check(names);
}

void SqlClaimSource::spent(Micros now, int limit, Batch& batch) {
  static Statement select("SELECT " COLUMNS " FROM " TABLES
                          " WHERE (m.commit_interval IS NOT NULL OR m.attempts <= 0) AND m.attempt_at <= $1"
                          " ORDER BY m.attempt_at LIMIT $2 " LOCKED,
                          {TIMESTAMPTZOID, INT8OID});
  rows_.clear();
  const OwnerScope scope;
  append(select.run({TimestampTzGetDatum(now), Int64GetDatum(limit)}), batch);
  drop_held(batch);
}

void SqlClaimSource::expired(Micros now, int limit, Batch& batch) {
  static Statement select("SELECT " COLUMNS " FROM " TABLES
                          " WHERE m.expires_at <= $1 AND m.commit_interval IS NULL"
                          "   AND (m.attempt_at <= $1 OR m.attempt_at = 'infinity')"
                          " ORDER BY m.expires_at LIMIT $2 " LOCKED,
                          {TIMESTAMPTZOID, INT8OID});
  rows_.clear();
  const OwnerScope scope;
  append(select.run({TimestampTzGetDatum(now), Int64GetDatum(limit)}), batch);
  drop_held(batch);
}

std::optional<Micros> SqlClaimSource::next_expiry(Micros now) {
  static Statement next(
      "SELECT LEAST("
      "  (SELECT m.expires_at FROM $S.mq_msgs m WHERE m.expires_at > $1 AND m.commit_interval IS NULL"
      "    ORDER BY m.expires_at LIMIT 1),"
      "  (SELECT min(GREATEST(nullif(h.attempt_at, 'infinity'), h.expires_at)) FROM ("
      "     SELECT m.attempt_at, m.expires_at FROM $S.mq_msgs m"
      "      WHERE m.expires_at <= $1 AND m.commit_interval IS NULL AND m.attempt_at IS NOT NULL"
      "      ORDER BY m.expires_at LIMIT $2) AS h))",
      {TIMESTAMPTZOID, INT8OID});
  const OwnerScope scope;
  const Rows rows = next.run({TimestampTzGetDatum(now), Int64GetDatum(kMostHeld)});
  bool null = false;
  const Datum moment = rows.get(0, 1, null);
  return null ? std::nullopt : std::optional<Micros>(DatumGetTimestampTz(moment));
}

void SqlClaimSource::named(std::span<const Uuid> ids, Batch& batch, std::vector<int>& crashes) {
  static Statement select("SELECT " COLUMNS
                          ", (SELECT count(*)::int4 FROM $S.mq_failures f"
                          "   WHERE f.message_id = m.id AND f.crash)"
                          "  FROM " TABLES " WHERE m.id = ANY ($1) " LOCKED,
                          {UUIDARRAYOID});
  constexpr int kCrashes = kLeaseToken + 1;
  const OwnerScope scope;
  ArrayParam array(UUIDOID, ids.size());
  for (const Uuid& id : ids) array.add(uuid_datum(id));
  const Rows rows = select.run({array.datum()});
  append(rows, batch);
  for (std::size_t i = 0; i < rows.size(); ++i) crashes.push_back(DatumGetInt32(rows.get(i, kCrashes)));
}

bool SqlClaimSource::is_pending(const Uuid& id) {
  static Statement select("SELECT m.id FROM $S.mq_msgs m WHERE m.id = $1", {UUIDOID});
  const OwnerScope scope;
  return !select.run({uuid_datum(id)}).empty();
}

bool SqlClaimSource::leased(std::int64_t token, Batch& batch) {
  static Statement select("SELECT " COLUMNS " FROM " TABLES " WHERE m.lease = $1 AND m.lease > 0 " LOCKED, {INT8OID});
  static Statement count("SELECT pg_catalog.count(*) FROM $S.mq_msgs m WHERE m.lease = $1 AND m.lease > 0", {INT8OID});
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

bool SqlClaimSource::take_place(std::string_view channel_name, int most) {
  const std::int64_t key = channel_key(channel_name, {});
  for (int i = 0; i < most; ++i) {
    if (!locks::try_worker_place(key, i)) continue;
    places_.insert_or_assign(std::string(channel_name), i);
    return true;
  }
  return false;
}

void SqlClaimSource::release_place(std::string_view channel_name) {
  const auto place = places_.find(channel_name);
  if (place != places_.end()) locks::release_worker_place(channel_key(channel_name, {}), place->second);
}

bool SqlClaimSource::is_due(std::string_view channel_name, Micros now) {
  const std::optional<Micros> due = next_due(channel_name);
  return due && *due <= now;
}

int SqlClaimSource::due(std::string_view channel_name, Micros now, int limit) {
  static Statement count(
      "SELECT pg_catalog.count(*)::int4 FROM (SELECT 1 FROM $S.mq_msgs m WHERE m.channel_name = $1"
      "   AND m.attempt_at <= $2 AND (m.attempt_at, m.place) >= ($4, $5)"
      "   AND " HEAD " LIMIT $3) d",
      {TEXTOID, TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, INT8OID});
  const OwnerScope scope;
  const Position from = marks::start(channel_name);
  const Rows rows = count.run({text_datum(channel_name), TimestampTzGetDatum(now), Int64GetDatum(limit),
                               TimestampTzGetDatum(from.attempt_at), Int64GetDatum(from.place)});
  return DatumGetInt32(rows.get(0, 1));
}

void SqlClaimSource::again(std::span<const Uuid> ids, Micros now, Batch& batch) {
  static Statement select("SELECT " COLUMNS " FROM " TABLES " WHERE m.id = ANY ($1) AND m.attempt_at <= $2 AND " HEAD
                          " ORDER BY m.attempt_at, m.place " LOCKED,
                          {UUIDARRAYOID, TIMESTAMPTZOID});
  const OwnerScope scope;
  ArrayParam array(UUIDOID, ids.size());
  for (const Uuid& id : ids) array.add(uuid_datum(id));
  append(select.run({array.datum(), TimestampTzGetDatum(now)}), batch);
  drop_held(batch);
}

std::vector<std::string> SqlClaimSource::channel_names() {
  const OwnerScope scope;
  return names_with_heads();
}

std::optional<Micros> SqlClaimSource::next_due(std::string_view channel_name) {
  static Statement next(
      "SELECT m.attempt_at FROM $S.mq_msgs m WHERE m.channel_name = $1 AND (m.attempt_at, m.place) >= ($2, $3) "
      "AND " HEAD " ORDER BY m.attempt_at, m.place LIMIT 1",
      {TEXTOID, TIMESTAMPTZOID, INT8OID});
  const OwnerScope scope;
  const Position from = marks::start(channel_name);
  const Rows rows =
      next.run({text_datum(channel_name), TimestampTzGetDatum(from.attempt_at), Int64GetDatum(from.place)});
  if (rows.empty()) return std::nullopt;
  const Micros due = DatumGetTimestampTz(rows.get(0, 1));
  return due == kNever ? std::nullopt : std::optional(due);
}

std::optional<Micros> SqlClaimSource::next_due(std::string_view channel_name, Micros after) {
  static Statement next(
      "SELECT m.attempt_at FROM $S.mq_msgs m WHERE m.channel_name = $1 AND m.attempt_at > $2 AND " HEAD
      " ORDER BY m.attempt_at, m.place LIMIT 1",
      {TEXTOID, TIMESTAMPTZOID});
  const OwnerScope scope;
  const Rows rows = next.run({text_datum(channel_name), TimestampTzGetDatum(after)});
  if (rows.empty()) return std::nullopt;
  const Micros due = DatumGetTimestampTz(rows.get(0, 1));
  return due == kNever ? std::nullopt : std::optional(due);
}

}  // namespace mq
