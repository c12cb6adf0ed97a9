#include "pg/trouble.hpp"

#include <gtest/gtest.h>

namespace mq {
namespace {

constexpr Micros kNow = 1000 * kSecond;

TEST(Backoff, GrowsToEightSecondsAndEndsWithASuccess) {
  Backoff backoff;
  EXPECT_EQ(backoff.left(kNow), 0);
  Micros now = kNow;
  for (const int seconds : {1, 2, 4, 8, 8}) {
    backoff.failed(now);
    EXPECT_EQ(backoff.left(now), seconds * kSecond);
    now += seconds * kSecond;
    EXPECT_EQ(backoff.left(now), 0);
  }
  backoff.succeeded();
  EXPECT_EQ(backoff.failures(), 0);
}

TEST(TroubleLog, IsToldOfEachKindOnceAndThenHowOften) {
  TroubleLog log;
  const Error full("53100", "disk full");
  EXPECT_EQ(log.line(full, kNow), "disk full (SQLSTATE 53100)");
  EXPECT_EQ(log.line(full, kNow + kSecond), std::nullopt);
  EXPECT_EQ(log.line({"23514", "refused"}, kNow + kSecond), "refused (SQLSTATE 23514)");
  EXPECT_EQ(log.line(full, kNow + 60 * kSecond), "disk full (SQLSTATE 53100), repeated 2 times");
  EXPECT_EQ(log.line(full, kNow + 120 * kSecond), std::nullopt);
  EXPECT_EQ(log.line(full, kNow + 180 * kSecond), "disk full (SQLSTATE 53100), repeated 2 times");
}

TEST(TroubleLog, IsNotFilledByMessagesThatDiffer) {
  TroubleLog log;
  std::size_t lines = 0;
  for (int i = 0; i < 10'000; ++i) lines += log.line({"23505", "key " + std::to_string(i)}, kNow).has_value() ? 1 : 0;
  EXPECT_LE(lines, TroubleLog::kMostKinds + 1);
}

TEST(TroubleLog, ForgetsWhatIsLongOver) {
  TroubleLog log;
  const Error error("53100", "disk full");
  (void)log.line(error, kNow);
  EXPECT_EQ(log.line(error, kNow + TroubleLog::kForget + 1), "disk full (SQLSTATE 53100)");
}

}  // namespace
}  // namespace mq
