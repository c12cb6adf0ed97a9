// Trouble: what a loop does about errors that come again and again. It waits longer each time
// (Backoff). It logs each kind of error once, and then how often it has come (TroubleLog). The
// loops of the launcher, workers and leased calls own such objects; only their process uses them.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "pg/error.hpp"
#include "pg/types.hpp"

namespace mq {

inline constexpr Micros kLongestPause = 8 * kSecond;

// Pauses after errors in a row: 1, 2, 4, then 8 seconds.
class Backoff {
 public:
  void failed(Micros now);
  void succeeded() { *this = {}; }
  int failures() const { return failures_; }
  // How long still to wait, in µs; 0: not at all. `now` is of a clock that is never set.
  Micros left(Micros now) const { return until_ > now ? until_ - now : 0; }

 private:
  int failures_ = 0;
  Micros until_ = 0;
};

// TroubleLog decides which errors to log. Two errors are of one kind if they have the same SQLSTATE and message.
// Beyond kMostKinds kinds, they are if they have the same SQLSTATE.
class TroubleLog {
 public:
  static constexpr std::size_t kMostKinds = 32;
  static constexpr Micros kFirstRepeat = 60 * kSecond;  // then twice as long, up to kLastRepeat
  static constexpr Micros kLastRepeat = 3600 * kSecond;
  static constexpr Micros kForget = 2 * kLastRepeat;  // then a kind that has not come is forgotten

  // The line to log for the error, if any. `now` is in µs, of a clock that is never set.
  std::optional<std::string> line(const Error& error, Micros now);

 private:
  struct Kind {
    Micros told_at = 0;
    Micros seen_at = 0;
    Micros repeat_after = kFirstRepeat;
    long times = 0;  // since the last line was logged
  };
  std::map<std::string, Kind> kinds_;
};

}  // namespace mq
