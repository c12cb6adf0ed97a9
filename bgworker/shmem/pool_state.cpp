#include "shmem/pool_state.hpp"

#include <algorithm>

namespace mq {

Micros after_fruitless(int fruitless, Micros now, Micros& next) {
  constexpr Micros kFirst = kSecond / 10;
  constexpr int kMostDoubled = 3;
  constexpr Micros kApart = kSecond / 5;
  const Micros room = std::clamp(next, now, now + kLastFruitless);
  next = room + kApart;
  return std::max(room, now + (kFirst << std::min(fruitless - 1, kMostDoubled)));
}

}  // namespace mq
