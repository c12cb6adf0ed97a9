// Clock: the time and random numbers. The server's processes use ServerClock; unit tests have
// clocks that they set. Neither has a lock.
#pragma once

#include "pg/types.hpp"

namespace mq {

class Clock {
 public:
  virtual ~Clock() = default;
  // Since 2000-01-01 UTC.
  virtual Micros now() = 0;
  virtual Micros steady() = 0;  // for durations: setting the system's time does not change it
  virtual double random() = 0;  // a random number in [0, 1)
};

class ServerClock : public Clock {
 public:
  Micros now() override;
  Micros steady() override;
  double random() override;
};

}  // namespace mq
