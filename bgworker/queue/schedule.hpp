// Schedules: a text, a time zone and an anchor as the times that they mean. mq_schedule, mq_next_times and
// the timetable make one for a call. No state but the server's cache of time zones.
#pragma once

#include <optional>
#include <string_view>
#include <variant>

#include "pg/types.hpp"
#include "queue/wall_clock.hpp"

namespace mq {

class Schedule {
 public:
  // `anchor` counts for intervals only. Throws 22023 that names `schedule`, a field of it, or `time_zone`.
  Schedule(std::string_view text, std::string_view time_zone, Micros anchor);

  // No time is behind it.
  static Micros last_moment();

  // The first time after `after`; kNever: there is none.
  Micros next(Micros after) const;
  // The last time from `from` to `until`; none: there is none.
  std::optional<Micros> last(Micros from, Micros until) const;

 private:
  std::optional<Seconds> next_second(Seconds after) const;

  std::variant<CronLine, Period> times_;
  Zone zone_;
  Seconds anchor_;
};

}  // namespace mq
