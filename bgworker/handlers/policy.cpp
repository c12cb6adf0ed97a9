#include "handlers/policy.hpp"

#include <algorithm>

#include "pg/format.hpp"
#include "queue/backoff.hpp"

namespace mq {

namespace {
constexpr Micros kDefaultMaxBackoff = 3600 * kSecond;  // as in mq_register_handler

Error error_of(const AbortedCall& aborted_call) {
  switch (aborted_call.reason) {
    case AbortReason::kCrash:
      return {"57P02", "server went down while the handler ran",
              mq::format("The handler's own process was ended by signal {}.", aborted_call.signal)};
    case AbortReason::kKilled:
      return {"57P02", "server went down while the handler ran",
              "The handler's process was killed from outside: by the system when memory ran out, or by hand."};
    case AbortReason::kOverrun:
      return {"57014", "handler ignored its time limit and was ended with its worker"};
    case AbortReason::kFatal:
      return {"57P01", "handler ended its worker", "The server's log has the error."};
    default:
      return {"57P01", "mq_run ended with an error while the handler ran"};
  }
}

}  // namespace

void settle_failure(const Failure& failure, const Handler* handler, Micros now, double random, Settlement& settlement,
                    std::optional<Micros> retry_in) {
  const Claimed& message = *failure.message;
  settlement.failures.push_back(failure);
  const bool expired = message.expires_at <= now;
  if (expired || message.attempts_left <= 1) {
    settlement.dead_letters.push_back(
        {&message, expired ? "expired" : "exhausted", failure.error, handler != nullptr && handler->block_on_dead});
    return;
  }
  const Micros ceiling = handler != nullptr ? handler->max_backoff : kDefaultMaxBackoff;
  const Micros backoff = bounded_backoff(message.retry_backoff, ceiling);
  const Micros wait =
      retry_in.value_or(std::max(jittered(backoff, random), jittered(least_backoff(message.attempts + 1), random)));
  settlement.retries.push_back({&message, std::min(now + wait, message.expires_at), doubled_backoff(backoff, ceiling)});
}

bool may_come_of_sharing(const Error& error) {
  const std::string_view state(error.sqlstate);
  for (const std::string_view kind : {"23", "25", "40", "54", "55"})
    if (state.substr(0, 2) == kind) return true;
  return error.is_duplicate_object();
}

void settle_disposition(const Claimed& message, const Disposition& disposition, bool block_on_dead, Micros now,
                        Settlement& settlement) {
  if (disposition.kind == Disposition::kSnooze) {
    settlement.snoozes.push_back({&message, std::min(now + disposition.delay, message.expires_at)});
  } else {
    settlement.dead_letters.push_back({&message, "discarded", Error("", disposition.reason), block_on_dead, true});
  }
}

void settle_aborted_call(const Claimed& message, const AbortedCall& aborted_call, int crashes, const Handler* handler,
                         Micros now, double random, Settlement& settlement) {
  const bool proven = aborted_call.reason == AbortReason::kCrash;
  const Failure failure{&message, error_of(aborted_call), 0, proven};
  if (!proven || crashes + 1 < kMostCrashes) {
    settle_failure(failure, handler, now, random, settlement);
    return;
  }
  settlement.failures.push_back(failure);
  settlement.dead_letters.push_back({&message, "crashed", failure.error, handler != nullptr && handler->block_on_dead});
}

}  // namespace mq
