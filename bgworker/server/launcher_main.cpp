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
#include <string>
#include <vector>

#include "../pool.hpp"
#include "../trouble.hpp"
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
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/varlena.h"
#include "utils/wait_event.h"
}

namespace mq {

namespace {

constexpr Micros kLookAround = 10 * kSecond;  // between two readings of pg_database
constexpr Micros kOutOfSlots = kSecond;       // before the postmaster is asked again

struct Starting {
  int seat;
  BackgroundWorkerHandle* handle;
};

// mq.databases, read anew each time: it changes with a reload.
bool is_served(const char* name) {
  if (strcmp(mq_databases, "*") == 0) return true;
  return fence::call([&] {
    char* copy = pstrdup(mq_databases);
    List* names = NIL;
    bool found = false;
    if (SplitIdentifierString(copy, ',', &names)) {
      ListCell* cell = nullptr;
      foreach (cell, names) found = found || strcmp(static_cast<const char*>(lfirst(cell)), name) == 0;
    }
    list_free(names);
    pfree(copy);
    return found;
  });
}

// Databases that one can connect to, and that mq.databases names.
std::vector<Oid> served_databases() {
  struct Found {
    Oid id;
    NameData name;
  };
  constexpr int kMost = 256;
  Found* found = fence::call([] { return static_cast<Found*>(palloc(sizeof(Found) * kMost)); });
  const int count = fence::call([&] {
    int n = 0;
    StartTransactionCommand();
    (void)GetTransactionSnapshot();
    Relation catalog = table_open(DatabaseRelationId, AccessShareLock);
    TableScanDesc scan = table_beginscan_catalog(catalog, 0, nullptr);
    HeapTuple tuple = nullptr;
    while (n < kMost && HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection))) {
      const auto* form = (Form_pg_database)GETSTRUCT(tuple);
      if (!form->datallowconn || form->datistemplate) continue;
      found[n].id = form->oid;
      found[n].name = form->datname;
      ++n;
    }
    table_endscan(scan);
    table_close(catalog, AccessShareLock);
    CommitTransactionCommand();
    return n;
  });
  std::vector<Oid> databases;
  for (int i = 0; i < count; ++i)
    if (is_served(NameStr(found[i].name))) databases.push_back(found[i].id);
  pfree(found);
  return databases;
}

class Launcher {
 public:
  void run() {
    shared::launcher_attach();
    for (;;) {
      Micros wait = trouble_.left(clock_.steady());
      if (wait == 0) wait = try_round();
      const long milliseconds = static_cast<long>(wait / 1000);
      fence::call([&] {
        (void)WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, milliseconds, PG_WAIT_EXTENSION);
        ResetLatch(MyLatch);
        CHECK_FOR_INTERRUPTS();
        if (ConfigReloadPending) {
          ConfigReloadPending = false;
          ProcessConfigFile(PGC_SIGHUP);
        }
      });
      if (settings_changed()) looked_at_ = 0;
    }
  }

 private:
  // How long to wait after it. Trouble is waited out here: a launcher that ends is started again each second.
  Micros try_round() {
    try {
      const Micros wait = round();
      trouble_.succeeded();
      return wait;
    } catch (const Error& error) {
      fence::call([] { AbortCurrentTransaction(); });
      if (const std::optional<std::string> line = log_.line(error, clock_.steady())) {
        const char* text = line->c_str();
        fence::call([&] { ereport(LOG, (errmsg_internal("mq launcher: %s", text))); });
      }
      trouble_.failed(clock_.steady());
      return trouble_.left(clock_.steady());
    }
  }

  Micros round() {
    const Micros now = GetCurrentTimestamp();
    std::vector<shared::DatabaseState> databases = shared::databases();
    const bool announced = std::any_of(databases.begin(), databases.end(), [](const auto& d) { return d.look; });
    if (shared::take_look_around() || announced || looked_at_ == 0 || now - looked_at_ >= kLookAround ||
        now < looked_at_) {
      shared::forget_databases_but(served_databases());
      databases = shared::databases();
      looked_at_ = now;
    }
    check_starting();
    Micros wait = kLookAround;
    out_of_slots_ = false;
    for (const shared::DatabaseState& database : databases)
      if (!database.closed) wait = std::min(wait, serve(database, now));
    shared::set_out_of_slots(out_of_slots_);
    return starting_.empty() ? wait : std::min<Micros>(wait, kSecond);
  }

  bool settings_changed() {
    if (databases_setting_ == mq_databases) return false;
    databases_setting_ = mq_databases;
    return true;
  }

  // Starts what is missing in a database. Returns how long nothing more can be done for it.
  Micros serve(const shared::DatabaseState& database, Micros now) {
    // Somebody has to look. Where workers are, they look themselves.
    if (!database.known || (database.look && !database.installed)) shared::want_caretaker(database.database);
    const std::vector<PoolState> pools = shared::pools();
    shared::set_contended(database.database, contended(pools, database.database, mq_max_workers));
    const auto next = pool_to_start(pools, database.database, mq_max_workers, now);
    if (next) return start(database.database, pools[*next].role) ? Micros{0} : kOutOfSlots;
    // A pool that rests after a failed start needs another look soon.
    const bool rests = std::any_of(pools.begin(), pools.end(), [&](const PoolState& pool) {
      return pool.database == database.database && pool.workers == 0;
    });
    return rests ? kSecond : kLookAround;
  }

  bool start(Oid database, Oid role) {
    const int seat = shared::reserve_seat(database, role);
    if (seat < 0) return false;
    BackgroundWorkerHandle* handle = fence::call([&] {
      BackgroundWorker worker;
      memset(&worker, 0, sizeof worker);
      worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
      worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
      worker.bgw_restart_time = BGW_NEVER_RESTART;
      strlcpy(worker.bgw_library_name, "mq", sizeof worker.bgw_library_name);
      strlcpy(worker.bgw_function_name, "mq_worker_main", sizeof worker.bgw_function_name);
      strlcpy(worker.bgw_name, "mq worker", sizeof worker.bgw_name);
      strlcpy(worker.bgw_type, "mq worker", sizeof worker.bgw_type);
      worker.bgw_main_arg = Int32GetDatum(seat);
      worker.bgw_notify_pid = MyProcPid;
      BackgroundWorkerHandle* h = nullptr;
      return RegisterDynamicBackgroundWorker(&worker, &h) ? h : nullptr;
    });
    if (handle == nullptr) {
      out_of_slots_ = true;  // no fault of the pool's
      shared::release_seat(seat);
      return false;
    }
    starting_.push_back({seat, handle});
    return true;
  }

  // A worker that ended before it took its seat leaves the seat to us.
  void check_starting() {
    std::vector<Starting> still;
    for (const Starting& s : starting_) {
      pid_t pid = 0;
      const BgwHandleStatus status = fence::call([&] { return GetBackgroundWorkerPid(s.handle, &pid); });
      if (status == BGWH_STOPPED) shared::start_failed(s.seat);
      if (status == BGWH_STOPPED || shared::seat_is_taken(s.seat))
        pfree(s.handle);
      else
        still.push_back(s);
    }
    starting_ = still;
  }

  Micros looked_at_ = 0;  // at pg_database
  ServerClock clock_;
  Backoff trouble_;
  TroubleLog log_;
  std::vector<Starting> starting_;
  bool out_of_slots_ = false;  // in this round
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
    });
    mq::Launcher().run();
  });
}
