#include "queue/append_lock.hpp"

#include <set>
#include <utility>

#include "pg/clock.hpp"
#include "pg/format.hpp"
#include "pg/guard.hpp"
#include "pg/locks.hpp"
#include "pg/types.hpp"
#include "queue/commit_actions.hpp"

extern "C" {
#include "miscadmin.h"
#include "storage/lock.h"
#include "storage/proc.h"
}

namespace mq {

namespace {

using locks::Space;
using locks::tag_of;

constexpr std::uint32_t kPartitions = 1024;
constexpr Micros kPause = 2000;  // between two tries

std::uint32_t partition_of(std::int64_t channel_key) {
  return static_cast<std::uint32_t>(static_cast<std::uint64_t>(channel_key) % kPartitions);
}

LOCKTAG channel_tag(std::int64_t channel_key) {
  const auto key = static_cast<std::uint64_t>(channel_key);
  return tag_of(static_cast<std::uint32_t>(key >> 32), static_cast<std::uint32_t>(key), Space::kChannel);
}

void lock_channels(const std::set<std::pair<std::uint32_t, std::int64_t>>& channels) {
  for (const auto& [partition, key] : channels) {
    const LOCKTAG shared = tag_of(0, partition, Space::kAppend);
    const LOCKTAG own = channel_tag(key);
    guard::call([&] {
      (void)LockAcquire(&shared, ShareLock, false, false);
      (void)LockAcquire(&own, ExclusiveLock, false, false);
    });
  }
}

void lock_partitions(const std::set<std::uint32_t>& partitions, bool wait) {
  ServerClock clock;
  const Micros until = clock.steady() + Micros{DeadlockTimeout} * 1000;
  for (const std::uint32_t partition : partitions) {
    const LOCKTAG tag = tag_of(0, partition, Space::kAppend);
    while (!guard::call([&] {
      CHECK_FOR_INTERRUPTS();
      return LockAcquire(&tag, ExclusiveLock, false, !wait) != LOCKACQUIRE_NOT_AVAIL;
    })) {
      if (clock.steady() >= until)
        throw Error("40001",
                    mq::format("could not serialize access: the transaction appends to more than {} ordered channels, "
                               "others append to some of them too, and waiting for those could deadlock",
                               kMostChannels),
                    "", "Append to all of them in one call, or try the transaction again.");
      pg_usleep(kPause);
    }
  }
}

}  // namespace

void lock_appends(const std::vector<std::int64_t>& channel_keys) {
  commit_actions::AppendLocks& held = commit_actions::append_locks();
  // Locks channels in `held` again, as a rolled-back subtransaction has released its locks. That
  // costs nothing for a lock that is held.
  std::set<std::pair<std::uint32_t, std::int64_t>> channels;
  std::size_t added = 0;
  for (const std::int64_t key : channel_keys) {
    if (!channels.emplace(partition_of(key), key).second) continue;
    if (!held.channels.contains(key)) ++added;
  }
  if (!held.by_partition && held.channels.size() + added <= kMostChannels) {
    lock_channels(channels);
    for (const auto& [partition, key] : channels) held.channels.insert(key);
    return;
  }
  std::set<std::pair<std::uint32_t, std::int64_t>> own;
  std::set<std::uint32_t> partitions;
  for (const auto& [partition, key] : channels) {
    if (held.channels.contains(key))
      own.emplace(partition, key);
    else
      partitions.insert(partition);
  }
  const bool first = !held.by_partition && held.channels.empty();
  held.by_partition = true;
  lock_channels(own);
  lock_partitions(partitions, first);
}

}  // namespace mq
