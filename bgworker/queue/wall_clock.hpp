// Wall clock: when a schedule's next time is, in a zone whose clocks are set forward and back. Pure; no
// state. The zone is told by a function, in the server by its own time zone data (time_zone.hpp).
//
//   A line of every hour (CronLine::is_hourly())   follows the time that passes: all minutes of it that the
//                                                  clock shows, those of a repeated hour twice
//   any other line                                 follows the clock: a time that is skipped comes at the
//                                                  moment after the gap, several of them once; a time that
//                                                  the clock shows twice comes the first time only
//   a period                                       months and days by the clock, as for such a line; the
//                                                  rest as time that passes. Counted from its anchor
#pragma once

#include <functional>
#include <optional>

#include "queue/cron_line.hpp"

namespace mq {

// For some time the clocks of a zone are `offset` seconds ahead of UTC, until `until`.
struct ZoneSpan {
  Seconds offset;
  Seconds until;
};
inline constexpr Seconds kForever = INT64_MAX;
using Zone = std::function<ZoneSpan(Seconds at)>;  // the span that an instant is in

// None of the numbers is below 0, and not all are 0.
struct Period {
  int months = 0;
  int days = 0;
  Seconds seconds = 0;
};

// The year 32000. The calendar of the C++ library ends in 32767, and a period is a century at most.
inline constexpr Seconds kLastTime = 947'655'244'800;

// The first time after `after`. None: there is none in the next sixty years, or before kLastTime.
std::optional<Seconds> next_time(const CronLine& line, const Zone& zone, Seconds after);
// The same of a period; its times are the anchor plus once, twice, … the period. None from kLastTime on.
std::optional<Seconds> next_time(const Period& period, Seconds anchor, const Zone& zone, Seconds after);

// The last time from `from` to `until`, given what next_time() says of a moment; none: there is none.
std::optional<Seconds> last_time(const std::function<std::optional<Seconds>(Seconds after)>& next, Seconds from,
                                 Seconds until);

}  // namespace mq
