#include "queue/due.hpp"

#include "pg/extension.hpp"
#include "pg/statement.hpp"
#include "queue/due_scan.hpp"
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

namespace {

std::optional<Micros> due_of(std::optional<Position> head) {
  return head && head->attempt_at != kNever ? std::optional(head->attempt_at) : std::nullopt;
}

}  // namespace

std::optional<Micros> next_due(std::string_view channel_name) {
  const OwnerScope scope;
  return due_of(first_head(channel_name, low_water::start(channel_name)));
}

std::optional<Micros> next_due(std::string_view channel_name, Micros after) {
  const OwnerScope scope;
  return due_of(first_head(channel_name, {after, INT64_MAX}));
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
