#include "handler_call.hpp"

#include <fmt/core.h>

#include <algorithm>

#include "extension.hpp"
#include "fence.hpp"
#include "identity.hpp"
#include "inflight.hpp"
#include "long_call.hpp"
#include "session_state.hpp"
#include "settings.h"
#include "shared.hpp"
#include "signature.hpp"
#include "spi.hpp"
#include "timeout.hpp"

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

// Columns of mq_handlers, in the order of the statement in load().
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
  kDisagree,
  kRegisteredHere
};

// The call that runs now: set by FmgrCaller::call, which stands in the stack of whoever reads it. Calls nest when a
// handler calls mq_run.
struct CurrentCall {
  std::span<const Claimed* const> messages;
  std::vector<std::pair<SubTransactionId, Wish>> wishes;
  CurrentCall* outer;
  bool company;       // others are called in its transaction
  bool felt = false;  // it has asked for what they would feel
  Changes changes = {};
};
CurrentCall* current_call = nullptr;

// Memory that a call may use, given back however it ends.
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

// A transactional call, from its beginning to its end, however that comes.
class CallScope {
 public:
  CallScope(std::span<const Claimed* const> messages, MemoryContext memory, bool company)
      : call_{messages, {}, current_call, company}, memory_(memory), nest_level_(NewGUCNestLevel()) {
    current_call = &call_;
    SessionState::note_call();
    shared::note_call(messages.front()->channel_name, messages.front()->id);
    inflight::set(messages.front()->id, messages.size(), shared::my_role());
  }
  ~CallScope() {
    inflight::clear();
    shared::note_returned();
    current_call = call_.outer;
    AtEOXact_GUC(false, nest_level_);  // what the handler has set ends with it
  }
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;
  CurrentCall& call() { return call_; }

 private:
  CurrentCall call_;
  const CallMemory memory_;
  const int nest_level_;
};

// A wish goes with the subtransaction that it was made in.
void subtransaction_event(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void*) {
  if (current_call == nullptr) return;
  auto& wishes = current_call->wishes;
  if (event == SUBXACT_EVENT_ABORT_SUB) {
    std::erase_if(wishes, [&](const auto& made) { return made.first == mine; });
  } else if (event == SUBXACT_EVENT_COMMIT_SUB) {
    for (auto& made : wishes)
      if (made.first == mine) made.first = parent;
  }
}

}  // namespace

const char* name_of(Wish::Kind kind) {
  return kind == Wish::kSnooze ? "mq_snooze" : "mq_discard";
}

Error not_of_the_call(Wish::Kind kind) {
  return {"22023", fmt::format("{}: the handler was not called with a message of that id", name_of(kind))};
}

bool note_wish(const Wish& wish, bool any) {
  if (current_call == nullptr) return false;
  static bool registered = false;
  if (!registered) {
    fence::call([] { RegisterSubXactCallback(subtransaction_event, nullptr); });
    registered = true;
  }
  bool found = false;
  for (const Claimed* message : current_call->messages) {
    if (!any && message->id != wish.id) continue;
    found = true;
    current_call->wishes.push_back({GetCurrentSubTransactionId(), {wish.kind, message->id, wish.delay, wish.reason}});
  }
  if (!found) throw not_of_the_call(wish.kind);
  return true;
}

bool is_of_the_call(const Uuid& id, std::int64_t place) {
  return current_call != nullptr &&
         std::any_of(current_call->messages.begin(), current_call->messages.end(),
                     [&](const Claimed* mine) { return mine->id == id && mine->place == place; });
}

bool is_in_handler() {
  return current_call != nullptr;
}

void note_changed(std::span<const Uuid> messages) {
  if (current_call == nullptr) return;
  std::vector<Uuid>& ids = current_call->changes.ids;
  ids.insert(ids.end(), messages.begin(), messages.end());
}

void note_changed(std::string_view channel_name) {
  if (current_call != nullptr) current_call->changes.channel_names.emplace_back(channel_name);
}

void note_any_changed() {
  if (current_call != nullptr) current_call->changes.any = true;
}

void refuse_in_handler(const char* function) {
  if (current_call != nullptr) throw Error("55000", fmt::format("{} must not be called by a handler", function));
}

Oid argument_type(Shape shape) {
  if (shape == Shape::kJson) return JSONBOID;
  const Oid schema = Extension::get().schema();
  const Oid message = fence::call([&] {
    return GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid, CStringGetDatum("mq_message"), ObjectIdGetDatum(schema));
  });
  if (!OidIsValid(message)) throw Error("42704", "type mq_message does not exist");
  return shape == Shape::kMessage ? message : fence::call([&] { return get_array_type(message); });
}

Shape shape_of(Oid function, bool leased) {
  struct Found {
    Oid argument;
    int arguments;
    char kind;
    bool set;
    bool variadic;
    bool output;  // has OUT or INOUT arguments
    bool exists;
  };
  const Found found = fence::call([&] {
    Found f{InvalidOid, 0, 0, false, false, false, false};
    HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
    if (!HeapTupleIsValid(tuple)) return f;
    const auto* form = (Form_pg_proc)GETSTRUCT(tuple);
    f = {form->pronargs > 0 ? form->proargtypes.values[0] : InvalidOid,
         form->pronargs,
         form->prokind,
         form->proretset,
         OidIsValid(form->provariadic),
         !heap_attisnull(tuple, Anum_pg_proc_proargmodes, nullptr),
         true};
    ReleaseSysCache(tuple);
    return f;
  });
  if (!found.exists) throw Error("42883", fmt::format("function with OID {} does not exist", function));
  const bool procedure = found.kind == PROKIND_PROCEDURE;
  const char* why = nullptr;
  if (found.kind == PROKIND_AGGREGATE)
    why = "It is an aggregate function.";
  else if (found.kind == PROKIND_WINDOW)
    why = "It is a window function.";
  else if (found.set)
    why = "It returns a set.";
  else if (procedure && !leased)
    why = "Only in mode \"leased\" may it be a procedure.";
  else if (found.variadic)
    why = "Its argument is VARIADIC.";
  else if (procedure && found.output)
    why = "It has OUT or INOUT arguments.";
  else if (found.arguments != 1)
    why = "It does not have one argument.";
  else
    for (const Shape shape : {Shape::kJson, Shape::kMessage, Shape::kBatch})
      if (found.argument == argument_type(shape) && !(procedure && shape == Shape::kBatch)) return shape;
  if (why == nullptr)
    why = procedure ? "Its argument is neither jsonb nor mq_message."
                    : "Its argument is neither jsonb, mq_message nor mq_message[].";
  const std::string name = fence::call([&] { return format_procedure_qualified(function); });
  throw Error("42883",
              fmt::format("{} {} does not have the shape of a handler", procedure ? "procedure" : "function", name),
              why,
              procedure ? "A procedure that is a handler has mode \"leased\" and one argument, jsonb or mq_message."
                        : "A handler is a function f(jsonb), f(mq_message) or f(mq_message[]) that returns no set.");
}

FmgrCaller::~FmgrCaller() {
  for (const MemoryContext context : {functions_context_, call_context_})
    if (context != nullptr) MemoryContextDelete(context);
}

void FmgrCaller::load(Oid role, Registry& registry) {
  static Statement select(
      "SELECT channel_name, message_name, handler, batch_size, timeout, max_workers, max_backoff, on_dead, mode,"
      "       priority, EXISTS (SELECT 1 FROM $S.mq_handlers o WHERE o.channel_name = h.channel_name"
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
        fence::call([] { return AllocSetContextCreate(TopMemoryContext, "mq handlers", ALLOCSET_DEFAULT_SIZES); });
    call_context_ =
        fence::call([] { return AllocSetContextCreate(TopMemoryContext, "mq handler call", ALLOCSET_DEFAULT_SIZES); });
  }
  MemoryContextReset(functions_context_);
  message_type_ = argument_type(Shape::kMessage);
  message_descriptor_ = fence::call([&] {
    TupleDesc shared = lookup_rowtype_tupdesc(message_type_, -1);
    const MemoryContext before = MemoryContextSwitchTo(functions_context_);
    TupleDesc copy = CreateTupleDescCopy(shared);
    MemoryContextSwitchTo(before);
    ReleaseTupleDesc(shared);
    return copy;
  });

  std::vector<Handler> handlers;
  std::map<std::string, std::string> parked;
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
      handler.leased = text_view(rows.get(i, kMode)) == "leased";
      // Nobody could say which of them is meant.
      if (DatumGetBool(rows.get(i, kDisagree)))
        parked.try_emplace(handler.channel_name, "its handlers are registered with different mode or run_as");
      if (!DatumGetBool(rows.get(i, kRegisteredHere)))
        parked.try_emplace(
            handler.channel_name,
            fmt::format("handler {} was registered in another database; SELECT mq_enable() takes it over",
                        handler.function));
      handlers.push_back(std::move(handler));
    }
  }
  for (Handler& handler : handlers) {
    if (parked.contains(handler.channel_name)) continue;
    try {
      resolve(handler, role);
      registry.add(std::move(handler));
    } catch (const Error& error) {
      parked[handler.channel_name] = fmt::format("handler {}: {}", handler.function, error.message);
    }
  }
  for (const auto& [channel, why] : parked) {
    registry.park(channel, why);
    if (const auto said = parked_.find(channel); said != parked_.end() && said->second == why) continue;
    const char* name = channel.c_str();
    const char* text = why.c_str();
    fence::call([&] { ereport(LOG, (errmsg("mq: messages of channel \"%s\" are left alone: %s", name, text))); });
  }
  parked_ = std::move(parked);
}

namespace {

// The names are the catalog's, and quoted. Of a function's result nothing is sent back: not every type has a binary
// form, and it may be large.
std::string statement_of(Oid function, bool procedure) {
  const char* name = fence::call([&] {
    const char* schema = get_namespace_name(get_func_namespace(function));
    const char* plain = get_func_name(function);
    if (schema == nullptr || plain == nullptr) elog(ERROR, "cache lookup failed for function %u", function);
    return quote_qualified_identifier(schema, plain);
  });
  return procedure ? fmt::format("CALL {}($1)", name) : fmt::format("SELECT pg_catalog.num_nulls({}($1))", name);
}

}  // namespace

void FmgrCaller::resolve(Handler& handler, Oid role) {
  const Oid function = function_of(handler.function);
  if (!OidIsValid(function)) throw Error("42883", "the function does not exist");
  check_schema_rights(function, role);
  const HandlerOwner owner = check_handler_rights(function, role, handler.leased);
  handler.shape = shape_of(function, handler.leased);
  handler.slot = functions_.size();
  if (handler.leased) {
    if (handler.shape != Shape::kBatch) handler.batch_size = 1;
    handler.procedure = fence::call([&] { return get_func_prokind(function) == PROKIND_PROCEDURE; });
    functions_.push_back({nullptr, owner, statement_of(function, handler.procedure)});
    return;
  }
  FmgrInfo* info = fence::call([&] {
    auto* call_info = static_cast<FmgrInfo*>(MemoryContextAllocZero(functions_context_, sizeof(FmgrInfo)));
    fmgr_info_cxt(function, call_info, functions_context_);
    return call_info;
  });
  functions_.push_back({info, owner, {}});
}

namespace {

Error called_in_the_wrong_mode(const Handler& handler) {
  return {"55000", fmt::format("handler {} is registered in another mode", handler.function)};
}

}  // namespace

LeasedCall FmgrCaller::leased_call(const Handler& handler, std::span<const Claimed* const> messages) {
  if (functions_.at(handler.slot).statement.empty()) throw called_in_the_wrong_mode(handler);
  const CallMemory memory(call_context_);
  LeasedCall call{functions_[handler.slot].statement, argument_type(handler.shape), std::nullopt, handler.procedure,
                  handler.timeout};
  fence::call([] { PushActiveSnapshot(GetTransactionSnapshot()); });
  bool null = false;
  const Datum argument = this->argument(handler, messages, null);
  if (!null) {
    const bytea* bytes = fence::call([&] {
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
  const long_call::Call long_call(yields);
  try {
    // Before the argument is made: a payload may have to be fetched from a TOAST table.
    fence::call([] { PushActiveSnapshot(GetTransactionSnapshot()); });
    bool null = false;
    const Datum argument = this->argument(handler, messages, null);
    const HandlerTimeout timeout(handler.timeout);
    HandlerOwner owner = functions_[handler.slot].owner;
    // It may have ceased to be SECURITY DEFINER a moment ago.
    if (owner == HandlerOwner::kOther) owner = check_handler_rights(function->fn_oid, GetUserId(), false);
    const HandlerScope scope(owner);
    fence::call(
        [&] {
          LOCAL_FCINFO(fcinfo, 1);
          InitFunctionCallInfoData(*fcinfo, function, 1, InvalidOid, nullptr, nullptr);
          fcinfo->args[0].value = argument;
          fcinfo->args[0].isnull = null;
          if (!(function->fn_strict && null)) (void)FunctionCallInvoke(fcinfo);
          if (!HandlerTimeout::is_over()) long_call::Call::returned();
          PopActiveSnapshot();
          CommandCounterIncrement();
          CHECK_FOR_INTERRUPTS();
        },
        fence::Texts::kKept);
    timeout.check();
    // It has caught the cancel, and may not have done what it should.
    if (long_call::Call::was_stopped()) throw Error("57014", "handler was stopped");
    if (running.call().felt) throw Yielded{false, true};
  } catch (Error& error) {
    if (running.call().felt && !error.interrupt) throw Yielded{false, true};
    if (!HandlerTimeout::is_over() && long_call::Call::was_stopped())
      throw Yielded{long_call::Call::waited_for_lock() && shared::others_wait_for_locks()};
    if (error.interrupt && !HandlerTimeout::is_over() && shared::gave_way())
      throw Error("40P01", "the call gave way to a transaction that writes into the tables of mq");
    if (!HandlerTimeout::explain(error, handler.timeout)) note_cancel(error);
    throw;
  }
  changes_ = std::move(running.call().changes);
  wishes_.clear();
  for (auto& made : running.call().wishes) wishes_.push_back(std::move(made.second));
}

void FmgrCaller::note_cancel(const Error& error) {
  if (stop_when_cancelled_ && error.interrupt && error.sqlstate == "57014") cancelled_ = error;
}

std::vector<Wish> FmgrCaller::wishes() {
  return std::move(wishes_);
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
    const ClaimedRow& row = source_.row(*messages.front());
    return SPI_getbinval(row.tuple, row.descriptor, kPayloadJson, &null);
  }
  Datum* elements = fence::call([&] { return static_cast<Datum*>(palloc(sizeof(Datum) * messages.size())); });
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Claimed& message = *messages[i];
    const ClaimedRow& row = source_.row(message);
    elements[i] = fence::call([&] {
      Datum values[10];
      bool nulls[10];
      const auto take = [&](int target, int column) {
        values[target] = SPI_getbinval(row.tuple, row.descriptor, column, &nulls[target]);
      };
      take(0, kId);
      take(1, kName);
      take(2, kChannelName);
      take(3, kChannelArgs);
      take(4, kPayloadJson);
      take(5, kPayloadBytes);
      values[6] = Int32GetDatum(message.attempts + 1);
      nulls[6] = false;
      values[7] = Int32GetDatum(message.attempts_left - 1);
      nulls[7] = false;
      take(8, kCreatedAt);
      values[9] = BoolGetDatum(message.ordered);
      nulls[9] = false;
      return HeapTupleGetDatum(heap_form_tuple(message_descriptor_, values, nulls));
    });
  }
  if (handler.shape == Shape::kMessage) return elements[0];
  const auto count = static_cast<int>(messages.size());
  return fence::call(
      [&] { return PointerGetDatum(construct_array(elements, count, message_type_, -1, false, TYPALIGN_DOUBLE)); });
}

bool FmgrCaller::hurry() {
  if (ProcDiePending || cancelled_.has_value()) return true;
  // Asked before each message: shared memory is not looked at as often.
  const Micros now = GetCurrentTimestamp();
  if (now - asked_at_ < kAskEvery && now >= asked_at_) return false;
  asked_at_ = now;
  return shared::must_leave();
}

}  // namespace mq

extern "C" void mq_messages_changed() {
  mq::note_any_changed();
}

extern "C" bool mq_must_be_alone() {
  if (mq::current_call == nullptr || !mq::current_call->company) return false;
  mq::current_call->felt = true;
  return true;
}
