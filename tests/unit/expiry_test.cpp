// Messages that expire: never handed to a handler then or later, dead on time, never interrupted.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "claim.hpp"
#include "dispatch_fixture.hpp"
#include "policy.hpp"
#include "worker_fixture.hpp"

namespace mq {
namespace {

const Message kSlow{.ordered = true, .script = {.cost = 2 * kSecond}};
const Message kShort{.ordered = true, .expires = kSecond};
const Message kOrdered{.ordered = true};

// --- Dispatch ---

TEST_F(DispatchTest, DoesNotCallForWhatExpiredWhileItWaitedForItsTurn) {
  EXPECT_EQ(run({{.script = {.cost = kSecond}}, {.expires = kSecond}, {.expires = kSecond + 1}, kGood}, &json), "HXHH");
  EXPECT_EQ(calls(1), 0);
}

TEST_F(DispatchTest, NothingRunsBehindAnExpiredMessageOfAnOrderedChannel) {
  EXPECT_EQ(run({kSlow, kShort, kOrdered, kGood}, &json), "HXUH");
}

TEST_F(DispatchTest, MessageThatExpiresWhileItRunsIsHandled) {
  EXPECT_EQ(run({{.expires = kSecond, .script = {.cost = 5 * kSecond}}, kGood}, &json), "HH");
  start_over();
  EXPECT_EQ(run({{.expires = kSecond, .script = {.cost = 5 * kSecond}}, {.expires = kSecond}}, &batch), "HH");
}

TEST_F(DispatchTest, BatchEndsBeforeWhatHasExpired) {
  Handler other = json;
  for (const Message& message : {kSlow, kGood, Message{.expires = kSecond}, kGood}) table.send(message);
  session.transaction.begin();
  session.queue.oldest("c", clock.now(), std::nullopt, 10, claimed);
  EXPECT_EQ(run_again({&other, &batch, &batch, &batch}), "HHXH");
  EXPECT_EQ(session.caller.calls.size(), 3U);
}

TEST_F(DispatchTest, WhatExpiredStaysSoWhenOthersRunAgain) {
  EXPECT_EQ(run({kSlow, kShort, kGood, kBad, kGood}, &json), "HXHFH");
  EXPECT_EQ(calls(0), 2);
  EXPECT_EQ(calls(1), 0);
}

TEST_F(DispatchTest, WhatRanInVainAndExpiredMeanwhileDoesNotRunAgain) {
  EXPECT_EQ(run({{.expires = kSecond, .script = {.cost = 2 * kSecond}}, kBad}, &json), "XF");
}

// --- Claim ---

class ExpiryTest : public testing::Test {
 protected:
  Claim claim() {
    session.transaction.rollback();
    session.transaction.begin();
    return claimer.claim({{"c", 1000}}, 100, true);
  }

  FakeClock clock;
  Table table{clock};
  Session session{table, clock};
  Claimer claimer{session.queue, clock};
};

TEST_F(ExpiryTest, ClaimLeavesOverWhatHasExpired) {
  table.send({.expires = kSecond});
  table.send({.expires = kSecond + 1});
  clock.time += kSecond;
  const Claim taken = claim();
  ASSERT_EQ(taken.leftovers.size(), 1U);
  EXPECT_EQ(taken.leftovers[0].place, 1);
  ASSERT_EQ(taken.messages.size(), 1U);
  EXPECT_EQ(taken.messages[0].place, 2);
}

TEST_F(ExpiryTest, RunEndsBeforeWhatHasExpired) {
  table.send(kOrdered);
  table.send(kShort);
  table.send(kOrdered);
  clock.time += kSecond;
  const Claim taken = claim();
  EXPECT_EQ(taken.messages.size(), 1U);
  EXPECT_TRUE(taken.leftovers.empty());
}

TEST(DisposeExpired, BuriesUnchargedAndLeavesTheChannelToItsHandler) {
  Claimed message;
  message.attempts_left = 3;
  message.expires_at = 10;
  for (const int attempts_left : {3, 0}) {
    message.attempts_left = attempts_left;
    Settlement settlement;
    const Batch leftovers{message};
    dispose(leftovers, 10, settlement);
    ASSERT_EQ(settlement.burials.size(), 1U);
    EXPECT_EQ(settlement.burials[0].reason, "expired");
    EXPECT_FALSE(settlement.burials[0].error);
    EXPECT_FALSE(settlement.burials[0].charged);
    EXPECT_TRUE(settlement.burials[0].block_as_registered);
  }
}

TEST(DisposeExpired, UncommittedMessageIsRemovedThoughItHasExpired) {
  Claimed message;
  message.attempts_left = 3;
  message.uncommitted = true;
  message.expires_at = 10;
  Settlement settlement;
  const Batch leftovers{message};
  dispose(leftovers, 20, settlement);
  EXPECT_EQ(settlement.removed.size(), 1U);
  EXPECT_TRUE(settlement.burials.empty());
}

// --- Policy ---

TEST(ExpiryPolicy, AttemptThatFailsAfterTheExpiryIsTheLast) {
  Claimed message;
  Handler handler;
  for (const int attempts_left : {5, 1}) {
    message.attempts_left = attempts_left;
    message.expires_at = 100;
    handler.block_on_dead = attempts_left == 1;
    Settlement settlement;
    settle_failure({&message, Error("22012", "division by zero"), 0}, &handler, 100, 0.0, settlement);
    EXPECT_EQ(settlement.failures.size(), 1U);
    EXPECT_TRUE(settlement.retries.empty());
    ASSERT_EQ(settlement.burials.size(), 1U);
    EXPECT_EQ(settlement.burials[0].reason, "expired");
    EXPECT_EQ(settlement.burials[0].error->sqlstate, "22012");
    EXPECT_TRUE(settlement.burials[0].charged);
    EXPECT_EQ(settlement.burials[0].block, handler.block_on_dead);
  }
}

TEST(ExpiryPolicy, RetriesAndSnoozesEndAtTheExpiry) {
  Claimed message;
  Handler handler;
  handler.max_backoff = 60 * kSecond;
  message.attempts_left = 5;
  message.retry_backoff = 10 * kSecond;
  for (const Micros expires_at : {5 * kSecond, 20 * kSecond, kNever}) {
    message.expires_at = expires_at;
    Settlement settlement;
    settle_failure({&message, Error("22012", "division by zero"), 0}, &handler, 0, 0.0, settlement);
    settle_wish(message, {Wish::kSnooze, message.id, 10 * kSecond, ""}, handler.block_on_dead, 0, settlement);
    EXPECT_EQ(settlement.retries.at(0).attempt_at, std::min(10 * kSecond, expires_at));
    EXPECT_EQ(settlement.retries[0].retry_backoff, 20 * kSecond);
    EXPECT_EQ(settlement.snoozes.at(0).attempt_at, std::min(10 * kSecond, expires_at));
  }
}

}  // namespace
}  // namespace mq

// --- Worker ---

namespace mq::fake {
namespace {

class ExpiryWorkerTest : public WorkerTest {
 protected:
  std::string reason(const Uuid& id) const {
    for (const Dead& letter : table.dead)
      if (letter.id == id) return letter.reason;
    return {};
  }
};

TEST_F(ExpiryWorkerTest, BuriesOnTimeWhatNobodyClaims) {
  add_handler("c");
  const Uuid id = table.send({.channel_name = "no handler", .expires = 3 * kSecond});
  worker.run();
  EXPECT_EQ(reason(id), "expired");
  EXPECT_EQ(host.waits, (std::vector<Micros>{3 * kSecond, 0}));
}

TEST_F(ExpiryWorkerTest, WhatIsScheduledForLaterOrWaitsForARetryDiesAtItsExpiry) {
  add_handler("c");
  const Uuid late = table.send({.delay = 60 * kSecond, .expires = 2 * kSecond});
  const Uuid retried = table.send({.retry_backoff = 60 * kSecond, .expires = 2 * kSecond, .script = {.failures = 1}});
  const Micros start = clock.time;
  worker.run();
  EXPECT_EQ(reason(late), "expired");
  EXPECT_EQ(reason(retried), "expired");
  EXPECT_EQ(table.failed(retried), 1);
  EXPECT_TRUE(table.effects.empty());
  EXPECT_EQ(clock.time, start + 2 * kSecond);
}

TEST_F(ExpiryWorkerTest, WhatIsLockedIsBuriedWhenItIsLetGo) {
  add_handler("c");
  const Uuid id = table.send({.channel_name = "other", .expires = kSecond});
  Session rival(table, clock);
  rival.transaction.begin();
  Batch theirs;
  rival.queue.oldest("other", clock.now(), std::nullopt, 1, theirs);
  host.wants_end = [&] {
    if (clock.time >= 800'000'010 * kSecond) rival.transaction.rollback();
    return table.rows.empty();
  };
  host.patience = 1000;
  worker.run();
  EXPECT_EQ(reason(id), "expired");
}

TEST_F(ExpiryWorkerTest, LooksForWhatExpiresHoweverBusyItIs) {
  add_handler("c");
  table.send(60, {.script = {.cost = 100 * kMillisecond}});
  const Uuid id = table.send({.channel_name = "no handler", .expires = 2 * kSecond});
  const Micros start = clock.time;
  Micros died = 0;
  host.wants_end = [&] {
    if (died == 0 && !table.dead.empty()) died = clock.time;
    return table.rows.empty();
  };
  worker.run();
  EXPECT_EQ(reason(id), "expired");
  EXPECT_GE(died, start + 2 * kSecond);
  EXPECT_LE(died, start + 4 * kSecond);
}

TEST_F(ExpiryWorkerTest, LooksNoMoreOftenThanItMustWhileItIsBusy) {
  add_handler("c");
  table.send(100, {.script = {.cost = 100 * kMillisecond}});
  worker.run();
  EXPECT_LE(host.expire_steps, 12);
}

TEST_F(ExpiryWorkerTest, ChannelGoesOnBehindAnExpiredMessage) {
  add_handler("c");
  const Uuid first = table.send({.ordered = true, .delay = 10 * kSecond});
  const Uuid expired = table.send({.ordered = true, .expires = kSecond});
  const Uuid last = table.send({.ordered = true});
  worker.run();
  EXPECT_EQ(reason(expired), "expired");
  EXPECT_EQ(table.effects, (std::vector<Uuid>{first, last}));
}

TEST_F(ExpiryWorkerTest, ChannelWaitsBehindAnExpiredMessageWhereItsHandlerSaysSo) {
  add_handler("c").block_on_dead = true;
  table.blocks_as_registered = [](const Row&) { return true; };
  const Uuid first = table.send({.ordered = true, .delay = 3 * kSecond});
  const Uuid expired = table.send({.ordered = true, .expires = kSecond});
  const Uuid last = table.send({.ordered = true});
  worker.run();
  EXPECT_EQ(reason(expired), "expired");
  EXPECT_EQ(table.effects, (std::vector<Uuid>{first}));
  EXPECT_NE(table.find(last), nullptr);
}

TEST_F(ExpiryWorkerTest, WhatExpiredInTheMiddleOfABatchIsBuriedWithIt) {
  add_handler("c");
  table.send({.script = {.cost = 150 * kMillisecond}});
  const Uuid id = table.send({.expires = 100 * kMillisecond});
  EXPECT_EQ(run_until_empty(), 1);
  EXPECT_EQ(reason(id), "expired");
  EXPECT_EQ(history.size(), 1U);
}

TEST_F(ExpiryWorkerTest, SweepsOnWhileThereIsMoreToDoAndNothingElse) {
  add_handler("c");
  table.send({.delay = 3 * kSecond});
  host.on_sweep = [&] { return host.sweeps < 7; };
  worker.run();
  EXPECT_EQ(host.sweeps, 7);
}

}  // namespace
}  // namespace mq::fake
