// The launcher: one process that starts the workers of all databases. mq.c registers it when the
// library is preloaded; the postmaster starts it, and starts another 1 s after it has ended (it
// exits with 1 when it is terminated).
//
// The launcher is connected to no database. It reads pg_database every kLookAround, and when asked
// to. To learn about a database it starts a probe worker there, which says in shared memory whether
// the extension is installed and which roles have handlers. pool_to_start() (pool.hpp) decides what
// should run; the launcher asks the postmaster for it.
//
// Other processes wake it: a commit of CREATE or DROP EXTENSION, of mq_register_handler or of a
// change to databases; a commit that sends to a database short of workers; a worker that starts,
// ends, has a backlog or is in a long batch; the postmaster, when a worker has started or ended.
//
// Only this process has its state; shared memory has its own lock (shmem/shared.hpp).

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "entries.h"
#include "pg/connects.hpp"
#include "pg/guard.hpp"
#include "pg/settings.h"
#include "pg/trouble.hpp"
#include "pg/wait_event.hpp"
#include "shmem/databases.hpp"
#include "shmem/failing.hpp"
#include "shmem/schedule_times.hpp"
#include "shmem/worker_slots.hpp"
#include "worker/pool.hpp"
#include "worker/server_host.hpp"

extern "C" {
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_database.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/wait_event.h"
}

namespace mq {

namespace {

constexpr Micros kLookAround = 10 * kSecond;  // between two readings of pg_database
constexpr Micros kOutOfSlots = kSecond;       // before a process is asked for again
constexpr Micros kPause = kSecond / 10;       // between two rounds that commits and batches ask for

// kNoSlot: max_worker_processes are in use. kNoWorkerSlot: all slots in shared memory are taken.
enum class Start { kStarted, kNoSlot, kNoWorkerSlot };

struct Starting {
  shared::Reservation reservation;
  BackgroundWorkerHandle* handle;
};

struct Found {
  Oid id;
  NameData name;
};

// The databases that accept connections, are no templates, and are named by mq.databases. Leaves
// out a database whose DROP was interrupted: newer servers mark it with the connection limit -2.
std::vector<Oid> served_databases() {
  constexpr int kInvalid = -2;
  struct List {
    Found* found;
    int count;
  };
  const List list = guard::call([] {
    int room = 64;
    List l{static_cast<Found*>(palloc(sizeof(Found) * static_cast<Size>(room))), 0};
    StartTransactionCommand();
    (void)GetTransactionSnapshot();
    Relation catalog = table_open(DatabaseRelationId, AccessShareLock);
    TableScanDesc scan = table_beginscan_catalog(catalog, 0, nullptr);
    HeapTuple tuple = nullptr;
    while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection))) {
      const auto* form = (Form_pg_database)GETSTRUCT(tuple);
      if (!form->datallowconn || form->datistemplate || form->datconnlimit == kInvalid) continue;
      if (l.count == room) {
        room *= 2;
        l.found = static_cast<Found*>(repalloc(l.found, sizeof(Found) * static_cast<Size>(room)));
      }
      l.found[l.count].id = form->oid;
      l.found[l.count].name = form->datname;
      ++l.count;
    }
    table_endscan(scan);
    table_close(catalog, AccessShareLock);
    CommitTransactionCommand();
    return l;
  });
  std::vector<Oid> databases;
  for (int i = 0; i < list.count; ++i)
    if (is_named(NameStr(list.found[i].name))) databases.push_back(list.found[i].id);
  pfree(list.found);
  return databases;
}

// A role or a database has changed. catalog_changed() sets it, look_at_failing() clears it.
bool catalogs_changed = false;

void catalog_changed(Datum, int, uint32) {
  catalogs_changed = true;
}

class Launcher {
 public:
  void run() {
    shared::launcher_attach();
    shared::note_works(Part::kLauncher);  // an error of the launcher before this one is over
    for (;;) {
      const Micros began = clock_.steady();
      Micros wait = trouble_.left(began);
      if (wait == 0) wait = try_round();
      rest(began, wait);
      if (settings_changed()) looked_at_ = 0;
    }
  }

 private:
  // Waits until `wait` µs after `began`, or until the latch is set. Commits and batches set only a
  // flag during the first kPause; it ends the wait when kPause is over.
  void rest(Micros began, Micros wait) {
    bool woken = wait_for_latch(began + std::min(wait, kPause));
    woken = shared::launcher_was_asked() || woken;
    if (!woken) (void)wait_for_latch(began + wait);
  }

  // False: the latch was not set.
  bool wait_for_latch(Micros until) {
    const Micros left = std::max<Micros>(0, until - clock_.steady());
    const long milliseconds = static_cast<long>((left + 999) / 1000);
    return guard::call([&] {
      const int events = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, milliseconds,
                                   wait_event(WaitFor::kLauncher));
      ResetLatch(MyLatch);
      CHECK_FOR_INTERRUPTS();
      if (ConfigReloadPending) {
        ConfigReloadPending = false;
        ProcessConfigFile(PGC_SIGHUP);
      }
      return (events & WL_LATCH_SET) != 0;
    });
  }

  // Runs a round; returns how long to wait after it, in µs. After an error the launcher waits here
  // and does not end: the postmaster would start another each second.
  Micros try_round() {
    try {
      const Micros wait = round();
      if (trouble_.failures() > 0) shared::note_works(Part::kLauncher);
      trouble_.succeeded();
      return wait;
    } catch (const Error& error) {
      guard::call([] { AbortCurrentTransaction(); });
      if (const std::optional<std::string> line = log_.line(error, clock_.steady())) {
        const char* text = line->c_str();
        guard::call([&] { ereport(LOG, (errmsg_internal("mq launcher: %s", text))); });
      }
      shared::note_fails(Part::kLauncher, error.sqlstate, error.message);
      trouble_.failed(clock_.steady());
      return trouble_.left(clock_.steady());
    }
  }

  Micros round() {
    shared::launcher_looks();
    const Micros now = GetCurrentTimestamp();
    std::vector<shared::DatabaseState> databases = shared::databases();
    const bool announced = std::any_of(databases.begin(), databases.end(), [](const auto& d) { return d.look; });
    if (shared::take_look_around() || announced || looked_at_ == 0 || now - looked_at_ >= kLookAround ||
        now < looked_at_) {
      look_around();
      databases = shared::databases();
      looked_at_ = now;
    }
    shared::pass_time_on();
    check_starting();
    const Micros wait = serve(databases, now);
    return starting_.empty() ? wait : std::min<Micros>(wait, kSecond);
  }

  bool settings_changed() {
    if (databases_setting_ == mq_databases) return false;
    databases_setting_ = mq_databases;
    return true;
  }

  // Reads pg_database. A database without the extension is kept in without_extension_ only: it
  // takes no room in shared memory until something is announced there.
  void look_around() {
    const std::vector<Oid> served = served_databases();
    if (shared::take_no_room()) without_extension_.clear();
    for (const Oid database : shared::forget_without_extension()) without_extension_.insert(database);
    std::erase_if(without_extension_,
                  [&](Oid id) { return std::find(served.begin(), served.end(), id) == served.end(); });
    const int beyond = shared::keep_databases(served, without_extension_);
    if (beyond > beyond_)
      guard::call([&] {
        ereport(LOG,
                (errmsg("mq.max_databases = %d leaves out %d databases", mq_max_databases, beyond),
                 errhint("Raise mq.max_databases and restart the server, or name in mq.databases those to serve.")));
      });
    beyond_ = beyond;
  }

  // A database that is not closed to workers, and its pools.
  struct Open {
    Oid database;
    std::vector<PoolState> pools;
    std::optional<std::size_t> next;  // the pool to start a worker for, as an index into `pools`
  };

  // Starts the workers that are missing, in the order of comes_first() across all databases.
  // Returns in how many µs to look again.
  Micros serve(const std::vector<shared::DatabaseState>& databases, Micros now) {
    std::vector<Open> open;
    std::map<Oid, std::size_t> number;
    for (const shared::DatabaseState& database : databases) {
      if (database.closed) continue;
      number[database.database] = open.size();
      open.push_back({database.database, {}, std::nullopt});
      // A database that is unknown, or had no extension and has an announcement, needs a probe
      // worker. Elsewhere the workers look themselves.
      if (!database.known || (database.look && !database.installed)) shared::want_probe(database.database);
    }
    look_at_failing(now);
    for (const PoolState& pool : shared::pools())
      if (const auto found = number.find(pool.database); found != number.end())
        open[found->second].pools.push_back(pool);

    const Micros next_look = set_database_slots(open, now);
    const auto find_next = [&](Open& o, Starts starts) {
      o.next = pool_to_start(o.pools, o.database, mq_max_workers, now, starts);
    };
    for (Open& o : open) find_next(o, Starts::kAll);
    Start last = Start::kStarted;
    for (;;) {
      Open* best = nullptr;
      for (Open& o : open)
        if (o.next && (best == nullptr || comes_first(o.pools[*o.next], best->pools[*best->next], now))) best = &o;
      if (best == nullptr) break;
      PoolState& pool = best->pools[*best->next];
      const Start result = start(pool.database, pool.role);
      if (result == Start::kStarted) {
        ++pool.workers;
        pool.draining = std::max(0, pool.draining - 1);
        pool.busy_long = pool.stuck = false;
        pool.last_start = now;
      } else if (last != Start::kStarted) {
        break;  // the draining worker of the pool has left meanwhile
      } else {
        // No process can be started. A draining worker only needs a slot of its database to go on.
        last = result;
        for (Open& o : open) find_next(o, Starts::kDraining);
        continue;
      }
      find_next(*best, last == Start::kStarted ? Starts::kAll : Starts::kDraining);
    }
    note_slots(open, last, now);
    if (last != Start::kStarted) return std::min(next_look, kOutOfSlots);
    // A pool that waits after a failed start is looked at again soon.
    const bool rests = std::any_of(open.begin(), open.end(), [](const Open& o) {
      return std::any_of(o.pools.begin(), o.pools.end(), [](const PoolState& pool) { return pool.workers == 0; });
    });
    return std::min(next_look, rests ? kSecond : kLookAround);
  }

  // Tells workers, by shared memory, in which databases they should make room. Returns in how many
  // µs that may change without a wake-up: a batch may have become one long call, or something due.
  static Micros set_database_slots(const std::vector<Open>& open, Micros now) {
    std::vector<shared::DatabaseSlots> slots;
    Micros next_look = kLookAround;
    for (const Open& o : open) {
      shared::DatabaseSlots p{o.database, contended(o.pools, o.database, mq_max_workers, now), false,
                              database_slots_wanted(o.pools, o.database, mq_max_workers, now), InvalidOid};
      int running = 0;
      int needy = 0;
      for (const PoolState& pool : o.pools) running += pool.workers;
      for (const PoolState& pool : o.pools) {
        // If there is only one pool no other one can make room for it.
        if (o.pools.size() < 2 || running < mq_max_workers || (pool.workers > 0 && !pool.busy_long)) continue;
        p.tight = true;
        if (pool.workers > 0 && !pool.stuck) next_look = std::min(next_look, kPause);
        if (pool.due > now) next_look = std::min(next_look, std::max(kPause, pool.due - now));
        if (!needs_database_slot(pool, now)) continue;
        p.needy = ++needy == 1 ? pool.role : InvalidOid;
      }
      if (in_turns(o.pools, o.database, mq_max_workers, now)) p.needy = InvalidOid;
      slots.push_back(p);
    }
    shared::set_database_slots(slots);
    return next_look;
  }

  // Where the server has no process or worker slot left, pools with something to do get those of
  // workers that have had their turn.
  void note_slots(const std::vector<Open>& open, Start last, Micros now) {
    Waiting sum;
    if (last != Start::kStarted)
      for (const Open& o : open) {
        const Waiting w = waiting(o.pools, o.database, mq_max_workers, now);
        sum.pools += w.pools;
        sum.busy += w.busy;
      }
    shared::set_slots({last == Start::kNoSlot, last == Start::kNoWorkerSlot, sum.pools, false}, sum.busy);
    if (sum.pools <= waiting_logged_) return;
    waiting_logged_ = sum.pools;
    const int most = last == Start::kNoSlot ? max_worker_processes : shared::most_workers();
    const char* what = last == Start::kNoSlot ? "max_worker_processes" : "the limit of workers";
    guard::call([&] {
      ereport(LOG, (errmsg("mq: %s = %d leaves %d databases or roles without a worker: they take turns", what, most,
                           sum.pools),
                    last == Start::kNoSlot
                        ? errhint("Raise max_worker_processes to at least %d and restart the server.", most + sum.pools)
                        : 0));
    });
  }

  // A GRANT, say, or the end of another session may allow a role to connect. Then its pool is tried
  // at once and does not wait out restart_wait(), which may be minutes.
  void look_at_failing(Micros now) {
    std::vector<PoolState> failing = shared::pools();
    std::erase_if(failing, [](const PoolState& pool) { return pool.failed_starts == 0 || pool.workers > 0; });
    if (failing.empty() || (now >= failing_looked_at_ && now - failing_looked_at_ < kSecond)) return;
    failing_looked_at_ = now;
    guard::call([] { StartTransactionCommand(); });
    if (std::exchange(catalogs_changed, false)) shared::retry_failed_starts();
    for (const PoolState& pool : failing)
      shared::set_obstructed(pool.database, pool.role, !connect_obstacle(pool.database, pool.role).empty());
    guard::call([] { CommitTransactionCommand(); });
  }

  Start start(Oid database, Oid role) {
    if (shared::give_database_slot(database, role)) return Start::kStarted;
    starting_.reserve(starting_.size() + 1);  // push_back() below must not fail
    const shared::Reservation reservation = shared::reserve_slot(database, role);
    if (reservation.slot < 0) return Start::kNoWorkerSlot;
    BackgroundWorkerHandle* handle = nullptr;
    try {
      handle = ask_for_worker(reservation);
    } catch (...) {
      shared::release_slot(reservation);
      throw;
    }
    if (handle == nullptr) {
      shared::release_slot(reservation);
      return Start::kNoSlot;
    }
    starting_.push_back({reservation, handle});
    return Start::kStarted;
  }

  static BackgroundWorkerHandle* ask_for_worker(const shared::Reservation& reservation) {
    return guard::call([&] {
      BackgroundWorker worker;
      memset(&worker, 0, sizeof worker);
      worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
      worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
      worker.bgw_restart_time = BGW_NEVER_RESTART;
      strlcpy(worker.bgw_library_name, "mq", sizeof worker.bgw_library_name);
      strlcpy(worker.bgw_function_name, "mq_worker_main", sizeof worker.bgw_function_name);
      strlcpy(worker.bgw_name, "mq worker", sizeof worker.bgw_name);
      strlcpy(worker.bgw_type, "mq worker", sizeof worker.bgw_type);
      worker.bgw_main_arg = Int32GetDatum(reservation.slot);
      memcpy(worker.bgw_extra, &reservation.number, sizeof reservation.number);
      worker.bgw_notify_pid = MyProcPid;
      BackgroundWorkerHandle* h = nullptr;
      return RegisterDynamicBackgroundWorker(&worker, &h) ? h : nullptr;
    });
  }

  // Frees the slot of a worker that ended before it took it.
  void check_starting() {
    std::erase_if(starting_, [](const Starting& s) {
      pid_t pid = 0;
      const BgwHandleStatus status = guard::call([&] { return GetBackgroundWorkerPid(s.handle, &pid); });
      if (status == BGWH_STOPPED) shared::start_failed(s.reservation);
      if (shared::is_reserved(s.reservation)) return false;
      pfree(s.handle);
      return true;
    });
  }

  Micros looked_at_ = 0;  // when pg_database was read last; 0: it is to be read now
  ServerClock clock_;
  Backoff trouble_;
  TroubleLog log_;
  std::vector<Starting> starting_;
  std::set<Oid> without_extension_;
  int beyond_ = 0;          // databases beyond mq.max_databases when pg_database was read last
  int waiting_logged_ = 0;  // the most pools without a worker that were logged
  Micros failing_looked_at_ = 0;
  std::string databases_setting_ = mq_databases;
};

}  // namespace

}  // namespace mq

extern "C" void mq_launcher_run(void) {
  mq::guard::callback([] {
    mq::guard::call([] {
      before_shmem_exit([](int, Datum) { mq::shared::launcher_detach(); }, 0);
      BackgroundWorkerUnblockSignals();
      BackgroundWorkerInitializeConnection(nullptr, nullptr, 0);
      CacheRegisterSyscacheCallback(DATABASEOID, mq::catalog_changed, 0);
      CacheRegisterSyscacheCallback(AUTHOID, mq::catalog_changed, 0);
      CacheRegisterSyscacheCallback(AUTHMEMROLEMEM, mq::catalog_changed, 0);
    });
    mq::Launcher().run();
  });
}
