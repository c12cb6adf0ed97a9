// What becomes of claimed messages that cannot be delivered.
#include <gtest/gtest.h>

#include "queue/undeliverable.hpp"

namespace mq {
namespace {

Claimed deliverable() {
  Claimed message;
  message.attempts_left = 1;
  message.expires_at = 11;
  return message;
}

TEST(UndeliverableTest, EachObstacleAloneIsEnough) {
  Batch obstructed(4, deliverable());
  obstructed[0].uncommitted = true;
  obstructed[1].orphan = true;
  obstructed[2].attempts_left = 0;
  obstructed[3].expires_at = 10;
  for (const Claimed& message : obstructed) EXPECT_FALSE(is_deliverable(message, 10));
  EXPECT_TRUE(is_deliverable(deliverable(), 10));
}

TEST(UndeliverableTest, ACancelledMessageIsDeadLetteredWhateverElseItIs) {
  const std::string why = "not wanted";
  Batch cancelled(3, deliverable());
  cancelled[1].uncommitted = true;
  cancelled[2].orphan = true;
  for (Claimed& message : cancelled) {
    message.cancelled = &why;
    EXPECT_FALSE(is_deliverable(message, 0));
  }
  Settlement settlement;
  settle_undeliverable(cancelled, 100, settlement);
  EXPECT_TRUE(settlement.removed.empty());
  EXPECT_TRUE(settlement.snoozes.empty());
  ASSERT_EQ(settlement.dead_letters.size(), 3U);
  for (const DeadLetter& dead_letter : settlement.dead_letters) {
    EXPECT_EQ(dead_letter.reason, "cancelled");
    EXPECT_FALSE(dead_letter.charged);
    EXPECT_FALSE(dead_letter.block || dead_letter.block_as_registered);
    ASSERT_TRUE(dead_letter.error);
    EXPECT_EQ(dead_letter.error->message, why);
    EXPECT_EQ(dead_letter.error->sqlstate, "57014");
  }
}

TEST(UndeliverableTest, RemovesTheUncommittedAndDeadLettersTheOthersUncharged) {
  Claimed uncommitted, exhausted, outside;
  uncommitted.uncommitted = true;
  uncommitted.attempts_left = 5;
  outside.outside = true;
  const Batch undeliverable{uncommitted, exhausted, outside};
  Settlement settlement;
  settle_undeliverable(undeliverable, 0, settlement);

  ASSERT_EQ(settlement.removed.size(), 1U);
  EXPECT_EQ(settlement.removed[0], &undeliverable[0]);
  ASSERT_EQ(settlement.dead_letters.size(), 2U);
  EXPECT_EQ(settlement.dead_letters[0].message, &undeliverable[1]);
  EXPECT_FALSE(settlement.dead_letters[0].error) << "the one of its last failure";
  EXPECT_EQ(settlement.dead_letters[1].message, &undeliverable[2]);
  EXPECT_EQ(settlement.dead_letters[1].error->sqlstate, kLeaseRanOut);
  for (const DeadLetter& dead_letter : settlement.dead_letters) {
    EXPECT_EQ(dead_letter.reason, "exhausted");
    EXPECT_FALSE(dead_letter.charged);
    EXPECT_FALSE(dead_letter.block);
  }
  EXPECT_TRUE(settlement.retries.empty());
  EXPECT_TRUE(settlement.failures.empty());
}

TEST(UndeliverableTest, MessageWhoseLeaseholderIsGoneIsGivenBackUnlessItHasExpired) {
  Batch undeliverable(2);
  for (Claimed& message : undeliverable) {
    message.orphan = true;
    message.attempts_left = 1;
    message.lease = 7;
  }
  undeliverable[1].expires_at = 3;
  Settlement settlement;
  settle_undeliverable(undeliverable, 5, settlement);
  ASSERT_EQ(settlement.snoozes.size(), 1U);
  EXPECT_EQ(settlement.snoozes[0].message, &undeliverable[0]);
  EXPECT_EQ(settlement.snoozes[0].attempt_at, 5);
  ASSERT_EQ(settlement.dead_letters.size(), 1U);
  EXPECT_EQ(settlement.dead_letters[0].message, &undeliverable[1]);
  EXPECT_EQ(settlement.dead_letters[0].reason, "expired");
}

TEST(UndeliverableTest, ExpiredOneIsDeadLetteredUnchargedAndLeavesTheChannelToItsHandler) {
  Claimed message;
  message.attempts_left = 3;
  message.expires_at = 10;
  for (const int attempts_left : {3, 0}) {
    message.attempts_left = attempts_left;
    Settlement settlement;
    const Batch undeliverable{message};
    settle_undeliverable(undeliverable, 10, settlement);
    ASSERT_EQ(settlement.dead_letters.size(), 1U);
    EXPECT_EQ(settlement.dead_letters[0].reason, "expired");
    EXPECT_FALSE(settlement.dead_letters[0].error);
    EXPECT_FALSE(settlement.dead_letters[0].charged);
    EXPECT_TRUE(settlement.dead_letters[0].block_as_registered);
  }
}

TEST(UndeliverableTest, UncommittedMessageIsRemovedThoughItHasExpired) {
  Claimed message;
  message.attempts_left = 3;
  message.uncommitted = true;
  message.expires_at = 10;
  Settlement settlement;
  const Batch undeliverable{message};
  settle_undeliverable(undeliverable, 20, settlement);
  EXPECT_EQ(settlement.removed.size(), 1U);
  EXPECT_TRUE(settlement.dead_letters.empty());
}

}  // namespace
}  // namespace mq
