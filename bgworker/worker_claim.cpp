// What a worker's next batch has in it.
//
// Channels whose calls are quick are mixed; each other channel is claimed from alone, and they take turns with what is
// mixed, within the order of their priorities. Before all that come the messages that run without company.

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include "worker.hpp"

namespace mq {

namespace {

constexpr int kMostLooked = 10;             // channel names that are asked whether they have something for others
constexpr std::size_t kMostAlone = 10'000;  // messages; what has no room comes again with its channel

bool is_empty(const Claim& claim) {
  return claim.messages.empty() && claim.leftovers.empty();
}

// First messages of their channels.
int heads(const Claim& claim) {
  auto count = static_cast<int>(claim.leftovers.size());
  for (std::size_t i = 0; i < claim.messages.size(); ++i)
    if (!claim.messages[i].ordered || i == 0 || !same_channel(claim.messages[i - 1], claim.messages[i])) ++count;
  return count;
}

}  // namespace

void Worker::run_alone(std::vector<Uuid> messages, bool first) {
  if (alone_ids_.size() >= kMostAlone) return;
  std::erase_if(messages, [&](const Uuid& id) { return !alone_ids_.insert(id).second; });
  if (messages.empty()) return;
  if (first)
    alone_.push_front(std::move(messages));
  else
    alone_.push_back(std::move(messages));
}

Worker::Taken Worker::claim(int limit, const std::vector<std::string_view>* only) {
  Taken taken;
  if (alone_took_ < kSlice && claim_alone(taken.claim)) {
    taken.how = Taken::kAlone;
    return taken;
  }
  alone_took_ = 0;
  if (one_by_one_ > 0) limit = 1;
  const Offers offers = this->offers(only);
  if (offers.apart.empty()) {
    taken.claim = claim_mixed(offers.mixed, std::min(limit, pace_));
    return taken;
  }
  // What a claim begins with is due even if no channel has anything that is seen to be.
  std::vector<std::string_view> names;
  for (const Offer& offer : offers.apart) names.push_back(offer.source.channel_name);
  ports_.source.begin(names);
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

// The next group that can be had. False: there is none.
bool Worker::claim_alone(Claim& claim) {
  while (!alone_.empty()) {
    const std::vector<Uuid> ids = std::move(alone_.front());
    alone_.pop_front();
    for (const Uuid& id : ids) alone_ids_.erase(id);
    ports_.source.begin({});
    const Micros now = ports_.clock.now();
    Batch found;
    ports_.source.again(ids, now, found);
    std::erase_if(found, [&](const Claimed& message) {
      const Channel* channel = registry_.find(message.channel_name);
      return channel == nullptr || channel->leased() || !channel->parked.empty();
    });
    if (found.empty()) continue;
    const Channel& channel = *registry_.find(found.front().channel_name);
    if (!take_place({{channel.name, 0, 0}, channel.max_workers()})) continue;
    for (const Claimed& message : found)
      (is_deliverable(message, now) ? claim.messages : claim.leftovers).push_back(message);
    return true;
  }
  return false;
}

Worker::Offers Worker::offers(const std::vector<std::string_view>* only) {
  Offers offers;
  calls_.forget(ports_.clock.steady());
  for (const auto& [name, channel] : registry_.channels()) {
    if (!channel.parked.empty() || channel.leased()) continue;
    if (only != nullptr && std::find(only->begin(), only->end(), name) == only->end()) continue;
    Offer offer{{name, channel.batch_size(), channel.priority()}, channel.max_workers()};
    const std::optional<Host::Limits> limits = ports_.host.limits(name);
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

// A place of a channel belongs to a worker that has messages of it.
bool Worker::take_place(const Offer& offer) {
  return offer.workers <= 0 || ports_.source.take_place(offer.source.channel_name, offer.workers);
}

Claim Worker::claim_mixed(const std::vector<Offer>& offers, int limit) {
  std::vector<Source> sources;
  std::set<std::string_view> places;
  sources.reserve(offers.size());
  for (const Offer& offer : offers) {
    if (offer.workers > 0) {
      if (!ports_.source.is_due(offer.source.channel_name, ports_.clock.now()) || !take_place(offer)) continue;
      places.insert(offer.source.channel_name);
    }
    sources.push_back(offer.source);
  }
  Claim claim = claimer_.claim(sources, limit, true);
  if (!places.empty())
    for (const Batch* batch : {&claim.messages, &claim.leftovers})
      for (const Claimed& message : *batch) places.erase(message.channel_name);
  for (const std::string_view name : places) ports_.source.release_place(name);
  return claim;
}

// From the next channel that has something.
Claim Worker::claim_apart(const std::vector<Offer>& offers, int limit) {
  const auto start = std::find_if(offers.begin(), offers.end(),
                                  [&](const Offer& offer) { return offer.source.channel_name > last_apart_; });
  for (std::size_t i = 0; i < offers.size(); ++i) {
    const Offer& offer = offers[(static_cast<std::size_t>(start - offers.begin()) + i) % offers.size()];
    const std::string_view name = offer.source.channel_name;
    if (!ports_.source.is_due(name, ports_.clock.now()) || !take_place(offer)) continue;
    Claim claim = claimer_.claim({offer.source}, std::min(limit, offer.source.most), true);
    if (!is_empty(claim)) {
      last_apart_ = name;
      return claim;
    }
    if (offer.workers > 0) ports_.source.release_place(name);
  }
  return {};
}

// Whether others have something to do meanwhile. Such a claim is often full with one message, and knows of one channel
// name only.
bool Worker::leaves_some(const Offers& offers, const Claim& claim) {
  const Micros now = ports_.clock.now();
  const int taken = heads(claim);
  if (claim.more_is_due && ports_.source.due(last_apart_, now, taken + 1) > taken) return true;
  int looked = 0;
  for (const auto* all : {&offers.apart, &offers.mixed})
    for (const Offer& offer : *all) {
      if (offer.source.channel_name == last_apart_) continue;
      if (++looked > kMostLooked) return claim.more_is_due;
      if (ports_.source.is_due(offer.source.channel_name, now)) return true;
    }
  return false;
}

// The first retry may have company, unless the error may have come of that; later ones have none, nor has the last.
bool Worker::wants_to_be_alone(const Claimed& message) const {
  if (!slow_.empty() && slow_.contains(message.id)) return true;
  if (message.attempts == 0) return false;
  return message.attempts > 1 || message.attempts_left == 1 || suspects_.contains(message.id);
}

// Takes them out of a batch, and what is behind them in their ordered channels; they run next.
void Worker::set_apart_lonely(Batch& messages) {
  if (messages.size() < 2) return;
  Batch gone;  // ordered ones
  std::size_t kept = 0;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Claimed message = messages[i];
    const bool behind = message.ordered && std::any_of(gone.begin(), gone.end(), [&](const Claimed& before) {
                          return same_channel(before, message);
                        });
    if (!behind && !wants_to_be_alone(message)) {
      messages[kept++] = message;
      continue;
    }
    if (message.ordered) gone.push_back(message);
    if (!behind) run_alone({message.id}, false);
  }
  messages.resize(kept);
}

}  // namespace mq
