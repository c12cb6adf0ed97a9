#include "pg/clock.hpp"

#include <chrono>

#include "pg/postgres.hpp"

extern "C" {
#if PG_VERSION_NUM >= 150000
#include "common/pg_prng.h"
#endif
}

namespace mq {

Micros ServerClock::now() {
  return GetCurrentTimestamp();
}

Micros ServerClock::steady() {
  using std::chrono::steady_clock;
  return std::chrono::duration_cast<std::chrono::microseconds>(steady_clock::now().time_since_epoch()).count();
}

double ServerClock::random() {
#if PG_VERSION_NUM >= 150000
  return pg_prng_double(&pg_global_prng_state);
#else
  return static_cast<double>(::random()) / (static_cast<double>(MAX_RANDOM_VALUE) + 1);
#endif
}

}  // namespace mq
