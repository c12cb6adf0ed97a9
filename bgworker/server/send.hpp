// Sending: from checked values to rows.
#pragma once

#include <vector>

#include "../message.hpp"
#include "arguments.hpp"

namespace mq {

// One message as a caller gave it. The getters of `arguments.hpp` check it in `add`.
struct NewMessage {
  Value id, delay, retries, retry_backoff, channel_name, channel_args, commit_interval, ordered, name, payload_json,
      payload_bytes;  // payload_json is text or jsonb, see Sender
};

class Sender {
 public:
  enum class Json { kText, kJsonb };
  Sender(Json json, bool numbered) : json_(json), numbered_(numbered) {}

  // Checks the message and keeps it. Throws 22004, 22023 or 22P02, naming the field.
  void add(const NewMessage& message);
  // Writes all of them, in their order. Needs an SPI connection. Throws 40001 for an append that a
  // REPEATABLE READ snapshot is too old for.
  void send();

  const std::vector<Uuid>& ids() const { return ids_; }

 private:
  struct Checked {
    Uuid id;
    Uuid after;
    Micros attempt_at, retry_backoff, commit_interval;
    std::int64_t channel_key, place;
    std::string_view channel_name, channel_args, name;
    Value payload_json, payload_bytes;
    std::int32_t retries;
    bool ordered, two_phase;
  };

  void link();

  const Json json_;
  const bool numbered_;  // errors say which message
  std::vector<Checked> messages_;
  std::vector<Uuid> ids_;
};

}  // namespace mq
