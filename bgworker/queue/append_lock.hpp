// The append lock: transactions append to an ordered channel one at a time.
//
// queue/sender.cpp takes it before it finds the tails. The locks are advisory locks (pg/locks.hpp),
// held to the end of the transaction. The commit actions of this process note which are held.
//
// 1. An append waits for the end of a transaction that has appended to the same channel, and for no
//    other channel. So the order of sequence numbers in a channel is the order of commits.
// 2. An append takes SHARE on one of 1,024 partitions and EXCLUSIVE on the channel. A call with
//    several channels takes them by (partition, key), so two such calls do not deadlock.
// 3. A transaction locks at most kMostChannels channels. A call that would exceed that takes
//    EXCLUSIVE on the partitions of its new channels instead, in ascending order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace mq {

inline constexpr std::size_t kMostChannels = 256;

// Locks the channels; waits for other transactions. A call that takes partitions after an earlier
// call has taken locks could deadlock, and the server might choose another session as the victim.
// So it does not wait in the lock manager: it tries for deadlock_timeout, then throws 40001.
void lock_appends(const std::vector<std::int64_t>& channel_keys);

}  // namespace mq
