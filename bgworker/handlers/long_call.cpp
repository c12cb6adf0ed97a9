#include "handlers/long_call.hpp"

#include "pg/guard.hpp"
#include "shmem/activity.hpp"

extern "C" {
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/timeout.h"
}

namespace mq::long_call {

namespace {

// The functions below set these; the signal handler reads them.
volatile sig_atomic_t in_batch = false;
volatile sig_atomic_t yields_now = false;
// The signal handler sets these; the beginning of a call clears them.
volatile sig_atomic_t cancelled = false;
volatile sig_atomic_t for_lock = false;
bool armed = false;  // begin_batch() has set the timer since the last disarm()

// The signal handler of the timer. In a process that ends during a call the timer still runs, when
// there is no worker slot and then no PGPROC any more: so it does nothing then.
void tick() {
  if (!in_batch || proc_exit_inprogress) return;
  shared::note_busy_long();
  if (!yields_now || cancelled) return;
  if (GetCurrentTimestamp() - shared::call_began() < Micros{kPatience} * 1000) return;
  cancelled = true;
  for_lock = MyProc->waitLock != nullptr;
  InterruptPending = true;
  QueryCancelPending = true;
  SetLatch(MyLatch);
}

TimeoutId timer() {
  static int id = -1;
  if (id < 0) id = guard::call([] { return RegisterTimeout(USER_TIMEOUT, tick); });
  return static_cast<TimeoutId>(id);
}

}  // namespace

void begin_batch(bool several) {
  const TimeoutId id = timer();
  in_batch = true;
  armed = true;
  if (several) {
    guard::call(
        [&] { enable_timeout_every(id, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), kBusyLong), kTick); });
    return;
  }
  guard::call([&] { enable_timeout_after(id, kBusyLong); });
}

// The timer goes on: the next batch sets it anew, or disarm() before a wait ends it.
void end_batch() {
  in_batch = false;
}

void disarm() {
  if (!armed) return;
  armed = false;
  // disable_all_timeouts() cancels the process's interval timer only if a timeout is active. Else
  // an alarm that is still set would end the wait.
  const TimeoutId id = timer();
  guard::call([&] {
    if (!get_timeout_active(id)) enable_timeout_after(id, kBusyLong);
    disable_all_timeouts(false);
  });
}

Call::Call(bool yields) {
  cancelled = false;
  for_lock = false;
  yields_now = yields;
}

Call::~Call() {
  yields_now = false;
}

void Call::returned() {
  yields_now = false;
  if (cancelled && QueryCancelPending) {
    QueryCancelPending = false;
    cancelled = false;
  }
}

bool Call::was_stopped() {
  yields_now = false;
  if (cancelled && QueryCancelPending) {  // the call has failed by itself before it received it
    QueryCancelPending = false;
    cancelled = false;
  }
  return cancelled;
}

bool Call::waited_for_lock() {
  return for_lock;
}

}  // namespace mq::long_call
