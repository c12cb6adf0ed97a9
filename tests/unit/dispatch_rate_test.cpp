// Dispatch where a rate lets only some calls begin.
#include <gtest/gtest.h>

#include "dispatch_fixture.hpp"

namespace mq {
namespace {

TEST_F(DispatchTest, CallsEndWhenNoMoreMayBegin) {
  caller.tokens = 2;
  EXPECT_EQ(run({kGood, kGood, kGood, kGood}, &json), "HHTT");
  EXPECT_EQ(caller.calls.size(), 2U);
}

TEST_F(DispatchTest, OthersAreCalledPastAThrottledMessage) {
  caller.throttled = {1};
  EXPECT_EQ(run({kGood, kGood, kGood}, &json), "HTH");
  EXPECT_EQ(run({kGood, kGood, kGood}, &batch), "HTH");
  EXPECT_EQ(caller.calls, (std::vector<std::vector<std::int64_t>>{{0}, {2}}));
}

TEST_F(DispatchTest, ABatchHandlerGetsAsManyAsMayBegin) {
  caller.tokens = 3;
  EXPECT_EQ(run({kGood, kGood, kGood, kGood, kGood}, &batch), "HHHTT");
  EXPECT_EQ(caller.calls, (std::vector<std::vector<std::int64_t>>{{0, 1, 2}}));
}

TEST_F(DispatchTest, NothingIsCalledBehindAThrottledMessageOfAnOrderedChannel) {
  const Message ordered{.channel_args = "a", .ordered = true};
  caller.throttled = {1};
  EXPECT_EQ(run({ordered, ordered, ordered, kGood}, &json), "HTUH");
  EXPECT_EQ(run({ordered, ordered, ordered, kGood}, &batch), "HTUH");
}

// A call that is made again in the batch, since its neighbour failed, is not asked for again.
TEST_F(DispatchTest, RepeatedCallsDoNotCount) {
  caller.tokens = 3;
  EXPECT_EQ(run({kGood, kBad, kGood}, &json), "HFH");
  EXPECT_EQ(caller.calls.size(), 4U);
  caller.tokens = 2;
  EXPECT_EQ(run({kGood, kBad, kGood}, &json), "HFT");
}

// Else the batch would be tried for ever, and the message that fails never be charged.
TEST_F(DispatchTest, AFailingBatchIsTakenApartWithoutFurtherTokens) {
  caller.tokens = 2;
  EXPECT_EQ(run({kGood, kBad}, &batch), "HF");
  caller.tokens = 4;
  EXPECT_EQ(run({kBad, kGood, kGood, kGood, kGood}, &batch), "FHHHT");
}

TEST_F(DispatchTest, WithoutATokenNothingIsCalled) {
  caller.tokens = 0;
  EXPECT_EQ(run({kGood, kBad, kSnoozing}, &json), "TTT");
  EXPECT_TRUE(caller.calls.empty());
}

}  // namespace
}  // namespace mq
