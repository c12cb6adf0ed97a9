// Times as text, for tests of schedules: "2027-02-28 23:59", with seconds where there are some.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>

#include "queue/cron_line.hpp"

namespace mq {

inline Seconds seconds_at(const std::string& text) {
  int year = 0;
  unsigned month = 0;
  unsigned day = 0;
  int hour = 0;
  int minute = 0;
  int second = 0;
  if (std::sscanf(text.c_str(), "%d-%u-%u %d:%d:%d", &year, &month, &day, &hour, &minute, &second) < 5) std::abort();
  const std::chrono::sys_days date{std::chrono::year{year} / static_cast<int>(month) / static_cast<int>(day)};
  return date.time_since_epoch().count() * Seconds{86'400} + hour * 3600 + minute * 60 + second;
}

inline std::string shown(Seconds at) {
  using std::chrono::days;
  const auto day = std::chrono::floor<days>(std::chrono::sys_seconds{std::chrono::seconds{at}});
  const std::chrono::year_month_day date{day};
  const auto rest = static_cast<int>(at - day.time_since_epoch().count() * Seconds{86'400});
  char text[40];
  std::snprintf(text, sizeof text, "%04d-%02u-%02u %02d:%02d", static_cast<int>(date.year()),
                static_cast<unsigned>(date.month()), static_cast<unsigned>(date.day()), rest / 3600, rest / 60 % 60);
  std::string result = text;
  if (rest % 60 != 0) {
    std::snprintf(text, sizeof text, ":%02d", rest % 60);
    result += text;
  }
  return result;
}

}  // namespace mq
