// Effort: how far a search goes that need not be complete, as the next one goes on elsewhere. It ends
// by number, or by time: where each thing that it looks at has to be fetched from far away, it looks at fewer.
//
// The fair sample (claim.cpp, due_scan.cpp) and the look for lost heads (maintenance.cpp, skip_scan.cpp)
// use it. The state is that of one search.
#pragma once

#include "pg/clock.hpp"

namespace mq {

class Effort {
 public:
  // Over after `most` things, however long they take.
  explicit Effort(int most) : least_(most), most_(most) {}
  // Over after `most` things, or after so much `time` and at least `least` things.
  Effort(Clock& clock, Micros time, int least, int most)
      : clock_(&clock), end_(clock.steady() + time), least_(least), most_(most) {}

  void add() { ++done_; }
  bool is_over() const { return done_ >= most_ || (done_ >= least_ && clock_->steady() >= end_); }
  int most() const { return most_; }

 private:
  Clock* clock_ = nullptr;
  Micros end_ = 0;
  int least_;
  int most_;
  int done_ = 0;
};

}  // namespace mq
