// Fuzz targets of schedules: cron lines, and times in zones whose clocks are set forward and back.
#include "schedules.hpp"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "bytes.hpp"
#include "pg/error.hpp"
#include "queue/cron_line.hpp"
#include "queue/wall_clock.hpp"

namespace mq::fuzz {

namespace {

constexpr Seconds kDay = 86'400;
constexpr Seconds kYear = 366 * kDay;

bool has(std::uint64_t set, std::int64_t value) {
  return (set >> value & 1) != 0;
}

void check_sets(const CronLine& line) {
  HOLDS(line.minutes != 0 && line.minutes >> 60 == 0);
  HOLDS(line.hours != 0 && line.hours >> 24 == 0);
  HOLDS(line.days != 0 && line.days >> 32 == 0 && !has(line.days, 0));
  HOLDS(line.months != 0 && line.months >> 13 == 0 && !has(line.months, 0));
  HOLDS(line.weekdays != 0 && line.weekdays >> 7 == 0);
}

// A clock that is set a few times, by up to three hours.
struct Clock {
  explicit Clock(Bytes& bytes) {
    Seconds at = 0;
    for (std::size_t i = 0; i < until.size(); ++i) {
      offset[i] = (bytes.below(28) - 14) * Seconds{1800} + (bytes.below(3) == 3 ? 17 * 60 : 0);
      at += kDay + bytes.number(2) * Seconds{600} % (200 * kDay) + 100 * kDay;
      until[i] = at;
    }
  }

  ZoneSpan operator()(Seconds at) const {
    for (std::size_t i = 0; i < until.size(); ++i)
      if (at < until[i]) return {offset[i], until[i]};
    return {offset.front(), kForever};
  }

  std::array<Seconds, 4> offset{};
  std::array<Seconds, 4> until{};
};

}  // namespace

void cron_line(std::span<const std::uint8_t> given) {
  Bytes bytes(given);
  const Seconds from = bytes.number(4);
  const std::string text(bytes.rest());
  (void)kind_of_schedule(text);
  CronLine line;
  try {
    line = parse_cron_line(text);
  } catch (const Error& error) {
    HOLDS(error.sqlstate == "22023");
    HOLDS(!error.message.empty());
    return;
  }
  check_sets(line);
  const auto first = first_minute(line, from, from + 40 * kYear);
  if (!first) return;
  HOLDS(*first >= from && *first < from + 40 * kYear && *first % 60 == 0);
  const Seconds in_day = ((*first % kDay) + kDay) % kDay;
  HOLDS(has(line.minutes, in_day / 60 % 60));
  HOLDS(has(line.hours, in_day / 3600));
  HOLDS(first_minute(line, *first, *first + 60) == first);
  if (*first > from) HOLDS(!first_minute(line, from, *first));
}

void wall_clock(std::span<const std::uint8_t> given) {
  Bytes bytes(given);
  const Clock clock(bytes);
  const Zone zone = clock;
  const Seconds after = bytes.number(4);
  std::function<std::optional<Seconds>(Seconds)> next;
  CronLine line;
  Period period;
  if (bytes.below(1) == 0) {
    try {
      line = parse_cron_line(bytes.rest());
    } catch (const Error&) {
      return;
    }
    next = [&](Seconds at) { return next_time(line, zone, at); };
  } else {
    period.months = static_cast<int>(bytes.number(2) & 0xfff);
    period.days = static_cast<int>(bytes.number(2) & 0xfff);
    period.seconds = bytes.number(4) & 0x7fffffff;
    if (period.months == 0 && period.days == 0 && period.seconds == 0) return;
    const Seconds anchor = bytes.number(4);
    next = [&, anchor](Seconds at) { return next_time(period, anchor, zone, at); };
  }
  Seconds at = after;
  for (int i = 0; i < 4; ++i) {
    const auto time = next(at);
    if (!time) return;
    HOLDS(*time > at);
    // There is none between: a question from the middle has the same answer.
    HOLDS(next(at + (*time - at) / 2) == time);
    HOLDS(last_time(next, at + 1, *time) == time);
    at = *time;
  }
}

}  // namespace mq::fuzz
