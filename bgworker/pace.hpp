// Pace: how long the calls of each channel take, as a worker has seen it, and so what may share a transaction.
//
// All messages of a batch are locked until the last of its handlers has returned. So only channels whose calls are
// known to be quick are mixed in one batch. Of a channel that is slow, or that nothing is known of yet, a batch has
// nothing else in it, and no more than fits into a short time. Nor has one whose calls have made what other calls of
// their transaction had made already: for some time it has one call to a transaction.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "registry.hpp"

namespace mq {

inline constexpr Micros kQuickCall = 5'000;        // a call that others may share a transaction with
inline constexpr Micros kApart = 20'000;           // a batch of a channel whose calls are not quick
inline constexpr Micros kSlice = 200'000;          // how long a batch's handlers may run together
inline constexpr int kFirstPace = 64;              // messages, where nothing is known
inline constexpr Micros kCollides = 60 * kSecond;  // how long a collision is remembered

class Pace {
 public:
  // Messages of the channel took so long together.
  void ran(std::string_view channel_name, Micros took, int messages);
  // A call was given up after so long, since others waited behind it.
  void yielded(std::string_view channel_name, Micros after);
  // A call met what another one had left in its transaction. `now` is the steady clock's.
  void collided(std::string_view channel_name, Micros now);
  // Forgets what is too old.
  void forget(Micros now);

  bool is_known(const Channel& channel) const { return expected_.contains(channel.name); }
  bool is_quick(const Channel& channel) const;
  // The most messages for a batch of that channel alone.
  int apart(const Channel& channel) const;

 private:
  // Of a message: the mean of what was expected and what came, each time.
  std::map<std::string, double, std::less<>> expected_;
  std::map<std::string, Micros, std::less<>> collided_;  // when last
};

}  // namespace mq
