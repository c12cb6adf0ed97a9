#include "long_call.hpp"

#include "fence.hpp"
#include "shared.hpp"

extern "C" {
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/timeout.h"
}

namespace mq::long_call {

namespace {

// Set by the functions below, read by the signal handler.
volatile sig_atomic_t in_batch = false;
volatile sig_atomic_t yields_now = false;
// Set by the signal handler, cleared when a call begins.
volatile sig_atomic_t cancelled = false;
volatile sig_atomic_t for_lock = false;
bool armed = false;

void tick() {
  if (!in_batch) return;
  shared::note_sits();
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
  if (id < 0) id = fence::call([] { return RegisterTimeout(USER_TIMEOUT, tick); });
  return static_cast<TimeoutId>(id);
}

}  // namespace

void begin_batch(bool several) {
  const TimeoutId id = timer();
  in_batch = true;
  armed = true;
#if PG_VERSION_NUM >= 150000
  if (several) {
    fence::call([&] { enable_timeout_every(id, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), kSits), kTick); });
    return;
  }
#endif
  fence::call([&] { enable_timeout_after(id, several ? kPatience : kSits); });
}

// The timer is left: the next batch sets it anew, and a wait ends it.
void end_batch() {
  in_batch = false;
}

void disarm() {
  if (!armed) return;
  armed = false;
  // With a timer that is active this also undoes the alarm that is under way, which would end the wait.
  const TimeoutId id = timer();
  fence::call([&] {
    if (!get_timeout_active(id)) enable_timeout_after(id, kSits);
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
  if (cancelled && QueryCancelPending) {  // it failed by itself, and has not heard it
    QueryCancelPending = false;
    cancelled = false;
  }
  return cancelled;
}

bool Call::waited_for_lock() {
  return for_lock;
}

}  // namespace mq::long_call
