#include "queue/cron_line.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <string>
#include <vector>

#include "pg/format.hpp"
#include "pg/validate.hpp"

namespace mq {

namespace {

constexpr std::string_view kMonths[] = {"jan", "feb", "mar", "apr", "may", "jun",
                                        "jul", "aug", "sep", "oct", "nov", "dec"};
constexpr std::string_view kMonthNames[] = {"January", "February", "March",     "April",   "May",      "June",
                                            "July",    "August",   "September", "October", "November", "December"};
constexpr int kMostDays[] = {31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
constexpr std::string_view kWeekdays[] = {"sun", "mon", "tue", "wed", "thu", "fri", "sat"};

struct Field {
  std::string_view name;
  int least, most;
  const std::string_view* names = nullptr;  // of the values from `least` on
  int named = 0;
  std::string_view names_rule = "";

  std::string shown() const { return mq::format("{} of schedule", name); }
};
constexpr Field kFields[] = {
    {"minute", 0, 59},
    {"hour", 0, 23},
    {"day of month", 1, 31},
    {"month", 1, 12, kMonths, 12, ", or a name from jan to dec"},
    {"day of week", 0, 7, kWeekdays, 7, ", or a name from sun to sat"},
};
constexpr std::size_t kFieldCount = std::size(kFields);

struct Word {
  std::string_view name, line;
};
constexpr Word kWords[] = {
    {"@yearly", "0 0 1 1 *"}, {"@annually", "0 0 1 1 *"}, {"@monthly", "0 0 1 * *"}, {"@weekly", "0 0 * * 0"},
    {"@daily", "0 0 * * *"},  {"@midnight", "0 0 * * *"}, {"@hourly", "0 * * * *"},
};

constexpr std::uint64_t bit(int value) {
  return std::uint64_t{1} << value;
}

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v';
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}
bool is_letter(char c) {
  return lower(c) >= 'a' && lower(c) <= 'z';
}
std::string lowered(std::string_view text) {
  std::string result(text);
  std::transform(result.begin(), result.end(), result.begin(), lower);
  return result;
}

std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> words;
  for (std::size_t i = 0; i < text.size();) {
    if (is_space(text[i])) {
      ++i;
      continue;
    }
    std::size_t end = i;
    while (end < text.size() && !is_space(text[end])) ++end;
    words.push_back(text.substr(i, end - i));
    i = end;
  }
  return words;
}

std::vector<std::string_view> split(std::string_view text, char by) {
  std::vector<std::string_view> parts;
  for (;;) {
    const std::size_t at = text.find(by);
    parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + 1);
  }
}

std::optional<int> number_of(std::string_view text) {
  constexpr std::size_t kMostDigits = 4;
  if (text.empty() || text.size() > kMostDigits || !std::all_of(text.begin(), text.end(), is_digit))
    return std::nullopt;
  int value = 0;
  for (const char c : text) value = value * 10 + (c - '0');
  return value;
}

// A value of the field, in an element of its list. `ends`: it is the end of a range, where Sunday is 7.
int value_of(const Field& field, std::string_view element, std::string_view text, bool ends) {
  std::optional<int> value = number_of(text);
  if (!value && field.names != nullptr) {
    const std::string name = lowered(text);
    for (int i = 0; i < field.named; ++i)
      if (field.names[i] == name) value = field.least + i;
    if (value && ends && field.least == 0 && *value == 0) value = field.most;
  }
  if (!value || *value < field.least || *value > field.most)
    check::fail(field.shown(), text.empty() ? element : text,
                mq::format("must be between {} and {}{}", field.least, field.most, field.names_rule));
  return *value;
}

// One element of a field's list: *, a value or a range, with a step or without.
std::uint64_t element_of(const Field& field, std::string_view text) {
  const std::vector<std::string_view> parts = split(text, '/');
  const std::string_view range = parts[0];
  const std::size_t dash = range.find('-');
  int first = field.least;
  int last = field.most;
  if (range != "*") {
    first = value_of(field, text, range.substr(0, dash), false);
    last = dash == std::string_view::npos ? first : value_of(field, text, range.substr(dash + 1), true);
    if (last < first)
      check::fail(field.shown(), text, "must not have a range that ends before it begins; write two, as in 22-23,0-2");
  }
  int step = 1;
  if (parts.size() > 1) {
    if (range != "*" && dash == std::string_view::npos)
      check::fail(field.shown(), text,
                  mq::format("must have a step only behind * or a range, as in {}-{}/{}", first, field.most, parts[1]));
    const std::optional<int> given = parts.size() == 2 ? number_of(parts[1]) : std::nullopt;
    if (!given || *given < 1 || *given > field.most)
      check::fail(field.shown(), text, mq::format("must have a step between 1 and {}", field.most));
    step = *given;
  }
  std::uint64_t values = 0;
  for (int value = first; value <= last; value += step) values |= bit(value);
  return values;
}

std::uint64_t values_of(const Field& field, std::string_view text) {
  std::uint64_t values = 0;
  for (const std::string_view element : split(text, ',')) {
    if (element.empty()) check::fail(field.shown(), text, "must have a value on each side of a comma");
    values |= element_of(field, element);
  }
  return values;
}

// Throws if none of the days of the month comes in one of the months.
void refuse_impossible(const CronLine& line, std::string_view days) {
  for (int month = 1; month <= 12; ++month)
    if ((line.months & bit(month)) != 0 && std::countr_zero(line.days) <= kMostDays[month - 1]) return;
  std::string names;
  int most = 0;
  for (int month = 1; month <= 12; ++month) {
    if ((line.months & bit(month)) == 0) continue;
    names += (names.empty() ? "" : ", ") + std::string(kMonthNames[month - 1]);
    most = std::max(most, kMostDays[month - 1]);
  }
  check::fail(kFields[2].shown(), days,
              mq::format("must be a day that comes: the months ({}) have at most {} days", names, most));
}

}  // namespace

ScheduleKind kind_of_schedule(std::string_view text) {
  const std::vector<std::string_view> words = words_of(text);
  if (words.empty() || text.find('*') != std::string_view::npos) return ScheduleKind::kCron;
  if (words[0] == "@") return ScheduleKind::kPeriod;  // as the server writes intervals in one style
  if (words[0][0] == '@') return ScheduleKind::kCron;
  const auto has_letter = [](std::string_view word) { return std::any_of(word.begin(), word.end(), is_letter); };
  // As '1 day 2 hours ago', and not as a line with a wrong field.
  if (words.size() == kFieldCount) {
    const bool begins = number_of(words[0]).has_value() && has_letter(words[1]) &&
                        std::all_of(words[1].begin(), words[1].end(), is_letter);
    return begins ? ScheduleKind::kPeriod : ScheduleKind::kCron;
  }
  if (text.find(':') != std::string_view::npos) return ScheduleKind::kPeriod;
  const auto end = words.begin() + static_cast<std::ptrdiff_t>(std::min<std::size_t>(words.size(), 2));
  return std::any_of(words.begin(), end, has_letter) ? ScheduleKind::kPeriod : ScheduleKind::kCron;
}

CronLine parse_cron_line(std::string_view text) {
  std::vector<std::string_view> words = words_of(text);
  if (!words.empty() && words[0][0] == '@') {
    const std::string name = lowered(words[0]);
    if (name == "@reboot") check::fail("schedule", text, "must name times; a start of the server is none");
    const auto* word =
        std::find_if(std::begin(kWords), std::end(kWords), [&](const Word& w) { return w.name == name; });
    if (words.size() != 1 || word == std::end(kWords))
      check::fail("schedule", text,
                  "must be a cron line, an interval, or one of @yearly, @annually, @monthly, @weekly, @daily, "
                  "@midnight, @hourly");
    words = words_of(word->line);
  }
  if (words.size() != kFieldCount)
    check::fail("schedule", text,
                mq::format("must have the five fields minute, hour, day of month, month and day of week, or be an "
                           "interval; this has {}",
                           words.size()));
  std::array<std::uint64_t, kFieldCount> values{};
  for (std::size_t i = 0; i < kFieldCount; ++i) values[i] = values_of(kFields[i], words[i]);
  CronLine line{values[0], values[1], values[2], values[3], values[4]};
  if ((line.weekdays & bit(7)) != 0) line.weekdays = (line.weekdays & ~bit(7)) | bit(0);
  line.either_day = words[2][0] != '*' && words[4][0] != '*';
  if (!line.either_day) refuse_impossible(line, words[2]);
  return line;
}

namespace {

constexpr Seconds kMinute = 60;
constexpr Seconds kDay = 86'400;

Seconds floor_of(Seconds value, Seconds unit) {
  const Seconds rest = value % unit;
  return value - (rest < 0 ? rest + unit : rest);
}

bool has_day(const CronLine& line, const std::chrono::year_month_day& date) {
  const bool day = (line.days & bit(static_cast<int>(static_cast<unsigned>(date.day())))) != 0;
  const std::chrono::weekday weekday{std::chrono::sys_days{date}};
  const bool of_week = (line.weekdays & bit(static_cast<int>(weekday.c_encoding()))) != 0;
  return line.either_day ? day || of_week : day && of_week;
}

// The first minute of the day, from minute `from` of it on.
std::optional<int> first_of_day(const CronLine& line, int from) {
  for (int hour = from / 60; hour < 24; ++hour) {
    if ((line.hours & bit(hour)) == 0) continue;
    const int least = hour == from / 60 ? from % 60 : 0;
    const std::uint64_t left = line.minutes & ~(bit(least) - 1);
    if (left != 0) return hour * 60 + std::countr_zero(left);
  }
  return std::nullopt;
}

}  // namespace

std::optional<Seconds> first_minute(const CronLine& line, Seconds from, Seconds before) {
  using std::chrono::days, std::chrono::months, std::chrono::sys_days, std::chrono::year_month_day;
  const Seconds start = floor_of(from + kMinute - 1, kMinute);
  Seconds day = floor_of(start, kDay);
  auto minute = static_cast<int>((start - day) / kMinute);
  while (day < before) {
    const sys_days today{days{day / kDay}};  // `day` divides evenly
    const year_month_day date{today};
    if ((line.months & bit(static_cast<int>(static_cast<unsigned>(date.month())))) == 0) {
      const year_month_day next = year_month_day{date.year(), date.month(), std::chrono::day{1}} + months{1};
      day = sys_days{next}.time_since_epoch().count() * kDay;
      minute = 0;
      continue;
    }
    if (has_day(line, date))
      if (const std::optional<int> found = first_of_day(line, minute)) {
        const Seconds at = day + *found * kMinute;
        return at < before ? std::optional(at) : std::nullopt;
      }
    day += kDay;
    minute = 0;
  }
  return std::nullopt;
}

}  // namespace mq
