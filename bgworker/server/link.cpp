#include "link.hpp"

#include <algorithm>

#include "fence.hpp"
#include "ledger.hpp"
#include "marks.hpp"
#include "refused.hpp"
#include "spi.hpp"

namespace mq {

namespace {

#define HEAD_ID "'00000000-0000-0000-0000-000000000000'"

constexpr int kNoted = 100;  // notes that a claim looks at

std::int64_t behind(const LooseChannel& channel) {
  if (channel.behind != kFromTheStart) return channel.behind;
  const std::int64_t start = marks::channel_start(marks::key_of(channel.name, channel.args));
  return start == marks::kFirstPlace ? start : start - 1;
}

struct ChannelArrays {
  explicit ChannelArrays(const std::vector<LooseChannel>& channels) {
    for (const LooseChannel& channel : channels) {
      keys.add(Int64GetDatum(channel.key));
      names.add(text_datum(channel.name));
      args.add(text_datum(channel.args));
      places.add(Int64GetDatum(behind(channel)));
    }
  }
  ArrayParam keys{INT8OID}, names{TEXTOID}, args{TEXTOID}, places{INT8OID};
};

}  // namespace

std::vector<LooseChannel> link_channels(const std::vector<LooseChannel>& channels) {
  // A head that can be share-locked stays: whoever removes it later sees what is behind it. One that cannot
  // is being removed by somebody who may not have seen that.
  static Statement link(
      "WITH first AS MATERIALIZED ("
      "  SELECT c.n, f.id, f.attempt_at, f.place, f.after_message_id = " HEAD_ID
      " AS head"
      "    FROM unnest($1, $2, $3, $4) WITH ORDINALITY AS c (key, name, args, place, n)"
      "   CROSS JOIN LATERAL (SELECT m.id, m.attempt_at, m.place, m.after_message_id FROM $S.mq_msgs m"
      "     WHERE m.channel_key = c.key AND m.place > c.place AND m.after_message_id IS NOT NULL"
      "       AND m.channel_name = c.name AND m.channel_args = c.args ORDER BY m.place LIMIT 1) AS f),"
      " heads AS MATERIALIZED (SELECT m.id FROM first JOIN $S.mq_msgs m ON m.id = first.id WHERE first.head"
      "                         FOR KEY SHARE OF m SKIP LOCKED),"
      " others AS MATERIALIZED (SELECT m.id FROM first JOIN $S.mq_msgs m ON m.id = first.id WHERE NOT first.head"
      "                          FOR NO KEY UPDATE OF m SKIP LOCKED),"
      " promoted AS (UPDATE $S.mq_msgs m SET after_message_id = " HEAD_ID
      " FROM others o WHERE m.id = o.id RETURNING m.id)"
      " SELECT first.n::int4,"
      "        CASE WHEN first.id IN (SELECT id FROM heads) OR first.id IN (SELECT id FROM promoted) THEN true"
      // Locked, and not changed.
      "             WHEN first.id NOT IN (SELECT id FROM others) THEN false END,"
      "        first.attempt_at, first.place"
      "   FROM first",
      {INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INT8ARRAYOID});
  std::vector<LooseChannel> loose;
  if (channels.empty()) return loose;
  const ChannelArrays arrays(channels);
  const Rows rows = link.run({arrays.keys.datum(), arrays.names.datum(), arrays.args.datum(), arrays.places.datum()});
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const LooseChannel& channel = channels[static_cast<std::size_t>(DatumGetInt32(rows.get(i, 1)) - 1)];
    ledger::wake(channel.name);
    bool kept = false;
    if (!DatumGetBool(rows.get(i, 2, kept)) && !kept) loose.push_back(channel);
    if (kept) throw refused("mq_msgs", "being changed");
    bool blocked = false;  // never due
    const Datum attempt_at = rows.get(i, 3, blocked);
    if (!blocked) ledger::due(channel.name, {DatumGetTimestampTz(attempt_at), DatumGetInt64(rows.get(i, 4))});
  }
  return loose;
}

void note_loose(const std::vector<LooseChannel>& channels) {
  static Statement insert(
      "INSERT INTO $S.mq_loose (channel_key, channel_name, channel_args) SELECT * FROM unnest($1, $2, $3)",
      {INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID});
  if (channels.empty()) return;
  const ChannelArrays arrays(channels);
  insert.run({arrays.keys.datum(), arrays.names.datum(), arrays.args.datum()});
}

void link_or_note(const std::vector<LooseChannel>& channels) {
  note_loose(link_channels(channels));
}

void link_noted() {
  static Statement select(
      "SELECT l.ctid, l.channel_key, l.channel_name, l.channel_args FROM $S.mq_loose l LIMIT $1 FOR UPDATE SKIP LOCKED",
      {INT8OID});
  static Statement forget("DELETE FROM $S.mq_loose l WHERE l.ctid = ANY ($1)", {TIDARRAYOID});
  const Rows rows = select.run({Int64GetDatum(kNoted)});
  if (rows.empty()) return;
  std::vector<LooseChannel> noted;
  for (std::size_t i = 0; i < rows.size(); ++i)
    noted.push_back({DatumGetInt64(rows.get(i, 2)), std::string(text_view(rows.get(i, 3))),
                     std::string(text_view(rows.get(i, 4)))});
  const std::vector<LooseChannel> loose = link_channels(noted);
  ArrayParam linked(TIDOID);
  for (std::size_t i = 0; i < noted.size(); ++i) {
    const bool still = std::any_of(loose.begin(), loose.end(), [&](const LooseChannel& channel) {
      return channel.key == noted[i].key && channel.name == noted[i].name && channel.args == noted[i].args;
    });
    if (!still) linked.add(rows.get(i, 1));
  }
  forget.run({linked.datum()});
}

}  // namespace mq
