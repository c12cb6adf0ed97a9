// The layout of shared memory: its tables and their sizes, the locks, and how entries are found.
// For the files of this folder and queue/low_water.cpp; others call shared.hpp.
//
// State::lock covers all of it (class Guard), with these exceptions:
//   1. Audience, keyed_names and the counts of row claims hold atomics; row_claims_lock covers the claims, but
//      for seems_claimed_by_other(); receivers_lock covers the receivers, waiters_lock the waiters.
//   2. mark_locks cover the low-water marks.
//      limit_locks cover the limit tables, asked_lock the channels that are asked for.
//   3. Only the worker itself writes what its slot tells of its batch (doing, busy_long,
//      connecting, channel_name, message, since, handled, held, names_held), and it takes no lock
//      for that. Readers may see a mixture of old and new for a moment.
//   4. launcher_pauses and launcher_asked: see wake_launcher_soon().
//   5. Only the process itself writes what its Caller tells of its call and its settling, and it takes no
//      lock for that; callers.hpp says in which order.
//   6. Functions that are called for each batch read one field without the lock, as a hint.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "pg/lwlock.hpp"
#include "shmem/aborted_calls.hpp"
#include "shmem/activity.hpp"
#include "shmem/callers.hpp"
#include "shmem/channel_use.hpp"
#include "shmem/databases.hpp"
#include "shmem/failing.hpp"
#include "shmem/in_flight.hpp"
#include "shmem/leased_calls.hpp"
#include "shmem/limit_table.hpp"
#include "shmem/low_water_marks.hpp"
#include "shmem/name_filter.hpp"
#include "shmem/rare_writes.hpp"
#include "shmem/shared.hpp"
#include "shmem/throttle.hpp"
#include "shmem/worker_slots.hpp"

extern "C" {
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
}

namespace mq::shared {

constexpr int kMorePools = 512;  // room for so many more pools than databases
constexpr int kWorkerSlots = 512;
constexpr int kLeases = 1024;
constexpr int kAbortedCalls = 2 * kWorkerSlots + kLeases;
constexpr std::size_t kMarkSets = 512;  // a table of them has room for some 4,000 marks
constexpr std::size_t kMarkLocks = 16;
constexpr std::size_t kLimitParts = 64;  // 131,072 channels whose limits are in use
constexpr int kAsked = 8192;
constexpr std::size_t kChannelBytes = 128;
constexpr int kNamesHeld = 64;
constexpr std::size_t kRefusalBytes = 256;
constexpr std::uint32_t kAudiences = 256;
constexpr std::size_t kKeyedNames = 8192;
constexpr std::size_t kReceivers = 4096;
constexpr std::size_t kReceiverNames = 16;
constexpr std::size_t kWaiters = 4096;
constexpr std::size_t kWaiterBuckets = 4096;
constexpr std::size_t kRowClaims = 8192;
constexpr std::size_t kRowClaimBucket = 8;  // a row's entry is one of so many
// After so long without a poll the pollers are gone. mq_poll tells no consumer to wait for longer.
constexpr Micros kConsumersGone = 60 * kSecond;
constexpr Micros kClosedFor = 20 * kSecond;      // the hook waits 5 s, then DROP DATABASE 5 s
constexpr Micros kAbortedKept = 3600 * kSecond;  // after that no process will charge the call
constexpr Micros kLongCall = kSecond / 10;       // its worker is not there for other messages
constexpr int kRuns = 128;                       // sessions in CALL mq_run
constexpr int kCallers = kWorkerSlots + kRuns;
constexpr int kOpenCancels = 4096;
constexpr std::uint64_t kCancelled = 8192;
constexpr int kThrottles = 256;
constexpr int kUnsettled = 64;
constexpr int kFailures = 128;
constexpr std::size_t kFailureBytes = 512;

struct Database {
  Oid id;          // InvalidOid: free
  bool look;       // announced, and no worker has looked since
  bool known;      // a worker has looked whether the extension is installed
  bool installed;  // it is; meaningless before `known`
  bool contended;  // a worker that has had its turn should leave
  // A commit may be for a pool that has no free worker, and there is no room for another worker.
  bool tight;
  int database_slots_wanted;    // idle workers that should leave at once
  Oid needy;                    // the pool that they should leave for; InvalidOid: not one alone
  Micros next_fruitless;        // see after_fruitless()
  TimestampTz closed_until;     // 0: open
  std::uint64_t wakes;          // how many so far
  std::uint64_t announcements;  // how many so far
  // The channel names that have handlers, as a worker has read them since forget_handled().
  bool handled_known;
  NameFilter handled;
  std::uint64_t handled_forgotten;  // how often so far
  // See schedule_times.hpp. 0: unknown; DT_NOEND: there is no schedule.
  TimestampTz schedule_at;
  std::uint64_t schedule_changes;  // how many so far
  int firing;                      // the worker that sends what is due: its slot + 1; 0: none
};

// Whether workers must stay away. A clock that is set back closes the database for no longer than kClosedFor.
inline bool is_closed(const Database& d, TimestampTz now) {
  return d.closed_until != 0 && now < d.closed_until && d.closed_until - now <= kClosedFor;
}

// The consumers of a database, and the commits that notify none of them. An audience is found by
// the database's OID modulo kAudiences, so a database that has no other entry has one, too. Where
// two databases share one, commits in one of them notify for the listeners of the other.
struct Audience {
  pg_atomic_uint32 listeners;
  pg_atomic_uint32 unnotified_commits;  // under way
  pg_atomic_uint64 polled_at;           // TimestampTz of the last poll; 0: none so far
  pg_atomic_uint32 receivers;           // that wait in mq_receive
  pg_atomic_uint32 waiters;             // that wait in mq_wait or mq_call
};

struct Pool {
  Oid database;  // InvalidOid: free
  Oid role;
  std::size_t database_at;  // the index in `databases` where the launcher found it last
  bool backlog;             // a worker of it found more than its batch took
  TimestampTz last_start;   // 0: it may be tried at once
  int failed_starts;        // in a row
  bool obstructed;          // the launcher found that the role cannot connect
  // Written when a worker of the pool is free: of all messages that were sent up to wake-up `seen`
  // of the database the next one is due at `due`. 0: unknown.
  std::uint64_t seen;
  TimestampTz due;
  // How many workers in a row found nothing to do though the pool seemed to need one. The next
  // worker is not started before `not_before`.
  int fruitless;
  TimestampTz not_before;
  // Why the last connection for leased handlers was refused; empty: it was accepted.
  char refusal[kRefusalBytes];
};

// Messages of one channel name in a worker's batch.
struct Held {
  std::int64_t name_key;  // channel_key() of the name and no arguments
  std::int64_t messages;
};

struct WorkerSlot {
  Oid database;  // InvalidOid: free
  Oid role;
  PGPROC* worker;             // nullptr: reserved, the worker has not come yet
  std::uint64_t reservation;  // the number by which the worker knows that the slot is its own
  bool waiting;
  TimestampTz keeps_until;  // while it waits: it keeps time for schedules, and sleeps until then; 0: it does not
  bool served;              // the worker has come so far that it can serve
  Doing doing;
  bool busy_long;                    // its batch takes long
  int connecting;                    // sessions for leased handlers that it is opening
  char channel_name[kChannelBytes];  // of the current call; cut to fit
  Uuid message;                      // of the current call
  TimestampTz since;                 // when it began what it does: the call, the settling, the wait
  std::uint64_t handled;             // messages, since the worker started
  bool gives_up;                     // it leaves, so that another database gets the worker slot
  bool yields;                       // it leaves, so that another pool gets its database slot
  bool gives_way;                    // see ask_to_give_way()
  bool stale;                        // a new worker would have other settings
  bool renew;                        // stale and draining: it gets no database slot again
  // Has no database slot: it only looks after its leased calls, until the launcher gives it a slot.
  bool draining;
  bool exclusive;  // no leased call of the pool may run beside one of this worker
  int names_held;
  Held held[kNamesHeld];  // the current batch; names beyond that are not shown
};

// What a handler has said of its call (progress.hpp).
struct Told {
  bool any;
  bool has_fraction;
  bool has_note;
  float fraction;
  char note[kNoteBytes + 1];
};

// A process that calls transactional handlers: the worker in the worker slot of the same number, or a
// session in CALL mq_run. See callers.hpp.
struct Caller {
  Oid database;  // InvalidOid: free
  Oid role;
  int pid;
  bool atomic;             // an mq_run in a transaction that its user ends
  TransactionId settling;  // the last transaction in which it settled messages
  std::uint32_t sent;      // how many signals cancels have sent to it
  bool in_call;
  TimestampTz cancelled_at;  // when mq_cancel interrupted the current call; 0: it has not
  int messages;              // of the current call
  Uuid message;              // the first of them
  TimestampTz since;         // when the call began, like channel_name only for an mq_run
  char channel_name[kChannelBytes];
  Told told;
};

// A running message that a transaction wants to cancel when it commits. See cancels.hpp.
struct OpenCancel {
  Oid database;  // InvalidOid: free
  Uuid message;
  std::int64_t seq;
  std::int64_t token;  // of its leased call; 0: none
  VirtualTransactionId canceller;
};

// A message that was cancelled while it was handled.
struct CancelledMessage {
  Oid database;
  Uuid message;
  std::int64_t seq;
};

// A leased call that runs.
struct Lease {
  std::int64_t token;  // 0: free
  Oid database;
  Oid role;
  int slot;     // -1: its worker has ended, its session maybe not yet; or an mq_run holds it
  int backend;  // the process id of its session
  std::int64_t name_key;
  bool block_on_dead;
  TimestampTz since;
  Uuid message;                      // the first of its messages
  bool function;                     // the handler is a function: its transaction ends the call
  bool ended;                        // that transaction commits, or has committed
  bool cancelled;                    // mq_cancel has cancelled a message of it, and has committed
  TimestampTz cancelled_at;          // when that was
  TransactionId settling;            // the last transaction of the session that began to commit
  char channel_name[kChannelBytes];  // cut to fit
  Told told;
};

// A channel name whose handlers have conflicted.
struct Throttled {
  Oid database;  // InvalidOid: free
  std::int64_t name_key;
  Throttle limits;
};

// A message that cannot be settled, and is put off until `until`.
struct Unsettled {
  Oid database;  // InvalidOid: free
  Uuid message;
  TimestampTz until;
  int times;
  char channel_name[kChannelBytes];  // cut to fit, like the error
  char error[kRefusalBytes];
};

// The last error of one part of a process (failing.cpp).
struct Failure {
  Oid database;  // InvalidOid: of the launcher
  Oid role;
  int slot;  // of the worker; -1: of a pool or the launcher
  Part part;
  TimestampTz since;
  TimestampTz last;
  int times;  // 0: free
  // How many of `times` were ends of processes that could serve. failed_starts counts the others.
  int served;
  char sqlstate[6];
  char text[kFailureBytes];  // cut to fit
};

struct Aborted {
  in_flight::Record record;  // with InvalidOid as its database: free
  AbortReason reason;
  TimestampTz at;  // when it was noted
  int charger;     // id of the process that is about to charge it; 0: none
};

// See row_claims.hpp.
struct RowClaimEntry {
  std::uint64_t row;  // its ctid in mq_msgs: block << 16 | offset
  VirtualTransactionId holder;
  Oid database;  // InvalidOid: free
};

// A session that waits in mq_receive, see receivers.hpp.
struct WaitingReceiver {
  Oid database;  // InvalidOid: free
  PGPROC* process;
  int batch_size;
  bool all;             // all channel names
  std::uint64_t group;  // the same for receivers with the same names
  int names_held;       // how many `names` there are; -1: too many, `filter` has them
  std::int64_t names[kReceiverNames];
  NameFilter filter;
  bool keeper;             // it keeps time for its group
  bool woken;              // since its last look began
  std::int64_t woken_for;  // the name; 0: for none alone
  Micros due;              // until when it sleeps, if it keeps time; kNever: it looks
};

// A session that waits in mq_wait or mq_call, see waiters.hpp.
struct WaitingSession {
  Oid database;  // InvalidOid: free
  PGPROC* process;
  Uuid message;       // that it waits for
  bool woken;         // since its last look began
  std::int32_t next;  // of its bucket, or of the free ones: the number of an entry, from 1; 0: none
};

struct AskedForHere {
  Oid database;
  AskedFor channel;
};

struct State {
  LWLock* lock;
  PGPROC* launcher;  // nullptr: there is none
  volatile bool launcher_pauses;
  volatile bool launcher_asked;
  SlotState slots;
  bool short_of_slots;         // pools wait for a worker slot or a process
  int slots_wanted;            // workers that should give up their worker slots
  int databases_beyond;        // databases to serve that find no room
  bool no_room;                // for a database that was announced since the launcher looked
  bool look_around;            // databases have come or gone
  std::uint64_t reservations;  // of worker slots, since the server started
  Audience audiences[kAudiences];
  pg_atomic_uint64 keyed_names[kKeyedNames];  // see keyed_names.hpp; 0: free
  LWLock* row_claims_lock;                    // covers row_claims
  RowClaimEntry row_claims[kRowClaims];
  LWLock* receivers_lock;  // covers the next three
  WaitingReceiver receivers[kReceivers];
  std::size_t receivers_used;  // all that are in use lie below
  std::size_t next_receiver;   // where the next search for one to wake begins
  LWLock* waiters_lock;        // covers the next four
  WaitingSession waiters[kWaiters];
  std::int32_t waiter_buckets[kWaiterBuckets];       // the number of the first entry, from 1; 0: none
  std::size_t waiters_used;                          // all that were ever in use lie below
  std::int32_t waiter_free;                          // the number of the first one that is free again; 0: none
  pg_atomic_uint32 row_claims_used;                  // in all databases
  pg_atomic_uint64 row_claims_released[kAudiences];  // by the database's OID modulo kAudiences
  // Each of the next four tables has a high-water mark (..._used). Entries in use lie below it, and
  // a search reads no further. A new entry takes the first free one.
  std::span<Database> databases;  // behind this structure: mq.max_databases entries
  std::span<Pool> pools;          // behind those: kMorePools more than mq.max_databases
  std::size_t databases_used;
  std::size_t pools_used;
  std::size_t slots_used;
  std::size_t leases_used;
  WorkerSlot worker_slots[kWorkerSlots];
  Aborted aborted[kAbortedCalls];
  int aborted_calls;  // entries of `aborted` in use
  // The low-water marks of channel names and of ordered channels (queue/low_water.hpp). `lock` does
  // not cover them: the lock of a set is the one at the set's number modulo kMarkLocks.
  LWLockPadded* mark_locks;
  std::uint64_t mark_seed;  // secret, so that no user can choose names that fall into one set
  LowWaterMarks name_marks[kMarkSets];
  LowWaterMarks channel_marks[kMarkSets];
  LWLockPadded* limit_locks;  // one for each of the next; see channel_use.hpp
  LimitTable limit_tables[kLimitParts];
  pg_atomic_uint64 limits_without_room;  // TimestampTz: when a channel found none last; 0: never
  LWLock* asked_lock;                    // covers the next two
  AskedForHere asked[kAsked];
  int asked_count;
  Lease leases[kLeases];
  Caller callers[kCallers];
  OpenCancel open_cancels[kOpenCancels];
  pg_atomic_uint32 open_cancels_used;  // so many entries are in use
  pg_atomic_uint64 rare_writes[static_cast<int>(Rare::kCount)];
  pg_atomic_uint64 cancelled_count;        // how many messages were ever written to `cancelled`
  CancelledMessage cancelled[kCancelled];  // the last ones, by their number modulo kCancelled
  Throttled throttled[kThrottles];
  int throttles;  // entries of `throttled` in use
  Unsettled unsettled[kUnsettled];
  Failure failures[kFailures];
};
static_assert(kMarkSets % kMarkLocks == 0);

extern State* state;  // set by mq_shared_startup() in the postmaster, inherited by its children
extern int my_slot;   // index of this worker's slot, set by take_slot(); -1: none

// Copies `text` into `size` bytes, with a 0 at the end; cuts it between characters.
void copy_cut(char* to, std::size_t size, std::string_view text);

Told* told_of_my_call();  // in the Caller of this process; nullptr: it has none

// The functions up to last_end() are called under the lock.

// This worker ends: gives its leases up.
void abandon_leases();
// Whether the session of the leased call exists, and is one.
bool lease_session_exists(const Lease& lease);
void add_aborted_call(const in_flight::Record& record, AbortReason reason);
// Forgets aborted calls of other databases than these, and those older than kAbortedKept.
void forget_aborted_calls(const std::vector<Oid>& existing);
// Forgets limits of other databases than these, and those that no worker has asked for lately.
void forget_limits(const std::vector<Oid>& existing);
// Drops the channels that are asked for in databases that are not served. Takes no lock that covers others.
void forget_asked(const std::vector<Oid>& existing);
void forget_failures_of(int slot);
// The worker of that slot ends: if it sends what schedules ask for, it does so no more.
void stop_firing(Oid database, int slot);
// Forgets failures of roles that have no pool in the database any more.
void forget_failures_beyond_pools(Oid database);
// The last error that a process of the pool ended with; nullptr: none.
const Failure* last_end(Oid database, Oid role);

inline WorkerSlot& mine() {  // of this worker
  return state->worker_slots[my_slot];
}

// Holds the lock for a scope.
struct Guard : LightweightLock {
  explicit Guard(LWLockMode mode) : LightweightLock(state->lock, mode) {}
};

inline bool is_free(const Database& d) {
  return d.id == InvalidOid;
}
inline bool is_free(const Pool& pool) {
  return pool.database == InvalidOid;
}
inline bool is_free(const WorkerSlot& slot) {
  return slot.database == InvalidOid;
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
inline std::span<WorkerSlot> used_slots() {
  return {state->worker_slots, state->slots_used};
}
inline std::span<Lease> used_leases() {
  return {state->leases, state->leases_used};
}

// The first free entry, for the caller to fill; nullptr: all are in use. Under the lock.
template <class Entry>
Entry* take_free(std::span<Entry> all, std::size_t& used) {
  for (std::size_t i = 0; i < used; ++i)
    if (is_free(all[i])) return &all[i];
  return used < all.size() ? &all[used++] : nullptr;
}

// After entries were freed: lowers the high-water mark to the last one in use. Under the lock.
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
inline void slots_freed() {
  lower_mark(std::span<WorkerSlot>(state->worker_slots), state->slots_used);
}
inline void leases_freed() {
  lower_mark(std::span<Lease>(state->leases), state->leases_used);
}

// A process asks for the same database and the same pool again and again. So find_database() and
// find_pool() look first where this process found the last one.
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

// Whether the worker counts towards mq.max_workers of its database.
inline bool has_database_slot(const WorkerSlot& slot) {
  return slot.database != InvalidOid && !slot.renew && !slot.draining;
}

inline void wake_launcher() {
  if (state->launcher != nullptr) SetLatch(&state->launcher->procLatch);
}

// Asks the launcher to look, which it does at most every 100 ms, however many ask. Needs no lock,
// so a signal handler may call it. Process P asks launcher L; launcher_looks() and
// launcher_was_asked() are L's part:
//   P  writes why it asks; write barrier; launcher_asked = true; barrier
//   P  reads launcher_pauses; if that is false, sets L's latch
//   L  launcher_pauses = true; launcher_asked = false; barrier; looks; pauses
//   L  at the end of the pause: launcher_pauses = false; barrier; reads launcher_asked
// If P reads true, then L's look sees why P asks, or L reads launcher_asked as true afterwards.
inline void wake_launcher_soon() {
  pg_write_barrier();
  state->launcher_asked = true;
  pg_memory_barrier();
  if (state->launcher_pauses) return;
  if (PGPROC* launcher = *const_cast<PGPROC* volatile*>(&state->launcher)) SetLatch(&launcher->procLatch);
}

inline void wake_all_of(Oid database) {
  for (WorkerSlot& slot : used_slots())
    if (slot.database == database && slot.worker != nullptr) SetLatch(&slot.worker->procLatch);
}

}  // namespace mq::shared
