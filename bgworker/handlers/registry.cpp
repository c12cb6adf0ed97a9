#include "handlers/registry.hpp"
#include "queue/due.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace mq {

const Handler* Channel::find(std::string_view message_name) const {
  const Handler* any = nullptr;
  for (const auto& handler : handlers) {
    if (!handler->message_name)
      any = handler.get();
    else if (*handler->message_name == message_name)
      return handler.get();
  }
  return any;
}

int Channel::batch_size() const {
  int most = 1;
  for (const auto& handler : handlers) most = std::max(most, handler->batch_size);
  return most;
}

int Channel::max_workers() const {
  int least = 0;
  for (const auto& handler : handlers)
    if (handler->max_workers > 0 && (least == 0 || handler->max_workers < least)) least = handler->max_workers;
  return least;
}

int Channel::priority() const {
  int greatest = std::numeric_limits<int>::min();
  for (const auto& handler : handlers) greatest = std::max(greatest, handler->priority);
  return handlers.empty() ? 0 : greatest;
}

void Registry::add(Handler handler) {
  Channel& channel = channels_[handler.channel_name];
  channel.name = handler.channel_name;
  channel.handlers.push_back(std::make_unique<Handler>(std::move(handler)));
}

void Registry::disable(const std::string& channel_name, std::string why) {
  Channel& channel = channels_[channel_name];
  channel.name = channel_name;
  channel.disabled = std::move(why);
}

const Channel* Registry::find(std::string_view channel_name) const {
  const auto found = channels_.find(channel_name);
  return found == channels_.end() ? nullptr : &found->second;
}

std::vector<std::string> Registry::channel_names() const {
  std::vector<std::string> names;
  for (const auto& [name, channel] : channels_) names.push_back(name);
  return names;
}

std::string Registry::taken() const {
  std::string taken;
  for (const auto& [name, channel] : channels_) {
    taken += name;
    for (const auto& handler : channel.handlers) taken += handler->message_name ? "\1" + *handler->message_name : "\2";
    taken += '\3';
  }
  return taken;
}

}  // namespace mq
