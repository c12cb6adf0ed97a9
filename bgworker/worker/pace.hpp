// Pace: how long the calls of each channel name take, as this worker has measured it. It decides
// which channel names may share a transaction.
//
// All messages of a batch are locked until the last of its handlers has returned. Therefore:
//   1. A batch mixes only channel names whose calls are known to be quick (in mq_run also those not
//      measured yet).
//   2. A slow channel name has a batch for itself, of no more messages than fit into kApart (kSlice
//      for batch handlers); one not measured yet, of one message (kFirstPace for batch handlers).
//   3. After a collision with another call of its transaction a channel name has one call to a
//      transaction for kCollides.
// Worker (loop.hpp) owns a Pace and is its only caller. Only this process has its state.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "handlers/registry.hpp"

namespace mq {

inline constexpr Micros kQuickCall = 5'000;        // the longest call that counts as quick
inline constexpr Micros kApart = 20'000;           // length of a batch of calls that are not quick
inline constexpr Micros kSlice = 200'000;          // how long a batch's handlers may run together
inline constexpr int kFirstPace = 64;              // messages of a batch before anything is measured
inline constexpr Micros kCollides = 60 * kSecond;  // how long a collision is remembered

class Pace {
 public:
  // `messages` messages of the channel name took `took` µs together.
  void ran(std::string_view channel_name, Micros took, int messages);
  // A call was stopped after so many µs a message, since other messages waited behind it.
  void yielded(std::string_view channel_name, Micros after);
  // A call interfered with another call of its transaction. `now` is the steady clock's.
  void collided(std::string_view channel_name, Micros now);
  // Forgets collisions older than kCollides. `now` is the steady clock's.
  void forget(Micros now);

  bool is_known(const Channel& channel) const { return expected_.contains(channel.name); }
  // Whether one call is expected to take at most kQuickCall, and none collided lately.
  bool is_quick(const Channel& channel) const;
  // The most messages for a batch of that channel name alone; at least 1.
  int apart(const Channel& channel) const;

 private:
  // µs for one message. Each measurement replaces the value by the mean of itself and the value.
  std::map<std::string, double, std::less<>> expected_;
  std::map<std::string, Micros, std::less<>> collided_;  // steady time of the last collision
};

}  // namespace mq
