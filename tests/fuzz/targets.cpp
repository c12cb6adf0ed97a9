#include "targets.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "bytes.hpp"
#include "pg/clean_text.hpp"
#include "pg/error.hpp"
#include "pg/packed.hpp"
#include "pg/validate.hpp"
#include "queue/backoff.hpp"
#include "queue/topics.hpp"
#include "queue/topological.hpp"
#include "queue/uuid.hpp"
#include "schedules.hpp"
#include "shmem/channel_key.hpp"
#include "shmem/in_flight_record.hpp"
#include "shmem/name_filter.hpp"
#include "shmem/rate.hpp"
#include "stats/histogram.hpp"

namespace mq::fuzz {

namespace {

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> parts;
  for (std::size_t from = 0;;) {
    const std::size_t end = text.find(at, from);
    parts.push_back(text.substr(from, end - from));
    if (end == std::string_view::npos) return parts;
    from = end + 1;
  }
}

// What a pattern means, by its definition.
bool matches(std::span<const std::string_view> pattern, std::span<const std::string_view> topic) {
  if (pattern.empty()) return topic.empty();
  if (pattern.front() == "#")
    return matches(pattern.subspan(1), topic) || (!topic.empty() && matches(pattern, topic.subspan(1)));
  return !topic.empty() && (pattern.front() == "*" || pattern.front() == topic.front()) &&
         matches(pattern.subspan(1), topic.subspan(1));
}

// The first line is a topic, the others are patterns.
void topics(std::span<const std::uint8_t> given) {
  std::vector<std::string_view> lines = split(Bytes(given).rest(), '\n');
  const auto refused = [](auto check, std::string_view text) {
    try {
      check("topic", text);
    } catch (const Error& error) {
      HOLDS(error.sqlstate == "22023");
      return true;
    }
    return false;
  };
  if (refused(mq::topics::check_topic, lines.front())) return;
  HOLDS(!refused(mq::topics::check_pattern, lines.front()));
  const std::vector<std::string_view> topic = split(lines.front(), '.');
  if (topic.size() > 8) return;  // the definition takes exponential time
  std::set<std::string> patterns, expected, found;
  for (std::size_t i = 1; i < lines.size() && i < 20; ++i) {
    if (refused(mq::topics::check_pattern, lines[i])) continue;
    const std::vector<std::string_view> words = split(lines[i], '.');
    if (words.size() > 8) continue;
    patterns.emplace(lines[i]);
    if (matches(words, topic)) expected.emplace(lines[i]);
  }
  mq::topics::match(lines.front(), [&](const std::string& key, bool whole) {
    if (whole && patterns.contains(key)) HOLDS(found.insert(key).second);
    const auto next = patterns.lower_bound(key + '.');
    return next != patterns.end() && next->starts_with(key + '.');
  });
  HOLDS(found == expected);
}

std::vector<std::int64_t> numbers(Bytes& bytes, std::size_t most) {
  std::vector<std::int64_t> result;
  while (!bytes.empty() && result.size() < most) result.push_back(bytes.number(bytes.below(3) == 0 ? 8 : 2));
  return result;
}

// What mq_stats_totals has may have been written by hand, or be of a newer version.
void histogram(std::span<const std::uint8_t> given) {
  Bytes bytes(given);
  const std::vector<std::int64_t> stored = numbers(bytes, 64);
  Histogram histogram;
  histogram.merge_stored(stored);
  const std::vector<std::int64_t> again = histogram.stored();
  HOLDS(again.size() % 2 == 0);
  std::size_t steps = 0;  // where they begin, behind the sum
  while (steps < again.size() && again[steps] < 0) steps += 2;
  for (std::size_t i = steps; i < again.size(); i += 2) {
    HOLDS(again[i + 1] != 0);
    HOLDS(i == steps || again[i - 2] < again[i]);
  }
  Histogram same;
  same.merge_stored(again);
  HOLDS(same.stored() == again);
  Micros last = 0;
  for (const double part : {0.01, 0.5, 0.95, 1.0}) {
    const auto quantile = histogram.quantile(part);
    if (!quantile) continue;
    HOLDS(*quantile >= last);
    last = *quantile;
  }
  same.merge(histogram, -1);
  HOLDS(same.empty());
  for (const std::int64_t duration : stored) histogram.add(duration);
  (void)histogram.quantile(0.5);
}

std::size_t whole_characters(std::string_view text, std::size_t most, int) {
  std::size_t size = most;
  while (size > 0 && (static_cast<unsigned char>(text[size]) & 0xc0) == 0x80) --size;
  return size;
}

// The first bytes say how often the rest is repeated, so that short inputs make long texts.
void clean_text(std::span<const std::uint8_t> given) {
  Bytes bytes(given);
  const int times = bytes.byte() + 1;
  const std::string_view part = bytes.rest();
  std::string text;
  for (int i = 0; i < times; ++i) text += part;
  const std::string kept = kept_text(text, whole_characters);
  HOLDS(kept.size() <= kMostKept);
  if (text.size() <= kMostKept) {
    HOLDS(kept == text);
  } else {
    const std::size_t note = kept.rfind(" ... (cut, ");
    HOLDS(note != std::string::npos);
    HOLDS(std::string_view(kept).substr(0, note) == std::string_view(text).substr(0, note));
  }
}

void uuids(std::span<const std::uint8_t> given) {
  Bytes bytes(given);
  std::array<std::uint8_t, 10> random{};
  const std::int64_t milliseconds = bytes.number(6) & 0xffffffffffff;
  for (std::uint8_t& byte : random) byte = bytes.byte();
  const Uuid id = uuid_v7(milliseconds, random);
  const std::string text = uuid_text(id);
  HOLDS(text.size() == 36 && text[14] == '7' && std::string_view("89ab").find(text[19]) != std::string_view::npos);
  HOLDS(id.bytes < uuid_v7(milliseconds + 1, random).bytes || milliseconds == 0xffffffffffff);
  const auto step = static_cast<std::uint32_t>(bytes.number(4));
  const auto behind = uuid_behind(id, step);
  if (!behind) return;
  HOLDS(*behind > id);
  HOLDS(std::equal(id.bytes.begin(), id.bytes.begin() + 8, behind->bytes.begin()));
  HOLDS((behind->bytes[8] & 0xc0) == 0x80);
  if (step > 0) HOLDS(*uuid_behind(id, step - 1) < *behind);
}

void backoff(std::span<const std::uint8_t> given) {
  Bytes bytes(given);
  const Micros length = bytes.number(), ceiling = bytes.number();
  const Micros bounded = bounded_backoff(length, ceiling);
  HOLDS(bounded >= 0 && bounded <= kBackoffCeiling);
  const Micros doubled = doubled_backoff(length, ceiling);
  HOLDS(doubled >= 0 && doubled <= kBackoffCeiling && (ceiling < 0 || doubled <= ceiling));
  HOLDS(doubled >= bounded || length > ceiling || ceiling < 0);
  const Micros jitter = jittered(bounded, static_cast<double>(bytes.byte()) / 256);
  HOLDS(jitter >= bounded && jitter <= bounded + bounded / 10 + 1);
  const Micros least = least_backoff(static_cast<int>(bytes.number(4)));
  HOLDS(least >= 0 && least <= kSecond);
}

// Whatever is refused is refused with a text and 22023; nothing is ever cut in the middle of the value.
void validate(std::span<const std::uint8_t> given) {
  Bytes bytes(given);
  const int kind = bytes.below(6);
  const std::int64_t number = bytes.number(), least = bytes.number(2), most = bytes.number(4);
  const std::string text(bytes.rest());
  try {
    switch (kind) {
      case 0:
        check::name("name", text);
        HOLDS(text.size() <= check::kNameBytes);
        break;
      case 1:
        check::dedup_key("dedup_key", text, static_cast<std::size_t>(least & 0xfff));
        HOLDS(text.size() + static_cast<std::size_t>(least & 0xfff) <= check::kDedupBytes);
        break;
      case 2:
        check::retries("retries", number);
        HOLDS(number >= 0 && number <= check::kMostRetries);
        break;
      case 3:
        check::duration("delay", text, number);
        HOLDS(number >= 0 && number <= check::kLongest);
        break;
      case 4:
        check::positive("lease", text, number);
        HOLDS(number > 0 && number <= check::kLongest);
        break;
      case 5:
        check::count("batch_size", number, least, most);
        HOLDS(number >= least && number <= most);
        break;
      default:
        check::priority("priority", number);
        HOLDS(number >= -check::kMostPriority && number <= check::kMostPriority);
        break;
    }
  } catch (const Error& error) {
    HOLDS(error.sqlstate == "22023" && !error.message.empty());
  }
}

void topological(std::span<const std::uint8_t> given) {
  Bytes bytes(given);
  const auto nodes = static_cast<std::size_t>(bytes.below(15));
  std::vector<std::vector<std::size_t>> needs(nodes);
  std::vector<bool> excluded(nodes);
  while (!bytes.empty() && nodes > 0) {
    const std::size_t from = bytes.byte() % nodes, to = bytes.byte();
    if (to == 255)
      excluded[from] = true;
    else
      needs[from].push_back(to % nodes);
  }
  const std::vector<std::size_t> order = topological_order(needs, excluded);
  std::vector<bool> placed(nodes);
  for (const std::size_t node : order) {
    HOLDS(node < nodes && !placed[node] && !excluded[node]);
    for (const std::size_t need : needs[node]) HOLDS(placed[need]);
    placed[node] = true;
  }
  // What is left out is excluded, or needs something that is left out.
  for (std::size_t node = 0; node < nodes; ++node)
    if (!placed[node] && !excluded[node])
      HOLDS(std::any_of(needs[node].begin(), needs[node].end(), [&](std::size_t need) { return !placed[need]; }));
}

void names(std::span<const std::uint8_t> given) {
  NameFilter filter;
  std::map<std::pair<std::string, std::string>, std::int64_t> keys;
  for (const std::string_view line : split(Bytes(given).rest(), '\n')) {
    const std::size_t at = line.find('=');
    const std::string_view name = line.substr(0, at), args = at < line.size() ? line.substr(at + 1) : "";
    const std::int64_t key = channel_key(name, args);
    keys[{std::string(name), std::string(args)}] = key;
    filter.add(key);
    HOLDS(seeded_key(line, 1) == seeded_key(std::string(line), 1));
  }
  std::set<std::int64_t> different;
  for (const auto& [channel, key] : keys) {
    HOLDS(filter.may_have(key));
    HOLDS(different.insert(key).second);  // of few channels: 64 bits do not collide
  }
}

// Whatever is in shared memory, and however the clock is set, a call comes to its turn.
void rates(std::span<const std::uint8_t> given) {
  Bytes bytes(given);
  const int calls = static_cast<int>(bytes.number(4) & 0xfffff) + 1;
  const Micros per = (bytes.number() & 0x7ffffffffff) + 1;
  if (calls > 1'000'000 * (static_cast<double>(per) / kSecond)) return;  // mq_limit refuses it
  const Rate rate = Rate::of(calls, per);
  HOLDS(rate.interval > 0);
  RateState state{};
  Micros now = bytes.number(6) & 0x3fffffffffff;
  while (!bytes.empty()) {
    if (rate.is_too_far(state, now)) rate.tighten(state, now);
    HOLDS(!rate.is_too_far(state, now));
    const int ready = rate.ready(state, now);
    HOLDS(ready >= 0);
    HOLDS((ready > 0) == (rate.ready_at(state) <= now));
    const int wanted = bytes.byte();
    const int taken = rate.take(state, now, wanted);
    HOLDS(ready == 0 ? taken >= 0 && taken <= wanted : taken == std::min(ready, wanted));
    now = std::max<Micros>(0, now + bytes.number(4));
  }
}

// As it is, and as lines that are packed first.
void packed_texts(std::span<const std::uint8_t> given) {
  const std::string_view text = Bytes(given).rest();
  std::array<std::string, 5> texts, again;
  unpack(text, texts);
  const std::vector<std::string_view> lines = split(text, '\n');
  for (std::size_t i = 0; i < texts.size(); ++i) texts[i] = i < lines.size() ? lines[i] : "";
  unpack(packed(texts), again);
  HOLDS(texts == again);
}

// The in-flight file as a machine that went down may have left it.
void in_flight_file(std::span<const std::uint8_t> given) {
  const std::string_view file = Bytes(given).rest();
  const auto killed = in_flight::unfinished_calls(file, true);
  HOLDS(killed.size() <= file.size() / sizeof(in_flight::Record));
  std::size_t crashed = 0;
  for (const auto& [record, reason] : killed) {
    HOLDS(record.database != InvalidOid && record.messages > 0);
    if (reason == AbortReason::kCrash) {
      ++crashed;
      const int signal = record.end - in_flight::kSignal;
      HOLDS(signal > 0 && signal <= in_flight::kMostSignal);
    } else {
      HOLDS(reason == AbortReason::kKilled && record.end == in_flight::kRunning);
    }
  }
  // Under another postmaster nobody is known to have been killed.
  const auto proven = in_flight::unfinished_calls(file, false);
  HOLDS(proven.size() == crashed);
  for (const in_flight::Unfinished& call : proven) HOLDS(call.reason == AbortReason::kCrash);
}

constexpr Target kTargets[] = {
    {"cron_line", cron_line},
    {"wall_clock", wall_clock},
    {"topics", topics},
    {"histogram", histogram},
    {"clean_text", clean_text},
    {"uuid", uuids},
    {"backoff", backoff},
    {"validate", validate},
    {"topological", topological},
    {"names", names},
    {"rate", rates},
    {"packed", packed_texts},
    {"in_flight", in_flight_file},
};

}  // namespace

std::span<const Target> targets() {
  return kTargets;
}

}  // namespace mq::fuzz
