// Worker: the loop of a process that serves one role in one database, and of mq_run.
//
//   wait, claim, dispatch, settle
//
// One transaction a batch. The size of a batch follows the handlers' pace, so that a transaction lasts about
// kSlice however slow they are.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "claim.hpp"
#include "leased.hpp"
#include "policy.hpp"
#include "ports.hpp"

namespace mq {

inline constexpr Micros kSlice = 200'000;  // how long a batch's handlers may run together

class Worker {
 public:
  struct Ports {
    Host& host;
    Clock& clock;
    Transaction& transaction;
    ClaimSource& source;
    HandlerCaller& caller;
    Settler& settler;
    LeasedHandlers* leased = nullptr;  // none: leased channels are left alone
  };

  explicit Worker(const Ports& ports);

  // The loop of a background worker; returns when the host says so.
  void run();

  // mq_run: batches until nothing is ready or `most` messages are handled. `only` restricts the channels.
  std::int64_t run_until_empty(std::optional<std::int64_t> most, const std::vector<std::string_view>* only);
  // As it was read last.
  const Registry& registry() const { return registry_; }

 private:
  struct BatchResult {
    std::size_t claimed = 0;  // leftovers among them
    std::size_t handled = 0;
    bool more_is_due = false;
    bool over = false;  // nothing to work for any more
  };

  bool is_over();
  bool is_leasing() const;
  void watch();
  void drain();
  void release_orphans();
  bool charge_leased(const Casualty& casualty);
  bool charge_casualties();
  bool charge(const std::vector<Casualty>& casualties, std::vector<int>& settled);
  BatchResult run_batch(int limit, const std::vector<std::string_view>* only);
  std::vector<Source> sources(const std::vector<std::string_view>* only);
  std::vector<const Handler*> resolve(Batch& messages) const;
  void adapt(std::size_t ran, Micros took, bool cut);
  bool conflict_again(const Uuid& id);

  Ports ports_;
  Claimer claimer_;
  Registry registry_;
  int pace_;                    // messages that are expected to fit into a slice
  Micros charge_again_at_ = 0;  // of the steady clock: casualties that could not be charged
  int one_by_one_ = 0;          // so many messages run in transactions of their own: a commit failed
  std::unordered_map<Uuid, int, UuidHash> conflicts_;
};

}  // namespace mq
