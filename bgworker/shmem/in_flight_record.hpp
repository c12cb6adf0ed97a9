// In-flight record: what the in-flight file (shmem/in_flight.hpp) says of one call, and what the next start of the
// server makes of the file. Pure.
//
// `end` says how far the call has come. In a call the first end that is noted stands.
//   kEntered      the call has not begun, as far as the record tells
//   kRunning      the call runs. A process that is killed by SIGKILL leaves this behind
//   kTold         the process was told to end: by another process's SIGQUIT, by the postmaster's
//                 SIGTERM, or by another process's signal of a crash (SIGSEGV, say)
//   kExited       the session of a leased call ended in order, by a FATAL error: its client was lost, say, since
//                 the worker is gone. A worker that is there charges the error
//   kSignal + n   the process brought signal n upon itself
#pragma once

#include <postgres_ext.h>

#include <cstdint>
#include <string_view>
#include <vector>

#include "pg/types.hpp"
#include "shmem/aborted_call.hpp"

namespace mq::in_flight {

inline constexpr std::int32_t kEntered = 0;
inline constexpr std::int32_t kRunning = 1;
inline constexpr std::int32_t kTold = 2;
inline constexpr std::int32_t kExited = 3;
inline constexpr std::int32_t kSignal = 1000;
inline constexpr std::int32_t kMostSignal = 64;

struct Record {
  Oid database;            // InvalidOid: no call runs
  std::int32_t messages;   // of the call; of a leased call: how many leased calls ran together
  Uuid message;            // the first one of the call
  std::int64_t token = 0;  // of the lease; 0: no leased call
  Oid role = InvalidOid;   // the call runs as this role
  std::int32_t end = kEntered;
};

struct Unfinished {
  Record record;
  AbortReason reason;
};

// The calls of `file`, the bytes of the whole file, that are to be charged. `same_postmaster`: it was written under
// this postmaster, so that kRunning means that the process was killed. Otherwise that proves nothing: power may have
// been lost, the postmaster killed, or the server stopped with mode immediate. What no process of mq writes, and a
// record that is cut off at the end, is left out: a file that a crash of the machine has damaged charges nobody.
std::vector<Unfinished> unfinished_calls(std::string_view file, bool same_postmaster);

}  // namespace mq::in_flight
