// Messages with a script of what their handler does, and a clock that moves only when a test or a
// script moves it. The fakes of dispatch and those of leased calls share them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <limits>
#include <optional>
#include <random>
#include <string>

#include "pg/clock.hpp"
#include "pg/error.hpp"
#include "queue/message.hpp"

namespace mq::fake {

inline constexpr int kAlways = std::numeric_limits<int>::max();
inline constexpr Micros kMillisecond = kSecond / 1000;
inline constexpr Micros kSnooze = 7 * kSecond;  // how long a snoozed message sleeps

class FakeClock final : public Clock {
 public:
  explicit FakeClock(std::uint64_t seed = 1) : random_(seed) {}
  Micros now() override { return time; }
  Micros steady() override { return time - set_by_; }
  double random() override { return static_cast<double>(random_() >> 11) * 0x1p-53; }
  // Changes the system's time, which the steady clock does not follow.
  void set(Micros by) { time += by, set_by_ += by; }

  Micros time = 800'000'000 * kSecond;

 private:
  Micros set_by_ = 0;
  std::mt19937_64 random_;
};

// What the handler of a message does. Failures count attempts, so halves of a batch that are called
// again fail the same way.
struct Script {
  int conflicts = 0;               // so many calls end in a serialization failure
  int failures = 0;                // so many attempts end in an error
  bool fails_when_shared = false;  // a call with other messages ends in an error
  int snoozes = 0;                 // so many calls that succeed snooze the message
  bool discards = false;           // transactional: a call that does not snooze discards it
  bool changes_others = false;     // transactional: a call changes messages that are claimed with it
  double flaky = 0;                // the chance that a call fails
  Micros cost = 0;                 // how long a call takes
  bool stubborn = false;           // leased: a cancel has no effect
  int breaks = 0;                  // leased: so many attempts end with the session, without a message
  std::string sqlstate = "P0001";  // of its errors but for conflicts
};

struct Message {
  std::string channel_name = "c";
  std::string channel_args = {};
  std::string name = "n";
  bool ordered = false;
  int retries = 4;
  Micros retry_backoff = kSecond;
  Micros delay = 0;
  Micros expires = kNever;  // so long after it was sent
  Script script = {};
};

struct Row : Message {
  Row(const Message& message, std::int64_t number, Micros now)
      : Message(message),
        seq(number),
        expires_at(expires == kNever ? kNever : now + expires),
        attempt_at(std::min(now + delay, expires_at)),
        attempts_left(retries + 1) {
    for (int i = 0; i < 8; ++i) id.bytes[15 - i] = static_cast<std::uint8_t>(seq >> (8 * i));
  }

  // Whether both are of one ordered channel.
  bool shares_order(const Row& other) const {
    return ordered && other.ordered && channel_name == other.channel_name && channel_args == other.channel_args;
  }

  // As a claim returns it. All channels have the same key, so only their names keep them apart. Its
  // texts are the row's.
  Claimed claimed() const {
    Claimed message;
    message.id = id;
    message.channel_key = 7;
    message.seq = seq;
    message.attempt_at = attempt_at;
    message.retry_backoff = retry_backoff;
    message.expires_at = expires_at;
    message.channel_name = channel_name;
    message.channel_args = channel_args;
    message.name = name;
    message.attempts = attempts;
    message.attempts_left = attempts_left;
    message.ordered = ordered;
    return message;
  }

  // The error that the message causes in a call of its attempt with that number, counted from 1.
  std::optional<Error> error_of_call(int attempt, bool is_shared, FakeClock& clock) {
    if (script.conflicts > 0) {
      --script.conflicts;
      return Error("40001", "could not serialize access");
    }
    if (attempt <= script.failures || (script.fails_when_shared && is_shared) ||
        (script.flaky > 0 && clock.random() < script.flaky))
      return Error(script.sqlstate, "the script says so");
    return std::nullopt;
  }

  Uuid id;  // ascends with seq
  std::int64_t seq;
  Micros expires_at;
  Micros attempt_at;
  int attempts = 0;
  int attempts_left;
  bool blocks = false;     // it is a dead letter that its ordered channel waits behind
  std::int64_t lease = 0;  // token of the leased call; 0: none
};

}  // namespace mq::fake
