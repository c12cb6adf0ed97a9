#include "queue/backoff.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <random>
#include <vector>

namespace mq {
namespace {

constexpr Micros kLeast = std::numeric_limits<Micros>::min();
constexpr Micros kMost = std::numeric_limits<Micros>::max();
constexpr double kAlmostOne = 0x1.fffffffffffffp-1;

TEST(Backoff, IsBroughtIntoItsBounds) {
  EXPECT_EQ(bounded_backoff(5 * kSecond, 60 * kSecond), 5 * kSecond);
  EXPECT_EQ(bounded_backoff(61 * kSecond, 60 * kSecond), 60 * kSecond);
  EXPECT_EQ(bounded_backoff(-1, 60 * kSecond), 0);
  EXPECT_EQ(bounded_backoff(kLeast, 60 * kSecond), 0);
  EXPECT_EQ(bounded_backoff(5 * kSecond, -1), 0);
}

TEST(Backoff, NeverPassesTheCeilingOfAllWhateverTheHandlerAllows) {
  EXPECT_EQ(bounded_backoff(kMost, kMost), kBackoffCeiling);
  EXPECT_EQ(doubled_backoff(kMost, kMost), kBackoffCeiling);
  EXPECT_EQ(doubled_backoff(kBackoffCeiling, kMost), kBackoffCeiling);
}

TEST(Backoff, DoublesWithEachAttemptUpToTheCeilingAndStaysThere) {
  const Micros ceiling = 3600 * kSecond;
  std::vector<Micros> seconds;
  Micros backoff = kSecond;
  for (int attempt = 0; attempt < 15; ++attempt) {
    seconds.push_back(backoff / kSecond);
    backoff = doubled_backoff(backoff, ceiling);
  }
  EXPECT_EQ(seconds, (std::vector<Micros>{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3600, 3600, 3600}));
}

TEST(Backoff, OfZeroStaysZero) {
  EXPECT_EQ(doubled_backoff(0, kMost), 0);
  EXPECT_EQ(jittered(0, kAlmostOne), 0);
}

TEST(Backoff, OfALeaseLongerThanTheLeaseCeilingIsKept) {
  for (const Micros lease : {kSecond, kLeaseCeiling - 1, kLeaseCeiling, 3 * kLeaseCeiling})
    EXPECT_GE(doubled_backoff(lease, std::max(lease, kLeaseCeiling)), lease);
}

TEST(Backoff, JitterAddsNothingToATenth) {
  EXPECT_EQ(jittered(10 * kSecond, 0.0), 10 * kSecond);
  EXPECT_EQ(jittered(10 * kSecond, 0.5), 10 * kSecond + kSecond / 2);
  EXPECT_GT(jittered(10 * kSecond, kAlmostOne), 10 * kSecond + kSecond * 99 / 100);
  EXPECT_LE(jittered(10 * kSecond, kAlmostOne), 11 * kSecond);
}

TEST(Backoff, JitterTakesNoHarmFromBadRandomNumbers) {
  EXPECT_EQ(jittered(10 * kSecond, -7.0), 10 * kSecond);
  EXPECT_EQ(jittered(10 * kSecond, 1e300), 11 * kSecond);
}

// What has to hold for every row and every handler, however they came to be. The sanitizer watches
// for overflow.
void check_properties(Micros backoff, Micros ceiling, double random) {
  const Micros bounded = bounded_backoff(backoff, ceiling);
  ASSERT_GE(bounded, 0);
  ASSERT_LE(bounded, std::max(Micros{0}, ceiling));
  ASSERT_LE(bounded, kBackoffCeiling);
  if (backoff >= 0 && backoff <= ceiling && backoff <= kBackoffCeiling) {
    ASSERT_EQ(bounded, backoff);
  }

  const Micros doubled = doubled_backoff(backoff, ceiling);
  ASSERT_EQ(doubled, bounded_backoff(doubled, ceiling));
  ASSERT_GE(doubled, bounded);
  if (bounded > 0 && doubled < bounded * 2) {
    ASSERT_EQ(doubled, bounded_backoff(kMost, ceiling));
  }

  const Micros wait = jittered(bounded, random);
  ASSERT_GE(wait, bounded);
  ASSERT_LE(wait, bounded + bounded / 10 + 1);
}

TEST(Backoff, HoldsItsPropertiesForExtremeValues) {
  std::vector<Micros> edges;
  for (const Micros middle : {Micros{0}, kSecond, kLeaseCeiling, kBackoffCeiling / 2, kBackoffCeiling, kMost / 2,
                              kMost - 1, kLeast / 2, kLeast + 1})
    for (const Micros step : {-1, 0, 1}) edges.push_back(middle + step);
  for (const Micros backoff : edges)
    for (const Micros ceiling : edges)
      for (const double random : {0.0, 0x1p-1074, 0.5, kAlmostOne, 1.0})
        ASSERT_NO_FATAL_FAILURE(check_properties(backoff, ceiling, random))
            << backoff << " " << ceiling << " " << random;
}

TEST(Backoff, HoldsItsPropertiesForRandomBits) {
  std::mt19937_64 source(20'000'101);
  // Shifted, so that each magnitude comes up as often as the others.
  const auto bits = [&] { return std::bit_cast<Micros>(source()) >> (source() % 64); };
  for (int i = 0; i < 200'000; ++i) {
    const Micros backoff = bits();
    const Micros ceiling = bits();
    const double random = static_cast<double>(source() >> 11) * 0x1p-53;
    ASSERT_NO_FATAL_FAILURE(check_properties(backoff, ceiling, random)) << backoff << " " << ceiling << " " << random;
  }
}

}  // namespace
}  // namespace mq
