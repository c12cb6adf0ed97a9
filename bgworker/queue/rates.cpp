#include "queue/rates.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "pg/crash_point.hpp"
#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/statement.hpp"
#include "queue/limits.hpp"
#include "queue/low_water.hpp"
#include "queue/put_off.hpp"
#include "shmem/channel_use.hpp"
#include "shmem/shared.hpp"

extern "C" {
#include "access/xact.h"
}

namespace mq::rates {

namespace {

struct NameRate {
  Rate rate;
  bool per_args;
};

std::optional<NameRate> rate_of(std::string_view channel_name) {
  const ChannelLimits* limits = limits_of(channel_name);
  if (limits == nullptr || !limits->rate) return std::nullopt;
  return NameRate{Rate::of(*limits->rate, limits->per), limits->rate_per_args};
}

// Whether what claims keep to cannot be kept: without shared memory.
bool is_without_memory(const ChannelLimits* limits) {
  return limits != nullptr && (limits->rate || limits->max_running_per_args) && !shared::available();
}

std::uint64_t key_of(const Claimed& message, bool per_args) {
  return per_args ? low_water::key_of(message.channel_name, message.channel_args)
                  : low_water::key_of(message.channel_name);
}

}  // namespace

int room(std::string_view channel_name, int most, Micros now) {
  if (!any_limits()) return most;
  if (is_without_memory(limits_of(channel_name))) return 0;
  const auto rate = rate_of(channel_name);
  if (!rate || rate->per_args) return most;
  return std::min(most, shared::rate_readiness(low_water::key_of(channel_name), rate->rate, now).calls);
}

std::optional<Micros> not_before(std::string_view channel_name, Micros due) {
  if (!any_limits()) return due;
  if (is_without_memory(limits_of(channel_name))) return std::nullopt;
  const auto rate = rate_of(channel_name);
  if (!rate || rate->per_args) return due;
  const Micros now = GetCurrentTimestamp();
  return std::max(due, shared::rate_readiness(low_water::key_of(channel_name), rate->rate, now).at);
}

bool is_without_memory(std::string_view channel_name) {
  return !shared::available() && any_limits() && is_without_memory(limits_of(channel_name));
}

void warn_without_memory(std::string_view channel_name) {
  static TimestampTz warned_in = 0;  // when the statement began; only this function sets it
  const TimestampTz statement = GetCurrentStatementStartTimestamp();
  if (warned_in == statement) return;
  warned_in = statement;
  const std::string name(channel_name);
  const char* text = name.c_str();
  guard::call([&] {
    ereport(WARNING, (errmsg("messages of channel \"%s\" are left alone, since its limits cannot be kept", text),
                      errhint("Add mq to shared_preload_libraries, or take the limits away with mq_unlimit().")));
  });
}

std::size_t take(std::span<const Claimed* const> messages) {
  if (!any_limits() || messages.empty()) return messages.size();
  std::size_t taken = 0;
  while (taken < messages.size()) {
    // The messages of a call have one channel name.
    const auto rate = rate_of(messages[taken]->channel_name);
    if (!rate) {
      ++taken;
      continue;
    }
    if (!shared::available()) break;
    std::size_t end = taken + 1;
    if (!rate->per_args)
      while (end < messages.size() && messages[end]->channel_name == messages[taken]->channel_name) ++end;
    const auto wanted = static_cast<int>(end - taken);
    const int granted =
        shared::take_rate(key_of(*messages[taken], rate->per_args), rate->rate, GetCurrentTimestamp(), wanted);
    taken += static_cast<std::size_t>(granted);
    MQ_CRASH_POINT_IF(granted > 0, rate_taken);
    if (granted < wanted) break;
  }
  return taken;
}

void take(Batch& messages) {
  if (!any_limits()) return;
  std::erase_if(messages, [](const Claimed& message) {
    const Claimed* one = &message;
    return take(std::span(&one, 1)) == 0;
  });
}

namespace {

// When the last message of the channel comes back that was put off; 0: none was.
Micros last_of(const Claimed& message) {
  static Statement last(
      "SELECT m.attempt_at FROM $S.mq_msgs m WHERE m.channel_name = $1 AND m.channel_key = $2"
      "   AND m.throttled_at IS NOT NULL ORDER BY m.attempt_at DESC LIMIT 1",
      {TEXTOID, INT8OID});
  const Rows rows = last.run({text_datum(message.channel_name), Int64GetDatum(message.channel_key)});
  bool null = true;
  const Datum at = rows.empty() ? Datum{0} : rows.get(0, 1, null);
  return null ? 0 : DatumGetTimestampTz(at);
}

}  // namespace

std::size_t put_off(Batch& messages, Micros now) {
  if (!any_limits() || messages.empty() || !shared::available()) return 0;
  std::vector<PutOff> wait;
  std::map<std::uint64_t, int> begin;  // how many messages of a channel begin, by its key
  std::set<std::uint64_t> looked;      // keys of channels whose slots were looked through
  std::vector<char> stays(messages.size(), 1);
  const Claimed* stopped = nullptr;  // the message that nothing may run behind in its ordered channel
  std::optional<NameRate> rate;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Claimed& message = messages[i];
    if (i == 0 || message.channel_name != messages[i - 1].channel_name) rate = rate_of(message.channel_name);
    if (!rate || !rate->per_args) continue;
    if (message.ordered && stopped != nullptr && same_channel(*stopped, message)) {
      stays[i] = 0;
      continue;
    }
    const std::uint64_t key = key_of(message, true);
    int& before = begin[key];
    const bool waited = message.throttled_at.has_value();
    // A message behind the head of its channel is put off when it has become head.
    const bool head = !message.ordered || message.after == Uuid();
    shared::Turn turn = shared::turn_of(key, rate->rate, now, {before, waited, head});
    if (turn.look && looked.insert(key).second) {
      shared::free_slots_behind(key, rate->rate, last_of(message));
      turn = shared::turn_of(key, rate->rate, now, {before, waited, head});
    }
    if (!turn.until) {
      ++before;
      continue;
    }
    stays[i] = 0;
    if (message.ordered) stopped = &message;
    if (head) wait.push_back({&message, std::min(*turn.until, message.expires_at)});
  }
  if (std::find(stays.begin(), stays.end(), 0) == stays.end()) return 0;
  return mq::put_off(wait, stays, messages);
}

std::vector<State> states() {
  std::vector<State> all;
  for (const std::string& name : limited_names()) {
    const auto rate = rate_of(name);
    if (!rate || rate->per_args) continue;
    State& state = all.emplace_back(State{name, 0, std::nullopt});
    if (!shared::available()) continue;
    const shared::Readiness found = shared::rate_readiness(low_water::key_of(name), rate->rate, GetCurrentTimestamp());
    state.ready = found.calls;
    state.at = found.at;
  }
  return all;
}

}  // namespace mq::rates
