#include "host.hpp"

#include <algorithm>
#include <chrono>

#include "../channel_key.hpp"
#include "enabled.hpp"
#include "extension.hpp"
#include "fence.hpp"
#include "settings.h"
#include "shared.hpp"
#include "sweep.hpp"

extern "C" {
#if PG_VERSION_NUM >= 150000
#include "common/pg_prng.h"
#endif
}

namespace mq {

bool ServerHost::works() {
  return Extension::hold() && enabled::here();
}

Host::Next ServerHost::next(const Registry& registry, bool leased) {
  Next next;
  transaction_.begin();
  const bool working = works();
  const Micros now = clock_.now();
  for (const auto& [name, channel] : registry.channels()) {
    if (!working || !channel.parked.empty() || (channel.leased() && !leased)) continue;
    const auto due = source_.next_due(name);
    if (due && (!next.due || *due < *next.due)) next.due = due;
    const auto later = due && *due <= now ? source_.next_due(name, now) : due;
    if (later && (!next.later || *later < *next.later)) next.later = later;
  }
  if (working) next.expiry = source_.next_expiry(clock_.now());
  transaction_.commit();
  return next;
}

bool ServerHost::expire() {
  transaction_.begin();
  const bool expired = works() && bury_expired(transaction_, source_, clock_.now());
  transaction_.commit();
  return expired;
}

bool ServerHost::wake_unhandled() {
  if (!unhandled_.goes_on()) return false;
  bool woken = false;
  try {
    transaction_.begin();
    if (Extension::hold()) {
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

Host::Swept ServerHost::sweep() {
  Swept swept;
  transaction_.begin();
  if (works()) swept = mq::sweep(transaction_, source_, clock_.now());
  transaction_.commit();
  return swept;
}

bool ServerHost::any_casualty() {
  return shared::any_casualty();
}

std::vector<Casualty> ServerHost::casualties() {
  return shared::take_casualties();
}

void ServerHost::casualties_settled(const std::vector<int>& numbers) {
  shared::casualties_settled(numbers);
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

std::optional<Host::Limits> ServerHost::limits(std::string_view channel_name) {
  if (!shared::any_limits()) return std::nullopt;
  return shared::limits_of(channel_key(channel_name, {}));
}

void ServerHost::conflict(std::string_view channel_name, Micros batch_began, int messages) {
  shared::note_conflict(channel_key(channel_name, {}), batch_began, messages);
}

void ServerHost::read_registry(Registry& registry) {
  registry_generation_ = Extension::registry_generation();
  caller_.load(role_, registry);
  unhandled_.read(registry);
}

Micros ServerClock::now() {
  return GetCurrentTimestamp();
}

Micros ServerClock::steady() {
  using std::chrono::steady_clock;
  return std::chrono::duration_cast<std::chrono::microseconds>(steady_clock::now().time_since_epoch()).count();
}

double ServerClock::dice() {
#if PG_VERSION_NUM >= 150000
  return pg_prng_double(&pg_global_prng_state);
#else
  return static_cast<double>(random()) / (static_cast<double>(MAX_RANDOM_VALUE) + 1);
#endif
}

}  // namespace mq
