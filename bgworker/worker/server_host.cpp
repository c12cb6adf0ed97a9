#include "worker/server_host.hpp"

#include <algorithm>

#include "pg/crash_point.hpp"
#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/settings.h"
#include "queue/due.hpp"
#include "queue/enabled.hpp"
#include "queue/low_water.hpp"
#include "queue/maintenance.hpp"
#include "queue/timetable.hpp"
#include "shmem/aborted_calls.hpp"
#include "shmem/channel_key.hpp"
#include "shmem/failing.hpp"
#include "shmem/limits.hpp"

namespace mq {

bool ServerHost::works() {
  return enabled::hold();
}

Host::Next ServerHost::next(const Registry& registry, bool leased, std::optional<Micros> noted) {
  Next next;
  transaction_.begin();
  const bool working = works();
  if (working) {
    const OwnerScope scope;
    std::vector<std::string_view> names;
    for (const auto& [name, channel] : registry.channels()) names.push_back(name);
    low_water::begin_wait(names, [this] { return is_wanted(); });
  }
  const Micros now = clock_.now();
  if (working) next.due = noted;
  for (const auto& [name, channel] : registry.channels()) {
    if (!working || !channel.disabled.empty() || (channel.leased() && !leased)) continue;
    const auto due = next_due(name);
    if (due && (!next.due || *due < *next.due)) next.due = due;
    const auto later = due && *due <= now ? next_due(name, now) : due;
    if (later && (!next.later || *later < *next.later)) next.later = later;
  }
  if (working) next.expiry = next_expiry(clock_.now());
  transaction_.commit();
  return next;
}

bool ServerHost::expire() {
  transaction_.begin();
  const bool expired = works() && dead_letter_expired(transaction_, clock_.now());
  transaction_.commit();
  return expired;
}

bool ServerHost::wake_unhandled() {
  if (!unhandled_.goes_on()) return false;
  bool woken = false;
  try {
    transaction_.begin();
    if (works()) {
      const OwnerScope scope;
      woken = unhandled_.step(clock_.now());
    }
    transaction_.commit();
  } catch (...) {
    unhandled_.forget();
    throw;
  }
  return woken || unhandled_.goes_on();
}

Swept ServerHost::sweep() {
  Swept swept;
  transaction_.begin();
  if (works()) swept = mq::sweep(transaction_, clock_.now());
  transaction_.commit();
  return swept;
}

ServerHost::Scheduled ServerHost::send_some_scheduled(bool thorough, const std::vector<std::string_view>* only) {
  Scheduled result;
  transaction_.begin();
  if (works()) switch (timetable::look()) {
      case timetable::Look::kEmpty:
        break;
      case timetable::Look::kLocked:
        result.next = clock_.now() + kSecond;
        break;
      case timetable::Look::kSome: {
        const timetable::Sent sent = timetable::send_due(transaction_, clock_.now(), thorough, only);
        result = {sent.messages, sent.more, timetable::next(clock_.now())};
      }
    }
  MQ_CRASH_POINT_IF(result.sent, schedule_commits);
  transaction_.commit();
  MQ_CRASH_POINT_IF(result.sent, schedule_committed);
  return result;
}

bool ServerHost::send_scheduled(const std::vector<std::string_view>* only) {
  bool sent = false;
  for (Scheduled step{.more = true}; step.more;) {
    step = send_some_scheduled(true, only);
    sent = sent || step.sent;
  }
  return sent;
}

bool ServerHost::any_aborted_call() {
  return shared::any_aborted_call();
}

std::vector<AbortedCall> ServerHost::aborted_calls() {
  return shared::take_aborted_calls();
}

void ServerHost::aborted_calls_settled(const std::vector<int>& numbers) {
  shared::aborted_calls_settled(numbers);
}

int ServerHost::batch_size() {
  return mq_batch_size;
}

Micros ServerHost::poll_interval() {
  return Micros{mq_poll_interval} * 1000;
}

void ServerHost::put_off(const Uuid& message, std::string_view channel_name, const Error& why, Micros until) {
  shared::note_unsettled(message, channel_name, why.message, until);
}

std::optional<Limits> ServerHost::limits(std::string_view channel_name) {
  if (!shared::any_limits()) return std::nullopt;
  return shared::limits_of(channel_key(channel_name, {}));
}

void ServerHost::conflict(std::string_view channel_name, Micros batch_began, int messages) {
  shared::note_conflict(channel_key(channel_name, {}), batch_began, messages);
}

void ServerHost::read_registry(Registry& registry) {
  registry_generation_ = Extension::registry_generation();
  caller_.load(role_, registry);
  unhandled_.read(registry.channel_names(), registry.taken());
}

}  // namespace mq
