// Calls of handlers: finds the functions that mq_handlers names, checks them, and calls them.
//
// A worker (worker/process.cpp) and mq_run have a FmgrCaller each. ServerHost has it load the
// handlers, Dispatcher calls transactional ones through it, and SqlLeaseStore gets the statements
// for leased ones. Its state is of this process only.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "handlers/caller.hpp"
#include "handlers/leased_call.hpp"
#include "pg/handler_identity.hpp"
#include "pg/postgres.hpp"
#include "queue/current_call.hpp"
#include "queue/limits.hpp"
#include "queue/rates.hpp"
#include "queue/running.hpp"

namespace mq {

class FmgrCaller : public HandlerCaller {
 public:
  FmgrCaller() = default;
  ~FmgrCaller() override;
  FmgrCaller(const FmgrCaller&) = delete;
  FmgrCaller& operator=(const FmgrCaller&) = delete;

  // Fills the registry with the handlers that run as `role`, but for those of paused channels. A
  // channel with a handler that cannot be called is disabled, and the log says why, once for each
  // reason. Needs a transaction and an SPI connection. Throws 42704 if there is no type mq_message.
  void load(Oid role, Registry& registry);

  bool may_refuse() override { return any_limits(); }
  std::size_t may_begin(std::span<const Claimed* const> messages) override {
    return rates::take(messages.first(running::take(messages, true)));
  }
  void call(const Handler& handler, std::span<const Claimed* const> messages, bool yields) override;
  std::vector<Disposition> dispositions() override;
  std::span<const void* const> results() override { return results_; }
  bool has_changed(std::span<const Claimed> messages) override;
  // The statement by which a session calls a leased handler. The messages must be of the current
  // claim. Throws 55000 if the handler is not a leased one.
  LeasedCall leased_call(const Handler& handler, std::span<const Claimed* const> messages);
  bool should_yield() override;
  // For mq_run: a cancel by the user is to stop mq_run, not only the handler that it hit.
  void stop_when_cancelled() { stop_when_cancelled_ = true; }
  // Notes the error of a call as such a cancel, if the server itself raised it. An error that the
  // handler raised is none, whatever its SQLSTATE.
  void note_cancel(const Error& error);
  const std::optional<Error>& cancelled() const { return cancelled_; }

 private:
  void resolve(Handler& handler, Oid role);
  Datum argument(const Handler& handler, std::span<const Claimed* const> messages, bool& null) const;

  struct Function {
    FmgrInfo* info;  // nullptr: a leased handler
    HandlerOwner owner;
    std::string statement;             // calls a leased handler; empty: a transactional one
    std::string statement_for_result;  // the same, and returns its result; empty: it has none
  };
  std::vector<Function> functions_;            // by Handler::slot
  MemoryContext functions_context_ = nullptr;  // owned; reset by load()
  MemoryContext call_context_ = nullptr;       // owned; reset after each call
  TupleDesc message_descriptor_ = nullptr;     // of mq_message; in functions_context_
  Oid message_type_ = InvalidOid;
  // Why channels are disabled, by channel name, as it was logged.
  std::map<std::string, std::string> disabled_;
  Micros asked_at_ = 0;                    // when should_yield() last asked shared memory
  std::vector<Disposition> dispositions_;  // the last call's
  Changes changes_;                        // the last call's
  std::vector<const void*> results_;       // the last call's; they live to the end of the transaction
  bool stop_when_cancelled_ = false;
  std::optional<Error> cancelled_;  // the error of the user's cancel
};

}  // namespace mq
