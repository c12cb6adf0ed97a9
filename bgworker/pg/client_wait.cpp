#include "pg/client_wait.hpp"

#include <algorithm>

#include "pg/guard.hpp"
#include "pg/versions.hpp"

extern "C" {
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/wait_event.h"

// As libpq/libpq.h has them, which needs the headers of every library that the server was built with.
extern PGDLLIMPORT WaitEventSet* FeBeWaitSet;
}

namespace mq {

namespace {

constexpr Micros kLongest = 3600 * kSecond;
constexpr int kSocketPosition = 0;  // FeBeWaitSetSocketPos

// For bodies of guard::call().
void wait_with_client(long milliseconds, WaitFor what) {
  WaitEvent event;
  ModifyWaitEvent(FeBeWaitSet, kSocketPosition, WL_SOCKET_CLOSED, nullptr);
  if (WaitEventSetWait(FeBeWaitSet, milliseconds, &event, 1, wait_event(what)) == 0) return;
  if ((event.events & WL_POSTMASTER_DEATH) != 0) proc_exit(1);
  if ((event.events & WL_SOCKET_CLOSED) == 0) return;
  ClientConnectionLost = true;
  InterruptPending = true;
}

}  // namespace

void sleep_on_latch(Micros most, WaitFor what) {
  const auto milliseconds = static_cast<long>((std::clamp<Micros>(most, 0, kLongest) + 999) / 1000);
  guard::call([&] {
    CHECK_FOR_INTERRUPTS();
    if (FeBeWaitSet != nullptr && MyProcPort != nullptr && WaitEventSetCanReportClosed())
      wait_with_client(milliseconds, what);
    else
      (void)WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, milliseconds, wait_event(what));
    ResetLatch(MyLatch);
    CHECK_FOR_INTERRUPTS();
  });
}

}  // namespace mq
