// AbortedCall: a call of a handler that did not come to an end. Plain values without state.
// shmem/shared.hpp keeps and hands out aborted calls; the worker loop and the leased executor
// charge them, by the rules of handlers/policy.
#pragma once

#include <cstdint>

#include "pg/types.hpp"

namespace mq {

// Why a call did not come to an end.
enum class AbortReason {
  kCrash,     // its process brought a signal upon itself, and the server down
  kKilled,    // its process was killed: by SIGKILL, or by the abort of a PANIC
  kOverrun,   // it ignored its time limit, and the worker was ended with it
  kFatal,     // it ended the worker
  kRunFailed  // the mq_run that made it failed
};

struct AbortedCall {
  Uuid message;      // the first one of the call
  int messages = 1;  // of the call; of a leased call: how many leased calls ran together
  AbortReason reason = AbortReason::kCrash;
  std::int64_t token = 0;  // of the lease; 0: no leased call
  int signal = 0;          // kCrash: the signal's number
  int number = 0;          // the index by which aborted_calls_settled() knows the call
};

}  // namespace mq
