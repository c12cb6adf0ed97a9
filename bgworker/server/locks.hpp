// Locks: advisory locks in a key space of our own, held to the end of the transaction.
#pragma once

#include <cstdint>
#include <vector>

namespace mq::locks {

// Appends to an ordered channel are serial to commit, so that places follow commits. The keys are folded into
// 1,024 partitions and taken in ascending order: a transaction that appends to any number of channels in one
// call takes no more locks than that and cannot deadlock with another such call. Waits.
void lock_appends(const std::vector<std::int64_t>& channel_keys);

// The `number`th place for a worker on a channel name. Does not wait.
bool try_worker_place(std::int64_t name_key, int number);

// One registration of a channel name's handlers at a time. Waits.
void lock_registration(std::int64_t name_key);

// One reset of the totals at a time. Waits.
void lock_reset();

}  // namespace mq::locks
