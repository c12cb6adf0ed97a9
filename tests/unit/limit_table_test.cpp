#include "shmem/limit_table.hpp"

#include <gtest/gtest.h>

#include <memory>

namespace mq {
namespace {

constexpr Micros kNow = 800'000'000 * kSecond;

class LimitTableTest : public testing::Test {
 protected:
  LimitTableTest() : table(new LimitTable()) {}
  static std::uint64_t key(std::uint64_t i) { return (i + 1) * 0x9e3779b97f4a7c15; }
  std::unique_ptr<LimitTable> table;
};

TEST_F(LimitTableTest, KeepsWhatItKnowsOfEachKey) {
  for (std::uint64_t i = 0; i < LimitTable::kEntries; ++i) {
    LimitState* state = table->find_or_add(key(i), kNow);
    ASSERT_NE(state, nullptr);
    state->rate.next = (kNow + 1) * 1000 + static_cast<Nanos>(i);
  }
  for (std::uint64_t i = 0; i < LimitTable::kEntries; ++i) {
    ASSERT_NE(table->find(key(i)), nullptr);
    EXPECT_EQ(table->find(key(i))->rate.next, (kNow + 1) * 1000 + static_cast<Nanos>(i));
  }
  EXPECT_EQ(table->find(key(LimitTable::kEntries)), nullptr);
  EXPECT_EQ(table->find_or_add(key(LimitTable::kEntries), kNow), nullptr) << "all are in use";
}

TEST_F(LimitTableTest, UsesEntriesAgainWhoseTimesHavePassed) {
  constexpr int kRounds = 20;
  for (int round = 0; round < kRounds; ++round) {
    const Micros now = kNow + round * kSecond;
    for (std::uint64_t i = 0; i < LimitTable::kEntries; ++i) {
      LimitState* state = table->find_or_add(key(i + static_cast<std::uint64_t>(round) * 100'000), now);
      ASSERT_NE(state, nullptr) << round << " " << i;
      (i % 2 == 0 ? state->rate.next : state->rate.free) = (now + kSecond / 2) * 1000;
    }
  }
  EXPECT_EQ(table->used(), LimitTable::kEntries);
  EXPECT_EQ(table->find(key(0)), nullptr);
}

TEST_F(LimitTableTest, KeepsEntriesOfWhatRunsOrWaits) {
  constexpr std::uint64_t kKept = 3;
  for (std::uint64_t i = 0; i < kKept; ++i) {
    LimitState* state = table->find_or_add(key(i), kNow);
    if (i == 0) state->running = 1;
    if (i == 1) state->waiting = kNow;
    if (i == 2) state->asked = true;
  }
  for (std::uint64_t i = kKept; i < 5 * LimitTable::kEntries; ++i) ASSERT_NE(table->find_or_add(key(i), kNow), nullptr);
  for (std::uint64_t i = 0; i < kKept; ++i) EXPECT_NE(table->find(key(i)), nullptr) << i;
  EXPECT_EQ(table->find(key(kKept)), nullptr);
}

TEST_F(LimitTableTest, ForgetsWhatHasWaitedTooLong) {
  table->find_or_add(key(0), kNow)->waiting = kNow - LimitTable::kWaits - 1;
  table->find_or_add(key(1), kNow)->waiting = kNow - LimitTable::kWaits;
  for (std::uint64_t i = 2; i < 5 * LimitTable::kEntries; ++i) ASSERT_NE(table->find_or_add(key(i), kNow), nullptr);
  EXPECT_EQ(table->find(key(0)), nullptr);
  EXPECT_NE(table->find(key(1)), nullptr);
}

}  // namespace
}  // namespace mq
