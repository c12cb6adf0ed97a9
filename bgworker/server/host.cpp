#include "host.hpp"

#include <algorithm>

#include "extension.hpp"
#include "fence.hpp"
#include "settings.h"
#include "sweep.hpp"

extern "C" {
#if PG_VERSION_NUM >= 150000
#include "common/pg_prng.h"
#endif
}

namespace mq {

std::optional<Micros> ServerHost::next_due(const Registry& registry) {
  std::optional<Micros> earliest;
  transaction_.begin();
  const bool installed = Extension::hold();
  for (const auto& [name, channel] : registry.channels()) {
    if (!installed || !channel.parked.empty()) continue;
    const auto due = source_.next_due(name);
    if (due && (!earliest || *due < *earliest)) earliest = due;
  }
  transaction_.commit();
  return earliest;
}

bool ServerHost::sweep() {
  transaction_.begin();
  const bool ready = Extension::hold() && mq::sweep(source_, clock_.now());
  transaction_.commit();
  return ready;
}

int ServerHost::batch_size() {
  return mq_batch_size;
}

Micros ServerHost::poll_interval() {
  return Micros{mq_poll_interval} * 1000;
}

void ServerHost::read_registry(Registry& registry) {
  registry_generation_ = Extension::registry_generation();
  caller_.load(role_, registry);
}

Micros ServerClock::now() {
  return GetCurrentTimestamp();
}

double ServerClock::dice() {
#if PG_VERSION_NUM >= 150000
  return pg_prng_double(&pg_global_prng_state);
#else
  return static_cast<double>(random()) / (static_cast<double>(MAX_RANDOM_VALUE) + 1);
#endif
}

}  // namespace mq
