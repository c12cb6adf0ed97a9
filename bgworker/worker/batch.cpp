// A batch, from top to bottom: claim, dispatch, settle, commit or charge. One transaction.

#include <algorithm>
#include <limits>
#include <string>

#include "handlers/policy.hpp"
#include "pg/crash_point.hpp"
#include "pg/row_locks.hpp"
#include "queue/cancel_notes.hpp"
#include "queue/find.hpp"
#include "queue/settle.hpp"
#include "queue/undeliverable.hpp"
#include "queue/uuid.hpp"
#include "worker/dispatch.hpp"
#include "worker/loop.hpp"

namespace mq {

namespace {

constexpr std::size_t kMostRemembered = 10'000;
constexpr Micros kFirstPutOff = 10 * kSecond;  // doubled each time
constexpr Micros kLastPutOff = 600 * kSecond;  // at most

// Whether the server, not the message, is the cause: resources (53), an operator (57), the system
// (58, F0), a bug (XX). The worker waits then, and charges no attempt.
bool is_trouble(const Error& error) {
  const std::string_view state_class = std::string_view(error.sqlstate).substr(0, 2);
  for (const std::string_view trouble : {"53", "57", "58", "F0", "XX"})
    if (state_class == trouble) return true;
  return false;
}

// Whether the handler has said what is to become of the message, and returned.
bool is_disposed(Outcome outcome) {
  return outcome == Outcome::kSnoozed || outcome == Outcome::kDiscarded;
}

// What pg_stat_activity says of the batch. Pieced together, since a format's code is cold after a wait, while the first
// message of a burst waits for this.
std::string activity_of(const Batch& messages) {
  const Claimed& first = messages.front();
  std::string text(first.channel_name);
  if (messages.size() == 1) return (text += ": message ") += uuid_text(first.id);
  if (messages.back().channel_name != first.channel_name) text += " and others";
  ((text += ": ") += std::to_string(messages.size())) += " messages, the first ";
  return text += uuid_text(first.id);
}

}  // namespace

Worker::BatchResult Worker::run_batch(int limit, const std::vector<std::string_view>* only) {
  BatchResult result;
  ports_.transaction.begin();
  // The transaction has received all catalog invalidations, so the handlers that it finds exist.
  if (!ports_.host.refresh(registry_)) {
    ports_.transaction.commit();
    result.over = true;
    return result;
  }
  Taken taken = claim(limit, only);
  Claim& claim = taken.claim;
  if (gives_back(result)) return result;
  result.claimed = claim.messages.size() + claim.undeliverable.size() + claim.put_off;
  result.more_is_due = claim.more_is_due;
  if (result.claimed == 0) {
    ports_.transaction.commit();
    return result;
  }
  MQ_CRASH_POINT(batch_claimed);
  // Told before the handlers run, which may take long.
  ports_.host.backlog(claim.more_is_due);
  if (taken.how != Taken::kExclusive) set_apart_exclusive(claim.messages);
  Batch unhandled;
  const std::vector<const Handler*> handlers = resolve(claim.messages, unhandled);
  if (!claim.messages.empty()) ports_.host.report(activity_of(claim.messages));
  ports_.host.holds(claim.messages);

  const Micros started = ports_.clock.now();
  Dispatcher dispatcher(ports_.transaction, ports_.caller, ports_.clock, {started + kSlice});
  dispatcher.run(claim.messages, handlers);
  const Micros now = ports_.clock.now();

  const Settlement settlement = settlement_of(claim, unhandled, handlers, dispatcher, now);
  note_outcomes(claim, dispatcher, started);
  try {
    ports_.host.settles(now);
    settle(settlement);
  } catch (const Error& error) {
    std::vector<Owned> owned;
    for (const Batch* batch : {&claim.undeliverable, &claim.messages, &unhandled})
      for (const Claimed& message : *batch)
        owned.push_back({message.id, message.attempts, std::string(message.channel_name)});
    return unsettled(owned, error, taken.how == Taken::kExclusive);
  }
  try {
    ports_.host.commits();
    MQ_CRASH_POINT(batch_commits);
    ports_.transaction.commit();
  } catch (const Error& error) {
    failed_at_commit(claim.messages, error, now - started);
    return result;
  }
  MQ_CRASH_POINT(batch_committed);
  unsettled_ = 0;
  result.handled = static_cast<std::size_t>(
      std::count_if(dispatcher.outcomes().begin(), dispatcher.outcomes().end(),
                    [](Outcome outcome) { return outcome == Outcome::kHandled || is_disposed(outcome); }));
  ports_.host.handled(result.handled);
  const bool cut = learn(taken, dispatcher, now - started);
  if (cut && !result.more_is_due) ports_.host.backlog(true);  // others may claim the rest
  return result;
}

// Asks whether the claim came too early, and gives it back then: rolls back, and fills in the
// result. All of it is asked after the claim:
//   1. worker A   ends in a call: notes the aborted call, then rolls back (process.cpp)
//      worker B   can claim the message after the rollback; asks
//      So B charges A's call before it runs the message, unless charging failed within kAfterTrouble.
//   2. A message may have been sent after its handler was registered.
//   3. A message may have been sent after the settings of workers were changed.
bool Worker::gives_back(BatchResult& result) {
  if (learns_ && ports_.host.any_aborted_call() && ports_.clock.steady() >= charge_again_at_) {
    result.claimed = 1;
    result.unsettled = true;
  } else if (ports_.host.is_outdated()) {
    result.claimed = 1;
  } else if (ports_.host.should_renew()) {
    result.over = true;
  } else {
    return false;
  }
  ports_.transaction.rollback();
  return true;
}

// Decides what is to become of each message, by how its call ended.
Settlement Worker::settlement_of(const Claim& claim, const Batch& unhandled,
                                 const std::vector<const Handler*>& handlers, const Dispatcher& dispatcher,
                                 Micros now) {
  Settlement settlement;
  // The row of one that was only claimed is gone as a rule.
  std::vector<const Claimed*> cancelled;
  settle_undeliverable(claim.undeliverable, now, settlement);
  for (const Claimed& message : unhandled) settlement.unhandled.push_back(&message);
  for (std::size_t i = 0; i < claim.messages.size(); ++i) {
    const Claimed& message = claim.messages[i];
    const Outcome outcome = dispatcher.outcomes()[i];
    if (outcome == Outcome::kExpired) dead_letter_expired(message, settlement);
    if (outcome == Outcome::kCancelled) cancelled.push_back(&message);
    if (outcome != Outcome::kHandled) continue;
    const Dispatcher::Span& span = dispatcher.spans()[i];
    settlement.removed.push_back(&message);
    settlement.handled.push_back({&message, std::max<Micros>(0, span.started - message.due()),
                                  std::max<Micros>(0, span.took), keep_of(message, *handlers[i]), span.started,
                                  span.ended, dispatcher.result(i)});
  }
  for (const Failure& failure : dispatcher.failures()) {
    const auto i = static_cast<std::size_t>(failure.message - claim.messages.data());
    if (dispatcher.outcomes()[i] == Outcome::kConflict && conflict_again(failure.message->id)) continue;
    settle_failure(failure, handlers[i], now, ports_.clock.random(), settlement);
  }
  for (const auto& [i, disposition] : dispatcher.dispositions())
    if (is_disposed(dispatcher.outcomes()[i]))
      settle_disposition(claim.messages[i], disposition, handlers[i]->block_on_dead, now, settlement);
  if (!cancelled.empty()) cancel_notes::add_dead_letters(cancelled, settlement);
  return settlement;
}

// As a rule a deferred constraint failed. The batch runs again, one message a transaction, and a
// message that was alone is charged. The rollback invalidates the messages' string views.
void Worker::failed_at_commit(const Batch& messages, const Error& error, Micros duration) {
  ports_.transaction.rollback();
  if (messages.empty()) throw error;
  ports_.host.handled(0);
  const bool trouble = is_trouble(error);
  const Uuid first = messages.front().id;
  if (messages.size() > 1) {
    for (const Claimed& message : messages) run_exclusive({message.id}, false);
  } else if (!(trouble || error.is_conflict()) || !conflict_again(first)) {
    charge_at_commit(first, messages.front().attempts, error, duration);
    return;
  }
  if (trouble) throw error;
}

// After the commit: forgets what was remembered of the messages that have ended, and adapts the size
// of batches. True: some of the messages were not reached, and are given back.
bool Worker::learn(const Taken& taken, const Dispatcher& dispatcher, Micros took) {
  const Batch& messages = taken.claim.messages;
  std::size_t ran = 0;
  std::size_t throttled = 0;
  bool ended_early = dispatcher.cut_short();  // for another reason than the end of the slice
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Outcome outcome = dispatcher.outcomes()[i];
    const bool again = runs_again_exclusive(outcome);
    if (outcome == Outcome::kThrottled) {
      ++throttled;
      continue;
    }
    if (outcome != Outcome::kUntouched && !again) ++ran;
    if (again || outcome == Outcome::kConflict) ended_early = true;
    if (outcome == Outcome::kUntouched || outcome == Outcome::kConflict || again) continue;
    if (!conflicts_.empty()) conflicts_.erase(messages[i].id);
    if (!slow_.empty() && outcome != Outcome::kFailed) slow_.erase(messages[i].id);
    if (!suspects_.empty() && outcome != Outcome::kFailed) suspects_.erase(messages[i].id);
    if (!put_off_.empty()) put_off_.erase(messages[i].id);
  }
  one_by_one_ = std::max(0, one_by_one_ - 1);
  const bool cut = ran + throttled < messages.size();
  if (taken.how == Taken::kMixed) adapt(ran, took, cut && !ended_early);
  if (taken.how == Taken::kExclusive) exclusive_took_ += took;
  return cut;
}

// Remembers what the batch has shown of its channel names and messages.
void Worker::note_outcomes(const Claim& claim, const Dispatcher& dispatcher, Micros began) {
  const Batch& messages = claim.messages;
  const auto index = [&](const Failure& failure) {
    return static_cast<std::size_t>(failure.message - messages.data());
  };
  std::vector<Micros> took(messages.size(), -1);
  for (std::size_t i = 0; i < messages.size(); ++i)
    if (dispatcher.outcomes()[i] == Outcome::kHandled) took[i] = dispatcher.spans()[i].took;
  for (const Failure& failure : dispatcher.failures()) {
    const std::size_t i = index(failure);
    took[i] = failure.duration.value_or(0);
    if (dispatcher.outcomes()[i] == Outcome::kConflict)
      ports_.host.conflict(failure.message->channel_name, began, static_cast<int>(messages.size()));
    else if (messages.size() > 1 && may_come_of_sharing(failure.error)) {
      if (suspects_.size() >= kMostRemembered) suspects_.clear();
      suspects_.insert(failure.message->id);
    }
  }
  for (std::size_t first = 0; first < messages.size();) {
    std::size_t i = first;
    Micros sum = 0;
    int ran = 0;
    for (; i < messages.size() && messages[i].channel_name == messages[first].channel_name; ++i) {
      if (took[i] < 0) continue;
      sum += took[i];
      ++ran;
    }
    calls_.ran(messages[first].channel_name, sum, ran);
    first = i;
  }
  std::vector<Uuid> stopped;
  bool collided = false;
  std::string_view channel_name;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    if (!runs_again_exclusive(dispatcher.outcomes()[i])) continue;
    channel_name = messages[i].channel_name;
    stopped.push_back(messages[i].id);
    if (dispatcher.outcomes()[i] == Outcome::kCollided) {
      collided = true;
      continue;
    }
    if (slow_.size() >= kMostRemembered) slow_.clear();
    slow_.insert(messages[i].id);
  }
  if (stopped.empty()) return;
  if (collided)
    calls_.collided(channel_name, ports_.clock.steady());
  else
    calls_.yielded(channel_name, dispatcher.yielded_after() / static_cast<Micros>(stopped.size()));
  if (dispatcher.yielded_in_conflict()) ports_.host.conflict(channel_name, began, static_cast<int>(messages.size()));
  run_exclusive(std::move(stopped), true);
}

// The batch cannot be settled; rolls it back.
//   1. If other sessions hold rows that were to be deleted, or cancel messages, the batch is claimed again.
//   2. mq_run throws any other error.
//   3. If the server is the cause, the first unsettled batch in a row throws: the worker pauses.
//   4. Else a message may be the cause: each runs exclusively, and one that cannot be settled alone
//      is put off.
Worker::BatchResult Worker::unsettled(const std::vector<Owned>& messages, const Error& error, bool exclusive) {
  if (row_locks::was_held(error)) {
    ports_.transaction.rollback();
    ports_.host.handled(0);
    BatchResult again;
    again.claimed = messages.size();
    again.unsettled = true;
    return again;
  }
  if (!learns_) throw error;  // to the caller of mq_run
  ++unsettled_;
  if (!exclusive && is_trouble(error) && unsettled_ == 1) throw error;
  ports_.transaction.rollback();
  ports_.host.handled(0);
  if (is_over()) throw error;
  ports_.host.warn(error);
  if (exclusive || messages.size() == 1) {
    for (const Owned& message : messages) put_off(message, error);
  } else {
    for (const Owned& message : messages) run_exclusive({message.id}, false);
  }
  BatchResult result;
  result.claimed = messages.size();
  result.unsettled = true;
  return result;
}

// Snoozes the message, uncharged. Does nothing if it is locked, gone or not due by now.
void Worker::put_off(const Owned& message, const Error& error) {
  if (put_off_.size() >= kMostRemembered) put_off_.clear();
  const Micros delay = std::min(kLastPutOff, kFirstPutOff << std::min(put_off_[message.id]++, 10));
  ports_.transaction.begin();
  Batch batch;
  const Micros now = ports_.clock.now();
  if (ports_.host.refresh(registry_)) find_due(std::span(&message.id, 1), now, batch);
  Settlement settlement;
  for (const Claimed& claimed : batch) settlement.snoozes.push_back({&claimed, now + delay});
  settle(settlement);
  ports_.transaction.commit();
  if (!batch.empty()) ports_.host.put_off(message.id, message.channel_name, error, now + delay);
}

// Charges an attempt for an error at commit. The rollback has unlocked the message: if another
// session has locked, handled or charged it since, nothing is charged.
void Worker::charge_at_commit(const Uuid& id, int attempts, const Error& error, Micros duration) {
  ports_.transaction.begin();
  Batch batch;
  const Micros now = ports_.clock.now();
  if (ports_.host.refresh(registry_)) find_due(std::span(&id, 1), now, batch);
  std::erase_if(batch, [&](const Claimed& claimed) { return claimed.attempts != attempts; });
  Settlement settlement;
  for (const Claimed& claimed : batch) {
    const Channel* channel = registry_.find(claimed.channel_name);
    settle_failure({&claimed, error, duration}, channel != nullptr ? channel->find(claimed.name) : nullptr, now,
                   ports_.clock.random(), settlement);
  }
  settle(settlement);
  ports_.transaction.commit();
}

// Returns the handler of each message that stays in `messages`. Leaves to a later claim:
//   1. Messages beyond their handler's batch_size, and all later ones of the channel name.
//   2. Messages that no handler takes, and all later ones of their ordered channel. Only heads are
//      added to `unhandled`: a message behind a head is looked at when it has become head.
std::vector<const Handler*> Worker::resolve(Batch& messages, Batch& unhandled) const {
  std::vector<const Handler*> handlers;
  std::unordered_map<const Handler*, int> counts;
  // A channel name whose other messages are left. The messages of a name stand together.
  std::optional<std::string_view> full;
  bool cut = false;  // the rest of the current ordered channel is taken out
  std::size_t kept = 0;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Claimed& message = messages[i];
    const bool head = !message.ordered || i == 0 || !same_channel(messages[i - 1], message);
    cut = cut && !head;
    if (cut || full == message.channel_name) continue;
    const Channel* channel = registry_.find(message.channel_name);
    const Handler* handler = channel != nullptr ? channel->find(message.name) : nullptr;
    if (handler == nullptr) {
      if (head) unhandled.push_back(message);
      cut = message.ordered;
      continue;
    }
    if (++counts[handler] > handler->batch_size) {
      full = message.channel_name;
      continue;
    }
    handlers.push_back(handler);
    if (kept != i) messages[kept] = message;
    ++kept;
  }
  messages.resize(kept);
  return handlers;
}

// Adapts the size of mixed batches. `cut`: the end of the slice has ended this one.
void Worker::adapt(std::size_t ran, Micros took, bool cut) {
  const auto least = std::max<std::size_t>(ran, 1);
  if (cut) {
    pace_ = static_cast<int>(least);
  } else if (took * 4 < kSlice) {
    pace_ = std::min(pace_ * 4, std::numeric_limits<int>::max() / 8);
  } else if (took > kSlice) {
    pace_ = std::max(1, pace_ / 2);
  }
  if (took > 0) {
    const auto fits = static_cast<double>(least) * static_cast<double>(kSlice) / static_cast<double>(took);
    pace_ = std::max(1, std::min(pace_, static_cast<int>(std::min(fits, 1e8))));
  }
}

// Counts a conflict of the message. True: it may be tried again, uncharged.
bool Worker::conflict_again(const Uuid& id) {
  if (conflicts_.size() > 1000) conflicts_.clear();
  if (++conflicts_[id] <= kMostConflicts) return true;
  conflicts_.erase(id);
  return false;
}

}  // namespace mq
