// LeaseStore over mq_msgs, shared memory and libpq.
//
// A worker (worker/process.cpp) has one, mq_run a LocalLeaseStore; LeasedHandlers calls it. Row
// locks cover the leases in mq_msgs, the lock of shared memory the calls there. Its members are of
// this process only.
#pragma once

#include "handlers/call.hpp"
#include "leased/executor.hpp"
#include "pg/trouble.hpp"
#include "queue/claim.hpp"
#include "queue/rates.hpp"
#include "queue/running.hpp"
#include "shmem/leased_calls.hpp"

namespace mq {

class SqlLeaseStore : public LeaseStore {
 public:
  SqlLeaseStore(FmgrCaller& caller, Clock& clock) : claimer_(clock), caller_(caller) {}

  bool works() override;
  Claim claim(const std::vector<Source>& sources, int limit) override;
  void find(std::span<const Uuid> ids, Batch& batch) override;
  void settle(const Settlement& settlement) override;
  bool was_held(const Error& error) override;
  int most_sessions() override;
  std::unique_ptr<HandlerSession> open(int connecting) override;
  bool is_stopping() override;
  void note_connecting(int sessions) override;
  void put_off(const Uuid& message, std::string_view channel_name, const Error& why, Micros until) override;
  void warn(const Error& error) override;
  bool is_ours(int backend) override;
  void cancel(int backend) override;
  void terminate(int backend) override;
  void note_connection(const std::optional<Error>& refusal) override;
  int running_on(std::string_view channel_name) override;
  int due(std::string_view channel_name, Micros now, int limit) override;
  int enter(const Entry& entry) override;
  std::size_t may_begin(std::span<const Claimed* const> messages) override {
    return rates::take(messages.first(running::take(messages, false)));
  }
  void leave(int number) override;
  bool is_cancelled(int number) override;
  bool was_told(int number) override;
  void note_exclusive(bool exclusive) override;
  std::int64_t new_token() override;
  void lease(const std::vector<const Claimed*>& messages, std::int64_t token, Micros until) override;
  void renew(const std::vector<std::int64_t>& tokens, Micros until) override;
  bool reclaim(std::int64_t token, Batch& batch) override;
  std::vector<std::int64_t> orphans(std::size_t limit) override;
  std::vector<const void*> results_of(const std::string& result, Shape shape, std::size_t messages) override;
  LeasedCall call_of(const Handler& handler, const std::vector<const Claimed*>& messages) override;

 protected:
  // Enters the call, if there is room beside those that max_workers counts. -1: there is none.
  static int enter_call(shared::NewLease lease);

 private:
  void log(const char* what, const Error& error);

  TroubleLog log_;
  bool stopping_ = false;
  TimestampTz looked_at_ = 0;  // when is_stopping() last read postmaster.pid
  Claimer claimer_;
  FmgrCaller& caller_;
};

}  // namespace mq
