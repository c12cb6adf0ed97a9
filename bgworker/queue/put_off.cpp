#include "queue/put_off.hpp"

#include "pg/row_locks.hpp"
#include "pg/statement.hpp"
#include "queue/claimed_rows.hpp"
#include "queue/commit_actions.hpp"
#include "queue/removal.hpp"

namespace mq {

std::size_t put_off(const std::vector<PutOff>& all) {
  static Statement update(
      "UPDATE $S.mq_msgs m SET attempt_at = r.until, throttled_at = COALESCE(m.throttled_at, m.attempt_at), fair = "
      "true,"
      "       lease = NULL"
      "  FROM unnest($1, $2, $3, $4) AS r (id, seq, key, until) WHERE " IS_CLAIMED,
      {UUIDARRAYOID, INT8ARRAYOID, INT8ARRAYOID, TIMESTAMPTZARRAYOID});
  std::vector<const Claimed*> messages;
  for (const PutOff& one : all) {
    messages.push_back(one.message);
    commit_actions::due(one.message->channel_name, one.message->priority, {one.until, one.message->seq});
  }
  const std::vector<char> written = update_claimed(messages, [&](std::size_t i, NewVersion& version) {
    version.set(kAttemptAt, TimestampTzGetDatum(all[i].until));
    version.set(kThrottledAt, TimestampTzGetDatum(messages[i]->due()));
    version.set(kFair, BoolGetDatum(true));
    version.set_null(kLeaseToken);
  });
  ClaimedRows rows;
  ArrayParam times(TIMESTAMPTZOID);
  std::vector<const Claimed*> others;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (written[i] != 0) continue;
    others.push_back(messages[i]);
    rows.add(*messages[i]);
    times.add(TimestampTzGetDatum(all[i].until));
  }
  if (others.empty()) return all.size();
  try {
    lock_claimed(others);
  } catch (const Error& error) {
    if (!row_locks::was_held(error)) throw;
    return all.size() - others.size();
  }
  return all.size() - others.size() +
         update.run({rows.ids.datum(), rows.numbers.datum(), rows.keys.datum(), times.datum()}).size();
}

std::size_t put_off(const std::vector<PutOff>& all, const std::vector<char>& stays, Batch& messages) {
  const std::size_t count = all.empty() ? 0 : put_off(all);
  std::size_t kept = 0;
  for (std::size_t i = 0; i < messages.size(); ++i)
    if (stays[i] != 0) messages[kept++] = messages[i];
  messages.resize(kept);
  return count;
}

namespace {

// Makes those due whose ids the query `ids` gives, which locks them.
#define RELEASE(ids)                                                                                   \
  "WITH w AS MATERIALIZED (" ids                                                                       \
  " FOR NO KEY UPDATE SKIP LOCKED)"                                                                    \
  " UPDATE $S.mq_msgs m SET attempt_at = m.throttled_at, throttled_at = NULL FROM w WHERE m.id = w.id" \
  " RETURNING m.priority, m.attempt_at, m.seq"

std::size_t note_due(std::string_view channel_name, const Rows& rows) {
  for (std::size_t i = 0; i < rows.size(); ++i)
    commit_actions::due(channel_name, DatumGetInt16(rows.get(i, 1)),
                        {DatumGetTimestampTz(rows.get(i, 2)), DatumGetInt64(rows.get(i, 3))});
  return rows.size();
}

}  // namespace

void release_put_off(std::string_view channel_name) {
  static Statement update(
      RELEASE("SELECT m.id FROM $S.mq_msgs m WHERE m.channel_name = $1 AND m.throttled_at IS NOT NULL ORDER BY m.id"),
      {TEXTOID});
  (void)note_due(channel_name, update.run({text_datum(channel_name)}));
  commit_actions::wake(channel_name);
}

std::size_t release_put_off(std::string_view channel_name, std::int64_t channel_key, int limit) {
  static Statement update(RELEASE("SELECT m.id FROM $S.mq_msgs m WHERE m.channel_name = $1 AND m.channel_key = $2"
                                  "   AND m.throttled_at IS NOT NULL ORDER BY m.attempt_at LIMIT $3"),
                          {TEXTOID, INT8OID, INT8OID});
  return note_due(channel_name,
                  update.run({text_datum(channel_name), Int64GetDatum(channel_key), Int64GetDatum(limit)}));
}

void sweep_put_off() {
  static Statement select(
      "WITH RECURSIVE n (name) AS ("
      "  (SELECT m.channel_name FROM $S.mq_msgs m WHERE m.throttled_at IS NOT NULL ORDER BY m.channel_name LIMIT 1)"
      "  UNION ALL"
      "  SELECT (SELECT m.channel_name FROM $S.mq_msgs m WHERE m.throttled_at IS NOT NULL AND m.channel_name > n.name"
      "           ORDER BY m.channel_name LIMIT 1) FROM n WHERE n.name IS NOT NULL)"
      " SELECT n.name FROM n WHERE n.name IS NOT NULL AND NOT EXISTS ("
      "   SELECT 1 FROM $S.mq_channel_limits l WHERE l.channel_name = n.name"
      "      AND (l.rate_per_args OR l.max_running_per_args IS NOT NULL))",
      {});
  const Rows rows = select.run({});
  for (std::size_t i = 0; i < rows.size(); ++i) release_put_off(text_view(rows.get(i, 1)));
}

}  // namespace mq
