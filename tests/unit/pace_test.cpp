// Which channel names may share a transaction, and how many messages those get that may not.
#include "worker/pace.hpp"

#include <gtest/gtest.h>

namespace mq {
namespace {

class PaceTest : public testing::Test {
 protected:
  PaceTest() {
    json = add("json", Shape::kJson);
    batch = add("batch", Shape::kBatch);
  }

  const Channel* add(const std::string& name, Shape shape) {
    Handler handler;
    handler.channel_name = name;
    handler.shape = shape;
    handler.batch_size = 500;
    registry.add(handler);
    return registry.find(name);
  }

  Registry registry;
  const Channel* json;   // calls take one message
  const Channel* batch;  // calls take up to 500
  Pace pace;
};

TEST_F(PaceTest, NameThatIsNotKnownIsNotQuickAndGetsOneMessageOrAFirstBatch) {
  EXPECT_FALSE(pace.is_known(*json));
  EXPECT_FALSE(pace.is_quick(*json));
  EXPECT_EQ(pace.apart(*json), 1);
  EXPECT_EQ(pace.apart(*batch), kFirstPace);
}

TEST_F(PaceTest, NoFirstBatchIsLargerThanItsHandlerAllows) {
  Handler few;
  few.channel_name = "few";
  few.shape = Shape::kBatch;
  few.batch_size = 3;
  registry.add(few);
  EXPECT_EQ(pace.apart(*registry.find("few")), 3);
  pace.ran("few", 10, 10);
  EXPECT_EQ(pace.apart(*registry.find("few")), 3);
}

TEST_F(PaceTest, CallsOfFiveMillisecondsAreQuick) {
  pace.ran("json", 10 * kQuickCall, 10);
  EXPECT_TRUE(pace.is_quick(*json));
  pace.ran("json", kQuickCall + 1000, 1);
  EXPECT_FALSE(pace.is_quick(*json));
}

TEST_F(PaceTest, CallOfABatchHandlerTakesAllOfItsMessages) {
  pace.ran("batch", kQuickCall, 500);
  EXPECT_TRUE(pace.is_quick(*batch));
  pace.ran("batch", 4 * kQuickCall, 500);
  EXPECT_FALSE(pace.is_quick(*batch));
}

TEST_F(PaceTest, EachMeasurementCountsForHalf) {
  pace.ran("json", 8'000, 1);
  pace.ran("json", 0, 1);
  EXPECT_TRUE(pace.is_quick(*json));  // 4 ms
  pace.ran("json", 8'000, 1);
  EXPECT_FALSE(pace.is_quick(*json));  // 6 ms
}

TEST_F(PaceTest, NothingIsLearntOfNothingAndTimeThatWentBackIsNone) {
  pace.ran("json", 1'000'000, 0);
  EXPECT_FALSE(pace.is_known(*json));
  pace.ran("json", -5, 1);
  EXPECT_TRUE(pace.is_quick(*json));
}

TEST_F(PaceTest, SlowNameGetsWhatFitsIntoTwentyMillisecondsAndAtLeastOne) {
  pace.ran("json", 10'000, 1);
  EXPECT_EQ(pace.apart(*json), kApart / 10'000);
  pace.yielded("json", kSecond);
  EXPECT_EQ(pace.apart(*json), 1);
}

TEST_F(PaceTest, SlowBatchHandlerGetsWhatFitsIntoASlice) {
  pace.ran("batch", 64 * 10'000, 64);
  EXPECT_FALSE(pace.is_quick(*batch));
  EXPECT_EQ(pace.apart(*batch), kSlice / 10'000);
}

TEST_F(PaceTest, QuickNameGetsNoMoreThanItsBatchSize) {
  pace.ran("json", 0, 100);
  EXPECT_EQ(pace.apart(*json), 500);
}

TEST_F(PaceTest, StoppedCallTookAtLeastThatLong) {
  pace.yielded("json", 50'000);
  EXPECT_TRUE(pace.is_known(*json));
  EXPECT_FALSE(pace.is_quick(*json));
  pace.ran("batch", 500 * 50'000, 500);
  pace.yielded("batch", 10);
  EXPECT_EQ(pace.apart(*batch), kSlice / 50'000);
}

TEST_F(PaceTest, NameWhoseCallsCollideHasOneToATransactionForAMinute) {
  pace.ran("json", 10, 10);
  pace.collided("json", 7);
  EXPECT_FALSE(pace.is_quick(*json));
  EXPECT_EQ(pace.apart(*json), 1);
  pace.forget(7 + kCollides - 1);
  EXPECT_EQ(pace.apart(*json), 1);
  pace.forget(7 + kCollides);
  EXPECT_TRUE(pace.is_quick(*json));
  EXPECT_EQ(pace.apart(*json), 500);
}

TEST_F(PaceTest, LastCollisionCounts) {
  pace.ran("json", 10, 10);
  pace.collided("json", 0);
  pace.collided("json", kCollides - 1);
  pace.forget(kCollides);
  EXPECT_FALSE(pace.is_quick(*json));
}

}  // namespace
}  // namespace mq
