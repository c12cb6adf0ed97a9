#include "tally.hpp"

#include <vector>

#include "extension.hpp"
#include "fence.hpp"
#include "host.hpp"
#include "locks.hpp"
#include "spi.hpp"

extern "C" {
#include "access/xact.h"
#include "utils/array.h"
#include "utils/snapmgr.h"
}

namespace mq::tally {

namespace {

constexpr int kFold = 10'000;      // rows that a fold takes at most
constexpr double kFoldOdds = 500;  // rows appended for each fold, on average

#define COLUMNS "channel_name, handled, failed, died, handle_times, wait_times"
enum Column { kChannelName = 1, kHandled, kFailed, kDied, kHandleTimes, kWaitTimes, kLocation };

void merge_stored(Histogram& histogram, Datum array) {
  struct Elements {
    const std::int64_t* values;
    std::size_t count;
  };
  const Elements elements = fence::call([&] {
    ArrayType* a = DatumGetArrayTypeP(array);
    // Somebody may have written NULLs or another shape by hand.
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

// Of all channels in one array, and for each where its part begins and ends: SQL has no arrays of arrays.
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

// Of one channel.
Datum array_of(const Histogram& histogram) {
  ArrayParam array(INT8OID);
  for (const std::int64_t value : histogram.stored()) array.add(Int64GetDatum(value));
  return array.datum();
}

void insert(const ByChannel& totals) {
  static Statement insert(
      "INSERT INTO $S.mq_tally (" COLUMNS
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

// Adds to the channel's row in mq_totals; to a new one where somebody holds that.
void fold_channel(std::string_view name, Totals& totals) {
  static Statement find(
      "SELECT " COLUMNS ", t.ctid FROM $S.mq_totals t WHERE t.channel_name = $1 FOR UPDATE SKIP LOCKED", {TEXTOID});
  static Statement remove("DELETE FROM $S.mq_totals t WHERE t.ctid = ANY ($1)", {TIDARRAYOID});
  static Statement update(
      "UPDATE $S.mq_totals t SET handled = $2, failed = $3, died = $4, handle_times = $5, wait_times = $6"
      "  WHERE t.ctid = $1",
      {TIDOID, INT8OID, INT8OID, INT8OID, INT8ARRAYOID, INT8ARRAYOID});
  static Statement insert("INSERT INTO $S.mq_totals (" COLUMNS ") VALUES ($1, $2, $3, $4, $5, $6)",
                          {TEXTOID, INT8OID, INT8OID, INT8OID, INT8ARRAYOID, INT8ARRAYOID});
  const Datum channel = text_datum(name);
  const Rows rows = find.run({channel});
  ArrayParam others(TIDOID);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    add_row(rows, i, totals);
    if (i > 0 || totals.empty()) others.add(rows.get(i, kLocation));
  }
  const auto row = [&](Datum key, Statement& statement) {
    statement.run({key, Int64GetDatum(totals.handled), Int64GetDatum(totals.failed), Int64GetDatum(totals.died),
                   array_of(totals.handle_times), array_of(totals.wait_times)});
  };
  if (rows.empty()) {
    if (!totals.empty()) row(channel, insert);
    return;
  }
  if (!totals.empty()) row(rows.get(0, kLocation), update);
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

ByChannel of(const Settlement& settlement) {
  ByChannel result;
  auto last = result.end();
  const auto at = [&](const Claimed* message) -> Totals& {
    if (last == result.end() || last->first != message->channel_name) {
      last = result.find(message->channel_name);
      if (last == result.end()) last = result.emplace(message->channel_name, Totals()).first;
    }
    return last->second;
  };
  for (const Handling& h : settlement.handled) {
    Totals& totals = at(h.message);
    ++totals.handled;
    totals.handle_times.add(h.took);
    totals.wait_times.add(h.waited);
  }
  for (const Failure& failure : settlement.failures) ++at(failure.message).failed;
  for (const Burial& burial : settlement.burials) ++at(burial.message).died;
  return result;
}

void append(const ByChannel& totals) {
  if (totals.empty()) return;
  insert(totals);
  // Rows that are appended pay for their folding.
  if (ServerClock().dice() < static_cast<double>(totals.size()) / kFoldOdds) fold();
}

ByChannel read() {
  static Statement select("SELECT " COLUMNS " FROM $S.mq_totals UNION ALL SELECT " COLUMNS " FROM $S.mq_tally", {});
  return by_channel(select.run({}));
}

void reset() {
  locks::lock_reset();  // two at once would cancel the same sum twice
  ByChannel cancelling;
  for (const auto& [name, totals] : read())
    if (!totals.empty()) cancelling[name].merge(totals, -1);
  if (!cancelling.empty()) insert(cancelling);
}

void fold() {
  static Statement take(
      "DELETE FROM $S.mq_tally t WHERE t.ctid = ANY (ARRAY(SELECT l.ctid FROM $S.mq_tally l LIMIT $1 FOR UPDATE SKIP "
      "LOCKED)) RETURNING " COLUMNS,
      {INT8OID});
  if (IsolationUsesXactSnapshot()) return;  // a row that somebody has changed since would be an error
  // Who settles must not wait for a table that is only for this.
  if (!locks::try_table(Extension::get().relation("mq_totals"), RowExclusiveLock)) return;
  // Histograms may be out of line, and are read after their statement. An error leaves it to the rollback.
  fence::call([] { PushActiveSnapshot(GetTransactionSnapshot()); });
  ByChannel taken = by_channel(take.run({Int64GetDatum(kFold)}));
  for (auto& [name, totals] : taken) fold_channel(name, totals);
  PopActiveSnapshot();
}

}  // namespace mq::tally
