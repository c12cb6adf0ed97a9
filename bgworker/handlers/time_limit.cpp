#include "handlers/time_limit.hpp"

#include <algorithm>

#include "pg/clock.hpp"
#include "pg/format.hpp"
#include "pg/guard.hpp"

extern "C" {
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/timeout.h"
}

namespace mq {

namespace {

constexpr int kLeastGrace = 1000;  // ms between one cancel and the next, or one look and the next
constexpr int kMostGrace = 30000;
constexpr Micros kMillisecond = kSecond / 1000;
constexpr Micros kSlack = 10 * kMillisecond;  // by which the two clocks may differ unless one is set

// The signal handler sets it; the next HandlerTimeout and explain() clear it.
volatile sig_atomic_t timed_out = false;
volatile sig_atomic_t overran_limit = false;  // the signal handler sets it, once
bool may_die = false;                         // may_end_process() sets it
volatile Micros ends_at = 0;                  // when the limit has passed, by the steady clock

// The signal handler of the timeout. The server's timeouts go by the time of day: where that was set forward
// this is too early, and the next one follows.
void cancel() {
  if (proc_exit_inprogress || ServerClock().steady() < ends_at) return;
  if (timed_out && may_die) {
    overran_limit = true;
    ProcDiePending = true;
  }
  timed_out = true;
  InterruptPending = true;
  QueryCancelPending = true;
  SetLatch(MyLatch);
}

TimeoutId timer() {
  static int id = -1;
  if (id < 0) id = guard::call([] { return RegisterTimeout(USER_TIMEOUT, cancel); });
  return static_cast<TimeoutId>(id);
}

}  // namespace

HandlerTimeout::HandlerTimeout(Micros limit) {
  timed_out = false;
  if (limit <= 0) return;
  const auto milliseconds = static_cast<int>(std::clamp<Micros>(limit / 1000, 1, PG_INT32_MAX));
  const TimeoutId id = timer();
  const auto again = std::clamp(milliseconds, kLeastGrace, kMostGrace);
  ends_at = ServerClock().steady() + milliseconds * kMillisecond - kSlack;
  guard::call(
      [&] { enable_timeout_every(id, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), milliseconds), again); });
  armed_ = true;
}

HandlerTimeout::~HandlerTimeout() {
  if (armed_) disable_timeout(timer(), false);
  if (timed_out) QueryCancelPending = false;  // the cancel was not meant for what comes next
}

void HandlerTimeout::check() const {
  if (timed_out) throw Error("57014", "handler timed out");
}

void HandlerTimeout::may_end_process() {
  may_die = true;
}

bool HandlerTimeout::overran() {
  return overran_limit;
}

bool HandlerTimeout::is_over() {
  return timed_out;
}

bool HandlerTimeout::explain(Error& error, Micros limit) {
  if (!timed_out || error.sqlstate != "57014") return false;
  error.message = mq::format("handler timed out after {} ms", limit / 1000);
  timed_out = false;
  return true;
}

}  // namespace mq
