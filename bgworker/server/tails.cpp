#include "tails.hpp"

#include "fence.hpp"
#include "marks.hpp"
#include "spi.hpp"

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
  mark_keys.push_back(marks::key_of(name, arguments));
  tails.emplace_back();
  starts.push_back(marks::kFirstPlace);
  return keys.size() - 1;
}

void find_tails(ChannelTails& channels) {
  static Statement find(
      "SELECT c.n::int4, t.id, t.place FROM unnest($1, $2, $3, $4) WITH ORDINALITY AS c (key, name, args, start, n)"
      " CROSS JOIN LATERAL (SELECT m.id, m.place FROM $S.mq_msgs m"
      "   WHERE m.channel_key = c.key AND m.place >= c.start AND m.after_message_id IS NOT NULL"
      "     AND m.channel_name = c.name AND m.channel_args = c.args ORDER BY m.place DESC LIMIT 1) AS t",
      {INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INT8ARRAYOID});
  ArrayParam keys(INT8OID), names(TEXTOID), args(TEXTOID), starts(INT8OID);
  const Micros began = GetCurrentTimestamp();
  std::vector<std::size_t> checked;
  for (std::size_t i = 0; i < channels.keys.size(); ++i) {
    std::int64_t start = marks::channel_start(channels.mark_keys[i]);
    if (start != marks::kFirstPlace && marks::begin_channel_check(channels.mark_keys[i])) {
      start = marks::kFirstPlace;
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
    marks::end_channel_check(channels.mark_keys[i], took, tail.exists ? std::optional(tail.place) : std::nullopt);
  }
}

void refuse_stale_snapshot(const ChannelTails& channels) {
  if (!IsolationUsesXactSnapshot()) return;
  static Statement visible("SELECT m.id FROM $S.mq_msgs m WHERE m.id = ANY ($1)", {UUIDARRAYOID});
  ArrayParam ids(UUIDOID);
  std::size_t tails = 0;
  for (const Tail& tail : channels.tails) {
    if (!tail.exists) continue;
    ids.add(uuid_datum(tail.id));
    ++tails;
  }
  if (tails == 0) return;
  Snapshot own = fence::call([] { return GetTransactionSnapshot(); });
  if (visible.run({ids.datum()}, own).size() != tails)
    throw Error("40001", "could not serialize access: an ordered channel was appended to by a concurrent transaction",
                "", "The transaction might succeed if retried.");
}

}  // namespace mq
