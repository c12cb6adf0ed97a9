#include "locks.hpp"

#include <fmt/core.h>

#include <set>
#include <utility>

#include "../message.hpp"
#include "fence.hpp"
#include "ledger.hpp"

extern "C" {
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/timestamp.h"
}

namespace mq::locks {

namespace {

constexpr std::uint32_t kPartitions = 1024;
// Fourth field of the lock tag; pg_advisory_lock uses 1 and 2.
constexpr std::uint16_t kAppend = 0x6d71;
constexpr std::uint16_t kPlace = 0x6d72;
constexpr std::uint16_t kReset = 0x6d73;
constexpr std::uint16_t kRegistration = 0x6d74;
constexpr std::uint16_t kChannel = 0x6d75;
constexpr std::uint16_t kSequence = 0x6d76;

LOCKTAG tag_of(std::uint32_t key1, std::uint32_t key2, std::uint16_t space) {
  LOCKTAG tag;
  SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, key1, key2, space);
  return tag;
}

}  // namespace

namespace {

constexpr Micros kPause = 2000;

std::uint32_t partition_of(std::int64_t channel_key) {
  return static_cast<std::uint32_t>(static_cast<std::uint64_t>(channel_key) % kPartitions);
}

LOCKTAG channel_tag(std::int64_t channel_key) {
  const auto key = static_cast<std::uint64_t>(channel_key);
  return tag_of(static_cast<std::uint32_t>(key >> 32), static_cast<std::uint32_t>(key), kChannel);
}

void lock_channels(const std::set<std::pair<std::uint32_t, std::int64_t>>& channels) {
  for (const auto& [partition, key] : channels) {
    const LOCKTAG shared = tag_of(0, partition, kAppend);
    const LOCKTAG own = channel_tag(key);
    fence::call([&] {
      (void)LockAcquire(&shared, ShareLock, false, false);
      (void)LockAcquire(&own, ExclusiveLock, false, false);
    });
  }
}

void lock_partitions(const std::set<std::uint32_t>& partitions, bool wait) {
  const Micros until = GetCurrentTimestamp() + Micros{DeadlockTimeout} * 1000;
  for (const std::uint32_t partition : partitions) {
    const LOCKTAG tag = tag_of(0, partition, kAppend);
    while (!fence::call([&] {
      CHECK_FOR_INTERRUPTS();
      return LockAcquire(&tag, ExclusiveLock, false, !wait) != LOCKACQUIRE_NOT_AVAIL;
    })) {
      if (GetCurrentTimestamp() >= until)
        throw Error("40001",
                    fmt::format("could not serialize access: the transaction appends to more than {} ordered channels, "
                                "others append to some of them too, and waiting for those could deadlock",
                                kMostChannels),
                    "", "Append to all of them in one call, or try the transaction again.");
      pg_usleep(kPause);
    }
  }
}

}  // namespace

void lock_appends(const std::vector<std::int64_t>& channel_keys) {
  ledger::AppendLocks& held = ledger::append_locks();
  // Those that are held are locked again, which costs nothing: a subtransaction that was rolled back has let them go.
  std::set<std::pair<std::uint32_t, std::int64_t>> channels;
  std::size_t added = 0;
  for (const std::int64_t key : channel_keys) {
    if (!channels.emplace(partition_of(key), key).second) continue;
    if (!held.channels.contains(key)) ++added;
  }
  if (!held.folded && held.channels.size() + added <= kMostChannels) {
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
  const bool first = !held.folded && held.channels.empty();
  held.folded = true;
  lock_channels(own);
  lock_partitions(partitions, first);
}

namespace {

LOCKTAG place_tag(std::int64_t name_key, int number) {
  const auto key = static_cast<std::uint32_t>(name_key ^ (name_key >> 32));
  return tag_of(key, static_cast<std::uint32_t>(number), kPlace);
}

}  // namespace

void release_worker_place(std::int64_t name_key, int number) {
  const LOCKTAG tag = place_tag(name_key, number);
  fence::call([&] { (void)LockRelease(&tag, ExclusiveLock, false); });
}

bool try_worker_place(std::int64_t name_key, int number) {
  const LOCKTAG tag = place_tag(name_key, number);
  return fence::call([&] { return LockAcquire(&tag, ExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL; });
}

void lock_registration(std::int64_t name_key) {
  const auto key = static_cast<std::uint64_t>(name_key);
  const LOCKTAG tag = tag_of(static_cast<std::uint32_t>(key >> 32), static_cast<std::uint32_t>(key), kRegistration);
  fence::call([&] { (void)LockAcquire(&tag, ExclusiveLock, false, false); });
}

SequenceLock::SequenceLock() {
  const LOCKTAG tag = tag_of(0, 0, kSequence);
  fence::call([&] { (void)LockAcquire(&tag, ExclusiveLock, false, false); });
}

SequenceLock::~SequenceLock() {
  const LOCKTAG tag = tag_of(0, 0, kSequence);
  (void)LockRelease(&tag, ExclusiveLock, false);
}

bool try_table(Oid table, int mode) {
  return fence::call([&] { return ConditionalLockRelationOid(table, mode); });
}

void lock_reset() {
  const LOCKTAG tag = tag_of(0, 0, kReset);
  fence::call([&] { (void)LockAcquire(&tag, ExclusiveLock, false, false); });
}

}  // namespace mq::locks
