#include "queue/limits.hpp"

#include <map>
#include <string>

#include "pg/extension.hpp"
#include "pg/statement.hpp"

extern "C" {
#include "catalog/pg_type.h"
}

namespace mq {

namespace {

using Table = std::map<std::string, ChannelLimits, std::less<>>;

// The table as this process read it last; never destroyed. nullptr: it had no rows.
Table* cached = nullptr;
// Extension::limits_generation() when it was read; 0: it was not.
std::uint64_t cached_generation = 0;

template <class T, class Get>
std::optional<T> column(const Rows& rows, std::size_t row, int number, Get get) {
  bool null = false;
  const Datum value = rows.get(row, number, null);
  return null ? std::nullopt : std::optional<T>(get(value));
}

void read() {
  static Statement select(
      "SELECT l.channel_name, l.max_pending, l.max_running, l.max_running_per_args, l.rate, l.per, l.rate_per_args"
      "  FROM $S.mq_channel_limits l",
      {});
  Table table;
  // Read before the rows: what changes meanwhile is read at the next look.
  const std::uint64_t generation = Extension::limits_generation();
  if (OidIsValid(Extension::limits())) {
    const OwnerScope scope;
    const SpiConnection spi;
    const Rows rows = select.run({});
    const auto integer = [](Datum value) { return DatumGetInt32(value); };
    for (std::size_t i = 0; i < rows.size(); ++i) {
      ChannelLimits limits;
      limits.max_pending = column<std::int64_t>(rows, i, 2, [](Datum value) { return DatumGetInt64(value); });
      limits.max_running = column<int>(rows, i, 3, integer);
      limits.max_running_per_args = column<int>(rows, i, 4, integer);
      limits.rate = column<int>(rows, i, 5, integer);
      limits.per = column<Micros>(rows, i, 6, [](Datum value) { return micros_of_interval(value); }).value_or(0);
      limits.rate_per_args = DatumGetBool(rows.get(i, 7));
      table.emplace(text_view(rows.get(i, 1)), limits);
    }
  }
  delete cached;
  cached = table.empty() ? nullptr : new Table(std::move(table));
  cached_generation = generation;
}

}  // namespace

bool any_limits() {
  // Looks the extension up if it has to, which may find that it is another one.
  if (!Extension::installed()) return false;
  if (cached_generation != Extension::limits_generation()) read();
  return cached != nullptr;
}

std::vector<std::string> limited_names() {
  std::vector<std::string> names;
  if (!any_limits()) return names;
  for (const auto& [name, limits] : *cached) names.push_back(name);
  return names;
}

const ChannelLimits* limits_of(std::string_view channel_name) {
  if (!any_limits()) return nullptr;
  const auto found = cached->find(channel_name);
  return found == cached->end() ? nullptr : &found->second;
}

}  // namespace mq
