// Subscribers: the channels that a topic goes to, as mq_subscribers has them. api/topics.cpp calls it.
// No state.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mq {

struct Subscriber {
  std::string channel_name;
  std::optional<std::string> channel_args;  // none: those that the publisher gives
  bool ordered;
};

// The subscriptions whose patterns match the topic, in no certain order. Goes down the primary key of
// mq_subscribers, which serves as the tree of topics.hpp, with a snapshot of the moment: a descent of
// the index for each key that is looked at, and a row for each match.
std::vector<Subscriber> subscribers_of(std::string_view topic);

}  // namespace mq
