// Wait events: what a process of mq, or a session in one of its functions, waits for, as pg_stat_activity shows it
// with the wait_event_type Extension. From PostgreSQL 17 on each has its name; servers before know no names. The
// state, of this process, is the numbers that the server has given to the names.
#pragma once

#include <cstdint>

namespace mq {

enum class WaitFor {
  kLauncher,     // the launcher: for something to do
  kIdle,         // a worker: for a message
  kDue,          // a worker: until something is due, or for a message
  kLeasedCalls,  // a worker: for the sessions of its leased calls; mq_run: to settle one
  kPause,        // a worker: for the end of the pause after an error
  kReceive,      // mq_receive: for a message
  kMessages,     // mq_wait, mq_call: until messages have ended
  kLeave,        // CREATE, DROP, ALTER DATABASE: until workers have left
};

// The number for WaitLatch and its like. For bodies of guard::call(). May raise an error only where memory is out.
std::uint32_t wait_event(WaitFor what);

}  // namespace mq
