// mq_stats and mq_histogram: what the queue holds and has done, by channel name; and hooks that watch mq's
// tables.
//
// mq_stats, mq_metrics, mq_histogram, mq_health() and users call the SQL functions through mq.c, whose hooks
// call the rest.
// The file owns no state: totals and counts come from stats/.

#include <limits>
#include <map>
#include <optional>
#include <string>

#include "entries.h"
#include "pg/arguments.hpp"
#include "pg/extension.hpp"
#include "pg/result_set.hpp"
#include "pg/settings.h"
#include "pg/statement.hpp"
#include "queue/commit_actions.hpp"
#include "stats/channel_counts.hpp"
#include "stats/totals.hpp"

namespace mq {

namespace {

struct ChannelStats {
  channel_counts::Channel pending;
  std::int64_t dead = 0;
  bool paused = false;
  stats::Totals totals;
};

Param interval_or_null(const std::optional<Micros>& micros) {
  return micros ? Param(interval_datum(*micros)) : Param();
}

void show_stats(ResultSet& result) {
  static Statement channels(
      "SELECT DISTINCT h.channel_name, false FROM $S.mq_handlers h"
      " UNION ALL SELECT p.channel_name, true FROM $S.mq_paused p",
      {});
  const Micros now = GetCurrentTimestamp();
  std::map<std::string, ChannelStats, std::less<>> all;
  {
    const OwnerScope scope;
    const SpiConnection spi;
    const bool cached = !commit_actions::has_changed();
    const Rows rows = channels.run({});
    for (std::size_t i = 0; i < rows.size(); ++i) {
      ChannelStats& stats = all[std::string(text_view(rows.get(i, 1)))];
      stats.paused = stats.paused || DatumGetBool(rows.get(i, 2));
    }
    for (auto& [name, totals] : stats::read())
      if (!totals.empty()) all[name].totals = std::move(totals);
    for (const auto& [name, dead] : channel_counts::count_dead(cached)) all[name].dead = dead;
    for (const auto& [name, pending] : channel_counts::count(now, cached)) all[name].pending = pending;
  }
  for (const auto& [name, s] : all) {
    std::optional<Micros> oldest;
    if (s.pending.oldest_ready) oldest = now - *s.pending.oldest_ready;
    const Histogram& handle = s.totals.handle_times;
    const Histogram& wait = s.totals.wait_times;
    result.add({text_datum(name), Int64GetDatum(s.pending.ready), Int64GetDatum(s.pending.scheduled),
                Int64GetDatum(s.pending.running), Int64GetDatum(s.dead), BoolGetDatum(s.paused),
                interval_or_null(oldest), Int64GetDatum(s.totals.handled), Int64GetDatum(s.totals.failed),
                Int64GetDatum(s.totals.died), interval_or_null(handle.quantile(0.5)),
                interval_or_null(handle.quantile(0.95)), interval_or_null(handle.quantile(0.99)),
                interval_or_null(wait.quantile(0.5)), interval_or_null(wait.quantile(0.95)),
                interval_or_null(wait.quantile(0.99))});
  }
}

// The bounds of the buckets: 2 to the power of each, in µs. Each begins a step of the histograms, so the counts are
// exact. From a millisecond to four seconds each is twice the one before, beyond that four times.
constexpr int kBounds[] = {6, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 24, 26, 28, 30, 32, 34, 36};

double seconds(double micros) {
  return micros / static_cast<double>(kSecond);
}

void show_histogram(ResultSet& result, const Param& name, const char* kind, const Histogram& histogram) {
  const std::int64_t all = histogram.count();
  if (all == 0) return;
  const Datum sum = Float8GetDatum(seconds(histogram.sum()));
  for (const int power : kBounds) {
    const Micros bound = Micros{1} << power;
    result.add({name, text_datum(kind), Float8GetDatum(seconds(static_cast<double>(bound))),
                Int64GetDatum(histogram.shorter_than(bound)), sum});
  }
  result.add(
      {name, text_datum(kind), Float8GetDatum(std::numeric_limits<double>::infinity()), Int64GetDatum(all), sum});
}

void show_histograms(ResultSet& result) {
  stats::ByChannel all;
  {
    const OwnerScope scope;
    const SpiConnection spi;
    all = stats::read();
  }
  int names = 0;
  stats::Totals others;
  for (const auto& [name, totals] : all) {
    if (totals.empty()) continue;
    if (++names > mq_metrics_channels) {
      others.merge(totals);
      continue;
    }
    show_histogram(result, text_datum(name), "handle", totals.handle_times);
    show_histogram(result, text_datum(name), "wait", totals.wait_times);
  }
  show_histogram(result, Param(), "handle", others.handle_times);
  show_histogram(result, Param(), "wait", others.wait_times);
}

}  // namespace

}  // namespace mq

extern "C" Datum mq_channel_stats_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::ResultSet result(fcinfo);
    mq::show_stats(result);
    return Datum{0};
  });
}

extern "C" Datum mq_channel_histograms_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::ResultSet result(fcinfo);
    mq::show_histograms(result);
    return Datum{0};
  });
}

extern "C" Datum mq_reset_stats_entry(FunctionCallInfo) {
  return mq::guard::entry([] {
    mq::refuse_read_only("mq_reset_stats()");
    const mq::OwnerScope scope;
    const mq::SpiConnection spi;
    mq::stats::reset();
    return Datum{0};
  });
}

// For the hooks in mq.c; entries.h says what they return.

extern "C" bool mq_is_own_statement(void) {
  return mq::Statement::take_start();
}

extern "C" bool mq_watches_table(const char* name) {
  return strcmp(name, "mq_msgs") == 0 || strcmp(name, "mq_dead") == 0 || strcmp(name, "mq_channel_limits") == 0;
}

extern "C" void mq_table_changed(Oid relation) {
  if (!OidIsValid(relation)) return;
  mq::guard::callback([&] {
    if (mq::Extension::installed() && relation == mq::Extension::limits())
      mq::Extension::limits_changed();
    else
      mq::commit_actions::changed_by_hand(relation);
  });
}
