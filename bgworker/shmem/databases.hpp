// Databases, pools and the reservation of worker slots. Only the launcher
// calls these functions, but for most_workers(), which api/monitoring.cpp reads, too. State::lock
// covers what they touch, except launcher_pauses and launcher_asked (see wake_launcher_soon()).
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "pg/postgres.hpp"
#include "shmem/pool_state.hpp"
#include "shmem/worker_slots.hpp"

namespace mq::shared {

// The server's room for workers, as the launcher found it.
struct SlotState {
  bool out_of_slots;         // max_worker_processes are in use
  bool out_of_worker_slots;  // all worker slots are in use
  int waiting;               // pools without a worker for that reason
  bool pools_beyond;         // there is no room for the pools of all roles of all databases
};
struct ServiceState {
  bool launcher;      // it runs
  bool served;        // the launcher knows of this database
  bool out_of_slots;  // the last worker could not be started
  Oid failing_role;   // the one with the most failed_starts; InvalidOid: none
  int failed_starts;  // of that role, in a row: workers that ended before they could serve
  bool beyond;        // this database has no room beside mq.max_databases others
  SlotState slots;
};
ServiceState service();
struct FailingPool {
  Oid role;
  int failed_starts;
  std::string error;  // the last error that a worker of it ended with; empty: unknown
};
std::vector<FailingPool> failing_pools();  // of this database

// From the launcher.
struct DatabaseState {
  Oid database;
  bool look;       // it was announced
  bool installed;  // as a worker found it; meaningless before `known`
  bool known;
  bool closed;
};
void launcher_attach();
void launcher_detach();   // the launcher registers it to run at exit
bool take_look_around();  // whether look_around() was called since the last time
// Forgets the databases that are not in `served`. Makes room for those that are, but for those in
// `without`, which are known to have no extension. Returns how many find no room.
int keep_databases(const std::vector<Oid>& served, const std::set<Oid>& without);
// Forgets and returns databases in which a worker found no extension. Announcements add them again.
std::vector<Oid> forget_without_extension();
bool take_no_room();  // whether a database was announced that found no room
std::vector<DatabaseState> databases();
void want_probe(Oid database);  // adds the pool of the probe worker, if it is not there
std::vector<PoolState> pools();
// For a pool whose workers fail: whether something keeps its role from connecting. When that ends,
// the pool is tried at once.
void set_obstructed(Oid database, Oid role, bool obstructed);
void retry_failed_starts();  // tries all pools whose workers fail at once
struct DatabaseSlots {
  Oid database;
  bool contended;  // workers that have had their turn should leave
  bool tight;      // a commit may be for a pool that has no free worker, and no room for another
  int wanted;      // so many idle workers should leave at once
  Oid needy;       // the only pool that they should leave for; InvalidOid: not one alone
};
void set_database_slots(const std::vector<DatabaseSlots>& slots);
// The launcher begins a look with launcher_looks(), and pauses after it. At the end of the pause
// launcher_was_asked() says whether a process has asked since. See wake_launcher_soon().
void launcher_looks();
bool launcher_was_asked();
int most_workers();  // how many worker slots there are
Reservation reserve_slot(Oid database, Oid role);
// Gives a database slot to a draining worker of the pool; false: there is none.
bool give_database_slot(Oid database, Oid role);
void release_slot(const Reservation& reservation);  // no worker was asked to take it
void start_failed(const Reservation& reservation);  // its process ended and has not taken it
bool is_reserved(const Reservation& reservation);   // its worker has not come yet
// The room for workers; and how many workers should give up their worker slots.
void set_slots(const SlotState& slots, int wanted);

}  // namespace mq::shared
