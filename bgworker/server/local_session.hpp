// Leased handlers in the caller's own session, for mq_run: one at a time, each in transactions of its own.
#pragma once

#include <optional>

#include "../handler_session.hpp"
#include "lease_store.hpp"
#include "session.hpp"
#include "shared.hpp"

namespace mq {

// Needs a caller whose context allows COMMIT.
class LocalSession : public HandlerSession {
 public:
  LocalSession(Session& transaction, FmgrCaller& caller) : transaction_(transaction), caller_(caller) {}

  State poll() override { return State::kIdle; }
  const std::optional<Error>& error() const override { return error_; }
  int backend() const override { return MyProcPid; }
  Socket socket() const override { return {-1, false}; }
  // Returns when the handler has. Throws what a procedure raised.
  void run(const LeasedCall& call) override;
  void clean() override {}

 private:
  void run_procedure(const LeasedCall& call);
  void run_function(const LeasedCall& call);

  Session& transaction_;
  FmgrCaller& caller_;
  std::optional<Error> error_;
};

class LocalLeaseStore : public SqlLeaseStore {
 public:
  LocalLeaseStore(SqlClaimSource& source, FmgrCaller& caller, Session& transaction)
      : SqlLeaseStore(source, caller), transaction_(transaction), caller_(caller) {}

  // An error may have ended mq_run while a handler had its message.
  ~LocalLeaseStore() override {
    if (number_ < 0) return;
    shared::set_handled_here(std::nullopt);
    shared::lose_lease(number_, message_);
  }
  LocalLeaseStore(const LocalLeaseStore&) = delete;
  LocalLeaseStore& operator=(const LocalLeaseStore&) = delete;

  int most_sessions() override { return 1; }
  std::unique_ptr<HandlerSession> open(int connecting) override;
  bool is_stopping() override { return false; }
  void note_connecting(int) override {}
  bool is_background() override { return false; }
  bool is_ours(int) override { return true; }
  void note_connection(const std::optional<Error>&) override {}
  int enter(const Entry& entry) override;
  void leave(int number) override;
  // Nobody renews it while the handler runs.
  Micros lease_length(const Handler& handler) override;

 private:
  Session& transaction_;
  FmgrCaller& caller_;
  int number_ = -1;  // of the call that runs
  Uuid message_;     // the first one of it
};

}  // namespace mq
