// CALL mq_run(channel_names, max_messages): the worker's loop in the caller's session, until
// nothing is due. mq.c calls mq_run_entry().
//
// Where the caller's context allows COMMIT each batch is a transaction of its own. Elsewhere
// (`atomic`: in a transaction block or a function) all is the caller's transaction, and leased
// channels are left alone. Only this process has the state; scan_of_session() outlives a call.

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "entries.h"
#include "handlers/call.hpp"
#include "leased/local_session.hpp"
#include "pg/arguments.hpp"
#include "pg/client_wait.hpp"
#include "pg/extension.hpp"
#include "pg/format.hpp"
#include "pg/session.hpp"
#include "pg/statement.hpp"
#include "pg/validate.hpp"
#include "queue/cancel_watch.hpp"
#include "queue/enabled.hpp"
#include "queue/settle.hpp"
#include "shmem/callers.hpp"
#include "worker/loop.hpp"
#include "worker/server_host.hpp"

extern "C" {
#include "nodes/nodes.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/array.h"
}

namespace mq {

namespace {

// The unhandled messages that earlier calls of this session have looked through. A call in a
// transaction block does not use it: the block may roll back what the scan has done.
UnhandledScan& scan_of_session() {
  static auto* scan = new UnhandledScan();  // a pointer, so that nothing is destroyed at exit
  return *scan;
}

class CallHost : public ServerHost {
 public:
  CallHost(CallSession& transaction, FmgrCaller& caller, Clock& clock, bool atomic)
      : ServerHost(transaction, caller, clock, GetUserId()), atomic_(atomic) {
    if (!atomic_) std::swap(unhandled_, scan_of_session());
  }
  ~CallHost() override {
    if (!atomic_) std::swap(unhandled_, scan_of_session());
  }
  CallHost(const CallHost&) = delete;
  CallHost& operator=(const CallHost&) = delete;

  bool refresh(Registry& registry) override {
    if (!works()) throw enabled::refusal();
    if (registry_generation_ != Extension::registry_generation()) read_registry(registry);
    return true;
  }

  Swept sweep() override {
    Swept swept = ServerHost::sweep();
    if (swept.failure) tell(*swept.failure);
    return swept;
  }

  bool wait(Micros most) override {
    if (caller_.cancelled()) throw Error(*caller_.cancelled());
    if (most > 0)
      sleep_on_latch(most, WaitFor::kLeasedCalls);
    else
      guard::call([] { CHECK_FOR_INTERRUPTS(); });
    return true;
  }

  // In a transaction block the rows of the timetable would stay locked until it ends, and nobody could send.
  bool send_scheduled(const std::vector<std::string_view>* only) override {
    return !atomic_ && ServerHost::send_scheduled(only);
  }

  bool should_leave(Micros) override { return true; }
  void backlog(bool) override {}
  void report(std::string_view) override {}
  void warn(const Error& error) override { throw error; }

 private:
  // Warns once for each CALL: a step of the sweep that fails does so each time.
  void tell(const Error& error) {
    if (told_) return;
    told_ = true;
    const char* message = error.message.c_str();
    const char* sqlstate = error.sqlstate.c_str();
    guard::call([&] {
      ereport(WARNING, (errmsg("mq has not removed or repaired all that is old or out of order: %s (SQLSTATE %s)",
                               message, sqlstate)));
    });
  }

  bool told_ = false;
  const bool atomic_;
};

// While it lives other sessions see what this mq_run calls.
class CallerScope {
 public:
  explicit CallerScope(bool atomic) {
    shared::join_callers(atomic);
    CancelWatch::catch_signals();
  }
  ~CallerScope() {
    shared::leave_callers();
    CancelWatch::release_signals();
  }
  CallerScope(const CallerScope&) = delete;
  CallerScope& operator=(const CallerScope&) = delete;
};

// Whether the caller's context forbids COMMIT.
bool is_atomic(FunctionCallInfo fcinfo) {
  return fcinfo->context == nullptr || !IsA(fcinfo->context, CallContext) ||
         reinterpret_cast<CallContext*>(fcinfo->context)->atomic;
}

// Throws 25000 in a REPEATABLE READ or SERIALIZABLE transaction: its snapshot may be older than a
// message, and a handler must see what was committed with its message.
void refuse_old_snapshot() {
  if (!IsolationUsesXactSnapshot()) return;
  const char* level = XactIsoLevel == XACT_SERIALIZABLE ? "SERIALIZABLE" : "REPEATABLE READ";
  throw Error("25000", mq::format("CALL mq_run() must not run in a transaction that is {}", level),
              "Its snapshot may be older than the messages that its handlers are called with.",
              "Call it outside of a transaction block, or in one that is READ COMMITTED.");
}

// For a call in a transaction block, where no leased handler can run: raises a NOTICE that names
// the leased channels with something due.
void tell_of_leased(const Registry& registry, const std::vector<std::string_view>* only, SqlLeaseStore& store,
                    Micros now) {
  const SpiConnection spi;
  std::string names;
  for (const auto& [name, channel] : registry.channels()) {
    if (!channel.leased() || !channel.disabled.empty()) continue;
    if (only != nullptr && std::find(only->begin(), only->end(), name) == only->end()) continue;
    if (store.due(name, now, 1) > 0) names += (names.empty() ? "" : ", ") + name;
  }
  if (names.empty()) return;
  const char* text = names.c_str();
  guard::call([&] {
    ereport(NOTICE, (errmsg("CALL mq_run() leaves leased channels alone inside a transaction block: %s", text),
                     errhint("Their claims have to be committed before their handlers run. Call it outside.")));
  });
}

Datum run(FunctionCallInfo fcinfo) {
  refuse_in_handler("mq_run");
  guard::call([] {
    PreventCommandIfReadOnly("CALL mq_run()");
    PreventCommandDuringRecovery("CALL mq_run()");
  });
  std::vector<std::string> names;
  const Value array = argument(fcinfo, 0);
  if (!array.null) names = names_of(array, "channel_names");
  const std::vector<std::string_view> only(names.begin(), names.end());
  std::optional<std::int64_t> most;
  if (!PG_ARGISNULL(1)) {
    most = PG_GETARG_INT64(1);
    check::count("max_messages", *most, 0, PG_INT64_MAX);
  }

  const bool atomic = is_atomic(fcinfo);
  if (atomic) refuse_old_snapshot();
  const CallerScope caller_scope(atomic);
  ServerClock clock;
  CallSession transaction(atomic);
  FmgrCaller caller;
  caller.stop_when_cancelled();
  CallHost host(transaction, caller, clock, atomic);
  LocalLeaseStore store(caller, clock, transaction);
  LeasedHandlers leased({clock, transaction, store});
  // A lease has to be committed before its handler runs.
  Worker worker({host, clock, transaction, caller, atomic ? nullptr : &leased});
  const auto* channels = array.null ? nullptr : &only;
  const std::int64_t handled = worker.run_until_empty(most, channels);
  if (atomic) tell_of_leased(worker.registry(), channels, store, clock.now());

  return guard::call([&] {
    TupleDesc descriptor = nullptr;
    if (get_call_result_type(fcinfo, nullptr, &descriptor) != TYPEFUNC_COMPOSITE)
      elog(ERROR, "return type must be a row type");
    Datum values[1] = {Int64GetDatum(handled)};
    bool nulls[1] = {false};
    return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), values, nulls));
  });
}

}  // namespace

}  // namespace mq

extern "C" Datum mq_run_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_run()");
    return mq::run(fcinfo);
  });
}
