// Shared memory: who works where, and who waits for work. Set up when the library is preloaded; without that
// every function here does nothing, and wake-ups are left to polling.
//
//   databases  one entry for each database that the launcher knows of or that something was announced for
//   pools      one for each (database, role) that workers are wanted for; written by workers that have read the
//              handlers, and by the launcher
//   seats      one for each worker; reserved by the launcher, filled by the worker when it starts, freed by the
//              worker when it ends, or by the launcher when it never started
//
// One lightweight lock covers all of it. Nothing under it can raise an error.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "../pool.hpp"
#include "../ports.hpp"
#include "postgres.hpp"

namespace mq::shared {

bool available();

// From any session.
void announce_database(Oid database);  // the launcher should look at it
void wake_workers(Oid database);       // one waiting worker of each pool
void wake_or_announce(Oid database);   // the first, if workers are known to be for it; its extension may just have come
// Sessions of this database that LISTEN to a channel of ours. A session that counts must see to it that it is taken off
// again; after a crash of one the server begins anew.
void add_listener();
void remove_listener();
// Whether no session of this database listens, so that a commit need not NOTIFY. If so the commit counts as quiet until
// end_quiet_commit. False where unknown.
bool begin_quiet_commit();
void end_quiet_commit();
// True if a quiet commit may be under way: a poll that starts now may not see it, and its consumer was not told.
bool quiet_commit_under_way();
// mq_poll was called in this database.
void note_poll();
// Somebody listens or has polled within the last minute. False where unknown.
bool has_consumers();
void close_database(Oid database);  // its workers should leave, none should start for a while
void open_database(Oid database);   // undoes that
// Their process ids: the workers of the database, and the sessions of the leased calls that run in it.
std::vector<int> processes_in(Oid database);
// That worker waits for a lock of this session's, and this session for it: what it does is cancelled. Others are left
// alone.
void ask_to_give_way(int worker);
// Workers of the database and role (InvalidOid: of all) should leave before their next claim, and others come. One with
// leased calls stays until these are over, without a place. While such a one is there, others of its pool whose leased
// calls run go on until it has left: so of a pool there is one process more than it has had places, however often it is
// asked. One in a call keeps its place until that is over.
void renew_workers(Oid database, Oid role);
void look_around();  // the launcher should read pg_database

// From a worker.
bool gave_way();  // it was asked to since its batch began; it is told once
struct Assignment {
  Oid database;
  Oid role;
};
// A seat that waits for a worker. The number tells it from what the same seat was reserved for before and after.
struct Reservation {
  int seat = -1;  // none: all are taken
  std::uint64_t number = 0;
};
Assignment take_seat(const Reservation& reservation);  // InvalidOid: it is not for this process any more
void open_marks();                                     // for what it runs, see inflight.hpp
void leave_seat();                                     // registered to run at exit
void publish_pools(bool installed, const std::vector<Oid>& roles);
void set_backlog(bool backlog);  // of this worker's pool; tells the launcher when it grows
// Of this worker's database: wake-ups, and announcements, after which what it read before may have changed.
struct News {
  std::uint64_t wakes;
  std::uint64_t announcements;
};
News news();
bool announced_since(std::uint64_t announcements);  // cheap
// Says that it waits now. False: something was sent since `seen`, so it must not.
// Something is `due` then, as far as it knows.
bool begin_wait(std::uint64_t seen, TimestampTz due);
void end_wait();
bool must_leave();    // database closed or not served, pool gone, too many workers, or should_renew
bool should_renew();  // see renew_workers; cheap
// This worker would leave, but for leased calls that run: until it has a place again it only looks after those, and
// does not count towards mq.max_workers.
void give_place_up();
bool has_place();  // cheap
bool is_closed();  // somebody wants the database for himself
// There are not slots for all workers, this one has nothing to do before `due`, unless something was sent since `seen`,
// and its slot is wanted: it should leave.
bool give_up_slot(TimestampTz due, std::uint64_t seen);
bool slots_are_wanted();
struct Crowd {
  bool contended;  // other pools of the database wait for a place
  bool wanted;     // one of them needs it at once
};
Crowd crowd();
// This worker leaves since it has had its turn. It has nothing to do before `due`, unless something was sent since
// `seen`; 0: it does not know. `fruitless`: it has found nothing to do at all.
void end_turn(TimestampTz due, std::uint64_t seen, bool fruitless);
// Likewise before it has had it, and only if nothing was sent since `seen`: it should leave, since its place is wanted.
bool yield_place(TimestampTz due, std::uint64_t seen, bool fruitless);
bool is_extra();      // another worker of the pool is waiting for work as well
void started_well();  // it can serve: its pool's count of failed starts begins anew

// A call of this worker that ends with the process; and all such calls, and those that a crash of the server is to be
// charged to, of this process's database and role. They are handed to one process at a time, until it says which ones
// are settled.
void note_lost(Loss loss);
bool any_casualty();  // cheap
std::vector<Casualty> take_casualties();
void casualties_settled(const std::vector<int>& numbers);  // the others are to be had again

// What this worker does, for mq_workers. Cheap: called for each message.
enum class Doing { kBetween, kCall, kSettling, kCommitting };
void note_call(std::string_view channel_name, const Uuid& message);
void note_returned();
void note_settling(TimestampTz now);  // what has become of the batch's messages
void note_committing();               // then that; the server runs deferred triggers
void note_idle();
void note_handled(std::uint64_t messages);
TimestampTz call_began();  // the last one
// It has had its batch for long: until note_idle others of its pool should be there for what else is due. For a signal
// handler.
void note_sits();
void note_batch(const Batch& messages);  // that the worker holds until note_idle

// Leased calls of this worker or, by mq_run, this session. A call that has been entered is alive until it is left, or
// its session has ended.
struct NewLease {
  std::int64_t token;
  int backend;
  std::int64_t name_key;  // channel_key of the channel name and no arguments
  int most;               // calls on the channel name in this database at once; 0: no limit
  bool block_on_dead;
};
int enter_lease(const NewLease& lease);  // its number; -1: no room
void leave_lease(int number);
void lose_lease(int number, const Uuid& message);  // the session goes on, but its call has failed with mq_run
void note_alone(bool alone);  // no other worker of the pool may enter a call beside those of this one
int leases_on(std::int64_t name_key);
bool lease_is_alive(std::int64_t token);
bool lease_is_lost(std::int64_t token);  // the call's end is about to be charged
struct LeasedCallState {
  int backend;
  Oid role;
  std::int64_t token;
  TimestampTz since;
};
std::vector<LeasedCallState> leased_calls();  // of this database, those that are alive
bool is_session_of_mine(int backend);         // of this database and role
Oid my_role();
// What this session was called with, where it is one that a worker has opened.
struct HandledHere {
  std::int64_t token;
  bool block_on_dead;
};
std::optional<HandledHere> handled_here();
void set_handled_here(const std::optional<HandledHere>& call);  // for a call in this very process
// How opening a session went; empty: well.
void note_connection(const std::string& refusal);
void note_connecting(int sessions);  // that this worker is opening
int connecting();                    // that the other workers of the server are opening

// Limits of a channel name after its handlers have conflicted (throttle.hpp). Cheap where there are none.
bool any_limits();  // of any database
std::optional<Host::Limits> limits_of(std::int64_t name_key);
void note_conflict(std::int64_t name_key, Micros batch_began, int messages);
bool others_wait_for_locks();  // another worker of the database

// Messages that could not be settled, for mq_health(): the last ones.
void note_unsettled(const Uuid& message, std::string_view channel_name, std::string_view error, Micros until);
struct UnsettledMessage {
  Uuid message;
  std::string channel_name;
  std::string error;
  TimestampTz until;
  int times;
};
std::vector<UnsettledMessage> unsettled();  // of this database, put off until a moment to come or just past
// What fails and is no handler's fault, for mq_health(): by a worker (parts of its loop), by its pool (kProcess) or by
// the launcher. Of a worker it is forgotten when that part works again, or the worker has left.
void note_fails(Part part, std::string_view sqlstate, std::string_view text);
void note_works(Part part);
struct Failing {
  int pid;  // 0: of a pool or the launcher
  Oid role;
  Part part;
  TimestampTz since;
  TimestampTz last;
  int times;
  std::string sqlstate;
  std::string text;
};
std::vector<Failing> failing();  // in this database, and the launcher
struct Refusal {
  Oid role;
  std::string text;
};
std::vector<Refusal> refusals();  // of this database

// For the views, from any session. Empty without shared memory.
struct WorkerState {
  int pid;
  Oid database;
  Oid role;
  bool waiting;
  bool has_place;
  Doing doing;
  std::string channel_name;
  Uuid message;
  TimestampTz since;
  std::uint64_t handled;
};
std::vector<WorkerState> workers();
struct KeeperState {
  int pid;
  Oid database;
  Oid role;
  int calls;          // leased ones that run
  TimestampTz since;  // the first of them
};
std::vector<KeeperState> keepers();  // workers of the server that wait for leased calls to end, without a place
// Messages of this database in the workers' batches, by the key of the channel's name.
std::map<std::int64_t, std::int64_t> held_by_workers();
// Room for workers in the server, as the launcher found it.
struct SlotState {
  bool out_of_slots;  // max_worker_processes are in use
  bool out_of_seats;  // ours are
  int waiting;        // pools without a worker for that reason
  bool pools_beyond;  // more roles in all databases than there is room for
};
struct ServiceState {
  bool launcher;      // runs
  bool served;        // the launcher knows of this database
  bool out_of_slots;  // the last worker could not be started
  Oid failing_role;   // whose workers end before they can serve, if there is one
  int failed_starts;  // of it, in a row
  bool beyond;        // the database is to be served, but mq.max_databases others are
  SlotState slots;
};
ServiceState service();
struct FailingPool {
  Oid role;
  int failed_starts;
  std::string error;  // that the last one ended with; empty: unknown
};
std::vector<FailingPool> failing_pools();  // of this database

// From the launcher.
struct DatabaseState {
  Oid database;
  bool look;       // somebody announced it
  bool installed;  // as a worker found it; meaningless before `known`
  bool known;
  bool closed;
};
void launcher_attach();
void launcher_detach();   // registered to run at exit
bool take_look_around();  // whether somebody asked for it since
// Forgets the databases that are not among `served`, and makes room for those of them that are not known to be without
// the extension. Returns how many have none.
int keep_databases(const std::vector<Oid>& served, const std::set<Oid>& without);
// Forgets the databases that were found to be without the extension, until something is announced there. Tells which.
std::vector<Oid> forget_without_extension();
bool take_no_room();  // something was announced where there was no room
std::vector<DatabaseState> databases();
void want_caretaker(Oid database);  // makes its pool, if it has none
std::vector<PoolState> pools();
// Of a pool whose workers fail: whether something keeps its role from connecting. When that changes, it is tried at
// once.
void set_obstructed(Oid database, Oid role, bool obstructed);
void retry_failed_starts();  // at once
struct Places {
  Oid database;
  bool contended;
  bool tight;  // a commit may be for a pool that none of the workers which are free belongs to
  int wanted;  // of idle workers, at once
  Oid needy;   // the only pool that they are wanted for; InvalidOid: there are others
};
void set_places(const std::vector<Places>& places);
// It looks now, and pauses then; what it is asked from now on it has not seen. At the end of the pause it learns
// whether somebody asked.
void launcher_looks();
bool launcher_was_asked();
int most_workers();  // that there are seats for
Reservation reserve_seat(Oid database, Oid role);
bool give_place(Oid database, Oid role);  // to a worker of the pool that has given its own up; false: there is none
void release_seat(const Reservation& reservation);   // nobody was asked to take it
void start_failed(const Reservation& reservation);   // the process never came, or came and went without taking it
bool is_reserved(const Reservation& reservation);    // and its worker has not come yet
void set_slots(const SlotState& slots, int wanted);  // so many workers should give up theirs

}  // namespace mq::shared
