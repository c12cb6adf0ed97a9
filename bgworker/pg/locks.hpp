// Locks: advisory locks in key spaces of mq's own. The server's lock manager holds them, to the end
// of the transaction unless they are released before. Claims, appends, settle, registrations,
// statistics and sequences take them.
#pragma once

#include <cstdint>

#include "pg/postgres.hpp"

extern "C" {
#include "storage/lock.h"
}

namespace mq::locks {

// The fourth field of a lock's tag. pg_advisory_lock() uses 1 and 2.
enum class Space : std::uint16_t {
  kAppend = 0x6d71,
  kSeq = 0x6d72,
  kReset = 0x6d73,
  kRegistration = 0x6d74,
  kChannel = 0x6d75,
  kSequence = 0x6d76,
  kSlots = 0x6d77,
  kWaitPaths = 0x6d78,
  kCount = 0x6d79,
  kPending = 0x6d7a,
  kSchedule = 0x6d7b,
};
LOCKTAG tag_of(std::uint32_t key1, std::uint32_t key2, Space space);

// Slot `number` of a channel name that has max_workers. Does not wait.
enum class Slot { kTaken, kOwn, kOfOther };  // taken now, by this transaction before, by another
Slot try_channel_slot(std::int64_t name_key, int number);
void release_channel_slot(std::int64_t name_key, int number);
// How many of the first `slots` slots other sessions hold.
int taken_channel_slots(std::int64_t name_key, int slots);
// Lets one session at a time find out whether a channel name has a slot for it. Waits, for nobody who
// waits. Released at the end of the scope.
class SlotsLock {
 public:
  explicit SlotsLock(std::int64_t name_key);
  ~SlotsLock();
  SlotsLock(const SlotsLock&) = delete;
  SlotsLock& operator=(const SlotsLock&) = delete;

 private:
  const LOCKTAG tag_;
};

// Lets one session at a time register handlers of a channel name. Waits.
void lock_registration(std::int64_t name_key);

// Lets one session at a time make, replace or remove the schedule of a name. Waits.
void lock_schedule(std::int64_t name_key);

// Lets one session at a time find out what a sequence has to be set to, and set it. Waits. Released
// at the end of the scope.
class SequenceLock {
 public:
  SequenceLock();
  ~SequenceLock();
  SequenceLock(const SequenceLock&) = delete;
  SequenceLock& operator=(const SequenceLock&) = delete;
};

// Lets one session at a time count the messages of a channel name with max_pending. Waits. Released at the end
// of the scope.
class CountLock {
 public:
  explicit CountLock(std::int64_t name_key);
  ~CountLock();
  CountLock(const CountLock&) = delete;
  CountLock& operator=(const CountLock&) = delete;

 private:
  const LOCKTAG tag_;
};

// Without shared memory: lets one transaction at a time send to a channel name with max_pending. Waits.
void lock_pending(std::int64_t name_key);

// Locks a table of mq to write or to read rows. Waits.
void lock_to_write(Oid table);
void lock_to_read(Oid table);

// Locks a table of mq, for work that can be done later. False: another session's lock conflicts,
// and would have to be waited for.
bool try_table(Oid table, int mode);

// Lets one session at a time reset the stats totals. Waits.
void lock_reset();

// Lets one session at a time put messages that wait for others before pending ones. Waits.
void lock_wait_paths();

}  // namespace mq::locks
