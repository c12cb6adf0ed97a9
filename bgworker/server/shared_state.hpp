// Shared memory, as shared.cpp and shared_launcher.cpp see it: the layout, the lock, and how entries are found.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "../mark_set.hpp"
#include "../throttle.hpp"
#include "inflight.hpp"
#include "shared.hpp"

extern "C" {
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
}

namespace mq::shared {

constexpr int kMorePools = 512;  // than databases
constexpr int kSeats = 512;
constexpr int kLeases = 1024;
constexpr int kCasualties = 2 * kSeats + kLeases;
constexpr std::size_t kMarkSets = 512;  // each for some 4,000 marks
constexpr std::size_t kMarkLocks = 16;
constexpr std::size_t kChannelBytes = 128;
constexpr int kNamesHeld = 64;
constexpr std::size_t kRefusalBytes = 256;
constexpr std::uint32_t kAudiences = 256;
constexpr Micros kConsumersGone = 60 * kSecond;  // since somebody has polled; mq_poll tells nobody to wait for longer
constexpr Micros kClosedFor = 20 * kSecond;      // DROP DATABASE itself waits for 5, and the hook before it
constexpr Micros kLostFor = 3600 * kSecond;      // whoever was to charge it is gone
constexpr Micros kLongCall = kSecond / 10;       // its worker is not there for others of its pool
constexpr int kThrottles = 256;
constexpr int kUnsettled = 64;
constexpr int kFailures = 128;
constexpr std::size_t kFailureBytes = 512;

struct Database {
  Oid id;  // InvalidOid: free
  bool look;
  bool known;
  bool installed;
  bool contended;
  bool tight;             // a commit may be for a pool that has no worker which is free, and no room for another
  int places_wanted;      // idle workers that should make room at once
  Oid needy;              // the only pool that they should make room for; InvalidOid: there are others
  Micros next_fruitless;  // see after_fruitless
  TimestampTz closed_until;
  std::uint64_t wakes;
  std::uint64_t announcements;
};

// Who listens and who polls in a database, and which commits tell nobody. Found by the database's OID modulo
// kAudiences, so that databases that nobody knows of yet have one: where two meet, one is notified for the other's
// listeners. Changed without the lock.
struct Audience {
  pg_atomic_uint32 listeners;
  pg_atomic_uint32 quiet_commits;
  pg_atomic_uint64 polled_at;  // last, a TimestampTz; 0: not since the server started
};

struct Pool {
  Oid database;  // InvalidOid: free
  Oid role;
  std::size_t database_at;  // where the launcher found it last
  bool backlog;
  TimestampTz last_start;
  int failed_starts;
  bool obstructed;  // when it was last looked at: something keeps the role from connecting
  // When a worker of it was free last: of all that was sent until the database had been woken `seen` times the next was
  // due then. `due` 0: nobody knows.
  std::uint64_t seen;
  TimestampTz due;
  // Workers in a row that found nothing to do though it seemed so; the next one is not started before that.
  int fruitless;
  TimestampTz not_before;
  char refusal[kRefusalBytes];  // of the last connection for leased handlers; empty: it was accepted
};

struct Held {
  std::int64_t name_key;
  std::int64_t messages;
};

struct Seat {
  Oid database;  // InvalidOid: free
  Oid role;
  PGPROC* worker;             // nullptr: reserved, the worker has not come yet
  std::uint64_t reservation;  // by which that worker knows it
  bool waiting;
  bool served;
  Doing doing;
  bool sits;                         // has had its batch for long
  int connecting;                    // sessions for leased handlers that are being opened
  char channel_name[kChannelBytes];  // cut to fit
  Uuid message;
  TimestampTz since;
  std::uint64_t handled;
  bool gives_up;   // its slot, to another database
  bool yields;     // its place, to another pool
  bool gives_way;  // was asked to
  bool stale;      // a new one would have other settings
  bool renew;      // so it only waits for its leased calls, and gets no place again
  bool keeper;     // has no place: it looks after leased calls that it began, until the launcher gives it one
  bool alone;      // no leased call of the pool may run beside one of this worker
  int names_held;
  Held held[kNamesHeld];  // the current batch; what has no room is not shown
};

// A leased call that runs.
struct Lease {
  std::int64_t token;  // 0: free
  Oid database;
  Oid role;
  int seat;     // -1: its worker has ended, its session maybe not yet
  int backend;  // the session's process id
  std::int64_t name_key;
  bool block_on_dead;
  TimestampTz since;
};

// A channel name whose handlers have conflicted.
struct Throttled {
  Oid database;  // InvalidOid: free
  std::int64_t name_key;
  Throttle limits;
};

// A message that cannot be settled, and is put off for now.
struct Unsettled {
  Oid database;  // InvalidOid: free
  Uuid message;
  TimestampTz until;
  int times;
  char channel_name[kChannelBytes];  // cut to fit, like the error
  char error[kRefusalBytes];
};

struct Failure {
  Oid database;  // InvalidOid: the launcher's
  Oid role;
  int seat;  // of the worker; -1: of the pool or the launcher
  Part part;
  TimestampTz since;
  TimestampTz last;
  int times;   // 0: free
  int served;  // of those, ends of processes that could serve; the others are failed_starts of the pool
  char sqlstate[6];
  char text[kFailureBytes];  // cut to fit
};

struct Lost {
  inflight::Mark mark;  // of no database: free
  Loss loss;
  TimestampTz at;
  int charger;  // the process that is about to charge it; 0: nobody
};

struct State {
  LWLock* lock;
  PGPROC* launcher;
  volatile bool launcher_pauses;  // it looks, or has just looked, and does so again soon if it is asked to
  volatile bool launcher_asked;
  SlotState slots;
  bool short_of_slots;         // workers give up slots
  int slots_wanted;            // workers that should give up theirs
  int databases_beyond;        // served, but there is no room for them
  bool no_room;                // for a database that was announced since the launcher looked
  bool look_around;            // databases have come or gone
  std::uint64_t reservations;  // of seats, since the server started
  Audience audiences[kAudiences];
  // Of each table entries are in use up to a high-water mark only: whoever looks through it pays for those. A new entry
  // takes the first free one.
  std::span<Database> databases;  // behind this structure, as many as mq.max_databases
  std::span<Pool> pools;
  std::size_t databases_used;
  std::size_t pools_used;
  std::size_t seats_used;
  std::size_t leases_used;
  Seat seats[kSeats];
  Lost lost[kCasualties];
  int lost_calls;  // of them in use
  // Low-water marks of channel names and of ordered channels (marks.hpp), not under `lock`: a set's lock is that of its
  // number modulo kMarkLocks.
  LWLockPadded* mark_locks;
  std::uint64_t mark_seed;  // so that nobody can make names that meet in one place
  MarkSet name_marks[kMarkSets];
  MarkSet channel_marks[kMarkSets];
  Lease leases[kLeases];
  Throttled throttled[kThrottles];
  int throttles;  // of them in use
  Unsettled unsettled[kUnsettled];
  Failure failures[kFailures];
};
static_assert(kMarkSets % kMarkLocks == 0);

extern State* state;  // set by mq_shared_startup in the postmaster, inherited
extern int my_seat;   // set by take_seat; -1 where there is none

void copy_cut(char* to, std::size_t size, std::string_view text);  // at a character
void abandon_leases();                                             // of this worker, which ends; under the lock
void add_lost(const inflight::Mark& mark, Loss loss);              // under the lock
void forget_lost(const std::vector<Oid>& existing);    // of databases that are gone, or long ago; under the lock
void forget_limits(const std::vector<Oid>& existing);  // likewise
void forget_failures_of(int seat);                     // under the lock
void forget_failures_beyond_pools(Oid database);       // of roles that have none any more; under the lock
const Failure* last_end(Oid database, Oid role);       // of a process of the pool; under the lock

class Guard {
 public:
  explicit Guard(LWLockMode mode) { LWLockAcquire(state->lock, mode); }
  ~Guard() { LWLockRelease(state->lock); }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;
};

inline bool is_free(const Database& d) {
  return d.id == InvalidOid;
}
inline bool is_free(const Pool& pool) {
  return pool.database == InvalidOid;
}
inline bool is_free(const Seat& seat) {
  return seat.database == InvalidOid;
}
inline bool is_free(const Lease& lease) {
  return lease.token == 0;
}

inline std::span<Database> used_databases() {
  return state->databases.first(state->databases_used);
}
inline std::span<Pool> used_pools() {
  return state->pools.first(state->pools_used);
}
inline std::span<Seat> used_seats() {
  return {state->seats, state->seats_used};
}
inline std::span<Lease> used_leases() {
  return {state->leases, state->leases_used};
}

// The first free entry, which is in use from now on; nullptr: there is none. Under the lock.
template <class Entry>
Entry* take_free(std::span<Entry> all, std::size_t& used) {
  for (std::size_t i = 0; i < used; ++i)
    if (is_free(all[i])) return &all[i];
  return used < all.size() ? &all[used++] : nullptr;
}

// After entries were freed. Under the lock.
template <class Entry>
void lower_mark(std::span<Entry> all, std::size_t& used) {
  while (used > 0 && is_free(all[used - 1])) --used;
}
inline void databases_freed() {
  lower_mark(state->databases, state->databases_used);
}
inline void pools_freed() {
  lower_mark(state->pools, state->pools_used);
}
inline void seats_freed() {
  lower_mark(std::span<Seat>(state->seats), state->seats_used);
}
inline void leases_freed() {
  lower_mark(std::span<Lease>(state->leases), state->leases_used);
}

// A process asks for the same database, and the same pool, again and again: it looks first where it found it last.
inline Database* find_database(Oid id) {
  static std::size_t last = 0;
  const std::span<Database> used = used_databases();
  if (last < used.size() && used[last].id == id) return &used[last];
  const auto found = std::find_if(used.begin(), used.end(), [&](const Database& d) { return d.id == id; });
  if (found == used.end()) return nullptr;
  last = static_cast<std::size_t>(found - used.begin());
  return &*found;
}

inline Database* find_or_add_database(Oid id) {
  if (Database* found = find_database(id)) return found;
  Database* free = take_free(state->databases, state->databases_used);
  if (free != nullptr) {
    *free = Database{};
    free->id = id;
  }
  return free;
}

inline Pool* find_pool(Oid database, Oid role) {
  static std::size_t last = 0;
  const auto is_it = [&](const Pool& p) { return p.database == database && p.role == role; };
  const std::span<Pool> used = used_pools();
  if (last < used.size() && is_it(used[last])) return &used[last];
  const auto found = std::find_if(used.begin(), used.end(), is_it);
  if (found == used.end()) return nullptr;
  last = static_cast<std::size_t>(found - used.begin());
  return &*found;
}

inline void add_pool(Oid database, Oid role) {
  if (find_pool(database, role) != nullptr) return;
  Pool* free = take_free(state->pools, state->pools_used);
  if (free == nullptr) {
    state->slots.pools_beyond = true;
    return;
  }
  *free = Pool{};
  free->database = database;
  free->role = role;
}

// Counts towards mq.max_workers.
inline bool has_place(const Seat& seat) {
  return seat.database != InvalidOid && !seat.renew && !seat.keeper;
}

inline void wake_launcher() {
  if (state->launcher != nullptr) SetLatch(&state->launcher->procLatch);
}

// At most every 100 ms, however many ask. It changes nothing that needs the lock, and may be called by a signal
// handler.
inline void wake_launcher_soon() {
  pg_write_barrier();  // whoever is told to look sees why
  state->launcher_asked = true;
  pg_memory_barrier();
  if (state->launcher_pauses) return;
  if (PGPROC* launcher = *const_cast<PGPROC* volatile*>(&state->launcher)) SetLatch(&launcher->procLatch);
}

inline void wake_all_of(Oid database) {
  for (Seat& seat : used_seats())
    if (seat.database == database && seat.worker != nullptr) SetLatch(&seat.worker->procLatch);
}

}  // namespace mq::shared
