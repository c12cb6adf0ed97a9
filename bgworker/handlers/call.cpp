#include "handlers/call.hpp"

#include <algorithm>

#include "handlers/long_call.hpp"
#include "handlers/results.hpp"
#include "handlers/shape.hpp"
#include "handlers/signature.hpp"
#include "handlers/time_limit.hpp"
#include "pg/crash_point.hpp"
#include "pg/extension.hpp"
#include "pg/format.hpp"
#include "pg/guard.hpp"
#include "pg/handler_identity.hpp"
#include "pg/session_state.hpp"
#include "pg/settings.h"
#include "pg/statement.hpp"
#include "queue/call_settings.hpp"
#include "queue/cancel_watch.hpp"
#include "shmem/activity.hpp"
#include "shmem/callers.hpp"
#include "shmem/in_flight.hpp"
#include "shmem/leased_calls.hpp"
#include "shmem/limits.hpp"
#include "shmem/worker_slots.hpp"

extern "C" {
#include "access/tupdesc.h"
#include "catalog/pg_proc.h"
#include "parser/parse_func.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
#include "utils/typcache.h"
}

namespace mq {

namespace {

constexpr Micros kAskEvery = 10'000;

// Columns of the statement in load(), counted from 1.
enum {
  kChannel = 1,
  kMessageName,
  kFunction,
  kBatchSize,
  kTimeout,
  kMaxWorkers,
  kMaxBackoff,
  kOnDead,
  kMode,
  kPriority,
  kKeep,
  kDisagree,
  kRegisteredHere
};

// The memory context of a call: current during the call, and reset after it or its error.
class CallMemory {
 public:
  explicit CallMemory(MemoryContext context) : context_(context), before_(MemoryContextSwitchTo(context)) {}
  ~CallMemory() {
    MemoryContextSwitchTo(before_);
    MemoryContextReset(context_);
  }
  CallMemory(const CallMemory&) = delete;
  CallMemory& operator=(const CallMemory&) = delete;

 private:
  const MemoryContext context_;
  const MemoryContext before_;
};

// A transactional call, from its beginning to its end, also if that is an error.
class CallScope {
 public:
  CallScope(std::span<const Claimed* const> messages, MemoryContext memory, bool is_shared)
      : call_(messages, is_shared), memory_(memory), nest_level_(NewGUCNestLevel()) {
    SessionState::note_call();
    shared::note_call(messages.front()->channel_name, messages.front()->id);
    shared::begin_call(messages.front()->channel_name, messages.front()->id, static_cast<int>(messages.size()));
    in_flight::set(messages.front()->id, messages.size(), shared::my_role());
  }
  ~CallScope() {
    in_flight::clear();
    shared::end_call();
    shared::note_returned();
    AtEOXact_GUC(false, nest_level_);  // undoes the settings that the handler made
  }
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;
  CurrentCall& call() { return call_; }

 private:
  CurrentCall call_;
  const CallMemory memory_;
  const int nest_level_;
};

}  // namespace

FmgrCaller::~FmgrCaller() {
  for (const MemoryContext context : {functions_context_, call_context_})
    if (context != nullptr) MemoryContextDelete(context);
}

void FmgrCaller::load(Oid role, Registry& registry) {
  static Statement select(
      "SELECT channel_name, message_name, handler, batch_size, timeout,"
      "       LEAST(max_workers, (SELECT l.max_running FROM $S.mq_channel_limits l WHERE l.channel_name = "
      "h.channel_name)), max_backoff, on_dead, mode,"
      "       priority, keep, EXISTS (SELECT 1 FROM $S.mq_handlers o WHERE o.channel_name = h.channel_name"
      "                    AND (o.mode <> h.mode OR CASE WHEN o.enabled_id = h.enabled_id THEN o.run_as_oid <> "
      "h.run_as_oid"
      "                                                  ELSE o.run_as <> h.run_as END)),"
      "       m.id IS NOT NULL"
      "  FROM $S.mq_handlers h LEFT JOIN $S.mq_enabled m ON m.id = h.enabled_id"
      " WHERE CASE WHEN m.id IS NOT NULL THEN h.run_as_oid = $1"
      "            ELSE h.run_as = (SELECT r.rolname FROM pg_catalog.pg_roles r WHERE r.oid = $1) END"
      "    AND NOT EXISTS (SELECT 1 FROM $S.mq_paused p WHERE p.channel_name = h.channel_name)"
      "  ORDER BY channel_name",
      {OIDOID});
  registry.clear();
  functions_.clear();
  if (functions_context_ == nullptr) {
    functions_context_ =
        guard::call([] { return AllocSetContextCreate(TopMemoryContext, "mq handlers", ALLOCSET_DEFAULT_SIZES); });
    call_context_ =
        guard::call([] { return AllocSetContextCreate(TopMemoryContext, "mq handler call", ALLOCSET_DEFAULT_SIZES); });
  }
  MemoryContextReset(functions_context_);
  message_type_ = argument_type(Shape::kMessage);
  message_descriptor_ = guard::call([&] {
    TupleDesc shared = lookup_rowtype_tupdesc(message_type_, -1);
    const MemoryContext before = MemoryContextSwitchTo(functions_context_);
    TupleDesc copy = CreateTupleDescCopy(shared);
    MemoryContextSwitchTo(before);
    ReleaseTupleDesc(shared);
    return copy;
  });

  std::vector<Handler> handlers;
  std::map<std::string, std::string> disabled;
  {
    const OwnerScope scope;
    const Rows rows = select.run({ObjectIdGetDatum(role)});
    for (std::size_t i = 0; i < rows.size(); ++i) {
      Handler handler;
      bool null = false;
      handler.channel_name = text_view(rows.get(i, kChannel));
      const Datum name = rows.get(i, kMessageName, null);
      if (!null) handler.message_name = std::string(text_view(name));
      handler.function = text_view(rows.get(i, kFunction));
      const Datum batch_size = rows.get(i, kBatchSize, null);
      handler.batch_size = null ? mq_batch_size : DatumGetInt32(batch_size);
      const Datum timeout = rows.get(i, kTimeout, null);
      handler.timeout = null ? Micros{mq_handler_timeout} * 1000 : micros_of_interval(timeout);
      const Datum max_workers = rows.get(i, kMaxWorkers, null);
      handler.max_workers = null ? 0 : DatumGetInt32(max_workers);
      handler.max_backoff = micros_of_interval(rows.get(i, kMaxBackoff));
      handler.block_on_dead = text_view(rows.get(i, kOnDead)) == "block";
      handler.priority = DatumGetInt32(rows.get(i, kPriority));
      const Datum keep = rows.get(i, kKeep, null);
      if (!null) handler.keep = micros_of_interval(keep);
      handler.leased = text_view(rows.get(i, kMode)) == "leased";
      // It would be unclear which handler decides the mode and the role of the channel.
      if (DatumGetBool(rows.get(i, kDisagree)))
        disabled.try_emplace(handler.channel_name, "its handlers are registered with different mode or run_as");
      if (!DatumGetBool(rows.get(i, kRegisteredHere)))
        disabled.try_emplace(
            handler.channel_name,
            mq::format("handler {} was registered in another database; SELECT mq_enable() takes it over",
                       handler.function));
      handlers.push_back(std::move(handler));
    }
  }
  for (Handler& handler : handlers) {
    if (disabled.contains(handler.channel_name)) continue;
    try {
      resolve(handler, role);
      registry.add(std::move(handler));
    } catch (const Error& error) {
      disabled[handler.channel_name] = mq::format("handler {}: {}", handler.function, error.message);
    }
  }
  for (const auto& [channel, why] : disabled) {
    registry.disable(channel, why);
    if (const auto said = disabled_.find(channel); said != disabled_.end() && said->second == why) continue;
    const char* name = channel.c_str();
    const char* text = why.c_str();
    guard::call([&] { ereport(LOG, (errmsg("mq: messages of channel \"%s\" are left alone: %s", name, text))); });
  }
  disabled_ = std::move(disabled);
}

namespace {

// The names come from the catalog, quoted. The result of a function is sent back only if it is wanted: it may be
// large.
struct Statements {
  std::string call;
  std::string call_for_result;  // gives the result (jsonb) as text; empty: the function has none
};
Statements statements_of(const Handler& handler, Oid function) {
  const char* name = guard::call([&] {
    const char* schema = get_namespace_name(get_func_namespace(function));
    const char* plain = get_func_name(function);
    if (schema == nullptr || plain == nullptr) elog(ERROR, "cache lookup failed for function %u", function);
    return quote_qualified_identifier(schema, plain);
  });
  if (handler.procedure) return {mq::format("CALL {}($1)", name), {}};
  return {mq::format("SELECT pg_catalog.num_nulls({}($1))", name),
          handler.returns_json ? mq::format("SELECT {}($1)::pg_catalog.text", name) : std::string()};
}

}  // namespace

void FmgrCaller::resolve(Handler& handler, Oid role) {
  const Oid function = function_of(handler.function);
  if (!OidIsValid(function)) throw Error("42883", "the function does not exist");
  check_schema_rights(function, role);
  const HandlerOwner owner = check_handler_rights(function, role, handler.leased);
  handler.shape = shape_of(function, handler.leased);
  handler.returns_json = returns_json(function);
  handler.slot = functions_.size();
  if (handler.leased) {
    if (handler.shape != Shape::kBatch) handler.batch_size = 1;
    handler.procedure = guard::call([&] { return get_func_prokind(function) == PROKIND_PROCEDURE; });
    const Statements statements = statements_of(handler, function);
    functions_.push_back({nullptr, owner, statements.call, statements.call_for_result});
    return;
  }
  FmgrInfo* info = guard::call([&] {
    auto* call_info = static_cast<FmgrInfo*>(MemoryContextAllocZero(functions_context_, sizeof(FmgrInfo)));
    fmgr_info_cxt(function, call_info, functions_context_);
    return call_info;
  });
  functions_.push_back({info, owner, {}, {}});
}

namespace {

Error called_in_the_wrong_mode(const Handler& handler) {
  return {"55000", mq::format("handler {} is registered in another mode", handler.function)};
}

}  // namespace

LeasedCall FmgrCaller::leased_call(const Handler& handler, std::span<const Claimed* const> messages) {
  if (functions_.at(handler.slot).statement.empty()) throw called_in_the_wrong_mode(handler);
  const CallMemory memory(call_context_);
  const Function& function = functions_[handler.slot];
  const bool result = wants_result(handler, messages);
  LeasedCall call{result ? function.statement_for_result : function.statement,
                  {},
                  argument_type(handler.shape),
                  std::nullopt,
                  handler.procedure,
                  handler.timeout,
                  result};
  guard::call([] { PushActiveSnapshot(GetTransactionSnapshot()); });
  call.settings = call_text(messages);
  bool null = false;
  const Datum argument = this->argument(handler, messages, null);
  if (!null) {
    const bytea* bytes = guard::call([&] {
      Oid send = InvalidOid;
      bool varlena = false;
      getTypeBinaryOutputInfo(call.parameter_type, &send, &varlena);
      return OidSendFunctionCall(send, argument);
    });
    call.parameter.emplace(VARDATA_ANY(bytes), VARSIZE_ANY_EXHDR(bytes));
  }
  PopActiveSnapshot();
  return call;
}

void FmgrCaller::call(const Handler& handler, std::span<const Claimed* const> messages, bool yields) {
  FmgrInfo* function = functions_.at(handler.slot).info;
  if (function == nullptr) throw called_in_the_wrong_mode(handler);
  CallScope running(messages, call_context_, yields);
  MQ_CRASH_POINT(call_noted);
  results_.clear();
  const bool wants = wants_result(handler, messages);
  CancelWatch watch(messages);
  if (watch.is_hit()) throw Cancelled{watch.cancelled()};
  const long_call::Call long_call(yields);
  try {
    // The argument needs the snapshot: a payload may have to be fetched from a TOAST table.
    guard::call([] { PushActiveSnapshot(GetTransactionSnapshot()); });
    bool null = false;
    const Datum argument = this->argument(handler, messages, null);
    const HandlerTimeout timeout(handler.timeout);
    HandlerOwner owner = functions_[handler.slot].owner;
    // Another session may have made it SECURITY INVOKER since load().
    if (owner == HandlerOwner::kOther) owner = check_handler_rights(function->fn_oid, GetUserId(), false);
    const HandlerScope scope(owner);
    const Datum result = guard::call(
        [&] {
          Datum kept = 0;
          LOCAL_FCINFO(fcinfo, 1);
          InitFunctionCallInfoData(*fcinfo, function, 1, InvalidOid, nullptr, nullptr);
          fcinfo->args[0].value = argument;
          fcinfo->args[0].isnull = null;
          if (!(function->fn_strict && null)) {
            const Datum returned = FunctionCallInvoke(fcinfo);
            if (wants && !fcinfo->isnull) kept = result_to_keep(returned);
          }
          if (!HandlerTimeout::is_over()) long_call::Call::returned();
          PopActiveSnapshot();
          CommandCounterIncrement();
          CHECK_FOR_INTERRUPTS();
          return kept;
        },
        guard::Texts::kKept);
    if (watch.end()) throw Cancelled{watch.cancelled()};  // it may have caught the interrupt
    timeout.check();
    if (result != 0) results_ = results_of(result, handler.shape, messages.size());
    // The handler has caught the timer's cancel, and may not have done all its work.
    if (long_call::Call::was_stopped()) throw Error("57014", "handler was stopped");
    if (running.call().felt) throw Yielded{false, true};
  } catch (Error& error) {
    if (watch.end()) throw Cancelled{watch.cancelled()};
    if (running.call().felt && !error.interrupt) throw Yielded{false, true};
    if (!HandlerTimeout::is_over() && long_call::Call::was_stopped())
      throw Yielded{long_call::Call::waited_for_lock() && shared::others_wait_for_locks()};
    if (error.interrupt && !HandlerTimeout::is_over() && shared::gave_way())
      throw Error("40P01", "the call gave way to a transaction that writes into the tables of mq");
    // The message is that of the server, which it does not translate. Once the batch is over the registry is read
    // again.
    if (error.sqlstate == "XX000" &&
        error.message == mq::format("cache lookup failed for function {}", function->fn_oid))
      throw Error("40001", "the function was dropped while it was to be called");
    if (!HandlerTimeout::explain(error, handler.timeout)) note_cancel(error);
    throw;
  }
  changes_ = std::move(running.call().changes);
  dispositions_.clear();
  for (const auto& made : running.call().dispositions.entries()) dispositions_.push_back(made.second);
}

void FmgrCaller::note_cancel(const Error& error) {
  if (stop_when_cancelled_ && error.interrupt && error.sqlstate == "57014") cancelled_ = error;
}

std::vector<Disposition> FmgrCaller::dispositions() {
  return std::move(dispositions_);
}

bool FmgrCaller::has_changed(std::span<const Claimed> messages) {
  auto& [ids, names, any] = changes_;
  if (any) return !messages.empty();
  if (ids.empty() && names.empty()) return false;
  std::sort(ids.begin(), ids.end());
  std::sort(names.begin(), names.end());
  return std::any_of(messages.begin(), messages.end(), [&](const Claimed& message) {
    return std::binary_search(ids.begin(), ids.end(), message.id) ||
           std::binary_search(names.begin(), names.end(), message.channel_name);
  });
}

Datum FmgrCaller::argument(const Handler& handler, std::span<const Claimed* const> messages, bool& null) const {
  if (handler.shape == Shape::kJson) {
    null = messages.front()->payload_json == nullptr;
    return PointerGetDatum(messages.front()->payload_json);
  }
  Datum* elements = guard::call([&] { return static_cast<Datum*>(palloc(sizeof(Datum) * messages.size())); });
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Claimed& message = *messages[i];
    const bool nulls[] = {false,
                          false,
                          false,
                          false,
                          message.payload_json == nullptr,
                          message.payload_bytes == nullptr,
                          false,
                          false,
                          !message.created_at,
                          false,
                          message.headers == nullptr,
                          false};
    const Micros created_at = message.created_at.value_or(0);
    elements[i] = guard::call([&] {
      const auto text = [](std::string_view view) {
        return PointerGetDatum(cstring_to_text_with_len(view.data(), static_cast<int>(view.size())));
      };
      Datum values[] = {PointerGetDatum(message.id.bytes.data()),
                        text(message.name),
                        text(message.channel_name),
                        text(message.channel_args),
                        PointerGetDatum(message.payload_json),
                        PointerGetDatum(message.payload_bytes),
                        Int32GetDatum(message.attempts + 1),
                        Int32GetDatum(message.attempts_left - 1),
                        TimestampTzGetDatum(created_at),
                        BoolGetDatum(message.ordered),
                        PointerGetDatum(message.headers),
                        Int32GetDatum(message.priority)};
      return HeapTupleGetDatum(heap_form_tuple(message_descriptor_, values, const_cast<bool*>(nulls)));
    });
  }
  if (handler.shape == Shape::kMessage) return elements[0];
  const auto count = static_cast<int>(messages.size());
  return guard::call(
      [&] { return PointerGetDatum(construct_array(elements, count, message_type_, -1, false, TYPALIGN_DOUBLE)); });
}

bool FmgrCaller::should_yield() {
  if (ProcDiePending || cancelled_.has_value()) return true;
  // Dispatcher asks before each message. Shared memory is asked every kAskEvery at most.
  const Micros now = GetCurrentTimestamp();
  if (now - asked_at_ < kAskEvery && now >= asked_at_) return false;
  asked_at_ = now;
  return shared::must_leave();
}

}  // namespace mq
