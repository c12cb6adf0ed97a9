// What becomes of the messages of a batch, and of their effects.
#include "dispatch.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "dispatch_fixture.hpp"

namespace mq {
namespace {

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

TEST_F(DispatchTest, DuplicateObjectIsChargedOnlyWithoutCompany) {
  const Message duplicate{.script = {.failures = kAlways, .sqlstate = "42P07"}};
  EXPECT_EQ(run({kGood, duplicate, kGood}, &json), "HOU");
  EXPECT_TRUE(failures.empty());
  start_over();
  EXPECT_EQ(run({duplicate, kGood, duplicate}, &json), "FHO");
  EXPECT_EQ(failures.size(), 1U);
}

TEST_F(DispatchTest, DuplicateObjectInASecondCallOfABatchHandlerRunsThatCallAgain) {
  for (int i = 0; i < 6; ++i) table.send(kGood);
  table.rows.rbegin()->second.script = {.failures = kAlways, .sqlstate = "42710"};
  Handler other = batch;
  run({}, &batch);
  start_over();
  for (int i = 0; i < 6; ++i) table.send(kGood);
  table.rows.rbegin()->second.script = {.failures = kAlways, .sqlstate = "42710"};
  run({}, &batch);
  session.transaction.effects.clear();
  run_again({&other, &other, &other, &batch, &batch, &batch});
  EXPECT_EQ(shown(outcomes), "HHHOOO");
}

TEST_F(DispatchTest, FailureIsChargedWithItsOwnErrorThoughAnotherFailsAsItRunsAgain) {
  table.send({.script = {.sqlstate = "23505"}});
  table.send({.script = {.failures = kAlways, .sqlstate = "22012"}});
  session.caller.during = [&] {  // the first works once, and never again
    if (session.caller.calls.size() == 2) table.rows.begin()->second.script.failures = kAlways;
  };
  EXPECT_EQ(run({}, &json), "FF");
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
  table.hash_collides = true;
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
  run_again({&batch, &batch, &other, &json, &json, &json});
  ASSERT_GE(session.caller.calls.size(), 4U);
  EXPECT_EQ(session.caller.calls[0], (std::vector<Uuid>{claimed[0].id, claimed[1].id}));
  EXPECT_EQ(session.caller.calls[1], (std::vector<Uuid>{claimed[2].id}));
  EXPECT_EQ(session.caller.calls[2], (std::vector<Uuid>{claimed[3].id}));
  EXPECT_EQ(session.caller.calls[3], (std::vector<Uuid>{claimed[4].id}));
  EXPECT_EQ(shown(outcomes), "HHHHHH");
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

TEST_F(DispatchTest, BatchIsCalledOnceWhenItsWishesStopNothingInIt) {
  const Message snoozing{.channel_args = "x", .ordered = true, .script = {.snoozes = kAlways}};
  EXPECT_EQ(run({snoozing, {.channel_args = "y", .ordered = true}, kGood}, &batch), "SHH");
  EXPECT_EQ(session.caller.calls.size(), 1U);
  start_over();
  EXPECT_EQ(run({kSnoozing, {.ordered = true}}, &batch), "SH");
  EXPECT_EQ(session.caller.calls.size(), 1U);
}

TEST_F(DispatchTest, WishThatCutABatchIsForgottenUnlessItComesAgain) {
  table.send(3, {.ordered = true});
  table.rows.begin()->second.script.snoozes = kAlways;
  session.caller.during = [&] {
    if (session.caller.calls.size() == 2) table.rows.begin()->second.script.snoozes = 0;
  };
  EXPECT_EQ(run({}, &batch), "HHH");
}

TEST_F(DispatchTest, BatchIsCutWhateverTheSlice) {
  const Message good{.ordered = true, .script = {.cost = kSecond}};
  const Message snoozing{.ordered = true, .script = {.snoozes = kAlways, .cost = kSecond}};
  EXPECT_EQ(run({good, snoozing, good}, &batch, kMillisecond), "HSU");
}

}  // namespace
}  // namespace mq
