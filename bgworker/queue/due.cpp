#include "queue/due.hpp"

#include "pg/extension.hpp"
#include "pg/statement.hpp"
#include "queue/low_water.hpp"
#include "queue/skip_scan.hpp"

namespace mq {

namespace {

constexpr int kMostHeld = 1000;  // the most expired messages that next_expiry() looks at

}  // namespace

bool is_due(std::string_view channel_name, Micros now) {
  const std::optional<Micros> due = next_due(channel_name);
  return due && *due <= now;
}

int count_due(std::string_view channel_name, Micros now, int limit) {
  static Statement count(
      "SELECT pg_catalog.count(*)::int4 FROM (SELECT 1 FROM $S.mq_msgs m WHERE m.channel_name = $1"
      "   AND m.attempt_at <= $2 AND (m.attempt_at, m.seq) >= ($4, $5)"
      "   AND $H LIMIT $3) d",
      {TEXTOID, TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, INT8OID});
  const OwnerScope scope;
  const Position from = low_water::start(channel_name);
  const Rows rows = count.run({text_datum(channel_name), TimestampTzGetDatum(now), Int64GetDatum(limit),
                               TimestampTzGetDatum(from.attempt_at), Int64GetDatum(from.seq)});
  return DatumGetInt32(rows.get(0, 1));
}

std::optional<Micros> next_due(std::string_view channel_name) {
  static Statement next(
      "SELECT m.attempt_at FROM $S.mq_msgs m WHERE m.channel_name = $1 AND (m.attempt_at, m.seq) >= ($2, $3) "
      "AND $H ORDER BY m.attempt_at, m.seq LIMIT 1",
      {TEXTOID, TIMESTAMPTZOID, INT8OID});
  const OwnerScope scope;
  const Position from = low_water::start(channel_name);
  const Rows rows = next.run({text_datum(channel_name), TimestampTzGetDatum(from.attempt_at), Int64GetDatum(from.seq)});
  if (rows.empty()) return std::nullopt;
  const Micros due = DatumGetTimestampTz(rows.get(0, 1));
  return due == kNever ? std::nullopt : std::optional(due);
}

std::optional<Micros> next_due(std::string_view channel_name, Micros after) {
  static Statement next(
      "SELECT m.attempt_at FROM $S.mq_msgs m WHERE m.channel_name = $1 AND m.attempt_at > $2 AND $H"
      " ORDER BY m.attempt_at, m.seq LIMIT 1",
      {TEXTOID, TIMESTAMPTZOID});
  const OwnerScope scope;
  const Rows rows = next.run({text_datum(channel_name), TimestampTzGetDatum(after)});
  if (rows.empty()) return std::nullopt;
  const Micros due = DatumGetTimestampTz(rows.get(0, 1));
  return due == kNever ? std::nullopt : std::optional(due);
}

std::optional<Micros> next_expiry(Micros now) {
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

std::vector<std::string> channel_names() {
  const OwnerScope scope;
  return names_with_heads();
}

bool is_pending(const Uuid& id) {
  static Statement select("SELECT m.id FROM $S.mq_msgs m WHERE m.id = $1", {UUIDOID});
  const OwnerScope scope;
  return !select.run({uuid_datum(id)}).empty();
}

}  // namespace mq
