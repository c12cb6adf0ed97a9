#include "queue/skip_scan.hpp"

#include <algorithm>
#include <functional>
#include <limits>
#include <utility>

#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/index_scan.hpp"
#include "pg/statement.hpp"
#include "queue/claimed_rows.hpp"
#include "queue/fair_scan.hpp"
#include "queue/low_water.hpp"

extern "C" {
#include "catalog/pg_collation.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/uuid.h"
}

namespace mq {

namespace {

constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t kGreatest = std::numeric_limits<std::int64_t>::max();
constexpr int kMostSeen = 20000;  // entries that first_no_heads reads

constexpr RegProcedure kCompareDue[] = {F_BTTEXTCMP, F_TIMESTAMPTZ_CMP, F_BTINT8CMP};

// The scan of mq_msgs_due for names_with_heads() and names_with_unhandled(). For bodies of
// guard::call().
class Names {
 public:
  void open(Oid table, Oid index, Datum least) {
    scan_.open(table, index, kCompareDue, 3);
    descend(least, low_water::kNone);
    go_to_name();
  }

  // A copy of the channel name at the scan's current entry; 0 at the end.
  Datum name() const {
    bool null = false;
    return there_ ? PointerGetDatum(PG_DETOAST_DATUM_COPY(scan_.column(1, null))) : 0;
  }

  // Whether `name` has a visible head that is not below `mark`. Moves the scan to the next name.
  bool pass(Datum name, Position mark) {
    // To pass over entries of rows that are known to be gone would not end with the name, but behind
    // those of the next one. Above a mark there are few of them.
    scan_.read_gone(mark != low_water::kNone);
    Position position{};
    if (position_of(scan_, 2, position) && position < mark) {
      descend(name, mark);
      there_ = scan_.next();
    }
    for (; there_ && is(name); there_ = scan_.next()) {
      if (!position_of(scan_, 2, position) || !scan_.is_visible()) continue;
      pass_by(name);
      return true;
    }
    return false;
  }

  // Moves the scan to the next name.
  void pass_by(Datum name) {
    descend(name, {kGreatest, kGreatest});
    go_to_name();
  }

  // Whether `name` has an entry at infinity. Moves the scan to the next name.
  bool pass_to_infinity(Datum name) {
    descend(name, {kGreatest, kLeast});
    scan_.read_gone(true);  // where there is none, the next entry is of another name
    there_ = scan_.next();
    Position position{};
    const bool found = there_ && is(name) && position_of(scan_, 2, position);
    if (there_ && is(name)) pass_by(name);
    return found;
  }

  void close() { scan_.close(); }

 private:
  void descend(Datum name, Position from) {
    const Datum position[] = {name, TimestampTzGetDatum(from.attempt_at), Int64GetDatum(from.seq)};
    scan_.descend(position);
  }

  // The entry at which a name begins may be one of a long row that is known to be gone.
  void go_to_name() {
    scan_.read_gone(true);
    there_ = scan_.next();
    scan_.read_gone(false);
  }

  bool is(Datum name) const {
    bool null = false;
    return DatumGetBool(DirectFunctionCall2Coll(texteq, C_COLLATION_OID, scan_.column(1, null), name));
  }

  EntryScan scan_;
  bool there_;
};

}  // namespace

std::vector<std::int64_t> fair_keys(std::string_view channel_name, Position mark, std::int64_t start, int most) {
  const Extension& extension = Extension::get();
  const Oid table = extension.relation("mq_msgs");
  const Oid index = extension.relation("mq_msgs_fair");
  const Datum name = text_datum(channel_name);
  std::vector<std::int64_t> keys(static_cast<std::size_t>(most));
  std::int64_t* const first = keys.data();
  const int count = guard::call([&] {
    FairScan scan;
    int found = 0;
    scan.open(table, index, name, mark);
    scan.walk(start, [&](std::int64_t key, Position) {
      first[found++] = key;
      return found < most ? FairScan::kChannel : FairScan::kEnd;
    });
    scan.close();
    return found;
  });
  keys.resize(static_cast<std::size_t>(count));
  return keys;
}

HeadSearch search_head(std::string_view channel_name, int priority, Position from, int most) {
  const Extension& extension = Extension::get();
  const Oid table = extension.relation("mq_msgs");
  const Oid index = extension.relation(priority == 0 ? "mq_msgs_due" : "mq_msgs_priority");
  const int first = priority == 0 ? 2 : 3;  // the column of attempt_at
  const Datum name = text_datum(channel_name);
  return guard::call([&] {
    HeadSearch search{false, from, 0};
    EntryScan scan;
    scan.open(table, index, kCompareDue + 1, 2, first, name, static_cast<std::int16_t>(priority));
    scan.read_gone(true);  // to pass over a long row of them may take any time
    const Datum position[] = {TimestampTzGetDatum(from.attempt_at), Int64GetDatum(from.seq)};
    scan.descend(position);
    while (!search.ended && search.read < most) {
      ++search.read;
      if (!scan.next() || !position_of(scan, first, search.reached))
        search = {true, kEnd, search.read};
      else
        search.ended = scan.is_visible();
    }
    scan.close();
    return search;
  });
}

std::vector<std::string> names_with_heads() {
  const Extension& extension = Extension::get();
  const Oid table = extension.relation("mq_msgs");
  const Oid index = extension.relation("mq_msgs_due");
  const Datum least = text_datum("");
  std::vector<std::string> names;
  Names scan;
  guard::call([&] { scan.open(table, index, least); });
  while (const Datum name = guard::call([&] { return scan.name(); })) {
    const std::string_view text = text_view(name);
    const Position mark = low_water::start(text, 0);
    if (guard::call([&] { return scan.pass(name, mark); })) names.emplace_back(text);
  }
  guard::call([&] { scan.close(); });
  return names;
}

bool any_prioritized() {
  const Extension& extension = Extension::get();
  const Oid table = extension.relation("mq_msgs");
  const Oid index = extension.relation("mq_msgs_prioritized");
  const Datum least[] = {text_datum(""), TimestampTzGetDatum(low_water::kNone.attempt_at),
                         Int64GetDatum(low_water::kNone.seq)};
  return guard::call([&] {
    if (is_unused(table, index)) return false;
    EntryScan scan;
    scan.open(table, index, kCompareDue, 3);
    scan.read_gone(true);
    scan.descend(least);
    const bool any = scan.next();
    scan.close();
    return any;
  });
}

namespace {

// Goes down the priorities of the channel name that are below one, until `is_enough` says so. The first entry
// of each tells the least attempt_at, so the table is not looked at.
void go_through_levels(std::string_view channel_name, int below, const std::function<bool(const Level&)>& is_enough) {
  const Extension& extension = Extension::get();
  const Oid table = extension.relation("mq_msgs");
  const Oid index = extension.relation("mq_msgs_priority");
  const Datum name = text_datum(channel_name);
  EntryScan scan;
  guard::call([&] {
    scan.open_downwards(table, index, name);
    scan.read_gone(true);
  });
  for (bool more = below > INT16_MIN; more;) {
    const std::optional<Level> next = guard::call([&]() -> std::optional<Level> {
      CHECK_FOR_INTERRUPTS();
      const Datum position = Int16GetDatum(static_cast<std::int16_t>(below - 1));
      scan.descend(&position);
      if (!scan.next()) return std::nullopt;
      bool null = false;
      Position first{};
      const int priority = DatumGetInt16(scan.column(2, null));
      return Level{priority, position_of(scan, 3, first) ? first.attempt_at : kNever};
    });
    if (next) below = next->priority;
    more = next && !is_enough(*next) && below > INT16_MIN;
  }
  guard::call([&] { scan.close(); });
}

}  // namespace

std::optional<int> due_priority_below(std::string_view channel_name, int priority, Micros now) {
  std::optional<int> found;
  go_through_levels(channel_name, priority, [&](const Level& level) {
    if (level.earliest <= now) found = level.priority;
    return found.has_value();
  });
  return found;
}

std::vector<Level> levels_of(std::string_view channel_name) {
  std::vector<Level> found;
  go_through_levels(channel_name, kAbovePriorities, [&](const Level& level) {
    found.push_back(level);
    return false;
  });
  return found;
}

std::vector<std::string> prioritized_names() {
  const Extension& extension = Extension::get();
  const Oid table = extension.relation("mq_msgs");
  const Oid index = extension.relation("mq_msgs_prioritized");
  const Datum least = text_datum("");
  std::vector<std::string> names;
  Names scan;
  guard::call([&] { scan.open(table, index, least); });
  while (const Datum name = guard::call([&] { return scan.name(); })) {
    names.emplace_back(text_view(name));
    guard::call([&] { scan.pass_by(name); });
  }
  guard::call([&] { scan.close(); });
  return names;
}

namespace {

std::vector<std::string> names_with_unhandled(const char* index_name, std::string& from, std::size_t most) {
  const Extension& extension = Extension::get();
  const Oid table = extension.relation("mq_msgs");
  const Oid index = extension.relation(index_name);
  const Datum least = text_datum(from);
  std::vector<std::string> names;
  Names scan;
  guard::call([&] { scan.open(table, index, least); });
  from.clear();
  for (std::size_t seen = 0; const Datum name = guard::call([&] { return scan.name(); }); ++seen) {
    if (seen == most) {
      from = text_view(name);
      break;
    }
    if (guard::call([&] { return scan.pass_to_infinity(name); })) names.emplace_back(text_view(name));
  }
  guard::call([&] { scan.close(); });
  return names;
}

}  // namespace

std::vector<std::string> names_with_unhandled(std::string& from, std::size_t most) {
  std::string prioritized_from = from;
  std::vector<std::string> names = names_with_unhandled("mq_msgs_due", from, most);
  for (std::string& name : names_with_unhandled("mq_msgs_prioritized", prioritized_from, most))
    names.push_back(std::move(name));
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  // What only one of the two scans has come to is for the next step.
  if (from.empty() || (!prioritized_from.empty() && prioritized_from < from)) from = prioritized_from;
  if (!from.empty()) names.erase(std::lower_bound(names.begin(), names.end(), from), names.end());
  return names;
}

std::vector<ChainPosition> first_no_heads(ChainPosition& from, Effort& effort) {
  static constexpr RegProcedure kCompare[] = {F_BTINT8CMP, F_BTINT8CMP};
  const Extension& extension = Extension::get();
  const Oid table = extension.relation("mq_msgs");
  const Oid index = extension.relation("mq_msgs_chain");
  const AttrNumber after = attribute_numbers(table)[kAfter];
  std::vector<ChainPosition> positions(static_cast<std::size_t>(effort.most()));
  ChainPosition* const found = positions.data();
  const std::size_t count = guard::call([&] {
    static const pg_uuid_t kNil = {};
    EntryScan scan;
    std::size_t n = 0;
    const auto descend = [&] {
      const Datum position[] = {Int64GetDatum(from.channel_key), Int64GetDatum(from.seq)};
      scan.descend(position);
    };
    scan.open(table, index, kCompare, 2);
    descend();
    bool more = true;
    for (int seen = 0; seen < kMostSeen && !effort.is_over() && (more = scan.next()); ++seen) {
      bool null = false;
      from = {DatumGetInt64(scan.column(1, null)), DatumGetInt64(scan.column(2, null))};
      if (!scan.is_visible()) continue;
      effort.add();
      if (memcmp(DatumGetUUIDP(slot_getattr(scan.row(), after, &null)), &kNil, sizeof kNil) != 0) found[n++] = from;
      more = from.channel_key < kGreatest;
      if (!more) break;
      from = {from.channel_key + 1, kLeast};
      descend();
    }
    if (!more) from = ChainPosition();
    scan.close();
    return n;
  });
  positions.resize(count);
  return positions;
}

}  // namespace mq
