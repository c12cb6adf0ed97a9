// Backoff: the one place where waits between attempts are computed. handlers/policy.cpp calls it
// for retries, api/consuming.cpp for the leases of mq_poll. Pure; times are microseconds.
#pragma once

#include "pg/types.hpp"

namespace mq {

// The longest wait between attempts, whatever backoff a row holds: a year.
inline constexpr Micros kBackoffCeiling = 365LL * 24 * 3600 * kSecond;
// A lease of an outside consumer doubles up to this length: a day. A longer one keeps its length.
inline constexpr Micros kLeaseCeiling = 24LL * 3600 * kSecond;

// The backoff of a row, brought into [0, ceiling]; the ceiling itself is at most kBackoffCeiling.
Micros bounded_backoff(Micros backoff, Micros ceiling);

// The backoff of the next attempt: twice this one, up to the ceiling.
Micros doubled_backoff(Micros backoff, Micros ceiling);

// The least wait after so many attempts, whatever the backoff is: a message that always fails at
// once must not fill mq_failures. It is 0 below five attempts, then 100 ms, doubled up to 1 s.
Micros least_backoff(int attempts);

// The wait before a retry: the backoff and up to a tenth more, so that messages that failed
// together are not retried together. `random` is in [0, 1).
Micros jittered(Micros backoff, double random);

}  // namespace mq
