#include "handlers/policy.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "queue/backoff.hpp"

namespace mq {
namespace {

constexpr Micros kNow = 800'000'000 * kSecond;

class PolicyTest : public testing::Test {
 protected:
  PolicyTest() {
    message.attempts = 0;
    message.attempts_left = 5;
    message.retry_backoff = kSecond;
    handler.max_backoff = 60 * kSecond;
  }

  void fail(const Handler* by, double random = 0.0) {
    Error error("22012", "division by zero", "detail", "hint");
    error.context = "context";
    settle_failure({&message, error, 3 * kSecond}, by, kNow, random, settlement);
  }

  Claimed message;
  Handler handler;
  Settlement settlement;
};

TEST_F(PolicyTest, FailedAttemptIsRecordedAsItWas) {
  fail(&handler);
  ASSERT_EQ(settlement.failures.size(), 1U);
  EXPECT_EQ(settlement.failures[0].message, &message);
  EXPECT_EQ(settlement.failures[0].error.sqlstate, "22012");
  EXPECT_EQ(settlement.failures[0].error.context, "context");
  EXPECT_EQ(settlement.failures[0].duration, 3 * kSecond);
}

TEST_F(PolicyTest, IsTriedAgainAfterItsBackoffAndNextTimeAfterTwice) {
  fail(&handler);
  ASSERT_EQ(settlement.retries.size(), 1U);
  EXPECT_TRUE(settlement.dead_letters.empty());
  EXPECT_TRUE(settlement.removed.empty());
  EXPECT_EQ(settlement.retries[0].message, &message);
  EXPECT_EQ(settlement.retries[0].attempt_at, kNow + kSecond);
  EXPECT_EQ(settlement.retries[0].retry_backoff, 2 * kSecond);
}

TEST_F(PolicyTest, JitterPutsOffTheRetryButDoesNotGrowTheBackoff) {
  fail(&handler, 0.5);
  EXPECT_EQ(settlement.retries[0].attempt_at, kNow + kSecond + kSecond / 20);
  EXPECT_EQ(settlement.retries[0].retry_backoff, 2 * kSecond);
}

TEST_F(PolicyTest, HandlerBoundsTheBackoff) {
  message.retry_backoff = 3600 * kSecond;
  fail(&handler);
  EXPECT_EQ(settlement.retries[0].attempt_at, kNow + 60 * kSecond);
  EXPECT_EQ(settlement.retries[0].retry_backoff, 60 * kSecond);
}

TEST_F(PolicyTest, WithoutAHandlerTheBackoffIsBoundedByAnHour) {
  message.retry_backoff = 7200 * kSecond;
  fail(nullptr);
  EXPECT_EQ(settlement.retries[0].attempt_at, kNow + 3600 * kSecond);
  EXPECT_EQ(settlement.retries[0].retry_backoff, 3600 * kSecond);
}

TEST_F(PolicyTest, BackoffChangedByHandDoesNoHarm) {
  handler.max_backoff = std::numeric_limits<Micros>::max();
  message.retry_backoff = std::numeric_limits<Micros>::max();
  fail(&handler, 0.999);
  EXPECT_GE(settlement.retries[0].attempt_at, kNow + kBackoffCeiling);
  EXPECT_LE(settlement.retries[0].attempt_at, kNow + kBackoffCeiling / 10 * 11);
  message.retry_backoff = std::numeric_limits<Micros>::min();
  fail(&handler, 0.999);
  EXPECT_EQ(settlement.retries[1].attempt_at, kNow);
  EXPECT_EQ(settlement.retries[1].retry_backoff, 0);
}

TEST_F(PolicyTest, LastAttemptEndsAmongTheDead) {
  message.attempts = 4;
  message.attempts_left = 1;
  fail(&handler);
  EXPECT_TRUE(settlement.retries.empty());
  EXPECT_EQ(settlement.failures.size(), 1U);
  ASSERT_EQ(settlement.dead_letters.size(), 1U);
  EXPECT_EQ(settlement.dead_letters[0].message, &message);
  EXPECT_EQ(settlement.dead_letters[0].reason, "exhausted");
  EXPECT_EQ(settlement.dead_letters[0].error->sqlstate, "22012");
  EXPECT_TRUE(settlement.dead_letters[0].charged);
  EXPECT_FALSE(settlement.dead_letters[0].block);
}

TEST_F(PolicyTest, LastButOneAttemptIsTriedAgain) {
  message.attempts_left = 2;
  fail(&handler);
  EXPECT_EQ(settlement.retries.size(), 1U);
  EXPECT_TRUE(settlement.dead_letters.empty());
}

TEST_F(PolicyTest, HandlerThatBlocksOnTheDeadHasTheChannelWait) {
  message.attempts_left = 1;
  handler.block_on_dead = true;
  fail(&handler);
  EXPECT_TRUE(settlement.dead_letters[0].block);
}

TEST_F(PolicyTest, WithoutAHandlerTheDeadDoNotBlock) {
  message.attempts_left = 1;
  fail(nullptr);
  EXPECT_FALSE(settlement.dead_letters[0].block);
}

TEST_F(PolicyTest, AttemptsChangedByHandEndAmongTheDead) {
  message.attempts_left = -3;
  fail(&handler);
  EXPECT_TRUE(settlement.retries.empty());
  EXPECT_EQ(settlement.dead_letters.size(), 1U);
}

TEST_F(PolicyTest, FirstCrashOfTheServerIsAFailedAttempt) {
  settle_aborted_call(message, {.message = message.id, .reason = AbortReason::kCrash}, 0, &handler, kNow, 0.0,
                      settlement);
  ASSERT_EQ(settlement.failures.size(), 1U);
  EXPECT_EQ(settlement.failures[0].error.sqlstate, "57P02");
  ASSERT_EQ(settlement.retries.size(), 1U);
  EXPECT_EQ(settlement.retries[0].attempt_at, kNow + kSecond);
  EXPECT_TRUE(settlement.dead_letters.empty());
}

TEST_F(PolicyTest, SecondCrashOfTheServerIsTheLast) {
  for (const bool block : {false, true}) {
    handler.block_on_dead = block;
    settlement = {};
    settle_aborted_call(message, {.message = message.id, .reason = AbortReason::kCrash}, 1, &handler, kNow, 0.0,
                        settlement);
    EXPECT_EQ(settlement.failures.size(), 1U);
    EXPECT_TRUE(settlement.retries.empty());
    ASSERT_EQ(settlement.dead_letters.size(), 1U);
    EXPECT_EQ(settlement.dead_letters[0].reason, "crashed");
    EXPECT_EQ(settlement.dead_letters[0].error->sqlstate, "57P02");
    EXPECT_EQ(settlement.dead_letters[0].block, block);
    EXPECT_TRUE(settlement.dead_letters[0].charged);
  }
}

TEST_F(PolicyTest, OnlyACrashThatIsProvenIsRecordedAsOne) {
  for (const AbortReason reason : {AbortReason::kCrash, AbortReason::kKilled, AbortReason::kOverrun,
                                   AbortReason::kFatal, AbortReason::kRunFailed}) {
    settlement = {};
    settle_aborted_call(message, {.message = message.id, .reason = reason}, 0, &handler, kNow, 0.0, settlement);
    ASSERT_EQ(settlement.failures.size(), 1U);
    EXPECT_EQ(settlement.failures[0].crash, reason == AbortReason::kCrash);
    EXPECT_EQ(settlement.retries.size(), 1U);
  }
}

TEST_F(PolicyTest, KilledProcessesEndTheMessageOnlyWithItsRetries) {
  const AbortedCall killed{.message = message.id, .reason = AbortReason::kKilled};
  settle_aborted_call(message, killed, 7, &handler, kNow, 0.0, settlement);
  EXPECT_TRUE(settlement.dead_letters.empty());
  message.attempts_left = 1;
  settle_aborted_call(message, killed, 7, &handler, kNow, 0.0, settlement);
  ASSERT_EQ(settlement.dead_letters.size(), 1U);
  EXPECT_EQ(settlement.dead_letters[0].reason, "exhausted");
}

TEST_F(PolicyTest, CrashOnTheLastAttemptExhaustsTheMessage) {
  message.attempts_left = 1;
  settle_aborted_call(message, {.message = message.id, .reason = AbortReason::kCrash}, 0, nullptr, kNow, 0.0,
                      settlement);
  ASSERT_EQ(settlement.dead_letters.size(), 1U);
  EXPECT_EQ(settlement.dead_letters[0].reason, "exhausted");
}

TEST_F(PolicyTest, CrashWithoutAHandlerDoesNotBlock) {
  settle_aborted_call(message, {.message = message.id, .reason = AbortReason::kCrash}, 1, nullptr, kNow, 0.0,
                      settlement);
  EXPECT_FALSE(settlement.dead_letters.at(0).block);
}

TEST_F(PolicyTest, HandlerThatIgnoredItsTimeLimitHasNotCrashedTheServer) {
  settle_aborted_call(message, {.message = message.id, .reason = AbortReason::kOverrun}, 5, &handler, kNow, 0.0,
                      settlement);
  ASSERT_EQ(settlement.failures.size(), 1U);
  EXPECT_EQ(settlement.failures[0].error.sqlstate, "57014");
  EXPECT_EQ(settlement.retries.size(), 1U);
  EXPECT_TRUE(settlement.dead_letters.empty());
}

TEST_F(PolicyTest, HandlerThatEndedItsWorkerHasNotCrashedTheServer) {
  settle_aborted_call(message, {.message = message.id, .reason = AbortReason::kFatal}, 5, &handler, kNow, 0.0,
                      settlement);
  ASSERT_EQ(settlement.failures.size(), 1U);
  EXPECT_EQ(settlement.failures[0].error.sqlstate, "57P01");
  EXPECT_EQ(settlement.retries.size(), 1U);
  EXPECT_TRUE(settlement.dead_letters.empty());
}

TEST_F(PolicyTest, SnoozedMessageComesAgainAfterItsDelayUncharged) {
  settle_disposition(message, {Disposition::kSnooze, message.id, 7 * kSecond, ""}, handler.block_on_dead, kNow,
                     settlement);
  ASSERT_EQ(settlement.snoozes.size(), 1U);
  EXPECT_EQ(settlement.snoozes[0].message, &message);
  EXPECT_EQ(settlement.snoozes[0].attempt_at, kNow + 7 * kSecond);
  EXPECT_TRUE(settlement.retries.empty());
  EXPECT_TRUE(settlement.failures.empty());
  EXPECT_TRUE(settlement.dead_letters.empty());
}

TEST_F(PolicyTest, DiscardedMessageIsDeadForTheReasonGiven) {
  for (const bool block : {false, true}) {
    handler.block_on_dead = block;
    settlement = {};
    settle_disposition(message, {Disposition::kDiscard, message.id, 0, "out of stock"}, handler.block_on_dead, kNow,
                       settlement);
    ASSERT_EQ(settlement.dead_letters.size(), 1U);
    EXPECT_EQ(settlement.dead_letters[0].message, &message);
    EXPECT_EQ(settlement.dead_letters[0].reason, "discarded");
    EXPECT_EQ(settlement.dead_letters[0].error->message, "out of stock");
    EXPECT_EQ(settlement.dead_letters[0].block, block);
    EXPECT_TRUE(settlement.dead_letters[0].charged);
    EXPECT_TRUE(settlement.failures.empty());
  }
}

TEST_F(PolicyTest, FailuresAreKeptOfTheFirstAttemptsAndThenAtPowersOfTwo) {
  for (const int attempt : {0, 1, 2, 3, 4, 5, 8, 16, 64, 1 << 30}) EXPECT_TRUE(keeps_failure(attempt)) << attempt;
  for (const int attempt : {6, 7, 9, 15, 17, 63, std::numeric_limits<int>::max()})
    EXPECT_FALSE(keeps_failure(attempt)) << attempt;
}

TEST_F(PolicyTest, WithoutABackoffFailuresBecomeRarerAllTheSame) {
  message.retry_backoff = 0;
  message.attempts_left = 1000;
  const auto wait_after = [&](int attempts) {
    message.attempts = attempts - 1;
    fail(&handler);
    return settlement.retries.back().attempt_at - kNow;
  };
  EXPECT_EQ(wait_after(1), 0);
  EXPECT_EQ(wait_after(4), 0);
  EXPECT_EQ(wait_after(5), kSecond / 10);
  EXPECT_EQ(wait_after(6), kSecond / 5);
  EXPECT_EQ(wait_after(8), kSecond * 8 / 10);
  EXPECT_EQ(wait_after(9), kSecond);
  EXPECT_EQ(wait_after(std::numeric_limits<int>::max()), kSecond);
  EXPECT_EQ(settlement.retries.back().retry_backoff, 0);
}

TEST_F(PolicyTest, LongerBackoffsAreAsTheyWere) {
  message.retry_backoff = 2 * kSecond;
  message.attempts = 20;
  fail(&handler, 0.5);
  EXPECT_EQ(settlement.retries[0].attempt_at, kNow + 2 * kSecond + kSecond / 10);
}

// --- Sharing a transaction ---

TEST(SharingPolicy, ErrorsThatCallsOfATransactionMayCauseEachOther) {
  for (const char* state : {"23505", "25001", "40001", "54000", "55P03", "42P03", "42P07", "42710", "42723"})
    EXPECT_TRUE(may_come_of_sharing(Error(state, ""))) << state;
  for (const char* state : {"22012", "P0001", "42P01", "57014", "53100", ""})
    EXPECT_FALSE(may_come_of_sharing(Error(state, ""))) << state;
}

// --- Expiry ---

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
    ASSERT_EQ(settlement.dead_letters.size(), 1U);
    EXPECT_EQ(settlement.dead_letters[0].reason, "expired");
    EXPECT_EQ(settlement.dead_letters[0].error->sqlstate, "22012");
    EXPECT_TRUE(settlement.dead_letters[0].charged);
    EXPECT_EQ(settlement.dead_letters[0].block, handler.block_on_dead);
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
    settle_disposition(message, {Disposition::kSnooze, message.id, 10 * kSecond, ""}, handler.block_on_dead, 0,
                       settlement);
    EXPECT_EQ(settlement.retries.at(0).attempt_at, std::min(10 * kSecond, expires_at));
    EXPECT_EQ(settlement.retries[0].retry_backoff, 20 * kSecond);
    EXPECT_EQ(settlement.snoozes.at(0).attempt_at, std::min(10 * kSecond, expires_at));
  }
}

}  // namespace
}  // namespace mq
