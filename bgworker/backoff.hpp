// Backoff: the one place where waits between attempts are computed.
#pragma once

#include "message.hpp"

namespace mq {

// No wait between attempts is longer, whatever stands in a row: a year.
inline constexpr Micros kBackoffCeiling = 365LL * 24 * 3600 * kSecond;
// Where a lease of an outside consumer stops doubling, unless it was longer to begin with: a day.
inline constexpr Micros kLeaseCeiling = 24LL * 3600 * kSecond;

// A backoff as it stands in a row, brought into [0, ceiling].
Micros bounded_backoff(Micros backoff, Micros ceiling);

// What the next attempt's backoff is: twice this one, up to the ceiling.
Micros doubled_backoff(Micros backoff, Micros ceiling);

// The least wait after so many attempts, whatever the backoff is: what fails at once every time must not fill
// mq_failures. None before the fifth; then a tenth of a second, doubled up to a second.
Micros least_backoff(int attempts);

// The wait before a retry: the backoff and up to a tenth more, so that what failed together does not come
// back together. `dice` is in [0, 1).
Micros jittered(Micros backoff, double dice);

}  // namespace mq
