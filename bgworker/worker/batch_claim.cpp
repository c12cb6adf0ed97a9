// Decides which messages are in a worker's next batch: the part of Worker (loop.hpp) that claims.
// Worker::run_batch() calls claim() and set_apart_exclusive(). Only this process has the state.
//
// The order of claims:
//   1. Messages that run exclusively, until they have taken kSlice since the last other claim.
//   2. Channel names by priority, the greatest first.
//   3. Within a priority either a mix of the names with quick calls, or one other name by itself.
//      The two take turns, and so do the other names.

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include "queue/due.hpp"
#include "queue/find.hpp"
#include "queue/undeliverable.hpp"
#include "worker/loop.hpp"

namespace mq {

namespace {

constexpr int kMostLooked = 10;  // channel names that leaves_some() asks
// Messages in exclusive_. One that has no room is claimed again with its channel name.
constexpr std::size_t kMostExclusive = 10'000;

bool is_empty(const Claim& claim) {
  return claim.messages.empty() && claim.undeliverable.empty() && claim.put_off == 0;
}

// How many messages of the claim are heads; all undeliverable ones are.
int heads(const Claim& claim) {
  auto count = static_cast<int>(claim.undeliverable.size());
  for (std::size_t i = 0; i < claim.messages.size(); ++i)
    if (!claim.messages[i].ordered || i == 0 || !same_channel(claim.messages[i - 1], claim.messages[i])) ++count;
  return count;
}

}  // namespace

// Adds the messages to exclusive_ as one group, unless they are in it already.
void Worker::run_exclusive(std::vector<Uuid> messages, bool first) {
  if (exclusive_ids_.size() >= kMostExclusive) return;
  std::erase_if(messages, [&](const Uuid& id) { return !exclusive_ids_.insert(id).second; });
  if (messages.empty()) return;
  if (first)
    exclusive_.push_front(std::move(messages));
  else
    exclusive_.push_back(std::move(messages));
}

// After a wait a message has come, as a rule, which is not to wait for a look at what else may be due: that look
// follows at once if nothing is found, else with the next batch.
Worker::Taken Worker::claim(int limit, const std::vector<std::string_view>* only) {
  const bool woken = std::exchange(woken_, false);
  claimer_.look_later(woken);
  Taken taken = claim_once(limit, only);
  if (!woken || !is_empty(taken.claim)) return taken;
  claimer_.look_later(false);
  return claim_once(limit, only);
}

Worker::Taken Worker::claim_once(int limit, const std::vector<std::string_view>* only) {
  Taken taken;
  if (exclusive_took_ < kSlice && claim_exclusive(taken.claim)) {
    taken.how = Taken::kExclusive;
    return taken;
  }
  exclusive_took_ = 0;
  if (one_by_one_ > 0) limit = 1;
  const Offers offers = this->offers(only);
  // begin() links headless channels, and looks where a limit has room again: that may make messages due that is_due()
  // does not see before. Therefore it runs here, before any name is asked, and even if no claim follows.
  std::vector<std::string_view> names;
  for (const Offer& offer : offers.mixed)
    if (offer.workers > 0) names.push_back(offer.source.channel_name);
  for (const Offer& offer : offers.apart) names.push_back(offer.source.channel_name);
  if (!names.empty()) claimer_.begin(names);
  if (offers.apart.empty()) {
    taken.claim = claim_mixed(offers.mixed, std::min(limit, pace_));
    return taken;
  }
  std::set<int, std::greater<>> priorities;
  for (const auto* all : {&offers.mixed, &offers.apart})
    for (const Offer& offer : *all) priorities.insert(offer.source.priority);
  for (const int priority : priorities) {
    const auto equals = [&](const std::vector<Offer>& all) {
      std::vector<Offer> some;
      std::copy_if(all.begin(), all.end(), std::back_inserter(some),
                   [&](const Offer& offer) { return offer.source.priority == priority; });
      return some;
    };
    for (const bool apart : {apart_first_, !apart_first_}) {
      taken.claim =
          apart ? claim_apart(equals(offers.apart), limit) : claim_mixed(equals(offers.mixed), std::min(limit, pace_));
      if (is_empty(taken.claim)) continue;
      taken.how = apart ? Taken::kApart : Taken::kMixed;
      if (apart) taken.claim.more_is_due = leaves_some(offers, taken.claim);
      apart_first_ = !apart;
      return taken;
    }
  }
  return taken;
}

// Claims the first group of exclusive_ that can be claimed now. Drops those before it: their
// messages are claimed again with their channel names. False: there is none.
bool Worker::claim_exclusive(Claim& claim) {
  while (!exclusive_.empty()) {
    const std::vector<Uuid> ids = std::move(exclusive_.front());
    exclusive_.pop_front();
    for (const Uuid& id : ids) exclusive_ids_.erase(id);
    const Micros now = ports_.clock.now();
    Batch found;
    find_due(ids, now, found);
    std::erase_if(found, [&](const Claimed& message) {
      const Channel* channel = registry_.find(message.channel_name);
      return channel == nullptr || channel->leased() || !channel->disabled.empty();
    });
    if (found.empty()) continue;
    const Channel& channel = *registry_.find(found.front().channel_name);
    if (!take_channel_slot({{channel.name, 0, 0}, channel.max_workers(), channel.max_workers()})) continue;
    for (const Claimed& message : found)
      (is_deliverable(message, now) ? claim.messages : claim.undeliverable).push_back(message);
    return true;
  }
  return false;
}

Worker::Offers Worker::offers(const std::vector<std::string_view>* only) {
  Offers offers;
  calls_.forget(ports_.clock.steady());
  for (const auto& [name, channel] : registry_.channels()) {
    if (!channel.disabled.empty() || channel.leased()) continue;
    if (only != nullptr && std::find(only->begin(), only->end(), name) == only->end()) continue;
    Offer offer{{name, channel.batch_size(), channel.priority()}, channel.max_workers(), channel.max_workers()};
    const std::optional<Limits> limits = ports_.host.limits(name);
    if (limits) {
      offer.workers = offer.workers > 0 ? std::min(offer.workers, limits->workers) : limits->workers;
      offer.source.most = std::min(offer.source.most, limits->batch);
    }
    if (!limits && (calls_.is_quick(channel) || (!learns_ && !calls_.is_known(channel)))) {
      offers.mixed.push_back(offer);
    } else {
      offer.source.most = std::min(offer.source.most, calls_.apart(channel));
      offers.apart.push_back(offer);
    }
  }
  return offers;
}

// Takes one of the slots that workers may have on the channel name (max_workers, or fewer after
// conflicts; consumers outside count as well), until the transaction ends or release_place(). False: all are taken.
bool Worker::take_channel_slot(const Offer& offer) {
  return offer.workers <= 0 || channel_slots_.take(offer.source.channel_name, offer.workers, offer.of_all);
}

Claim Worker::claim_mixed(const std::vector<Offer>& offers, int limit) {
  std::vector<Source> sources;
  std::set<std::string_view> slots;
  sources.reserve(offers.size());
  for (const Offer& offer : offers) {
    if (offer.workers > 0) {
      if (!is_due(offer.source.channel_name, ports_.clock.now()) || !take_channel_slot(offer)) continue;
      slots.insert(offer.source.channel_name);
    }
    sources.push_back(offer.source);
  }
  Claim claim = claimer_.claim(sources, limit, true);
  if (!slots.empty())
    for (const Batch* batch : {&claim.messages, &claim.undeliverable})
      for (const Claimed& message : *batch) slots.erase(message.channel_name);
  for (const std::string_view name : slots) channel_slots_.release(name);
  return claim;
}

// Claims from the next channel name, in turn after last_apart_, that has something due.
Claim Worker::claim_apart(const std::vector<Offer>& offers, int limit) {
  const auto start = std::find_if(offers.begin(), offers.end(),
                                  [&](const Offer& offer) { return offer.source.channel_name > last_apart_; });
  for (std::size_t i = 0; i < offers.size(); ++i) {
    const Offer& offer = offers[(static_cast<std::size_t>(start - offers.begin()) + i) % offers.size()];
    const std::string_view name = offer.source.channel_name;
    if (!is_due(name, ports_.clock.now()) || !take_channel_slot(offer)) continue;
    Claim claim = claimer_.claim({offer.source}, std::min(limit, offer.source.most), true);
    if (!is_empty(claim)) {
      last_apart_ = name;
      return claim;
    }
    if (offer.workers > 0) channel_slots_.release(name);
  }
  return {};
}

// Whether other workers have something to do while this one handles `claim`, which is from one
// channel name. claim.more_is_due does not tell: such a claim is often full with one message, and
// knows of its own name only.
bool Worker::leaves_some(const Offers& offers, const Claim& claim) {
  const Micros now = ports_.clock.now();
  const int taken = heads(claim);
  if (claim.more_is_due && count_due(last_apart_, now, taken + 1) > taken) return true;
  int looked = 0;
  for (const auto* all : {&offers.apart, &offers.mixed})
    for (const Offer& offer : *all) {
      if (offer.source.channel_name == last_apart_) continue;
      if (++looked > kMostLooked) return claim.more_is_due;
      if (is_due(offer.source.channel_name, now)) return true;
    }
  return false;
}

// Whether the message is to run exclusively: its call was stopped before; it is a retry after an
// error that sharing may have caused; it is a second or later retry, or the last one.
bool Worker::wants_exclusive(const Claimed& message) const {
  if (!slow_.empty() && slow_.contains(message.id)) return true;
  if (message.attempts == 0) return false;
  return message.attempts > 1 || message.attempts_left == 1 || suspects_.contains(message.id);
}

// Takes the messages that are to run exclusively out of a batch, and those behind them in their
// ordered channels. The former run next; the latter are claimed again.
void Worker::set_apart_exclusive(Batch& messages) {
  if (messages.size() < 2) return;
  Batch gone;  // the ordered messages that were taken out
  std::size_t kept = 0;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Claimed& message = messages[i];
    const bool behind = message.ordered && std::any_of(gone.begin(), gone.end(), [&](const Claimed& before) {
                          return same_channel(before, message);
                        });
    if (!behind && !wants_exclusive(message)) {
      if (kept != i) messages[kept] = message;
      ++kept;
      continue;
    }
    if (message.ordered) gone.push_back(message);
    if (!behind) run_exclusive({message.id}, false);
  }
  messages.resize(kept);
}

}  // namespace mq
