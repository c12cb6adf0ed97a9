// The time limit of a handler that runs in this process, by one of the server's timeouts.
//
// The timeout cancels the query when the limit has passed, and again after each further limit (at
// least one second, at most 30). In a worker the second one ends the process, so a handler that
// catches the cancel is stopped, too. A clock that is set forward does not cut the limit short.
//
// FmgrCaller has one around each transactional call, LocalSession around each leased call of
// mq_run; worker/process.cpp asks at exit. The state is of this process and of the last call that
// began. The timeout's signal handler writes it, too.
#pragma once

#include "pg/error.hpp"
#include "pg/types.hpp"

namespace mq {

class HandlerTimeout {
 public:
  explicit HandlerTimeout(Micros limit);  // 0: no limit
  ~HandlerTimeout();
  HandlerTimeout(const HandlerTimeout&) = delete;
  HandlerTimeout& operator=(const HandlerTimeout&) = delete;

  // Throws 57014 if the limit has passed: the handler may have caught the cancel and returned.
  void check() const;
  // For a worker: from now on the second cancel ends the process.
  static void may_end_process();
  // Whether that is why the process ends.
  static bool overran();
  // Whether the limit has passed, and explain() has not told so yet.
  static bool is_over();
  // Whether the error is the cancel of the limit; if so, makes its message say so.
  static bool explain(Error& error, Micros limit);

 private:
  bool armed_ = false;
};

}  // namespace mq
