#include "stats/heads.hpp"

#include "pg/extension.hpp"
#include "shmem/channel_key.hpp"

namespace mq::channel_counts {

std::vector<Look> find_names() {
  // A skip scan over the names. The first row of each name has its least attempt_at.
  static Statement names(
      "WITH RECURSIVE n (name, oldest) AS ("
      "  (SELECT m.channel_name, m.attempt_at FROM $S.mq_heads m"
      " ORDER BY m.channel_name, m.attempt_at LIMIT 1)"
      "  UNION ALL"
      "  SELECT o.channel_name, o.attempt_at FROM n CROSS JOIN LATERAL ("
      "    SELECT m.channel_name, m.attempt_at FROM $S.mq_heads m WHERE m.channel_name > n.name"
      " ORDER BY m.channel_name, m.attempt_at LIMIT 1) AS o)"
      " SELECT n.name, n.oldest FROM n",
      {});
  const Rows rows = names.run({});
  std::vector<Look> looks(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    bool null = false;
    const Datum oldest = rows.get(i, 2, null);
    looks[i].name = text_view(rows.get(i, 1));
    looks[i].key = channel_key(looks[i].name, {});
    if (!null) looks[i].oldest = DatumGetTimestampTz(oldest);
  }
  return looks;
}

void find_known(std::vector<Look>& looks) {
  std::vector<std::int64_t> keys;
  keys.reserve(looks.size());
  for (const Look& look : looks) keys.push_back(look.key);
  const std::vector<std::optional<row_counts::Known>> known = row_counts::find(Extension::msgs(), keys);
  for (std::size_t i = 0; i < looks.size(); ++i) looks[i].known = known[i];
}

void count_heads(std::vector<Look>& looks, Micros now, bool due) {
#define COUNT_HEADS(condition)                                               \
  "SELECT n.n::int4, h.count FROM unnest($1) WITH ORDINALITY AS n (name, n)" \
  " CROSS JOIN LATERAL (SELECT count(*) FROM (SELECT 1 FROM $S.mq_heads m"   \
  "   WHERE m.channel_name = n.name AND m.attempt_at " condition             \
  " $2 ORDER BY m.attempt_at LIMIT $3) AS head) AS h (count)"
  static Statement count_due(COUNT_HEADS("<="), {TEXTARRAYOID, TIMESTAMPTZOID, INT8OID});
  static Statement count_later(COUNT_HEADS(">"), {TEXTARRAYOID, TIMESTAMPTZOID, INT8OID});
  ArrayParam names(TEXTOID, looks.size());
  std::vector<Look*> counted;
  for (Look& look : looks) {
    // Where the rows of an unordered name are known and few are later, the due ones are the rest.
    if (due && look.known && !look.known->ordered && look.later <= kSmall) {
      look.due = look.oldest && *look.oldest <= now ? 1 : 0;
      continue;
    }
    names.add(text_datum(look.name));
    counted.push_back(&look);
  }
  if (counted.empty()) return;
  const Rows rows =
      (due ? count_due : count_later).run({names.datum(), TimestampTzGetDatum(now), Int64GetDatum(kSmall + 1)});
  for (std::size_t i = 0; i < rows.size(); ++i) {
    Look& look = *counted[static_cast<std::size_t>(DatumGetInt32(rows.get(i, 1)) - 1)];
    (due ? look.due : look.later) = DatumGetInt64(rows.get(i, 2));
  }
}

std::int64_t count_heads(std::string_view name, Micros now, bool due, std::int64_t limit) {
  static Statement count_due(
      "SELECT count(*) FROM (SELECT 1 FROM $S.mq_heads m WHERE m.channel_name = $1 AND m.attempt_at <= $2"
      " ORDER BY m.attempt_at LIMIT $3) AS due",
      {TEXTOID, TIMESTAMPTZOID, INT8OID});
  static Statement count_later(
      "SELECT count(*) FROM (SELECT 1 FROM $S.mq_heads m WHERE m.channel_name = $1 AND m.attempt_at > $2"
      " ORDER BY m.attempt_at LIMIT $3) AS later",
      {TEXTOID, TIMESTAMPTZOID, INT8OID});
  Statement& statement = due ? count_due : count_later;
  return DatumGetInt64(statement.run({text_datum(name), TimestampTzGetDatum(now), Int64GetDatum(limit)}).get(0, 1));
}

}  // namespace mq::channel_counts
