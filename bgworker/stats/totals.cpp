#include "stats/totals.hpp"

#include <iterator>
#include <vector>

#include "pg/clock.hpp"
#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/locks.hpp"
#include "pg/plain_table.hpp"
#include "pg/statement.hpp"

extern "C" {
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/snapmgr.h"
}

namespace mq::stats {

namespace {

constexpr int kRollUp = 10'000;      // deltas that a roll-up takes at most
constexpr double kRollUpOdds = 500;  // deltas appended for each roll-up by append(), on average

#define COLUMNS "channel_name, handled, failed, died, handle_times, wait_times"
enum Column { kChannelName = 1, kHandled, kFailed, kDied, kHandleTimes, kWaitTimes, kLocation };

void merge_stored(Histogram& histogram, Datum array) {
  struct Elements {
    const std::int64_t* values;
    std::size_t count;
  };
  const Elements elements = guard::call([&] {
    ArrayType* a = DatumGetArrayTypeP(array);
    // A user may have written NULLs or another shape by hand.
    if (ARR_HASNULL(a) || ARR_NDIM(a) != 1) return Elements{nullptr, 0};
    return Elements{reinterpret_cast<const std::int64_t*>(ARR_DATA_PTR(a)), static_cast<std::size_t>(ARR_DIMS(a)[0])};
  });
  histogram.merge_stored({elements.values, elements.count});
}

void add_row(const Rows& rows, std::size_t row, Totals& totals) {
  totals.handled += DatumGetInt64(rows.get(row, kHandled));
  totals.failed += DatumGetInt64(rows.get(row, kFailed));
  totals.died += DatumGetInt64(rows.get(row, kDied));
  merge_stored(totals.handle_times, rows.get(row, kHandleTimes));
  merge_stored(totals.wait_times, rows.get(row, kWaitTimes));
}

ByChannel by_channel(const Rows& rows) {
  ByChannel result;
  auto last = result.end();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::string_view name = text_view(rows.get(i, kChannelName));
    if (last == result.end() || last->first != name) last = result.try_emplace(std::string(name)).first;
    add_row(rows, i, last->second);
  }
  return result;
}

// The histograms of all channel names in one array, and where the part of each begins and ends: SQL
// has no arrays of arrays.
struct HistogramParams {
  ArrayParam values{INT8OID}, first{INT4OID}, last{INT4OID};
  int count = 0;

  void add(const Histogram& histogram) {
    first.add(Int32GetDatum(count + 1));
    for (const std::int64_t value : histogram.stored()) {
      values.add(Int64GetDatum(value));
      ++count;
    }
    last.add(Int32GetDatum(count));
  }
};

// The histogram as an array.
Datum array_of(const Histogram& histogram) {
  ArrayParam array(INT8OID);
  for (const std::int64_t value : histogram.stored()) array.add(Int64GetDatum(value));
  return array.datum();
}

// Straight into the table; false: a statement has to.
bool insert_straight(const ByChannel& totals) {
  static constexpr TableColumn kColumns[] = {
      {"channel_name", TEXTOID}, {"handled", INT8OID},           {"failed", INT8OID},
      {"died", INT8OID},         {"handle_times", INT8ARRAYOID}, {"wait_times", INT8ARRAYOID}};
  std::vector<Param> values;
  values.reserve(std::size(kColumns) * totals.size());
  for (const auto& [name, t] : totals)
    values.insert(values.end(),
                  {Param(text_datum(name)), Param(Int64GetDatum(t.handled)), Param(Int64GetDatum(t.failed)),
                   Param(Int64GetDatum(t.died)), Param(array_of(t.handle_times)), Param(array_of(t.wait_times))});
  return insert_rows(Extension::get().relation("mq_stats_deltas"), kColumns, values);
}

void insert(const ByChannel& totals) {
  if (insert_straight(totals)) return;
  static Statement insert(
      "INSERT INTO $S.mq_stats_deltas (" COLUMNS
      ") SELECT t.name, t.handled, t.failed, t.died, ($5)[t.h1:t.h2], ($8)[t.w1:t.w2]"
      "   FROM unnest($1, $2, $3, $4, $6, $7, $9, $10) AS t (name, handled, failed, died, h1, h2, w1, w2)",
      {TEXTARRAYOID, INT8ARRAYOID, INT8ARRAYOID, INT8ARRAYOID, INT8ARRAYOID, INT4ARRAYOID, INT4ARRAYOID, INT8ARRAYOID,
       INT4ARRAYOID, INT4ARRAYOID});
  ArrayParam names(TEXTOID), handled(INT8OID), failed(INT8OID), died(INT8OID);
  HistogramParams handle_times, wait_times;
  for (const auto& [name, t] : totals) {
    names.add(text_datum(name));
    handled.add(Int64GetDatum(t.handled));
    failed.add(Int64GetDatum(t.failed));
    died.add(Int64GetDatum(t.died));
    handle_times.add(t.handle_times);
    wait_times.add(t.wait_times);
  }
  insert.run({names.datum(), handled.datum(), failed.datum(), died.datum(), handle_times.values.datum(),
              handle_times.first.datum(), handle_times.last.datum(), wait_times.values.datum(),
              wait_times.first.datum(), wait_times.last.datum()});
}

// Adds to the channel name's row in mq_stats_totals, or inserts another row if a session has locked that.
// Merges several rows into the first; removes rows whose sum is empty.
void roll_up_channel(std::string_view name, Totals& totals) {
  static Statement find("SELECT " COLUMNS
                        ", t.ctid FROM $S.mq_stats_totals t WHERE t.channel_name = $1 FOR UPDATE SKIP LOCKED",
                        {TEXTOID});
  static Statement remove("DELETE FROM $S.mq_stats_totals t WHERE t.ctid = ANY ($1)", {TIDARRAYOID});
  static Statement update(
      "UPDATE $S.mq_stats_totals t SET handled = $2, failed = $3, died = $4, handle_times = $5, wait_times = $6"
      "  WHERE t.ctid = $1",
      {TIDOID, INT8OID, INT8OID, INT8OID, INT8ARRAYOID, INT8ARRAYOID});
  static Statement insert("INSERT INTO $S.mq_stats_totals (" COLUMNS ") VALUES ($1, $2, $3, $4, $5, $6)",
                          {TEXTOID, INT8OID, INT8OID, INT8OID, INT8ARRAYOID, INT8ARRAYOID});
  const Datum channel = text_datum(name);
  const Rows rows = find.run({channel});
  ArrayParam others(TIDOID);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    add_row(rows, i, totals);
    if (i > 0) others.add(rows.get(i, kLocation));
  }
  const auto row = [&](Datum key, Statement& statement) {
    statement.run({key, Int64GetDatum(totals.handled), Int64GetDatum(totals.failed), Int64GetDatum(totals.died),
                   array_of(totals.handle_times), array_of(totals.wait_times)});
  };
  if (rows.empty()) {
    if (!totals.empty()) row(channel, insert);
    return;
  }
  if (totals.empty())
    others.add(rows.get(0, kLocation));
  else
    row(rows.get(0, kLocation), update);
  if (rows.size() > 1 || totals.empty()) remove.run({others.datum()});
}

}  // namespace

void Totals::merge(const Totals& other, int sign) {
  handled += sign * other.handled;
  failed += sign * other.failed;
  died += sign * other.died;
  handle_times.merge(other.handle_times, sign);
  wait_times.merge(other.wait_times, sign);
}

bool Totals::empty() const {
  return handled == 0 && failed == 0 && died == 0 && handle_times.empty() && wait_times.empty();
}

void append(const ByChannel& totals) {
  if (totals.empty()) return;
  insert(totals);
  // So the number of deltas is bounded where no worker sweeps.
  if (ServerClock().random() < static_cast<double>(totals.size()) / kRollUpOdds) roll_up();
}

ByChannel read() {
  static Statement select(
      "SELECT " COLUMNS " FROM $S.mq_stats_totals UNION ALL SELECT " COLUMNS " FROM $S.mq_stats_deltas", {});
  return by_channel(select.run({}));
}

void reset() {
  locks::lock_reset();  // two resets at once would cancel the same sum twice
  ByChannel cancelling;
  for (const auto& [name, totals] : read())
    if (!totals.empty()) cancelling[name].merge(totals, -1);
  if (!cancelling.empty()) insert(cancelling);
}

void roll_up() {
  static Statement take(
      "DELETE FROM $S.mq_stats_deltas t WHERE t.ctid = ANY (ARRAY(SELECT l.ctid FROM $S.mq_stats_deltas l LIMIT $1 FOR "
      "UPDATE SKIP "
      "LOCKED)) RETURNING " COLUMNS,
      {INT8OID});
  // In these isolation levels a row that was changed since the snapshot would be an error.
  if (IsolationUsesXactSnapshot()) return;
  // A settling worker must not wait for a table that only the statistics need.
  if (!locks::try_table(Extension::get().relation("mq_stats_totals"), RowExclusiveLock)) return;
  // Histograms may be TOASTed, and are detoasted after their statement has ended, which takes a
  // snapshot. After an error the rollback pops it.
  guard::call([] { PushActiveSnapshot(GetTransactionSnapshot()); });
  ByChannel taken = by_channel(take.run({Int64GetDatum(kRollUp)}));
  for (auto& [name, totals] : taken) roll_up_channel(name, totals);
  PopActiveSnapshot();
}

}  // namespace mq::stats
