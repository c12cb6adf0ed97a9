#include "queue/wall_clock.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "wall_times.hpp"

namespace mq {

namespace {

using Times = std::vector<std::string>;

// A zone that is so many minutes ahead of UTC, and from given instants on by other minutes.
Zone zone_of(int minutes, std::vector<std::pair<std::string, int>> changes) {
  return [=](Seconds at) {
    ZoneSpan span{minutes * 60, kForever};
    for (const auto& [from, ahead] : changes) {
      if (at < seconds_at(from)) {
        span.until = seconds_at(from);
        break;
      }
      span.offset = ahead * 60;
    }
    return span;
  };
}

const Zone& utc() {
  static const Zone zone = zone_of(0, {});
  return zone;
}
// Clocks are set forward at 02:00 on 28 March 2027, back at 03:00 on 31 October.
const Zone& berlin() {
  static const Zone zone =
      zone_of(60, {{"2027-03-28 01:00", 120}, {"2027-10-31 01:00", 60}, {"2028-03-26 01:00", 120}});
  return zone;
}
// By half an hour, at 02:00 on 3 October 2027 and 4 April.
const Zone& lord_howe() {
  static const Zone zone = zone_of(660, {{"2027-04-03 15:00", 630}, {"2027-10-02 15:30", 660}});
  return zone;
}

Times times_of(const char* line, const Zone& zone, const char* after, int count) {
  const CronLine parsed = parse_cron_line(line);
  Times times;
  Seconds at = seconds_at(after);
  for (int i = 0; i < count; ++i) {
    const auto next = next_time(parsed, zone, at);
    if (!next) break;
    times.push_back(shown(at = *next));
  }
  return times;
}

Times times_of(const Period& period, const char* anchor, const Zone& zone, const char* after, int count) {
  Times times;
  Seconds at = seconds_at(after);
  for (int i = 0; i < count; ++i) times.push_back(shown(at = *next_time(period, seconds_at(anchor), zone, at)));
  return times;
}

}  // namespace

TEST(WallClock, ADailyTimeFollowsTheClock) {
  EXPECT_EQ(times_of("0 9 * * *", berlin(), "2027-03-26 12:00", 3),
            (Times{"2027-03-27 08:00", "2027-03-28 07:00", "2027-03-29 07:00"}));
  EXPECT_EQ(times_of("0 9 * * *", berlin(), "2027-10-29 12:00", 3),
            (Times{"2027-10-30 07:00", "2027-10-31 08:00", "2027-11-01 08:00"}));
}

TEST(WallClock, ASkippedTimeComesRightAfterTheGap) {
  // 02:30 is skipped; the gap ends at 03:00, which is 01:00 UTC.
  EXPECT_EQ(times_of("30 2 * * *", berlin(), "2027-03-27 12:00", 2), (Times{"2027-03-28 01:00", "2027-03-29 00:30"}));
  // Several in the gap, and one at its end, come once.
  EXPECT_EQ(times_of("0,20,40 2,3 * * *", berlin(), "2027-03-27 12:00", 4),
            (Times{"2027-03-28 01:00", "2027-03-28 01:20", "2027-03-28 01:40", "2027-03-29 00:00"}));
  EXPECT_EQ(times_of("* 2 * * *", berlin(), "2027-03-27 12:00", 2), (Times{"2027-03-28 01:00", "2027-03-29 00:00"}));
  // A line of another day skips nothing.
  EXPECT_EQ(times_of("30 2 29 * *", berlin(), "2027-03-27 12:00", 1), (Times{"2027-03-29 00:30"}));
}

TEST(WallClock, ATimeThatComesTwiceIsTheFirst) {
  EXPECT_EQ(times_of("30 2 * * *", berlin(), "2027-10-30 12:00", 2), (Times{"2027-10-31 00:30", "2027-11-01 01:30"}));
  EXPECT_EQ(times_of("*/20 2 * * *", berlin(), "2027-10-30 12:00", 4),
            (Times{"2027-10-31 00:00", "2027-10-31 00:20", "2027-10-31 00:40", "2027-11-01 01:00"}));
  // Asked in the repeated hour, too.
  EXPECT_EQ(times_of("30 2 * * *", berlin(), "2027-10-31 01:10", 1), (Times{"2027-11-01 01:30"}));
  EXPECT_EQ(times_of("30 2,3 * * *", berlin(), "2027-10-31 00:30", 1), (Times{"2027-10-31 02:30"}));
}

TEST(WallClock, ALineOfEveryHourFollowsTheTimeThatPasses) {
  EXPECT_EQ(times_of("30 * * * *", berlin(), "2027-03-28 00:00", 3),
            (Times{"2027-03-28 00:30", "2027-03-28 01:30", "2027-03-28 02:30"}));
  EXPECT_EQ(times_of("30 * * * *", berlin(), "2027-10-31 00:00", 4),
            (Times{"2027-10-31 00:30", "2027-10-31 01:30", "2027-10-31 02:30", "2027-10-31 03:30"}));
  EXPECT_EQ(times_of("*/30 * * * *", berlin(), "2027-10-31 00:15", 3),
            (Times{"2027-10-31 00:30", "2027-10-31 01:00", "2027-10-31 01:30"}));
}

TEST(WallClock, EveryOtherHourComesTwelveTimesADay) {
  for (const char* day : {"2027-03-27 23:00", "2027-10-30 22:00"}) {  // midnight in Berlin
    const Seconds begins = seconds_at(day);
    const Seconds ends = begins + (day[6] == '3' ? 23 : 25) * 3600;
    const CronLine line = parse_cron_line("15 */2 * * *");
    int times = 0;
    for (auto at = next_time(line, berlin(), begins - 1); *at < ends; at = next_time(line, berlin(), *at)) ++times;
    EXPECT_EQ(times, 12) << day;
  }
}

TEST(WallClock, HalfHours) {
  EXPECT_EQ(times_of("15 2 * * *", lord_howe(), "2027-10-02 00:00", 2),
            (Times{"2027-10-02 15:30", "2027-10-03 15:15"}));
  EXPECT_EQ(times_of("45 1 * * *", lord_howe(), "2027-04-03 00:00", 2),
            (Times{"2027-04-03 14:45", "2027-04-04 15:15"}));
  EXPECT_EQ(times_of("0 12 * * *", zone_of(330, {}), "2027-01-01 00:00", 1), (Times{"2027-01-01 06:30"}));
}

TEST(WallClock, AWholeDayThatIsSkipped) {
  // As Samoa did in 2011: there was no 30 December.
  const Zone zone = zone_of(-600, {{"2011-12-30 10:00", 840}});
  EXPECT_EQ(times_of("0 9 * * *", zone, "2011-12-29 00:00", 3),
            (Times{"2011-12-29 19:00", "2011-12-30 10:00", "2011-12-30 19:00"}));
}

TEST(WallClock, NoTimeIsLostOrDoubledAroundAnyChange) {
  // Each minute of the day, one line each: a day has each of them once.
  for (const Zone* zone : {&berlin(), &lord_howe()})
    for (const char* change : {"2027-03-28 01:00", "2027-10-31 01:00", "2027-04-03 15:00", "2027-10-02 15:30"})
      for (int minute = 0; minute < 24 * 60; minute += 5) {
        const std::string line = std::to_string(minute % 60) + " " + std::to_string(minute / 60) + " * * *";
        const CronLine parsed = parse_cron_line(line);
        const Seconds begins = seconds_at(change) - 3 * 86'400;
        int times = 0;
        Seconds last = begins;
        for (auto at = next_time(parsed, *zone, begins); *at < begins + 6 * 86'400;
             at = next_time(parsed, *zone, *at)) {
          EXPECT_GT(*at - last, 22 * 3600 - (times == 0 ? 24 * 3600 : 0)) << line;
          last = *at;
          ++times;
        }
        EXPECT_NEAR(times, 6, 1) << line << " around " << change;
      }
}

TEST(WallClock, APeriodCountsFromItsAnchor) {
  EXPECT_EQ(times_of({0, 0, 30}, "2027-01-01 00:00:07", utc(), "2027-01-01 00:00:07", 2),
            (Times{"2027-01-01 00:00:37", "2027-01-01 00:01:07"}));
  // Ten years later it has not drifted.
  EXPECT_EQ(times_of({0, 0, 7}, "2017-01-01 00:00", utc(), "2027-01-01 00:00", 1),
            (Times{shown(seconds_at("2017-01-01 00:00") +
                         ((seconds_at("2027-01-01 00:00") - seconds_at("2017-01-01 00:00")) / 7 + 1) * 7)}));
  // Before the anchor: the first time is one period behind it.
  EXPECT_EQ(times_of({0, 0, 60}, "2027-01-01 00:00", utc(), "2026-01-01 00:00", 1), (Times{"2027-01-01 00:01"}));
}

TEST(WallClock, DaysAndMonthsOfAPeriodFollowTheClock) {
  EXPECT_EQ(times_of({0, 1, 0}, "2027-03-26 08:00", berlin(), "2027-03-26 12:00", 3),
            (Times{"2027-03-27 08:00", "2027-03-28 07:00", "2027-03-29 07:00"}));
  EXPECT_EQ(times_of({0, 0, 86'400}, "2027-03-26 08:00", berlin(), "2027-03-26 12:00", 3),
            (Times{"2027-03-27 08:00", "2027-03-28 08:00", "2027-03-29 08:00"}));
  EXPECT_EQ(times_of({1, 0, 0}, "2027-01-31 12:00", utc(), "2027-01-31 12:00", 4),
            (Times{"2027-02-28 12:00", "2027-03-31 12:00", "2027-04-30 12:00", "2027-05-31 12:00"}));
  EXPECT_EQ(times_of({12, 0, 0}, "2024-02-29 00:00", utc(), "2024-03-01 00:00", 4),
            (Times{"2025-02-28 00:00", "2026-02-28 00:00", "2027-02-28 00:00", "2028-02-29 00:00"}));
  EXPECT_EQ(times_of({0, 1, 3600}, "2027-01-01 00:00", utc(), "2027-01-01 00:00", 2),
            (Times{"2027-01-02 01:00", "2027-01-03 02:00"}));
  // In the gap, and in the repeated hour.
  EXPECT_EQ(times_of({0, 1, 0}, "2027-03-27 01:30", berlin(), "2027-03-27 12:00", 2),
            (Times{"2027-03-28 01:00", "2027-03-29 00:30"}));
  EXPECT_EQ(times_of({0, 1, 0}, "2027-10-30 00:30", berlin(), "2027-10-30 12:00", 2),
            (Times{"2027-10-31 00:30", "2027-11-01 01:30"}));
  // A century of months.
  EXPECT_EQ(times_of({1, 0, 0}, "2000-01-31 00:00", utc(), "2099-12-31 12:00", 1), (Times{"2100-01-31 00:00"}));
}

TEST(WallClock, ThereIsNoTimeFromTheYear32000On) {
  EXPECT_EQ(kLastTime, seconds_at("32000-01-01 00:00"));
  EXPECT_EQ(times_of("0 0 1 1 *", utc(), "31997-06-01 00:00", 5), (Times{"31998-01-01 00:00", "31999-01-01 00:00"}));
  const CronLine yearly = parse_cron_line("0 0 1 1 *");
  for (const Seconds at : {kLastTime, 2 * kLastTime, 9 * kLastTime}) {
    EXPECT_EQ(next_time(yearly, utc(), at), std::nullopt);
    for (const Period& period : {Period{1, 0, 0}, Period{0, 1, 0}, Period{0, 0, 1}}) {
      EXPECT_EQ(next_time(period, at - 1, utc(), at), std::nullopt);
      EXPECT_EQ(next_time(period, at, utc(), 0), std::nullopt);
    }
  }
  EXPECT_EQ(times_of({1200, 0, 0}, "31999-12-31 00:00", utc(), "31999-12-31 00:00", 1), (Times{"32099-12-31 00:00"}));
}

TEST(WallClock, TheLastTimeIsFoundHoweverManyThereWere) {
  const auto last_of = [](const char* line, const char* from, const char* until) {
    const CronLine parsed = parse_cron_line(line);
    int asked = 0;
    const auto last = last_time(
        [&](Seconds after) {
          ++asked;
          return next_time(parsed, utc(), after);
        },
        seconds_at(from), seconds_at(until));
    EXPECT_LT(asked, 200) << line;
    return last ? shown(*last) : "none";
  };
  EXPECT_EQ(last_of("* * * * *", "2020-01-01 00:00", "2027-01-01 00:00:30"), "2027-01-01 00:00");
  EXPECT_EQ(last_of("0 * * * *", "2020-01-01 00:00", "2027-01-01 00:59"), "2027-01-01 00:00");
  EXPECT_EQ(last_of("0 0 * * *", "2020-01-01 00:00", "2027-01-01 23:59"), "2027-01-01 00:00");
  EXPECT_EQ(last_of("0 0 1 * *", "2020-01-01 00:00", "2027-01-31 23:59"), "2027-01-01 00:00");
  EXPECT_EQ(last_of("0 0 1 6 *", "2020-01-01 00:00", "2027-01-01 00:00"), "2026-06-01 00:00");
  EXPECT_EQ(last_of("0 0 29 2 *", "2020-02-29 00:00", "2027-01-01 00:00"), "2024-02-29 00:00");
  EXPECT_EQ(last_of("0 0 1 6 *", "2026-06-01 00:00", "2026-06-01 00:00"), "2026-06-01 00:00");
  EXPECT_EQ(last_of("0 0 1 6 *", "2026-06-02 00:00", "2026-07-01 00:00"), "none");
}

}  // namespace mq
