#include "skip_scan.hpp"

#include <limits>

#include "extension.hpp"
#include "fence.hpp"
#include "spi.hpp"

extern "C" {
#include "access/genam.h"
#include "access/nbtree.h"
#include "access/relscan.h"
#include "access/table.h"
#include "catalog/pg_collation.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
}

namespace mq {

namespace {

constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t kGreatest = std::numeric_limits<std::int64_t>::max();
constexpr int kInARow = 200;     // entries of a channel that are read before the rest is skipped
constexpr int kMostRead = 4000;  // entries in all; a descent counts as kInARow

// An open scan of mq_msgs_fair: entries of a name from (channel_key, attempt_at, place) on. Owns nothing: it lives in
// a body of fence::call, and an error leaves it to the rollback.
struct FairScan {
  Relation table;
  Relation index;
  IndexScanDesc scan;
  ScanKeyData row[3];
  ScanKeyData keys[2];

  void open(Oid table_oid, Oid index_oid, Datum channel_name) {
    table = table_open(table_oid, AccessShareLock);
    index = index_open(index_oid, AccessShareLock);
    ScanKeyEntryInitialize(&keys[0], 0, 1, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID, F_TEXTEQ, channel_name);
    // As the executor makes them of a row comparison.
    const RegProcedure compare[3] = {F_BTINT8CMP, F_TIMESTAMPTZ_CMP, F_BTINT8CMP};
    for (int i = 0; i < 3; ++i)
      ScanKeyEntryInitialize(&row[i], SK_ROW_MEMBER | (i == 2 ? SK_ROW_END : 0), static_cast<AttrNumber>(i + 2),
                             BTGreaterEqualStrategyNumber, InvalidOid, InvalidOid, compare[i], 0);
    memset(&keys[1], 0, sizeof keys[1]);
    keys[1].sk_flags = SK_ROW_HEADER;
    keys[1].sk_attno = row[0].sk_attno;
    keys[1].sk_strategy = BTGreaterEqualStrategyNumber;
    keys[1].sk_argument = PointerGetDatum(row);
#if PG_VERSION_NUM >= 180000
    scan = index_beginscan(table, index, SnapshotAny, nullptr, 2, 0);
#else
    scan = index_beginscan(table, index, SnapshotAny, 2, 0);
#endif
    scan->xs_want_itup = true;
  }

  void descend(std::int64_t channel_key, Position mark) {
    row[0].sk_argument = Int64GetDatum(channel_key);
    row[1].sk_argument = TimestampTzGetDatum(mark.attempt_at);
    row[2].sk_argument = Int64GetDatum(mark.place);
    index_rescan(scan, keys, 2, nullptr, 0);
  }

  bool next(std::int64_t& channel_key, bool& above, Position mark) {
    if (index_getnext_tid(scan, ForwardScanDirection) == nullptr) return false;
    bool null = false;
    const auto column = [&](int n) { return index_getattr(scan->xs_itup, n, scan->xs_itupdesc, &null); };
    channel_key = DatumGetInt64(column(2));
    const TimestampTz attempt_at = DatumGetTimestampTz(column(3));
    above = !null && Position{attempt_at, DatumGetInt64(column(4))} >= mark;
    return true;
  }

  void close() {
    index_endscan(scan);
    index_close(index, NoLock);
    table_close(table, NoLock);
  }
};

// Adds keys in [from, below) to those that are there.
void collect(FairScan& scan, Position mark, std::int64_t from, std::int64_t below, std::int64_t* keys, int& count,
             int most, int& read) {
  std::int64_t current = 0;
  int in_a_row = -1;  // entries of the current channel; none yet
  bool wanted = false;
  scan.descend(from, mark);
  std::int64_t key = 0;
  bool above = false;
  while (read < kMostRead && scan.next(key, above, mark) && key < below) {
    ++read;
    if (in_a_row < 0 || key != current) {
      current = key;
      in_a_row = 0;
      wanted = false;
    }
    if (above && !wanted) {
      if (count == most) return;
      keys[count++] = key;
      wanted = true;
    }
    if (++in_a_row < kInARow) continue;
    scan.descend(wanted ? key + 1 : key, mark);
    read += kInARow;
    in_a_row = 0;
  }
}

}  // namespace

std::vector<std::int64_t> fair_keys(std::string_view channel_name, Position mark, std::int64_t start, int most) {
  const Extension& extension = Extension::get();
  const Oid table = extension.relation("mq_msgs");
  const Oid index = extension.relation("mq_msgs_fair");
  const Datum name = text_datum(channel_name);
  std::vector<std::int64_t> keys(static_cast<std::size_t>(most));
  std::int64_t* const first = keys.data();
  const int count = fence::call([&] {
    FairScan scan;
    int found = 0;
    int read = 0;
    scan.open(table, index, name);
    collect(scan, mark, start, kGreatest, first, found, most, read);
    if (found < most && start != kLeast) collect(scan, mark, kLeast, start, first, found, most, read);
    scan.close();
    return found;
  });
  keys.resize(static_cast<std::size_t>(count));
  return keys;
}

}  // namespace mq
