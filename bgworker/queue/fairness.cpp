#include "queue/fairness.hpp"

#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/index_scan.hpp"
#include "pg/statement.hpp"
#include "queue/low_water.hpp"
#include "shmem/channel_key.hpp"
#include "shmem/keyed_names.hpp"
#include "shmem/shared.hpp"

extern "C" {
#include "utils/fmgroids.h"
}

namespace mq::fairness {

namespace {

// Whether mq_msgs_fair has an entry of another channel of the name than that without arguments,
// visible or not.
bool has_entries(std::string_view channel_name) {
  static constexpr RegProcedure kCompare[] = {F_BTINT8CMP, F_TIMESTAMPTZ_CMP, F_BTINT8CMP};
  const Extension& extension = Extension::get();
  const Oid table = extension.relation("mq_msgs");
  const Oid index = extension.relation("mq_msgs_fair");
  const Datum name = text_datum(channel_name);
  const std::int64_t plain = channel_key(channel_name, {});
  return guard::call([&] {
    EntryScan scan;
    const auto is_other = [&](std::int64_t from) {
      const Datum position[] = {Int64GetDatum(from), TimestampTzGetDatum(INT64_MIN), Int64GetDatum(INT64_MIN)};
      scan.descend(position);
      bool null = false;
      return scan.next() && DatumGetInt64(scan.column(2, null)) != plain;
    };
    scan.open(table, index, kCompare, 3, 2, name);
    const bool found = is_other(INT64_MIN) || (plain < INT64_MAX && is_other(plain + 1));
    scan.close();
    return found;
  });
}

}  // namespace

bool needs_entry(std::string_view channel_name) {
  shared::KeyedName name(low_water::key_of(channel_name));
  if (name.state() != shared::KeyedName::kUnknown) return name.state() == shared::KeyedName::kKeyed;
  if (!shared::available()) return true;
  if (has_entries(channel_name)) {
    name.set_keyed();
    return true;
  }
  name.set_plain();
  return false;
}

bool is_one_channel(std::string_view channel_name) {
  return shared::KeyedName(low_water::key_of(channel_name)).state() == shared::KeyedName::kPlain;
}

void has_channels(std::string_view channel_name) {
  shared::KeyedName(low_water::key_of(channel_name)).set_keyed();
}

}  // namespace mq::fairness
