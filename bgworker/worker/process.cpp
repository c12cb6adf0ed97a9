// A worker process: serves one role in one database. The launcher asks the postmaster for it; mq.c
// calls mq_worker_run() in it.
//
// The argument is the number of the worker slot that the launcher has reserved in shared memory.
// The worker is connected as the role that its handlers run as, so a handler has no other role to
// escape to; mq's own statements run as the extension's owner (OwnerScope). The probe worker (role
// InvalidOid) is connected as the bootstrap superuser. It looks after a database where no handler
// is registered, and runs no handler.
//
// SIGTERM ends the worker as it ends a backend (die). SIGINT cancels the handler that runs, and
// that attempt fails; if ask_to_give_way() has sent it, the call counts as a conflict (40P01).
// SIGHUP has the worker read the configuration again. It leaves by itself when its database is
// closed or has no extension, its pool is gone, there are more workers than mq.max_workers, another
// worker of its pool idles too, its settings have changed, or another pool needs its slot.
//
// Only this process has its state; shared memory has its own lock (shmem/shared.hpp).

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "entries.h"
#include "handlers/call.hpp"
#include "handlers/long_call.hpp"
#include "handlers/time_limit.hpp"
#include "leased/lease_store.hpp"
#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/handler_identity.hpp"
#include "pg/locks.hpp"
#include "pg/row_locks.hpp"
#include "pg/session.hpp"
#include "pg/settings.h"
#include "pg/trouble.hpp"
#include "pg/versions.hpp"
#include "pg/wait_event.hpp"
#include "queue/backoff.hpp"
#include "queue/cancel_watch.hpp"
#include "queue/enabled.hpp"
#include "queue/settle.hpp"
#include "shmem/aborted_calls.hpp"
#include "shmem/activity.hpp"
#include "shmem/callers.hpp"
#include "shmem/channel_key.hpp"
#include "shmem/failing.hpp"
#include "shmem/in_flight.hpp"
#include "shmem/pool_state.hpp"
#include "shmem/requests.hpp"
#include "shmem/schedule_times.hpp"
#include "shmem/worker_slots.hpp"
#include "worker/loop.hpp"
#include "worker/server_host.hpp"

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

constexpr Micros kExtraLingers = 5 * kSecond;  // of an idle worker beside another idle one of its pool
constexpr Micros kTurn = kSecond;              // of a worker, busy or idle, whose slot others want
constexpr Micros kLeastTurn = kSecond / 10;    // of an idle worker whose slot another pool needs
constexpr Micros kUnclaimed = kSecond;         // between looks at due messages that others hold
constexpr Micros kLeastPause = kSecond / 10;   // after trouble, though schedules are due

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
    const std::vector<Oid> roles = working_ ? handler_roles() : std::vector<Oid>{kProbe};
    shared::publish_pools(true, roles);
    shared::publish_handled(working_ ? std::optional(handled_names()) : std::nullopt, news.handled_forgotten);
    if (std::find(roles.begin(), roles.end(), role_) == roles.end()) return false;
    if (!working_) say_why_not();
    if (role_ != kProbe) read_registry(registry);
    registry_generation_ = Extension::registry_generation();
    shared::started_well();
    return true;
  }

  bool wait(Micros most) override {
    guard::call([&] { (void)pgstat_report_stat(most > 0); });
    reload();
    if (most == 0) fruitless_ = false;
    const shared::Contention contention = shared::contention();
    if (had_its_turn()) {
      if (contention.contended) {
        shared::end_turn(most > 0 ? due_ : 0, seen_, fruitless_);
        return false;
      }
      const Micros again = most < poll_interval() ? clock_.now() + most : look_at_;
      if (shared::give_up_slot(again, seen_)) return false;
    }
    if (contention.wanted && most > 0) {
      if ((fruitless_ || clock_.now() - started_at_ >= kLeastTurn) &&
          shared::yield_database_slot(due_, seen_, fruitless_))
        return false;
      most = std::min(most, kLeastTurn);
    }
    // The worker must not wait beyond the end of its turn, when it may have to leave.
    if (contention.contended || shared::slots_are_wanted()) most = std::min(most, kTurn);
    if (most > 0) long_call::disarm();
    // begin_wait() is false if something was sent since the batch began, at `seen_` wake-ups.
    if (most > 0 && !shared::must_leave() && shared::begin_wait(seen_, due_)) {
      // Two workers of a pool, A and B, may begin to wait at once:
      //   A   says that it waits (begin_wait()), then asks whether another one does (is_extra())
      //   B   does the same
      // One lock covers these steps, so at least the one that asks last sees the other. If both see it, they
      // must not wake together, or neither would find the other waiting when it asks whether to leave.
      if (most > kExtraLingers && shared::is_extra()) most = std::min(most, jittered(kExtraLingers, clock_.random()));
      // After an error the loop itself says when to try again.
      if (!schedules_fail_)
        if (const Micros until = shared::keep_time(); until != kNever)
          most = std::clamp<Micros>(until - clock_.now(), 0, most);
      wait_for_events(most, waits_for_time_ ? WaitFor::kDue : WaitFor::kIdle);
      shared::end_wait();
    }
    after_wait();
    return !shared::must_leave();
  }

  Next next(const Registry& registry, bool leased, std::optional<Micros> noted) override {
    const Next next = ServerHost::next(registry, leased, noted);
    const Micros now = clock_.now();
    due_ = now + poll_interval();
    if (next.later) due_ = std::min(due_, *next.later);
    due_ = std::min(due_, shared::next_schedule());
    waits_for_time_ = due_ < now + poll_interval();
    look_at_ = now + shared::longest_rest();
    for (const auto& moment : {next.due, next.later, next.expiry})
      if (moment) look_at_ = std::min(look_at_, *moment);
    look_at_ = std::min(look_at_, shared::next_schedule());
    // Another session has the message, maybe for as long again as it has been due.
    if (next.due && *next.due <= now) due_ = std::min(due_, now + std::max(kUnclaimed, now - *next.due));
    return next;
  }

  Swept sweep() override {
    look_at_schedules_ = true;
    return ServerHost::sweep();
  }

  // Others of the database leave it to the one that does it, see schedule_times.hpp.
  bool send_scheduled(const std::vector<std::string_view>* only) override {
    if (!look_at_schedules_ && shared::next_schedule() > clock_.now()) return false;
    shared::Firing firing;
    if (!firing.is_mine()) return false;
    const bool thorough = std::exchange(look_at_schedules_, false);
    schedules_fail_ = true;  // unless all of the following succeeds
    const Micros began = clock_.steady();
    bool sent = false;
    Scheduled step;
    do {
      step = send_some_scheduled(thorough, only);
      sent = sent || step.sent;
    } while (step.more && clock_.steady() - began < kSecond && !shared::must_leave());
    // What is left is due now. step.next is not: it would wait for rows that others hold locked.
    firing.done(step.more ? 0 : step.next);
    schedules_fail_ = false;
    return sent || step.more;
  }

  bool pause(Micros most) override {
    guard::call([&] { (void)pgstat_report_stat(true); });
    long_call::disarm();
    if (shared::must_leave()) return false;
    // It keeps no time, but the others may leave that to it: so it is there for the next schedule.
    if (!schedules_fail_)
      if (const Micros next = shared::next_schedule(); next != kNever)
        most = std::min(most, std::max(next - clock_.now(), kLeastPause));
    wait_for_events(most, WaitFor::kPause);
    after_wait();
    return !shared::must_leave();
  }

  void watch(std::vector<Socket> sockets) override { sockets_ = std::move(sockets); }

  bool wait_to_leave(Micros most) override {
    guard::call([] { (void)pgstat_report_stat(true); });
    if (shared::is_closed()) return false;
    long_call::disarm();
    wait_for_events(most, WaitFor::kLeasedCalls);
    after_wait();
    return !shared::is_closed();
  }

  void give_up_database_slot() override { shared::give_up_database_slot(); }

  bool has_database_slot() override {
    if (!shared::has_database_slot()) return false;
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
    std::vector<shared::NamedMessages> named;
    for (const Claimed& message : messages) {
      if (named.empty() || named.back().channel_name != message.channel_name)
        named.push_back({message.channel_name, 0});
      ++named.back().messages;
    }
    shared::note_batch(named);
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
  bool any_aborted_call() override { return working_ && ServerHost::any_aborted_call(); }
  std::vector<AbortedCall> aborted_calls() override {
    return working_ ? ServerHost::aborted_calls() : std::vector<AbortedCall>();
  }

  void warn(const Error& error) override {
    const std::optional<std::string> line = log_.line(error, clock_.steady());
    if (!line) return;
    const char* text = line->c_str();
    guard::call([&] { ereport(LOG, (errmsg_internal("mq worker: %s", text))); });
  }

  void fails(Part part, const Error& error) override {
    shared::note_fails(part, error.sqlstate,
                       error.detail.empty() ? error.message : error.message + ": " + error.detail);
  }
  void works_again(Part part) override { shared::note_works(part); }

 private:
  // Something was sent or announced since the batch began, or the worker must leave.
  bool is_wanted() override { return shared::news().wakes != seen_ || shared::must_leave(); }

  bool had_its_turn() { return clock_.now() - started_at_ >= kTurn; }

  // `what`: for that, unless there are sockets.
  void wait_for_events(Micros most, WaitFor what) {
    if (!sockets_.empty()) what = WaitFor::kLeasedCalls;
    const auto milliseconds = static_cast<long>((most + 999) / 1000);
    if (sockets_.empty()) {
      guard::call([&] {
        (void)WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, milliseconds, wait_event(what));
      });
      return;
    }
    guard::call([&] {
      const auto size = static_cast<int>(sockets_.size());
      WaitEventSet* set = server::create_wait_event_set(size + 2);
      AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, nullptr);
      AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, nullptr, nullptr);
      for (const Socket& socket : sockets_)
        AddWaitEventToSet(set, socket.to_write ? WL_SOCKET_WRITEABLE : WL_SOCKET_READABLE, socket.descriptor, nullptr,
                          nullptr);
      WaitEvent event;
      (void)WaitEventSetWait(set, milliseconds, &event, 1, wait_event(what));
      FreeWaitEventSet(set);
    });
  }

  static void after_wait() {
    ResetLatch(MyLatch);
    QueryCancelPending = false;  // nothing runs that it could be meant for
    guard::call([] { CHECK_FOR_INTERRUPTS(); });
    reload();
  }

  static void reload() {
    if (!ConfigReloadPending) return;
    ConfigReloadPending = false;
    guard::call([] { ProcessConfigFile(PGC_SIGHUP); });
  }

  // Logs why messages are not handled in this database, once for each reason.
  void say_why_not() {
    const std::string reason = enabled::why_not();
    if (reason == said_) return;
    said_ = reason;
    const char* text = reason.c_str();
    guard::call([&] {
      ereport(LOG, (errmsg("mq: messages of database \"%s\" are left alone: %s", get_database_name(MyDatabaseId), text),
                    errhint("SELECT \"check\", detail FROM mq_health() WHERE NOT ok tells what to do.")));
    });
  }

  // The roles that handlers are to run as; kProbe alone where there is none. Brings the names of
  // renamed or dropped roles in mq_handlers up to date, unless the table is locked.
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
    if (roles.empty()) roles.push_back(kProbe);
    return roles;
  }

  NameFilter handled_names() {
    static Statement select("SELECT DISTINCT h.channel_name FROM $S.mq_handlers h", {});
    const OwnerScope scope;
    const Rows rows = select.run({});
    NameFilter names;
    for (std::size_t i = 0; i < rows.size(); ++i) names.add(channel_key(text_view(rows.get(i, 1)), {}));
    return names;
  }

  TroubleLog log_;
  std::vector<Socket> sockets_;  // sockets that end a wait
  std::uint64_t seen_ = 0;       // wake-ups of the database when the batch began
  std::uint64_t announced_ = 0;  // announcements for the database that were acted on
  Micros read_at_ = 0;
  bool working_ = true;                        // false: messages are not handled in this database
  std::string said_;                           // the reason for that which was logged last
  Micros started_at_ = GetCurrentTimestamp();  // when the worker's turn began
  bool fruitless_ = true;                      // the worker has found nothing to do in its turn
  bool look_at_schedules_ = true;              // though none is due, as far as is known
  bool schedules_fail_ = false;                // the last look at them ended with an error
  Micros due_ = 0;                             // when something is due next, as next() found last
  Micros look_at_ = 0;                         // when somebody has to look, if nobody waits here
  bool waits_for_time_ = false;                // that is a time, and not the end of mq.poll_interval
};

// At exit: notes the aborted call if a handler runs. A call that ignored its time limit is charged,
// and one that ended the process (FATAL), unless another process has terminated the worker. Other
// workers must know of the call before they can claim its message. before_shmem_exit() calls the
// last registered function first, so the order is:
//   1. note_aborted(), registered after the connection was made, notes the call.
//   2. The server rolls the transaction back, which unlocks the message.
//   3. leave_slot(), registered before the connection was made, frees the slot.
void note_aborted(int code, Datum) {
  if (HandlerTimeout::overran())
    shared::note_aborted_call(AbortReason::kOverrun);
  else if (code != 0 && !mq_told_to_end)
    shared::note_aborted_call(AbortReason::kFatal);
  in_flight::clear();
}

// The server's log hook: notes the error that the worker ends with, unless another process has
// terminated it, or a handler has ignored its time limit: that call is charged, and mq_failures has
// it. All other errors are caught before they are logged.
emit_log_hook_type previous_log_hook = nullptr;  // set by mq_worker_run

void note_end(ErrorData* data) {
  if (data->elevel >= ERROR && !mq_told_to_end && !HandlerTimeout::overran())
    shared::note_fails(Part::kProcess, unpack_sql_state(data->sqlerrcode),
                       data->message != nullptr ? data->message : "");
  if (previous_log_hook != nullptr) previous_log_hook(data);
}

// At exit, after the rollback: messages of an aborted batch are due again, so others are woken.
void leave_slot(int code, Datum) {
  if (code != 0) shared::wake_workers(MyDatabaseId);
  shared::leave_callers();
  shared::leave_slot();
}

// A batch allocates and frees the same hundreds of kilobytes as the one before. Lest each gives them
// back to the kernel and gets them page by page again, which was 9 % of a worker's time, malloc keeps
// some megabytes.
void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_TRIM_THRESHOLD, 8 << 20);
  mallopt(M_MMAP_THRESHOLD, 4 << 20);  // the other setting has ended its adaptation
#endif
}

void run(int slot) {
  keep_freed_memory();
  shared::Reservation reservation{slot, 0};
  memcpy(&reservation.number, MyBgworkerEntry->bgw_extra, sizeof reservation.number);
  const shared::Assignment mine = shared::take_slot(reservation);
  if (!OidIsValid(mine.database)) return;
  guard::call([] { before_shmem_exit(leave_slot, 0); });
  shared::open_in_flight();
  row_locks::never_wait();
  HandlerTimeout::may_end_process();
  guard::call([&] {
    BackgroundWorkerUnblockSignals();
    uint32 flags = 0;
#ifdef BGWORKER_BYPASS_ROLELOGINCHECK
    flags |= BGWORKER_BYPASS_ROLELOGINCHECK;
#endif
    BackgroundWorkerInitializeConnectionByOid(mine.database, mine.role, flags);
    pgstat_report_appname("mq worker");
  });
  shared::join_callers(false);
  CancelWatch::catch_signals();
  guard::call([] { before_shmem_exit(note_aborted, 0); });
  pin_worker_settings();

  ServerClock clock;
  WorkerSession transaction;
  FmgrCaller caller;
  WorkerHost host(transaction, caller, clock, mine.role);
  SqlLeaseStore store(caller, clock);
  LeasedHandlers leased({clock, transaction, store});
  Worker worker({host, clock, transaction, caller, &leased});
  worker.run();
}

}  // namespace

}  // namespace mq

extern "C" void mq_worker_run(int slot) {
  mq::previous_log_hook = emit_log_hook;
  emit_log_hook = mq::note_end;
  mq::guard::callback([&] { mq::run(slot); });
}
