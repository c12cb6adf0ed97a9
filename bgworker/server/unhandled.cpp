#include "unhandled.hpp"

#include <algorithm>
#include <utility>

#include "extension.hpp"
#include "heads.hpp"
#include "ledger.hpp"
#include "skip_scan.hpp"
#include "spi.hpp"

namespace mq {

namespace {

constexpr std::int64_t kStep = 500;          // messages that a step looks at
constexpr std::size_t kChannelsAStep = 100;  // and channels that it looks for them in

struct Looked {
  std::int64_t messages = 0;
  bool woken = false;
};

// Looks at messages of the channel name that were put aside, behind `place`, which moves on.
Looked look(std::string_view channel_name, std::int64_t& place, std::int64_t most, Micros now) {
  static Statement find(
      "SELECT m.id, m.place,"
      "       p.id IS NULL"
      "         OR EXISTS (SELECT FROM $S.mq_handlers h WHERE h.channel_name = $1 AND h.message_name = p.name)"
      "         OR EXISTS (SELECT FROM $S.mq_handlers h WHERE h.channel_name = $1 AND h.message_name IS NULL)"
      "         OR NOT EXISTS (SELECT FROM $S.mq_handlers h WHERE h.channel_name = $1)"
      "  FROM (SELECT m.id, m.place FROM $S.mq_msgs m"
      "         WHERE m.channel_name = $1 AND m.attempt_at = 'infinity' AND m.place > $2 AND " HEAD
      "         ORDER BY m.attempt_at, m.place LIMIT $3) AS m"
      "  LEFT JOIN $S.mq_payloads p ON p.id = m.id",
      {TEXTOID, INT8OID, INT8OID});
  // Not beyond its expiry, as everywhere. What somebody has locked is found when the sweep comes round.
  static Statement wake(
      "WITH aside AS MATERIALIZED (SELECT m.id FROM $S.mq_msgs m WHERE m.id = ANY ($1) AND m.attempt_at = 'infinity'"
      "                              ORDER BY m.id FOR NO KEY UPDATE SKIP LOCKED)"
      " UPDATE $S.mq_msgs m SET attempt_at = LEAST($2, m.expires_at) FROM aside WHERE m.id = aside.id"
      " RETURNING m.attempt_at, m.place",
      {UUIDARRAYOID, TIMESTAMPTZOID});
  const Rows rows = find.run({text_datum(channel_name), Int64GetDatum(place), Int64GetDatum(most)});
  Looked looked{static_cast<std::int64_t>(rows.size()), false};
  ArrayParam ids(UUIDOID);
  bool any = false;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    place = std::max(place, DatumGetInt64(rows.get(i, 2)));
    if (!DatumGetBool(rows.get(i, 3))) continue;
    ids.add(rows.get(i, 1));
    any = true;
  }
  if (!any) return looked;
  const Rows woken = wake.run({ids.datum(), TimestampTzGetDatum(now)});
  for (std::size_t i = 0; i < woken.size(); ++i)
    ledger::due(channel_name, {DatumGetTimestampTz(woken.get(i, 1)), DatumGetInt64(woken.get(i, 2))});
  if (!woken.empty()) ledger::wake(channel_name);
  looked.woken = !woken.empty();
  return looked;
}

}  // namespace

void UnhandledScan::start(std::vector<std::string> channel_names) {
  channels_ = std::move(channel_names);
  place_ = INT64_MIN;
}

void UnhandledScan::read(const Registry& registry) {
  std::string taken;
  std::vector<std::string> names;
  for (const auto& [name, channel] : registry.channels()) {
    names.push_back(name);
    taken += name;
    for (const auto& handler : channel.handlers) taken += handler->message_name ? "\1" + *handler->message_name : "\2";
    taken += '\3';
  }
  if (generation_ == Extension::handlers_generation() && taken == taken_) return;
  generation_ = Extension::handlers_generation();
  taken_ = std::move(taken);
  start(std::move(names));
}

bool UnhandledScan::step(Micros now) {
  bool woken = false;
  std::int64_t left = kStep;
  for (std::size_t i = 0; i < kChannelsAStep && left > 0 && !channels_.empty(); ++i) {
    const Looked looked = look(channels_.back(), place_, left, now);
    woken = woken || looked.woken;
    if (looked.messages < left) {
      channels_.pop_back();
      place_ = INT64_MIN;
    }
    left -= looked.messages;
  }
  return woken;
}

bool wake_unhandled(Micros now) {
  // Pointers, so that nothing is destroyed at exit.
  static auto* scan = new UnhandledScan();
  static auto* from = new std::string();  // a channel name, where the step before ended
  if (!scan->goes_on()) scan->start(names_with_unhandled(*from, kChannelsAStep));
  return scan->step(now);
}

}  // namespace mq
