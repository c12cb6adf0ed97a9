// The launcher: starts workers. One process, started with the server when the library is preloaded.
//
// It is connected to no database. It reads pg_database now and then; of a database that it does not know it learns
// from the first worker there (the caretaker), which says in shared memory whether the extension is installed and
// which roles have handlers. What should run is decided by pool_to_start(); the launcher asks the postmaster for it
// and keeps the handles of what it asked for until the worker sits on its seat.
//
// Woken by: CREATE and DROP EXTENSION and mq_register_handler at their commit, a worker that came, went or has a
// backlog, the postmaster when a worker started or ended. It exits with 1 when it is terminated, so that the
// postmaster starts another.

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "../pool.hpp"
#include "../trouble.hpp"
#include "connects.hpp"
#include "entries.h"
#include "fence.hpp"
#include "host.hpp"
#include "settings.h"
#include "shared.hpp"

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
constexpr Micros kOutOfSlots = kSecond;       // before the postmaster is asked again
constexpr Micros kPause = kSecond / 10;       // between two looks that commits and batches ask for

enum class Start { kStarted, kNoSlot, kNoSeat };

struct Starting {
  shared::Reservation reservation;
  BackgroundWorkerHandle* handle;
};

struct Found {
  Oid id;
  NameData name;
};

// Databases that one can connect to, and that mq.databases names. One that a DROP left half done is invalid, which
// newer servers tell by its connection limit.
std::vector<Oid> served_databases() {
  constexpr int kInvalid = -2;
  struct List {
    Found* found;
    int count;
  };
  const List list = fence::call([] {
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

// A role or a database has changed since it was asked.
bool catalogs_changed = false;

void catalog_changed(Datum, int, uint32) {
  catalogs_changed = true;
}

class Launcher {
 public:
  void run() {
    shared::launcher_attach();
    shared::note_works(Part::kLauncher);  // what the one before could not
    for (;;) {
      const Micros began = clock_.steady();
      Micros wait = trouble_.left(began);
      if (wait == 0) wait = try_round();
      rest(began, wait);
      if (settings_changed()) looked_at_ = 0;
    }
  }

 private:
  // Until so long after it began. What commits and batches ask for waits until a pause is over; whatever else sets the
  // latch, ends it.
  void rest(Micros began, Micros wait) {
    bool woken = wait_for_latch(began + std::min(wait, kPause));
    woken = shared::launcher_was_asked() || woken;
    if (!woken) (void)wait_for_latch(began + wait);
  }

  // False: it was not set.
  bool wait_for_latch(Micros until) {
    const Micros left = std::max<Micros>(0, until - clock_.steady());
    const long milliseconds = static_cast<long>((left + 999) / 1000);
    return fence::call([&] {
      const int events =
          WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, milliseconds, PG_WAIT_EXTENSION);
      ResetLatch(MyLatch);
      CHECK_FOR_INTERRUPTS();
      if (ConfigReloadPending) {
        ConfigReloadPending = false;
        ProcessConfigFile(PGC_SIGHUP);
      }
      return (events & WL_LATCH_SET) != 0;
    });
  }

  // How long to wait after it. Trouble is waited out here: a launcher that ends is started again each second.
  Micros try_round() {
    try {
      const Micros wait = round();
      if (trouble_.failures() > 0) shared::note_works(Part::kLauncher);
      trouble_.succeeded();
      return wait;
    } catch (const Error& error) {
      fence::call([] { AbortCurrentTransaction(); });
      if (const std::optional<std::string> line = log_.line(error, clock_.steady())) {
        const char* text = line->c_str();
        fence::call([&] { ereport(LOG, (errmsg_internal("mq launcher: %s", text))); });
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
    check_starting();
    const Micros wait = serve(databases, now);
    return starting_.empty() ? wait : std::min<Micros>(wait, kSecond);
  }

  bool settings_changed() {
    if (databases_setting_ == mq_databases) return false;
    databases_setting_ = mq_databases;
    return true;
  }

  // Of the databases without the extension only we know: they take no room in shared memory until something is
  // announced there.
  void look_around() {
    const std::vector<Oid> served = served_databases();
    if (shared::take_no_room()) without_extension_.clear();
    for (const Oid database : shared::forget_without_extension()) without_extension_.insert(database);
    std::erase_if(without_extension_,
                  [&](Oid id) { return std::find(served.begin(), served.end(), id) == served.end(); });
    const int beyond = shared::keep_databases(served, without_extension_);
    if (beyond > beyond_)
      fence::call([&] {
        ereport(LOG,
                (errmsg("mq.max_databases = %d leaves out %d databases", mq_max_databases, beyond),
                 errhint("Raise mq.max_databases and restart the server, or name in mq.databases those to serve.")));
      });
    beyond_ = beyond;
  }

  // A database that one may work in, and its pools.
  struct Open {
    Oid database;
    std::vector<PoolState> pools;
    std::optional<std::size_t> next;  // pool to start a worker for
  };

  // Starts what is missing: of all databases first what needs it most. Returns how long nothing more can be done.
  Micros serve(const std::vector<shared::DatabaseState>& databases, Micros now) {
    std::vector<Open> open;
    std::map<Oid, std::size_t> number;
    for (const shared::DatabaseState& database : databases) {
      if (database.closed) continue;
      number[database.database] = open.size();
      open.push_back({database.database, {}, std::nullopt});
      // Somebody has to look. Where workers are, they look themselves.
      if (!database.known || (database.look && !database.installed)) shared::want_caretaker(database.database);
    }
    look_at_failing(now);
    for (const PoolState& pool : shared::pools())
      if (const auto found = number.find(pool.database); found != number.end())
        open[found->second].pools.push_back(pool);

    const Micros next_look = set_places(open, now);
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
        pool.keepers = std::max(0, pool.keepers - 1);
        pool.sits = pool.stuck = false;
        pool.last_start = now;
      } else if (last != Start::kStarted) {
        break;  // its keeper has left meanwhile
      } else {
        // A worker that only needs a place to go on can have one all the same.
        last = result;
        for (Open& o : open) find_next(o, Starts::kKeepers);
        continue;
      }
      find_next(*best, last == Start::kStarted ? Starts::kAll : Starts::kKeepers);
    }
    note_slots(open, last, now);
    if (last != Start::kStarted) return std::min(next_look, kOutOfSlots);
    // A pool that rests after a failed start needs another look soon.
    const bool rests = std::any_of(open.begin(), open.end(), [](const Open& o) {
      return std::any_of(o.pools.begin(), o.pools.end(), [](const PoolState& pool) { return pool.workers == 0; });
    });
    return std::min(next_look, rests ? kSecond : kLookAround);
  }

  // Who should make room. Returns in how long that may be otherwise though nobody tells of it: a batch may have become
  // one long call, or something due.
  static Micros set_places(const std::vector<Open>& open, Micros now) {
    std::vector<shared::Places> places;
    Micros next_look = kLookAround;
    for (const Open& o : open) {
      shared::Places p{o.database, contended(o.pools, o.database, mq_max_workers, now), false,
                       places_wanted(o.pools, o.database, mq_max_workers, now), InvalidOid};
      int running = 0;
      int needy = 0;
      for (const PoolState& pool : o.pools) running += pool.workers;
      for (const PoolState& pool : o.pools) {
        // Of a pool that is alone nobody could make room.
        if (o.pools.size() < 2 || running < mq_max_workers || (pool.workers > 0 && !pool.sits)) continue;
        p.tight = true;
        if (pool.workers > 0 && !pool.stuck) next_look = std::min(next_look, kPause);
        if (pool.due > now) next_look = std::min(next_look, std::max(kPause, pool.due - now));
        if (!needs_place(pool, now)) continue;
        p.needy = ++needy == 1 ? pool.role : InvalidOid;
      }
      if (in_turns(o.pools, o.database, mq_max_workers, now)) p.needy = InvalidOid;
      places.push_back(p);
    }
    shared::set_places(places);
    return next_look;
  }

  // Where there are not slots for all, those that have something to do get those of others, which have had their turn.
  void note_slots(const std::vector<Open>& open, Start last, Micros now) {
    Waiting sum;
    if (last != Start::kStarted)
      for (const Open& o : open) {
        const Waiting w = waiting(o.pools, o.database, mq_max_workers, now);
        sum.pools += w.pools;
        sum.busy += w.busy;
      }
    shared::set_slots({last == Start::kNoSlot, last == Start::kNoSeat, sum.pools, false}, sum.busy);
    if (sum.pools <= waiting_logged_) return;
    waiting_logged_ = sum.pools;
    const int most = last == Start::kNoSlot ? max_worker_processes : shared::most_workers();
    const char* what = last == Start::kNoSlot ? "max_worker_processes" : "the limit of workers";
    fence::call([&] {
      ereport(LOG, (errmsg("mq: %s = %d leaves %d databases or roles without a worker: they take turns", what, most,
                           sum.pools),
                    last == Start::kNoSlot
                        ? errhint("Raise max_worker_processes to at least %d and restart the server.", most + sum.pools)
                        : 0));
    });
  }

  // What keeps a role from connecting goes away by a GRANT, say, or when another session ends. Then its pool does not
  // wait for its next turn, which may be minutes away.
  void look_at_failing(Micros now) {
    std::vector<PoolState> failing = shared::pools();
    std::erase_if(failing, [](const PoolState& pool) { return pool.failed_starts == 0 || pool.workers > 0; });
    if (failing.empty() || now - failing_looked_at_ < kSecond) return;
    failing_looked_at_ = now;
    fence::call([] { StartTransactionCommand(); });
    if (std::exchange(catalogs_changed, false)) shared::retry_failed_starts();
    for (const PoolState& pool : failing)
      shared::set_obstructed(pool.database, pool.role, !connect_obstacle(pool.database, pool.role).empty());
    fence::call([] { CommitTransactionCommand(); });
  }

  Start start(Oid database, Oid role) {
    if (shared::give_place(database, role)) return Start::kStarted;
    starting_.reserve(starting_.size() + 1);  // nothing fails once a process was asked for
    const shared::Reservation reservation = shared::reserve_seat(database, role);
    if (reservation.seat < 0) return Start::kNoSeat;
    BackgroundWorkerHandle* handle = nullptr;
    try {
      handle = ask_for_worker(reservation);
    } catch (...) {
      shared::release_seat(reservation);
      throw;
    }
    if (handle == nullptr) {
      shared::release_seat(reservation);
      return Start::kNoSlot;
    }
    starting_.push_back({reservation, handle});
    return Start::kStarted;
  }

  static BackgroundWorkerHandle* ask_for_worker(const shared::Reservation& reservation) {
    return fence::call([&] {
      BackgroundWorker worker;
      memset(&worker, 0, sizeof worker);
      worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
      worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
      worker.bgw_restart_time = BGW_NEVER_RESTART;
      strlcpy(worker.bgw_library_name, "mq", sizeof worker.bgw_library_name);
      strlcpy(worker.bgw_function_name, "mq_worker_main", sizeof worker.bgw_function_name);
      strlcpy(worker.bgw_name, "mq worker", sizeof worker.bgw_name);
      strlcpy(worker.bgw_type, "mq worker", sizeof worker.bgw_type);
      worker.bgw_main_arg = Int32GetDatum(reservation.seat);
      memcpy(worker.bgw_extra, &reservation.number, sizeof reservation.number);
      worker.bgw_notify_pid = MyProcPid;
      BackgroundWorkerHandle* h = nullptr;
      return RegisterDynamicBackgroundWorker(&worker, &h) ? h : nullptr;
    });
  }

  // A worker that ended before it took its seat leaves the seat to us.
  void check_starting() {
    std::erase_if(starting_, [](const Starting& s) {
      pid_t pid = 0;
      const BgwHandleStatus status = fence::call([&] { return GetBackgroundWorkerPid(s.handle, &pid); });
      if (status == BGWH_STOPPED) shared::start_failed(s.reservation);
      if (shared::is_reserved(s.reservation)) return false;
      pfree(s.handle);
      return true;
    });
  }

  Micros looked_at_ = 0;  // at pg_database
  ServerClock clock_;
  Backoff trouble_;
  TroubleLog log_;
  std::vector<Starting> starting_;
  std::set<Oid> without_extension_;
  int beyond_ = 0;          // databases, when it looked around last
  int waiting_logged_ = 0;  // pools without a slot, the most that were logged
  Micros failing_looked_at_ = 0;
  std::string databases_setting_ = mq_databases;
};

}  // namespace

}  // namespace mq

extern "C" void mq_launcher_run(void) {
  mq::fence::guard([] {
    mq::fence::call([] {
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
