// LeaseStore over mq_msgs, shared memory and libpq.
#pragma once

#include "../leased.hpp"
#include "../trouble.hpp"
#include "claim_source.hpp"
#include "handler_call.hpp"

namespace mq {

class SqlLeaseStore : public LeaseStore {
 public:
  SqlLeaseStore(SqlClaimSource& source, FmgrCaller& caller) : source_(source), caller_(caller) {}

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
  void leave(int number) override;
  bool was_told(int number) override;
  void note_alone(bool alone) override;
  std::int64_t new_token() override;
  void lease(const std::vector<const Claimed*>& messages, std::int64_t token, Micros until) override;
  void renew(const std::vector<std::int64_t>& tokens, Micros until) override;
  bool reclaim(std::int64_t token, Batch& batch) override;
  std::vector<std::int64_t> orphans(std::size_t limit) override;
  LeasedCall call_of(const Handler& handler, const std::vector<const Claimed*>& messages) override;

 private:
  void log(const char* what, const Error& error);

  TroubleLog log_;
  bool stopping_ = false;
  TimestampTz looked_at_ = 0;  // whether the server is stopping
  SqlClaimSource& source_;
  FmgrCaller& caller_;
};

}  // namespace mq
