// Worker: the loop of a process that serves one role in one database, and of mq_run.
//
//   wait, claim, dispatch, settle
//
// One transaction a batch. The size of a batch follows the handlers' pace, so that a transaction lasts about
// kSlice however slow they are; worker_claim.cpp decides what is in it.
//
// Some messages run without company, each in a transaction of its own: one whose call was stopped since others waited
// behind it; one whose attempts in company failed, since what calls share (locks, now(), the transaction's id) may be
// why; those of a batch that could not be committed or settled, until it shows which one it was.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "claim.hpp"
#include "leased.hpp"
#include "pace.hpp"
#include "policy.hpp"
#include "ports.hpp"
#include "trouble.hpp"

namespace mq {

class Dispatcher;

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
    bool over = false;       // nothing to work for any more
    bool unsettled = false;  // rolled back
  };
  // A part of the loop, which rests after trouble.
  struct LoopPart {
    Part part;
    Backoff trouble = {};
    std::optional<Micros> failed_at = {};  // of the steady clock; none: it works
  };
  // A channel name that a batch may claim from.
  struct Offer {
    Source source;
    int workers;  // most at once; 0: no limit
  };
  struct Offers {
    std::vector<Offer> mixed;  // may share a transaction
    std::vector<Offer> apart;  // each for itself
  };
  struct Taken {
    Claim claim;
    enum { kMixed, kApart, kAlone } how = kMixed;
  };
  // A message that outlives the transaction which claimed it.
  struct Owned {
    Uuid id;
    int attempts;
    std::string channel_name;
  };

  bool is_over();
  bool is_leasing() const;
  void watch();
  bool drain();
  void release_orphans();
  bool charge_leased(const Casualty& casualty);
  bool charge_casualties();
  bool charge(const std::vector<Casualty>& casualties, std::vector<int>& settled);
  // Runs one part of the loop, unless it is to wait after trouble. Trouble with one part does not stop the others.
  template <class Body>
  void run_part(LoopPart& part, Micros& most, Body&& body);
  void fails(LoopPart& part, const Error& error);
  // It has not failed. `proven`: it has done its work; if it had none, that counts some time after it has failed.
  void works(LoopPart& part, bool proven);
  BatchResult run_batch(int limit, const std::vector<std::string_view>* only);
  void note_outcomes(const Claim& claim, const Dispatcher& dispatcher, Micros began);
  BatchResult unsettled(const std::vector<Owned>& messages, const Error& error, bool alone);
  void put_off(const Owned& message, const Error& error);
  void charge_at_commit(const Uuid& id, int attempts, const Error& error, Micros duration);
  std::vector<const Handler*> resolve(Batch& messages, Batch& unhandled) const;
  void adapt(std::size_t ran, Micros took, bool cut);
  bool conflict_again(const Uuid& id);

  // In worker_claim.cpp.
  Taken claim(int limit, const std::vector<std::string_view>* only);
  bool claim_alone(Claim& claim);
  Offers offers(const std::vector<std::string_view>* only);
  Claim claim_mixed(const std::vector<Offer>& offers, int limit);
  Claim claim_apart(const std::vector<Offer>& offers, int limit);
  bool leaves_some(const Offers& offers, const Claim& claim);
  bool take_place(const Offer& offer);
  void set_apart_lonely(Batch& messages);
  bool wants_to_be_alone(const Claimed& message) const;
  void run_alone(std::vector<Uuid> messages, bool first);

  Ports ports_;
  Claimer claimer_;
  Registry registry_;
  Pace calls_;
  int pace_;                    // messages that are expected to fit into a slice
  Micros charge_again_at_ = 0;  // of the steady clock: casualties that could not be charged
  int one_by_one_ = 0;   // so many messages run in transactions of their own: one of their calls ended with its process
  bool learns_ = false;  // what it does not know of a channel yet
  std::unordered_map<Uuid, int, UuidHash> conflicts_;

  std::deque<std::vector<Uuid>> alone_;              // run next, each group without company
  std::unordered_set<Uuid, UuidHash> alone_ids_;     // what is in it
  Micros alone_took_ = 0;                            // since the last batch of others
  std::unordered_set<Uuid, UuidHash> slow_;          // were stopped
  std::unordered_set<Uuid, UuidHash> suspects_;      // failed in company as one may by that
  std::string last_apart_;                           // the channel name
  bool apart_first_ = false;                         // they take turns with what is mixed
  int unsettled_ = 0;                                // batches in a row
  std::unordered_map<Uuid, int, UuidHash> put_off_;  // how often
  LoopPart batches_{Part::kBatches};
  LoopPart leased_calls_{Part::kLeasedCalls};
  LoopPart sweep_{Part::kSweep};
  LoopPart charges_{Part::kCharges};
};

}  // namespace mq
