// A worker process: one role in one database.
//
// Started by the launcher, which reserved a seat for it in shared memory; the seat's number is its argument.
// It is connected as the role that its handlers run as, so a handler has nothing to escape to; our own
// statements run as the extension's owner (OwnerScope). The caretaker (no role) is connected as the bootstrap
// superuser, runs no handler, and looks after a database where no handler is registered.
//
// SIGTERM ends it as it ends a backend (die), SIGINT cancels the handler that runs (that attempt fails), SIGHUP
// has it read the configuration again. It exits when its pool or its database is no longer wanted, when it is one
// worker too many for the load, and when others of the database wait for its place.

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "../trouble.hpp"
#include "../worker.hpp"
#include "enabled.hpp"
#include "entries.h"
#include "extension.hpp"
#include "fence.hpp"
#include "handler_call.hpp"
#include "host.hpp"
#include "identity.hpp"
#include "inflight.hpp"
#include "lease_store.hpp"
#include "ledger.hpp"
#include "locks.hpp"
#include "long_call.hpp"
#include "pending.hpp"
#include "row_locks.hpp"
#include "session.hpp"
#include "settings.h"
#include "settle.hpp"
#include "shared.hpp"
#include "timeout.hpp"

extern "C" {
#include "commands/dbcommands.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/backend_status.h"
#include "utils/guc.h"
#include "utils/wait_event.h"
}

namespace mq {

namespace {

constexpr Micros kExtraLingers = 5 * kSecond;  // an idle worker that is not the last of its pool
constexpr Micros kTurn = kSecond;              // of a worker, busy or not, whose place another pool waits for
constexpr Micros kLeastTurn = kSecond / 10;    // of one that is idle, and whose place another pool needs
constexpr Micros kUnclaimed = kSecond;         // before what is due but cannot be claimed is looked at again

class WorkerHost : public ServerHost {
 public:
  using ServerHost::ServerHost;

  bool refresh(Registry& registry) override {
    const shared::News news = shared::news();
    seen_ = news.wakes;
    if (news.announcements != announced_) {
      announced_ = news.announcements;
      Extension::look_again();
    }
    if (!Extension::hold()) {
      shared::publish_pools(false, {});
      return false;
    }
    const Micros now = clock_.now();
    if (registry_generation_ == Extension::registry_generation() && now - read_at_ < poll_interval() && now >= read_at_)
      return true;
    read_at_ = now;
    working_ = enabled::confirm();
    const std::vector<Oid> roles = working_ ? handler_roles() : std::vector<Oid>{kCaretaker};
    shared::publish_pools(true, roles);
    if (std::find(roles.begin(), roles.end(), role_) == roles.end()) return false;
    if (!working_) say_why_not();
    if (role_ != kCaretaker) read_registry(registry);
    registry_generation_ = Extension::registry_generation();
    shared::started_well();
    return true;
  }

  bool wait(Micros most) override {
    fence::call([&] { (void)pgstat_report_stat(most > 0); });
    reload();
    if (most == 0) fruitless_ = false;
    const shared::Crowd crowd = shared::crowd();
    if (had_its_turn()) {
      if (crowd.contended) {
        shared::end_turn(most > 0 ? due_ : 0, seen_, fruitless_);
        return false;
      }
      if (shared::give_up_slot(clock_.now() + most, seen_)) return false;
    }
    if (crowd.wanted && most > 0) {
      if ((fruitless_ || clock_.now() - started_at_ >= kLeastTurn) && shared::yield_place(due_, seen_, fruitless_))
        return false;
      most = std::min(most, kLeastTurn);
    }
    // Not beyond the moment when there may be reason to leave.
    if (crowd.contended || shared::slots_are_wanted()) most = std::min(most, kTurn);
    if (most > 0) long_call::disarm();
    if (most > 0 && !shared::must_leave() && shared::begin_wait(seen_, due_)) {
      // Asked once it waits itself: of two that begin at once, each sees the other.
      if (most > kExtraLingers && shared::is_extra()) most = kExtraLingers;
      wait_for_events(most);
      shared::end_wait();
    }
    after_wait();
    return !shared::must_leave();
  }

  Next next(const Registry& registry, bool leased) override {
    const Next next = ServerHost::next(registry, leased);
    const Micros now = clock_.now();
    due_ = now + poll_interval();
    if (next.later) due_ = std::min(due_, *next.later);
    // Others have it, for as long again maybe.
    if (next.due && *next.due <= now) due_ = std::min(due_, now + std::max(kUnclaimed, now - *next.due));
    return next;
  }

  bool pause(Micros most) override {
    fence::call([&] { (void)pgstat_report_stat(true); });
    long_call::disarm();
    if (shared::must_leave()) return false;
    wait_for_events(most);
    after_wait();
    return !shared::must_leave();
  }

  Swept sweep() override {
    Swept swept = ServerHost::sweep();
    transaction_.begin();
    if (works()) {
      const OwnerScope scope;
      pending::refresh(clock_.now());
    }
    transaction_.commit();
    return swept;
  }

  void watch(std::vector<Socket> sockets) override { sockets_ = std::move(sockets); }

  bool wait_to_leave(Micros most) override {
    fence::call([] { (void)pgstat_report_stat(true); });
    if (shared::is_closed()) return false;
    long_call::disarm();
    wait_for_events(most);
    after_wait();
    return !shared::is_closed();
  }

  void give_place_up() override { shared::give_place_up(); }

  bool has_place() override {
    if (!shared::has_place()) return false;
    started_at_ = clock_.now();
    fruitless_ = true;
    return true;
  }

  bool should_drain() override { return shared::slots_are_wanted() && had_its_turn(); }

  bool should_leave(Micros idle_for) override { return idle_for >= kExtraLingers && shared::is_extra(); }

  void backlog(bool more_is_due) override { shared::set_backlog(more_is_due); }

  void report(std::string_view activity) override {
    const std::string text(activity);
    pgstat_report_activity(activity.empty() ? STATE_IDLE : STATE_RUNNING, text.c_str());
  }

  void holds(const Batch& messages) override {
    shared::note_batch(messages);
    long_call::begin_batch(messages.size() > 1);
  }

  void settles(Micros now) override { shared::note_settling(now); }
  void commits() override { shared::note_committing(); }

  void handled(std::size_t messages) override {
    long_call::end_batch();
    shared::note_idle();
    shared::note_handled(messages);
  }

  bool should_renew() override { return shared::should_renew(); }
  bool is_outdated() override { return shared::announced_since(announced_); }
  bool any_casualty() override { return working_ && ServerHost::any_casualty(); }
  std::vector<Casualty> casualties() override { return working_ ? ServerHost::casualties() : std::vector<Casualty>(); }

  void warn(const Error& error) override {
    const std::optional<std::string> line = log_.line(error, clock_.steady());
    if (!line) return;
    const char* text = line->c_str();
    fence::call([&] { ereport(LOG, (errmsg_internal("mq worker: %s", text))); });
  }

  void fails(Part part, const Error& error) override {
    shared::note_fails(part, error.sqlstate,
                       error.detail.empty() ? error.message : error.message + ": " + error.detail);
  }
  void works_again(Part part) override { shared::note_works(part); }

 private:
  bool had_its_turn() { return clock_.now() - started_at_ >= kTurn; }

  void wait_for_events(Micros most) {
    const auto milliseconds = static_cast<long>((most + 999) / 1000);
    if (sockets_.empty()) {
      fence::call([&] {
        (void)WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, milliseconds, PG_WAIT_EXTENSION);
      });
      return;
    }
    fence::call([&] {
      const auto size = static_cast<int>(sockets_.size());
#if PG_VERSION_NUM >= 170000
      WaitEventSet* set = CreateWaitEventSet(nullptr, size + 2);
#else
      WaitEventSet* set = CreateWaitEventSet(CurrentMemoryContext, size + 2);
#endif
      AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, nullptr);
      AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, nullptr, nullptr);
      for (const Socket& socket : sockets_)
        AddWaitEventToSet(set, socket.to_write ? WL_SOCKET_WRITEABLE : WL_SOCKET_READABLE, socket.descriptor, nullptr,
                          nullptr);
      WaitEvent event;
      (void)WaitEventSetWait(set, milliseconds, &event, 1, PG_WAIT_EXTENSION);
      FreeWaitEventSet(set);
    });
  }

  static void after_wait() {
    ResetLatch(MyLatch);
    QueryCancelPending = false;  // nothing runs that it could be meant for
    fence::call([] { CHECK_FOR_INTERRUPTS(); });
    reload();
  }

  static void reload() {
    if (!ConfigReloadPending) return;
    ConfigReloadPending = false;
    fence::call([] { ProcessConfigFile(PGC_SIGHUP); });
  }

  // Once for each reason.
  void say_why_not() {
    const std::string reason = enabled::why_not();
    if (reason == said_) return;
    said_ = reason;
    const char* text = reason.c_str();
    fence::call([&] {
      ereport(LOG, (errmsg("mq: messages of database \"%s\" are left alone: %s", get_database_name(MyDatabaseId), text),
                    errhint("SELECT \"check\", detail FROM mq_health() WHERE NOT ok tells what to do.")));
    });
  }

  // Roles that handlers are to run as; the caretaker's where there is none. Sees to it that mq_handlers has their
  // names.
  std::vector<Oid> handler_roles() {
    static Statement select(
        "SELECT r.oid, pg_catalog.bool_or(r.rolname IS DISTINCT FROM h.run_as)"
        "  FROM $S.mq_handlers h JOIN $S.mq_enabled m ON m.id = h.enabled_id"
        "  LEFT JOIN pg_catalog.pg_roles r ON r.oid = h.run_as_oid WHERE h.run_as_oid <> 0 GROUP BY r.oid",
        {});
    std::vector<Oid> roles;
    const OwnerScope scope;
    const Rows rows = select.run({});
    bool changed = false;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (!rows.is_null(i, 1)) roles.push_back(DatumGetObjectId(rows.get(i, 1)));
      changed = changed || DatumGetBool(rows.get(i, 2));
    }
    if (changed && locks::try_table(Extension::get().relation("mq_handlers"), RowExclusiveLock))
      enabled::follow_roles();
    if (roles.empty()) roles.push_back(kCaretaker);
    return roles;
  }

  TroubleLog log_;
  std::vector<Socket> sockets_;  // that end a wait
  std::uint64_t seen_ = 0;       // wake-ups of the database when the batch began
  std::uint64_t announced_ = 0;  // announcements for the database that have been heeded
  Micros read_at_ = 0;
  bool working_ = true;                        // unless it was found that messages are not handled here
  std::string said_;                           // why not
  Micros started_at_ = GetCurrentTimestamp();  // its turn
  bool fruitless_ = true;                      // it has found nothing to do in it
  Micros due_ = 0;                             // when something is due next, as it was found last
};

// On the way out of a handler, and before its transaction is rolled back: others must know before they can have its
// message. A termination is nobody's fault; to run on and on is, and to raise FATAL.
void note_loss(int code, Datum) {
  if (HandlerTimeout::overran())
    shared::note_lost(Loss::kOverrun);
  else if (code != 0 && !mq_told_to_end)
    shared::note_lost(Loss::kFatal);
  inflight::clear();
}

// A worker raises an error to the server only to end with it. What it is told from outside is no trouble.
emit_log_hook_type previous_log_hook = nullptr;  // set by mq_worker_run

void note_end(ErrorData* data) {
  if (data->elevel >= ERROR && !mq_told_to_end)
    shared::note_fails(Part::kProcess, unpack_sql_state(data->sqlerrcode),
                       data->message != nullptr ? data->message : "");
  if (previous_log_hook != nullptr) previous_log_hook(data);
}

// After the rollback.
void leave_seat(int code, Datum) {
  if (code != 0) shared::wake_workers(MyDatabaseId);
  shared::leave_seat();
}

void run(int seat) {
  shared::Reservation reservation{seat, 0};
  memcpy(&reservation.number, MyBgworkerEntry->bgw_extra, sizeof reservation.number);
  const shared::Assignment mine = shared::take_seat(reservation);
  if (!OidIsValid(mine.database)) return;
  fence::call([] { before_shmem_exit(leave_seat, 0); });
  shared::open_marks();
  row_locks::never_wait();
  HandlerTimeout::may_end_process();
  fence::call([&] {
    BackgroundWorkerUnblockSignals();
    uint32 flags = 0;
#ifdef BGWORKER_BYPASS_ROLELOGINCHECK
    flags |= BGWORKER_BYPASS_ROLELOGINCHECK;
#endif
    BackgroundWorkerInitializeConnectionByOid(mine.database, mine.role, flags);
    pgstat_report_appname("mq worker");
  });
  fence::call([] { before_shmem_exit(note_loss, 0); });
  pin_worker_settings();

  ServerClock clock;
  WorkerSession transaction;
  SqlClaimSource source;
  FmgrCaller caller(source);
  SqlSettler settler;
  WorkerHost host(transaction, source, caller, clock, mine.role);
  SqlLeaseStore store(source, caller);
  LeasedHandlers leased({clock, transaction, source, settler, store});
  Worker worker({host, clock, transaction, source, caller, settler, &leased});
  worker.run();
}

}  // namespace

}  // namespace mq

extern "C" void mq_worker_run(int seat) {
  mq::previous_log_hook = emit_log_hook;
  emit_log_hook = mq::note_end;
  mq::fence::guard([&] { mq::run(seat); });
}
