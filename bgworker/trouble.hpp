// Trouble: what a process's loop does about errors that come again and again. It waits longer each time, and tells the
// log of each kind of error once and then how often it has come.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "error.hpp"
#include "message.hpp"

namespace mq {

inline constexpr Micros kLongestPause = 8 * kSecond;

// 1, 2, 4, then 8 seconds, from the first error in a row on.
class Backoff {
 public:
  void failed(Micros now);
  void succeeded() { *this = {}; }
  int failures() const { return failures_; }
  // How long to wait still; 0: not at all. `now` is a clock that nobody sets.
  Micros left(Micros now) const { return until_ > now ? until_ - now : 0; }

 private:
  int failures_ = 0;
  Micros until_ = 0;
};

// What the log is told of errors. They are alike if they have one SQLSTATE and message; of more than kMostKinds
// messages, if they have one SQLSTATE.
class TroubleLog {
 public:
  static constexpr std::size_t kMostKinds = 32;
  static constexpr Micros kFirstRepeat = 60 * kSecond;  // then twice as long, up to kLastRepeat
  static constexpr Micros kLastRepeat = 3600 * kSecond;
  static constexpr Micros kForget = 2 * kLastRepeat;

  // The line to write for the error, if any. `now` is a clock that nobody sets.
  std::optional<std::string> line(const Error& error, Micros now);

 private:
  struct Kind {
    Micros told_at = 0;
    Micros seen_at = 0;
    Micros repeat_after = kFirstRepeat;
    long times = 0;  // since the log was told
  };
  std::map<std::string, Kind> kinds_;
};

}  // namespace mq
