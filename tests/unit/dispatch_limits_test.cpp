// How far a dispatcher goes in one transaction, and what holds whatever happens.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "dispatch_fixture.hpp"
#include "worker/dispatch.hpp"

namespace mq {
namespace {

TEST_F(DispatchTest, NeverUsesMoreSavepointsThanTheServerCaches) {
  std::vector<Message> messages;
  for (int i = 0; i < 250; ++i) messages.insert(messages.end(), {kGood, kBad});
  for (const Handler* handler : {&json, &batch}) {
    const std::string result = run(messages, handler);
    EXPECT_EQ(transaction.released, kMostSavepoints);
    EXPECT_EQ(result.substr(0, 100).find('U'), std::string::npos);
    EXPECT_EQ(result.back(), 'U');
  }
}

TEST_F(DispatchTest, SavepointsWithoutAWriteAreNotCounted) {
  std::vector<Message> messages;
  for (int i = 0; i < 250; ++i) messages.insert(messages.end(), {kGood, kBad});
  writes = false;
  const std::string result = run(messages, &json);
  EXPECT_GT(transaction.released, kMostSavepoints);
  EXPECT_EQ(result.find('U'), std::string::npos);
}

TEST_F(DispatchTest, ACancelledMessageIsLeftOutAndTheOthersOfItsBatchRunAgain) {
  const std::vector<Message> messages(6, kGood);
  for (const Handler* handler : {&json, &batch}) {
    caller.cancelled = {1, 4};
    EXPECT_EQ(run(messages, handler), "HLHHLH");
    EXPECT_TRUE(failures.empty());
    EXPECT_EQ(transaction.effects.size(), 4U) << "of each that is left, once";
    caller.cancelled = {0, 1, 2, 3, 4, 5};
    EXPECT_EQ(run(messages, handler), "LLLLLL");
    EXPECT_TRUE(transaction.effects.empty());
    caller.cancelled.clear();
  }
}

TEST_F(DispatchTest, AFailureBesideACancelledMessageIsChargedOnce) {
  std::vector<Message> messages(6, kGood);
  messages[2] = kBad;
  for (const Handler* handler : {&json, &batch}) {
    caller.cancelled = {3};
    EXPECT_EQ(run(messages, handler), "HHFLHH");
    EXPECT_EQ(failures.size(), 1U);
    caller.cancelled.clear();
  }
}

TEST_F(DispatchTest, PiecesGrowAgainBehindAFailure) {
  std::vector<Message> messages(1000, kGood);
  std::fill(messages.begin(), messages.begin() + 10, kBad);
  run(messages, &json);
  EXPECT_EQ(std::count(outcomes.begin(), outcomes.end(), Outcome::kHandled), 990);
  EXPECT_LE(transaction.released, 16);
}

TEST_F(DispatchTest, PiecesShrinkWhereFailuresAreManySoThatLittleRunsTwice) {
  std::vector<Message> messages;
  for (int i = 0; i < 20; ++i) messages.insert(messages.end(), {kGood, kGood, kBad});
  run(messages, &json);
  for (std::size_t i = 0; i < messages.size(); ++i) EXPECT_LE(calls(i), 2);
  EXPECT_LE(caller.calls.size(), 85U);  // of 60 messages; each good one twice would be 100
}

TEST_F(DispatchTest, EndsWhenItsSliceIsOver) {
  const std::vector<Message> messages(100, {.script = {.cost = 10 * kMillisecond}});
  EXPECT_EQ(run(messages, &json, 95 * kMillisecond), std::string(10, 'H') + std::string(90, 'U'));
}

TEST_F(DispatchTest, RunsSomethingHoweverShortItsSlice) {
  EXPECT_EQ(run({kGood, kGood}, &json, -kSecond), "HU");
  EXPECT_EQ(run({kBad, kGood}, &json, -kSecond), "FU");
}

TEST_F(DispatchTest, FailureThatComesAfterTheSliceIsChargedAllTheSame) {
  const Message slow_bad{.script = {.failures = kAlways, .cost = kSecond}};
  EXPECT_EQ(run({kGood, kGood, slow_bad, kGood}, &json, 100 * kMillisecond), "HHFU");
  EXPECT_EQ(run({kGood, kGood, slow_bad, kGood}, &batch, 100 * kMillisecond), "HHFH");
}

TEST_F(DispatchTest, ComesToAnEndBetweenMessagesWhenItShouldYield) {
  caller.yield_after = 3;
  EXPECT_EQ(run(std::vector<Message>(6, kGood), &json), "HHHUUU");
}

TEST_F(DispatchTest, YieldingEndsTheSearchForACulprit) {
  caller.yield_after = 2;
  std::vector<Message> messages(16, kGood);
  messages[15] = kBad;
  run(messages, &batch);
  EXPECT_EQ(caller.calls.size(), 2U);
}

// --- Calls that change what is claimed with them ---

TEST_F(DispatchTest, EndsBehindACallThatChangesOthers) {
  EXPECT_EQ(run({kGood, kChangingOthers, kGood, kGood}, &json), "HHUU");
  EXPECT_EQ(calls(2), 0);
  EXPECT_EQ(run({kGood, kGood, kChangingOthers}, &json), "HHH");
}

TEST_F(DispatchTest, CallThatChangesOthersEndsTheBatchInAShorterPieceToo) {
  // Behind the failure pieces are as long as what is left; the second one ends with the call.
  EXPECT_EQ(run({kBad, kBad, kGood, kChangingOthers, kBad, kGood}, &json), "FFHHUU");
  EXPECT_EQ(calls(4), 0);
}

TEST_F(DispatchTest, WhatOnlyChangesOthersWhenItRunsAgainLeavesTheFailureBehindItUncharged) {
  int call = 0;
  caller.during = [&] { rows[0].script.changes_others = ++call > 2; };
  EXPECT_EQ(run({kGood, kBad, kGood}, &json), "HUU");
  EXPECT_TRUE(failures.empty());
}

TEST_F(DispatchTest, BatchHandlerThatChangesOthersHasItsArrayHandled) {
  EXPECT_EQ(run({kGood, kChangingOthers, kGood}, &batch), "HHH");
  EXPECT_EQ(run({kGood, kChangingOthers, kGood}, {&batch, &batch, &json}), "HHU");
}

TEST_F(DispatchTest, FailureOfACallThatChangesOthersEndsNothing) {
  const Message bad{.script = {.failures = kAlways, .changes_others = true}};
  EXPECT_EQ(run({kGood, bad, kGood, kGood}, &json), "HFHH");
}

// --- All of it, at random ---

TEST_F(DispatchTest, ChargesTheGuiltyAndHandlesTheOthersAtRandom) {
  for (std::uint64_t seed = 1; seed <= 500; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const auto below = [&](int end) { return static_cast<int>(random() % static_cast<std::uint64_t>(end)); };
    std::vector<Message> messages;
    for (int i = below(40); i >= 0; --i) {
      const int channel = below(5);
      messages.push_back({.channel_args = std::to_string(channel),
                          .ordered = channel < 3,
                          .script = {.failures = below(5) == 0 ? kAlways : 0}});
    }
    run(messages, below(2) == 0 ? &json : &batch);
    std::set<std::string> failed;  // ordered channels
    for (std::size_t i = 0; i < messages.size(); ++i) {
      const Message& message = messages[i];
      Outcome expected = message.script.failures > 0 ? Outcome::kFailed : Outcome::kHandled;
      if (message.ordered && failed.contains(message.channel_args)) expected = Outcome::kUntouched;
      ASSERT_EQ(outcomes[i], expected) << i;
      if (message.ordered && expected == Outcome::kFailed) failed.insert(message.channel_args);
    }
  }
}

}  // namespace
}  // namespace mq
