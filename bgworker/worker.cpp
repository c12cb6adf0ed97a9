#include "worker.hpp"

#include <algorithm>
#include <limits>
#include <string>

#include <fmt/core.h>

#include "dispatch.hpp"
#include "policy.hpp"

namespace mq {

namespace {

struct Over {};  // there is nothing to work for any more

constexpr Micros kLockedWait = kSecond / 10;
constexpr Micros kBusyLook = kSecond;  // a worker that never rests looks so often for what has expired
constexpr std::size_t kMostRemembered = 10'000;
constexpr Micros kAfterTrouble = kSecond;      // wait after casualties that could not be charged
constexpr Micros kForgiven = 10 * kSecond;     // a part that has nothing to do, after it failed
constexpr Micros kFirstPutOff = 10 * kSecond;  // doubled each time, up to
constexpr Micros kLastPutOff = 600 * kSecond;

// Of the server rather than of the message: resources, an operator, the system, a bug. Worth a wait, not an attempt.
bool is_trouble(const Error& error) {
  const std::string_view state_class = std::string_view(error.sqlstate).substr(0, 2);
  for (const std::string_view trouble : {"53", "57", "58", "F0", "XX"})
    if (state_class == trouble) return true;
  return false;
}

}  // namespace

Worker::Worker(const Ports& ports) : ports_(ports), claimer_(ports.source, ports.clock), pace_(kFirstPace) {}

template <class Body>
void Worker::run_part(LoopPart& part, Micros& most, Body&& body) {
  const Micros left = part.trouble.left(ports_.clock.steady());
  if (left > 0) {
    most = std::min(most, left);
    return;
  }
  try {
    body();
    part.trouble.succeeded();
  } catch (const Error& error) {
    ports_.transaction.rollback();
    ports_.host.handled(0);
    if (is_over()) throw Over();
    ports_.host.warn(error);
    fails(part, error);
    part.trouble.failed(ports_.clock.steady());
    most = std::min(most, part.trouble.left(ports_.clock.steady()));
  }
}

void Worker::fails(LoopPart& part, const Error& error) {
  part.failed_at = ports_.clock.steady();
  ports_.host.fails(part.part, error);
}

void Worker::works(LoopPart& part, bool proven) {
  if (!part.failed_at || (!proven && ports_.clock.steady() - *part.failed_at < kForgiven)) return;
  part.failed_at.reset();
  ports_.host.works_again(part.part);
}

void Worker::run() {
  learns_ = true;
  Micros idle_since = ports_.clock.now();
  Micros last_sweep = 0;
  bool sweep_on = false;   // when there is nothing else to do
  Micros next_expiry = 0;  // look then
  bool look_for_orphans = true;
  const auto leaves = [&] {
    if (!drain()) return true;
    idle_since = ports_.clock.now();
    return false;
  };
  for (;;) try {
      Micros most = ports_.host.poll_interval();
      const Micros interval = most;
      if (ports_.clock.steady() >= charge_again_at_) {
        if (ports_.host.any_casualty())
          (void)charge_casualties();
        else
          works(charges_, true);
      }
      if (const Micros left = charge_again_at_ - ports_.clock.steady(); left > 0) most = std::min(most, left);
      BatchResult result;
      run_part(batches_, most, [&] { result = run_batch(ports_.host.batch_size(), nullptr); });
      if (result.over) {
        if (leaves()) return;
        continue;
      }
      if (batches_.trouble.failures() == 0 && !result.unsettled) works(batches_, result.claimed > 0);
      LeasedHandlers::Turn turn;
      if (ports_.leased != nullptr)
        run_part(leased_calls_, most, [&] {
          if (look_for_orphans) release_orphans();
          look_for_orphans = false;
          turn = ports_.leased->turn(registry_, {.drain = ports_.host.should_drain()});
        });
      if (turn.failure)
        fails(leased_calls_, *turn.failure);
      else if (leased_calls_.trouble.failures() == 0)
        works(leased_calls_, turn.handled > 0);
      if (turn.handled > 0) ports_.host.handled(turn.handled);
      // Of a batch it was told when it was claimed.
      if (result.claimed == 0 || turn.more_is_due) ports_.host.backlog(result.more_is_due || turn.more_is_due);
      const Micros now = ports_.clock.now();
      bool again = result.claimed > 0 || turn.moved;
      if (again) {
        idle_since = now;
        next_expiry = std::min(next_expiry, now + kBusyLook);
      }
      run_part(sweep_, most, [&] {
        again = ports_.host.wake_unhandled() || again;
        if (now >= next_expiry) {
          const bool expired = ports_.host.expire();
          next_expiry = expired ? now : now + kBusyLook;
          again = expired || again;
        }
        const Micros sweep_after = sweep_.failed_at ? std::min(interval, kLongestPause) : interval;
        if (now - last_sweep >= sweep_after || now < last_sweep || (sweep_on && !again) ||
            sweep_.trouble.failures() > 0) {
          last_sweep = now;
          sweep_on = false;
          const Host::Swept swept = ports_.host.sweep();
          sweep_on = swept.more;
          if (swept.failure) {
            ports_.host.warn(*swept.failure);
            fails(sweep_, *swept.failure);
          } else {
            works(sweep_, true);
          }
          again = sweep_on || again;
          look_for_orphans = true;
        }
      });
      if (again) {
        if (!ports_.host.wait(0) && leaves()) return;
        continue;
      }
      run_part(batches_, most, [&] {
        // What is due and was not claimed is locked by somebody, whose end may not wake anybody.
        const Host::Next next = ports_.host.next(registry_, ports_.leased != nullptr && ports_.leased->can_begin());
        for (const auto& moment : {next.due, next.expiry})
          if (moment) most = std::min(most, *moment > now ? *moment - now : kLockedWait);
        next_expiry = next.expiry.value_or(kNever);
      });
      if (ports_.leased != nullptr && leased_calls_.trouble.failures() == 0)
        if (const auto turn_in = ports_.leased->next_turn()) most = std::min(most, *turn_in);
      // What was told to fail is looked at again, although there may be nothing to do.
      for (const LoopPart* part : {&batches_, &leased_calls_, &sweep_, &charges_})
        if (part->failed_at) most = std::min(most, kLongestPause);
      ports_.host.report({});
      if (is_leasing()) idle_since = ports_.clock.now();
      if (ports_.host.should_leave(ports_.clock.now() - idle_since)) {
        if (leaves()) return;
        continue;
      }
      watch();
      // After trouble it does not wait as one that is free for work.
      if (!(batches_.trouble.failures() > 0 ? ports_.host.pause(most) : ports_.host.wait(most)) && leaves()) return;
    } catch (const Over&) {
      return;
    }
}

// Before each wait, whatever was before it: of a session that is closed the socket is not there any more.
void Worker::watch() {
  if (ports_.leased == nullptr) return;
  // What its sockets tell would not be looked at.
  ports_.host.watch(leased_calls_.trouble.failures() > 0 ? std::vector<Socket>() : ports_.leased->sockets());
}

bool Worker::is_leasing() const {
  return ports_.leased != nullptr && ports_.leased->busy();
}

// Before it leaves a worker waits for the leased calls that run, and begins no others; others may have its place
// meanwhile. Sessions are closed when they are idle: one that was closed in the middle of something complains in the
// server's log. True: it has a place again, and goes on.
bool Worker::drain() {
  if (ports_.leased != nullptr && ports_.leased->has_sessions()) ports_.host.give_place_up();
  while (ports_.leased != nullptr && ports_.leased->has_sessions()) {
    Micros most = kSecond;
    try {
      run_part(leased_calls_, most, [&] {
        const LeasedHandlers::Turn turn = ports_.leased->turn(registry_, {.drain = true});
        ports_.host.handled(turn.handled);
      });
    } catch (const Over&) {
      return false;
    }
    if (!ports_.leased->has_sessions()) return false;
    if (leased_calls_.trouble.failures() == 0)
      if (const auto turn_in = ports_.leased->next_turn()) most = std::min(most, *turn_in);
    watch();
    if (!ports_.host.wait_to_leave(most)) return false;
    if (ports_.host.has_place()) return true;
  }
  return false;
}

void Worker::release_orphans() {
  if (ports_.leased == nullptr) return;
  ports_.transaction.begin();
  if (ports_.host.refresh(registry_)) ports_.leased->release_orphans(registry_);
  ports_.transaction.commit();
}

// What brings the server down must not be tried for ever: its message is charged now, and dead the second time that
// this is proven. Of a batch nobody knows which message it was; then as many run alone, until one does it again.
// False: some are left to be charged.
bool Worker::charge_casualties() {
  std::vector<int> settled;
  bool all = false;
  try {
    ports_.transaction.begin();
    // Not by a worker that is about to leave.
    if (ports_.host.refresh(registry_)) all = charge(ports_.host.casualties(), settled);
    ports_.transaction.commit();
    ports_.host.casualties_settled(settled);
    works(charges_, true);
  } catch (const Error& error) {
    ports_.transaction.rollback();
    ports_.host.casualties_settled({});
    ports_.host.warn(error);
    fails(charges_, error);
  }
  if (!all) charge_again_at_ = ports_.clock.steady() + kAfterTrouble;
  return all;
}

bool Worker::charge(const std::vector<Casualty>& casualties, std::vector<int>& settled) {
  std::vector<Uuid> ids;
  std::vector<const Casualty*> single;
  for (const Casualty& casualty : casualties) {
    if (casualty.token != 0) {
      if (ports_.leased == nullptr || charge_leased(casualty)) settled.push_back(casualty.number);
    } else if (casualty.messages > 1) {
      one_by_one_ = std::max(one_by_one_, casualty.messages);
      settled.push_back(casualty.number);
    } else {
      ids.push_back(casualty.message);
      single.push_back(&casualty);
    }
  }
  Batch messages;
  std::vector<int> crashes;
  ports_.source.begin({});
  if (!ids.empty()) ports_.source.named(ids, messages, crashes);
  Settlement settlement;
  std::unordered_set<Uuid, UuidHash> charged;
  for (const Casualty* casualty : single) {
    if (!charged.insert(casualty->message).second) continue;  // one attempt at a time
    const auto found = std::find_if(messages.begin(), messages.end(),
                                    [&](const Claimed& message) { return message.id == casualty->message; });
    if (found != messages.end()) {
      const Channel* channel = registry_.find(found->channel_name);
      settle_casualty(*found, *casualty, crashes[static_cast<std::size_t>(found - messages.begin())],
                      channel != nullptr ? channel->find(found->name) : nullptr, ports_.clock.now(),
                      ports_.clock.dice(), settlement);
    } else if (ports_.source.is_pending(casualty->message)) {
      continue;
    }
    settled.push_back(casualty->number);
  }
  ports_.settler.settle(settlement);
  return settled.size() == casualties.size();
}

bool Worker::charge_leased(const Casualty& casualty) {
  Batch found;
  std::vector<int> crashes;
  ports_.source.begin({});
  ports_.source.named(std::span(&casualty.message, 1), found, crashes);
  if (found.empty()) return !ports_.source.is_pending(casualty.message);
  return ports_.leased->charge_crash(casualty, crashes.front(), registry_);
}

// After an error: the extension may have been dropped under the batch.
bool Worker::is_over() {
  try {
    ports_.transaction.begin();
    const bool more = ports_.host.refresh(registry_);
    ports_.transaction.commit();
    return !more;
  } catch (const Error&) {
    ports_.transaction.rollback();
    return false;
  }
}

std::int64_t Worker::run_until_empty(std::optional<std::int64_t> most, const std::vector<std::string_view>* only) {
  std::int64_t handled = 0;
  if (ports_.leased != nullptr && ports_.host.any_casualty()) (void)charge_casualties();
  release_orphans();
  for (;;) {
    const std::int64_t left = most ? *most - handled : std::numeric_limits<int>::max();
    if (left <= 0) break;
    const auto limit = static_cast<int>(std::min<std::int64_t>(left, ports_.host.batch_size()));
    const BatchResult result = run_batch(limit, only);
    if (result.over) break;
    handled += static_cast<std::int64_t>(result.handled);
    bool again = result.claimed > 0;
    if (!again && ports_.leased != nullptr) {
      const auto turn = ports_.leased->turn(registry_, {.only = only, .most = left});
      handled += static_cast<std::int64_t>(turn.handled);
      again = turn.moved;
      // The caller was cancelled in it: the call has ended, and is settled before the wait says so.
      if (ports_.leased->busy() && ports_.caller.hurry()) ports_.leased->turn(registry_, {.drain = true});
    }
    if (!again && !ports_.host.wake_unhandled() && !ports_.host.sweep().more) break;
    if (!ports_.host.wait(0)) break;
  }
  return handled;
}

Worker::BatchResult Worker::run_batch(int limit, const std::vector<std::string_view>* only) {
  BatchResult result;
  ports_.transaction.begin();
  // Inside the transaction, which has heard of every change of the catalogs by now: what is called is there.
  if (!ports_.host.refresh(registry_)) {
    ports_.transaction.commit();
    result.over = true;
    return result;
  }
  Taken taken = claim(limit, only);
  Claim& claim = taken.claim;
  // Asked after the claim, which may have what another worker has just ended with: that is charged first.
  if (learns_ && ports_.host.any_casualty() && ports_.clock.steady() >= charge_again_at_) {
    ports_.transaction.rollback();
    result.claimed = 1;
    result.unsettled = true;
    return result;
  }
  // Asked after the claim, which may have seen what was sent after a handler was registered.
  if (ports_.host.is_outdated()) {
    ports_.transaction.rollback();
    result.claimed = 1;
    return result;
  }
  // Asked after the claim, which may have seen what was sent after the settings were changed.
  if (ports_.host.should_renew()) {
    ports_.transaction.rollback();
    result.over = true;
    return result;
  }
  result.claimed = claim.messages.size() + claim.leftovers.size();
  result.more_is_due = claim.more_is_due;
  if (result.claimed == 0) {
    ports_.transaction.commit();
    return result;
  }

  // Before the handlers run, which may take their time.
  ports_.host.backlog(claim.more_is_due);
  if (taken.how != Taken::kAlone) set_apart_lonely(claim.messages);
  Batch unhandled;
  const std::vector<const Handler*> handlers = resolve(claim.messages, unhandled);
  if (!claim.messages.empty())
    ports_.host.report(fmt::format("{}: {} messages", claim.messages.front().channel_name, claim.messages.size()));
  ports_.host.holds(claim.messages);

  const Micros started = ports_.clock.now();
  Dispatcher dispatcher(ports_.transaction, ports_.caller, ports_.clock, {started + kSlice});
  dispatcher.run(claim.messages, handlers);
  const Micros now = ports_.clock.now();

  Settlement settlement;
  dispose(claim.leftovers, now, settlement);
  for (const Claimed& message : unhandled) settlement.unhandled.push_back(&message);
  std::size_t ran = 0;
  bool ended_early = dispatcher.cut_short();  // for another reason than its slice
  for (std::size_t i = 0; i < claim.messages.size(); ++i) {
    const Outcome outcome = dispatcher.outcomes()[i];
    if (outcome != Outcome::kUntouched && !runs_again_alone(outcome)) ++ran;
    if (runs_again_alone(outcome) || outcome == Outcome::kConflict) ended_early = true;
    if (outcome == Outcome::kExpired) bury_expired(claim.messages[i], settlement);
    if (outcome == Outcome::kHandled) {
      const Claimed& message = claim.messages[i];
      const Dispatcher::Span& span = dispatcher.spans()[i];
      settlement.removed.push_back(&message);
      settlement.handled.push_back(
          {&message, std::max<Micros>(0, span.started - message.attempt_at), std::max<Micros>(0, span.took)});
      ++result.handled;
    }
  }
  for (const Failure& failure : dispatcher.failures()) {
    const auto i = static_cast<std::size_t>(failure.message - claim.messages.data());
    if (dispatcher.outcomes()[i] == Outcome::kConflict && conflict_again(failure.message->id)) continue;
    settle_failure(failure, handlers[i], now, ports_.clock.dice(), settlement);
  }
  for (const auto& [i, wish] : dispatcher.wishes()) {
    const Outcome outcome = dispatcher.outcomes()[i];
    if (outcome != Outcome::kSnoozed && outcome != Outcome::kDiscarded) continue;
    settle_wish(claim.messages[i], wish, handlers[i]->block_on_dead, now, settlement);
    ++result.handled;
  }
  note_outcomes(claim, dispatcher, started);

  try {
    ports_.host.settles(now);
    ports_.settler.settle(settlement);
  } catch (const Error& error) {
    std::vector<Owned> owned;
    for (const Batch* batch : {&claim.leftovers, &claim.messages, &unhandled})
      for (const Claimed& message : *batch)
        owned.push_back({message.id, message.attempts, std::string(message.channel_name)});
    return unsettled(owned, error, taken.how == Taken::kAlone);
  }
  try {
    ports_.host.commits();
    ports_.transaction.commit();
  } catch (const Error& error) {
    // A deferred constraint, as a rule. Rolled back: the batch runs again a message a transaction, and one
    // that is alone in its transaction is charged. What messages are called is gone with the transaction.
    ports_.transaction.rollback();
    if (claim.messages.empty()) throw;
    result.handled = 0;
    ports_.host.handled(0);
    const bool trouble = is_trouble(error);
    const Uuid first = claim.messages.front().id;
    if (claim.messages.size() > 1) {
      for (const Claimed& message : claim.messages) run_alone({message.id}, false);
    } else if (!(trouble || error.is_conflict()) || !conflict_again(first)) {
      charge_at_commit(first, claim.messages.front().attempts, error, now - started);
      return result;
    }
    if (trouble) throw;
    return result;
  }
  unsettled_ = 0;
  for (std::size_t i = 0; i < claim.messages.size(); ++i) {
    const Outcome outcome = dispatcher.outcomes()[i];
    if (outcome == Outcome::kUntouched || outcome == Outcome::kConflict || runs_again_alone(outcome)) continue;
    if (!conflicts_.empty()) conflicts_.erase(claim.messages[i].id);
    if (!slow_.empty() && outcome != Outcome::kFailed) slow_.erase(claim.messages[i].id);
    if (!suspects_.empty() && outcome != Outcome::kFailed) suspects_.erase(claim.messages[i].id);
    if (!put_off_.empty()) put_off_.erase(claim.messages[i].id);
  }
  ports_.host.handled(result.handled);
  one_by_one_ = std::max(0, one_by_one_ - 1);
  const bool cut = ran < claim.messages.size();
  if (taken.how == Taken::kMixed) adapt(ran, now - started, cut && !ended_early);
  if (taken.how == Taken::kAlone) alone_took_ += now - started;
  if (cut && !result.more_is_due) ports_.host.backlog(true);  // what it gives back
  return result;
}

// What this batch teaches of its channels and messages.
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
    took[i] = failure.duration;
    if (dispatcher.outcomes()[i] == Outcome::kConflict)
      ports_.host.conflict(failure.message->channel_name, began, static_cast<int>(messages.size()));
    else if (messages.size() > 1 && may_come_of_company(failure.error)) {
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
    if (!runs_again_alone(dispatcher.outcomes()[i])) continue;
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
  run_alone(std::move(stopped), true);
}

// The batch's transaction cannot be settled. If it is a message that makes it so, the others must not suffer for it.
Worker::BatchResult Worker::unsettled(const std::vector<Owned>& messages, const Error& error, bool alone) {
  if (!learns_) throw error;  // the caller of mq_run will see
  if (ports_.settler.was_held(error)) {
    ports_.transaction.rollback();
    ports_.host.handled(0);
    BatchResult again;
    again.claimed = messages.size();
    again.unsettled = true;
    return again;
  }
  ++unsettled_;
  if (!alone && is_trouble(error) && unsettled_ == 1) throw error;
  ports_.transaction.rollback();
  ports_.host.handled(0);
  if (is_over()) throw error;
  ports_.host.warn(error);
  if (alone || messages.size() == 1) {
    for (const Owned& message : messages) put_off(message, error);
  } else {
    for (const Owned& message : messages) run_alone({message.id}, false);
  }
  BatchResult result;
  result.claimed = messages.size();
  result.unsettled = true;
  return result;
}

void Worker::put_off(const Owned& message, const Error& error) {
  if (put_off_.size() >= kMostRemembered) put_off_.clear();
  const Micros delay = std::min(kLastPutOff, kFirstPutOff << std::min(put_off_[message.id]++, 10));
  ports_.transaction.begin();
  ports_.source.begin({});
  Batch batch;
  const Micros now = ports_.clock.now();
  ports_.source.again(std::span(&message.id, 1), now, batch);
  Settlement settlement;
  for (const Claimed& claimed : batch) settlement.snoozes.push_back({&claimed, now + delay});
  ports_.settler.settle(settlement);
  ports_.transaction.commit();
  if (!batch.empty()) ports_.host.put_off(message.id, message.channel_name, error, now + delay);
}

// The message is not locked any more, so it may have been handled meanwhile, or may be with another worker: then there
// is nothing to charge.
void Worker::charge_at_commit(const Uuid& id, int attempts, const Error& error, Micros duration) {
  ports_.transaction.begin();
  ports_.source.begin({});
  Batch batch;
  const Micros now = ports_.clock.now();
  ports_.source.again(std::span(&id, 1), now, batch);
  std::erase_if(batch, [&](const Claimed& claimed) { return claimed.attempts != attempts; });
  Settlement settlement;
  for (const Claimed& claimed : batch) {
    const Channel* channel = registry_.find(claimed.channel_name);
    settle_failure({&claimed, error, duration}, channel != nullptr ? channel->find(claimed.name) : nullptr, now,
                   ports_.clock.dice(), settlement);
  }
  ports_.settler.settle(settlement);
  ports_.transaction.commit();
}

// Takes out what is more than a handler wants in one transaction, and all behind it of the same channel name; and
// what no handler takes, with all behind it in its ordered channel. Heads of that kind are `unhandled`; what stands
// behind a head is looked at when it has become one.
std::vector<const Handler*> Worker::resolve(Batch& messages, Batch& unhandled) const {
  std::vector<const Handler*> handlers;
  std::unordered_map<const Handler*, int> counts;
  std::optional<std::string_view> full;  // a channel name whose messages wait for the next batch; they stand together
  bool cut = false;                      // the ordered channel that the loop is in, behind a message of it
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
    messages[kept++] = message;
  }
  messages.resize(kept);
  return handlers;
}

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

bool Worker::conflict_again(const Uuid& id) {
  if (conflicts_.size() > 1000) conflicts_.clear();
  if (++conflicts_[id] <= kMostConflicts) return true;
  conflicts_.erase(id);
  return false;
}

}  // namespace mq
