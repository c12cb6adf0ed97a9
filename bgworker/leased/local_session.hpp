// Leased handlers in the session of mq_run: one at a time, each in transactions of its own.
//
// mq_run (worker/mq_run.cpp) makes the LocalLeaseStore; LeasedHandlers calls it and its session.
// Their state is of this process only. They need a CALL mq_run whose context
// allows COMMIT.
#pragma once

#include <optional>

#include "leased/handler_session.hpp"
#include "leased/lease_store.hpp"
#include "pg/session.hpp"
#include "shmem/leased_calls.hpp"

namespace mq {

class LocalSession : public HandlerSession {
 public:
  LocalSession(Session& transaction, FmgrCaller& caller) : transaction_(transaction), caller_(caller) {}

  State poll() override { return State::kIdle; }
  const std::optional<Error>& error() const override { return error_; }
  int backend() const override { return MyProcPid; }
  Socket socket() const override { return {-1, false}; }
  // Returns when the handler has returned. Throws what a procedure raised; error() has what a
  // function raised.
  void run(const LeasedCall& call) override;
  void clean() override {}
  std::optional<std::string> result() override { return result_; }

 private:
  void run_procedure(const LeasedCall& call);
  void run_function(const LeasedCall& call);

  Session& transaction_;
  FmgrCaller& caller_;
  std::optional<Error> error_;
  std::optional<std::string> result_;
};

class LocalLeaseStore : public SqlLeaseStore {
 public:
  LocalLeaseStore(FmgrCaller& caller, Clock& clock, Session& transaction)
      : SqlLeaseStore(caller, clock), transaction_(transaction), caller_(caller) {}

  // If an error ended mq_run before its call was settled, notes the aborted call.
  ~LocalLeaseStore() override {
    if (number_ < 0) return;
    shared::set_handled_here(std::nullopt);
    shared::abort_lease(number_, message_);
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
  // The handler's time limit (24 hours if it has none) and kLease: no process renews the lease.
  Micros lease_length(const Handler& handler) override;

 private:
  Session& transaction_;
  FmgrCaller& caller_;
  int number_ = -1;  // the call that runs; -1: none
  Uuid message_;     // its first message
};

}  // namespace mq
