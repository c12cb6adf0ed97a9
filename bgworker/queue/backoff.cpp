#include "queue/backoff.hpp"

#include <algorithm>

namespace mq {

Micros bounded_backoff(Micros backoff, Micros ceiling) {
  return std::clamp(backoff, Micros{0}, std::clamp(ceiling, Micros{0}, kBackoffCeiling));
}

Micros doubled_backoff(Micros backoff, Micros ceiling) {
  return bounded_backoff(2 * bounded_backoff(backoff, kBackoffCeiling), ceiling);
}

Micros least_backoff(int attempts) {
  constexpr int kFirst = 5;
  if (attempts < kFirst) return 0;
  return std::min(kSecond, (kSecond / 10) << std::min(attempts - kFirst, 4));
}

Micros jittered(Micros backoff, double random) {
  return backoff + static_cast<Micros>(static_cast<double>(backoff) / 10 * std::clamp(random, 0.0, 1.0));
}

}  // namespace mq
