// Worker: the loop that handles messages: wait, claim, dispatch, settle.
//
// A background worker (process.cpp) has one and calls run(); CALL mq_run (mq_run.cpp) makes one for
// each call and calls run_until_empty(). Only this process has its state.
//
// Each batch is one transaction. batch_claim.cpp decides which messages are in it. Its size follows
// the pace of the handlers, so that a transaction lasts about kSlice however slow they are.
//
// Some messages run exclusively, in a transaction of their own:
//   1. The messages of a call that was stopped since other messages waited behind it, or that
//      interfered with another call of its transaction.
//   2. A message that failed in a shared transaction, with an error that what calls share (locks,
//      now(), the transaction's id) may cause; and retries as wants_exclusive() says.
//   3. Each message of a batch that could not be committed or settled, until one turns out to be
//      the cause.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "handlers/caller.hpp"
#include "handlers/policy.hpp"
#include "leased/executor.hpp"
#include "pg/clock.hpp"
#include "pg/transaction.hpp"
#include "pg/trouble.hpp"
#include "queue/channel_slots.hpp"
#include "queue/claim.hpp"
#include "queue/settlement.hpp"
#include "worker/host.hpp"
#include "worker/pace.hpp"

namespace mq {

class Dispatcher;

class Worker {
 public:
  struct Ports {
    Host& host;
    Clock& clock;
    Transaction& transaction;
    HandlerCaller& caller;
    LeasedHandlers* leased = nullptr;  // nullptr: leased channels are left alone
  };

  explicit Worker(const Ports& ports);

  // The loop of a background worker. Returns when the worker should leave.
  void run();

  // mq_run: runs batches until nothing is due or `most` messages are handled (none: no limit).
  // `only` restricts the channel names (nullptr: all). Returns how many were handled. Throws an
  // error that is charged to no message.
  std::int64_t run_until_empty(std::optional<std::int64_t> most, const std::vector<std::string_view>* only);
  // The registry as it was read last.
  const Registry& registry() const { return registry_; }

 private:
  struct BatchResult {
    std::size_t claimed = 0;  // messages, also those that are undeliverable, or that a limit has put off
    std::size_t handled = 0;
    bool more_is_due = false;
    bool over = false;       // the worker should leave
    bool unsettled = false;  // rolled back; the messages come again
  };
  // A part of the loop. After an error it pauses for itself, while the other parts go on.
  struct LoopPart {
    Part part;
    Backoff trouble = {};
    std::optional<Micros> failed_at = {};  // steady time of the last error; none: it works
  };
  // A channel name that a batch may claim from.
  struct Offer {
    Source source;
    int workers;  // most workers on the name at once; 0: no limit
    int of_all;   // the same for workers and others, as it is registered; 0: no limit
  };
  struct Offers {
    std::vector<Offer> mixed;  // names that may share a transaction
    std::vector<Offer> apart;  // names that have a batch for themselves
  };
  struct Taken {
    Claim claim;
    enum { kMixed, kApart, kExclusive } how = kMixed;
  };
  // The part of a message that is kept after its claim's transaction, which a Claimed is not.
  struct Owned {
    Uuid id;
    int attempts;
    std::string channel_name;
  };

  bool is_over();
  bool overlooked();
  bool is_leasing() const;
  void watch();
  bool drain();
  void release_orphans();
  // Runs one part of the loop unless it pauses, and lowers `most` to the rest of its pause. An
  // error is rolled back and reported. Throws Over: the worker has nothing to work for any more.
  template <class Body>
  void run_part(LoopPart& part, Micros& most, Body&& body);
  void fails(LoopPart& part, const Error& error);
  // The part ran without an error. `proven`: it had work to do. A part that had none counts as
  // working again only kForgiven after its error.
  void works(LoopPart& part, bool proven);

  // Defined in charges.cpp.
  bool charge_leased(const AbortedCall& aborted_call);
  bool charge_aborted_calls();
  bool charge(const std::vector<AbortedCall>& aborted_calls, std::vector<int>& settled);

  // Defined in batch.cpp.
  BatchResult run_batch(int limit, const std::vector<std::string_view>* only);
  bool gives_back(BatchResult& result);
  Settlement settlement_of(const Claim& claim, const Batch& unhandled, const std::vector<const Handler*>& handlers,
                           const Dispatcher& dispatcher, Micros now);
  void failed_at_commit(const Batch& messages, const Error& error, Micros duration);
  bool learn(const Taken& taken, const Dispatcher& dispatcher, Micros took);
  void note_outcomes(const Claim& claim, const Dispatcher& dispatcher, Micros began);
  BatchResult unsettled(const std::vector<Owned>& messages, const Error& error, bool exclusive);
  void put_off(const Owned& message, const Error& error);
  void charge_at_commit(const Uuid& id, int attempts, const Error& error, Micros duration);
  std::vector<const Handler*> resolve(Batch& messages, Batch& unhandled) const;
  void adapt(std::size_t ran, Micros took, bool cut);
  bool conflict_again(const Uuid& id);

  // Defined in batch_claim.cpp.
  Taken claim(int limit, const std::vector<std::string_view>* only);
  Taken claim_once(int limit, const std::vector<std::string_view>* only);
  bool claim_exclusive(Claim& claim);
  Offers offers(const std::vector<std::string_view>* only);
  Claim claim_mixed(const std::vector<Offer>& offers, int limit);
  Claim claim_apart(const std::vector<Offer>& offers, int limit);
  bool leaves_some(const Offers& offers, const Claim& claim);
  bool take_channel_slot(const Offer& offer);
  void set_apart_exclusive(Batch& messages);
  bool wants_exclusive(const Claimed& message) const;
  void run_exclusive(std::vector<Uuid> messages, bool first);

  Ports ports_;
  Claimer claimer_;
  ChannelSlots channel_slots_{false};
  Registry registry_;
  Pace calls_;
  int pace_;  // messages that are expected to fit into a slice
  // Steady time before which no aborted call is charged.
  Micros charge_again_at_ = 0;
  // So many batches still have one message each: the process of a call with that many messages
  // ended, and any of them may be why.
  int one_by_one_ = 0;
  bool woken_ = false;  // the worker has waited since its last claim
  // True in run(), false in mq_run: a channel name is measured before it is mixed with others, each
  // claim is followed by a look for aborted calls, and an unsettled batch is tried again.
  bool learns_ = false;
  std::unordered_map<Uuid, int, UuidHash> conflicts_;  // in a row, of each message

  // Messages that run exclusively. A group is the messages of one call; it has its own transaction.
  std::deque<std::vector<Uuid>> exclusive_;
  std::unordered_set<Uuid, UuidHash> exclusive_ids_;  // all messages in exclusive_
  Micros exclusive_took_ = 0;                         // µs, since the last claim of other messages
  std::unordered_set<Uuid, UuidHash> slow_;           // messages whose call was stopped
  std::unordered_set<Uuid, UuidHash> suspects_;       // failed, maybe since they shared a transaction
  std::string last_apart_;                            // the name that had the last batch for itself
  bool apart_first_ = false;                          // the next claim tries `apart` names first
  int unsettled_ = 0;                                 // batches in a row that could not be settled
  std::unordered_map<Uuid, int, UuidHash> put_off_;   // how often each message was put off
  LoopPart batches_{Part::kBatches};
  LoopPart leased_calls_{Part::kLeasedCalls};
  LoopPart sweep_{Part::kSweep};
  LoopPart charges_{Part::kCharges};
  LoopPart schedules_{Part::kSchedules};
};

}  // namespace mq
