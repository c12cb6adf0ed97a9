#include "queue/cron_line.hpp"

#include <gtest/gtest.h>

#include <cstdio>
#include <string>
#include <vector>

#include "cron_times.hpp"
#include "pg/error.hpp"
#include "wall_times.hpp"

namespace mq {

namespace {

std::string message_of(std::string_view line) {
  try {
    (void)parse_cron_line(line);
  } catch (const Error& error) {
    EXPECT_EQ(error.sqlstate, "22023");
    return error.message + " | " + error.detail;
  }
  return "accepted";
}

// The next times of a line in UTC.
std::vector<std::string> times_of(const char* line, const char* after, std::size_t count) {
  const CronLine parsed = parse_cron_line(line);
  std::vector<std::string> times;
  for (Seconds at = seconds_at(after); times.size() < count;) {
    const auto next = first_minute(parsed, at + 1, at + 60LL * 366 * 86'400);
    if (!next) break;
    times.push_back(shown(at = *next));
  }
  return times;
}

}  // namespace

TEST(CronLine, HasTheTimesThatAnotherImplementationHas) {
  EXPECT_EQ(std::size(kCronTimes), 200U);
  for (const CronTimes& row : kCronTimes)
    EXPECT_EQ(times_of(row.line, row.after, 10), std::vector<std::string>(std::begin(row.times), std::end(row.times)))
        << row.line;
}

TEST(CronLine, WordsAreLines) {
  for (const auto& [word, line] : {std::pair("@yearly", "0 0 1 1 *"),
                                   {"@annually", "0 0 1 1 *"},
                                   {"@monthly", "0 0 1 * *"},
                                   {"@weekly", "0 0 * * 0"},
                                   {"@daily", "0 0 * * *"},
                                   {"@midnight", "0 0 * * *"},
                                   {"@hourly", "0 * * * *"},
                                   {" @Daily ", "0 0 * * *"}})
    EXPECT_EQ(times_of(word, "2027-05-05 05:05", 5), times_of(line, "2027-05-05 05:05", 5)) << word;
}

TEST(CronLine, OneOfTwoRestrictedDayFieldsIsEnough) {
  using Times = std::vector<std::string>;
  EXPECT_EQ(times_of("0 0 13 * 5", "2026-11-01 00:00", 4),
            (Times{"2026-11-06 00:00", "2026-11-13 00:00", "2026-11-20 00:00", "2026-11-27 00:00"}));
  EXPECT_EQ(times_of("0 0 14 * 5", "2026-11-10 00:00", 2), (Times{"2026-11-13 00:00", "2026-11-14 00:00"}));
  // A field that begins with * does not restrict, whatever follows, as in Vixie cron: both count then.
  EXPECT_EQ(times_of("0 0 */2 * 5", "2026-11-01 00:00", 2), (Times{"2026-11-13 00:00", "2026-11-27 00:00"}));
  EXPECT_EQ(times_of("0 0 13 * */7", "2026-11-01 00:00", 1), (Times{"2026-12-13 00:00"}));
}

TEST(CronLine, SundayIsZeroAndSeven) {
  for (const char* line : {"0 0 * * 0", "0 0 * * 7", "0 0 * * sun", "0 0 * * SUN", "0 0 * * 7-7"})
    EXPECT_EQ(times_of(line, "2026-11-30 00:00", 1).front(), "2026-12-06 00:00") << line;
  EXPECT_EQ(times_of("0 0 * * fri-sun", "2026-11-30 00:00", 4),
            (std::vector<std::string>{"2026-12-04 00:00", "2026-12-05 00:00", "2026-12-06 00:00", "2026-12-11 00:00"}));
  EXPECT_EQ(times_of("0 0 * * sun-tue", "2026-11-30 00:00", 3),
            (std::vector<std::string>{"2026-12-01 00:00", "2026-12-06 00:00", "2026-12-07 00:00"}));
}

TEST(CronLine, LeapDays) {
  EXPECT_EQ(times_of("0 0 29 2 *", "2095-01-01 00:00", 3),
            (std::vector<std::string>{"2096-02-29 00:00", "2104-02-29 00:00", "2108-02-29 00:00"}));
  // 29 February on a Sunday: 40 years apart, since 2100 is no leap year.
  EXPECT_EQ(times_of("0 0 29 2 */7", "2088-03-01 00:00", 1), (std::vector<std::string>{"2128-02-29 00:00"}));
}

TEST(CronLine, EveryHourIsEveryHourHoweverItIsWritten) {
  for (const char* line : {"5 * * * *", "5 */1 * * *", "5 0-23 * * *", "5 0-11,12-23 1 * *"})
    EXPECT_TRUE(parse_cron_line(line).is_hourly()) << line;
  for (const char* line : {"* 1 * * *", "5 */2 * * *", "5 0-22 * * *"})
    EXPECT_FALSE(parse_cron_line(line).is_hourly()) << line;
}

TEST(CronLine, ABadFieldIsRefusedWithItsNameValueAndRule) {
  EXPECT_EQ(message_of("60 * * * *"),
            "invalid minute of schedule: \"60\" | minute of schedule must be between 0 and 59.");
  EXPECT_EQ(message_of("a * * * *"),
            "invalid minute of schedule: \"a\" | minute of schedule must be between 0 and 59.");
  EXPECT_EQ(message_of("-1 * * * *"),
            "invalid minute of schedule: \"-1\" | minute of schedule must be between 0 and 59.");
  EXPECT_EQ(message_of("7,5- * * * *"),
            "invalid minute of schedule: \"5-\" | minute of schedule must be between 0 and 59.");
  EXPECT_EQ(message_of("* 24 * * *"), "invalid hour of schedule: \"24\" | hour of schedule must be between 0 and 23.");
  EXPECT_EQ(message_of("* * 0 * *"),
            "invalid day of month of schedule: \"0\" | day of month of schedule must be between 1 and 31.");
  EXPECT_EQ(message_of("* * L * *"),
            "invalid day of month of schedule: \"L\" | day of month of schedule must be between 1 and 31.");
  EXPECT_EQ(message_of("* * * 13 *"),
            "invalid month of schedule: \"13\" | month of schedule must be between 1 and 12, "
            "or a name from jan to dec.");
  EXPECT_EQ(message_of("* * * january *"),
            "invalid month of schedule: \"january\" | month of schedule must be between 1 "
            "and 12, or a name from jan to dec.");
  EXPECT_EQ(message_of("* * * * 8"),
            "invalid day of week of schedule: \"8\" | day of week of schedule must be between 0 "
            "and 7, or a name from sun to sat.");
  EXPECT_EQ(message_of("* * * * mon#2"),
            "invalid day of week of schedule: \"mon#2\" | day of week of schedule must be "
            "between 0 and 7, or a name from sun to sat.");
  EXPECT_EQ(message_of("5-1 * * * *"),
            "invalid minute of schedule: \"5-1\" | minute of schedule must not have a range "
            "that ends before it begins; write two, as in 22-23,0-2.");
  EXPECT_EQ(message_of("1,,2 * * * *"),
            "invalid minute of schedule: \"1,,2\" | minute of schedule must have a value on each "
            "side of a comma.");
  EXPECT_EQ(message_of("*/0 * * * *"),
            "invalid minute of schedule: \"*/0\" | minute of schedule must have a step between 1 and 59.");
  EXPECT_EQ(message_of("*/90 * * * *"),
            "invalid minute of schedule: \"*/90\" | minute of schedule must have a step between 1 and 59.");
  EXPECT_EQ(message_of("*/5/5 * * * *"),
            "invalid minute of schedule: \"*/5/5\" | minute of schedule must have a step between 1 and 59.");
  EXPECT_EQ(message_of("5/15 * * * *"),
            "invalid minute of schedule: \"5/15\" | minute of schedule must have a step only "
            "behind * or a range, as in 5-59/15.");
  EXPECT_EQ(message_of("99999999999999999999 * * * *").substr(0, 50),
            "invalid minute of schedule: \"99999999999999999999\"");
  for (const char* line :
       {"**  * * * *", "* * * *", "* * * * * *", "", "   ", "5- * * * *", "-5 * * * *", "1-2-3 * * * *", "*-5 * * * *",
        "+1 * * * *", "1.5 * * * *", "? * * * *", "* * 15W * *", "* * * * 5L", "\x80 * * * *"})
    EXPECT_NE(message_of(line), "accepted") << line;
}

TEST(CronLine, ADayThatNeverComesIsRefused) {
  EXPECT_EQ(message_of("0 0 30 2 *"),
            "invalid day of month of schedule: \"30\" | day of month of schedule must be a day "
            "that comes: the months (February) have at most 29 days.");
  EXPECT_EQ(message_of("0 0 31 4,jun *"),
            "invalid day of month of schedule: \"31\" | day of month of schedule must be a "
            "day that comes: the months (April, June) have at most 30 days.");
  EXPECT_EQ(message_of("0 0 31 2 1"), "accepted");  // Mondays in February
  EXPECT_EQ(message_of("0 0 31 2 */2").substr(0, 20), "invalid day of month");
  EXPECT_EQ(message_of("0 0 30,28 2 *"), "accepted");
}

TEST(CronLine, ARestartIsNoTime) {
  EXPECT_EQ(message_of("@reboot"),
            "invalid schedule: \"@reboot\" | schedule must name times; a start of the server is none.");
  EXPECT_EQ(message_of("@sometimes").substr(0, 30), "invalid schedule: \"@sometimes\"");
  EXPECT_EQ(message_of("@daily at noon").substr(0, 34), "invalid schedule: \"@daily at noon\"");
}

TEST(CronLine, IsToldFromAnInterval) {
  for (const char* text : {"* * * * *", "0 0 1 1 mon", "0 0 1 1", "30", "@daily", "@every 1 day", "", "a * * * *",
                           "0 0 1 jan mon", "5 4 3 2 1 0"})
    EXPECT_EQ(kind_of_schedule(text), ScheduleKind::kCron) << text;
  for (const char* text : {"30 seconds", "1 day", "PT30S", "00:05:00", "1 day 12:00:00", "@ 1 hour",
                           "1 day 2 hours ago", "@ 1 day 2 hours", "3 days 04:05:06", "soon"})
    EXPECT_EQ(kind_of_schedule(text), ScheduleKind::kPeriod) << text;
}

}  // namespace mq
