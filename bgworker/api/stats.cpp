// mq_stats: what the queue holds and has done, by channel name; and hooks that watch mq's tables.
//
// mq_stats, mq_health() and users call the SQL functions through mq.c, whose hooks call the rest.
// The file owns no state: totals and counts come from stats/.

#include <map>
#include <optional>
#include <string>

#include "entries.h"
#include "pg/arguments.hpp"
#include "pg/extension.hpp"
#include "pg/result_set.hpp"
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

}  // namespace

}  // namespace mq

extern "C" Datum mq_channel_stats_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::ResultSet result(fcinfo);
    mq::show_stats(result);
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
