// Worker slots: the launcher reserves a slot, the worker takes it, waits and works in it, and frees
// it. The lock of layout.hpp covers them, but for what only the worker itself reads and writes.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "pg/postgres.hpp"
#include "pg/types.hpp"
#include "shmem/name_filter.hpp"

namespace mq::shared {

// From a worker.

// Whether this worker was asked to give way since its batch began. Tells it once.
bool gave_way();
struct Assignment {
  Oid database;
  Oid role;
};
// A worker slot that waits for a worker. Its number tells it from earlier and later reservations of
// the same slot.
struct Reservation {
  int slot = -1;  // -1: all are taken
  std::uint64_t number = 0;
  // The pool's entry as it was before. release_slot() restores it, since a worker that was never
  // asked for has had no turn.
  TimestampTz last_start = 0;
  TimestampTz due = 0;
};
// Takes the slot for this process, and returns where it is to work. InvalidOid: the slot is not for
// this process any more, or the database is closed.
Assignment take_slot(const Reservation& reservation);
void open_in_flight();  // this worker's record, see in_flight.hpp
void leave_slot();      // the worker registers it to run at exit
// Publishes what this worker found in its database: whether the extension is installed, and which roles need
// a pool. Pools of other roles go.
void publish_pools(bool installed, const std::vector<Oid>& roles);
// Publishes which channel names have handlers, for wake_handlers(); none: that is not known. Does nothing if
// they were forgotten (forget_handled()) more than so often.
void publish_handled(const std::optional<NameFilter>& names, std::uint64_t forgotten);
// Sets the backlog of this worker's pool. A new one wakes the launcher and idle workers.
void set_backlog(bool backlog);
// How many wake-ups and announcements this worker's database has had. After an announcement
// anything that the worker has read may have changed.
struct News {
  std::uint64_t wakes;
  std::uint64_t announcements;
  std::uint64_t handled_forgotten;
};
News news();
bool announced_since(std::uint64_t announcements);  // cheap
// This worker waits from now on. `due`: when it has something to do next, as far as it knows.
// False: a wake-up came after number `seen`, so the worker must not wait.
bool begin_wait(std::uint64_t seen, TimestampTz due);
void end_wait();
// Whether this worker must leave: its database is closed or not served, its pool is gone, there are
// more than mq.max_workers, or should_renew().
bool must_leave();
bool should_renew();  // see renew_workers(); cheap
// This worker would leave, but leased calls of it run. It drains: it only looks after those until
// it gets a slot of its database again, and does not count towards mq.max_workers.
void give_up_database_slot();
bool has_database_slot();  // false: it drains; cheap
bool is_closed();          // a statement wants the database for itself
// The server is short of worker slots or processes, and this worker has nothing to do before `due`,
// unless a wake-up came after number `seen`. True: its worker slot is wanted, and it should leave.
bool give_up_slot(TimestampTz due, std::uint64_t seen);
bool slots_are_wanted();
// How long a pool whose worker has given up its slot may be without one, where nothing is known to become due:
// mq.poll_interval, or a second for each pool that waits for a process, so that one a second is started to
// look. In µs.
Micros longest_rest();
Micros longest_rest(int waiting);  // where so many wait
struct Contention {
  bool contended;  // other pools of the database wait for a database slot
  bool wanted;     // one of them needs it at once
};
Contention contention();
// This worker leaves, since it has had its turn. It has nothing to do before `due` (0: unknown),
// unless a wake-up came after number `seen`. `fruitless`: it has found nothing to do at all.
void end_turn(TimestampTz due, std::uint64_t seen, bool fruitless);
// The same before the end of its turn. True: the slot is wanted, no wake-up came after number
// `seen`, and this worker should leave.
bool yield_database_slot(TimestampTz due, std::uint64_t seen, bool fruitless);
bool is_extra();      // another worker of the pool waits for work as well
void started_well();  // it can serve: its pool's count of failed starts begins anew

}  // namespace mq::shared
