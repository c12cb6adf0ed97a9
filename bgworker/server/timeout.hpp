// The time limit of a handler, by the server's own timer: a query cancel when it is over, and another each time as long
// again has passed (at least a second, at most thirty). In a worker the second one ends the process: a handler that
// catches cancels is stopped all the same.
#pragma once

#include "../error.hpp"
#include "../message.hpp"

namespace mq {

class HandlerTimeout {
 public:
  explicit HandlerTimeout(Micros limit);  // 0: none
  ~HandlerTimeout();
  HandlerTimeout(const HandlerTimeout&) = delete;
  HandlerTimeout& operator=(const HandlerTimeout&) = delete;

  // A handler may have caught the cancel and come back as if nothing had been: that is a failed attempt too.
  void check() const;
  // For a worker: the second limit ends it. Whether that is what it ends of.
  static void may_end_process();
  static bool overran();
  // Whether the limit of the last call has passed.
  static bool is_over();
  // Whether it was the limit that cancelled; if so, the error says so.
  static bool explain(Error& error, Micros limit);

 private:
  bool armed_ = false;
};

}  // namespace mq
