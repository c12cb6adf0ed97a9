// The rest of a worker's world: the registry, the sweep, waiting.
#pragma once

#include <optional>

#include "../ports.hpp"
#include "claim_source.hpp"
#include "handler_call.hpp"
#include "unhandled.hpp"

namespace mq {

// What background workers and mq_run share.
class ServerHost : public Host {
 public:
  ServerHost(Transaction& transaction, SqlClaimSource& source, FmgrCaller& caller, Clock& clock, Oid role)
      : transaction_(transaction), source_(source), caller_(caller), clock_(clock), role_(role) {}

  Next next(const Registry& registry, bool leased) override;
  bool expire() override;
  bool wake_unhandled() override;
  Swept sweep() override;
  bool any_casualty() override;
  std::vector<Casualty> casualties() override;
  void casualties_settled(const std::vector<int>& numbers) override;
  int batch_size() override;
  Micros poll_interval() override;
  void put_off(const Uuid& message, std::string_view channel_name, const Error& why, Micros until) override;
  std::optional<Limits> limits(std::string_view channel_name) override;
  void conflict(std::string_view channel_name, Micros batch_began, int messages) override;

 protected:
  void read_registry(Registry& registry);
  // Whether messages are handled in this database. In a transaction, which then keeps the extension.
  static bool works();

  Transaction& transaction_;
  SqlClaimSource& source_;
  FmgrCaller& caller_;
  Clock& clock_;
  const Oid role_;
  std::uint64_t registry_generation_ = 0;
  UnhandledScan unhandled_;
};

class ServerClock : public Clock {
 public:
  Micros now() override;
  Micros steady() override;
  double dice() override;
};

}  // namespace mq
