#include "locks.hpp"

#include <set>

#include "fence.hpp"

extern "C" {
#include "storage/lock.h"
}

namespace mq::locks {

namespace {

constexpr std::uint32_t kPartitions = 1024;
// Fourth field of the lock tag; pg_advisory_lock uses 1 and 2.
constexpr std::uint16_t kAppend = 0x6d71;
constexpr std::uint16_t kPlace = 0x6d72;
constexpr std::uint16_t kReset = 0x6d73;
constexpr std::uint16_t kRegistration = 0x6d74;

LOCKTAG tag_of(std::uint32_t key1, std::uint32_t key2, std::uint16_t space) {
  LOCKTAG tag;
  SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, key1, key2, space);
  return tag;
}

}  // namespace

void lock_appends(const std::vector<std::int64_t>& channel_keys) {
  std::set<std::uint32_t> partitions;
  for (const std::int64_t key : channel_keys) partitions.insert(static_cast<std::uint64_t>(key) % kPartitions);
  for (const std::uint32_t partition : partitions) {
    const LOCKTAG tag = tag_of(0, partition, kAppend);
    fence::call([&] { (void)LockAcquire(&tag, ExclusiveLock, false, false); });
  }
}

bool try_worker_place(std::int64_t name_key, int number) {
  const auto key = static_cast<std::uint32_t>(name_key ^ (name_key >> 32));
  const LOCKTAG tag = tag_of(key, static_cast<std::uint32_t>(number), kPlace);
  return fence::call([&] { return LockAcquire(&tag, ExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL; });
}

void lock_registration(std::int64_t name_key) {
  const auto key = static_cast<std::uint64_t>(name_key);
  const LOCKTAG tag = tag_of(static_cast<std::uint32_t>(key >> 32), static_cast<std::uint32_t>(key), kRegistration);
  fence::call([&] { (void)LockAcquire(&tag, ExclusiveLock, false, false); });
}

void lock_reset() {
  const LOCKTAG tag = tag_of(0, 0, kReset);
  fence::call([&] { (void)LockAcquire(&tag, ExclusiveLock, false, false); });
}

}  // namespace mq::locks
