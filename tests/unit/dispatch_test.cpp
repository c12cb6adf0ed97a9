// What becomes of the messages of a batch, and of their effects.
#include "worker/dispatch.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "dispatch_fixture.hpp"

namespace mq {
namespace {

TEST_F(DispatchTest, CleanBatchCostsOneSavepointAndOneCallEach) {
  EXPECT_EQ(run({kGood, kGood, kGood, kGood}, &json), "HHHH");
  EXPECT_EQ(transaction.released, 1);
  EXPECT_EQ(caller.calls.size(), 4U);
}

TEST_F(DispatchTest, FailureTakesNothingElseAlong) {
  EXPECT_EQ(run({kGood, kBad, kGood, kBad, kBad, kGood}, &json), "HFHFFH");
}

TEST_F(DispatchTest, FailingHandlerIsCalledOnceAndTheOthersTwiceAtMost) {
  for (std::size_t bad = 0; bad < 16; ++bad) {
    SCOPED_TRACE(bad);
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

TEST_F(DispatchTest, DuplicateObjectIsChargedOnlyWithoutCompany) {
  const Message duplicate{.script = {.failures = kAlways, .sqlstate = "42P07"}};
  EXPECT_EQ(run({kGood, duplicate, kGood}, &json), "HOU");
  EXPECT_TRUE(failures.empty());
  EXPECT_EQ(run({duplicate, kGood, duplicate}, &json), "FHO");
  EXPECT_EQ(failures.size(), 1U);
}

TEST_F(DispatchTest, DuplicateObjectInASecondCallOfABatchHandlerRunsThatCallAgain) {
  const Message duplicate{.script = {.failures = kAlways, .sqlstate = "42710"}};
  const Handler other = batch;
  EXPECT_EQ(run({kGood, kGood, kGood, kGood, kGood, duplicate}, {&other, &other, &other, &batch, &batch, &batch}),
            "HHHOOO");
}

TEST_F(DispatchTest, FailureIsChargedWithItsOwnErrorThoughAnotherFailsAsItRunsAgain) {
  caller.during = [&] {  // the first works once, and never again
    if (caller.calls.size() == 2) rows[0].script.failures = kAlways;
  };
  EXPECT_EQ(run({{.script = {.sqlstate = "23505"}}, {.script = {.failures = kAlways, .sqlstate = "22012"}}}, &json),
            "FF");
  EXPECT_EQ(failures[0].error.sqlstate, "23505");
  EXPECT_EQ(failures[1].error.sqlstate, "22012");
}

// --- Ordered channels ---

TEST_F(DispatchTest, NothingRunsBehindAFailedMessageOfItsOrderedChannel) {
  const Message good{.ordered = true};
  const Message bad{.ordered = true, .script = {.failures = kAlways}};
  EXPECT_EQ(run({good, good, bad, good, kGood, good}, &json), "HHFUHU");
  EXPECT_EQ(calls(3) + calls(5), 0);
}

TEST_F(DispatchTest, OtherChannelsGoOnThoughTheyShareTheKey) {
  const Message bad{.channel_args = "x", .ordered = true, .script = {.failures = kAlways}};
  const Message behind{.channel_args = "x", .ordered = true};
  const Message other{.channel_args = "y", .ordered = true};
  EXPECT_EQ(run({bad, other, behind, other, {.channel_args = "x"}}, &json), "FHUHH");
}

TEST_F(DispatchTest, UnorderedMessageHoldsNothingBack) {
  EXPECT_EQ(run({kBad, {.ordered = true}}, &json), "FH");
}

TEST_F(DispatchTest, NothingIsChargedBehindAMessageThatFailsOnlyWhenItRunsAgain) {
  const Message bad{.ordered = true, .script = {.failures = kAlways}};
  caller.during = [&] {  // the first works once, and never again
    if (caller.calls.size() == 2) rows[0].script.failures = kAlways;
  };
  EXPECT_EQ(run({{.ordered = true}, bad}, &json), "FU");
}

// --- Batch handlers ---

TEST_F(DispatchTest, BatchHandlerGetsAllOfItAtOnce) {
  EXPECT_EQ(run(std::vector<Message>(20, kGood), &batch), "HHHHHHHHHHHHHHHHHHHH");
  EXPECT_EQ(caller.calls.size(), 1U);
}

TEST_F(DispatchTest, CallHoldsMessagesOfOneHandlerOnly) {
  const Handler other = batch;
  EXPECT_EQ(run(std::vector<Message>(6, kGood), {&batch, &batch, &other, &json, &json, &json}), "HHHHHH");
  EXPECT_EQ(caller.calls, (std::vector<std::vector<std::int64_t>>{{0, 1}, {2}, {3}, {4}, {5}}));
}

TEST_F(DispatchTest, HalvingFindsTheCulpritWhereverItIs) {
  for (std::size_t size = 1; size <= 33; ++size) {
    for (std::size_t bad = 0; bad < size; ++bad) {
      SCOPED_TRACE(std::to_string(bad) + " of " + std::to_string(size));
      std::vector<Message> messages(size, kGood);
      messages[bad] = kBad;
      std::string expected(size, 'H');
      expected[bad] = 'F';
      ASSERT_EQ(run(messages, &batch), expected);
      ASSERT_LE(caller.calls.size(), 14U);  // twice the logarithm, and the ends
    }
  }
}

TEST_F(DispatchTest, HalvingFindsEveryCulprit) {
  for (unsigned bits = 0; bits < 256; ++bits) {
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
  EXPECT_EQ(run(std::vector<Message>(7, {.script = {.fails_when_shared = true}}), &batch), "HHHHHHH");
}

TEST_F(DispatchTest, BatchOfAnOrderedChannelEndsAtTheCulprit) {
  std::vector<Message> messages(9, {.ordered = true});
  messages[4].script.failures = kAlways;
  EXPECT_EQ(run(messages, &batch), "HHHHFUUUU");
}

// --- Conflicts ---

TEST_F(DispatchTest, ConflictKeepsWhatRanBeforeAndEndsTheBatch) {
  for (const Handler* handler : {&json, &batch}) {
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

// --- Dispositions ---

TEST_F(DispatchTest, WhatAHandlerWishedForIsItsOutcome) {
  for (const Handler* handler : {&json, &batch}) {
    EXPECT_EQ(run({kGood, kSnoozing, kGood, kDiscarding}, handler), "HSHD");
    EXPECT_EQ(dispositions.at(1).delay, fake::kSnooze);
    EXPECT_EQ(dispositions.at(3).reason, "the script says so");
  }
}

TEST_F(DispatchTest, WishOfARunThatWasUndoneIsForgotten) {
  EXPECT_EQ(run({kSnoozing, kDiscarding, kBad, kSnoozing}, &json), "SDFS");
  caller.during = [&] {  // asked for in the first run alone
    if (caller.calls.size() == 2) rows[0].script.snoozes = 0;
  };
  EXPECT_EQ(run({kSnoozing, kBad}, &json), "HF");
}

TEST_F(DispatchTest, NothingRunsBehindASnoozedMessageOfItsOrderedChannel) {
  const Message good{.ordered = true};
  const Message snoozing{.ordered = true, .script = {.snoozes = kAlways}};
  EXPECT_EQ(run({good, snoozing, good, kGood, good, {.channel_args = "x", .ordered = true}}, &json), "HSUHUH");
  EXPECT_EQ(run({kSnoozing, kGood, good}, &json), "SHH");
}

TEST_F(DispatchTest, DiscardedMessageStopsItsOrderedChannelWhereTheDeadBlock) {
  const Message good{.ordered = true};
  const Message discarding{.ordered = true, .script = {.discards = true}};
  EXPECT_EQ(run({discarding, good}, &json), "DH");
  json.block_on_dead = true;
  EXPECT_EQ(run({discarding, good, kGood}, &json), "DUH");
}

TEST_F(DispatchTest, BatchEndsAtAMessageThatStopsItsOrderedChannel) {
  const Message good{.channel_args = "x", .ordered = true};
  const Message snoozing{.channel_args = "x", .ordered = true, .script = {.snoozes = kAlways}};
  const Message discarding{.channel_args = "x", .ordered = true, .script = {.discards = true}};
  EXPECT_EQ(run({good, good, snoozing, good, kGood, good, kSnoozing, kGood}, &batch), "HHSUHUSH");
  EXPECT_EQ(run({good, discarding, good}, &batch), "HDH");
  batch.block_on_dead = true;
  EXPECT_EQ(run({good, discarding, good}, &batch), "HDU");
}

TEST_F(DispatchTest, BatchIsCalledOnceWhenItsWishesStopNothingInIt) {
  const Message snoozing{.channel_args = "x", .ordered = true, .script = {.snoozes = kAlways}};
  EXPECT_EQ(run({snoozing, {.channel_args = "y", .ordered = true}, kGood}, &batch), "SHH");
  EXPECT_EQ(caller.calls.size(), 1U);
  EXPECT_EQ(run({kSnoozing, {.ordered = true}}, &batch), "SH");
  EXPECT_EQ(caller.calls.size(), 1U);
}

TEST_F(DispatchTest, WishThatCutABatchIsForgottenUnlessItComesAgain) {
  const Message good{.ordered = true};
  caller.during = [&] {
    if (caller.calls.size() == 2) rows[0].script.snoozes = 0;
  };
  EXPECT_EQ(run({{.ordered = true, .script = {.snoozes = kAlways}}, good, good}, &batch), "HHH");
}

TEST_F(DispatchTest, BatchIsCutWhateverTheSlice) {
  const Message good{.ordered = true, .script = {.cost = kSecond}};
  const Message snoozing{.ordered = true, .script = {.snoozes = kAlways, .cost = kSecond}};
  EXPECT_EQ(run({good, snoozing, good}, &batch, kMillisecond), "HSU");
}

// --- Calls that are stopped ---

TEST_F(DispatchTest, CallThatIsStoppedIsUnchargedAndEndsTheBatch) {
  for (const bool felt : {false, true}) {
    caller.during = [&] {
      if (caller.calls.back().back() != 2) return;
      rows[1].script.snoozes = 0;  // asked for in the first run alone
      throw Yielded{.conflicted = true, .felt = felt};
    };
    EXPECT_EQ(run({kGood, kSnoozing, kGood, kGood}, &json), felt ? "HHOU" : "HHYU");
    EXPECT_EQ(run({kGood, kGood, kGood}, {&json, &batch, &batch}), felt ? "HOO" : "HYY");
    EXPECT_TRUE(failures.empty());
  }
}

// --- Expiry ---

const Message kSlow{.ordered = true, .script = {.cost = 2 * kSecond}};
const Message kShort{.ordered = true, .expires = kSecond};

TEST_F(DispatchTest, DoesNotCallForWhatExpiredWhileItWaitedForItsTurn) {
  EXPECT_EQ(run({{.script = {.cost = kSecond}}, {.expires = kSecond}, {.expires = kSecond + 1}, kGood}, &json), "HXHH");
  EXPECT_EQ(calls(1), 0);
}

TEST_F(DispatchTest, NothingRunsBehindAnExpiredMessageOfAnOrderedChannel) {
  EXPECT_EQ(run({kSlow, kShort, {.ordered = true}, kGood}, &json), "HXUH");
}

TEST_F(DispatchTest, MessageThatExpiresWhileItRunsIsHandled) {
  EXPECT_EQ(run({{.expires = kSecond, .script = {.cost = 5 * kSecond}}, kGood}, &json), "HH");
  EXPECT_EQ(run({{.expires = kSecond, .script = {.cost = 5 * kSecond}}, {.expires = kSecond}}, &batch), "HH");
}

TEST_F(DispatchTest, BatchEndsBeforeWhatHasExpired) {
  const Handler other = json;
  EXPECT_EQ(run({kSlow, kGood, {.expires = kSecond}, kGood}, {&other, &batch, &batch, &batch}), "HHXH");
  EXPECT_EQ(caller.calls.size(), 3U);
}

TEST_F(DispatchTest, WhatExpiredStaysSoWhenOthersRunAgain) {
  EXPECT_EQ(run({kSlow, kShort, kGood, kBad, kGood}, &json), "HXHFH");
  EXPECT_EQ(calls(0), 2);
  EXPECT_EQ(calls(1), 0);
}

TEST_F(DispatchTest, WhatRanInVainAndExpiredMeanwhileDoesNotRunAgain) {
  EXPECT_EQ(run({{.expires = kSecond, .script = {.cost = 2 * kSecond}}, kBad}, &json), "XF");
}

}  // namespace
}  // namespace mq
