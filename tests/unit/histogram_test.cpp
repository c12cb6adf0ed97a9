// Histogram: durations find their steps, quantiles are near the truth, sums can be undone.
#include "stats/histogram.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace mq {
namespace {

constexpr Micros kDay = 86'400 * kSecond;

TEST(HistogramTest, EachStepBeginsWhereTheOneBeforeEnds) {
  for (int step = 0; step < 300; ++step) {
    EXPECT_EQ(Histogram::step_of(Histogram::least_of(step)), step);
    EXPECT_EQ(Histogram::step_of(Histogram::least_of(step + 1) - 1), step);
  }
}

TEST(HistogramTest, StepsAreAnEighthOfTheirDurationWideAtMost) {
  for (int step = 8; step < 300; ++step) {
    const Micros width = Histogram::least_of(step + 1) - Histogram::least_of(step);
    EXPECT_LE(width * 8, Histogram::least_of(step)) << step;
  }
}

TEST(HistogramTest, TheShortestAndTheLongestHaveSteps) {
  Histogram histogram;
  histogram.add(-5);
  EXPECT_EQ(histogram.quantile(1), 0);
  histogram.add(std::numeric_limits<Micros>::max());
  EXPECT_GE(histogram.quantile(1).value(), 40 * kDay);
}

TEST(HistogramTest, AnEmptyOneHasNoQuantile) {
  const Histogram histogram;
  EXPECT_TRUE(histogram.empty());
  EXPECT_FALSE(histogram.quantile(0.5).has_value());
}

TEST(HistogramTest, QuantilesAreWithinAnEighthOfTheTruth) {
  std::mt19937_64 random(7);
  std::lognormal_distribution<double> durations(8, 3);
  std::vector<Micros> all;
  Histogram histogram;
  for (int i = 0; i < 20'000; ++i) {
    all.push_back(static_cast<Micros>(durations(random)));
    histogram.add(all.back());
  }
  std::sort(all.begin(), all.end());
  for (const double part : {0.01, 0.5, 0.95, 0.99, 1.0}) {
    const auto truth = static_cast<double>(all[static_cast<std::size_t>(part * 20'000) - 1]);
    EXPECT_NEAR(static_cast<double>(histogram.quantile(part).value()), truth, truth / 8 + 1) << part;
  }
}

TEST(HistogramTest, SurvivesItsStoredForm) {
  Histogram histogram;
  for (const Micros duration : {Micros{3}, Micros{3}, Micros{1000}, kDay}) histogram.add(duration);
  EXPECT_EQ(histogram.stored().size(), 8U);
  Histogram again;
  again.merge_stored(histogram.stored());
  EXPECT_EQ(again.stored(), histogram.stored());
  EXPECT_EQ(again.quantile(0.5), 3);
  EXPECT_EQ(again.sum(), static_cast<double>(kDay + 1006));
}

TEST(HistogramTest, SumsAreExactAndCannotOverflow) {
  Histogram histogram, all;
  for (Micros duration = 1; duration <= 1000; ++duration) histogram.add(duration * 7);
  EXPECT_EQ(histogram.sum(), 3'503'500);
  Histogram longest;
  longest.add(std::numeric_limits<Micros>::max());
  for (int doubled = 0; doubled < 30; ++doubled) {
    const Histogram half = longest;
    longest.merge(half);
  }
  Histogram again;
  again.merge_stored(longest.stored());
  EXPECT_EQ(again.sum(), std::ldexp(1.0, 42 + 30));
  EXPECT_EQ(again.stored(), longest.stored());
  again.merge(histogram);
  again.merge_stored(longest.stored(), -1);
  EXPECT_EQ(again.stored(), histogram.stored());
}

TEST(HistogramTest, AStoredFormWithoutASumHasAnEstimate) {
  Histogram old;
  old.merge_stored(std::vector<std::int64_t>{Histogram::step_of(1024), 10, 3, 2});
  EXPECT_EQ(old.sum(), 10 * (1024 + 1151) / 2 + 6);
  // What a reset subtracts is the same estimate.
  Histogram again;
  again.merge_stored(old.stored(), -1);
  again.merge_stored(std::vector<std::int64_t>{Histogram::step_of(1024), 10, 3, 2});
  EXPECT_TRUE(again.empty());
}

TEST(HistogramTest, ASumIsKeptWhereItsStepsCancel) {
  Histogram histogram;
  histogram.add(1025);
  Histogram other;
  other.add(1026);
  histogram.merge(other, -1);
  EXPECT_FALSE(histogram.empty());
  EXPECT_EQ(histogram.sum(), 0);
  Histogram again;
  again.merge_stored(histogram.stored());
  again.add(1);
  again.merge(other);
  EXPECT_EQ(again.sum(), 1026);
}

TEST(HistogramTest, CountsWhatIsShorterThanABound) {
  Histogram histogram;
  for (const Micros duration : {Micros{0}, Micros{63}, Micros{64}, Micros{65}, Micros{4095}, Micros{4096}, kDay})
    histogram.add(duration);
  EXPECT_EQ(histogram.shorter_than(64), 2);
  EXPECT_EQ(histogram.shorter_than(4096), 5);
  EXPECT_EQ(histogram.shorter_than(Micros{1} << 36), 6);
  EXPECT_EQ(histogram.count(), 7);
}

TEST(HistogramTest, WhatIsSubtractedIsGone) {
  Histogram sum, before;
  for (Micros i = 0; i < 1000; ++i) before.add(i * i);
  sum.merge(before);
  sum.add(5000);
  sum.merge(before, -1);
  Histogram rest;
  rest.add(5000);
  EXPECT_EQ(sum.stored(), rest.stored());
  sum.merge_stored(rest.stored(), -1);
  EXPECT_TRUE(sum.empty());
}

TEST(HistogramTest, SubtractionMayComeFirst) {
  Histogram once, sum;
  once.add(100);
  sum.merge(once, -1);
  EXPECT_FALSE(sum.empty());
  EXPECT_FALSE(sum.quantile(0.5).has_value());
  sum.add(100);
  EXPECT_TRUE(sum.empty());
}

TEST(HistogramTest, PassesOverWhatIsNoStoredForm) {
  Histogram histogram;
  histogram.merge_stored(std::vector<std::int64_t>{-3, 5, 1'000'000, 5, 7});
  EXPECT_TRUE(histogram.empty());
}

}  // namespace
}  // namespace mq
