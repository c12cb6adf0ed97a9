// Client wait: how a SQL function sleeps in a session. No state.
#pragma once

#include "pg/types.hpp"
#include "pg/wait_event.hpp"

namespace mq {

// Sleeps until this process's latch is set, for `most` µs at most, and resets the latch. A cancel, a
// time limit and the server's stop end it as they end any statement. So does the client's end, where
// the system tells of it: a session whose client is gone would take messages for nobody.
void sleep_on_latch(Micros most, WaitFor what);

}  // namespace mq
