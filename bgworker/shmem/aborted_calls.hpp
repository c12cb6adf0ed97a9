// Aborted calls: calls that never came to an end, until a worker has charged them to their messages.
#pragma once

#include <cstdint>
#include <vector>

#include "pg/postgres.hpp"
#include "shmem/aborted_call.hpp"

namespace mq::shared {

// Aborted calls. note_aborted_call() notes the call of this worker, which ends with the process.
// The others are about the calls to charge to messages of this process's database and role, those
// of a crash of the server among them. take_aborted_calls() hands each to one process at a time.
// aborted_calls_settled() says which numbers are settled, and makes the others available again.
void note_aborted_call(AbortReason reason);
bool any_aborted_call();  // cheap
std::vector<AbortedCall> take_aborted_calls();
void aborted_calls_settled(const std::vector<int>& numbers);
// Whether the call with this lease is an aborted call, still to be charged.
bool lease_is_aborted(std::int64_t token);

}  // namespace mq::shared
