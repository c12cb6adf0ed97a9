#include "queue/schedule.hpp"

#include <string>

#include "pg/error.hpp"
#include "pg/format.hpp"
#include "pg/guard.hpp"
#include "pg/validate.hpp"

extern "C" {
#include "pgtime.h"
#include "utils/fmgrprotos.h"
}

namespace mq {

namespace {

constexpr Seconds kEpoch = (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * Seconds{SECS_PER_DAY};
constexpr std::size_t kScheduleBytes = 1024;
constexpr const char* kField = "schedule";

Seconds seconds_of(Micros at) {
  const Micros rest = at % kSecond;
  return (at - (rest < 0 ? rest + kSecond : rest)) / kSecond + kEpoch;
}

Micros micros_of(Seconds at) {
  return (at - kEpoch) * kSecond;
}

Zone zone_of(std::string_view name) {
  const std::string copy(name);
  const char* text = copy.c_str();
  // A name with a zero byte cannot come: text has none.
  pg_tz* zone = guard::call([&]() -> pg_tz* {
    pg_tz* found = strlen(text) <= TZ_STRLEN_MAX ? pg_tzset(text) : nullptr;
    return found != nullptr && pg_tz_acceptable(found) ? found : nullptr;
  });
  if (zone == nullptr)
    check::fail("time_zone", name, "must be a time zone that the server knows, see pg_timezone_names");
  return [zone](Seconds at) -> ZoneSpan {
    const pg_time_t when = at;
    long before = 0;
    long after = 0;
    int before_is_dst = 0;
    int after_is_dst = 0;
    pg_time_t boundary = 0;
    const int found = pg_next_dst_boundary(&when, &before, &before_is_dst, &boundary, &after, &after_is_dst, zone);
    return {before, found > 0 ? Seconds{boundary} : kForever};
  };
}

Period period_of(std::string_view text) {
  const std::string copy(text);
  const char* given = copy.c_str();
  Interval interval{};
  try {
    interval = guard::call([&] {
      return *DatumGetIntervalP(
          DirectFunctionCall3(interval_in, CStringGetDatum(given), ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
    });
  } catch (const Error& error) {
    if (!error.sqlstate.starts_with("22")) throw;
    check::fail(kField, text,
                "must be a cron line of five fields, one of @yearly, @monthly, @weekly, @daily and @hourly, or an "
                "interval such as 30 seconds");
  }
  constexpr int kMostMonths = 1200;
  constexpr int kMostDays = 36'500;
  if (interval.month < 0 || interval.day < 0 || interval.time < 0) check::fail(kField, text, "must not be negative");
  if (interval.month > kMostMonths || interval.day > kMostDays || interval.time > Micros{kMostDays} * 86'400 * kSecond)
    check::fail(kField, text, mq::format("must not be longer than {} days", kMostDays));
  if (interval.time % kSecond != 0) check::fail(kField, text, "must be a whole number of seconds");
  if (interval.month == 0 && interval.day == 0 && interval.time == 0)
    check::fail(kField, text, "must be at least 1 second");
  return {interval.month, interval.day, interval.time / kSecond};
}

std::variant<CronLine, Period> times_of(std::string_view text) {
  check::name(kField, text, kScheduleBytes);
  if (kind_of_schedule(text) == ScheduleKind::kCron) return parse_cron_line(text);
  return period_of(text);
}

}  // namespace

Schedule::Schedule(std::string_view text, std::string_view time_zone, Micros anchor)
    : times_(times_of(text)), zone_(zone_of(time_zone)), anchor_(seconds_of(anchor)) {}

Micros Schedule::last_moment() {
  return micros_of(kLastTime);
}

std::optional<Seconds> Schedule::next_second(Seconds after) const {
  if (const auto* line = std::get_if<CronLine>(&times_)) return next_time(*line, zone_, after);
  return next_time(std::get<Period>(times_), anchor_, zone_, after);
}

Micros Schedule::next(Micros after) const {
  const std::optional<Seconds> at = next_second(seconds_of(after));
  return at ? micros_of(*at) : kNever;
}

std::optional<Micros> Schedule::last(Micros from, Micros until) const {
  // `from` may lie within a second, but is a time as a rule.
  const auto at = last_time([this](Seconds after) { return next_second(after); }, seconds_of(from), seconds_of(until));
  return at ? std::optional(micros_of(*at)) : std::nullopt;
}

}  // namespace mq
