#include "queue/unhandled.hpp"

#include <algorithm>
#include <utility>

#include "pg/extension.hpp"
#include "pg/statement.hpp"
#include "queue/commit_actions.hpp"
#include "queue/prerequisites.hpp"
#include "queue/skip_scan.hpp"

namespace mq {

namespace {

constexpr std::int64_t kStep = 500;          // messages that a step looks at
constexpr std::size_t kChannelsAStep = 100;  // channels that a step looks at

struct Looked {
  std::int64_t messages = 0;  // messages that were looked at
  bool woken = false;         // some became due
};

// Looks at up to `most` messages of the channel name at infinity whose sequence number is above
// `seq`, and makes those due that can be handled. Moves `seq` to the last one.
Looked look(std::string_view channel_name, std::int64_t& seq, std::int64_t most, Micros now) {
  static Statement find(
      "SELECT m.id, m.seq,"
      "       EXISTS (SELECT FROM $S.mq_handlers h WHERE h.channel_name = $1 AND h.message_name = m.message_name)"
      "         OR EXISTS (SELECT FROM $S.mq_handlers h WHERE h.channel_name = $1 AND h.message_name IS NULL)"
      "         OR NOT EXISTS (SELECT FROM $S.mq_handlers h WHERE h.channel_name = $1),"
      "       m.due_at IS NOT NULL,"
      "       m.due_at IS NOT NULL AND NOT EXISTS (SELECT FROM $S.mq_prerequisites q WHERE q.dependent = m.id)"
      "  FROM (SELECT m.id, m.seq, m.message_name, m.due_at FROM $S.mq_heads m"
      "         WHERE m.channel_name = $1 AND m.attempt_at = 'infinity' AND m.seq > $2"
      " ORDER BY m.attempt_at, m.seq LIMIT $3) AS m",
      {TEXTOID, INT8OID, INT8OID});
  // attempt_at is never later than expires_at. The sweep comes back to messages that others hold.
  static Statement wake(
      "WITH aside AS MATERIALIZED (SELECT m.id FROM $S.mq_msgs m WHERE m.id = ANY ($1) AND m.attempt_at = 'infinity'"
      "                                 AND m.due_at IS NULL"
      "                              ORDER BY m.id FOR NO KEY UPDATE SKIP LOCKED)"
      " UPDATE $S.mq_msgs m SET attempt_at = LEAST($2, m.expires_at), fair = true FROM aside WHERE m.id = aside.id"
      " RETURNING m.attempt_at, m.seq, m.priority",
      {UUIDARRAYOID, TIMESTAMPTZOID});
  const Rows rows = find.run({text_datum(channel_name), Int64GetDatum(seq), Int64GetDatum(most)});
  Looked looked{static_cast<std::int64_t>(rows.size()), false};
  ArrayParam ids(UUIDOID);
  bool any = false;
  std::vector<Uuid> free;  // they wait for others, but nothing says for which
  for (std::size_t i = 0; i < rows.size(); ++i) {
    seq = std::max(seq, DatumGetInt64(rows.get(i, 2)));
    if (DatumGetBool(rows.get(i, 5))) free.push_back(uuid_of(rows.get(i, 1)));
    if (DatumGetBool(rows.get(i, 4)) || !DatumGetBool(rows.get(i, 3))) continue;
    ids.add(rows.get(i, 1));
    any = true;
  }
  looked.woken = prerequisites::release_without_rows(free);
  if (!any) return looked;
  const Rows woken = wake.run({ids.datum(), TimestampTzGetDatum(now)});
  for (std::size_t i = 0; i < woken.size(); ++i)
    commit_actions::due(channel_name, DatumGetInt16(woken.get(i, 3)),
                        {DatumGetTimestampTz(woken.get(i, 1)), DatumGetInt64(woken.get(i, 2))});
  if (!woken.empty()) commit_actions::wake(channel_name);
  looked.woken = looked.woken || !woken.empty();
  return looked;
}

}  // namespace

void UnhandledScan::start(std::vector<std::string> channel_names) {
  channels_ = std::move(channel_names);
  last_seq_ = INT64_MIN;
}

void UnhandledScan::read(std::vector<std::string> channel_names, std::string taken) {
  if (generation_ == Extension::handlers_generation() && taken == taken_) return;
  generation_ = Extension::handlers_generation();
  taken_ = std::move(taken);
  start(std::move(channel_names));
}

bool UnhandledScan::step(Micros now) {
  bool woken = false;
  std::int64_t left = kStep;
  for (std::size_t i = 0; i < kChannelsAStep && left > 0 && !channels_.empty(); ++i) {
    const Looked looked = look(channels_.back(), last_seq_, left, now);
    woken = woken || looked.woken;
    if (looked.messages < left) {
      channels_.pop_back();
      last_seq_ = INT64_MIN;
    }
    left -= looked.messages;
  }
  return woken;
}

bool wake_unhandled(Micros now) {
  // Pointers, so that nothing is destroyed at exit.
  static auto* scan = new UnhandledScan();
  static auto* from = new std::string();  // the channel name at which the last step ended
  if (!scan->goes_on()) scan->start(names_with_unhandled(*from, kChannelsAStep));
  return scan->step(now);
}

}  // namespace mq
