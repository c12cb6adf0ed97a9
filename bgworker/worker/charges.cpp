// Aborted calls: the worker charges them to their messages, in a transaction of its own, before it
// claims anything.

#include <algorithm>

#include "handlers/policy.hpp"
#include "queue/due.hpp"
#include "queue/find.hpp"
#include "queue/settle.hpp"
#include "worker/loop.hpp"

namespace mq {

namespace {

constexpr Micros kAfterTrouble = kSecond;  // before charging is tried again

}  // namespace

// Charges the aborted calls, so that a message which brings the server down is not tried for ever.
// The second crash that is proven to be a message's makes it a dead letter. For a call of several
// messages it is unknown which one was the cause: as many batches have one message each, until one
// shows it. False: some aborted calls are left to be charged.
bool Worker::charge_aborted_calls() {
  std::vector<int> settled;
  bool all = false;
  try {
    ports_.transaction.begin();
    // A worker that is about to leave charges nothing.
    if (ports_.host.refresh(registry_)) all = charge(ports_.host.aborted_calls(), settled);
    ports_.transaction.commit();
    ports_.host.aborted_calls_settled(settled);
    works(charges_, true);
  } catch (const Error& error) {
    ports_.transaction.rollback();
    ports_.host.aborted_calls_settled({});
    ports_.host.warn(error);
    fails(charges_, error);
  }
  if (!all) charge_again_at_ = ports_.clock.steady() + kAfterTrouble;
  return all;
}

// Adds to `settled` the numbers of the aborted calls that are done with. False: there are others.
bool Worker::charge(const std::vector<AbortedCall>& aborted_calls, std::vector<int>& settled) {
  std::vector<Uuid> ids;
  std::vector<const AbortedCall*> single;
  for (const AbortedCall& aborted_call : aborted_calls) {
    if (aborted_call.token != 0) {
      if (ports_.leased == nullptr || charge_leased(aborted_call)) settled.push_back(aborted_call.number);
    } else if (aborted_call.messages > 1) {
      one_by_one_ = std::max(one_by_one_, aborted_call.messages);
      settled.push_back(aborted_call.number);
    } else {
      ids.push_back(aborted_call.message);
      single.push_back(&aborted_call);
    }
  }
  Batch messages;
  std::vector<int> crashes;
  if (!ids.empty()) find_named(ids, messages, crashes);
  Settlement settlement;
  std::unordered_set<Uuid, UuidHash> charged;
  for (const AbortedCall* aborted_call : single) {
    if (!charged.insert(aborted_call->message).second) continue;  // one attempt a transaction
    const auto found = std::find_if(messages.begin(), messages.end(),
                                    [&](const Claimed& message) { return message.id == aborted_call->message; });
    if (found != messages.end()) {
      const Channel* channel = registry_.find(found->channel_name);
      settle_aborted_call(*found, *aborted_call, crashes[static_cast<std::size_t>(found - messages.begin())],
                          channel != nullptr ? channel->find(found->name) : nullptr, ports_.clock.now(),
                          ports_.clock.random(), settlement);
    } else if (is_pending(aborted_call->message)) {
      continue;
    }
    settled.push_back(aborted_call->number);
  }
  settle(settlement);
  return settled.size() == aborted_calls.size();
}

bool Worker::charge_leased(const AbortedCall& aborted_call) {
  Batch found;
  std::vector<int> crashes;
  find_named(std::span(&aborted_call.message, 1), found, crashes);
  if (found.empty()) return !is_pending(aborted_call.message);
  return ports_.leased->charge_crash(aborted_call, crashes.front(), registry_);
}

}  // namespace mq
