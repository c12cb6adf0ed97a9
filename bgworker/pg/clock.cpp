#include "pg/clock.hpp"

#include <chrono>

#include "pg/postgres.hpp"

extern "C" {
#include "common/pg_prng.h"
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
  return pg_prng_double(&pg_global_prng_state);
}

}  // namespace mq
