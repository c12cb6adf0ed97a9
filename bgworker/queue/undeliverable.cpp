#include "queue/undeliverable.hpp"

namespace mq {

bool is_deliverable(const Claimed& message, Micros now) {
  return message.cancelled == nullptr && !message.uncommitted && !message.orphan && message.attempts_left > 0 &&
         message.expires_at > now;
}

void dead_letter_expired(const Claimed& message, Settlement& settlement) {
  settlement.dead_letters.push_back(
      {.message = &message, .reason = "expired", .error = {}, .charged = false, .block_as_registered = true});
}

void settle_undeliverable(const Batch& undeliverable, Micros now, Settlement& settlement) {
  for (const Claimed& message : undeliverable) {
    if (message.cancelled != nullptr) {
      settlement.dead_letters.push_back(
          {.message = &message, .reason = "cancelled", .error = Error("57014", *message.cancelled), .charged = false});
    } else if (message.uncommitted) {
      settlement.removed.push_back(&message);
    } else if (message.orphan && message.expires_at > now) {
      settlement.snoozes.push_back({&message, now});
    } else if (message.attempts_left > 0 || message.expires_at <= now) {
      dead_letter_expired(message, settlement);
    } else {
      std::optional<Error> error;
      if (message.outside)
        error = Error(kLeaseRanOut, kLeaseRanOutText,
                      "A consumer outside the server had it, and neither deleted the message nor kept it alive.");
      settlement.dead_letters.push_back({&message, "exhausted", error, false, false});
    }
  }
}

}  // namespace mq
