// CALL mq_call: sends a message, commits, waits until it has ended, and returns its result or raises its error.
// Sessions call it through mq.c, outside of transaction blocks. The file owns no state.
//
// Each look is a transaction of its own, so while the session sleeps it holds no snapshot and no lock.

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "api/send_options.hpp"
#include "api/waiting.hpp"
#include "entries.h"
#include "pg/arguments.hpp"
#include "pg/extension.hpp"
#include "pg/format.hpp"
#include "pg/guard.hpp"
#include "pg/statement.hpp"
#include "pg/validate.hpp"
#include "queue/cancel.hpp"
#include "queue/current_call.hpp"
#include "queue/handler_of.hpp"
#include "queue/new_id.hpp"
#include "queue/sender.hpp"
#include "queue/status.hpp"
#include "queue/uuid.hpp"

extern "C" {
#include "access/xact.h"
#include "funcapi.h"
#include "nodes/parsenodes.h"
#include "utils/jsonb.h"
#include "utils/snapmgr.h"
}

namespace mq {

namespace {

// How much longer than the call may wait its result is kept at least.
constexpr Micros kToRead = 60 * kSecond;
// How long the settling of a message may take whose handler has done its work when the time is up.
constexpr Micros kToSettle = 10 * kSecond;

// The arguments, by position. The second INOUT one is the result.
enum Argument {
  kChannelName,
  kPayloadJson,
  kName = 3,
  kChannelArgs,
  kTimeout,
  kOrdered,
  kRetries,
  kRetryBackoff,
  kPayloadBytes,
  kPriority,  // the others follow it, as set_options() reads them
};

// Throws the server's error for a COMMIT where the caller's context forbids it.
void refuse_atomic(FunctionCallInfo fcinfo) {
  if (fcinfo->context != nullptr && IsA(fcinfo->context, CallContext) &&
      !reinterpret_cast<CallContext*>(fcinfo->context)->atomic)
    return;
  throw Error("2D000", "invalid transaction termination",
              "mq_call() commits what it sends, and waits for it after that.",
              "Call it outside of a transaction block; inside, mq_send and, after the COMMIT, mq_wait.");
}

class Call {
 private:
  // The body's result, in a transaction that is over then. Its snapshot is for values that are stored out of
  // line, and for rows that are looked at by their location: meanwhile nothing that it sees is removed. Its
  // connection frees what statements have returned: a call may look often.
  template <class Body>
  auto in_transaction(Body&& body) {
    guard::call([] { PushActiveSnapshot(GetTransactionSnapshot()); });
    auto result = [&] {
      const OwnerScope scope;
      const SpiConnection spi;
      return body();
    }();
    PopActiveSnapshot();
    guard::call([] { SPI_commit(); });
    return result;
  }

 public:
  Call(FunctionCallInfo fcinfo, Micros timeout) : fcinfo_(fcinfo), timeout_(timeout) {}

  // Returns the jsonb, byte for byte; none: NULL.
  std::optional<std::string> run() {
    id_ = in_transaction([&] { return send(); });
    Wait wait(timeout_,
              [this](std::span<const Uuid> messages) { return in_transaction([&] { return are_pending(messages); }); });
    bool cancels = true;
    for (;;) {
      if (!wait.until_ended({&id_, 1})) {
        if (!cancels) throw timed_out(false);
        if (cancelled()) throw timed_out(true);
        cancels = false;  // it has ended, or is about to
        wait.extend(kToSettle);
        continue;
      }
      std::optional<std::string> result;
      const bool ended = in_transaction([&] {
        const MessageStatus status = statuses_of({&id_, 1}).front();
        if (!has_ended(status.state)) return false;
        if (status.state != MessageState::kDone) throw error_of(status);
        if (!status.result.null) {
          const auto* json = reinterpret_cast<const char*>(DatumGetPointer(status.result.value));
          result.emplace(json, VARSIZE(json));
        }
        return true;
      });
      if (ended) return result;
    }
  }

 private:
  Value argument(Argument n) const { return mq::argument(fcinfo_, n); }

  // As given, or as the handler's registration has it, but long enough for the result to be read.
  Datum keep(const Value& given, std::string_view channel_name, std::string_view name) const {
    static Statement select("SELECT " HANDLER_OF("h.keep", "$1", "$2"), {TEXTOID, TEXTOID});
    if (!given.null) return given.datum;
    const Datum least = interval_datum(std::min(timeout_ + kToRead, check::kLongest));
    const Rows rows = select.run({text_datum(channel_name), text_datum(name)});
    if (rows.is_null(0, 1) || micros_of_interval(rows.get(0, 1)) < micros_of_interval(least)) return least;
    return rows.get(0, 1);
  }

  // Returns the id of the message.
  Uuid send() const {
    NewMessage message;
    message.channel_name = argument(kChannelName);
    message.payload_json = argument(kPayloadJson);
    message.name = argument(kName).null ? message.channel_name : argument(kName);
    message.channel_args = argument(kChannelArgs);
    message.ordered = argument(kOrdered);
    message.delay = {interval_datum(0), false};
    message.retries = argument(kRetries);
    message.retry_backoff = argument(kRetryBackoff);
    message.payload_bytes = argument(kPayloadBytes);
    std::vector<Uuid> after;
    set_options(fcinfo_, kPriority, after, message);
    const Uuid id = new_id();
    message.id = {uuid_datum(id), false};
    const std::string_view channel_name = text_of(message.channel_name, "channel_name");
    message.keep = {keep(message.keep, channel_name, text_of(message.name, "name")), false};
    Sender sender(Sender::Json::kJsonb, false);
    sender.add(message);
    sender.send();
    return id;
  }

  // Whether this has cancelled the message.
  bool cancelled() {
    return in_transaction([&] { return !cancel({id_}, "mq_call has waited for as long as its timeout").empty(); });
  }

  Error timed_out(bool is_cancelled) const {
    return {"57014", "mq_call has timed out",
            mq::format("Message {} {}.", uuid_text(id_),
                       is_cancelled ? "is cancelled" : "has been handled, but is not settled yet")};
  }

  Error error_of(const MessageStatus& status) const {
    const auto text = [](const Param& param) {
      return param.null ? std::string() : std::string(text_view(param.value));
    };
    if (status.state == MessageState::kUnknown)
      return {"55000", "the message of mq_call has been deleted, or was not kept",
              mq::format("Whether message {} was handled is not known.", uuid_text(id_))};
    const std::string sqlstate = text(status.sqlstate);
    return {sqlstate.size() == 5 ? sqlstate : "P0001", text(status.error), text(status.detail), text(status.hint)};
  }

  FunctionCallInfo fcinfo_;
  const Micros timeout_;
  Uuid id_;
};

Datum call(FunctionCallInfo fcinfo) {
  refuse_read_only("mq_call()");
  refuse_in_handler("mq_call");
  const Micros timeout = interval_of(argument(fcinfo, kTimeout), "timeout", GetCurrentTimestamp());
  refuse_atomic(fcinfo);
  std::optional<std::string> result;
  {
    SpiConnection spi(true);
    Call call(fcinfo, timeout);
    result = call.run();
    spi.finish();
  }
  const char* bytes = result ? result->data() : nullptr;
  const std::size_t size = result ? result->size() : 0;
  return guard::call([&] {
    TupleDesc descriptor = nullptr;
    if (get_call_result_type(fcinfo, nullptr, &descriptor) != TYPEFUNC_COMPOSITE)
      elog(ERROR, "return type must be a row type");
    Datum values[1] = {Datum{0}};
    bool nulls[1] = {bytes == nullptr};
    if (bytes != nullptr) {
      auto* json = palloc(size);
      memcpy(json, bytes, size);
      values[0] = PointerGetDatum(json);
    }
    return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), values, nulls));
  });
}

}  // namespace

}  // namespace mq

extern "C" Datum mq_call_and_wait_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] { return mq::call(fcinfo); });
}
