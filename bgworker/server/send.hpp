// Sending: from checked values to rows.
#pragma once

#include <vector>

#include "../message.hpp"
#include "arguments.hpp"
#include "spi.hpp"

namespace mq {

// One message as a caller gave it. The getters of `arguments.hpp` check it in `add`.
struct NewMessage {
  Value id, delay, retries, retry_backoff, channel_name, channel_args, commit_interval, ordered, name, payload_json,
      payload_bytes;  // payload_json is text or jsonb, see Sender
  Value dedup_key = {};
};

class Sender {
 public:
  enum class Json { kText, kJsonb };
  Sender(Json json, bool numbered) : json_(json), numbered_(numbered) {}

  // The messages to be added are dead if they are not handled in time. Throws 22023.
  void expire_after(Datum interval);
  // Checks the message and keeps it. Throws 22004, 22023 or 22P02, naming the field.
  void add(const NewMessage& message);
  // Writes all of them, in their order; none has a dedup_key. Needs an SPI connection. Throws 40001 for an append
  // that a REPEATABLE READ snapshot is too old for.
  void send();
  // Writes the one message that was added, unless another is pending under its dedup_key: returns the id of the one
  // that is now. Throws as send, and 40001 where the snapshot does not show the other.
  Uuid send_once();

  const std::vector<Uuid>& ids() const { return ids_; }

 private:
  struct Checked {
    Uuid id;
    Uuid after;
    Micros attempt_at, retry_backoff, commit_interval;
    std::int64_t channel_key, place;
    std::string_view channel_name, channel_args, name, dedup_key;
    Value payload_json, payload_bytes;
    std::int32_t retries;
    bool ordered, two_phase;
  };

  // What link() found and did, for the ledger once the messages are written.
  struct Links;
  Links link();
  static void enter(const Links& links);
  std::vector<Param> parameters() const;
  void announce() const;

  const Json json_;
  const bool numbered_;  // errors say which message
  Micros expires_at_ = kNever;
  std::vector<Checked> messages_;
  std::vector<Uuid> ids_;
};

}  // namespace mq
