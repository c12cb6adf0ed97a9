#include "policy.hpp"

#include <fmt/core.h>

#include <algorithm>

#include "backoff.hpp"

namespace mq {

namespace {
constexpr Micros kDefaultMaxBackoff = 3600 * kSecond;  // as mq_register_handler's

Error error_of(const Casualty& casualty) {
  switch (casualty.loss) {
    case Loss::kCrash:
      return {"57P02", "server went down while the handler ran",
              fmt::format("The handler's own process was ended by signal {}.", casualty.signal)};
    case Loss::kKilled:
      return {"57P02", "server went down while the handler ran",
              "The handler's process was killed from outside: by the system when memory ran out, or by hand."};
    case Loss::kOverrun:
      return {"57014", "handler ignored its time limit and was ended with its worker"};
    case Loss::kFatal:
      return {"57P01", "handler ended its worker", "The server's log has the error."};
    default:
      return {"57P01", "mq_run ended with an error while the handler ran"};
  }
}

}  // namespace

void settle_failure(const Failure& failure, const Handler* handler, Micros now, double dice, Settlement& settlement) {
  const Claimed& message = *failure.message;
  settlement.failures.push_back(failure);
  const bool expired = message.expires_at <= now;
  if (expired || message.attempts_left <= 1) {
    settlement.burials.push_back(
        {&message, expired ? "expired" : "exhausted", failure.error, handler != nullptr && handler->block_on_dead});
    return;
  }
  const Micros ceiling = handler != nullptr ? handler->max_backoff : kDefaultMaxBackoff;
  const Micros backoff = bounded_backoff(message.retry_backoff, ceiling);
  const Micros wait = std::max(jittered(backoff, dice), jittered(least_backoff(message.attempts + 1), dice));
  settlement.retries.push_back({&message, std::min(now + wait, message.expires_at), doubled_backoff(backoff, ceiling)});
}

bool keeps_failure(int attempt) {
  constexpr int kFirst = 5;
  return attempt <= kFirst || (attempt & (attempt - 1)) == 0;
}

bool may_come_of_company(const Error& error) {
  const std::string_view state(error.sqlstate);
  for (const std::string_view kind : {"23", "25", "40", "54", "55"})
    if (state.substr(0, 2) == kind) return true;
  return error.is_duplicate_object();
}

void settle_wish(const Claimed& message, const Wish& wish, bool block_on_dead, Micros now, Settlement& settlement) {
  if (wish.kind == Wish::kSnooze) {
    settlement.snoozes.push_back({&message, std::min(now + wish.delay, message.expires_at)});
  } else {
    settlement.burials.push_back({&message, "discarded", Error("", wish.reason), block_on_dead, true});
  }
}

void settle_casualty(const Claimed& message, const Casualty& casualty, int crashes, const Handler* handler, Micros now,
                     double dice, Settlement& settlement) {
  const bool proven = casualty.loss == Loss::kCrash;
  const Failure failure{&message, error_of(casualty), 0, proven};
  if (!proven || crashes + 1 < kMostCrashes) {
    settle_failure(failure, handler, now, dice, settlement);
    return;
  }
  settlement.failures.push_back(failure);
  settlement.burials.push_back({&message, "crashed", failure.error, handler != nullptr && handler->block_on_dead});
}

}  // namespace mq
