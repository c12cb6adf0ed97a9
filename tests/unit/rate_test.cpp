#include "shmem/rate.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace mq {
namespace {

constexpr Micros kNow = 800'000'000 * kSecond;

// In each span of time of length w at most w / interval calls begin, those of kTolerance, and one.
void expect_bounded(const std::vector<Micros>& begins, const Rate& rate) {
  for (std::size_t last = 0; last < begins.size(); ++last)
    for (std::size_t first = last; first-- > 0;) {
      const Nanos span = (begins[last] - begins[first] + Rate::kTolerance) * 1000;
      ASSERT_LE(static_cast<Nanos>(last - first), span / rate.interval)
          << "calls " << first << " to " << last << " within " << begins[last] - begins[first] << " µs";
    }
}

TEST(Rate, IntervalsAreRoundedUp) {
  EXPECT_EQ(Rate::of(10, kSecond).interval, 100'000'000);
  EXPECT_EQ(Rate::of(3, kSecond).interval, 333'333'334);
  EXPECT_EQ(Rate::of(2'000'000'000, 1).interval, 1);
  EXPECT_EQ(Rate::of(1, kNever).interval, Nanos{36500} * 86400 * 1'000'000'000);
}

TEST(Rate, AfterARestABurstMayBegin) {
  const Rate rate = Rate::of(100, kSecond);
  RateState state{};
  EXPECT_EQ(rate.ready(state, kNow), 11);
  EXPECT_EQ(rate.take(state, kNow, 50), 11);
  EXPECT_EQ(rate.ready(state, kNow), 0);
  EXPECT_EQ(rate.take(state, kNow, 1), 0);
}

TEST(Rate, ASlowRateHasNoBurst) {
  const Rate rate = Rate::of(1, kSecond);
  RateState state{};
  EXPECT_EQ(rate.take(state, kNow, 5), 1);
  EXPECT_EQ(rate.take(state, kNow, 1), 0);
  EXPECT_EQ(rate.ready_at(state), kNow + kSecond - Rate::kAhead);
}

TEST(Rate, IsReadyWhenItSaysSo) {
  for (const int calls : {1, 7, 60, 1000, 30000}) {
    const Rate rate = Rate::of(calls, kSecond);
    RateState state{};
    Micros now = kNow;
    for (int i = 0; i < 1000; ++i) {
      ASSERT_EQ(rate.ready(state, now - 1), i == 0 ? rate.ready(state, now) : 0) << calls;
      const int ready = rate.ready(state, now);
      ASSERT_GE(ready, 1);
      ASSERT_EQ(rate.take(state, now, ready + 3), ready);
      const Micros next = rate.ready_at(state);
      ASSERT_GT(next, now);
      now = next;
    }
  }
}

// Whoever comes when it is told to gets all of them, as long as it is not later than kAhead.
TEST(Rate, LateWakeUpsLoseNothing) {
  std::mt19937 random(1);
  for (const int calls : {1, 10, 95, 1000}) {
    const Rate rate = Rate::of(calls, kSecond);
    RateState state{};
    std::vector<Micros> begins;
    Micros now = kNow;
    while (now < kNow + 20 * kSecond) {
      const int taken = rate.take(state, now, 10000);
      begins.insert(begins.end(), static_cast<std::size_t>(taken), now);
      now = rate.ready_at(state) + static_cast<Micros>(random() % Rate::kAhead);
    }
    EXPECT_GE(static_cast<int>(begins.size()), 20 * calls) << calls;
    EXPECT_LE(static_cast<int>(begins.size()), 20 * calls + calls / 10 + 2) << calls;
  }
}

TEST(Rate, NeverBeginsMoreThanItSays) {
  std::mt19937 random(2);
  for (const int calls : {1, 9, 100, 1500}) {
    const Rate rate = Rate::of(calls, kSecond);
    RateState state{};
    std::vector<Micros> begins;
    Micros now = kNow;
    while (begins.size() < 1500) {
      const int taken = rate.take(state, now, static_cast<int>(random() % 20));
      begins.insert(begins.end(), static_cast<std::size_t>(taken), now);
      now += static_cast<Micros>(random() % (random() % 10 == 0 ? 300'000 : 20'000));
      if (random() % 100 == 0) now += kSecond * (calls == 1 ? 100 : 3);
    }
    expect_bounded(begins, rate);
  }
}

TEST(Rate, GoesOnAfterTheClockWasSetBackOrTheRateRaised) {
  for (const Micros back : {Micros{0}, 86400 * kSecond}) {
    RateState state{};
    const Rate slow = Rate::of(1, 3600 * kSecond);
    EXPECT_EQ(slow.take(state, kNow, 1), 1);
    const Rate fast = Rate::of(1, 2 * kSecond);
    Micros now = kNow - back;
    EXPECT_TRUE(fast.is_too_far(state, now));
    fast.tighten(state, now);
    for (int i = 0; i < 10; ++i) {
      EXPECT_FALSE(fast.is_too_far(state, now));
      now = fast.ready_at(state);
      EXPECT_LE(now, kNow - back + 2 * (i + 1) * kSecond + Rate::kTolerance);
      EXPECT_EQ(fast.take(state, now, 1), 1);
    }
  }
}

TEST(Rate, TimesDoNotOverflow) {
  const Rate rate = Rate::of(1, kNever);
  RateState state{};
  EXPECT_EQ(rate.take(state, kNow, 100), 1);
  EXPECT_GT(rate.ready_at(state), kNow);
  for (int i = 0; i < 100; ++i) EXPECT_GT(rate.put_off(state, kNow, i), kNow);
  EXPECT_FALSE(rate.may_begin(state, kNow, 1'000'000, false));
}

// Messages of one channel are put off, come back at their slots, and begin then.
TEST(Rate, EachMessageIsPutOffOnce) {
  for (const int calls : {1, 5, 30}) {
    const Rate rate = Rate::of(calls, kSecond);
    RateState state{};
    std::vector<Micros> due, begins;
    int before = 0;
    for (int i = 0; i < 300; ++i)
      if (rate.may_begin(state, kNow, before, false))
        ++before;
      else
        due.push_back(rate.put_off(state, kNow, before));
    EXPECT_EQ(rate.take(state, kNow, before), before);
    begins.assign(static_cast<std::size_t>(before), kNow);
    EXPECT_TRUE(std::is_sorted(due.begin(), due.end()));
    for (const Micros at : due) {
      ASSERT_GT(at, kNow);
      ASSERT_TRUE(rate.may_begin(state, at, 0, true)) << calls;
      ASSERT_EQ(rate.take(state, at, 1), 1);
      begins.push_back(at);
    }
    expect_bounded(begins, rate);
    EXPECT_NEAR(static_cast<double>(begins.back() - kNow), 300e6 / calls, 1.2e6);
  }
}

TEST(Rate, WhatComesLaterWaitsForThoseWithSlots) {
  const Rate rate = Rate::of(1, kSecond);
  RateState state{};
  EXPECT_EQ(rate.take(state, kNow, 1), 1);
  const Micros first = rate.put_off(state, kNow, 0);
  const Micros second = rate.put_off(state, kNow, 0);
  EXPECT_GT(second, first);
  EXPECT_FALSE(rate.may_begin(state, first, 0, false));
  EXPECT_TRUE(rate.may_begin(state, first, 0, true));
}

// A worker that comes after an hour finds all of them due: those that have no time are put off again.
TEST(Rate, SlotsThatWerePassedBringNoFlood) {
  const Rate rate = Rate::of(2, kSecond);
  RateState state{};
  EXPECT_EQ(rate.take(state, kNow, 1), 1);
  for (int i = 0; i < 50; ++i) (void)rate.put_off(state, kNow, 0);
  const Micros later = kNow + 3600 * kSecond;
  int begun = 0;
  for (int i = 0; i < 50; ++i) {
    if (!rate.may_begin(state, later, begun, true))
      EXPECT_GT(rate.put_off(state, later, begun), later);
    else
      ++begun;
  }
  EXPECT_EQ(begun, 1);
}

TEST(Rate, SlotsOfMessagesThatAreGoneAreGivenAgain) {
  const Rate rate = Rate::of(1, kSecond);
  RateState state{};
  EXPECT_EQ(rate.take(state, kNow, 1), 1);
  std::vector<Micros> due;
  for (int i = 0; i < 1000; ++i) due.push_back(rate.put_off(state, kNow, 0));
  EXPECT_TRUE(rate.is_worth_a_look(state, kNow));
  rate.free_behind(state, due[10]);
  EXPECT_GE(rate.put_off(state, kNow, 0), due[11]);
  EXPECT_LE(rate.put_off(state, kNow, 0), due[13] + kSecond);
  rate.free_behind(state, 0);
  EXPECT_LE(rate.put_off(state, kNow, 0), due[0]);
  EXPECT_FALSE(rate.is_worth_a_look(state, kNow));
}

}  // namespace
}  // namespace mq
