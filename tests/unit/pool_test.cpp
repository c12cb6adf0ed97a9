#include "worker/pool.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace mq {
namespace {

constexpr DatabaseId kDatabase = 16'384;
constexpr DatabaseId kOther = 16'385;
constexpr Micros kNow = 1000 * kSecond;

PoolState pool(RoleId role, int workers = 0, bool backlog = false, Micros last_start = 0) {
  return {kDatabase, role, workers, backlog, false, last_start, 0};
}

TEST(Pool, WithoutAWorkerGetsOne) {
  EXPECT_EQ(pool_to_start({pool(10)}, kDatabase, 2, kNow), 0U);
  EXPECT_EQ(pool_to_start({pool(10, 1)}, kDatabase, 2, kNow), std::nullopt);
  EXPECT_EQ(pool_to_start({}, kDatabase, 2, kNow), std::nullopt);
}

TEST(Pool, WithABacklogGetsMoreUpToTheLimit) {
  EXPECT_EQ(pool_to_start({pool(10, 1, true)}, kDatabase, 2, kNow), 0U);
  EXPECT_EQ(pool_to_start({pool(10, 2, true)}, kDatabase, 2, kNow), std::nullopt);
  EXPECT_EQ(pool_to_start({pool(10)}, kDatabase, 0, kNow), std::nullopt);
}

TEST(Pool, WhoseWorkersAllSitInLongBatchesGetsAnother) {
  PoolState sitting = pool(10, 2);
  sitting.busy_long = true;
  EXPECT_EQ(pool_to_start({sitting}, kDatabase, 3, kNow), 0U);
  EXPECT_EQ(pool_to_start({sitting}, kDatabase, 2, kNow), std::nullopt);
  sitting.role = kProbe;
  EXPECT_EQ(pool_to_start({sitting}, kDatabase, 3, kNow), std::nullopt);
}

TEST(Pool, ProbeNeedsNoSecond) {
  EXPECT_EQ(pool_to_start({pool(kProbe)}, kDatabase, 2, kNow), 0U);
  EXPECT_EQ(pool_to_start({pool(kProbe, 1, true)}, kDatabase, 2, kNow), std::nullopt);
}

TEST(Pool, LimitCountsTheWorkersOfAllPoolsOfTheDatabase) {
  EXPECT_EQ(pool_to_start({pool(10, 2), pool(11)}, kDatabase, 2, kNow), std::nullopt);
  EXPECT_EQ(pool_to_start({pool(10, 2), pool(11)}, kDatabase, 3, kNow), 1U);
}

TEST(Pool, OfAnotherDatabaseNeitherCountsNorStarts) {
  std::vector<PoolState> pools{pool(10, 2, true), pool(11, 1)};
  pools[0].database = kOther;
  EXPECT_EQ(pool_to_start(pools, kDatabase, 2, kNow), std::nullopt);
  pools[1].workers = 0;
  EXPECT_EQ(pool_to_start(pools, kDatabase, 1, kNow), 1U);
}

TEST(Pool, WithFewestWorkersComesFirst) {
  EXPECT_EQ(pool_to_start({pool(10, 1, true, 1), pool(11, 0, false, 900 * kSecond)}, kDatabase, 4, kNow), 1U);
  EXPECT_EQ(pool_to_start({pool(10, 2, true), pool(11, 1, true)}, kDatabase, 4, kNow), 1U);
}

TEST(Pool, ThatWaitedLongestComesFirstAmongEquals) {
  EXPECT_EQ(pool_to_start({pool(10, 0, false, 30), pool(11, 0, false, 10), pool(12, 0, false, 20)}, kDatabase, 1, kNow),
            1U);
}

TEST(Pool, IsTriedAgainAfterLongerWaitsUpToFiveMinutes) {
  EXPECT_EQ(restart_wait(-1), 0);
  EXPECT_EQ(restart_wait(0), 0);
  EXPECT_EQ(restart_wait(1), 1 * kSecond);
  EXPECT_EQ(restart_wait(2), 2 * kSecond);
  EXPECT_EQ(restart_wait(3), 4 * kSecond);
  EXPECT_EQ(restart_wait(9), 256 * kSecond);
  EXPECT_EQ(restart_wait(10), 300 * kSecond);
  EXPECT_EQ(restart_wait(1000), 300 * kSecond);
  EXPECT_EQ(restart_wait(std::numeric_limits<int>::max()), 300 * kSecond);
}

TEST(Pool, WhoseWorkersFailTakesNoPlaceFromOthers) {
  std::vector<PoolState> pools{pool(10, 1), pool(11, 0, false, kNow - kSecond)};
  EXPECT_TRUE(contended(pools, kDatabase, 1, kNow));
  pools[1].failed_starts = 5;
  EXPECT_FALSE(contended(pools, kDatabase, 1, kNow));
  EXPECT_TRUE(contended(pools, kDatabase, 1, kNow + 16 * kSecond));
}

TEST(Pool, WithSomethingToDoComesBeforeOneThatRests) {
  PoolState resting = pool(10);
  resting.due = kNow + kSecond;
  PoolState busy = pool(11, 0, false, 20);
  EXPECT_TRUE(comes_first(busy, resting, kNow));
  EXPECT_FALSE(comes_first(resting, busy, kNow));
  EXPECT_TRUE(comes_first(resting, busy, kNow + kSecond));
  EXPECT_TRUE(comes_first(resting, pool(12, 1, true), kNow));
}

TEST(Pool, WaitsForASlotIfItsDatabaseHasRoomForAWorker) {
  std::vector<PoolState> pools{pool(10, 1), pool(11), pool(12)};
  pools[2].due = kNow + kSecond;
  Waiting all = waiting(pools, kDatabase, 8, kNow);
  EXPECT_EQ(all.pools, 2);
  EXPECT_EQ(all.busy, 1);
  EXPECT_EQ(waiting(pools, kDatabase, 2, kNow).pools, 1);
  EXPECT_EQ(waiting(pools, kDatabase, 1, kNow).pools, 0);
  EXPECT_EQ(waiting(pools, kOther, 8, kNow).pools, 0);
  pools[1].failed_starts = 3;
  pools[1].last_start = kNow;
  EXPECT_EQ(waiting(pools, kDatabase, 8, kNow).busy, 0);
}

TEST(Pool, RestsAfterAFailedStartAndLetsOthersGoFirst) {
  std::vector<PoolState> pools{pool(10, 0, false, kNow - 3 * kSecond)};
  pools[0].failed_starts = 3;
  EXPECT_EQ(pool_to_start(pools, kDatabase, 2, kNow), std::nullopt);
  EXPECT_EQ(pool_to_start(pools, kDatabase, 2, kNow + kSecond - 1), std::nullopt);
  EXPECT_EQ(pool_to_start(pools, kDatabase, 2, kNow + kSecond), 0U);
  pools.push_back(pool(11, 0, false, kNow));
  EXPECT_EQ(pool_to_start(pools, kDatabase, 2, kNow), 1U);
}

TEST(Pool, DoesNotRestUntilAClockThatWentBackHasCaughtUp) {
  std::vector<PoolState> pools{pool(10, 0, false, kNow + 3600 * kSecond)};
  pools[0].failed_starts = 4;
  EXPECT_EQ(pool_to_start(pools, kDatabase, 2, kNow), 0U);
}

TEST(Pool, ContentionIsMorePoolsThanWorkers) {
  std::vector<PoolState> pools{pool(10), pool(11)};
  EXPECT_FALSE(contended(pools, kDatabase, 2, kNow));
  EXPECT_TRUE(contended(pools, kDatabase, 1, kNow));
  pools.push_back(pool(12));
  EXPECT_TRUE(contended(pools, kDatabase, 2, kNow));
  pools[2].database = kOther;
  EXPECT_FALSE(contended(pools, kDatabase, 2, kNow));
}

TEST(Pool, WithoutAWorkerIsContentionWhenOthersHaveTakenAllPlaces) {
  std::vector<PoolState> pools{pool(10, 2, true), pool(11)};
  EXPECT_EQ(pool_to_start(pools, kDatabase, 2, kNow), std::nullopt);
  EXPECT_TRUE(contended(pools, kDatabase, 2, kNow));
  EXPECT_FALSE(contended(pools, kDatabase, 3, kNow));
  pools[1].workers = 1;
  pools[0].workers = 1;
  EXPECT_FALSE(contended(pools, kDatabase, 2, kNow));
}

TEST(Pool, WithoutRoomForProcessesOnlyDrainingWorkersGoOn) {
  std::vector<PoolState> pools{pool(10), pool(11, 0, false, 20)};
  EXPECT_EQ(pool_to_start(pools, kDatabase, 1, kNow, Starts::kDraining), std::nullopt);
  pools[1].draining = 1;
  EXPECT_EQ(pool_to_start(pools, kDatabase, 1, kNow), 0U);
  EXPECT_EQ(pool_to_start(pools, kDatabase, 1, kNow, Starts::kDraining), 1U);
}

TEST(Pool, WhoseWorkersAreAllStuckNeedsAPlaceWhenSomethingIsDue) {
  std::vector<PoolState> pools{pool(10, 1), pool(11, 1)};
  EXPECT_EQ(database_slots_wanted(pools, kDatabase, 2, kNow), 0);
  pools[0].busy_long = pools[0].stuck = true;
  EXPECT_TRUE(needs_database_slot(pools[0], kNow));
  EXPECT_EQ(database_slots_wanted(pools, kDatabase, 2, kNow), 1);
  EXPECT_EQ(database_slots_wanted(pools, kDatabase, 3, kNow), 0);
  EXPECT_TRUE(contended(pools, kDatabase, 2, kNow));
  EXPECT_FALSE(in_turns(pools, kDatabase, 2, kNow));
  pools[0].due = kNow + 1;
  EXPECT_EQ(database_slots_wanted(pools, kDatabase, 2, kNow), 0);
  EXPECT_FALSE(contended(pools, kDatabase, 2, kNow));
  EXPECT_EQ(database_slots_wanted(pools, kDatabase, 2, kNow + 1), 1);
  pools[0].role = kProbe;
  EXPECT_FALSE(needs_database_slot(pools[0], kNow + 1));
}

TEST(Pool, WithAllWorkersOfItsDatabaseDoesNotLeaveForItself) {
  std::vector<PoolState> pools{pool(10, 2)};
  pools[0].busy_long = pools[0].stuck = true;
  EXPECT_EQ(database_slots_wanted(pools, kDatabase, 2, kNow), 0);
  EXPECT_FALSE(contended(pools, kDatabase, 2, kNow));
  pools.push_back(pool(11));
  EXPECT_EQ(database_slots_wanted(pools, kDatabase, 2, kNow), 1);
  EXPECT_TRUE(contended(pools, kDatabase, 2, kNow));
}

TEST(Pool, ThatGaveItsPlaceUpToOneThatNeedsItDoesNotGetItBackAtOnce) {
  PoolState stuck = pool(10, 1);
  stuck.busy_long = stuck.stuck = true;
  PoolState idle = pool(11);
  idle.due = kNow + kSecond;
  EXPECT_TRUE(comes_first(stuck, idle, kNow));
  EXPECT_FALSE(comes_first(idle, stuck, kNow));
  EXPECT_EQ(pool_to_start({stuck, idle}, kDatabase, 2, kNow), 0U);
  idle.due = 0;
  idle.last_start = 20;
  stuck.last_start = 10;
  EXPECT_TRUE(comes_first(stuck, idle, kNow));
  stuck.last_start = 30;
  EXPECT_TRUE(comes_first(idle, stuck, kNow));
}

TEST(Pool, WhoseWorkersFindNothingIsLookedAtLessOften) {
  Micros next = 0;
  EXPECT_EQ(after_fruitless(1, kNow, next), kNow + kSecond / 10);
  EXPECT_EQ(after_fruitless(2, kNow + kSecond, next), kNow + kSecond + kSecond / 5);
  EXPECT_EQ(after_fruitless(9, kNow + 2 * kSecond, next), kNow + 2 * kSecond + kSecond * 8 / 10);
  // Many of one database: five a second.
  std::vector<Micros> when;
  for (int i = 0; i < 20; ++i) when.push_back(after_fruitless(4, kNow + 3 * kSecond, next));
  for (std::size_t i = 5; i < when.size(); ++i) EXPECT_EQ(when[i] - when[i - 1], kSecond / 5);
  EXPECT_LE(when.back(), kNow + 7 * kSecond);
  // None waits for long, however many there are or the clock is set.
  for (int i = 0; i < 1000; ++i) EXPECT_LE(after_fruitless(4, kNow, next), kNow + kLastFruitless);
  EXPECT_LE(after_fruitless(1, 0, next), kLastFruitless);
}

// The launcher and workers that make room when others wait: one seq, five roles.
TEST(Pool, MorePoolsThanWorkersTakeTurns) {
  std::vector<PoolState> pools;
  for (RoleId role = 1; role <= 5; ++role) pools.push_back(pool(role));
  std::vector<std::size_t> turns;
  Micros now = kNow;
  for (int turn = 0; turn < 10; ++turn, now += kSecond) {
    const auto next = pool_to_start(pools, kDatabase, 1, now);
    ASSERT_TRUE(next);
    turns.push_back(*next);
    pools[*next].workers = 1;
    pools[*next].last_start = now;
    ASSERT_EQ(pool_to_start(pools, kDatabase, 1, now), std::nullopt);
    ASSERT_TRUE(contended(pools, kDatabase, 1, kNow));
    pools[*next].workers = 0;
  }
  EXPECT_EQ(turns, (std::vector<std::size_t>{0, 1, 2, 3, 4, 0, 1, 2, 3, 4}));
}

// Three roles with a backlog share six places evenly, whoever had more to begin with.
TEST(Pool, BacklogsShareThePlacesEvenly) {
  std::vector<PoolState> pools{pool(10, 2, true), pool(11, 0, true), pool(12, 0, true)};
  while (const auto next = pool_to_start(pools, kDatabase, 6, kNow)) {
    ++pools[*next].workers;
    pools[*next].last_start = kNow;
  }
  for (const PoolState& state : pools) EXPECT_EQ(state.workers, 2);
}

}  // namespace
}  // namespace mq
