#include "handlers/registry.hpp"

#include <gtest/gtest.h>

#include <string>

namespace mq {
namespace {

Handler handler(const std::string& channel_name, std::optional<std::string> message_name, const std::string& function) {
  Handler result;
  result.channel_name = channel_name;
  result.message_name = std::move(message_name);
  result.function = function;
  return result;
}

TEST(Registry, ExactNameWinsOverTheHandlerForEveryName) {
  for (const bool exact_first : {true, false}) {
    Registry registry;
    if (exact_first) registry.add(handler("c", "paid", "exact"));
    registry.add(handler("c", std::nullopt, "any"));
    if (!exact_first) registry.add(handler("c", "paid", "exact"));
    EXPECT_EQ(registry.find("c")->find("paid")->function, "exact");
    EXPECT_EQ(registry.find("c")->find("sent")->function, "any");
  }
}

TEST(Registry, FindsNoHandlerWhereNoneMatches) {
  Registry registry;
  registry.add(handler("c", "paid", "exact"));
  EXPECT_EQ(registry.find("c")->find("sent"), nullptr);
  EXPECT_EQ(registry.find("c")->find(""), nullptr);
  EXPECT_EQ(registry.find("d"), nullptr);
}

TEST(Registry, KeepsTheHandlersOfChannelsApart) {
  Registry registry;
  registry.add(handler("c", std::nullopt, "of c"));
  registry.add(handler("d", std::nullopt, "of d"));
  EXPECT_EQ(registry.find("c")->find("n")->function, "of c");
  EXPECT_EQ(registry.find("d")->find("n")->function, "of d");
  EXPECT_EQ(registry.find("d")->name, "d");
  EXPECT_EQ(registry.channels().size(), 2U);
}

TEST(Registry, HandlersStayInPlaceWhenOthersAreAdded) {
  Registry registry;
  registry.add(handler("c", "first", "f"));
  const Handler* first = registry.find("c")->find("first");
  for (int i = 0; i < 100; ++i) {
    registry.add(handler("c", "name " + std::to_string(i), "f"));
    registry.add(handler("channel " + std::to_string(i), std::nullopt, "f"));
  }
  EXPECT_EQ(registry.find("c")->find("first"), first);
  EXPECT_EQ(first->function, "f");
}

TEST(Registry, ClaimsForTheHandlerThatTakesMost) {
  Channel channel;
  EXPECT_EQ(channel.batch_size(), 1);
  for (const int size : {3, 50, 7}) {
    channel.handlers.push_back(std::make_unique<Handler>());
    channel.handlers.back()->batch_size = size;
  }
  EXPECT_EQ(channel.batch_size(), 50);
}

TEST(Registry, TightestLimitOfWorkersHoldsForTheChannel) {
  Channel channel;
  for (const int workers : {0, 0}) {
    channel.handlers.push_back(std::make_unique<Handler>());
    channel.handlers.back()->max_workers = workers;
  }
  EXPECT_EQ(channel.max_workers(), 0);
  channel.handlers[0]->max_workers = 5;
  EXPECT_EQ(channel.max_workers(), 5);
  channel.handlers[1]->max_workers = 2;
  EXPECT_EQ(channel.max_workers(), 2);
}

TEST(Registry, ParkedChannelSaysWhy) {
  Registry registry;
  registry.add(handler("c", std::nullopt, "f"));
  EXPECT_EQ(registry.find("c")->disabled, "");
  registry.disable("c", "the function is gone");
  EXPECT_EQ(registry.find("c")->disabled, "the function is gone");
  registry.disable("d", "its only handler is gone");
  ASSERT_NE(registry.find("d"), nullptr);
  EXPECT_EQ(registry.find("d")->name, "d");
  EXPECT_EQ(registry.find("d")->find("n"), nullptr);
}

TEST(Registry, ForgetsEverythingWhenCleared) {
  Registry registry;
  registry.add(handler("c", std::nullopt, "f"));
  registry.disable("d", "why");
  registry.clear();
  EXPECT_EQ(registry.find("c"), nullptr);
  EXPECT_TRUE(registry.channels().empty());
}

}  // namespace
}  // namespace mq
