#include "queue/due.hpp"

#include <algorithm>
#include <utility>

#include "pg/extension.hpp"
#include "pg/statement.hpp"
#include "queue/due_scan.hpp"
#include "queue/low_water.hpp"
#include "queue/rates.hpp"
#include "queue/skip_scan.hpp"

namespace mq {

namespace {

constexpr int kMostHeld = 1000;  // the most expired messages that next_expiry() looks at

}  // namespace

namespace {

int count_due(std::string_view channel_name, int priority, Micros now, int limit) {
#define COUNT(of_priority)                                                                                       \
  "SELECT pg_catalog.count(*)::int4 FROM (SELECT 1 FROM $S.mq_msgs m WHERE m.channel_name = $1 AND " of_priority \
  "   AND m.attempt_at <= $2 AND (m.attempt_at, m.seq) >= ($4, $5)"                                              \
  "   AND $H LIMIT $3) d"
  static Statement count(COUNT("m.priority = 0"), {TEXTOID, TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, INT8OID, INT2OID});
  static Statement prioritized(COUNT("m.priority = $6 AND m.priority <> 0"),
                               {TEXTOID, TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, INT8OID, INT2OID});
  const Position from = low_water::start(channel_name, priority);
  const Rows rows = (priority == 0 ? count : prioritized)
                        .run({text_datum(channel_name), TimestampTzGetDatum(now), Int64GetDatum(limit),
                              TimestampTzGetDatum(from.attempt_at), Int64GetDatum(from.seq),
                              Int16GetDatum(static_cast<std::int16_t>(priority))});
  return DatumGetInt32(rows.get(0, 1));
}

// The other priorities than 0 of the channel name.
std::vector<Level> others(std::string_view channel_name) {
  return any_prioritized() ? levels_of(channel_name) : std::vector<Level>();
}

}  // namespace

bool is_due(std::string_view channel_name, Micros now) {
  return rates::room(channel_name, 1, now) > 0 && any_due(channel_name, now);
}

bool any_due(std::string_view channel_name, Micros now) {
  const OwnerScope scope;
  const auto has_due = [&](int priority) {
    return first_head(channel_name, priority, low_water::start(channel_name, priority)).attempt_at <= now;
  };
  if (has_due(0)) return true;
  const std::vector<Level> levels = others(channel_name);
  return std::any_of(levels.begin(), levels.end(),
                     [&](const Level& level) { return level.earliest <= now && has_due(level.priority); });
}

int count_due(std::string_view channel_name, Micros now, int limit) {
  limit = rates::room(channel_name, limit, now);
  if (limit <= 0) return 0;
  const OwnerScope scope;
  int count = count_due(channel_name, 0, now, limit);
  if (count >= limit) return count;
  for (const Level& level : others(channel_name)) {
    if (level.earliest <= now) count += count_due(channel_name, level.priority, now, limit - count);
    if (count >= limit) break;
  }
  return count;
}

namespace {

std::optional<Micros> due_of(const Position& head) {
  return head.attempt_at != kNever ? std::optional(head.attempt_at) : std::nullopt;
}

std::optional<Micros> earlier(std::optional<Micros> a, std::optional<Micros> b) {
  return a && b ? std::min(a, b) : a ? a : b;
}

// The earlier of `next` and the first due time that `due_of_level` tells of another priority than 0. Not all
// are asked: those whose entries are the earliest come first.
template <class F>
std::optional<Micros> earliest(std::string_view channel_name, std::optional<Micros> next, F&& due_of_level) {
  std::vector<Level> levels = others(channel_name);
  std::sort(levels.begin(), levels.end(), [](const Level& a, const Level& b) { return a.earliest < b.earliest; });
  for (const Level& level : levels) {
    if (level.earliest == kNever || (next && level.earliest >= *next)) break;
    next = earlier(next, due_of_level(level.priority));
  }
  return next;
}

}  // namespace

std::optional<Micros> next_due(std::string_view channel_name) {
  const OwnerScope scope;
  const auto due_of_level = [&](int priority) {
    return due_of(first_head(channel_name, priority, low_water::start(channel_name, priority)));
  };
  const std::optional<Micros> due = earliest(channel_name, due_of_level(0), due_of_level);
  return due ? rates::not_before(channel_name, *due) : std::nullopt;
}

std::optional<Micros> next_due(std::string_view channel_name, Micros after) {
  const OwnerScope scope;
  const auto due_of_level = [&](int priority) {
    return due_of(first_head(channel_name, priority, {after, INT64_MAX}));
  };
  return earliest(channel_name, due_of_level(0), due_of_level);
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
  std::vector<std::string> names = names_with_heads();
  if (!any_prioritized()) return names;
  const auto ordinary = static_cast<std::ptrdiff_t>(names.size());
  for (std::string& name : prioritized_names()) {
    if (std::binary_search(names.begin(), names.begin() + ordinary, name)) continue;
    const std::vector<Level> levels = levels_of(name);
    if (std::any_of(levels.begin(), levels.end(), [&](const Level& level) {
          return first_head(name, level.priority, low_water::start(name, level.priority)) != kEnd;
        }))
      names.push_back(std::move(name));
  }
  std::inplace_merge(names.begin(), names.begin() + ordinary, names.end());
  return names;
}

bool is_pending(const Uuid& id) {
  static Statement select("SELECT m.id FROM $S.mq_msgs m WHERE m.id = $1", {UUIDOID});
  const OwnerScope scope;
  return !select.run({uuid_datum(id)}).empty();
}

}  // namespace mq
