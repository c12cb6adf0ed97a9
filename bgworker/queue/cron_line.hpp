// Cron lines: parses the five fields of one, or a word such as @daily, into sets of values, and says
// which minutes they mean. mq_schedule and the worker's look at the timetable use them. Pure; no state.
//
// The fields are those of Vixie cron (crontab(5)): minute, hour, day of month, month, day of week, with
// lists, ranges, steps and names. Where both day fields are restricted (neither begins with *), a day is
// meant that one of them has; else it is one that both have.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "pg/types.hpp"

namespace mq {

// Since 1970-01-01 00:00. Of an instant: UTC. Of a wall clock: what it shows, as if that were UTC.
using Seconds = std::int64_t;

struct CronLine {
  // Bit n stands for the value n; weekdays begin with Sunday, 0.
  std::uint64_t minutes = 0, hours = 0, days = 0, months = 0, weekdays = 0;
  bool either_day = false;  // one of the two day fields is enough

  // Every hour of the day: such a line follows the time that passes, any other one the wall clock.
  bool is_hourly() const { return hours == (std::uint64_t{1} << 24) - 1; }
};

// What a text is that somebody gives as a schedule.
enum class ScheduleKind { kCron, kPeriod };
ScheduleKind kind_of_schedule(std::string_view text);

// Throws 22023 that names the field, its value and the rule; also for days that never come.
CronLine parse_cron_line(std::string_view text);

// The first minute of the line, as the wall clock shows it, from `from` on and before `before`.
std::optional<Seconds> first_minute(const CronLine& line, Seconds from, Seconds before);

}  // namespace mq
