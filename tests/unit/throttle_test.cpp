#include "shmem/throttle.hpp"

#include <gtest/gtest.h>

namespace mq {
namespace {

constexpr Micros kNow = 1000 * kSecond;

TEST(Throttle, IsOffUntilThereIsAConflict) {
  Throttle throttle;
  throttle.grow(kNow, 8);
  EXPECT_TRUE(throttle.is_off());
}

TEST(Throttle, FirstGivesTheChannelToOneWorkerWithBatchesAsLargeAsEver) {
  Throttle throttle;
  throttle.conflict(kNow - kSecond, kNow, 500);
  EXPECT_EQ(throttle.workers, 1);
  EXPECT_EQ(throttle.batch, kUnthrottled);
}

TEST(Throttle, BatchesThatBeganBeforeItDoNotShrinkItFurther) {
  Throttle throttle;
  throttle.conflict(kNow - kSecond, kNow, 500);
  for (int i = 1; i < 8; ++i) throttle.conflict(kNow - kSecond, kNow + i, 500);
  EXPECT_EQ(throttle.batch, kUnthrottled);
}

TEST(Throttle, ConflictsWithOneWorkerShrinkTheBatchesToOneMessage) {
  Throttle throttle;
  Micros now = kNow;
  throttle.conflict(now - kSecond, now, 500);
  for (const int batch : {62, 7, 1, 1}) {
    now += kSecond;
    throttle.conflict(now, now, 500);
    EXPECT_EQ(throttle.batch, batch);
    EXPECT_EQ(throttle.workers, 1);
  }
}

TEST(Throttle, GrowsAgainStepByStepUntilItIsOff) {
  Throttle throttle;
  throttle.conflict(kNow, kNow, 500);
  throttle.conflict(kNow + 1, kNow + 1, 500);
  ASSERT_EQ(throttle.batch, 62);
  Micros now = kNow + 1;
  int steps = 0;
  for (; !throttle.is_off() && steps < 100; ++steps) {
    throttle.grow(now + throttle.calm - 1, 4);
    EXPECT_LE(throttle.workers, 4) << "grew too early";
    now += throttle.calm;
    throttle.grow(now, 4);
  }
  EXPECT_EQ(steps, 2 + 1 + 3);  // 62, 496, 3968 is none; then 2, 3 and 4 workers
}

TEST(Throttle, WaitsLongerEachTimeThatConflictsComeBack) {
  Throttle throttle;
  Micros now = kNow;
  Micros before = 0;
  for (int i = 0; i < 12; ++i) {
    throttle.conflict(now, now, 500);
    EXPECT_GE(throttle.calm, before);
    before = throttle.calm;
    now = throttle.grows_at;
    throttle.grow(now, 8);
  }
  EXPECT_EQ(throttle.calm, kLongestCalm);
}

TEST(Throttle, GrowsThoughTheClockWentBack) {
  Throttle throttle;
  throttle.conflict(kNow, kNow, 500);
  throttle.grow(kNow - 3600 * kSecond, 8);
  EXPECT_EQ(throttle.workers, 2);
}

}  // namespace
}  // namespace mq
