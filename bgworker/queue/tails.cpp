#include "queue/tails.hpp"

#include "pg/guard.hpp"
#include "pg/statement.hpp"
#include "queue/low_water.hpp"
#include "queue/stale_snapshot.hpp"

extern "C" {
#include "catalog/pg_type.h"
}

namespace mq {

std::size_t ChannelTails::find_or_add(std::int64_t key, std::string_view name, std::string_view arguments) {
  const auto [first, last] = by_key.equal_range(key);
  for (auto it = first; it != last; ++it)
    if (names[it->second] == name && args[it->second] == arguments) return it->second;
  by_key.emplace(key, keys.size());
  keys.push_back(key);
  names.push_back(name);
  args.push_back(arguments);
  mark_keys.push_back(low_water::key_of(name, arguments));
  tails.emplace_back();
  starts.push_back(low_water::kFirstSeq);
  return keys.size() - 1;
}

void find_tails(ChannelTails& channels) {
  static Statement find(
      "SELECT c.n::int4, t.id, t.seq FROM unnest($1, $2, $3, $4) WITH ORDINALITY AS c (key, name, args, start, n)"
      " CROSS JOIN LATERAL (SELECT m.id, m.seq FROM $S.mq_msgs m"
      "   WHERE m.channel_key = c.key AND m.seq >= c.start AND m.after_message_id IS NOT NULL"
      "     AND m.channel_name = c.name AND m.channel_args = c.args ORDER BY m.seq DESC LIMIT 1) AS t",
      {INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INT8ARRAYOID});
  ArrayParam keys(INT8OID), names(TEXTOID), args(TEXTOID), starts(INT8OID);
  const Micros began = GetCurrentTimestamp();
  std::vector<std::size_t> checked;
  for (std::size_t i = 0; i < channels.keys.size(); ++i) {
    std::int64_t start = low_water::channel_start(channels.mark_keys[i]);
    if (start != low_water::kFirstSeq && low_water::begin_channel_check(channels.mark_keys[i])) {
      start = low_water::kFirstSeq;
      checked.push_back(i);
    }
    channels.starts[i] = start;
    starts.add(Int64GetDatum(start));
    keys.add(Int64GetDatum(channels.keys[i]));
    names.add(text_datum(channels.names[i]));
    args.add(text_datum(channels.args[i]));
  }
  const Rows rows = find.run({keys.datum(), names.datum(), args.datum(), starts.datum()});
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto n = static_cast<std::size_t>(DatumGetInt32(rows.get(i, 1)) - 1);
    channels.tails[n] = {uuid_of(rows.get(i, 2)), true, DatumGetInt64(rows.get(i, 3))};
  }
  const Micros took = GetCurrentTimestamp() - began;
  for (const std::size_t i : checked) {
    const Tail& tail = channels.tails[i];
    low_water::end_channel_check(channels.mark_keys[i], took, tail.exists ? std::optional(tail.seq) : std::nullopt);
  }
}

void refuse_stale_snapshot(const ChannelTails& channels) {
  std::vector<Uuid> tails;
  for (const Tail& tail : channels.tails)
    if (tail.exists) tails.push_back(tail.id);
  refuse_stale_snapshot(tails,
                        "could not serialize access: an ordered channel was appended to by a concurrent transaction");
}

}  // namespace mq
