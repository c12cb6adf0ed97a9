// ServerHost: the part of Host (host.hpp) that background workers and mq_run share, over tables and
// shared memory.
// WorkerHost (process.cpp) and CallHost (mq_run.cpp) derive from it. Only this process has its
// state; shared memory has its own lock (shmem/shared.hpp).
#pragma once

#include <optional>

#include "handlers/call.hpp"
#include "pg/clock.hpp"
#include "pg/transaction.hpp"
#include "queue/unhandled.hpp"
#include "worker/host.hpp"

namespace mq {

class ServerHost : public Host {
 public:
  ServerHost(Transaction& transaction, FmgrCaller& caller, Clock& clock, Oid role)
      : transaction_(transaction), caller_(caller), clock_(clock), role_(role) {}

  Next next(const Registry& registry, bool leased, std::optional<Micros> noted) override;
  bool expire() override;
  bool wake_unhandled() override;
  Swept sweep() override;
  bool send_scheduled(const std::vector<std::string_view>* only) override;
  bool any_aborted_call() override;
  std::vector<AbortedCall> aborted_calls() override;
  void aborted_calls_settled(const std::vector<int>& numbers) override;
  int batch_size() override;
  Micros poll_interval() override;
  void put_off(const Uuid& message, std::string_view channel_name, const Error& why, Micros until) override;
  std::optional<Limits> limits(std::string_view channel_name) override;
  void conflict(std::string_view channel_name, Micros batch_began, int messages) override;

 protected:
  // Reads the handlers of `role_` into `registry`. Called in a transaction.
  void read_registry(Registry& registry);
  // Whether messages are handled in this database. Called in a transaction; until that ends the
  // extension cannot be dropped.
  static bool works();
  struct Scheduled {
    bool sent = false;
    bool more = false;
    Micros next = kNever;  // when the next schedule is due
  };
  // One step of send_scheduled(), in a transaction of its own. `thorough` as for timetable::send_due().
  Scheduled send_some_scheduled(bool thorough, const std::vector<std::string_view>* only);
  // Whether the process has something else to do than what next() does before a wait.
  virtual bool is_wanted() { return false; }

  Transaction& transaction_;
  FmgrCaller& caller_;
  Clock& clock_;
  const Oid role_;
  std::uint64_t registry_generation_ = 0;  // Extension's, when the registry was read; 0: never
  UnhandledScan unhandled_;
};

}  // namespace mq
