#include "queue/wall_clock.hpp"

#include <algorithm>
#include <chrono>

namespace mq {

namespace {

constexpr Seconds kHour = 3600;
constexpr Seconds kDay = 24 * kHour;
// Clocks have been set back by a day at most. So what a change repeats that is longer ago is over.
constexpr Seconds kLookBack = 26 * kHour;
// 29 February is on one weekday every 28 years, around 2100 after 40.
constexpr Seconds kHorizon = 60 * 366 * kDay;

}  // namespace

std::optional<Seconds> next_time(const CronLine& line, const Zone& zone, Seconds after) {
  Seconds start = after - kLookBack;
  const Seconds end = std::min(after + kHorizon, kLastTime);
  std::optional<Seconds> shown;  // the clock has shown all times before this one
  while (start < end) {
    const ZoneSpan span = zone(start);
    const Seconds until = std::min(span.until, end);
    const Seconds begins = start + span.offset;
    Seconds from = begins;
    if (shown && !line.is_hourly()) {
      if (begins > *shown && start > after && first_minute(line, *shown, begins)) return start;
      from = std::max(from, *shown);
    }
    from = std::max(from, after + 1 + span.offset);
    if (const auto minute = first_minute(line, from, until + span.offset)) return *minute - span.offset;
    shown = std::max(shown.value_or(begins), until + span.offset);
    start = until;
  }
  return std::nullopt;
}

namespace {

// When the clock of the zone first shows `wall`, or, if it skips that, the moment after the gap.
Seconds instant_of(Seconds wall, const Zone& zone) {
  Seconds start = wall - 2 * kDay;
  for (;;) {
    const ZoneSpan span = zone(start);
    if (span.until == kForever || wall < span.until + span.offset) return std::max(start, wall - span.offset);
    start = span.until;
  }
}

Seconds plus_months(Seconds wall, std::int64_t count) {
  using std::chrono::days, std::chrono::months, std::chrono::sys_days, std::chrono::year_month_day;
  const auto day = std::chrono::floor<days>(std::chrono::sys_seconds{std::chrono::seconds{wall}});
  const Seconds of_day = wall - day.time_since_epoch().count() * kDay;
  year_month_day date = year_month_day{day} + months{count};
  if (!date.ok()) date = date.year() / date.month() / std::chrono::last;
  return sys_days{date}.time_since_epoch().count() * kDay + of_day;
}

}  // namespace

std::optional<Seconds> next_time(const Period& period, Seconds anchor, const Zone& zone, Seconds after) {
  if (std::max(anchor, after) >= kLastTime) return std::nullopt;
  const Seconds past = std::max<Seconds>(0, after - anchor);
  if (period.months == 0 && period.days == 0) return anchor + (past / period.seconds + 1) * period.seconds;
  const Seconds wall = anchor + zone(anchor).offset;
  const auto time = [&](std::int64_t n) {
    return instant_of(plus_months(wall, n * period.months) + n * period.days * kDay, zone) + n * period.seconds;
  };
  // No month is longer than this, and no clock is set by more than two days.
  const Seconds longest = period.months * 31 * kDay + period.days * kDay + period.seconds;
  std::int64_t n = std::max<std::int64_t>(1, (past - 2 * kDay) / longest);
  while (time(n) <= after) ++n;
  return time(n);
}

std::optional<Seconds> last_time(const std::function<std::optional<Seconds>(Seconds after)>& next, Seconds from,
                                 Seconds until) {
  // Near the end first: a schedule of every second may have had millions of times.
  Seconds start = from - 1;
  for (const Seconds back : {Seconds{60}, kHour, kDay, 31 * kDay, 366 * kDay}) {
    if (until - back <= start) break;
    const std::optional<Seconds> found = next(until - back);
    if (found && *found <= until) {
      start = until - back;
      break;
    }
  }
  std::optional<Seconds> last;
  for (std::optional<Seconds> at = next(start); at && *at <= until; at = next(*at)) last = at;
  return last;
}

}  // namespace mq
