#include "worker/pace.hpp"

#include <algorithm>

namespace mq {

namespace {

constexpr std::size_t kMostNames = 10'000;  // measured at most; with another one all are forgotten

// Whether a handler of the channel takes several messages in one call.
bool takes_batches(const Channel& channel) {
  return std::any_of(channel.handlers.begin(), channel.handlers.end(),
                     [](const auto& handler) { return handler->shape == Shape::kBatch; });
}

}  // namespace

void Pace::ran(std::string_view channel_name, Micros took, int messages) {
  if (messages <= 0) return;
  const double each = static_cast<double>(std::max<Micros>(took, 0)) / messages;
  const auto found = expected_.find(channel_name);
  if (found != expected_.end()) {
    found->second = (found->second + each) / 2;
    return;
  }
  if (expected_.size() >= kMostNames) expected_.clear();
  expected_.emplace(channel_name, each);
}

void Pace::yielded(std::string_view channel_name, Micros after) {
  const auto found = expected_.find(channel_name);
  if (found != expected_.end())
    found->second = std::max(found->second, static_cast<double>(after));
  else
    expected_.emplace(channel_name, static_cast<double>(after));
}

void Pace::collided(std::string_view channel_name, Micros now) {
  collided_.insert_or_assign(std::string(channel_name), now);
}

void Pace::forget(Micros now) {
  std::erase_if(collided_, [&](const auto& entry) { return now - entry.second >= kCollides; });
}

bool Pace::is_quick(const Channel& channel) const {
  if (collided_.contains(channel.name)) return false;
  const auto found = expected_.find(channel.name);
  if (found == expected_.end()) return false;
  const double call = takes_batches(channel) ? found->second * channel.batch_size() : found->second;
  return call <= static_cast<double>(kQuickCall);
}

int Pace::apart(const Channel& channel) const {
  if (collided_.contains(channel.name) && !takes_batches(channel)) return 1;
  const auto found = expected_.find(channel.name);
  if (found == expected_.end()) return takes_batches(channel) ? std::min(kFirstPace, channel.batch_size()) : 1;
  const Micros length = takes_batches(channel) || is_quick(channel) ? kSlice : kApart;
  const double fits = found->second <= 0 ? 1e6 : static_cast<double>(length) / found->second;
  return std::clamp(static_cast<int>(std::min(fits, 1e6)), 1, channel.batch_size());
}

}  // namespace mq
