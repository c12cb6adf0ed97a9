#include "pg/locks.hpp"

#include "pg/guard.hpp"

extern "C" {
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
}

namespace mq::locks {

LOCKTAG tag_of(std::uint32_t key1, std::uint32_t key2, Space space) {
  LOCKTAG tag;
  SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, key1, key2, static_cast<std::uint16_t>(space));
  return tag;
}

namespace {

LOCKTAG channel_slot_tag(std::int64_t name_key, int number) {
  const auto key = static_cast<std::uint32_t>(name_key ^ (name_key >> 32));
  return tag_of(key, static_cast<std::uint32_t>(number), Space::kSeq);
}

LOCKTAG name_tag(std::int64_t name_key, Space space) {
  const auto key = static_cast<std::uint64_t>(name_key);
  return tag_of(static_cast<std::uint32_t>(key >> 32), static_cast<std::uint32_t>(key), space);
}

}  // namespace

void release_channel_slot(std::int64_t name_key, int number) {
  const LOCKTAG tag = channel_slot_tag(name_key, number);
  guard::call([&] { (void)LockRelease(&tag, ExclusiveLock, false); });
}

Slot try_channel_slot(std::int64_t name_key, int number) {
  const LOCKTAG tag = channel_slot_tag(name_key, number);
  return guard::call([&] {
    switch (LockAcquire(&tag, ExclusiveLock, false, true)) {
      case LOCKACQUIRE_NOT_AVAIL:
        return Slot::kOfOther;
      case LOCKACQUIRE_OK:
        return Slot::kTaken;
      default:
        return Slot::kOwn;
    }
  });
}

int taken_channel_slots(std::int64_t name_key, int slots) {
  return guard::call([&] {
    int taken = 0;
    for (int i = 0; i < slots; ++i) {
      const LOCKTAG tag = channel_slot_tag(name_key, i);
      int holders = 0;
      (void)GetLockConflicts(&tag, ExclusiveLock, &holders);
      if (holders > 0) ++taken;
    }
    return taken;
  });
}

SlotsLock::SlotsLock(std::int64_t name_key) : tag_(name_tag(name_key, Space::kSlots)) {
  guard::call([&] { (void)LockAcquire(&tag_, ExclusiveLock, false, false); });
}

SlotsLock::~SlotsLock() {
  (void)LockRelease(&tag_, ExclusiveLock, false);
}

void lock_registration(std::int64_t name_key) {
  const LOCKTAG tag = name_tag(name_key, Space::kRegistration);
  guard::call([&] { (void)LockAcquire(&tag, ExclusiveLock, false, false); });
}

CountLock::CountLock(std::int64_t name_key) : tag_(name_tag(name_key, Space::kCount)) {
  guard::call([&] { (void)LockAcquire(&tag_, ExclusiveLock, false, false); });
}

CountLock::~CountLock() {
  (void)LockRelease(&tag_, ExclusiveLock, false);
}

void lock_pending(std::int64_t name_key) {
  const LOCKTAG tag = name_tag(name_key, Space::kPending);
  guard::call([&] { (void)LockAcquire(&tag, ExclusiveLock, false, false); });
}

void lock_schedule(std::int64_t name_key) {
  const LOCKTAG tag = name_tag(name_key, Space::kSchedule);
  guard::call([&] { (void)LockAcquire(&tag, ExclusiveLock, false, false); });
}

void lock_to_write(Oid table) {
  guard::call([&] { LockRelationOid(table, RowExclusiveLock); });
}

void lock_to_read(Oid table) {
  guard::call([&] { LockRelationOid(table, AccessShareLock); });
}

SequenceLock::SequenceLock() {
  const LOCKTAG tag = tag_of(0, 0, Space::kSequence);
  guard::call([&] { (void)LockAcquire(&tag, ExclusiveLock, false, false); });
}

SequenceLock::~SequenceLock() {
  const LOCKTAG tag = tag_of(0, 0, Space::kSequence);
  (void)LockRelease(&tag, ExclusiveLock, false);
}

bool try_table(Oid table, int mode) {
  return guard::call([&] { return ConditionalLockRelationOid(table, mode); });
}

void lock_reset() {
  const LOCKTAG tag = tag_of(0, 0, Space::kReset);
  guard::call([&] { (void)LockAcquire(&tag, ExclusiveLock, false, false); });
}

void lock_wait_paths() {
  const LOCKTAG tag = tag_of(0, 0, Space::kWaitPaths);
  guard::call([&] { (void)LockAcquire(&tag, ExclusiveLock, false, false); });
}

}  // namespace mq::locks
