// Locks: advisory locks in a key space of our own, held to the end of the transaction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "postgres.hpp"

namespace mq::locks {

// Appends to an ordered channel are serial to commit, so that places follow commits. Each channel has a lock of its
// own, under one of 1,024 partitions: an append takes SHARE on the partition and EXCLUSIVE on the channel, a call with
// several channels by (partition, key). So channels do not wait for one another, and calls do not deadlock.
//
// A transaction takes locks of at most kMostChannels channels. What a call adds beyond that is folded: it takes
// EXCLUSIVE on the partitions instead, in ascending order, and so never more than there are partitions. Waits; but
// where a call folds after others have taken locks, waiting could deadlock, so it tries for as long as deadlock_timeout
// and throws 40001 then: nobody else is the victim.
inline constexpr std::size_t kMostChannels = 256;
void lock_appends(const std::vector<std::int64_t>& channel_keys);

// The `number`th place for a worker on a channel name. Does not wait.
bool try_worker_place(std::int64_t name_key, int number);
void release_worker_place(std::int64_t name_key, int number);

// One registration of a channel name's handlers at a time. Waits.
void lock_registration(std::int64_t name_key);

// One at a time looks what a sequence has to be set to, and sets it. Waits; released at the end of the scope.
class SequenceLock {
 public:
  SequenceLock();
  ~SequenceLock();
  SequenceLock(const SequenceLock&) = delete;
  SequenceLock& operator=(const SequenceLock&) = delete;
};

// A lock on a table of ours, for what need not be done now: false where another session has it locked, and would be
// waited for.
bool try_table(Oid table, int mode);

// One reset of the totals at a time. Waits.
void lock_reset();

}  // namespace mq::locks
