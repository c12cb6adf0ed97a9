#include "dispatch.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "fake_server.hpp"

namespace mq {
namespace {

using fake::FakeClock;
using fake::kAlways;
using fake::kMillisecond;
using fake::Message;
using fake::Script;
using fake::Session;
using fake::Table;

constexpr Micros kLong = 3600 * kSecond;

// U untouched, H handled, F failed, S snoozed, D discarded, C conflict.
std::string shown(const std::vector<Outcome>& outcomes) {
  std::string text;
  for (const Outcome outcome : outcomes) text += "UHFSDC"[static_cast<int>(outcome)];
  return text;
}

class DispatchTest : public testing::Test {
 protected:
  DispatchTest() {
    json.channel_name = batch.channel_name = "c";
    batch.shape = Shape::kBatch;
  }

  void start_over() {
    session.transaction.rollback();
    session.caller.calls.clear();
    table.clear();
  }

  // Sends the messages, and dispatches all that is in the table to `handler`. What came of each, by
  // place.
  std::string run(const std::vector<Message>& messages, const Handler* handler, Micros slice = kLong) {
    for (const Message& message : messages) table.send(message);
    claimed.clear();
    session.transaction.begin();
    session.queue.oldest("c", clock.now(), std::nullopt, 10'000, claimed);
    Batch heads = claimed;
    std::erase_if(heads, [](const Claimed& message) { return !message.ordered; });
    if (!heads.empty()) session.queue.runs(heads, clock.now(), 10'000, claimed);
    std::sort(claimed.begin(), claimed.end(), [](const auto& a, const auto& b) { return a.place < b.place; });
    return run_again(std::vector<const Handler*>(claimed.size(), handler), slice);
  }

  std::string run_again(const std::vector<const Handler*>& handlers, Micros slice = kLong) {
    Dispatcher dispatcher(session.transaction, session.caller, clock, {clock.now() + slice});
    dispatcher.run(claimed, handlers);
    failures = dispatcher.failures();
    outcomes = dispatcher.outcomes();
    wishes = dispatcher.wishes();
    check();
    return shown(outcomes);
  }

  // Whatever happens: effects are those of the messages that ran to their end, in their order; each
  // failure and each wish has its outcome.
  void check() const {
    std::vector<Uuid> ran;
    std::size_t failed = 0;
    for (std::size_t i = 0; i < claimed.size(); ++i) {
      const bool wished = outcomes[i] == Outcome::kSnoozed || outcomes[i] == Outcome::kDiscarded;
      if (wished || outcomes[i] == Outcome::kHandled) ran.push_back(claimed[i].id);
      EXPECT_EQ(wishes.contains(i), wished) << i;
      if (outcomes[i] == Outcome::kFailed || outcomes[i] == Outcome::kConflict) ++failed;
    }
    EXPECT_EQ(session.transaction.effects, ran);
    EXPECT_EQ(failures.size(), failed);
    EXPECT_FALSE(session.transaction.has_savepoint());
    EXPECT_LE(session.transaction.released, kMostSavepoints);
  }

  int calls(std::size_t i) const { return session.caller.calls_of(claimed[i].id); }

  FakeClock clock;
  Table table{clock};
  Session session{table, clock};
  Handler json;
  Handler batch;
  Batch claimed;
  std::vector<Outcome> outcomes;
  std::vector<Failure> failures;
  std::map<std::size_t, Wish> wishes;
};

const Message kGood;
const Message kBad{.script = {.failures = kAlways}};
const Message kConflicting{.script = {.conflicts = kAlways}};
const Message kSnoozing{.script = {.snoozes = kAlways}};
const Message kDiscarding{.script = {.discards = true}};

TEST_F(DispatchTest, CleanBatchCostsOneSavepointAndOneCallEach) {
  EXPECT_EQ(run({kGood, kGood, kGood, kGood}, &json), "HHHH");
  EXPECT_EQ(session.transaction.released, 1);
  EXPECT_EQ(session.caller.calls.size(), 4U);
}

TEST_F(DispatchTest, FailureTakesNothingElseAlong) {
  EXPECT_EQ(run({kGood, kBad, kGood, kBad, kBad, kGood}, &json), "HFHFFH");
}

TEST_F(DispatchTest, FailingHandlerIsCalledOnceAndTheOthersTwiceAtMost) {
  for (std::size_t bad = 0; bad < 16; ++bad) {
    SCOPED_TRACE(bad);
    start_over();
    std::vector<Message> messages(16, kGood);
    messages[bad] = kBad;
    run(messages, &json);
    for (std::size_t i = 0; i < 16; ++i) {
      EXPECT_EQ(outcomes[i], i == bad ? Outcome::kFailed : Outcome::kHandled);
      if (i == bad)
        EXPECT_EQ(calls(i), 1);
      else
        EXPECT_LE(calls(i), 2);
    }
  }
}

TEST_F(DispatchTest, EveryFailureHasItsOwnErrorAndDuration) {
  run({kGood,
       {.script = {.failures = 1, .cost = 3, .sqlstate = "22012"}},
       kGood,
       {.script = {.failures = 1, .cost = 5, .sqlstate = "23505"}}},
      &json);
  ASSERT_EQ(failures.size(), 2U);
  EXPECT_EQ(failures[0].message, &claimed[1]);
  EXPECT_EQ(failures[0].error.sqlstate, "22012");
  EXPECT_EQ(failures[0].duration, 3);
  EXPECT_EQ(failures[1].message, &claimed[3]);
  EXPECT_EQ(failures[1].error.sqlstate, "23505");
  EXPECT_EQ(failures[1].duration, 5);
}

TEST_F(DispatchTest, MessageThatNoHandlerTakesFailsAndNothingIsCalled) {
  EXPECT_EQ(run({{.name = "unknown"}}, nullptr), "F");
  EXPECT_EQ(failures[0].error.sqlstate, "42883");
  EXPECT_EQ(failures[0].error.message, "no handler of channel \"c\" matches message name \"unknown\"");
  EXPECT_TRUE(session.caller.calls.empty());
}

TEST_F(DispatchTest, RunAgainKnowsNothingOfTheRunBefore) {
  run({kBad, kGood}, &json);
  start_over();
  EXPECT_EQ(run({kGood, kGood, kGood}, &json), "HHH");
}

// --- Ordered channels ---

TEST_F(DispatchTest, NothingRunsBehindAFailedMessageOfItsOrderedChannel) {
  const Message good{.ordered = true};
  const Message bad{.ordered = true, .script = {.failures = kAlways}};
  EXPECT_EQ(run({good, good, bad, good, kGood, good}, &json), "HHFUHU");
  EXPECT_EQ(calls(3) + calls(5), 0);
}

TEST_F(DispatchTest, OtherChannelsGoOnThoughTheyShareTheKey) {
  table.hash_collides = true;
  const Message bad{.channel_args = "x", .ordered = true, .script = {.failures = kAlways}};
  const Message behind{.channel_args = "x", .ordered = true};
  const Message other{.channel_args = "y", .ordered = true};
  EXPECT_EQ(run({bad, other, behind, other, {.channel_args = "x"}}, &json), "FHUHH");
}

TEST_F(DispatchTest, NothingIsChargedBehindAMessageThatFailsOnlyWhenItRunsAgain) {
  const Message bad{.ordered = true, .script = {.failures = kAlways}};
  table.send({.ordered = true});
  table.send(bad);
  session.caller.during = [&] {  // the first works once, and never again
    if (session.caller.calls.size() == 2) table.rows.begin()->second.script.failures = kAlways;
  };
  EXPECT_EQ(run({}, &json), "FU");
}

// --- Batch handlers ---

TEST_F(DispatchTest, BatchHandlerGetsAllOfItAtOnce) {
  EXPECT_EQ(run(std::vector<Message>(20, kGood), &batch), "HHHHHHHHHHHHHHHHHHHH");
  EXPECT_EQ(session.caller.calls.size(), 1U);
}

TEST_F(DispatchTest, CallHoldsMessagesOfOneHandlerOnly) {
  Handler other = batch;
  run({kGood, kGood, kGood, kGood, kGood, kGood}, &batch);
  session.transaction.effects.clear();
  session.caller.calls.clear();
  run_again({&batch, &batch, &other, &json, &json, nullptr});
  ASSERT_GE(session.caller.calls.size(), 4U);
  EXPECT_EQ(session.caller.calls[0], (std::vector<Uuid>{claimed[0].id, claimed[1].id}));
  EXPECT_EQ(session.caller.calls[1], (std::vector<Uuid>{claimed[2].id}));
  EXPECT_EQ(session.caller.calls[2], (std::vector<Uuid>{claimed[3].id}));
  EXPECT_EQ(session.caller.calls[3], (std::vector<Uuid>{claimed[4].id}));
  EXPECT_EQ(shown(outcomes), "HHHHHF");
}

TEST_F(DispatchTest, HalvingFindsTheCulpritWhereverItIs) {
  for (std::size_t size = 1; size <= 33; ++size) {
    for (std::size_t bad = 0; bad < size; ++bad) {
      SCOPED_TRACE(std::to_string(bad) + " of " + std::to_string(size));
      start_over();
      std::vector<Message> messages(size, kGood);
      messages[bad] = kBad;
      std::string expected(size, 'H');
      expected[bad] = 'F';
      ASSERT_EQ(run(messages, &batch), expected);
      ASSERT_LE(session.caller.calls.size(), 14U);  // twice the logarithm, and the ends
    }
  }
}

TEST_F(DispatchTest, HalvingFindsEveryCulprit) {
  for (unsigned bits = 0; bits < 256; ++bits) {
    start_over();
    std::vector<Message> messages(8, kGood);
    std::string expected(8, 'H');
    for (std::size_t i = 0; i < 8; ++i) {
      if ((bits >> i & 1) == 0) continue;
      messages[i] = kBad;
      expected[i] = 'F';
    }
    ASSERT_EQ(run(messages, &batch), expected);
  }
}

TEST_F(DispatchTest, BatchThatFailsOnlyAsAWholeIsHandledSingly) {
  EXPECT_EQ(run(std::vector<Message>(7, {.script = {.fails_in_company = true}}), &batch), "HHHHHHH");
}

TEST_F(DispatchTest, BatchOfAnOrderedChannelEndsAtTheCulprit) {
  std::vector<Message> messages(9, {.ordered = true});
  messages[4].script.failures = kAlways;
  EXPECT_EQ(run(messages, &batch), "HHHHFUUUU");
}

// --- Conflicts ---

TEST_F(DispatchTest, ConflictKeepsWhatRanBeforeAndEndsTheBatch) {
  for (const Handler* handler : {&json, &batch}) {
    start_over();
    EXPECT_EQ(run({kGood, kGood, kGood, kConflicting, kGood, kGood}, handler), "HHHCUU");
    EXPECT_EQ(failures[0].error.sqlstate, "40001");
  }
}

TEST_F(DispatchTest, DeadlockIsAConflict) {
  EXPECT_EQ(run({{.script = {.failures = 1, .sqlstate = "40P01"}}, kGood}, &json), "CU");
}

TEST_F(DispatchTest, FailuresBeforeAConflictStayCharged) {
  EXPECT_EQ(run({kBad, kGood, kBad, kConflicting, kBad}, &json), "FHFCU");
}

// --- Wishes ---

TEST_F(DispatchTest, WhatAHandlerWishedForIsItsOutcome) {
  for (const Handler* handler : {&json, &batch}) {
    start_over();
    EXPECT_EQ(run({kGood, kSnoozing, kGood, kDiscarding}, handler), "HSHD");
    EXPECT_EQ(wishes.at(1).delay, fake::kSnooze);
    EXPECT_EQ(wishes.at(3).reason, "the script says so");
  }
}

TEST_F(DispatchTest, WishOfARunThatWasUndoneIsForgotten) {
  EXPECT_EQ(run({kSnoozing, kDiscarding, kBad, kSnoozing}, &json), "SDFS");
  start_over();
  table.send(kSnoozing);
  table.send(kBad);
  session.caller.during = [&] {  // wished for in the first run alone
    if (session.caller.calls.size() == 2) table.rows.begin()->second.script.snoozes = 0;
  };
  EXPECT_EQ(run({}, &json), "HF");
}

TEST_F(DispatchTest, NothingRunsBehindASnoozedMessageOfItsOrderedChannel) {
  const Message good{.ordered = true};
  const Message snoozing{.ordered = true, .script = {.snoozes = kAlways}};
  EXPECT_EQ(run({good, snoozing, good, kGood, good, {.channel_args = "x", .ordered = true}}, &json), "HSUHUH");
  start_over();
  EXPECT_EQ(run({kSnoozing, kGood, good}, &json), "SHH");
}

TEST_F(DispatchTest, DiscardedMessageStopsItsOrderedChannelWhereTheDeadBlock) {
  const Message good{.ordered = true};
  const Message discarding{.ordered = true, .script = {.discards = true}};
  EXPECT_EQ(run({discarding, good}, &json), "DH");
  start_over();
  json.block_on_dead = true;
  EXPECT_EQ(run({discarding, good, kGood}, &json), "DUH");
}

TEST_F(DispatchTest, BatchEndsAtAMessageThatStopsItsOrderedChannel) {
  const Message good{.channel_args = "x", .ordered = true};
  const Message snoozing{.channel_args = "x", .ordered = true, .script = {.snoozes = kAlways}};
  const Message discarding{.channel_args = "x", .ordered = true, .script = {.discards = true}};
  EXPECT_EQ(run({good, good, snoozing, good, kGood, good, kSnoozing, kGood}, &batch), "HHSUHUSH");
  start_over();
  EXPECT_EQ(run({good, discarding, good}, &batch), "HDH");
  start_over();
  batch.block_on_dead = true;
  EXPECT_EQ(run({good, discarding, good}, &batch), "HDU");
}

TEST_F(DispatchTest, BatchIsCutWhateverTheSlice) {
  const Message good{.ordered = true, .script = {.cost = kSecond}};
  const Message snoozing{.ordered = true, .script = {.snoozes = kAlways, .cost = kSecond}};
  EXPECT_EQ(run({good, snoozing, good}, &batch, kMillisecond), "HSU");
}

// --- Savepoints and time ---

TEST_F(DispatchTest, NeverUsesMoreSavepointsThanTheServerCaches) {
  std::vector<Message> messages;
  for (int i = 0; i < 250; ++i) messages.insert(messages.end(), {kGood, kBad});
  for (const Handler* handler : {&json, &batch}) {
    start_over();
    const std::string result = run(messages, handler);
    EXPECT_EQ(session.transaction.released, kMostSavepoints);
    EXPECT_EQ(result.substr(0, 100).find('U'), std::string::npos);
    EXPECT_EQ(result.back(), 'U');
  }
}

TEST_F(DispatchTest, PiecesGrowAgainBehindAFailure) {
  std::vector<Message> messages(1000, kGood);
  messages[0] = kBad;
  messages[500] = kBad;
  run(messages, &json);
  EXPECT_EQ(std::count(outcomes.begin(), outcomes.end(), Outcome::kHandled), 998);
  EXPECT_LE(session.transaction.released, 16);
}

TEST_F(DispatchTest, PiecesShrinkWhereFailuresAreMany) {
  std::vector<Message> messages;
  for (int i = 0; i < 20; ++i) messages.insert(messages.end(), {kGood, kGood, kBad});
  run(messages, &json);
  for (std::size_t i = 0; i < messages.size(); ++i) EXPECT_LE(calls(i), 2);
}

TEST_F(DispatchTest, EndsWhenItsSliceIsOver) {
  const std::vector<Message> messages(100, {.script = {.cost = 10 * kMillisecond}});
  run(messages, &json, 95 * kMillisecond);
  EXPECT_EQ(shown(outcomes), std::string(10, 'H') + std::string(90, 'U'));
}

TEST_F(DispatchTest, RunsSomethingHoweverShortItsSlice) {
  EXPECT_EQ(run({kGood, kGood}, &json, -kSecond), "HU");
  start_over();
  EXPECT_EQ(run({kBad, kGood}, &json, -kSecond), "FU");
}

TEST_F(DispatchTest, FailureThatComesAfterTheSliceIsChargedAllTheSame) {
  const Message slow_bad{.script = {.failures = kAlways, .cost = kSecond}};
  EXPECT_EQ(run({kGood, kGood, slow_bad, kGood}, &json, 100 * kMillisecond), "HHFU");
  start_over();
  EXPECT_EQ(run({kGood, kGood, slow_bad, kGood}, &batch, 100 * kMillisecond), "HHFH");
}

TEST_F(DispatchTest, ComesToAnEndBetweenMessagesWhenItIsToHurry) {
  session.caller.hurry_after = 3;
  EXPECT_EQ(run(std::vector<Message>(6, kGood), &json), "HHHUUU");
}

TEST_F(DispatchTest, HurryEndsTheSearchForACulprit) {
  session.caller.hurry_after = 2;
  std::vector<Message> messages(16, kGood);
  messages[15] = kBad;
  run(messages, &batch);
  EXPECT_EQ(session.caller.calls.size(), 2U);
}

// --- All of it, at random ---

TEST_F(DispatchTest, ChargesTheGuiltyAndHandlesTheOthersAtRandom) {
  for (std::uint64_t seed = 1; seed <= 500; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const auto below = [&](int end) { return static_cast<int>(random() % static_cast<std::uint64_t>(end)); };
    start_over();
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
