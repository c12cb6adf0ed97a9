// Keyed names: of which channel names messages with channel_args have been sent, as a hint in
// shared memory. queue/fairness.cpp uses it.
//
// A fixed table of atomics, so no lock covers it. A name finds its entry by the lower bits of its
// key; another name may take the entry at any time, and then the first one is unknown again.
// Without shared memory all names are unknown.
#pragma once

#include <cstdint>

namespace mq::shared {

class KeyedName {
 public:
  enum State : std::uint64_t { kUnknown, kPlain, kKeyed };

  explicit KeyedName(std::uint64_t key);
  State state() const { return state_; }
  void set_keyed();
  // Has no effect if the entry has changed since this was made.
  void set_plain();

 private:
  const std::uint64_t key_;  // its lowest two bits are 0
  std::uint64_t seen_ = 0;   // the entry when this was made
  State state_ = kUnknown;
};

}  // namespace mq::shared
